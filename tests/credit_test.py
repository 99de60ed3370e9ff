"""What FIPO credits: kinds of tokens, figures of samples that were made by hand, a page."""

import json

import numpy as np
import pytest

from fipo_jax.sweeps import credit, credit_page, tries
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
    "prompt": "8 2 -> 10:", "response": "".join(tokens[:-1]), "accuracy": 1.0,
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
  late = credit.read(write_run(tmp_path / "late", [sample(1, verdict, old_logp=[-0.45] * len(TOKENS))]))
  np.testing.assert_allclose(late["shift"], 0.05)  # since the step began, whenever it was sampled
  found = credit.summary(c)
  assert found["f where bad"] == 1.0 and found["f where good"] > 1.0
  assert found["kinds"] == {}  # too few of any kind
  many = credit.summary(credit.read(write_run(tmp_path / "many", [sample(1, verdict)] * 20)))
  np.testing.assert_allclose(many["kinds"]["ok"]["F"], 0.1)
  np.testing.assert_allclose(many["kinds"]["ok"]["f"], np.exp(0.1))
  assert many["kinds"]["sign"]["F"] == 0 and many["kinds"]["number"]["tokens"] == 20 * 7
  assert many["kinds"]["ok"]["top of F"] + many["kinds"]["no"]["top of F"] == 1 and many["kinds"]["="]["top of F"] == 0
  assert many["alone"]["response"] == pytest.approx(0)
  assert many["alone"]["kind"] == pytest.approx(1) and many["nested"]["kind"] == pytest.approx(1)
  assert many["rank correlation"]["abs F and entropy"] is None  # which does not vary here


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
  monkeypatch.setattr(credit_page, "draw", lambda found, path: path.write_bytes(b"drawn"))  # which takes seconds
  dapo = write_run(tmp_path / "c", [sample(1, np.zeros(len(TOKENS)), future_kl=None)])
  flags = [f"--run={runs[0]}", f"--run={runs[1]}", f"--beside={dapo}", f"--out={tmp_path / 'credit'}"]
  launch_credit.main(flags)
  text = (tmp_path / "credit.md").read_text()
  assert " ".join(flags[:3]) in text and sum("/c |" in line for line in text.splitlines()) == 1
  assert "80 responses, each" in " ".join(text.split()) and "runs: 2," in text
  assert "| the response alone |" in text and "(credit.png)" in text
  assert " to " in next(line for line in text.splitlines() if line.startswith("| ok |"))  # the range over runs
  assert set(json.loads((tmp_path / "credit.json").read_text())["credit"]) == set(runs)


def test_what_became_of_the_tries():
  """One sum wrong by which 0 is seen; a check that does not count; an answer at once; one cut off before it answers."""
  count = lambda response, accuracy=0.0: {
    name: n for name, n in tries.counts("8 2 -> 10:", response, accuracy).items() if n
  }  # fmt: skip
  assert count("8-2=6-10=-4 no\n8-2=10-10=0 ok\nCheck: 10+2=8-8=0 ok\nAnswer: 8-2") == {
    "responses": 1, "early": 4, "wrong early": 1, "no": 1, "ok": 1, "false ok": 1, "ended by ok": 1,
  }  # fmt: skip
  assert count("8+2=10-9=1 ok\nAnswer: 8+2", 1.0) == {
    "responses": 1, "right": 1, "early": 2, "ok": 1, "false ok": 1, "ended by ok": 1, "right after ok": 1,
  }  # fmt: skip
  assert count("8-2=6-10=-4 no\nAnswer: 8-2") == {"responses": 1, "early": 2, "no": 1, "given up": 1}
  assert count("Answer: 8+2", 1.0) == {"responses": 1, "right": 1, "at once": 1}
  assert count("8-2=6-10=-4 no\n8+2") == {"responses": 1, "early": 2, "no": 1}
  ten = count("8-2=6-10=-4 no\n" * 9 + "8-2=5-10=-5 no\n")
  assert ten == {"responses": 1, "early": 6, "between": 10, "late": 4, "wrong late": 1, "no": 10}


def test_tries_of_a_run_at_first_and_at_the_end(tmp_path):
  zero = np.zeros(len(TOKENS))
  found = "8-2=6-10=-4 no\n8+2=10-10=0 ok\nAnswer: 8+2"
  late = [sample(step, zero, response="Answer: 8-2", accuracy=0.0) for step in (60, 100)]
  samples = [sample(1, zero, response=found), *late]
  first, last = tries.read(write_run(tmp_path / "run", samples))
  assert first == {
    "answers at once": 0.0, "gives up after a no": 0.0, "wrong sums, tries 1 to 3": 0.0, "right": 1.0,
    "ok though the signs are wrong": 0.0, "right after ok": 1.0,
  }  # fmt: skip
  assert last == {"answers at once": 1.0, "right": 0.0}
  assert tries.table({"a": (first, last)})[1][:3] == ["a", "0.00 to 1.00", "0.00 to -"]
  with pytest.raises(ValueError, match="log.samples"):
    tries.read(str(tmp_path))


@pytest.mark.slow
def test_the_picture(tmp_path):
  run = write_run(tmp_path / "a", [sample(i, np.full(len(TOKENS), 0.1)) for i in range(40)])
  credit_page.draw([credit.summary(credit.read(run))], tmp_path / "credit.png")
  assert (tmp_path / "credit.png").read_bytes()[:4] == b"\x89PNG"


def test_a_run_without_future_kl(tmp_path, capsys):
  run = write_run(tmp_path / "dapo", [sample(1, np.zeros(len(TOKENS)), future_kl=None, weight=None)])
  with pytest.raises(SystemExit) as end:
    launch_credit.main([f"--run={run}", f"--out={tmp_path / 'credit'}"])
  assert end.value.code == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and "algorithm.name='fipo'" in error
