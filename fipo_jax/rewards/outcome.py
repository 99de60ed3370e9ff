"""What a verifier says. Nothing here or in the verifiers imports JAX: they run in worker processes."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from types import EllipsisType
from typing import Any

# A flag of verdicts: the verifier does not read answers, so that none can be missing or have a majority.
UNREAD = "unread"


@dataclasses.dataclass(frozen=True)
class Score:
  """score: the verifier's value, any finite number. accuracy: correctness in [0, 1].

  pred: the answer as the verifier read it; None when it looked for one and found none; left out (...) by a verifier
  that does not read answers, of which nobody can say how many are missing or which has a majority.
  """

  score: float
  accuracy: float
  pred: str | None | EllipsisType = ...


def as_score(value: Any, pred_characters: int | None = None) -> tuple[float, float, str | None, tuple[str, ...]]:
  """(score, accuracy, pred, flags) of a `Score`, a number, or a dict as verl's reward functions return it.

  A bare number (NumPy's too, and arrays of no dimension) of 1 or more means right. A dict has "score", and may have
  "acc" (or "accuracy") and "pred". What says nothing of answers has the flag UNREAD.
  pred_characters: longest pred, cut at its end; None = any.
  Raises: TypeError for anything else, ValueError for NaN and infinities, or an accuracy outside [0, 1].
  """
  if isinstance(value, Mapping):
    if "score" not in value:
      raise TypeError(f"verify returned a dict with {sorted(map(str, value))}; it must have 'score'")
    score = _number(value["score"], "score")
    accuracy = value.get("acc", value.get("accuracy"))
    right = float(score >= 1) if accuracy is None else _number(accuracy, "acc")
    value = Score(score, right, value.get("pred", ...))
  elif not isinstance(value, Score):
    number = _number(value, "value")
    value = Score(score=number, accuracy=float(number >= 1))
  score, accuracy = _number(value.score, "score"), _number(value.accuracy, "accuracy")
  if not math.isfinite(score):
    raise ValueError(f"verify returned score={score}; it must be finite")
  if not 0.0 <= accuracy <= 1.0:
    raise ValueError(f"verify returned accuracy={accuracy}; it must be between 0 and 1")
  if value.pred is ...:
    return score, accuracy, None, (UNREAD,)
  return score, accuracy, None if value.pred is None else str(value.pred)[:pred_characters], ()


def _number(value: Any, what: str) -> float:
  """A Python or NumPy number or bool, or an array (of any library) of no dimension."""
  if isinstance(value, bool | numbers.Real):
    return float(value)
  if getattr(value, "shape", None) == () and hasattr(value, "__float__") and not isinstance(value, str | bytes):
    return float(value)
  named = "" if what == "value" else f"{what} of type "
  raise TypeError(f"verify returned {named}{type(value).__name__}; a number, a Score or a dict with 'score' would do")
