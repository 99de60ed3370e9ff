"""A rendered JobSet under faults: its processes run here, on loopback; a player of the controllers obeys the manifest.

One run is killed, told to stop, frozen, stuck, starved of disk and taken away twenty times in a row, and ends with the
parameters of a run that was left alone.

    python tests/pod_faults_test.py --write [FOLDER]     plays it and writes experiments/results/pod_faults.md

The latter takes half an hour of a machine that is idle; with a FOLDER it goes on where it was ended.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable

import pytest
import yaml

if __name__ == "__main__":
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
  from tests import conftest  # as for the tests: a cache of programs, flags of XLA

from fipo_jax.pods import chips
from fipo_jax.pods.jobs import job, jobset
from fipo_jax.train import checkpoint
from tests import loop_test
from tests.jobset_controller import ROOT, JobSet, Pod
from tests.loop_test import lines, model, without_time  # noqa: F401
from tests.processes_test import environment, free_port, steps_logged  # noqa: F401

BUCKET = "gs://bucket"
GRACE_S = 60  # in this test: an iteration takes a second, but the machine may be busy
UNSEEN_S = 45  # until a node that is gone is known to be: longer than the other processes take to notice
STALL_S = 45  # until a run that stands still is given up; while it begins, an hour
SLOWED_S = 12  # shorter than what counts as silence


def manifest(model, folder, topology="v5p-16", slices=1, devices=1, steps=6, **more):  # noqa: F811
  """Rendered for a slice whose chips are devices of the CPU here; the bucket is a folder."""
  values = loop_test.settings(model, f"{folder}/run", steps=steps, **{
    "checkpoint.every": 1, "checkpoint.keep": 2, "mesh.data": slices, "log.stall_s": STALL_S,
  } | more)  # fmt: skip
  values["workdir"] = f"{BUCKET}/run"  # compile_cache stays "": the tests have one, see conftest.py
  hosts = len(chips.describe_topology(topology, slices)) // 4
  overrides = tuple(f"--config.{name}={value}" for name, value in values.items())
  c = loop_test.experiment("experiments/quickstart.py")
  c.update_from_flattened_dict(values)
  options = job.Options(topology=topology, slices=slices, image="local", name="run", grace_s=GRACE_S, restarts=50)
  if devices != 4:  # of a machine's chips, which these stand for
    c.batch.micro_rows = values["batch.micro_rows"] * 4 // devices
  made = job.make_job(c, "experiments/quickstart.py", overrides, options, on_pod=True)
  assert made.hosts * slices == hosts
  return yaml.safe_load(jobset.render(made))


def start(what, folder, devices=1):
  """The player, whose pods write to folder/pods and whose bucket is folder."""
  (folder / "pods").mkdir(parents=True, exist_ok=True)
  return JobSet(what, folder / "pods", places={BUCKET: str(folder)}, devices=devices, environment=environment(devices))


def parameters(folder):
  return (folder / "run/export/model.safetensors").read_bytes()


def same_run(folder, other):
  """Bit for bit: what was trained, and what was logged of it, each step once.

  But for the sampler's own log-probs, which nothing is trained on: of responses that were begun before a stop they
  differ in their last bits, for what is cached of them is made again by a prefill.
  """
  assert parameters(folder) == parameters(other)
  ours, theirs = (without_time(lines(f / "run")) for f in (folder, other))
  for mine, its in zip(ours, theirs, strict=True):
    for name in [name for name in its if name.startswith("sampler_")]:
      assert mine.pop(name) == pytest.approx(its.pop(name), abs=1e-6), name
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
  """what: for the log. moment: when it comes: "start" (of the processes), "begin" (of the run), "step",
  "later" (some steps on) or "save". counted: whether a restart counts then; None: as it comes.
  happen(player, pod, folder): does it to the pod of that number."""

  what: str
  moment: str
  victim: int
  happen: Callable[[JobSet, Pod, pathlib.Path], None]
  counted: bool | None


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
  player.lose_node(pod, UNSEEN_S)


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
  """SIGTERM, and SIGKILL before anything could be saved."""
  for each in player.pods:
    player.evict(each)
    each.kill_at = time.monotonic() + 0.3


def take_away(player, pod, folder):
  player.suspend(True)
  player.until(lambda: not player.pods, 300, "the pods of a suspended JobSet")
  player.suspend(False)


def fill(player, pod, folder):
  """No file can grow, until the processes have ended: as on a full disk, on which there is room again then."""
  for each in player.running:
    hard = resource.prlimit(each.process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(each.process.pid, resource.RLIMIT_FSIZE, (1, hard))


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
  run, over, old = folder / "run", lambda: player.state != "running", torn(folder / "run")  # old: by an earlier kill
  wait = lambda seconds: time.monotonic() + draw.uniform(0, seconds)
  if moment == "start":
    player.until(lambda: len(player.running) == len(player.pods) > 0, 60)
    at = wait(6)
  elif moment == "begin":
    player.until(lambda: "workdir" in player.said(), 600, "the first line")
    at = wait(3)
  elif moment in ("step", "later"):
    enough = before + (3 if moment == "later" else 1)
    player.until(lambda: steps_logged(run) >= enough or over(), 600, "a step")
    at = wait(1.5)
  else:
    player.until(lambda: torn(run) - old or over(), 600, "a save")
    at = 0
  player.until(lambda: time.monotonic() > at, 60)


def torn(run):
  """Names of saves under way, or cut off."""
  try:
    return {path.name for path in checkpoint.folder_of(run).iterdir() if "orbax-checkpoint-tmp" in path.name}
  except OSError:
    return set()


@dataclasses.dataclass
class Row:
  """Of the log. step: logged when the fault came. codes: of the pods that it ended. resumed: newest checkpoint after
  it. seconds: until all of them were gone."""

  number: int
  fault: str
  moment: str
  step: int
  codes: str
  rule: str
  counted: bool | None
  resumed: int
  seconds: float


def play(player, faults, folder, say=lambda row: None, first=1):
  """Does one fault after the other, which are numbered from `first`, and lets the run end; the log of it."""
  draw, rows = random.Random(first), []
  for number, fault in enumerate(faults, start=first):
    wait_for(player, fault.moment, folder, steps_logged(folder / "run"), draw)
    assert player.state == "running", (number, fault.what, player.message, player.events)
    restarts, counted, ended, start = player.restarts, player.counted, len(player.ended), player.starts
    step, pods = steps_logged(folder / "run"), player.pods
    began = time.monotonic()
    fault.happen(player, pods[fault.victim], folder)
    if fault.happen not in (slow, take_away):
      over = lambda n=restarts, old=pods: player.restarts > n and not any(p in player.pods for p in old)
      player.until(lambda over=over: over() or player.state != "running", 600, fault.what)
    else:
      assert player.restarts == restarts
    assert player.state == "running", (fault.what, player.message, player.said(start)[-3000:])
    newest = max(checkpoint.steps_in(checkpoint.folder_of(folder / "run")), default=0)
    # Kept is all but the iteration at work and one whose save was under way.
    assert newest >= step - 1, (fault.what, step, newest)
    fell = len(player.ended) > ended
    row = Row(
      number, fault.what, fault.moment, step, ", ".join(str(pod.code) for pod in pods) if fell else "",
      player.ended[-1][1] if fell else "", player.counted > counted if fell else None, newest, time.monotonic() - began,
    )  # fmt: skip
    rows.append(row)
    say(row)
    if fault.counted is not None:
      assert row.counted == fault.counted, (fault.what, player.events[-1], player.said(start)[-3000:])
  player.run()
  assert player.state == "completed", (player.message, player.events)
  assert not left_behind(folder)
  return rows


TWENTY = (
  Fault("kill -9 of process 1", "step", 1, kill, True),
  Fault("kill -9 of process 0, which holds the others together", "step", 0, kill, True),
  Fault("pod of process 1 evicted", "step", 1, evict, False),
  Fault("main thread of process 1 stands still, the others go on", "later", 1, stick, True),
  Fault("all pods evicted", "step", 0, evict_all, False),
  Fault("kill -9 of process 1", "save", 1, kill, True),
  Fault("kill -9 of process 0", "save", 0, kill, True),
  Fault("kill -9 of process 1", "start", 1, kill, True),
  Fault("pod of process 1 evicted", "start", 1, evict, False),
  Fault("all pods evicted", "begin", 0, evict_all, False),
  Fault("Kueue takes the chips away, and gives them back", "step", 0, take_away, None),
  Fault("process 1 frozen", "step", 1, freeze, True),
  Fault("process 0 frozen", "step", 0, freeze, True),
  Fault("node of process 1 lost without notice, known 45 s later", "step", 1, lose, None),
  Fault("host of process 1 stands still for 12 s, and goes on", "step", 1, slow, None),
  Fault("nothing can be written any more (RLIMIT_FSIZE)", "step", 0, fill, True),
  Fault("process 0 aborts", "step", 0, abort, True),
  Fault("process 1 has a segmentation fault", "step", 1, crash, True),
  Fault("SIGTERM twice to process 1", "step", 1, twice, False),
  Fault("Spot: SIGTERM to all, SIGKILL 0.3 s later", "step", 0, no_grace, False),
)
QUICK = (TWENTY[0], TWENTY[2], TWENTY[6])


def undisturbed_and(model, folder, faults, say=lambda row: None, first=1, **how):  # noqa: F811
  """The same run twice, once with faults; the log."""
  devices, rows = how.get("devices", 1), []
  for name, some in (("undisturbed", ()), ("disturbed", faults)):
    if name == "undisturbed" and (folder / name / "run/result.json").exists():
      continue  # of the same page, which was begun before
    player = start(manifest(model, folder / name, **how), folder / name, devices)
    try:
      rows = play(player, some, folder / name, say, first)
    finally:
      player.close()
  same_run(folder / "disturbed", folder / "undisturbed")
  return rows


@pytest.mark.slow
def test_three_faults_end_like_none(model, tmp_path):  # noqa: F811
  undisturbed_and(model, tmp_path, QUICK, steps=8)


@pytest.mark.slow
@pytest.mark.parametrize("how", [
  {"topology": "v5p-32", "rollout.slots": 16},  # four processes
  dict(topology="v5p-8", slices=2),  # two Jobs of one process
])  # fmt: skip
def test_four_hosts_and_two_slices(model, tmp_path, how):  # noqa: F811
  undisturbed_and(model, tmp_path, QUICK[:2], steps=6, **how)


@pytest.mark.slow
def test_twenty_faults_in_a_row_end_like_none(model, tmp_path):  # noqa: F811
  assert len(undisturbed_and(model, tmp_path, TWENTY, steps=60)) == 20


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
  assert "error: --config.batch.promts: no such field" in player.said(1)
  assert not left_behind(tmp_path) and not (tmp_path / "run").exists()


# ---- the log ----

PAGE = """# Twenty faults on one run

Made by `python tests/pod_faults_test.py --write`: {day}. The manifest is that of `launch/pod.py --topology=v5p-16`;
its two processes ran on this machine over loopback, with one device of the CPU each, `checkpoint.every=1`, a grace of
{grace} s, `log.stall_s={stall}`. `tests/jobset_controller.py` obeyed the manifest: no part of Kubernetes, no TPU.

The run of {steps} steps ended with the weights and the log of a run that was left alone, **bit for bit**. What was done
again after a fault was at most the step at work and one whose save was under way. No process was left behind.

Step: the newest in the log when the fault came. Codes: exit codes of the pods, in their order. Rule: the one of the
manifest's failure policy that applied; `stopped` (code 75, or a pod that Kubernetes took away, whatever its code) is
not counted, `default` (all else) is; empty: nothing was started again by a rule. Seconds: until all of them were gone,
the next ones not yet begun; a frozen process is gone only after the grace. An abort of one of many is 76, see
docs/exit_codes.md.
Resumed from: the newest checkpoint.

| | fault | when | step | exit codes | rule | counts | resumed from | seconds |
|---|---|---|---|---|---|---|---|---|
"""


def write(page: pathlib.Path, folder: pathlib.Path) -> None:
  """Plays the twenty, or what is left of them in the folder, prints each, and writes the page."""
  exported, log, steps = folder / "model/export", folder / "rows.jsonl", 60
  if not exported.exists():
    shutil.copytree(loop_test.GOLDEN, exported)
    loop_test.characters(loop_test.ALPHABET).save(exported)
  rows = [Row(**json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []

  def say(row):
    print(row, flush=True)
    with open(log, "a") as file:
      file.write(json.dumps(dataclasses.asdict(row)) + "\n")

  rows += undisturbed_and(exported, folder, TWENTY[len(rows):], say, first=len(rows) + 1, steps=steps)
  text = PAGE.format(day=datetime.date.today(), grace=GRACE_S, stall=STALL_S, steps=steps)
  for r in rows:
    counts = {True: "yes", False: "no", None: ""}[r.counted]
    text += (
      f"| {r.number} | {r.fault} | {r.moment} | {r.step} | {r.codes} | {r.rule} | {counts} | {r.resumed} | "
      f"{r.seconds:.0f} |\n"
    )
  page.write_text(text)


if __name__ == "__main__":
  if sys.argv[1:2] != ["--write"] or len(sys.argv) > 3:
    sys.exit("usage: python tests/pod_faults_test.py --write [FOLDER]")
  own = pathlib.Path(sys.argv[2] if sys.argv[2:] else tempfile.mkdtemp(prefix="pod_faults_"))
  try:
    write(ROOT / "experiments/results/pod_faults.md", own)
  finally:
    conftest.pytest_unconfigure()
