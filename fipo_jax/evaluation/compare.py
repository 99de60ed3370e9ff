"""Two evaluations of the same problems: differences problem by problem, with intervals and tests.

What is compared must have been measured alike: sets with the same prompts, samples, sampling, template, limits,
verifier and numerics. Weights may differ, that is the question; so may seeds, versions and machines.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import numpy as np

from fipo_jax import changes, paths
from fipo_jax.evaluation import statistics

FORMAT = 1


def read(path: str) -> dict[str, Any]:
  """An evaluation's JSON. Raises: OSError or ValueError, naming the file, for what is none."""
  try:
    found = json.loads(paths.read_text(paths.of(path)))
  except ValueError as error:
    raise ValueError(f"--compare: {path}: not valid JSON ({error}).") from error
  if not isinstance(found, dict) or "sets" not in found or found.get("format") != FORMAT:
    raise ValueError(f"--compare: {path}: no evaluation of this version; launch/evaluate.py --out=... writes one.")
  return found


def compare(a: dict[str, Any], b: dict[str, Any], allow: Collection[str] = ()) -> dict[str, Any]:
  """B minus A, set by set, as JSON.

  Args: allow: fields of the specification, or sections of it, that may differ.
  Raises: ValueError, naming field and both values, where they were not measured alike; or share no set.
  """
  shared = [name for name in a["sets"] if name in b["sets"]]
  if not shared:
    raise ValueError(f"--compare: no set is in both: {_names(a)} and {_names(b)}.")
  found = {name: _set(name, a["sets"][name], b["sets"][name], allow) for name in shared}
  alone = sorted({*a["sets"], *b["sets"]} - {*shared})
  return {"a": a["model"], "b": b["model"], "seeds": [a["seeds"], b["seeds"]], "sets": found, "not_compared": alone}


def _set(name: str, a: dict[str, Any], b: dict[str, Any], allow: Collection[str]) -> dict[str, Any]:
  label = f"set {name}" if name else "the evaluation"
  unlike = changes.differences(a["specification"], b["specification"], ("prompts.path", *allow))
  if unlike:
    first = unlike[0].split(":")[0]
    more = f" (and {len(unlike) - 3} more)" if len(unlike) > 3 else ""
    raise ValueError(
      f"--compare: {label} was not measured alike: {'; '.join(unlike[:3])}{more}; evaluate one of them again, or "
      f"--allow={first}."
    )
  of_b = {problem["id"]: problem for problem in b["problems"]}
  pairs = [(one, of_b[one["id"]]) for one in a["problems"] if one["id"] in of_b]
  if not pairs:
    raise ValueError(f"--compare: {label}: no problem is in both.")
  column = lambda of: np.array([[of(one), of(other)] for one, other in pairs], float).T
  accuracy, tokens = column(lambda p: np.mean(p["accuracies"])), column(lambda p: np.mean(p["tokens"]))
  truncated = column(lambda p: p["truncated"] / len(p["tokens"]))
  gained, lost, sign_p = statistics.sign_test(accuracy[1] - accuracy[0])
  return {
    "problems": len(pairs), "samples_per_prompt": a["specification"]["samples_per_prompt"],
    "accuracy": _paired(accuracy) | {
      "with_samples": statistics.of_paired_samples([(p["accuracies"], q["accuracies"]) for p, q in pairs]),
      "gained": gained, "lost": lost, "sign_p": sign_p,
    },
    "response_tokens": _paired(tokens), "truncated": _paired(truncated),
  }  # fmt: skip


def _paired(pair_2P: np.ndarray) -> dict[str, Any]:
  difference = pair_2P[1] - pair_2P[0]
  low, high = statistics.over_problems({"difference": difference})["difference"]
  return {
    "a": float(pair_2P[0].mean()), "b": float(pair_2P[1].mean()), "difference": float(difference.mean()),
    "low": low, "high": high, "permutation_p": statistics.permutation_test(difference),
  }  # fmt: skip


def _change(x: dict[str, Any], form: str) -> str:
  ends = f"[{x['low']:+{form}}, {x['high']:+{form}}]"
  return f"{x['a']:{form}} -> {x['b']:{form}}, {x['difference']:+{form}} {ends}"


def lines(found: dict[str, Any]) -> list[str]:
  """What people read of a comparison."""
  who = lambda model: f"{model.get('run') or model['path']}" + (f" step {model['step']}" if "step" in model else "")
  said = [f"A: {who(found['a'])} ({found['a']['sha256']})", f"B: {who(found['b'])} ({found['b']['sha256']})"]
  if found["a"]["sha256"] == found["b"]["sha256"]:
    said.append("A and B have the same weights")
  for name, s in found["sets"].items():
    acc, tokens, cut = s["accuracy"], s["response_tokens"], s["truncated"]
    low, high = acc["with_samples"]
    said += [
      f"{name or 'evaluation'}: {s['problems']} problems x {s['samples_per_prompt']}, 95% intervals over problems",
      f"  accuracy   {_change(acc, '.3f')}, with samples drawn anew [{low:+.3f}, {high:+.3f}]",
      f"             permutation test p = {acc['permutation_p']:.2g}; {acc['gained']} problems gained, "
      f"{acc['lost']} lost, sign test p = {acc['sign_p']:.2g}",
      f"  length     {_change(tokens, '.1f')} tokens, p = {tokens['permutation_p']:.2g}",
      f"  truncated  {_change(cut, '.3f')}",
    ]
  if found["not_compared"]:
    said.append(f"in one of them alone: {', '.join(found['not_compared'])}")
  return said


def _names(evaluation: dict[str, Any]) -> str:
  return ", ".join(name or "(without a name)" for name in evaluation["sets"])
