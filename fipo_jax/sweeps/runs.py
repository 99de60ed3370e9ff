"""Running the jobs of a sweep, several at a time, each a process of its own; and which of them are finished."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import queue
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from fipo_jax.sweeps.plan import ROOT, Job


def commands(jobs: list[Job]) -> list[str]:
  """A shell line for each job. Raises ValueError for a value that does not fit on a line."""
  for job in jobs:
    for flag in job.flags:
      if "\n" in flag or "\r" in flag:
        raise ValueError(f"{job.name}: {flag.partition('=')[0]} has a line break, so no line can hold its command.")
  return [shlex.join(job.command) for job in jobs]


def execute(jobs: list[Job], *, slots: int) -> int:
  """Runs the jobs that are not finished, `slots` at a time, with a line for each; returns how many failed."""
  waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
  for job in jobs:
    if job.seed >= 0 and finished(job):
      print(f"{job.name}: {describe(result_of(job))} (was finished)", flush=True)
    else:
      waiting.put(job)
  slots = min(slots, waiting.qsize())
  running: set[subprocess.Popen] = set()
  stopped, failures = threading.Event(), []

  def work(slot: int) -> None:
    limit_cpus(slot, slots)
    while not stopped.is_set():
      try:
        job = waiting.get_nowait()
      except queue.Empty:
        return
      try:
        said = run_one(job, running)
      except OSError as e:
        said = f"failed: {e}"
      if stopped.is_set():
        return
      if said.startswith("failed"):
        failures.append(job)
      print(f"{job.name}: {said}", flush=True)

  with stop_signals(lambda: (stopped.set(), [process.terminate() for process in list(running)])):
    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(slots)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  if stopped.is_set():
    raise ValueError("stopped; the same command goes on from here.")
  return len(failures)


def run_one(job: Job, running: set[subprocess.Popen]) -> str:
  """Runs a job to its end; returns what is to be said of it, beginning with "failed" if it did."""
  job.workdir.mkdir(parents=True, exist_ok=True)
  (job.workdir / "versions.json").write_text(json.dumps(versions()) + "\n")
  path = job.workdir / "output.txt"
  with open(path, "ab") as output:
    output.write(f"$ {shlex.join(job.command)}\n".encode())
    output.flush()
    start = output.tell()
    process = subprocess.Popen(job.command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    running.add(process)
    code = process.wait()
    running.discard(process)
  if code:
    said = path.read_bytes()[start:].decode(errors="replace").strip().splitlines() or ["no output"]
    errors = [line for line in said if line.startswith("error: ")] or said
    why = f"signal {-code}, after: " if code < 0 else ""
    return f"failed: {why}{errors[-1]} (see {path})"
  if job.seed < 0:
    return f"made in {job.workdir}"
  if ended := result_of(job).get("ended"):
    return f"failed: ended early: {ended} (see {path})"
  if not finished(job):
    return f"failed: {job.workdir}/result.json is not of this config and steps={job.cfg.steps}; use another workdir."
  return describe(result_of(job))


def limit_cpus(slot: int, slots: int) -> None:
  """Gives the calling thread, and so the processes it starts, its share of the CPUs.

  Two runs that both spread over all cores are slower than two with half of them each.
  """
  if not hasattr(os, "sched_setaffinity"):
    return
  cpus = sorted(os.sched_getaffinity(0))
  if 1 < slots <= len(cpus):
    os.sched_setaffinity(0, cpus[slot * len(cpus) // slots : (slot + 1) * len(cpus) // slots])


@contextlib.contextmanager
def stop_signals(stop: Callable[[], Any]):
  """Calls `stop` on Ctrl-C and SIGTERM while the block runs, so that no run outlives the sweep."""
  names = (signal.SIGINT, signal.SIGTERM)
  before = [signal.signal(name, lambda *_: stop()) for name in names]
  try:
    yield
  finally:
    for name, handler in zip(names, before, strict=True):
      signal.signal(name, handler)


def finished(job: Job) -> bool:
  """Whether the job's workdir holds the result of exactly its config."""
  from fipo_jax import changes

  try:
    result, old = result_of(job), json.loads((job.workdir / "config.json").read_text())
  except (OSError, ValueError):  # none yet, or a write that was cut short
    return False
  found = changes.compare(old, json.loads(job.cfg.to_json()))
  differ = [*found.altering, *(f for f in found.free if not changes.within(f, changes.WHERE_AND_HOW_FAST))]
  return result.get("steps") == job.cfg.steps and not differ


def result_of(job: Job) -> dict[str, Any]:
  return json.loads((job.workdir / "result.json").read_text())


def describe(result: dict[str, Any]) -> str:
  return (
    f"accuracy {result['accuracy_before']:.3f} -> {result['accuracy_after']:.3f}, "
    f"length {result['length_before']:.1f} -> {result['length_after']:.1f}, {result['seconds']:.0f} s"
  )


def versions() -> dict[str, Any]:
  """What the numbers of a run may depend on beside its config."""
  try:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
  except OSError:  # no git here
    commit = ""
  cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  return {
    "jax": importlib.metadata.version("jax"), "python": platform.python_version(), "cpus": cpus, "commit": commit,
  }  # fmt: skip
