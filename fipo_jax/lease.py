"""A lock in a bucket: an object that one process holds, and renews while it lives.

    gs://bucket/run/.lease    who has it; every RENEW_S written again under the condition that nobody else has

Nothing frees it when its holder is killed. So another may take it over when it was not renewed for LEASE_S, by the
bucket's own clock, or at once where the holder is seen to be dead: a process of this very machine. A holder ends at
once, with EXIT_LOST, when somebody else has it, and when it could not renew it for so long that somebody might: a
process that was frozen, or had no network, must not write into what is now the run of another.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid
from typing import Any

from fipo_jax import console, paths, processes

NAME = ".lease"
LEASE_S = 120.0  # longer than a bucket is away now and then; what a start after a kill waits at most
MARGIN_S = 25.0  # so much earlier it has run out for its holder, who may be within a request of twice REQUEST_S
RENEW_S = 15.0
REQUEST_S = 10.0  # to connect, and to answer
LOOK_S = 2.0  # between two looks at the lease of another


def _now() -> float:
  """Seconds that also pass while the machine is suspended, where it can say."""
  clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
  return time.clock_gettime(clock)


class Lease:
  """The lease of a folder, held from the construction on until `release`.

  Raises ValueError when another process of this machine has it; processes.Missing when one of another machine goes on
  renewing it: that may be what a scheduler has replaced, so the start is to be tried again (76), not given up (2);
  BucketError when the bucket refuses.
  """

  def __init__(self, folder):
    from google.api_core import exceptions
    from google.cloud import storage

    self.folder, self._lost, self._none = folder, exceptions.PreconditionFailed, exceptions.NotFound
    bucket, _, rest = str(folder).removeprefix("gs://").partition("/")
    self._key = f"{rest.rstrip('/')}/{NAME}".lstrip("/")
    self._said = {"id": uuid.uuid4().hex, **_this_process()}
    with paths.field("workdir", folder):
      # A project is for making buckets alone, and finding one may fail.
      client = paths.repeated(folder, lambda: storage.Client(os.environ.get("GOOGLE_CLOUD_PROJECT", "none")))
      self._bucket = client.bucket(bucket)
      self._generation = self._take()
    self._over = threading.Event()
    paths.before_writing.append(self._check)
    self._thread = threading.Thread(target=self._renew, daemon=True)
    self._thread.start()

  def release(self) -> None:
    """Gives it back; whoever waits has it at once."""
    self._over.set()
    self._thread.join(2 * REQUEST_S)
    paths.before_writing.remove(self._check)
    give_back = lambda: self._blob().delete(if_generation_match=self._generation, timeout=REQUEST_S, retry=None)
    with contextlib.suppress(OSError):  # then it runs out by itself
      paths.once(self.folder, give_back)

  # ---- taking ----

  def _take(self) -> int:
    """Returns: its generation."""
    generation = 0
    while True:
      with contextlib.suppress(self._lost):  # it is there, or somebody was faster
        return paths.repeated(self.folder, lambda: self._write(generation), passing=self._lost)  # noqa: B023
      generation = self._await()

  def _await(self) -> int:
    """Waits until it may be taken. Returns: the generation to replace, 0 if it is gone."""
    first, begun = None, _now()
    while True:
      holder, generation, age = paths.repeated(self.folder, self._look)
      if holder is None or holder["id"] == self._said["id"]:  # an answer was lost
        return generation
      if _is_dead(holder) or age >= LEASE_S:
        console.say(f"workdir={self.folder}: {holder['who']} had it, and has ended or renews it no more: taken over")
        return generation
      where = f"workdir={str(self.folder)!r}"
      said = f"{where}: {holder['who']} is working in it; wait for its end, stop it, or use another."
      if _is_here(holder):
        raise ValueError(said)
      if first not in (None, generation) and _now() - begun >= LEASE_S:
        raise processes.Missing(said)
      if first is None:
        console.say(f"workdir={self.folder}: {holder['who']} has it; waiting up to {LEASE_S:g} s for its end")
        first = generation
      time.sleep(LOOK_S)

  def _write(self, generation: int) -> int:
    """Writes it where this is its generation, 0 = it is not there. Returns the new one. Raises PreconditionFailed."""
    blob, text, self._begun = self._blob(), json.dumps(self._said), _now()
    blob.upload_from_string(text, "application/json", if_generation_match=generation, timeout=REQUEST_S, retry=None)
    self._until = self._begun + LEASE_S - MARGIN_S
    return blob.generation

  def _look(self) -> tuple[dict[str, Any] | None, int, float]:
    """Who has it, its generation, and seconds since it was written, by the clock of the bucket; (None, 0, 0) if nobody
    has."""
    blob, clock = self._blob(), self._bucket.blob(f"{self._key}-{self._said['id'][:8]}")
    once = {"timeout": REQUEST_S, "retry": None}  # who asks decides whether to ask again: the library would for minutes
    try:
      blob.reload(**once)
      said = json.loads(blob.download_as_bytes(if_generation_match=blob.generation, **once))
    except (self._none, self._lost):  # the second: it changed meanwhile; the next look will tell
      if not blob.generation:
        return None, 0, 0.0
      return {"id": "", "who": "another process"}, blob.generation, 0.0
    clock.upload_from_string(b"", **once)
    clock.delete(**once)
    return said, blob.generation, (clock.updated - blob.updated).total_seconds()

  # ---- keeping ----

  def _renew(self) -> None:
    """The thread: ends with `release`, or ends the process."""
    reason, wait = "", RENEW_S
    while not self._over.wait(wait):
      self._check(reason)
      wait = RENEW_S / 5  # whatever goes wrong, there is time for another try
      try:
        self._generation = paths.once(self.folder, lambda: self._write(self._generation), passing=self._lost)
        reason, wait = "", RENEW_S
      except self._lost:
        self._see_who_has_it()
      except OSError as error:
        reason = getattr(error, "reason", str(error))

  def _see_who_has_it(self) -> None:
    """It has another generation: that of a renewal whose answer was lost, or of another process."""
    try:
      holder, generation, _ = paths.once(self.folder, self._look)
    except OSError:  # not known yet, but the time runs
      return
    if holder is None or holder["id"] != self._said["id"]:
      self._end(f"{holder['who']} has the lease of this run" if holder else "the lease of this run was removed")
    self._generation = generation

  def _check(self, reason: str = "") -> None:
    """Ends the process when another one may have the lease by now."""
    if _now() > self._until and not self._over.is_set():
      since = f"{_now() - self._until + LEASE_S - MARGIN_S:.0f} s"
      self._end(f"the lease of this run was not renewed for {since}{reason and f', {reason}'}: another may have it")

  def _end(self, reason: str) -> None:
    said = f"error: workdir={self.folder}: {reason}; nothing more is written; {processes.RESUMES}"
    print(said, file=sys.stderr, flush=True)
    os._exit(processes.EXIT_LOST)  # at once: others notice that this process is gone

  def _blob(self):
    return self._bucket.blob(self._key)


def _this_process() -> dict[str, Any]:
  now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
  who = f"process {os.getpid()} on {socket.gethostname()}, since {now},"
  return {"who": who, "machine": _machine(), "pid": os.getpid(), "began": _began(os.getpid())}


def _machine() -> str:
  """What names this boot of this machine, and the processes that one sees here; "" where the system does not say."""
  with contextlib.suppress(OSError):
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  return ""


def _began(pid: int) -> str:
  """When a process of this machine began, in its own unit; "" if there is none."""
  with contextlib.suppress(OSError, IndexError):
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
  return ""


def _is_here(holder: dict[str, Any]) -> bool:
  """Whether it is a process of this machine, and lives."""
  return bool(_machine()) and holder.get("machine") == _machine() and holder.get("began") == _began(holder["pid"])


def _is_dead(holder: dict[str, Any]) -> bool:
  """Whether it was a process of this machine."""
  return bool(_machine()) and holder.get("machine") == _machine() and not _is_here(holder)
