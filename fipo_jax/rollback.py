"""Back to the last good checkpoint after an alarm, with the settings that the config names for that case.

    workdir/rollbacks.json            one record per rollback: alarm, step, the step gone back to
    workdir/metrics.rollback1.jsonl   what had been logged until the first one; samples likewise

The config of the run stays the user's own; what a rollback changes is replayed from these records whenever the run is
built, so that a killed process resumes with it.
"""

from __future__ import annotations

import json

import ml_collections

from fipo_jax import lines, paths, processes
from fipo_jax.alarms import Alarm
from fipo_jax.train.checkpoint import Checkpointer

RECORDS = "rollbacks.json"


class Rollback(Exception):
  """An alarm asks for the run to be taken back; carries it."""

  def __init__(self, alarm: Alarm):
    super().__init__(alarm.message)
    self.alarm = alarm


def records(workdir) -> list[dict]:
  """The rollbacks of a run so far, oldest first, as process 0 has them."""
  path = paths.of(workdir) / RECORDS
  mine = json.loads(paths.read(path)) if processes.is_first() and paths.is_file(path) else []
  return processes.from_first("the rollbacks", mine)


def replay(cfg: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The config with alarms.rollback_overrides, if its run has been rolled back; else itself."""
  return overridden(cfg) if records(cfg.workdir) else cfg


def overridden(cfg: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A copy of the config with alarms.rollback_overrides."""
  changed = cfg.copy_and_resolve_references()
  changed.update(cfg.alarms.rollback_overrides)
  return changed


def target(steps: list[int], alarm_step: int, rollback_steps: int, *, every: int) -> int:
  """The newest checkpoint that is rollback_steps older than the alarm.

  Where there is none: 0, the starting weights, if the run has not had a checkpoint that old; the oldest one kept, if
  older ones are gone (after an earlier rollback, say), for a long run must not start over.
  Args: steps: checkpoints there are. every: iterations between checkpoints.
  """
  if good := [s for s in steps if s <= alarm_step - rollback_steps]:
    return max(good)
  return 0 if not steps or min(steps) <= every else min(steps)


def roll_back(cfg: ml_collections.ConfigDict, alarm: Alarm) -> int:
  """Removes the checkpoints after the last good one, keeps what was logged under another name, writes the record.

  Returns: the step that the run continues from.
  """
  workdir = paths.of(cfg.workdir)
  done = records(workdir)
  c = cfg.checkpoint
  checkpointer = Checkpointer(cfg.workdir, keep=c.keep, best=c.keep_best, folder=c.folder)
  steps = checkpointer.steps()
  to = target(steps, alarm.step, cfg.alarms.rollback_steps, every=cfg.checkpoint.every)
  for name in ("metrics", "samples") if processes.is_first() else ():
    lines.copy(workdir / f"{name}.jsonl", workdir / f"{name}.rollback{len(done) + 1}.jsonl")
  # The record last: killed before it, the run resumes from a checkpoint that is left, meets the alarm again and goes
  # back again; killed after it, everything is done.
  for step in reversed(steps):
    if step > to:
      checkpointer.delete(step)
  checkpointer.close()
  if processes.is_first():
    record = {"alarm": alarm.name, "step": alarm.step, "to": to}
    paths.write(workdir / RECORDS, json.dumps([*done, record], indent=1) + "\n")
  return to
