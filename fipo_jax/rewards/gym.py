"""Reasoning-gym's own scorers: each task knows which answers it accepts."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from fipo_jax.rewards.outcome import Score

_ANSWER = re.compile(r"answer\s*:", re.IGNORECASE)


def verify(response: str, answer: str, extras: dict) -> Score:
  """The task's score in [0, 1] of the answer; accuracy is 1 only at full score.

  The answer is what follows the last "Answer:", as many lines of it as the ground truth has (a grid has several);
  without one there is no answer, and the score is 0.

  Args:
    extras: {"task": name, "entry": the problem as the task made it}, from the source `reasoning_gym`.
  Raises: ValueError when the extras lack them.
  """
  if "task" not in extras or "entry" not in extras:
    raise ValueError(
      "verifier 'gym' needs extras['task'] and extras['entry']; use source 'reasoning_gym'."
    )
  pred = extract_answer(response, lines=answer.strip().count("\n") + 1)
  if pred is None:
    return Score(score=0.0, accuracy=0.0)
  score = float(scorer(extras["task"])(pred, extras["entry"]))
  return Score(score=score, accuracy=float(score >= 1.0), pred=pred)


def extract_answer(response: str, lines: int = 1) -> str | None:
  """The first `lines` lines after the last "Answer:", stripped; None where there is nothing."""
  marks = list(_ANSWER.finditer(response))
  rest = response[marks[-1].end() :].strip() if marks else ""
  return "\n".join(rest.split("\n")[:lines]).strip() or None


@functools.cache
def load():
  """The library, imported when first needed; takes a second."""
  try:
    import reasoning_gym
  except ImportError as error:
    raise ValueError(f"verifier 'gym' needs the package reasoning-gym ({error}).") from error
  return reasoning_gym


@functools.cache
def scorer(task: str) -> Callable[[str, dict], float]:
  """score_answer of a task; built once, some tasks read word lists."""
  return load().get_score_answer_fn(task)
