"""Evaluation metrics against the reference trainer's numbers and hand-worked cases."""

import json
import pathlib

import numpy as np
import pytest

from fipo_jax import collect
from fipo_jax import evaluate as evaluate_lib
from fipo_jax.types import Prompt, Rollout
from tests.tolerances import close

GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden/validation_n8.json").read_text())
SAMPLES = [GOLDEN[name] for name in ("data_sources", "sample_inputs", "pred", "acc", "reward")]
BOOTSTRAP = {"terms": 1000, "dtype": np.float64, "scale": 1}  # means of so many draws of numbers up to 1


def test_validation_metrics_equal_the_reference():
  got = evaluate_lib.validation_metrics(*SAMPLES)
  assert got.keys() == GOLDEN["official"].keys()
  for source, variables in GOLDEN["official"].items():
    assert got[source].keys() == variables.keys()
    for variable, metrics in variables.items():
      assert got[source][variable].keys() == metrics.keys()
      close(got[source][variable], metrics, **BOOTSTRAP, name=f"{source} {variable}")


def test_interleaving_sources_and_prompts_changes_nothing():
  """Samples may arrive in any order, as long as each prompt's own order is kept."""
  prompts = sorted(range(len(SAMPLES[1])), key=lambda i: (i % 8, -i))
  shuffled = [[column[i] for i in prompts] for column in SAMPLES]
  got, want = evaluate_lib.validation_metrics(*shuffled), evaluate_lib.validation_metrics(*SAMPLES)
  for source in want:
    close(got[source]["acc"], want[source]["acc"], **BOOTSTRAP, name=source)


def test_exact_per_prompt_equals_golden():
  for row in GOLDEN["exact_per_prompt"]:
    index = [
      i
      for i, key in enumerate(zip(*SAMPLES[:2], strict=True))
      if key == (row["data_source"], row["prompt"])
    ]
    got = evaluate_lib.exact_per_prompt(
      [SAMPLES[2][i] for i in index], [SAMPLES[3][i] for i in index]
    )
    assert len(index) == row["n"]
    close(got, {name: row[name] for name in got}, terms=row["n"], dtype=np.float64, scale=1)


def test_majority_by_hand():
  # "7" and a missing answer tie with two votes each; "7" was seen first, then None alone leads.
  got = evaluate_lib.exact_per_prompt(["7", None, "7", "[INVALID]", "8"], [1.0, 0.0, 1.0, 0.0, 0.0])
  assert got == {
    "avg": 0.4,
    "pass_any": 1.0,
    "cons_first": 1.0,
    "cons_tie_mean": 0.5,
    "cons_first_valid_only": 1.0,
    "n_tied": 2,
  }
  got = evaluate_lib.exact_per_prompt([None, None, "7"], [0.0, 0.0, 1.0])
  assert (got["cons_first"], got["cons_first_valid_only"]) == (0.0, 1.0)
  assert evaluate_lib.exact_per_prompt([None], [0.0])["cons_first_valid_only"] == 0.0


def test_one_sample_has_a_mean_only():
  got = evaluate_lib.validation_metrics(["s"], ["p"], ["1"], [1.0], [0.5])
  assert got == {"s": {"reward": {"mean@1": 0.5}, "acc": {"mean@1": 1.0}}}


def test_subset_sizes_when_n_is_not_a_power_of_two():
  got = evaluate_lib.validation_metrics(["s"] * 6, ["p"] * 6, list("112223"), [0.0] * 6, [0.0] * 6)
  assert {name.split("/")[0] for name in got["s"]["acc"]} == {
    "mean@6",
    "std@6",
    *(f"{m}@{k}" for m in ("best", "worst", "maj") for k in (2, 4, 6)),
  }


def test_prompts_of_different_n_feed_different_names():
  got = evaluate_lib.validation_metrics(
    ["s"] * 3, ["p", "p", "q"], ["1"] * 3, [1.0, 0.0, 1.0], [0.0] * 3
  )
  assert got["s"]["acc"]["mean@2"] == 0.5 and got["s"]["acc"]["mean@1"] == 1.0


class _Engine:
  """Answers from a table: prompt id -> list of (answer, number of tokens, stop reason)."""

  def __init__(self, table):
    self.table = table

  def generate(self, prompts, samples_per_prompt, *, key, sampling, progress=None, watch=None):
    groups = []
    for prompt in prompts:
      rows = self.table[prompt.id][:samples_per_prompt]
      groups.append(
        [
          Rollout(prompt, i, np.zeros(n, np.int32), np.zeros(n, np.float32), stop, text=answer)
          for i, (answer, n, stop) in enumerate(rows)
        ]
      )
    progress(sum(map(len, groups)), len(prompts) * samples_per_prompt)
    return groups


def _score(groups):
  for group in groups:
    for r in group:
      r.pred = r.text or None
      r.accuracy = float(r.text == r.prompt.answer)
      r.reward = 2 * r.accuracy - 1


def test_evaluate_by_hand():
  prompts = [
    Prompt(i, np.zeros(1, np.int32), "?", answer, "none") for i, answer in enumerate(["5", "6"])
  ]
  engine = _Engine(
    {
      0: [("5", 4, "stop"), ("1", 2, "stop"), ("5", 6, "stop"), ("", 8, "length")],
      1: [("7", 1, "stop"), ("7", 1, "stop"), ("6", 1, "stop"), ("", 1, "stop")],
    }
  )
  calls = []
  got = evaluate_lib.evaluate(
    engine,
    _score,
    prompts,
    samples_per_prompt=4,
    key=None,
    sampling=None,
    progress=lambda *done: calls.append(done),
  )
  close(
    got,
    {
      "accuracy": 0.375,
      "accuracy_se": 0.125,
      "pass@4": 1.0,
      "cons@4": 0.5,
      "reward": -0.25,
      "response_tokens": 3.0,
      "response_tokens_max": 8.0,
      "truncated": 0.125,
      "no_answer": 0.25,
      "reward_timeouts": 0,
      "reward_errors": 0,
      "prompts": 2.0,
      "samples": 8.0,
    },
    terms=8,
    dtype=np.float64,
    scale=1,
  )
  assert calls == [(8, 8)]


def test_user_errors():
  with pytest.raises(ValueError, match="prompts="):
    evaluate_lib.evaluate(None, _score, [], samples_per_prompt=1, key=None, sampling=None)
  with pytest.raises(ValueError, match="samples_per_prompt=0"):
    evaluate_lib.evaluate(None, _score, [None], samples_per_prompt=0, key=None, sampling=None)
  with pytest.raises(ValueError, match="one of each per sample"):
    evaluate_lib.exact_per_prompt(["1"], [1.0, 0.0])


def test_training_and_evaluation_mean_the_same_by_no_answer():
  """Responses without a verdict do not count; a verifier that reads no answers has none that are missing."""
  prompt = Prompt(0, np.zeros(1, np.int32), "?", "5", "none")

  def group(*preds, flags=()):
    return [
      Rollout(prompt, i, np.zeros(1, np.int32), np.zeros(1), "stop", pred=p, accuracy=0.0, reward=0.0, score=0.0,
              flags=flags) for i, p in enumerate(preds)
    ]  # fmt: skip

  verified = group("5", None, None, "[INVALID]")
  failed = group(None, flags=("timeout",)) + group(None, flags=("error",))
  groups = [verified, [*failed, *group("1", "2")]]
  assert evaluate_lib.summary(groups)["no_answer"] == collect.describe_sampled(groups)["no_answer"] == 2 / 6
  for seen in (evaluate_lib.summary(groups), collect.describe_sampled(groups)):
    assert (seen["reward_timeouts"], seen["reward_errors"]) == (1, 1)
  plain = [group(None, None, flags=("unread",)) + failed]
  for seen in (evaluate_lib.summary(plain), collect.describe_sampled(plain)):
    assert "no_answer" not in seen and not any(name.startswith("cons@") for name in seen)
  assert evaluate_lib.no_answer(failed) is None


def test_an_answer_is_worth_what_its_first_sample_is():
  got = evaluate_lib.exact_per_prompt(["7", "7", "8"], [1.0, 0.0, 0.0])
  assert (got["cons_first"], got["cons_tie_mean"]) == (1.0, 1.0)
  close(got["avg"], 1 / 3, terms=3, dtype=np.float64)
