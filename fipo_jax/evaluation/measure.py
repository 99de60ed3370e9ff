"""What an evaluation set has come to: accuracy and its intervals, pass@k, cons@k, lengths, troubles, each problem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fipo_jax import evaluate as evaluate_lib
from fipo_jax.evaluation import statistics
from fipo_jax.types import Rollout


def measure(groups: Sequence[list[Rollout]], name: str = "") -> dict[str, Any]:
  """The figures of scored groups of n rollouts each, in the order of the prompts, as JSON.

      metrics    as in training (`evaluate.summary`), but for its cons@n, which here is cons_first@n
      intervals  metric -> 95% interval over problems; accuracy_with_samples: over problems and their samples
      curves     pass@k, cons@k for k = 1, 2, 4, .. n: value, low, high; pass@k counts a sample as right at accuracy 1
      tied       share of problems whose most frequent answer shares its count with another
      lengths    tokens of responses: mean, quantiles, mean of the right and of the wrong ones
      verl       the reference trainer's bootstrapped numbers under its names
      problems   one record per problem; accuracies and tokens sample by sample

  Args: name: of the set, where prompts have no data source of their own.
  """
  rollouts = [r for group in groups for r in group]
  n = len(groups[0])
  metrics = evaluate_lib.summary(list(groups))
  read = f"cons@{n}" in metrics
  if read:
    metrics[f"cons_first@{n}"] = metrics.pop(f"cons@{n}")
  accuracy_Pn = np.array([[r.accuracy for r in group] for group in groups], float)
  tokens_Pn = np.array([[len(r.tokens) for r in group] for group in groups], float)
  right_P = (accuracy_Pn >= 1).sum(axis=1)
  columns = {
    "accuracy": accuracy_Pn.mean(axis=1), "response_tokens": tokens_Pn.mean(axis=1),
    "truncated": _each(groups, lambda r: r.truncated), "reward": _each(groups, lambda r: r.reward),
  }  # fmt: skip
  exact = [evaluate_lib.exact_per_prompt([r.pred for r in g], [r.accuracy for r in g]) for g in groups]
  curves = {f"pass@{k}": [statistics.pass_at(int(right), n, k) for right in right_P] for k in statistics.ks(n)}
  if read:
    agreed = [statistics.cons_at(evaluate_lib.votes(g), row) for g, row in zip(groups, accuracy_Pn, strict=True)]
    curves |= {f"cons@{k}": [each[k] for each in agreed] for k in statistics.ks(n)}
    columns[f"cons_first@{n}"] = [each["cons_first"] for each in exact]
    # Of verified responses alone, as the metric; a problem without one is not covered.
    columns["no_answer"] = [math.nan if (share := evaluate_lib.no_answer(g)) is None else share for g in groups]
  intervals = statistics.over_problems(columns | curves)
  lengths = tokens_Pn.ravel()
  is_right = accuracy_Pn.ravel() >= 1
  mean = lambda values: float(np.mean(values)) if len(values) else None
  return {
    "metrics": metrics,
    "intervals": {metric: _pair(intervals[metric]) for metric in columns}
    | {"accuracy_with_samples": _pair(statistics.over_problems_and_samples(accuracy_Pn))},
    "curves": {
      metric: {"value": float(np.mean(values)), "low": _pair(intervals[metric])[0], "high": _pair(intervals[metric])[1]}
      for metric, values in curves.items()
    },
    "tied": float(np.mean([each["n_tied"] > 1 for each in exact])) if read else None,
    "lengths": {"mean": mean(lengths), **statistics.quantiles(lengths),
                "right_mean": mean(lengths[is_right]), "wrong_mean": mean(lengths[~is_right])},
    "verl": verl(rollouts, name),
    "problems": [_problem(number, group) for number, group in enumerate(groups)],
  }  # fmt: skip


def verl(rollouts: Sequence[Rollout], name: str = "") -> dict[str, float]:
  """verl's validation metrics under its names: section/data source/variable/metric.

  val-core holds mean, best and maj at the largest k of the accuracy, val-aux all others.
  Source: verl's trainer/ppo/ray_trainer.py, _validate.
  """
  sources = [r.prompt.extras.get("data_source") or name or "unknown" for r in rollouts]
  found = evaluate_lib.validation_metrics(
    sources, [r.prompt.text for r in rollouts], [r.pred for r in rollouts], [r.accuracy for r in rollouts],
    [r.reward for r in rollouts],
  )  # fmt: skip
  named = {}
  for source, variables in found.items():
    for variable, values in variables.items():
      at = lambda metric: int(metric.split("@")[1].split("/")[0])
      largest = max(map(at, values))
      for metric, value in values.items():
        core = variable == "acc" and metric.startswith(("mean", "maj", "best")) and at(metric) == largest
        named[f"{'val-core' if core else 'val-aux'}/{source}/{variable}/{metric}"] = value
  return named


def _each(groups, of) -> list[float]:
  return [float(np.mean([of(r) for r in group])) for group in groups]


def _problem(number: int, group: list[Rollout]) -> dict[str, Any]:
  prompt = group[0].prompt
  own = prompt.extras.get("id")
  return {
    "number": number, "id": prompt.id, **({"own_id": own} if own is not None else {}), "answer": prompt.answer,
    "accuracies": [r.accuracy for r in group], "tokens": [len(r.tokens) for r in group],
    "answers": [r.pred for r in group], "truncated": sum(r.truncated for r in group),
    **evaluate_lib.failures(group),
  }  # fmt: skip


def _pair(interval: statistics.Interval) -> list[float | None]:
  """As JSON knows it."""
  return [None if math.isnan(end) else end for end in interval]
