"""A verification process: receives jobs over a pipe, answers with scores. Started by `score.Scorer` only.

Messages to the worker:   (verifier, response, answer, extras); answer is text, or a tuple of texts of which any will do
Messages from the worker: ("ready", [what the system cannot hold back]), or ("broken", text) and nothing more; then for
                          each job ("started",) where its verifier had to be loaded first, and one of
                          ("done", score, accuracy, pred, flags, seconds, spent), ("error", text, seconds, spent),
                          ("limit", text, seconds, spent). spent: it has worked or grown enough to be replaced.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from fipo_jax.rewards import sandbox
from fipo_jax.rewards.outcome import as_score
from fipo_jax.rewards.verifiers import VERIFIERS, Verifier, weighted

PRED_CHARACTERS = 2000  # what is sent back of an answer
JOBS = 5_000  # after so many a worker is replaced: what leaks in a library or a user's file stays small


def main(descriptor: int, settings: str) -> None:
  """Serves jobs until the pipe closes. Runs in the child; `settings` is JSON from the parent."""
  options = json.loads(settings)
  pipe = Connection(descriptor)
  limits = sandbox.Limits(**options["limits"])
  if not options["file"]:
    limits = sandbox.Limits(**options["limits"] | {"readable": sandbox.imports()})
  memory = Memory()
  missing = sandbox.confine(limits)
  try:
    verifiers = rows(options["file"], options["weights"])
    pipe.send(("ready", missing))
    for done in range(1, sys.maxsize):
      serve(pipe, verifiers, limits, options["timeout_s"], memory, spent=done >= JOBS)
  except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone or done with us
    pass
  except ValueError as error:  # a missing package or a bad verifier file: no job can succeed
    pipe.send(("broken", str(error)))


class Memory:
  """The most memory that this process has had.

  Not ru_maxrss on Linux: that begins with what the process that started this one had, a trainer's gigabytes. To be made
  before the process is confined, which closes /proc to it.
  """

  def __init__(self):
    self._status = open("/proc/self/status", "rb", buffering=0) if os.path.exists("/proc/self/status") else None

  def most(self) -> int:
    """Bytes."""
    if self._status:
      for line in os.pread(self._status.fileno(), 8192, 0).splitlines():
        if line.startswith(b"VmHWM:"):
          return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def rows(file: str | None, weights: Mapping[str, float]) -> dict[str, Verifier]:
  """VERIFIERS, and what a run's config adds: "file" and "weighted"."""
  verifiers = dict(VERIFIERS)
  if file:
    verifiers["file"] = Verifier(load_file(file), write=None)
  if weights:
    verifiers["weighted"] = weighted({name: (verifiers[name], weight) for name, weight in weights.items()})
  return verifiers


def serve(
  pipe: Connection, verifiers: dict, limits: sandbox.Limits, timeout_s: float, memory: Memory, *, spent: bool
) -> None:
  """One job: receive, import what it needs, run, send the outcome."""
  name, response, answer, extras = pipe.recv()
  if name not in _loaded:
    try:
      verifiers[name].load()
    except Exception as error:
      raise ValueError(f"verifier {name!r} cannot be loaded: {describe(error)}") from error
    _loaded.add(name)
    pipe.send(("started",))
  # The parent keeps the deadline. This one needs no interpreter, and ends us should the parent have died.
  signal.setitimer(signal.ITIMER_REAL, 2 * timeout_s + 5)
  begin = time.perf_counter()
  try:
    reply = ("done", *judge(verifiers[name].verify, response, answer, extras))
  except (MemoryError, RecursionError) as error:
    spent = True
    reply = ("limit", f"{type(error).__name__} (reward.memory_mb={limits.memory_mb})")
  except (Exception, SystemExit) as error:  # noqa: BLE001 - user code may raise anything; it is reported
    reply = ("error", describe(error))
  signal.setitimer(signal.ITIMER_REAL, 0)
  usage = resource.getrusage(resource.RUSAGE_SELF)
  grown = memory.most() > limits.memory_mb * 1_000_000 / 2
  tired = usage.ru_utime + usage.ru_stime > limits.cpu_s / 2
  pipe.send((*reply, time.perf_counter() - begin, spent or grown or tired))


_loaded: set[str] = set()


def judge(verify: Callable, response: str, answer: str | tuple[str, ...], extras: dict) -> tuple:
  """(score, accuracy, pred, flags) of a response; of several right answers the one that suits it best counts."""
  if isinstance(answer, str):
    return as_score(verify(response, answer, extras), PRED_CHARACTERS)
  found = [as_score(verify(response, one, extras), PRED_CHARACTERS) for one in answer]
  return max(found, key=lambda s: (s[1], s[0]))


def load_file(path: str) -> Callable[..., Any]:
  """The function `verify(response, answer, extras)` of a Python file, which may import its neighbours.

  Raises: ValueError when the file does not run or has no such function.
  """
  sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
  spec = importlib.util.spec_from_file_location("user_verifier", path)
  module = importlib.util.module_from_spec(spec)
  sys.modules["user_verifier"] = module  # dataclasses and pickle look modules up
  try:
    spec.loader.exec_module(module)
  except (Exception, SystemExit) as error:
    raise ValueError(f"reward.file={path}: {describe(error)}") from error
  if not callable(getattr(module, "verify", None)):
    raise ValueError(f"reward.file={path}: no function verify(response, answer, extras) in it.")
  return module.verify


# What the limits of a verification process look like from within, and which field gives more.
_REMEDIES = (
  (PermissionError, "a verification writes to its own folder and TMPDIR alone, has no network and starts no programs: "
   "see reward.network, reward.processes"),
  (MemoryError, "see reward.memory_mb"),
)  # fmt: skip


def describe(error: BaseException) -> str:
  """One line: the error, and where it was raised; for what the limits cause, what would do."""
  trace = error.__traceback__
  while trace is not None and trace.tb_next is not None:
    trace = trace.tb_next
  place = ""
  if trace is not None:
    code = trace.tb_frame.f_code
    place = f" at {os.path.basename(code.co_filename)}:{trace.tb_lineno} in {code.co_name}"
  remedy = next((f" ({text})" for kind, text in _REMEDIES if isinstance(error, kind)), "")
  return " ".join(f"{type(error).__name__}: {error}"[:500].split()) + place + remedy
