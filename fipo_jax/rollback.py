"""Back to the last good checkpoint after an alarm, with the settings that the config names for that case.

    workdir/rollbacks.json            one record per rollback: alarm, step, the step gone back to
    workdir/metrics.rollback1.jsonl   what had been logged until the first one; samples likewise

The config of the run stays the user's own; what a rollback changes is replayed from these records whenever the run is
built, so that a killed process resumes with it.
"""

from __future__ import annotations

import json
import pathlib
import shutil

import ml_collections

from fipo_jax.alarms import Alarm
from fipo_jax.train.checkpoint import Checkpointer

RECORDS = "rollbacks.json"


class Rollback(Exception):
  """An alarm asks for the run to be taken back; carries it."""

  def __init__(self, alarm: Alarm):
    super().__init__(alarm.message)
    self.alarm = alarm


def records(workdir) -> list[dict]:
  """The rollbacks of a run so far, oldest first."""
  path = pathlib.Path(workdir) / RECORDS
  return json.loads(path.read_text()) if path.is_file() else []


def replay(cfg: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The config with alarms.rollback_overrides, if its run has been rolled back; else itself."""
  if not records(cfg.workdir):
    return cfg
  changed = cfg.copy_and_resolve_references()
  changed.update(cfg.alarms.rollback_overrides)
  return changed


def target(steps: list[int], alarm_step: int, rollback_steps: int) -> int:
  """The newest checkpoint that is rollback_steps older than the alarm; 0, the starting weights, when there is none."""
  return max((s for s in steps if s <= alarm_step - rollback_steps), default=0)


def roll_back(cfg: ml_collections.ConfigDict, alarm: Alarm) -> int:
  """Removes the checkpoints after the last good one, keeps what was logged under another name, writes the record.

  Returns: the step that the run continues from.
  """
  workdir = pathlib.Path(cfg.workdir)
  done = records(workdir)
  checkpointer = Checkpointer(cfg.workdir, keep=cfg.checkpoint.keep)
  steps = checkpointer.steps()
  to = target(steps, alarm.step, cfg.alarms.rollback_steps)
  for name in ("metrics", "samples"):
    if (workdir / f"{name}.jsonl").is_file():
      shutil.copyfile(workdir / f"{name}.jsonl", workdir / f"{name}.rollback{len(done) + 1}.jsonl")
  temporary = workdir / f"{RECORDS}.tmp"
  temporary.write_text(json.dumps([*done, {"alarm": alarm.name, "step": alarm.step, "to": to}], indent=1) + "\n")
  # The record first: a kill in between leaves later checkpoints, from which the run goes on with the new settings.
  temporary.replace(workdir / RECORDS)
  for step in steps:
    if step > to:
      checkpointer.delete(step)
  checkpointer.close()
  return to
