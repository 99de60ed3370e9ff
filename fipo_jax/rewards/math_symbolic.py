"""Symbolic answer check: 1/2, 0.5 and \\frac{1}{2} are the same number (math-verify, SymPy)."""

from __future__ import annotations

import functools
import logging
import re

from fipo_jax.rewards.outcome import Score

_ANSWER = re.compile(r"answer\s*:", re.IGNORECASE)


def verify(response: str, answer: str, extras: dict | None = None) -> Score:
  r"""+1 when the response's answer is mathematically equal to the ground truth, else -1.

  The text after the last "Answer:" is read, or the whole response where there is none (a \boxed{} in it is found).
  Nothing here limits time: SymPy can run for minutes on a hostile answer, so call it through `score.Scorer`.
  Raises: ValueError when the ground truth itself cannot be read.
  """
  parse, equal = load()
  gold = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)
  if not gold:
    raise ValueError(f"answer={answer!r} cannot be read as mathematics; use verifier 'math_dapo'.")
  marks = list(_ANSWER.finditer(response))
  pred = parse(response[marks[-1].end() :] if marks else response, parsing_timeout=None)
  right = bool(pred) and equal(gold, pred, timeout_seconds=None)
  return Score(
    score=1.0 if right else -1.0, accuracy=float(right), pred=str(pred[-1]) if pred else None
  )


@functools.cache
def load():
  """(parse, verify) of math-verify, imported and warmed up; takes a second the first time."""
  try:
    import math_verify
  except ImportError as error:
    raise ValueError(
      f"verifier 'math_symbolic' needs the package math-verify ({error})."
    ) from error
  # It warns that time limits are off; they are kept by the scorer, without signals.
  for name in ("math_verify.parser", "math_verify.grader"):
    logging.getLogger(name).setLevel(logging.ERROR)
  half = math_verify.parse(r"\boxed{\frac{1}{2}}", parsing_timeout=None)
  math_verify.verify(half, half, timeout_seconds=None)
  return math_verify.parse, math_verify.verify
