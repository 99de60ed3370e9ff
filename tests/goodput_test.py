"""Where the time of a run went, worked out by hand."""

import datetime
import json
import os
import socket
import time
import types

import pytest

from fipo_jax import config, goodput, stalls, workdir


def rows(*steps, seconds=10.0):
  return [{"step": 0, "eval/accuracy": 0.5}, *({"step": step, "seconds/step": seconds} for step in steps)]


def test_a_start_that_is_under_way():
  found = goodput.account([{"began": 100.0, "training": 104.0}], 30.0, now=140.0)
  assert found == {
    "share": 0.75, "wall_s": 40.0, "productive_s": 30.0, "lost_s": 0.0, "starting_s": 4.0, "waiting_s": 0.0,
    "other_s": 6.0, "starts": 1, "lost_steps": 0,
  }  # fmt: skip


def test_killed_stopped_with_a_pause_and_failed_before_training():
  starts = [
    {"began": 1000.0, "training": 1010.0, "seen": 1100.0},  # killed: its last sign of life was at 1100
    {"began": 1120.0, "training": 1125.0, "lost_steps": 2, "lost_s": 20.0, "ended": 1200.0},  # told to stop
    {"began": 1500.0, "ended": 1507.0},  # failed before training
    {"began": 1510.0, "training": 1515.0, "lost_steps": 0, "lost_s": 0.0},
  ]
  found = goodput.account(starts, 100.0, now=1600.0)
  assert found["wall_s"] == 600 and found["starts"] == 4 and found["lost_steps"] == 2
  assert found["waiting_s"] == 20 + 300 + 3
  assert found["starting_s"] == 10 + 5 + 7 + 5
  assert found["productive_s"] == 100 and found["lost_s"] == 20
  assert found["other_s"] == 600 - 323 - 27 - 100 - 20
  assert found["share"] == pytest.approx(100 / 600, abs=1e-4)
  ended = goodput.account([*starts[:-1], starts[-1] | {"ended": 1600.0}], 100.0, now=99999.0)
  assert ended == found  # days later
  assert goodput.said(found) == (
    "17% of 600 s went into iterations that were kept (4 starts; lost 20 s, starting 27 s, waiting 323 s, other 130 s)"
  )


def test_a_start_in_the_same_process_waits_for_nothing():
  """After a rollback."""
  starts = [{"began": 0.5, "training": 5.0, "ended": 50.0}, {"began": 50.0, "training": 52.0, "lost_s": 30.0}]
  found = goodput.account(starts, 40.0, now=80.5)
  assert found["waiting_s"] == 0 and found["starting_s"] == 4.5 + 2 and found["other_s"] == 80 - 6.5 - 40 - 30


def test_records_of_older_versions_have_a_text_for_their_time():
  starts = [{"time": "1970-01-01 00:10:00+00:00", "seen": 700.0}, {"began": 710.0, "training": 711.0}]
  found = goodput.account(starts, 50.0, now=720.0)
  assert found["wall_s"] == 120 and found["starting_s"] == 1 and found["waiting_s"] == 10


def test_what_a_start_drops():
  assert goodput.lost(rows(1, 2, 3), 1) == {"lost_steps": 2, "lost_s": 20.0}
  assert goodput.lost(rows(1, 2, 3), 3) == {"lost_steps": 0, "lost_s": 0.0}
  assert goodput.lost(rows(1, 2), 0) == {"lost_steps": 2, "lost_s": 20.0}  # nothing was saved
  assert goodput.lost([{"step": 1, "seconds/step": None}], 0) == {"lost_steps": 1, "lost_s": 0.0}


# ---- the records ----


def make(folder):
  c = config.default()
  c.workdir, c.model.preset, c.model.alphabet = str(folder), "tiny", "0123456789"
  return c


def starts_of(folder):
  return json.loads((folder / "starts.json").read_text())


def log(folder, *steps, last):
  """Lines of these steps, the last one at a time, the others 10 s apart."""
  with open(folder / "metrics.jsonl", "a") as file:
    for row in rows(*steps)[1:]:
      file.write(json.dumps(row | {"time": last - 10 * (steps[-1] - row["step"])}) + "\n")


def test_each_start_writes_down_its_time(tmp_path):
  c = make(tmp_path)
  before = time.time()
  workdir.claim(c)
  spent, said = workdir.begin_training(c, 0, workdir.logged(c))
  (first,) = starts_of(tmp_path)
  assert first["began"] <= first["training"] and said == "" and before <= first["training"] <= time.time()
  assert "ended" not in first
  log(tmp_path, 1, 2, 3, last=first["training"] + 35)
  spent.first -= 50
  assert spent.share(10.0) == pytest.approx(10 / (time.time() - spent.first), rel=0.05)
  assert spent.share(10.0) == pytest.approx(20 / (time.time() - spent.first), rel=0.05)
  # Killed. Its last sign of life is what it wrote last.
  workdir.claim(c)
  killed, second = starts_of(tmp_path)
  assert killed["seen"] == pytest.approx(first["training"] + 35, abs=0.01) and "ended" not in killed
  (tmp_path / "checkpoints/1").mkdir(parents=True)
  spent, said = workdir.begin_training(c, 1, workdir.logged(c))
  killed, second = starts_of(tmp_path)
  assert (second["lost_steps"], second["lost_s"]) == (2, 20.0)
  assert spent.kept_s == 10 and spent.first == killed["began"]
  assert "of " in said and "(2 starts; lost 20 s," in said
  workdir.end(c)
  workdir.end(c)
  assert starts_of(tmp_path)[1]["ended"] <= time.time()
  workdir.claim(c)
  assert "seen" not in starts_of(tmp_path)[1]


def test_a_heartbeat_is_a_later_sign_of_life(tmp_path, monkeypatch):
  c = make(tmp_path)
  workdir.claim(c)
  began = starts_of(tmp_path)[0]["began"]
  log(tmp_path, 1, 2, last=began + 30)
  now = iter([began + 80])
  with monkeypatch.context() as m:
    clock = lambda *_: datetime.datetime.fromtimestamp(next(now), datetime.UTC)
    m.setattr(stalls, "datetime", types.SimpleNamespace(datetime=types.SimpleNamespace(now=clock)))
    stalls._beat(tmp_path, 2, "rollout", 0.0)
  workdir.claim(c)
  assert starts_of(tmp_path)[0]["seen"] == pytest.approx(began + 80, abs=1)
  (tmp_path / "heartbeat.json").write_text("torn")
  workdir.claim(c)
  assert starts_of(tmp_path)[1]["seen"] >= starts_of(tmp_path)[1]["began"]


def test_the_same_command_on_a_finished_run_leaves_its_account_as_it_was(tmp_path):
  c = make(tmp_path)
  starts = [{"began": 100.0, "training": 110.0, "ended": 160.0}, {"began": 90_000.0, "training": 90_001.0}]
  (tmp_path / "starts.json").write_text(json.dumps(starts))
  log(tmp_path, 1, 2, 3, last=150.0)
  assert workdir.account(c) | {"starts": 1} == goodput.account(starts[:1], 30.0, now=160.0)
  log(tmp_path, 4, last=90_020.0)  # it was told to make more steps
  assert workdir.account(c)["starts"] == 2 and workdir.account(c)["waiting_s"] == 89_840


def test_the_end_of_another_process_is_not_written_down(tmp_path):
  c = make(tmp_path)
  workdir.end(c)
  assert not (tmp_path / "starts.json").exists()
  for pid, host in ((os.getpid() + 1, socket.gethostname()), (os.getpid(), "elsewhere")):
    (tmp_path / "starts.json").write_text(json.dumps([{"began": 1.0, "pid": pid, "host": host}]))
    workdir.end(c)
    assert "ended" not in starts_of(tmp_path)[0]


def test_the_first_start_of_a_process_began_with_it(tmp_path, monkeypatch):
  monkeypatch.setattr(workdir, "_first_claim", True)
  first, second = workdir._began(), workdir._began()
  assert first < second - 0.2 and second == pytest.approx(time.time(), abs=1)
  assert first == pytest.approx(os.stat("/proc/self").st_ctime, abs=5)
