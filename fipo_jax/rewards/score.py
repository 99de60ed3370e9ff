"""Scores responses in separate processes, each job under a hard deadline; and the overlong penalty."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from fipo_jax.rewards.worker import BUILT_IN

RESPONSE_CHARACTERS = 20_000  # the end of a response; no verifier needs more
STARTUP_S = 120.0  # imports of a worker; far beyond what they take


@dataclasses.dataclass(frozen=True)
class Job:
  """A response to verify. verifier: a row of VERIFIERS, or "file". prompt: only for error messages."""

  verifier: str
  response: str
  answer: str
  extras: dict[str, Any] = dataclasses.field(default_factory=dict)
  prompt: str = ""


@dataclasses.dataclass(frozen=True)
class Scored:
  """score, accuracy, pred: as in `Score`. flags: "timeout" or "error" when there is none; message says why."""

  score: float
  accuracy: float
  pred: str | None
  flags: tuple[str, ...] = ()
  message: str = ""


def overlong_penalty(length: int, *, max_tokens: int, buffer_tokens: int, factor: float) -> float:
  """Soft punishment of responses that come near the length limit; added to the reward, never to accuracy.

      penalty = min(0, -(length - (max_tokens - buffer_tokens)) / buffer_tokens * factor)

  0 up to max_tokens - buffer_tokens, then linear, -factor at max_tokens; in float32. buffer_tokens = 0 turns it off.
  (The reference divides by zero there: 0 below the limit and NaN at it.)
  Args: length, max_tokens, buffer_tokens: tokens of the response.
  Source: arXiv 2503.14476 eq. 13.
  """
  if buffer_tokens == 0:
    return 0.0
  exceed = np.float32(length - (max_tokens - buffer_tokens))
  return min(0.0, float(-exceed / np.float32(buffer_tokens) * np.float32(factor)))


class Scorer:
  """A pool of verification processes.

  Each job has `timeout_s` seconds from the moment its worker starts it; a worker over its deadline is killed and
  replaced, whatever it is doing (a backtracking regex, SymPy, an endless loop). Processes are fresh interpreters, not
  forks: the parent runs JAX, whose threads do not survive a fork, and the workers never import it.

  timeouts, errors: how many jobs ended so.  first_error: message of the first error, "" if none.
  """

  def __init__(
    self,
    *,
    workers: int,
    timeout_s: float,
    verifier_file: str | None,
    on_error: str,
    wrong_score: float,
  ):
    """Args:
      workers: processes; they start with the first call and are kept.
      timeout_s: seconds a job may run.
      verifier_file: Python file with verify(response, answer, extras), for jobs with verifier "file".
      on_error: "score_wrong" gives a failed job `wrong_score` and accuracy 0; "stop" raises instead. A timeout is a
        property of the response, not a mistake in the verifier: it never stops the run.
      wrong_score: score of a job that failed or ran out of time.
    Raises: ValueError for a bad setting; OSError or ValueError for an unusable verifier file.
    """
    if workers < 1:
      raise ValueError(f"reward.workers={workers} must be at least 1.")
    if not (math.isfinite(timeout_s) and timeout_s > 0):
      raise ValueError(f"reward.timeout_s={timeout_s} must be a positive number of seconds.")
    if on_error not in ("score_wrong", "stop"):
      raise ValueError(f"reward.on_error={on_error!r} must be 'score_wrong' or 'stop'.")
    if verifier_file:
      _check_source(verifier_file)
    self._count, self._timeout_s, self._file = workers, timeout_s, verifier_file
    self._on_error, self._wrong_score = on_error, wrong_score
    self._workers: list[_Worker] = []
    self.timeouts, self.errors, self.first_error = 0, 0, ""

  def __enter__(self) -> Scorer:
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def start(self) -> None:
    """Starts the workers and waits for the first: shows a broken verifier file before a run begins.

    Raises: ValueError naming the file and what is wrong with it.
    """
    self._fill(self._count)
    if not self._workers[0].ready:
      self._receive(self._workers[0], wait_s=STARTUP_S)

  def score(self, jobs: Sequence[Job]) -> list[Scored]:
    """Scores all jobs, in their order.

    Raises: ValueError for an unknown verifier or a broken verifier file, and, with on_error="stop", for the first
      error, naming function, error and prompt.
    """
    for job in jobs:
      if job.verifier not in BUILT_IN and not (job.verifier == "file" and self._file):
        known = ", ".join([*BUILT_IN, *(["file"] if self._file else [])])
        raise ValueError(f"verifier={job.verifier!r} is not one of: {known}.")
    self._fill(min(self._count, len(jobs)))
    waiting = collections.deque(enumerate(jobs))
    results: list[Scored | None] = [None] * len(jobs)
    done = 0
    try:
      while done < len(jobs):
        for worker in self._workers:
          if worker.ready and worker.job is None and waiting:
            worker.give(*waiting.popleft())
        for worker in self._wait():
          index, job = (worker.index, worker.job) if worker.job is not None else (None, None)
          outcome = self._receive(worker, wait_s=0.0)
          if outcome is not None and index is not None:
            results[index] = self._judge(job, outcome)
            done += 1
    finally:  # after an error or Ctrl-C, a late answer must not meet the next batch
      for worker in [w for w in self._workers if w.job is not None]:
        worker.kill()
        self._workers.remove(worker)
    return results

  def close(self) -> None:
    """Ends the workers. The scorer may be used again: it starts new ones."""
    for worker in self._workers:
      worker.kill()
    self._workers = []

  def _fill(self, count: int) -> None:
    while len(self._workers) < count:
      self._workers.append(_Worker(self._file, self._timeout_s))

  def _replace(self, i: int) -> None:
    self._workers[i].kill()
    self._workers[i] = _Worker(self._file, self._timeout_s)

  def _wait(self) -> list[_Worker]:
    """Workers with something to say, or over their deadline; sleeps until there is one."""
    busy = [w for w in self._workers if w.job is not None or not w.ready]
    now = time.monotonic()
    patience = max(0.0, min(w.deadline for w in busy) - now)
    heard = multiprocessing.connection.wait([w.pipe for w in busy], timeout=patience)
    now = time.monotonic()
    return [w for w in busy if w.pipe in heard or w.deadline <= now]

  def _receive(self, worker: _Worker, wait_s: float) -> tuple | None:
    """Reads one message; ("done" | "error" | "timeout", ...) when it ends a job, None while it goes on."""
    i = self._workers.index(worker)
    try:
      if not worker.pipe.poll(wait_s):  # over the deadline
        if worker.started:
          self._replace(i)
          return ("timeout", f"no answer within reward.timeout_s={self._timeout_s:g} s")
        raise ValueError(
          f"a verification process did not get ready within {STARTUP_S:g} s"
          + (f"; look at reward.file={self._file}." if self._file else ".")
        )
      message = worker.pipe.recv()
    except (EOFError, OSError):
      return self._bury(i)
    if message[0] == "ready":
      worker.ready, worker.deadline = True, math.inf
    elif message[0] == "started":
      worker.started, worker.deadline = True, time.monotonic() + self._timeout_s
    elif message[0] == "broken":
      worker.kill()
      self._workers.remove(worker)
      raise ValueError(message[1])
    else:
      worker.rest()
      return message
    return None

  def _bury(self, i: int) -> tuple:
    """A worker died: with a job in hand that job is an error, before it was ready the verifier file is to blame."""
    worker = self._workers[i]
    code = worker.kill(patience_s=1.0)  # a closed pipe comes a moment before the exit code
    if not worker.ready:
      del self._workers[i]
      raise ValueError(
        f"a verification process ended with exit code {code} before it was ready"
        + (f"; look at reward.file={self._file}." if self._file else ".")
      )
    self._workers[i] = _Worker(self._file, self._timeout_s)
    return ("error", f"the verification process ended with exit code {code}")

  def _judge(self, job: Job, outcome: tuple) -> Scored:
    if outcome[0] == "done":
      return Scored(score=outcome[1], accuracy=outcome[2], pred=outcome[3])
    kind, message = outcome
    if kind == "timeout":
      self.timeouts += 1
    else:
      self.errors += 1
      where = f"verify in {self._file}" if job.verifier == "file" else f"verifier {job.verifier!r}"
      message = f"{where}: {message} (answer {job.answer!r:.80}, prompt {job.prompt[-200:]!r})"
      self.first_error = self.first_error or message
      if self._on_error == "stop":
        raise ValueError(f"{message}; reward.on_error='score_wrong' would go on.")
    return Scored(self._wrong_score, 0.0, None, (kind,), message)


class _Worker:
  """One process and the job it has in hand."""

  def __init__(self, verifier_file: str | None, timeout_s: float):
    self.pipe, child = multiprocessing.Pipe()
    settings = {"file": verifier_file, "timeout_s": timeout_s}
    # Not multiprocessing.Process: its spawn runs the parent's main file again in every child, JAX and all.
    code = (
      "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
      "from fipo_jax.rewards import worker; worker.main(int(sys.argv[1]), sys.argv[2])"
    )
    paths = json.dumps([os.path.abspath(path) for path in sys.path])
    self.process = subprocess.Popen(
      [sys.executable, "-c", code, str(child.fileno()), json.dumps(settings), paths],
      pass_fds=[child.fileno()],
      stdin=subprocess.DEVNULL,
      stdout=2,  # what a user's verifier prints belongs to the log, not to our output
      # A user's verifier that imports JAX must not take the accelerator from the run.
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
      start_new_session=True,  # Ctrl-C is the parent's business; workers end when their pipe closes
    )
    child.close()
    self.ready, self.started = False, False
    self.index, self.job = 0, None
    self.deadline = time.monotonic() + STARTUP_S

  def give(self, index: int, job: Job) -> None:
    """Sends a job. The job's own clock starts when the worker says so, after its imports."""
    self.index, self.job, self.started = index, job, False
    self.deadline = time.monotonic() + STARTUP_S
    try:
      self.pipe.send((job.verifier, job.response[-RESPONSE_CHARACTERS:], job.answer, job.extras))
    except OSError:
      pass  # it died while idle; reading from it will say so
    except (pickle.PicklingError, AttributeError, TypeError) as error:
      raise ValueError(
        f"prompt {job.prompt[-200:]!r}: its extras cannot be sent to a verification process ({error})."
      ) from error

  def rest(self) -> None:
    self.job, self.started, self.deadline = None, False, math.inf

  def kill(self, patience_s: float = 0.0) -> int:
    """Ends the process for good, by SIGKILL unless it ends by itself; returns its exit code."""
    self.pipe.close()
    try:
      return self.process.wait(patience_s)
    except subprocess.TimeoutExpired:
      self.process.kill()
      return self.process.wait()


def _check_source(path: str) -> None:
  """The file can be read and is Python; what it does is seen when a worker loads it."""
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f"reward.file={path}: no such file.")
  try:
    compile(pathlib.Path(path).read_bytes(), path, "exec")
  except (SyntaxError, ValueError) as error:
    raise ValueError(f"reward.file={path}: not valid Python ({error}).") from error
