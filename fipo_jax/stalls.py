"""Whether the run still moves: a deadline for each phase, stacks of a run that stands still, a sign of life on disk.

    workdir/heartbeat.json       time, step, phase, seconds since anything moved, where each process is; once a minute
    workdir/stacks/PROCESS.txt   where every thread was when the run was given up

Processes that die are noticed in `processes`. Here it is those that live and do nothing: a lock, a file system that
does not answer, a collective in which one is missing. What moves says so: a phase that begins or ends and each part of
its work (a look of the sampler, a mini-batch) by `moved`, which all processes do alike; what one process alone hears of
(a verdict, a server's answer) by `alive`. If nothing has moved anywhere for the deadline of the present phase, all
processes write their stacks and end, with a code that lets a scheduler start the run again.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import faulthandler
import json
import os
import socket
import statistics
import tempfile
import threading
from collections.abc import Iterator

from fipo_jax import paths, processes

TICK_S = 1.0  # between two looks at whether anything has moved
REMEMBERED = 50  # of each phase, how long it went without moving at most
HEARTBEAT_S = 60.0
WRITE_S = 10.0  # for the stacks to be written

_lock = threading.Lock()
_phases: list[str] = []  # those under way, the innermost last
_gaps: dict[str, collections.deque[int]] = {}  # of each phase that has ended: its longest gaps, in ticks
_longest: dict[str, int] = {}  # of each phase under way
_step = 0
_moves = _signs = _quiet = 0  # moves, all signs of life, and ticks since the last of those


def moved(step: int | None = None) -> None:
  """A part of the work is done, or a step has begun. All processes of a run say so at the same points."""
  global _moves, _step
  with _lock:
    _moves += 1
    _step = _step if step is None else step
  alive()


def alive() -> None:
  """Something has come that is waited for, maybe in this process alone."""
  global _signs
  with _lock:
    _signs += 1
  _not_quiet()


def _not_quiet() -> None:
  global _quiet
  with _lock:
    if _phases:
      _longest[_phases[-1]] = max(_longest.get(_phases[-1], 0), _quiet)
    _quiet = 0


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
  """Work of this name; `watch` knows how long it may stand still once it has been done before."""
  moved()
  with _lock:
    _phases.append(name)
  try:
    yield
  finally:
    moved()
    with _lock:
      _phases.remove(name)
      _gaps.setdefault(name, collections.deque(maxlen=REMEMBERED)).append(_longest.pop(name, 0))


def place() -> str:
  """Where this process is, as the others read it: signs of life, moves, step, phase."""
  return f"{_signs} {_moves} {_step} {_phases[-1] if _phases else 'between phases'}"


@contextlib.contextmanager
def watch(workdir, *, stall_s: float, factor: float, first_s: float) -> Iterator[None]:
  """Ends the run, with EXIT_LOST, when nothing moves any more.

      deadline = max(stall_s, factor · median of how long this phase stood still at most, of the last 50 times)

  Args:
    stall_s: seconds; 0 = no deadline. first_s: that of a phase that has never ended, which may have to compile.
  """
  over = threading.Event()
  processes.place = place
  processes.before_end = lambda reason: _write_stacks(workdir) if reason.startswith("stalled") else None
  arguments = (workdir, over, stall_s, factor, first_s)
  moved(step=0)
  thread = threading.Thread(target=_watch, args=arguments, name="stalls", daemon=True)
  thread.start()
  try:
    yield
  finally:
    over.set()
    thread.join()
    processes.place, processes.before_end = (lambda: ""), None
    _gaps.clear()


def deadline(name: str, stall_s: float, factor: float, first_s: float) -> float:
  """Seconds for which a phase may stand still."""
  with _lock:
    gaps = list(_gaps.get(name, ()))
  return max(stall_s, factor * statistics.median(gaps) * TICK_S) if gaps else max(stall_s, first_s)


def _watch(workdir, over: threading.Event, stall_s: float, factor: float, first_s: float) -> None:
  """Counts looks and not seconds: a machine that stood still itself has not let the run down."""
  global _quiet
  ticks, others = 0, ""
  while not over.wait(TICK_S):
    ticks += 1
    seen = " ".join(text.split(" ")[1] for text in _others().values())  # signs of life of all the others
    if seen != others:
      others = seen
      _not_quiet()  # processes wait for one another
    with _lock:
      _quiet += 1
      quiet, name, step = _quiet * TICK_S, _phases[-1] if _phases else "between phases", _step
    if ticks % max(round(HEARTBEAT_S / TICK_S), 1) == 0:
      _beat(workdir, step, name, quiet)
    if stall_s and quiet > (limit := deadline(name, stall_s, factor, first_s)):
      reason = (
        f"stalled: nothing has moved for {quiet:.0f} s in {name!r} of step {step} (log.stall_s: {limit:.0f} s here)"
        f"{_behind()}; stacks of all threads are in {paths.of(workdir) / 'stacks'}; {processes.RESUMES}"
      )
      processes.end(reason, processes.EXIT_LOST)


def _others() -> dict[int, str]:
  """What the other processes said last: number, signs, moves, step, phase."""
  said = {k: text for k, text in processes.said().items() if k != processes.index()}
  return {k: text for k, text in said.items() if text.count(" ") >= 4 and text[0].isdigit()}


def _behind() -> str:
  """Who has done less of the common work than others."""
  moves = {k: int(text.split(" ")[2]) for k, text in _others().items()} | {processes.index(): _moves}
  late = [k for k, n in moves.items() if n < max(moves.values())]
  if not late:
    return "" if len(moves) == 1 else "; all processes are at the same place"
  where = processes.said().get(late[0], "").split(" ", 4)
  at = f", in {where[4]!r} of step {where[3]}" if len(where) == 5 else ""
  return f"; behind: {processes.names(late)}{at}"


def _write_stacks(workdir) -> None:
  """Where all threads are, to stderr and to a file of this process."""
  processes.say(f"stacks of all threads of process {processes.index()}:")
  faulthandler.dump_traceback(all_threads=True)
  with tempfile.TemporaryFile("w+") as file:
    faulthandler.dump_traceback(file, all_threads=True)
    file.seek(0)
    stacks = file.read()

  def write():
    paths.write(paths.of(workdir) / "stacks" / f"{processes.index()}.txt", stacks, patient=False)

  writer = threading.Thread(target=write, daemon=True)  # the file system may be what stands still
  writer.start()
  writer.join(WRITE_S)


def _beat(workdir, step: int, name: str, quiet: float) -> None:
  """Writes heartbeat.json, on process 0: whoever cannot log in to the pod sees from it whether the run lives."""
  if not processes.is_first():
    return
  here = {"process": 0, "step": step, "phase": name}
  there = [text.split(" ", 4) for text in _others().values()]
  others = [{"process": k, "step": int(t[3]), "phase": t[4]} for k, t in zip(_others(), there, strict=False)]
  record = {
    "time": datetime.datetime.now().astimezone().isoformat(" ", "seconds"), "host": socket.gethostname(),
    "pid": os.getpid(), "step": step, "phase": name, "moved_s_ago": quiet, "processes": [here, *others],
  }  # fmt: skip
  path = paths.of(workdir) / "heartbeat.json"
  try:
    paths.write(path, json.dumps(record) + "\n", patient=False)
  except OSError as error:
    processes.say(f"{path} cannot be written: {error}")
