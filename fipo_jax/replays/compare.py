"""Whether a step that was made again is the step that was recorded: metric by metric, to the last bit."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

# Times, what depends on them, and evaluations, which are not made again. Names, or beginnings of names.
NOT_COMPARED = (
  "step", "time", "changed", "nonfinite", "unverified", "seconds", "tokens_per_second", "update_tflops",
  "host_memory", "device_memory", "rollout/", "grace_s", "goodput", "eval/",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Difference:
  """A metric with two values; absolute and relative are of the largest difference, None where that is no number."""

  step: int
  name: str
  recorded: Any
  replayed: Any
  absolute: float | None
  relative: float | None

  def said(self) -> str:
    if self.absolute is None:
      return f"{self.name} {self.recorded!r} then, {self.replayed!r} now"
    return f"{self.name} by {self.absolute:.2g} ({self.relative:.2g} of it)"


@dataclasses.dataclass(frozen=True)
class Compared:
  """number: metrics that both have. only_then, only_now: those that one of them has, another version's."""

  step: int
  number: int
  different: list[Difference]
  only_then: list[str]
  only_now: list[str]


def compare(step: int, recorded: dict[str, Any], replayed: dict[str, Any]) -> Compared:
  """Compares two lines of metrics, both as JSON has them."""
  then, now = ({k for k in row if not k.startswith(NOT_COMPARED)} for row in (recorded, replayed))
  found = []
  for name in sorted(then & now):
    if recorded[name] != replayed[name]:
      found.append(Difference(step, name, recorded[name], replayed[name], *_apart(recorded[name], replayed[name])))
  found.sort(key=lambda d: math.inf if d.relative is None else d.relative, reverse=True)
  return Compared(step, len(then & now), found, sorted(then - now), sorted(now - then))


def _apart(a: Any, b: Any) -> tuple[float | None, float | None]:
  """The largest absolute and relative difference of two numbers, or of two lists of as many."""
  if isinstance(a, list) and isinstance(b, list) and len(a) == len(b) and a:
    pairs = [_apart(x, y) for x, y in zip(a, b, strict=True)]
    if any(absolute is None for absolute, _ in pairs):
      return None, None
    return tuple(max(column) for column in zip(*pairs, strict=True))
  if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in (a, b)):
    return None, None
  size = max(abs(a), abs(b))
  return abs(a - b), abs(a - b) / size if size else 0.0


def said(found: list[Compared]) -> list[str]:
  """What came of it, in lines: equal, or where it began to differ, and what differs most in the last step."""
  steps = f"step {found[0].step}" if len(found) == 1 else f"steps {found[0].step} to {found[-1].step}"
  lines = []
  for what, names in (("was", found[-1].only_then), ("is", found[-1].only_now)):
    if names:
      lines.append(f"not compared, for it {what} measured by one of the two versions alone: {', '.join(names)}")
  different = [c for c in found if c.different]
  if not different:
    return [f"{steps}: all {found[-1].number} metrics are equal to those recorded, bit for bit", *lines]
  for c in different[:1] + different[1:][-1:]:
    most = "; ".join(d.said() for d in c.different[:4])
    lines.append(f"step {c.step}: {len(c.different)} of {c.number} metrics differ from those recorded; most: {most}")
  return lines
