"""A run that stands still: who is found, when, and what is left of it."""

import json
import signal
import subprocess
import sys
import time

import pytest

from fipo_jax import processes, stalls
from tests.processes_test import ROOT, ends, free_port

PROGRAM = """
import sys, threading, time
from fipo_jax import console, processes, stalls
stalls.TICK_S, stalls.HEARTBEAT_S = 0.05, 0.05
processes.BEAT_S = 0.2
workdir, what, deadline = sys.argv[1], sys.argv[2], float(sys.argv[3])
if len(sys.argv) > 4:
  processes.start(sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))

def standing_still():
  time.sleep(60)

with stalls.watch(workdir, stall_s=deadline, factor=2, first_s=deadline):
  stalls.moved(step=7)
  with console.phase("rollout"):
    if what == "still":
      standing_still()
    elif what == "alive":
      for _ in range(20):
        time.sleep(0.1)
        stalls.alive()
    elif what == "one_still":
      processes.exchange("all are here", "yes")
      if processes.index() == 1:
        standing_still()
      stalls.moved()
      processes.exchange("never", "yes")
    elif what == "one_works":
      for _ in range(20 if processes.index() == 1 else 0):
        time.sleep(0.2)
        stalls.alive()
      processes.exchange("at last", "yes")
processes.finish()
print("done")
"""


def run(workdir, what, deadline, number=1):
  more = [[f"127.0.0.1:{free_port()}", str(number)]] * (number > 1)
  return [
    subprocess.Popen(
      [sys.executable, "-c", PROGRAM, str(workdir), what, str(deadline), *(x for m in more for x in (*m, str(k)))],
      cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    for k in range(number)
  ]  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
  """The state of a process that has done nothing yet."""
  monkeypatch.setattr(stalls, "_gaps", {})
  monkeypatch.setattr(stalls, "_longest", {})
  monkeypatch.setattr(stalls, "_phases", [])
  monkeypatch.setattr(stalls, "_quiet", 0)


def goes_through(name, gaps):
  """A phase in which so many ticks pass before each sign of life."""
  with stalls.phase(name):
    for gap in gaps:
      stalls._quiet += gap
      stalls.alive()


def test_deadlines(clock):
  """By hand: longest gaps 30, 100 and 20 ticks of 1 s, their median 30; a phase within another counts for itself."""
  limit = lambda name, stall_s=60: stalls.deadline(name, stall_s, 5, 3600)
  assert limit("rollout") == 3600
  for gaps in ([10, 30], [100, 3], [20]):
    goes_through("rollout", gaps)
  assert limit("rollout") == 150 and limit("rollout", 600) == 600 and limit("update") == 3600
  with stalls.phase("evaluate"):
    goes_through("rollout", [30])
  assert limit("evaluate") == 60


def test_a_process_that_stands_still_ends_itself(tmp_path):
  ((_, err),) = ends(run(tmp_path, "still", 1.0), code=processes.EXIT_LOST)
  assert "error: stalled: nothing has moved for 1 s in 'rollout' of step 7" in err and "standing_still" in err
  assert "standing_still" in (tmp_path / "stacks/0.txt").read_text()
  beat = json.loads((tmp_path / "heartbeat.json").read_text())
  assert (beat["step"], beat["phase"], beat["processes"]) == (7, "rollout", [{"process": 0, "step": 7,
                                                                              "phase": "rollout"}])  # fmt: skip


@pytest.mark.parametrize(("what", "deadline"), [("alive", 1.0), ("alive", 0)])
def test_what_moves_or_has_no_deadline_goes_on(tmp_path, what, deadline):
  ((out, _),) = ends(run(tmp_path, what, deadline), code=0)
  assert out == "done\n" and not (tmp_path / "stacks").exists()


def test_the_one_that_stands_still_is_named(tmp_path):
  """Process 1 sleeps, process 0 waits for it: both end, and each leaves its stacks."""
  said = ends(run(tmp_path, "one_still", 3.0, number=2), code=processes.EXIT_LOST)
  for _, err in said:
    assert "stalled: nothing has moved" in err and "; behind: process 1 (" in err and "'rollout' of step 7" in err
  assert "standing_still" in (tmp_path / "stacks/1.txt").read_text()
  assert "exchange" in (tmp_path / "stacks/0.txt").read_text()


def test_whoever_waits_for_one_that_works_has_not_stalled(tmp_path):
  """4 s of verdicts in process 1 alone; the deadline is 2."""
  for out, _ in ends(run(tmp_path, "one_works", 2.0, number=2), code=0):
    assert out.endswith("done\n")
  assert {p["process"] for p in json.loads((tmp_path / "heartbeat.json").read_text())["processes"]} == {0, 1}


def test_stacks_at_any_time():
  """SIGUSR1: the stacks of all threads, and nothing else happens."""
  program = "import time; from fipo_jax import processes; processes.heed_signals(); print(1, flush=True); time.sleep(2)"
  job = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE)  # fmt: skip
  assert job.stdout.readline() == "1\n"
  time.sleep(0.1)
  job.send_signal(signal.SIGUSR1)
  ((_, err),) = ends([job], code=0)
  assert "Current thread" in err and err.count("Thread 0x") >= 1
