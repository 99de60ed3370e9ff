"""A verification process as its parent sees it: started, given a job, ended. `worker` is what runs inside."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from fipo_jax.rewards import sandbox

_HOMES = "fipo-verify-"  # in the system's temporary folder, followed by the run's process id
STARTUP_S = 120.0  # imports of a worker; far beyond what they take


@dataclasses.dataclass(frozen=True)
class Settings:
  """What a worker is started with; see `Scorer`."""

  file: str | None
  timeout_s: float
  weights: dict[str, float]
  env: tuple[str, ...]
  memory_mb: int
  write_mb: int
  network: bool
  processes: bool

  def look_at_file(self) -> str:
    return f"; look at reward.file={self.file}." if self.file else "."

  def limits(self, home: str) -> dict[str, Any]:
    """The fields of `sandbox.Limits`: an empty folder of its own, and for a user's file the folder it lies in."""
    folder = os.path.dirname(self.file) if self.file else home
    shared_memory = ("/dev/shm",) if self.processes else ()
    return dict(
      memory_mb=self.memory_mb, write_mb=self.write_mb, network=self.network, processes=self.processes, folder=folder,
      # Its imports, and some jobs that run to their deadline; it is replaced at half of it.
      cpu_s=int(20 * self.timeout_s + 120), writable=tuple(dict.fromkeys((home, folder, *shared_memory))),
    )  # fmt: skip


class Worker:
  """One process and the job it has in hand."""

  def __init__(self, settings: Settings):
    self.pipe, child = multiprocessing.Pipe()
    self._home = tempfile.mkdtemp(prefix=f"{_HOMES}{os.getpid()}-")
    given = {
      "file": settings.file, "timeout_s": settings.timeout_s, "weights": settings.weights,
      "limits": settings.limits(self._home),
    }  # fmt: skip
    # Not multiprocessing.Process: its spawn runs the parent's main file again in every child, JAX and all.
    code = (
      "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
      "from fipo_jax.rewards import worker; worker.main(int(sys.argv[1]), sys.argv[2])"
    )
    paths = json.dumps([os.path.abspath(path) for path in sys.path])
    self.process = subprocess.Popen(
      [sys.executable, "-c", code, str(child.fileno()), json.dumps(given), paths],
      pass_fds=[child.fileno()],
      stdin=subprocess.DEVNULL,
      # What a user's verifier prints belongs to the log, not to our output; by a pipe, for its files are bounded.
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      env=sandbox.environment(settings.env, self._home),
      start_new_session=True,  # Ctrl-C is the parent's business; workers end when their pipe closes
    )
    child.close()
    self._last_words: collections.deque[bytes] = collections.deque(maxlen=1)
    self._listener = threading.Thread(target=self._listen, daemon=True)
    self._listener.start()
    self._loaded: set[str] = set()
    self._timeout_s = settings.timeout_s
    self.ready, self.started = False, False
    self.batch, self.index, self.job = None, 0, None
    self.deadline = time.monotonic() + STARTUP_S

  def _listen(self) -> None:
    with self.process.stdout as lines:
      for line in lines:
        self._last_words.append(line)
        with contextlib.suppress(OSError):
          os.write(2, line)

  def give(self, batch: Any, index: int, characters: int) -> None:
    """Sends a job. The job's own clock starts when the worker says so, after its imports.

    Raises: ValueError for extras that cannot be sent.
    """
    job = batch.jobs[index]
    try:
      data = pickle.dumps((job.verifier, job.response[-characters:], job.answer, job.extras))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
      raise ValueError(
        f"prompt {job.prompt[-200:]!r}: its extras cannot be sent to a verification process ({error})."
      ) from error
    self.batch, self.index, self.job = batch, index, job
    self.started = job.verifier in self._loaded
    self._loaded.add(job.verifier)
    self.deadline = time.monotonic() + (self._timeout_s if self.started else STARTUP_S)
    with contextlib.suppress(OSError):  # it died while idle; reading from it will say so
      self.pipe.send_bytes(data)

  def rest(self) -> None:
    self.batch, self.job, self.started, self.deadline = None, None, False, math.inf

  def kill(self, patience_s: float = 0.0) -> tuple[int, str]:
    """Ends the process and what it started, by SIGKILL unless it ends by itself; (exit code, its last line if any)."""
    self.pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
      self.process.wait(patience_s)
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(self.process.pid, signal.SIGKILL)
    code = self.process.wait()
    self._listener.join(1.0)
    shutil.rmtree(self._home, ignore_errors=True)
    last = b"".join(self._last_words).decode(errors="replace").strip()
    return code, f" ({last[-200:]})" if last else ""


def remove_left_behind() -> None:
  """The folders of processes whose run was killed: nobody else removes them."""
  for folder in pathlib.Path(tempfile.gettempdir()).glob(f"{_HOMES}*-*"):
    owner = folder.name.removeprefix(_HOMES).partition("-")[0]
    try:
      os.kill(int(owner), 0)
    except ProcessLookupError:
      shutil.rmtree(folder, ignore_errors=True)
    except (ValueError, PermissionError):  # not ours
      pass
