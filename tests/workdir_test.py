"""A workdir belongs to one run: one process at a time, one config, and what may differ when it goes on."""

import json
import shutil
import subprocess
import sys

import pytest

from fipo_jax import config, workdir
from tests.loop_test import GOLDEN, ROOT


def make(folder, **fields):
  c = config.default()
  c.update_from_flattened_dict({"workdir": str(folder), "steps": 5} | fields)
  return c


def claimed(folder, **fields):
  """The claim of a run that has logged something, so that the workdir is its own."""
  found = workdir.claim(make(folder, **fields))
  (folder / "metrics.jsonl").write_text('{"step": 1}\n')
  return found


HOLDER = """
import sys, time
from fipo_jax import workdir
with workdir.hold(sys.argv[1]):
  print("held", flush=True)
  sys.stdin.read()
"""


def holder(folder):
  job = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, text=True, stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE)  # fmt: skip
  assert job.stdout.readline() == "held\n"
  return job


def test_a_second_process_is_told_who_has_it_and_touches_nothing(tmp_path):
  folder = tmp_path / "run"
  job = holder(folder)
  before = sorted(path.name for path in folder.iterdir())
  for _ in range(2):
    with pytest.raises(ValueError, match=rf"workdir=.*: process {job.pid} on .*, since 20.*, is working in it; wait"):
      with workdir.hold(folder):
        raise AssertionError
  assert sorted(path.name for path in folder.iterdir()) == before == [".lock"]
  job.kill()  # as anything may end it: the kernel frees the lock
  job.wait()
  with workdir.hold(folder), workdir.hold(folder):  # a process may hold it twice
    pass
  with workdir.hold(folder):
    pass


def test_the_lock_is_freed_at_the_outermost_end_alone(tmp_path):
  with workdir.hold(tmp_path):
    with workdir.hold(tmp_path):
      pass
    code = subprocess.run([sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)  # fmt: skip
    assert "is working in it" in code.stderr


def test_a_workdir_belongs_to_one_config(tmp_path):
  claimed(tmp_path)
  claimed(tmp_path, steps=9)  # may change
  before = (tmp_path / "config.json").read_bytes()
  with pytest.raises(ValueError, match="another config: optimizer.learning_rate: 1e-06 -> 1e-05; use another workdir"):
    workdir.claim(make(tmp_path, **{"optimizer.learning_rate": 1e-5}))
  with pytest.raises(ValueError, match="--allow=optimizer.learning_rate to go on with what is changed"):
    workdir.check(make(tmp_path, **{"optimizer.learning_rate": 1e-5}))
  assert (tmp_path / "config.json").read_bytes() == before


def test_a_start_that_failed_before_it_had_anything_to_lose_does_not_own_it(tmp_path):
  workdir.claim(make(tmp_path, **{"model.path": "mistyped"}))
  workdir.claim(make(tmp_path, **{"optimizer.learning_rate": 1e-5}))
  assert json.loads((tmp_path / "config.json").read_text())["optimizer"]["learning_rate"] == 1e-5
  assert len(json.loads((tmp_path / "starts.json").read_text())) == 1


def test_what_says_where_or_how_fast_may_change_and_is_recorded(tmp_path):
  claimed(tmp_path)
  found = workdir.claim(make(tmp_path, **{"mesh.fsdp": 2, "batch.micro_rows": 6, "data.path": "there"}))
  lines = ["batch.micro_rows: 64 -> 6", "data.path: '' -> 'there'", "mesh.fsdp: -1 -> 2"]
  assert found.changes == lines and [f"changed: {line}" for line in lines] == found.notes[-3:]
  again = workdir.claim(make(tmp_path, **{"mesh.fsdp": 2, "batch.micro_rows": 6, "data.path": "there"}))
  assert again.changes == lines and len(again.notes) == 1  # not yet in the metrics of a step: killed before it
  starts = json.loads((tmp_path / "starts.json").read_text())
  assert [start["changes"] for start in starts] == [[], lines, []]
  assert all(start["host"] and start["jax"] and "commit" in start for start in starts)


@pytest.mark.parametrize("allow", ["optimizer.learning_rate,batch.prompts", "optimizer,batch"])
def test_what_alters_the_training_changes_when_it_is_named(tmp_path, allow):
  claimed(tmp_path)
  other = make(tmp_path, **{"optimizer.learning_rate": 1e-5, "batch.prompts": 128})
  with pytest.raises(ValueError, match="batch.prompts: 512 -> 128"):
    workdir.claim(other, ["optimizer.learning_rate"])
  found = workdir.claim(other, allow.split(","))
  assert found.changes == ["batch.prompts: 512 -> 128", "optimizer.learning_rate: 1e-06 -> 1e-05"]
  workdir.claim(other)  # from now on it is the run's


def test_contents_and_not_names_tell_models_and_reward_files_apart(tmp_path):
  folder, file = tmp_path / "run", tmp_path / "reward.py"
  shutil.copytree(GOLDEN, tmp_path / "model")
  shutil.copytree(GOLDEN, tmp_path / "moved")
  file.write_text("def verify(): pass")
  fields = {"model.path": str(tmp_path / "model"), "reward.file": str(file)}
  claimed(folder, **fields)
  claimed(folder, **fields | {"model.path": str(tmp_path / "moved")})
  facts = json.loads((tmp_path / "moved/config.json").read_text())
  (tmp_path / "moved/config.json").write_text(json.dumps(facts | {"rms_norm_eps": 1e-3}))
  with pytest.raises(ValueError, match="another config: model.path: 'contents [0-9a-f]{12}' -> 'contents"):
    workdir.claim(make(folder, **fields | {"model.path": str(tmp_path / "moved")}))
  claimed(folder, **fields)
  file.write_text("def verify(): return 1")
  with pytest.raises(ValueError, match="another config: reward.file: 'contents"):
    workdir.claim(make(folder, **fields))
  assert "reward.file: 'contents" in workdir.claim(make(folder, **fields), ["reward.file"]).changes[-1]


def test_a_damaged_config_is_named(tmp_path):
  claimed(tmp_path)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(ValueError, match="config.json is damaged .*; use another workdir"):
    workdir.claim(make(tmp_path))


def test_checkpoints_that_were_moved_must_be_there(tmp_path):
  claimed(tmp_path / "run")
  step = tmp_path / "run/checkpoints/3"
  step.mkdir(parents=True)
  (step / "_CHECKPOINT_METADATA").write_text("{}")
  moved = make(tmp_path / "run", **{"checkpoint.folder": str(tmp_path / "elsewhere")})
  with pytest.raises(ValueError, match=r"checkpoint.folder=.*: there is no checkpoint, but the run has some"):
    workdir.claim(moved)
  shutil.move(tmp_path / "run/checkpoints", tmp_path / "elsewhere")
  assert workdir.claim(moved).changes[0].startswith("checkpoint.folder: ")
  before = (tmp_path / "run/starts.json").read_bytes()
  for wrong in (2, 4):  # refused before anything is written
    with pytest.raises(ValueError, match=f"--step={wrong}: no such checkpoint of workdir=.*; there are 3"):
      workdir.claim(moved, step=wrong)
  assert (tmp_path / "run/starts.json").read_bytes() == before
  workdir.claim(moved, step=3), workdir.claim(moved, step="best")


def test_a_change_is_recorded_at_the_step_that_the_run_goes_back_to(tmp_path):
  claimed(tmp_path)
  for step in (2, 3):
    (tmp_path / f"checkpoints/{step}").mkdir(parents=True)
    (tmp_path / f"checkpoints/{step}/_CHECKPOINT_METADATA").write_text("{}")
  found = workdir.claim(make(tmp_path, **{"optimizer.learning_rate": 1e-5}), ["optimizer"], step=2)
  assert found.changes == ["optimizer.learning_rate: 1e-06 -> 1e-05"]
  assert json.loads((tmp_path / "starts.json").read_text())[-1]["step"] == 2


def test_metrics_without_a_checkpoint_are_not_replaced_in_silence(tmp_path):
  claimed(tmp_path)
  (note,) = workdir.claim(make(tmp_path)).notes
  assert "metrics but no checkpoint; the run begins again, and they are replaced" in note


def test_logs_are_kept_when_a_run_goes_back(tmp_path):
  claimed(tmp_path)
  for _ in range(2):
    workdir.keep_logs(make(tmp_path), 2)
  kept = sorted(path.name for path in tmp_path.glob("*before*"))
  assert kept == ["metrics.before_step2.1.jsonl", "metrics.before_step2.2.jsonl"]
