"""The table of verifiers: what a name in `reward.verifier`, or in a record, stands for. Read by everybody who asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from fipo_jax.rewards import gym, math_dapo, math_symbolic, texts
from fipo_jax.rewards.outcome import UNREAD, Score, as_score


def _labelled(answer: str, extras: dict[str, Any]) -> str:
  return f"Answer: {answer}"


def _boxed(answer: str, extras: dict[str, Any]) -> str:
  return f"\\boxed{{{answer}}}"


@dataclasses.dataclass(frozen=True)
class Verifier:
  """A row of the table.

  verify: (response, answer, extras) -> Score.
  write: (answer, extras) -> a response that says this ground truth, by which golds are checked before training; None
    where it cannot be written. A row without it (None) has its golds taken on trust.
  load: what to import before the clock of a job starts.
  """

  verify: Callable[[str, str, dict[str, Any]], Score]
  write: Callable[[str, dict[str, Any]], str | None] | None = _labelled
  load: Callable[[], Any] = lambda: None


VERIFIERS: dict[str, Verifier] = {
  "math_dapo": Verifier(math_dapo.verify),
  "math_dapo_strict_box": Verifier(math_dapo.verify_strict_box, _boxed),
  "math_symbolic": Verifier(math_symbolic.verify, load=math_symbolic.load),
  "gym": Verifier(gym.verify, gym.write, load=gym.load),
  "exact": Verifier(texts.exact),
  "regex": Verifier(texts.regex, write=None),  # the gold is a pattern
  "format": Verifier(texts.thought_form, write=None),  # there is no gold
}
# Rows that a run's config makes, by reward.file and reward.weights.
CONFIGURED = ("file", "weighted")


def weighted(parts: Mapping[str, tuple[Verifier, float]]) -> Verifier:
  """The row "weighted": several verdicts on one response, with weights.

      score = sum over parts of weight * score;  accuracy and pred are those of the part with the largest weight

  Raises: ValueError without parts.
  """
  if not parts:
    raise ValueError("reward.weights={}: verifier 'weighted' needs parts, such as {'math_dapo': 1.0, 'format': 0.1}.")
  rows = sorted(parts.values(), key=lambda part: -part[1])
  first = rows[0][0]

  def verify(response: str, answer: str, extras: dict[str, Any]) -> Score:
    found = [as_score(row.verify(response, answer, extras)) for row, _ in rows]
    score = sum(weight * s[0] for (_, weight), s in zip(rows, found, strict=True))
    _, accuracy, pred, flags = found[0]
    return Score(score, accuracy, ... if UNREAD in flags else pred)

  return Verifier(verify, first.write, load=lambda: [row.load() for row, _ in rows])
