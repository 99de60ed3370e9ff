"""The figures of a set: by hand, and the reference trainer's under its names."""

import json
import pathlib

import numpy as np
import pytest

from fipo_jax.evaluation import compare, measure
from fipo_jax.types import Prompt, Rollout
from tests.evaluate_test import BOOTSTRAP, GOLDEN
from tests.tolerances import close


def group(number, answer, *samples, source=None):
  """Samples are (answer, tokens, stop reason)."""
  extras = {"data_source": source, "id": f"x{number}"}
  prompt = Prompt(number, np.zeros(1, np.int32), f"p{number}", answer, "exact", extras)
  return [
    Rollout(prompt, i, np.zeros(n, np.int32), np.zeros(n), stop, pred=pred, accuracy=float(pred == answer),
            reward=2.0 * (pred == answer) - 1) for i, (pred, n, stop) in enumerate(samples)
  ]  # fmt: skip


GROUPS = [
  group(0, "5", ("5", 4, "stop"), ("1", 3, "stop"), ("5", 6, "stop"), (None, 8, "length")),
  group(1, "6", ("7", 1, "stop"), ("6", 1, "stop"), ("6", 1, "stop"), ("7", 1, "stop")),
]


def test_a_set_by_hand():
  got = measure.measure(GROUPS, "hand")
  assert got["metrics"]["accuracy"] == 0.5 and got["metrics"]["cons_first@4"] == 0.5  # "7" was seen first
  value = {name: row["value"] for name, row in got["curves"].items()}
  want = {"pass@1": 0.5, "pass@2": 5 / 6, "pass@4": 1.0, "cons@1": 0.5, "cons@2": 0.5, "cons@4": (1.0 + 0.5) / 2}
  close(value, want, terms=24, dtype=np.float64, scale=1)
  assert got["tied"] == 0.5 and got["lengths"]["max"] == 8 and got["lengths"]["right_mean"] == 3.0
  close(got["lengths"]["wrong_mean"], (3 + 8 + 1 + 1) / 4, dtype=np.float64)
  assert got["intervals"]["accuracy"] == [0.5, 0.5] and got["intervals"]["truncated"] == [0.0, 0.25]
  low, high = got["intervals"]["accuracy_with_samples"]
  assert 0.1 < low < 0.3 and 0.7 < high < 0.9
  first = got["problems"][0]
  assert (first["own_id"], first["accuracies"], first["tokens"]) == ("x0", [1.0, 0.0, 1.0, 0.0], [4, 3, 6, 8])
  assert (first["answers"], first["truncated"]) == (["5", "1", "5", None], 1)
  json.dumps(got, allow_nan=False)


def test_without_answers_there_is_no_agreement_and_one_problem_has_no_interval():
  one = group(0, "5", ("5", 4, "stop"))
  one[0].flags = ("unread",)
  got = measure.measure([one])
  assert [*got["curves"]] == ["pass@1"] and got["tied"] is None and "no_answer" not in got["intervals"]
  assert got["lengths"]["wrong_mean"] is None and got["verl"] == {
    "val-core/unknown/acc/mean@1": 1.0, "val-aux/unknown/reward/mean@1": 1.0,
  }  # fmt: skip


def test_verls_numbers_have_verls_names():
  columns = (GOLDEN[name] for name in ("data_sources", "sample_inputs", "pred", "acc", "reward"))
  rollouts = []
  for source, text, pred, acc, reward in zip(*columns, strict=True):
    prompt = Prompt(0, np.zeros(1, np.int32), text, "", "", {"data_source": source})
    rollouts.append(Rollout(prompt, 0, (), (), "stop", pred=pred, accuracy=acc, reward=reward))
  want = {}
  for source, variables in GOLDEN["official"].items():
    for variable, values in variables.items():
      for metric, value in values.items():
        core = variable == "acc" and metric.split("/")[0] in ("mean@8", "best@8", "maj@8")
        want[f"val-{'core' if core else 'aux'}/{source}/{variable}/{metric}"] = value
  close(measure.verl(rollouts, "other"), want, **BOOTSTRAP)


# ---- comparisons ----


def evaluation(groups, *, sha="s", **specification):
  spec = {"samples_per_prompt": len(groups[0]), "sampling": {"temperature": 1.0}}
  spec |= {"prompts": {"path": "x", "sha256": "p"}} | specification
  return {
    "format": compare.FORMAT, "model": {"path": "m", "sha256": sha}, "seeds": {"hand": 0},
    "sets": {"hand": {"specification": spec, **measure.measure(groups, "hand")}},
  }  # fmt: skip


BETTER = [
  group(1, "6", ("6", 3, "stop"), ("6", 3, "stop"), ("6", 3, "stop"), ("7", 3, "stop")),
  group(0, "5", ("5", 9, "stop"), ("5", 9, "stop"), ("5", 9, "stop"), (None, 9, "length")),
]


def test_problems_are_paired_by_their_ids():
  found = compare.compare(evaluation(GROUPS), evaluation(BETTER, sha="t"))
  acc, tokens = found["sets"]["hand"]["accuracy"], found["sets"]["hand"]["response_tokens"]
  assert (acc["a"], acc["b"], acc["difference"], acc["low"], acc["high"]) == (0.5, 0.75, 0.25, 0.25, 0.25)
  assert (acc["gained"], acc["lost"], acc["sign_p"], acc["permutation_p"]) == (2, 0, 0.5, 0.5)
  low, high = acc["with_samples"]
  assert low < 0.25 < high
  assert (tokens["a"], tokens["b"], tokens["low"], tokens["high"]) == (3.125, 6.0, 2.0, 3.75)
  lines = "\n".join(compare.lines(found))
  assert "accuracy   0.500 -> 0.750, +0.250 [+0.250, +0.250]" in lines and "2 problems gained, 0 lost" in lines
  assert "length     3.1 -> 6.0, +2.9 [+2.0, +3.8] tokens" in lines and "same weights" not in lines
  same = compare.lines(compare.compare(evaluation(GROUPS), evaluation(GROUPS)))
  assert "A and B have the same weights" in same


def test_what_was_not_measured_alike_is_refused_by_name(tmp_path):
  a, b = evaluation(GROUPS), evaluation(BETTER, sampling={"temperature": 0.0})
  with pytest.raises(ValueError, match="set hand was not measured alike: sampling.temperature: 1.0 -> 0.0; eval"):
    compare.compare(a, b)
  assert compare.compare(a, b, allow=["sampling"])["sets"]["hand"]["problems"] == 2
  moved = evaluation(BETTER, prompts={"path": "elsewhere", "sha256": "p"})
  assert compare.compare(a, moved)["sets"]["hand"]["problems"] == 2  # where a file lies is no difference
  moved["sets"]["other"] = moved["sets"]["hand"]
  assert compare.compare(a, moved)["not_compared"] == ["other"]
  with pytest.raises(ValueError, match="no set is in both: hand and other"):
    compare.compare(a, {**b, "sets": {"other": b["sets"]["hand"]}})
  (tmp_path / "x.json").write_text("{}")
  with pytest.raises(ValueError, match="x.json: no evaluation of this version"):
    compare.read(tmp_path / "x.json")
  (tmp_path / "x.json").write_text("{")
  with pytest.raises(ValueError, match="x.json: not valid JSON"):
    compare.read(tmp_path / "x.json")


def test_a_committed_evaluation_can_still_be_compared():
  """Files of results are read by later versions."""
  folder = pathlib.Path(__file__).parent.parent / "experiments/results/evaluation"
  a, b = (compare.read(folder / f"quickstart_{name}.json") for name in ("base", "fipo"))
  found = compare.compare(a, b)["sets"][""]
  assert found["accuracy"]["low"] > 0.2 and found["accuracy"]["permutation_p"] < 0.001
