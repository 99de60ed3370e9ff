"""A rendered JobSet under faults: its processes run here, on loopback, and a player of the controllers obeys the manifest.

One run is killed, told to stop, frozen, stuck, starved of disk and taken away twenty times in a row, and ends with the
parameters of a run that was left alone.

    python tests/pod_faults_test.py --write     plays it and writes experiments/results/pod_faults.md
"""

import dataclasses
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

if __name__ == "__main__":
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from fipo_jax import processes
from fipo_jax.pods import chips
from fipo_jax.pods.jobs import job, jobset
from fipo_jax.train import checkpoint
from tests import loop_test
from tests.jobset_controller import ROOT, JobSet
from tests.loop_test import lines, model, without_time  # noqa: F401
from tests.processes_test import environment, free_port, steps_logged  # noqa: F401

BUCKET = "gs://bucket"
GRACE_S = 90  # in this test: an iteration takes a second, but this machine may be busy


def manifest(model, folder, topology="v5p-16", slices=1, devices=4, steps=6, **more):  # noqa: F811
  """Rendered for a slice whose chips are devices of the CPU here; the bucket is a folder."""
  values = loop_test.settings(model, f"{folder}/run", steps=steps, **{
    "checkpoint.every": 1, "checkpoint.keep": 2, "mesh.data": slices
  } | more)  # fmt: skip
  values["workdir"] = f"{BUCKET}/run"  # compile_cache stays "": the tests have one, see conftest.py
  hosts = len(chips.describe_topology(topology, slices)) // 4
  overrides = tuple(f"--config.{name}={value}" for name, value in values.items())
  c = loop_test.experiment("experiments/quickstart.py")
  c.update_from_flattened_dict(values)
  options = job.Options(topology=topology, slices=slices, image="local", name="run", grace_s=GRACE_S, restarts=50)
  if devices != 4:  # fewer stand for a machine's chips
    c.batch.micro_rows = values["batch.micro_rows"] * 4 // devices
  made = job.make_job(c, "experiments/quickstart.py", overrides, options, on_pod=True)
  assert made.hosts * slices == hosts
  return yaml.safe_load(jobset.render(made))


def start(what, folder, devices=4):
  """The player, whose pods write to folder/pods and whose bucket is folder."""
  (folder / "pods").mkdir(parents=True, exist_ok=True)
  return JobSet(what, folder / "pods", places={BUCKET: str(folder)}, devices=devices, environment=environment(devices))


def parameters(folder):
  return (folder / "run/export/model.safetensors").read_bytes()


def same_run(folder, other):
  """Bit for bit: what was trained, and what was logged of it, each step once."""
  assert parameters(folder) == parameters(other)
  ours, theirs = (without_time(lines(f / "run")) for f in (folder, other))
  assert ours == theirs


def left_behind(folder):
  """Processes of this machine that work in the folder."""
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      words = (path / "cmdline").read_bytes().decode(errors="replace")
      state = (path / "stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
      continue
    if f"{folder}/" in words and int(path.name) != os.getpid() and state != "Z":
      found.append(words)
  return found


# ---- faults ----


@dataclasses.dataclass
class Fault:
  """what: for the log. moment: "start" (of the processes), "begin" (of the run), "step" or "save". happen(player, pod,
  folder): does it. code: with which the process that ends first, or all, may end. counted: whether a restart counts."""

  what: str
  moment: str
  victim: int
  happen: object
  counted: bool | None = None


def kill(player, pod, folder):
  pod.signal(signal.SIGKILL)


def abort(player, pod, folder):
  pod.signal(signal.SIGABRT)


def crash(player, pod, folder):
  pod.signal(signal.SIGSEGV)


def evict(player, pod, folder):
  player.evict(pod)


def evict_all(player, pod, folder):
  for each in player.pods:
    player.evict(each)


def lose(player, pod, folder):
  player.lose_node(pod)


def freeze(player, pod, folder):
  pod.signal(signal.SIGSTOP)


def stick(player, pod, folder):
  if not player.stick(pod):
    pytest.skip("a thread cannot be held here: no ptrace")


def twice(player, pod, folder):
  """A user who does not wait, or a grace that is over half-way."""
  pod.signal(signal.SIGTERM)
  time.sleep(0.5)
  pod.signal(signal.SIGTERM)


def no_grace(player, pod, folder):
  """Spot, or a grace that is too short: SIGTERM, and SIGKILL before anything could be saved."""
  player.evict(pod)
  pod.kill_at = time.monotonic() + 0.3


def take_away(player, pod, folder):
  player.suspend(True)
  player.until(lambda: not player.pods, 300, "the pods of a suspended JobSet")
  player.suspend(False)


def fill(player, pod, folder):
  """Nothing of any size can be written, until the attempt has ended: as by a disk that is full, which the next is not."""
  for each in player.running:
    hard = resource.prlimit(each.process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(each.process.pid, resource.RLIMIT_FSIZE, (1, hard))


SLOWED_S = 12  # shorter than what counts as silence


def slow(player, pod, folder):
  """A host that stands still and comes back is no fault: nobody may be ended for it."""
  attempt = player.restarts
  pod.signal(signal.SIGSTOP)
  wait = time.monotonic() + SLOWED_S
  player.until(lambda: time.monotonic() > wait, 60)
  pod.signal(signal.SIGCONT)
  now = steps_logged(folder / "run")
  player.until(lambda: steps_logged(folder / "run") > now + 1 or player.state != "running", 300, "a slowed run")
  assert player.restarts == attempt, player.said(attempt)


def wait_for(player, moment, folder, before, draw):
  """Until the run is where the fault should find it."""
  run = folder / "run"
  if moment == "start":
    player.until(lambda: len(player.running) == len(player.pods) > 0, 60)
    late = time.monotonic() + draw.uniform(0, 6)
    player.until(lambda: time.monotonic() > late, 60)
  elif moment == "begin":
    player.until(lambda: "workdir" in player.said(), 300, "the first line")
  elif moment == "step":
    player.until(lambda: steps_logged(run) > before or player.state != "running", 600, "a step")
    late = time.monotonic() + draw.uniform(0, 1.5)
    player.until(lambda: time.monotonic() > late, 60)
  else:
    player.until(lambda: torn(run) or player.state != "running", 600, "a save")


def torn(run):
  folder = checkpoint.folder_of(run)
  try:
    return any("orbax-checkpoint-tmp" in path.name for path in folder.iterdir())
  except OSError:
    return False


@dataclasses.dataclass
class Row:
  """of the log."""

  number: int
  fault: str
  moment: str
  step: int
  codes: str
  rule: str
  counted: int
  resumed: int
  seconds: float


def play(player, faults, folder, seed=0, say=lambda text: None):
  """Does one fault after the other and lets the run end; the log of it."""
  draw, rows = random.Random(seed), []
  for number, fault in enumerate(faults, start=1):
    wait_for(player, fault.moment, folder, steps_logged(folder / "run"), draw)
    assert player.state == "running", (number, fault.what, player.events)
    attempt, counted, ended = player.restarts, player.counted, len(player.ended)
    step, pods = steps_logged(folder / "run"), player.pods
    pod = pods[fault.victim % len(pods)]
    began = time.monotonic()
    fault.happen(player, pod, folder)
    if fault.happen not in (slow, take_away):
      player.until(lambda: player.restarts > attempt or player.state != "running", 600, fault.what)  # noqa: B023
      player.until(lambda: not any(p in player.pods for p in pods), 300, fault.what)  # noqa: B023
    assert player.state == "running", (fault.what, player.message, player.said(attempt)[-3000:])
    newest = max(checkpoint.steps_in(checkpoint.folder_of(folder / "run")), default=0)
    # All but the iteration at work, and the one that was being saved, is kept.
    assert newest >= step - 1, (fault.what, step, newest)
    codes = ", ".join(str(pod.code) for pod in pods) if fault.happen is not slow else "-"
    rule = player.ended[-1][1] if len(player.ended) > ended else "-"
    row = Row(number, fault.what, fault.moment, step, codes, rule, player.counted - counted, newest,
              time.monotonic() - began)  # fmt: skip
    rows.append(row)
    say(row)
    if fault.counted is not None:
      assert row.counted == fault.counted, (fault.what, player.events[-1], player.said(attempt)[-3000:])
  player.run()
  assert player.state == "completed", (player.message, player.events)
  assert not left_behind(folder)
  return rows


QUICK = (
  Fault("kill -9 of one process", "step", 1, kill, True),
  Fault("one pod evicted", "step", 1, evict, False),
  Fault("node lost without notice", "save", 0, lose, False),
)


def test_three_faults_end_like_none(model, tmp_path):  # noqa: F811
  undisturbed, disturbed = tmp_path / "a", tmp_path / "b"
  for folder, faults in ((undisturbed, ()), (disturbed, QUICK)):
    player = start(manifest(model, folder), folder)
    try:
      play(player, faults, folder)
    finally:
      player.close()
  same_run(disturbed, undisturbed)


def test_a_mistake_ends_the_job_at_once_with_its_line(model, tmp_path):  # noqa: F811
  what = manifest(model, tmp_path)
  (container,) = what["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
  container["args"].append("--config.batch.promts=4")
  player = start(what, tmp_path)
  try:
    player.run(300)
  finally:
    player.close()
  assert (player.state, player.restarts) == ("failed", 0) and "exit code 2 matching FailJob" in player.message
  assert "error: --config.batch.promts: no such field" in player.said(0)
  assert not left_behind(tmp_path) and not (tmp_path / "run").exists()
