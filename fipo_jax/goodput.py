"""Where the time of a run went, over all of its starts: pure functions of its records.

    wall = productive + lost + starting + waiting + other        seconds since the first start
    productive    of iterations that were kept
    lost          of iterations that were made, and made again: they came after the checkpoint that was resumed
    starting      of a process until its training began: imports, reading, the model, the checkpoint
    waiting       without a process
    other         evaluation before training, iterations that were cut off, the end

A start is a record of starts.json with, in seconds since 1970, `began` and, if it came so far, `training` (when that
began) and `ended`. A process that was killed writes no end: the next start notes the last sign of life as `seen`.
`lost_s` and `lost_steps` are what a start dropped of the metrics when it resumed.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def seconds_of(rows: Iterable[Record]) -> float:
  """Of the iterations that these lines of metrics are about."""
  return float(sum(row.get("seconds/step") or 0.0 for row in rows))


def lost(rows: Iterable[Record], step: int) -> dict[str, float]:
  """What a start from `step` drops of the metrics."""
  dropped = [row for row in rows if row["step"] > max(step, 0)]
  return {"lost_steps": len(dropped), "lost_s": round(seconds_of(dropped), 3)}


def began(start: Record) -> float:
  """When a start was made; records of older versions have only a text."""
  return start.get("began") or datetime.datetime.fromisoformat(start["time"]).timestamp()


def account(starts: Sequence[Record], kept_s: float, now: float) -> dict[str, float]:
  """The sum above, and `share` = productive / wall.

  Args: starts: oldest first, the last one being under way unless it has ended. kept_s: seconds of iterations that are
    in the metrics. now: seconds since 1970.
  """
  running = starting = 0.0
  begins = [began(start) for start in starts]
  for start, begin, after in zip(starts, begins, [*begins[1:], None], strict=True):
    end = start.get("ended") or (now if after is None else start.get("seen", begin))
    end = max(begin, end if after is None else min(end, after))
    running += end - begin
    starting += min(max(start.get("training", begin if "began" not in start else end), begin), end) - begin
  last = starts[-1].get("ended") or now
  wall, gone = max(last - begins[0], 1e-9), sum(start.get("lost_s", 0.0) for start in starts)
  found = {
    "share": kept_s / wall, "wall_s": wall, "productive_s": kept_s, "lost_s": gone, "starting_s": starting,
    "waiting_s": wall - running, "other_s": max(running - kept_s - gone - starting, 0.0),
  }  # fmt: skip
  rounded = {name: round(value, 4 if name == "share" else 1) for name, value in found.items()}
  return rounded | {"starts": len(starts), "lost_steps": sum(start.get("lost_steps", 0) for start in starts)}


def said(found: Record) -> str:
  """An account in a line."""
  parts = [f"{name} {found[f'{name}_s']:.0f} s" for name in ("lost", "starting", "waiting", "other")]
  times = f"{found['starts']} starts" if found["starts"] > 1 else "1 start"
  kept = f"{found['share']:.0%} of {found['wall_s']:.0f} s went into iterations that were kept"
  return f"{kept} ({times}; {', '.join(parts)})"
