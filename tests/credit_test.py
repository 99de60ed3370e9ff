"""What FIPO credits: kinds of tokens, figures of samples that were made by hand, a page."""

import json

import numpy as np
import pytest

from fipo_jax.sweeps import credit
from launch import credit as launch_credit

TEXT = "8-2=6+5=11 no\n8+2=10 ok\nCheck: 10-2=8 ok\nAnswer: 8+2"
TOKENS = [*TEXT, "<|im_end|>"]


def of(text):
  return credit.kinds([*text, "<|im_end|>"])


def test_the_kind_of_every_token():
  n, s, r = ["number"], ["sign"], ["result"]
  assert of("8-2=6+15=-9 no\n8+2=10 ok\nAnswer: 8+2") == [
    *n, *s, *n, "=", *r, *s, *n, *n, "=", *r, *r, "blank", "no", "no", "newline",
    "try again", *s, *n, "=", *r, *r, "blank", "ok", "ok", "newline",
    *["Answer:"] * 8, "answer number", "answer sign", "answer number", "end",
  ]  # fmt: skip
  checked = of(TEXT)
  at = TEXT.index("Check")
  assert checked[at : at + 7] == ["Check:"] * 7 and checked[at + 7 : at + 12] == [*n, *n, *s, *n, "="]
  given_up = of("8-2=6 no\nAnswer: 8-2")
  assert given_up[9] == "give up" and given_up[10:17] == ["Answer:"] * 7
  assert of("8-2=6=4 no\n") == ["other"] * 10 + ["newline", "end"]  # no try that can be read
  assert credit.kinds([]) == []


def sample(step, F, advantage=1.0, tokens=TOKENS, **more):
  n = len(tokens)
  weight = np.clip(np.exp(F), 1, 1.2)
  return {
    "step": step, "tokens": tokens, "advantage": advantage, "future_kl": list(F), "weight": list(weight),
    "entropy": [0.5] * n, "logp": [-0.4] * n, "sampler_logp": [-0.5] * n,
  } | more  # fmt: skip


def write_run(folder, samples):
  folder.mkdir()
  (folder / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
  return str(folder)


def test_figures_of_samples_made_by_hand(tmp_path):
  """F is 0.1 on the verdicts of the good response and 0 elsewhere; the bad one has -0.2 everywhere."""
  verdict = np.asarray([0.1 * (k in ("ok", "no")) for k in credit.kinds(TOKENS)])
  other = dict(future_kl=None, weight=None)
  samples = [sample(1, verdict), sample(2, np.full(len(TOKENS), -0.2), -1.0), sample(3, verdict, **other)]
  c = credit.read(write_run(tmp_path / "run", samples))
  assert (c["steps"], c["responses"], len(c["F"])) == (2, 2, 2 * len(TOKENS))
  assert c["first"][0] == 0 and c["last"][0] == len(TOKENS) - 1 and c["last"][len(TOKENS) - 1] == 0
  np.testing.assert_allclose(c["shift"], 0.1)
  found = credit.summary(c)
  assert found["f where bad"] == 1.0 and found["f where good"] > 1.0
  assert found["kinds"] == {}  # too few of any kind
  many = credit.summary(credit.read(write_run(tmp_path / "many", [sample(1, verdict)] * 20)))
  np.testing.assert_allclose(many["kinds"]["ok"]["F"], 0.1)
  np.testing.assert_allclose(many["kinds"]["ok"]["f"], np.exp(0.1))
  assert many["kinds"]["sign"]["F"] == 0 and many["kinds"]["number"]["tokens"] == 20 * 7
  assert many["alone"]["response"] == pytest.approx(0)
  assert many["alone"]["kind"] == pytest.approx(1) and many["nested"]["kind"] == pytest.approx(1)
  assert many["rank correlation of |F|"]["entropy"] is None  # which does not vary here


def test_variance_explained_is_that_of_least_squares():
  rng = np.random.default_rng(0)
  a, b = rng.integers(0, 4, 300), rng.integers(0, 6, 300)
  values = rng.normal(size=300) + 0.5 * a - 0.3 * b
  columns = np.concatenate([np.eye(4)[a], np.eye(6)[b]], axis=1)
  left = values - columns @ np.linalg.lstsq(columns, values)[0]
  assert credit.explained(values, [a, b]) == pytest.approx(1 - left @ left / np.sum((values - values.mean()) ** 2))
  assert credit.explained(values, [a]) < credit.explained(values, [a, b]) < 1
  assert credit.explained(np.ones(300), [a]) == 0.0


def test_stability_over_runs():
  run = lambda **f: {"kinds": {k: {"f": v} for k, v in f.items()}}
  assert credit.stability([run(a=1, b=2, c=3), run(a=2, b=5, c=9, d=0)], "f") == [1.0]
  assert credit.stability([run(a=1, b=2, c=3), run(a=3, b=2, c=1)], "f") == [-1.0]
  assert credit.stability([run(a=1, b=2, c=3)], "f") == []


def test_a_page_of_two_runs(tmp_path, capsys, monkeypatch):
  rng = np.random.default_rng(1)
  runs = [
    write_run(tmp_path / name, [sample(i, rng.normal(0, 0.1, len(TOKENS)), (-1) ** i) for i in range(40)])
    for name in ("a", "b")
  ]
  monkeypatch.setattr(credit, "draw", lambda found, path: path.write_bytes(b"drawn"))  # which takes seconds
  assert launch_credit.main([f"--run={runs[0]}", f"--run={runs[1]}", f"--out={tmp_path / 'credit'}"]) == 0
  text = (tmp_path / "credit.md").read_text()
  assert "80 responses of 2 run(s)" in text and "| the response alone |" in text and "(credit.png)" in text
  assert " to " in next(line for line in text.splitlines() if line.startswith("| ok |"))  # the range over runs
  assert set(json.loads((tmp_path / "credit.json").read_text())) == set(runs)


@pytest.mark.slow
def test_the_picture(tmp_path):
  run = write_run(tmp_path / "a", [sample(i, np.full(len(TOKENS), 0.1)) for i in range(40)])
  credit.draw([credit.summary(credit.read(run))], tmp_path / "credit.png")
  assert (tmp_path / "credit.png").read_bytes()[:4] == b"\x89PNG"


def test_a_run_without_future_kl(tmp_path, capsys):
  run = write_run(tmp_path / "dapo", [sample(1, np.zeros(len(TOKENS)), future_kl=None, weight=None)])
  assert launch_credit.main([f"--run={run}", f"--out={tmp_path / 'credit'}"]) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and "algorithm.name='fipo'" in error
