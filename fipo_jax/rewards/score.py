"""Scores responses in separate processes, each job under a hard deadline; and the overlong penalty."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import math
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fipo_jax import stalls
from fipo_jax.rewards import process
from fipo_jax.rewards.process import STARTUP_S, Settings, Worker
from fipo_jax.rewards.verifiers import CONFIGURED, VERIFIERS, Verifier, weighted

_FILE = Verifier(verify=lambda *_: None, write=None)  # stands for a user's function, which only workers load


@dataclasses.dataclass(frozen=True)
class Job:
  """A response to verify. verifier: a row of VERIFIERS, "file" or "weighted". prompt: only for error messages.

  answer: the ground truth; a tuple holds several, of which any is right. key: (prompt's id, number of the sample).
  """

  verifier: str
  response: str
  answer: str | tuple[str, ...]
  extras: dict[str, Any] = dataclasses.field(default_factory=dict)
  prompt: str = ""
  key: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Scored:
  """score, accuracy, pred: as in `Score`, pred None when no answer was found.

  flags: "timeout" (out of time or memory) or "error" when there is no verdict, message says why; "unread" when the
  verifier does not read answers. seconds: what the verdict took.
  """

  score: float
  accuracy: float
  pred: str | None
  flags: tuple[str, ...] = ()
  message: str = ""
  seconds: float = dataclasses.field(default=0.0, compare=False)


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
  replaced, whatever it is doing (a backtracking regex, SymPy, an endless loop), and so is one that has grown large or
  served long. Processes are fresh interpreters, not forks: the parent runs JAX, whose threads do not survive a fork,
  and the workers never import it. What they may do is in `sandbox`. A thread of this process hands out the jobs, so
  that batches can be submitted while others are still being scored.

  timeouts, errors: how many jobs ended so.  first_error: message of the first error, "" if none.
  known: of a replay: jobs by key that ended without a verdict then, with "timeout" or "error"; they do so again, and
  no process is asked.
  """

  def __init__(
    self,
    *,
    workers: int,
    timeout_s: float,
    verifier_file: str | None,
    on_error: str,
    wrong_score: float,
    env: Sequence[str] = (),
    network: bool = False,
    processes: bool = False,
    memory_mb: int = 4096,
    write_mb: int = 64,
    response_characters: int = 0,
    weights: Mapping[str, float] | None = None,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
  ):
    """Args:
      workers: processes; they start when jobs need them and are kept. 0 = one per core, at most 32.
      timeout_s: seconds a job may run.
      verifier_file: Python file with verify(response, answer, extras), for jobs with verifier "file".
      on_error: "score_wrong" gives a failed job `wrong_score` and accuracy 0; "stop" raises instead. A timeout is a
        property of the response, not a mistake in the verifier: it never stops the run.
      wrong_score: score of a job that failed or ran out of time.
      env, network, processes, write_mb: what a verifier file may have besides, see `sandbox`: names of environment
        variables, sockets, programs, 10⁶ bytes of a file. memory_mb: of each process, 10⁶ bytes.
      response_characters: how much of the end of a response a verifier sees; 0 = all.
      weights: parts of the verifier "weighted", and their weights.
      say: hears, once each, the first error and what the system cannot hold back.
    Raises: ValueError for a bad setting; OSError or ValueError for an unusable verifier file.
    """
    if workers < 0:
      raise ValueError(f"reward.workers={workers} must be at least 1, or 0 for one per core.")
    if not (math.isfinite(timeout_s) and timeout_s > 0):
      raise ValueError(f"reward.timeout_s={timeout_s} must be a positive number of seconds.")
    if on_error not in ("score_wrong", "stop"):
      raise ValueError(f"reward.on_error={on_error!r} must be 'score_wrong' or 'stop'.")
    for name in env:
      if name not in os.environ:
        raise ValueError(f"reward.env: {name!r} is not in the environment; set it, or leave it out.")
    if verifier_file:
      _check_source(verifier_file)
    self._count = workers or min(os.cpu_count() or 1, 32)
    self._on_error, self._wrong_score, self._characters = on_error, wrong_score, response_characters
    self._settings = Settings(
      file=os.path.abspath(verifier_file) if verifier_file else None, timeout_s=timeout_s,
      weights=dict(weights or {}), env=tuple(env) if verifier_file else (), memory_mb=memory_mb,
      write_mb=write_mb if verifier_file else 0, network=network and bool(verifier_file),
      processes=processes and bool(verifier_file),
    )  # fmt: skip
    has = {"file": verifier_file, "weighted": weights}
    self.verifiers = (*VERIFIERS, *(name for name in CONFIGURED if has[name]))
    for name in self._settings.weights:
      if name not in self.verifiers or name == "weighted":
        raise ValueError(f"reward.weights: {name!r} is not one of: {', '.join(self.verifiers[: -1])}.")
    self._say, self._said_missing = say, False
    self._workers: list[Worker] = []
    self._waiting: collections.deque[tuple[_Batch, int]] = collections.deque()
    self._starting: list[_Batch] = []  # who only waits for a worker to be ready
    self._lock, self._thread = threading.Lock(), None
    self._wake, self._woken = multiprocessing.Pipe(duplex=False)[::-1]
    self._closing = False
    self.timeouts, self.errors, self.first_error = 0, 0, ""
    self.known: dict[tuple[int, int], str] = {}

  def __enter__(self) -> Scorer:
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def start(self) -> None:
    """Starts the workers and waits for the first: shows a broken verifier file before a run begins.

    Raises: ValueError naming the file and what is wrong with it.
    """
    self._submit(_Batch([]), wait_ready=True).future.result()

  def row(self, name: str) -> Verifier:
    """A built-in row of the table, or "weighted" with the weights of this scorer."""
    parts = self._settings.weights
    if name == "weighted":
      return weighted({part: (VERIFIERS.get(part, _FILE), weight) for part, weight in parts.items()})
    return VERIFIERS[name]

  def submit(self, jobs: Sequence[Job], *, trial: bool = False) -> concurrent.futures.Future[list[Scored]]:
    """Scores all jobs beside whatever the caller does; the result is in their order.

    trial: failures are only in the result: not counted, not said, never a reason to stop.
    Raises: ValueError for an unknown verifier; and, from the future, for a broken verifier file and, with
      on_error="stop", for the first error, naming function, error and prompt.
    """
    for job in jobs:
      if job.verifier not in self.verifiers:
        raise ValueError(f"verifier={job.verifier!r} is not one of: {', '.join(self.verifiers)}.")
    batch = _Batch(list(jobs), trial)
    for i, job in enumerate(jobs):
      if flag := self.known.get(job.key):
        batch.results[i] = Scored(self._wrong_score, 0.0, None, (flag,))
        batch.left -= 1
    return self._submit(batch).future

  def score(self, jobs: Sequence[Job]) -> list[Scored]:
    """Scores all jobs, in their order. Raises: as `submit`."""
    future = self.submit(jobs)
    try:
      return future.result()
    except BaseException:  # Ctrl-C: a late answer must not meet the next batch
      future.cancel()
      raise

  def close(self) -> None:
    """Ends the workers. The scorer may be used again: it starts new ones."""
    if self._thread is not None:
      self._closing = True
      self._wake.send_bytes(b".")
      self._thread.join()
      self._thread, self._closing = None, False

  # ---- the thread that hands out the jobs ----

  def _submit(self, batch: _Batch, wait_ready: bool = False) -> _Batch:
    batch.wait_ready = wait_ready
    with self._lock:
      if self._thread is None:
        process.remove_left_behind()
        self._thread = threading.Thread(target=self._serve, name="scorer", daemon=True)
        self._thread.start()
      self._arrived(batch)
    return batch

  def _arrived(self, batch: _Batch) -> None:
    if not batch.left and not batch.wait_ready:
      batch.settle(result=batch.results)
      return
    self._waiting.extend((batch, i) for i, found in enumerate(batch.results) if found is None)
    if batch.wait_ready:
      self._starting.append(batch)
    self._wake.send_bytes(b".")

  def _serve(self) -> None:
    starting: list[_Batch] = []  # who only waits for a worker to be ready
    try:
      while not self._closing:
        starting += self._hand_out()
        if starting and any(w.ready for w in self._workers):
          for batch in starting:
            batch.settle(result=[])
          starting = []
        for worker in self._wait():
          try:
            if worker in self._workers:  # and not dropped with the batch of the one before
              self._hear(worker)
          except ValueError as error:  # no worker can be had, or an error that stops: nobody waits in vain
            self._fail(error, starting)
            starting = []
    finally:
      self._fail(ValueError("the scorer was closed."), starting)
      for worker in list(self._workers):
        self._drop(worker)

  def _hand_out(self) -> list[_Batch]:
    """Gives waiting jobs to idle workers, starting as many as are of use; returns batches without jobs."""
    with self._lock:
      starting, self._starting = self._starting, []
    for worker in [w for w in self._workers if w.batch and w.batch.future.cancelled()]:
      self._drop(worker)
    busy = sum(w.job is not None for w in self._workers)
    wanted = self._count if starting else len(self._waiting) + busy
    while len(self._workers) < min(self._count, wanted):
      self._workers.append(Worker(self._settings))
    for worker in self._workers:
      while worker.ready and worker.job is None and self._waiting:
        batch, i = self._waiting.popleft()
        if not batch.future.done():  # cancelled, or one of its jobs has failed it
          try:
            worker.give(batch, i, self._characters)
          except ValueError as error:  # extras that cannot be sent
            self._abandon(batch, error)
    return starting

  def _wait(self) -> list[Worker]:
    """Workers with something to say, or over their deadline; sleeps until there is one, or a new batch."""
    busy = [w for w in self._workers if w.job is not None or not w.ready]
    patience = max(0.0, min(w.deadline for w in busy) - time.monotonic()) if busy else None
    heard = multiprocessing.connection.wait([self._woken, *(w.pipe for w in busy)], timeout=patience)
    if self._woken in heard:
      self._woken.recv_bytes()
    now = time.monotonic()
    return [w for w in busy if w.pipe in heard or w.deadline <= now]

  def _hear(self, worker: Worker) -> None:
    """Reads one message, or buries a worker that died or is over its deadline.

    Raises: ValueError when no worker can be started, or for an error that stops the run.
    """
    settings = self._settings
    try:
      if not worker.pipe.poll():  # over the deadline
        if worker.job is None or not worker.started:
          self._drop(worker)
          raise ValueError(
            f"a verification process did not get ready within {STARTUP_S:g} s" + settings.look_at_file()
          )
        outcome = ("timeout", f"no answer within reward.timeout_s={settings.timeout_s:g} s", settings.timeout_s)
        self._conclude(worker, outcome)
        self._drop(worker)
        return
      message = worker.pipe.recv()
    except (EOFError, OSError):
      self._bury(worker)
      return
    match message:
      case ("ready", missing):
        worker.ready, worker.deadline = True, math.inf
        if missing and not self._said_missing:
          self._said_missing = True
          self._say(f"verification processes: {'; '.join(missing)}.")
      case ("started",):
        worker.started, worker.deadline = True, time.monotonic() + settings.timeout_s
      case ("broken", text):
        self._drop(worker)
        raise ValueError(text)
      case (*outcome, spent):
        self._conclude(worker, tuple(outcome))
        if spent:
          self._drop(worker)

  def _bury(self, worker: Worker) -> None:
    """A worker died: with a job in hand that job has no verdict; before it was ready the verifier file is to blame."""
    code, last = worker.kill(patience_s=1.0)  # a closed pipe comes a moment before the exit code
    self._workers.remove(worker)
    if not worker.ready:
      raise ValueError(
        f"a verification process ended with exit code {code} before it was ready{last}" + self._settings.look_at_file()
      )
    if worker.job is not None:
      # A built-in verifier does not die of itself: the response took its memory, CPU time or stack.
      kind = "error" if self._settings.file and code not in (-signal.SIGXCPU, -signal.SIGKILL) else "timeout"
      self._conclude(worker, (kind, f"the verification process ended with exit code {code}{last}", 0.0))

  def _conclude(self, worker: Worker, outcome: tuple) -> None:
    batch, index, job = worker.batch, worker.index, worker.job
    worker.rest()
    try:
      stalls.alive()
      batch.results[index] = self._judge(job, outcome, batch.trial)
    except ValueError as error:
      self._abandon(batch, error)
      return
    batch.left -= 1
    if not batch.left:
      batch.settle(result=batch.results)

  def _judge(self, job: Job, outcome: tuple, trial: bool) -> Scored:
    match outcome:
      case ("done", score, accuracy, pred, flags, seconds):
        return Scored(score, accuracy, pred, tuple(flags), seconds=seconds)
    kind, message, seconds = outcome
    where = f"verify in {self._settings.file}" if job.verifier == "file" else f"verifier {job.verifier!r}"
    message = (
      f"{where}: {message} (answer {job.answer!r:.80}, prompt {job.prompt[-200:]!r}, "
      f"response {job.response[-200:]!r})"
    )
    flag = "error" if kind == "error" else "timeout"
    if not trial:
      self._count_failure(flag, message)
    return Scored(self._wrong_score, 0.0, None, (flag,), message, seconds)

  def _count_failure(self, flag: str, message: str) -> None:
    if flag == "timeout":
      self.timeouts += 1
      return
    self.errors += 1
    if not self.first_error:
      self.first_error = message
      if self._on_error != "stop":
        self._say(f"the first verification that failed: {message}")
    if self._on_error == "stop":
      raise ValueError(f"{message}; reward.on_error='score_wrong' would go on.")

  def _abandon(self, batch: _Batch, error: ValueError) -> None:
    """A batch that failed: its jobs in hand end with their workers, those that wait are passed over."""
    batch.settle(error=error)
    for worker in [w for w in self._workers if w.batch is batch]:
      self._drop(worker)

  def _fail(self, error: ValueError, starting: Sequence[_Batch]) -> None:
    """Nobody who waits can be served."""
    with self._lock:
      batches = {id(b): b for b, _ in self._waiting} | {id(w.batch): w.batch for w in self._workers if w.batch}
      self._waiting.clear()
    for batch in [*batches.values(), *starting]:
      self._abandon(batch, error)

  def _drop(self, worker: Worker) -> None:
    worker.kill()
    if worker in self._workers:
      self._workers.remove(worker)


class _Batch:
  """Jobs that were submitted together. left: how many have no verdict yet. trial: see `Scorer.submit`."""

  def __init__(self, jobs: list[Job], trial: bool = False):
    self.jobs, self.left, self.trial = jobs, len(jobs), trial
    self.results: list[Scored | None] = [None] * len(jobs)
    self.future: concurrent.futures.Future[list[Scored]] = concurrent.futures.Future()
    self.wait_ready = False

  def settle(self, result: list[Scored] | None = None, error: ValueError | None = None) -> None:
    """Ends the waiting for this batch, unless whoever waited has given up or knows already."""
    with contextlib.suppress(concurrent.futures.InvalidStateError):
      self.future.set_exception(error) if error else self.future.set_result(result)


def _check_source(path: str) -> None:
  """The file can be read and is Python; what it does is seen when a worker loads it."""
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f"reward.file={path}: no such file.")
  try:
    compile(pathlib.Path(path).read_bytes(), path, "exec")
  except (SyntaxError, ValueError) as error:
    raise ValueError(f"reward.file={path}: not valid Python ({error}).") from error
