"""The run's log, timers and display."""

import io
import json
import os
import resource
import stat
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from fipo_jax import metrics
from fipo_jax.types import Max, Mean, Min


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def write_steps(path, *steps, resume_step=0):
  log = metrics.JsonLines(path, resume_step)
  for step in steps:
    log.write({"step": step, "loss": step / 2})
  log.close()


def test_a_line_a_step_is_there_as_soon_as_it_is_written(tmp_path):
  log = metrics.Log(tmp_path / "new" / "run", resume_step=0)
  log.write(
    1, {"loss": np.float32(0.5), "tokens": np.int64(3), "minibatch/loss": jnp.array([1.0, 2.0])}
  )
  log.sample(1, {"prompt": "1 + 2 ≠", "weight": np.array([1.0, 1.25]), "answer": None})
  run = tmp_path / "new" / "run"  # read before close: nothing may wait in a buffer
  (line,) = lines(run / "metrics.jsonl")
  assert abs(line.pop("time") - time.time()) < 60  # seconds since 1970
  assert line == {"step": 1, "loss": 0.5, "tokens": 3, "minibatch/loss": [1.0, 2.0]}
  assert lines(run / "samples.jsonl") == [
    {"step": 1, "prompt": "1 + 2 ≠", "weight": [1.0, 1.25], "answer": None}
  ]
  log.close()


def test_numbers_that_are_not_finite_are_null_and_named(tmp_path):
  log = metrics.JsonLines(tmp_path / "m.jsonl", 0)
  inf = jnp.array([1.0, jnp.inf, -jnp.inf])
  log.write({"step": 1, "loss": float("nan"), "each": inf, "eval": {"x": np.nan}, "good": 1.0})
  assert lines(tmp_path / "m.jsonl") == [
    {
      "step": 1,
      "loss": None,
      "each": [1.0, None, None],
      "eval": {"x": None},
      "good": 1.0,
      "nonfinite": ["loss", "each", "eval.x"],
    }
  ]


@pytest.mark.parametrize("record", [{"loss": 1.0}, {"step": None}, {"step": 1.5}])
def test_a_record_needs_its_step(tmp_path, record):
  with pytest.raises(ValueError, match="step="):
    metrics.JsonLines(tmp_path / "m.jsonl", 0).write(record)


def test_resume_drops_later_steps_and_goes_on(tmp_path):
  path = tmp_path / "m.jsonl"
  write_steps(path, 0, 1, 2, 3, 4)
  write_steps(path, 3, resume_step=2)
  assert [r["step"] for r in lines(path)] == [0, 1, 2, 3]
  assert os.listdir(tmp_path) == ["m.jsonl"]  # no temporary left


def test_resume_at_zero_starts_over(tmp_path):
  write_steps(tmp_path / "m.jsonl", 0, 1, 2)
  write_steps(tmp_path / "m.jsonl", 0)
  assert [r["step"] for r in lines(tmp_path / "m.jsonl")] == [0]


@pytest.mark.parametrize("torn", ['{"step": 2, "lo', '{"step": 2, "lo\n', "\n", "[2]\n"])
def test_torn_last_line_is_dropped(tmp_path, torn):
  path = tmp_path / "m.jsonl"
  path.write_text('{"step": 1}\n' + torn)
  write_steps(path, 2, resume_step=5)
  assert lines(path) == [{"step": 1}, {"step": 2, "loss": 1.0}]


def test_whole_last_line_without_newline_is_kept(tmp_path):
  path = tmp_path / "m.jsonl"
  path.write_text('{"step": 1}\n{"step": 2}')
  write_steps(path, 3, resume_step=2)
  assert [r["step"] for r in lines(path)] == [1, 2, 3]


def test_broken_line_in_the_middle_is_refused_and_nothing_changes(tmp_path):
  path = tmp_path / "m.jsonl"
  path.write_text('{"step": 1}\nbroken\n{"step": 3}\n')
  with pytest.raises(ValueError, match="m.jsonl: the line at byte 12 is not a JSON record"):
    metrics.JsonLines(path, 1)
  assert path.read_text() == '{"step": 1}\nbroken\n{"step": 3}\n'
  assert os.listdir(tmp_path) == ["m.jsonl"]


def test_only_the_end_is_read(tmp_path):
  """What stands before the newest kept line could be anything, and of any size."""
  path = tmp_path / "m.jsonl"
  old = b"x" * 300_000 + b"\n" + json.dumps({"step": 4, "text": "é" * 200_000}).encode() + b"\n"
  path.write_bytes(old + json.dumps({"step": 5, "text": "b" * 100_000}).encode() + b'\n{"step": 5}\n{"step"')
  metrics.JsonLines(path, 4)
  assert path.read_bytes() == old


def test_a_bounded_file_drops_its_oldest_lines_and_says_so_once(tmp_path, capsys):
  path = tmp_path / "m.jsonl"
  log = metrics.JsonLines(path, 0, most_bytes=4000)
  for step in range(1, 200):
    log.write({"step": step, "text": "a" * (step % 97)})
    assert path.stat().st_size <= 4000
  kept = [r["step"] for r in lines(path)]
  assert kept == list(range(kept[0], 200)) and len(kept) > 20
  assert capsys.readouterr().out.count("oldest lines are dropped") == 1
  assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]
  log.write({"step": 200, "text": "c" * 9000})  # one line that is larger than the bound is written all the same
  assert lines(path)[-1]["text"] == "c" * 9000
  log.write({"step": 201})
  assert lines(path)[-1] == {"step": 201}


def test_a_crash_while_the_oldest_lines_are_dropped_loses_nothing(tmp_path, monkeypatch):
  path = tmp_path / "m.jsonl"
  log = metrics.JsonLines(path, 0, most_bytes=100)
  for step in (1, 2, 3, 4):
    log.write({"step": step, "x": "aaa"})
  before = path.read_bytes()

  def fail(*args):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "replace", fail)
  with pytest.raises(OSError, match="cannot be written: No space left on device; free space there"):
    log.write({"step": 5, "x": "a" * 50})
  assert path.read_bytes() == before


def test_a_phase_within_another_counts_once():
  ticks = iter([0.0, 0.0, 1.0, 4.0, 10.0, 12.0])  # rollout from 0 to 10, reward in it from 1 to 4; asked at 12
  timers = metrics.Timers(lambda: next(ticks))
  with timers("rollout"):
    with timers("reward"):
      pass
  assert timers.pop() == {"seconds/reward": 3.0, "seconds/rollout": 7.0, "seconds/other": 2.0, "seconds/step": 12.0}


def test_verifier_troubles_stand_in_the_step_line(capsys):
  with metrics.Progress("t", 5, console=rich.console.Console(width=200)) as progress:
    progress.step(1, {"reward": 0.5, "reward_errors": 3, "reward_timeouts": 0})
    progress.step(2, {"reward": 0.5, "reward_errors": 0, "reward_timeouts": 2})
  first, second = capsys.readouterr().out.splitlines()
  assert "verifier errors 3" in first and "time-outs" not in first
  assert "verifier time-outs 2" in second and "errors" not in second


def test_full_disk_is_one_line_and_leaves_whole_lines(tmp_path):
  path = tmp_path / "m.jsonl"
  log = metrics.JsonLines(path, 0)
  log.write({"step": 1, "text": "a" * 100})
  before = path.read_bytes()
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, hard))  # 50 bytes fit, then no more
  try:
    with pytest.raises(ValueError, match=rf"workdir={tmp_path} cannot be written: File too large"):
      log.write({"step": 2, "text": "b" * 100})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert path.read_bytes() == before
  log.write({"step": 2})
  assert [r["step"] for r in lines(path)] == [1, 2]


def test_unwritable_workdir_is_one_line(tmp_path):
  (tmp_path / "file").write_text("")
  for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
    with pytest.raises(ValueError, match=rf"^workdir={workdir} cannot be written: [^\n]*$"):
      metrics.check_writable(workdir)
  with pytest.raises(ValueError, match="workdir=/proc/run cannot be written"):
    metrics.Log("/proc/run", resume_step=0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission_is_refused(tmp_path):
  tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
  with pytest.raises(ValueError, match="Permission denied"):
    metrics.check_writable(tmp_path)


def test_writable_workdir_is_made_and_left_empty(tmp_path):
  assert metrics.check_writable(tmp_path / "a" / "b") == tmp_path / "a" / "b"
  assert os.listdir(tmp_path / "a" / "b") == []


def test_only_process_zero_writes_or_prints(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  log = metrics.Log(tmp_path / "run", resume_step=0)
  log.write(1, {"loss": 1.0})
  log.close()
  assert os.listdir(tmp_path) == []
  console = rich.console.Console(file=io.StringIO())
  with metrics.Progress("run", 2, console=console) as progress:
    progress.step(1, {})
    progress.note("hello")
  metrics.summary_table({"accuracy_before": 0.0, "accuracy_after": 1.0}, {}, console=console)
  assert console.file.getvalue() == ""


def test_finish_divides_in_one_transfer(monkeypatch):
  transfers = []
  get = jax.device_get
  monkeypatch.setattr(jax, "device_get", lambda tree: transfers.append(1) or get(tree))
  records = {
    "mean": Mean(jnp.float32(3.0), jnp.float32(4.0)),
    "nothing": Mean(jnp.float32(0.0), jnp.float32(0.0)),
    "max": Max(jnp.float32(2.5)),
    "unseen_max": Max(jnp.float32(-jnp.inf)),
    "min": Min(jnp.float32(-1.5)),
    "unseen_min": Min(jnp.float32(jnp.inf)),
    "each": Mean(jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0])),
  }
  values = metrics.finish(records)
  assert transfers == [1]
  assert (values["mean"], values["max"], values["min"]) == (0.75, 2.5, -1.5)
  assert all(np.isnan(values[k]) for k in ("nothing", "unseen_max", "unseen_min"))
  assert values["each"][0] == 0.5 and np.isnan(values["each"][1])
  assert type(values["mean"]) is float
  for name in ("mean", "max", "min"):  # the same numbers as the records give on the device
    assert values[name] == float(records[name].value())


def test_finish_refuses_other_records():
  with pytest.raises(TypeError, match="got ArrayImpl|got ndarray|got float"):
    metrics.finish({"x": 1.0})


def test_finish_divides_exactly_above_two_to_the_24():
  total, count = np.int64(2**25 + 1), np.int64(2**25)  # float32 would round the sum away
  assert metrics.finish({"x": Mean(total, count)})["x"] == 1 + 2**-25


class Clock:
  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


def test_timers_add_up_and_start_over():
  clock = Clock()
  timers = metrics.Timers(clock)
  for seconds in (2.0, 3.0):
    with timers("rollout"):
      clock.now += seconds
  with pytest.raises(KeyError), timers("update"):
    clock.now += 1.0
    raise KeyError
  clock.now += 100.0
  found = timers.pop()  # wall time, and all phases sum to it
  assert found == {"seconds/rollout": 5.0, "seconds/update": 1.0, "seconds/other": 100.0, "seconds/step": 106.0}
  assert timers.pop() == {"seconds/other": 0.0, "seconds/step": 0.0}


def test_plain_progress_is_a_line_a_step_without_control_codes():
  clock = Clock()
  console = rich.console.Console(file=io.StringIO(), width=40)
  with metrics.Progress("runs/x", 103, 99, console=console, clock=clock) as progress:
    progress.task("rollout")(1, 2)
    clock.now += 50.0  # the step that compiles forecasts nothing
    progress.step(100, {"reward": 0.5, "accuracy": 0.625, "response_length": 41.25})
    clock.now += 2.0
    progress.step(101, {"reward": 0.5})
    progress.note("saved [step 101] in /a/" + "long/" * 20)
    clock.now += 4000.0
    progress.step(102, {})
  assert console.file.getvalue().splitlines() == [
    "step 100/103  reward 0.500  accuracy 0.625  length 41.2  50.0 s",
    "step 101/103  reward 0.500  2.0 s  eta 4s",
    "saved [step 101] in /a/" + "long/" * 20,
    "step 102/103  4000.0 s  eta 33m21s",
  ]


def test_live_progress_shows_step_and_subtask_bars():
  clock = Clock()
  console = rich.console.Console(file=io.StringIO(), force_terminal=True, width=120)
  with metrics.Progress("runs/[x]", 10, 4, console=console, clock=clock) as progress:
    bar = progress.task("rollout")
    bar(3, 8)
    clock.now += 2.0
    progress.step(5, {"reward": 0.25})
    tasks = progress._live.tasks
    assert [(t.description.strip(), t.completed, t.total) for t in tasks] == [
      ("runs/[x]", 5, 10),
      ("rollout", 3, 8),
    ]
    assert tasks[0].fields["said"] == "reward 0.250  2.0 s"
    bar(8, 8)
    assert len(progress._live.tasks) == 1
    bar(1, 8)  # the next step's
    assert progress._live.tasks[1].completed == 1
  assert "runs/[x]" in console.file.getvalue()


def test_summary_shows_before_after_change_and_whole_paths():
  console = rich.console.Console(file=io.StringIO(), width=60)
  result = {
    "accuracy_before": 0.125,
    "accuracy_after": 0.75,
    "length_before": None,
    "length_after": 31.5,
    "seed": 1,
  }
  path = "/somewhere/" + "deep/" * 20
  metrics.summary_table(result, {"report": path}, console=console)
  text = console.file.getvalue()
  rows = [line.replace("│", " ").split() for line in text.splitlines()]
  assert ["accuracy", "0.125", "0.750", "+0.625"] in rows
  assert ["length", "-", "31.500", "-"] in rows
  assert f"report: {path}" in text.splitlines()
  assert "\x1b" not in text
