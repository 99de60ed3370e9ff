"""Verifiers that read text as text: the same answer, an answer of a pattern, a response of a form."""

from __future__ import annotations

import functools
import re

from fipo_jax.rewards.answers import answer_line
from fipo_jax.rewards.outcome import Score

_THOUGHT = re.compile(r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def exact(response: str, answer: str, extras: dict | None = None) -> Score:
  """+1 when the answer (see `answers.answer_line`) is the ground truth, white space aside, else -1."""
  pred = answer_line(response)
  pred = pred and " ".join(pred.split())
  right = pred is not None and pred == " ".join(answer.split())
  return Score(1.0 if right else -1.0, float(right), pred)


def regex(response: str, answer: str, extras: dict | None = None) -> Score:
  """+1 when the whole answer (see `answers.answer_line`) matches the ground truth, a regular expression, else -1.

  Raises: ValueError for a ground truth that is no regular expression.
  """
  pred = answer_line(response)
  right = pred is not None and _pattern(answer).fullmatch(pred) is not None
  return Score(1.0 if right else -1.0, float(right), pred)


@functools.lru_cache(4096)
def _pattern(text: str) -> re.Pattern:
  try:
    return re.compile(text)
  except re.error as error:
    raise ValueError(f"answer={text!r} is not a regular expression ({error}).") from error


def thought_form(response: str, answer: str, extras: dict | None = None) -> Score:
  """1 when the response is <think>...</think><answer>...</answer>, each tag once and nothing around them, else 0.

  What the answer says does not matter; it is the pred.
  """
  form = _THOUGHT.fullmatch(response) if all(response.count(tag) == 1 for tag in _TAGS) else None
  return Score(float(form is not None), float(form is not None), form.group(2).strip() if form else None)
