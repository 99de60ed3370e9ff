"""Where a rollback goes, and that a kill in the middle of one loses nothing."""

import json

import numpy as np
import pytest

from fipo_jax import config, rollback
from fipo_jax.alarms import Alarm
from fipo_jax.train.checkpoint import Checkpointer


@pytest.mark.parametrize("steps, alarm, to", [
  ([5, 10, 15, 20], 23, 15),  # 20 is too young
  ([15, 20], 20, 15),
  ([5], 8, 0),  # the run has had no older one: the start is the last good state
  ([], 3, 0),
  ([40], 44, 40),  # 35 is gone, after an earlier rollback: a long run does not start over
  ([40, 45], 43, 40),
])  # fmt: skip
def test_target(steps, alarm, to):
  assert rollback.target(steps, alarm, 5, every=5) == to


def make(tmp_path, steps):
  cfg = config.default()
  cfg.workdir, cfg.checkpoint.keep = str(tmp_path), 10
  saver = Checkpointer(cfg.workdir, keep=10)
  for step in steps:
    saver.save(step, {"x": np.arange(3) + step}, {"seconds": float(step)})
  saver.close()
  for name in ("metrics", "samples"):
    (tmp_path / f"{name}.jsonl").write_text(json.dumps({"step": max(steps)}) + "\n")
  return cfg


def left(tmp_path):
  loader = Checkpointer(str(tmp_path), keep=10)
  steps = loader.steps()
  loader.close()
  return steps


def test_two_rollbacks_in_a_row(tmp_path):
  cfg = make(tmp_path, [5, 10, 15, 20])
  assert rollback.replay(cfg) is cfg
  assert rollback.roll_back(cfg, Alarm("collapse", 17, "")) == 10
  assert left(tmp_path) == [5, 10]
  assert rollback.roll_back(cfg, Alarm("entropy_collapse", 12, "")) == 5
  assert left(tmp_path) == [5]
  assert [r["to"] for r in rollback.records(tmp_path)] == [10, 5]
  assert {p.name for p in tmp_path.glob("*.rollback*.jsonl")} == {
    f"{name}.rollback{n}.jsonl" for name in ("metrics", "samples") for n in (1, 2)
  }


def test_overrides_hold_from_the_first_rollback_on(tmp_path):
  cfg = make(tmp_path, [5])
  cfg.alarms.rollback_overrides = {"algorithm": {"weight_clip": (0.9, 1.1)}}
  rollback.roll_back(cfg, Alarm("collapse", 12, ""))
  assert rollback.replay(cfg).algorithm.weight_clip == (0.9, 1.1) and cfg.algorithm.weight_clip == (1.0, 1.2)


def test_a_kill_before_the_record_spends_no_rollback(tmp_path, monkeypatch):
  """Killed after any number of deletions the run still has only checkpoints that a resumed run may go on from."""
  cfg = make(tmp_path, [5, 10, 15, 20])
  real = Checkpointer.delete
  calls = []

  def delete(self, step):
    calls.append(step)
    if len(calls) == 2:
      raise KeyboardInterrupt
    real(self, step)

  monkeypatch.setattr(Checkpointer, "delete", delete)
  with pytest.raises(KeyboardInterrupt):
    rollback.roll_back(cfg, Alarm("collapse", 14, ""))
  assert calls == [20, 15] and rollback.records(tmp_path) == []
  monkeypatch.setattr(Checkpointer, "delete", real)
  assert left(tmp_path) == [5, 10, 15]
  assert rollback.roll_back(cfg, Alarm("collapse", 14, "")) == 5


def test_the_alarm_is_carried():
  alarm = Alarm("collapse", 3, "seen")
  assert rollback.Rollback(alarm).alarm is alarm and str(rollback.Rollback(alarm)) == "seen"
