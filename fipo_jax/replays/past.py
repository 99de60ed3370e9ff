"""What a run has left of its past: who made a step, under which config, from which checkpoint, and what was logged.

A run that an alarm has taken back has several attempts, 1, 2, ...: the last one stands, the lines of attempt N are in
metrics.rollbackN.jsonl. Its checkpoints before the step that it was taken back to belong to the later ones, too.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from typing import Any

import ml_collections

from fipo_jax import changes, config, lines, paths, rollback, workdir
from fipo_jax.train import checkpoint

SEPARATOR = " -> "
NOT_MADE_AGAIN = ("seconds/evaluate", "seconds/checkpoint")


@dataclasses.dataclass(frozen=True)
class Past:
  """cfg: of config.json. attempt: which one this is, of so many. rollbacks: records of `rollback`, oldest first.

  rows: step -> line of metrics, of this attempt. starts: of `workdir`, those of this attempt and before. checkpoints:
  steps that this attempt has made, or went on from.
  """

  cfg: ml_collections.ConfigDict
  attempt: int
  rollbacks: list[dict[str, Any]]
  rows: dict[int, dict[str, Any]]
  starts: list[dict[str, Any]]
  checkpoints: list[int]

  def of(self) -> int:
    """How many attempts there are."""
    return len(self.rollbacks) + 1

  def checkpoint_before(self, step: int) -> int:
    """The newest one that is older than a step; 0, the beginning, where there is none."""
    return max((s for s in self.checkpoints if s < step), default=0)

  def rolled_back(self, step: int) -> int:
    """How often the run had been taken back when it made this step, as this attempt has it."""
    return max((n for n, r in enumerate(self.rollbacks[: self.attempt - 1], start=1) if r["to"] < step), default=0)

  def start(self, step: int) -> dict[str, Any]:
    """The start of the program that made a step; {} if that is not known."""
    return next((s for s in reversed(self.starts) if s["step"] < step), {})

  def config(self, step: int) -> ml_collections.ConfigDict:
    """The config that a step was made under: what was changed later is undone, what a rollback changes is done.

    Raises: ValueError for a change that cannot be undone.
    """
    cfg = self.cfg.copy_and_resolve_references()
    made = max((i for i, s in enumerate(self.starts) if s["step"] < step), default=-1)
    for start in reversed(self.starts[made + 1 :]):
      for line in start["changes"]:
        undo(cfg, line)
    return rollback.overridden(cfg) if self.rolled_back(step) else cfg

  def resumed(self, first: int, last: int) -> list[int]:
    """Steps after which the program was started anew within the steps first to last."""
    return sorted({s["step"] for s in self.starts if first <= s["step"] < last})

  def seconds(self, first: int, last: int) -> float:
    """What these steps took, but for evaluations and saves."""
    rows = [self.rows.get(step, {}) for step in range(first, last + 1)]
    return sum(r.get("seconds/step", 0.0) - sum(r.get(name, 0.0) for name in NOT_MADE_AGAIN) for r in rows)


def read(cfg: ml_collections.ConfigDict, attempt: int = 0) -> Past:
  """The past of the run in cfg.workdir, whose config this is. attempt: from 1; 0 is the last one.

  Raises: ValueError where there is no such attempt.
  """
  folder = paths.of(cfg.workdir)
  rollbacks = rollback.records(cfg.workdir)
  number = attempt or len(rollbacks) + 1
  if not 1 <= number <= len(rollbacks) + 1:
    there = f"1 to {len(rollbacks) + 1}" if rollbacks else "1 alone, for it was never rolled back"
    raise ValueError(f"--attempt={attempt}: no such attempt of {cfg.workdir}; there is {there}.")
  later = rollbacks[number - 1 :]
  own = folder / (f"metrics.rollback{number}.jsonl" if later else "metrics.jsonl")
  steps = checkpoint.steps_in(checkpoint.folder_of(cfg.workdir, cfg.checkpoint.folder))
  # What a later attempt has made lies beyond the step that it began from.
  steps = [s for s in steps if all(s <= r["to"] for r in later)]
  rows = {}
  for line in lines.read(own):
    try:
      row = json.loads(line)
      rows[row["step"]] = row
    except (ValueError, TypeError, KeyError):  # the last line of a run that goes on, say
      continue
  starts = [s for s in workdir.starts_of(folder) if s.get("rollbacks", 0) < number]
  return Past(cfg, number, rollbacks, rows, starts, steps)


def undo(cfg: ml_collections.ConfigDict, line: str) -> None:
  """Takes a change "field: old -> new" back, as `workdir.claim` has written it; where things lie and how fast they go
  may stay."""
  field, _, pair = line.partition(": ")
  if changes.within(field, changes.WHERE_AND_HOW_FAST):
    return
  try:
    old = _old(pair)
    cfg.update_from_flattened_dict({field: tuple(old) if isinstance(old, list) else old})
    assert config.at(cfg, field) is not None
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"{line}: was changed after this step, and cannot be undone; name a later step.") from error


def _old(pair: str) -> Any:
  """The first of two values, either of which may have an arrow in it."""
  parts = pair.split(SEPARATOR)
  for k in range(1, len(parts)):
    try:
      old = ast.literal_eval(SEPARATOR.join(parts[:k]))
      ast.literal_eval(SEPARATOR.join(parts[k:]))
      return old
    except (ValueError, SyntaxError):
      continue
  raise ValueError(pair)
