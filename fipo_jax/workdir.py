"""Whose a workdir is: a lock while a run works in it, the config it belongs to, and what each start was.

    workdir/.lock         held by process 0 of the run; the kernel frees it, whatever ends the process (gs://: `lease`)
    workdir/config.json   the config of the run
    workdir/starts.json   one record per start: when, where, with which code, from which step, what was changed; when
                          its training began, what it dropped, when it ended

A run is resumed with another config only where that alters no result (where things lie, how fast it goes), or where the
user names what is to change; both are recorded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from fipo_jax import changes as changes_lib
from fipo_jax import goodput, lease, lines, metrics, paths, processes
from fipo_jax.models import tensor_files
from fipo_jax.train import checkpoint

LOCK, CONFIG, STARTS = ".lock", "config.json", "starts.json"

# workdir -> (what frees its lock, how often this process holds it)
_held: dict[str, tuple[Callable[[], None], int]] = {}


@dataclasses.dataclass(frozen=True)
class Claim:
  """changes: "field: old -> new" of all starts from the step that this one starts from. notes: to say. provenance: of
  this start."""

  changes: list[str]
  notes: list[str]
  provenance: dict[str, Any]


@contextlib.contextmanager
def hold(workdir) -> Iterator[None]:
  """Makes the workdir this run's own meanwhile. Raises ValueError, and touches nothing, when another process has it."""
  key = str(workdir) if paths.is_remote(workdir) else os.path.realpath(workdir)
  if processes.is_first():
    free, count = _held.get(key, (None, 0))
    _held[key] = (free if count else _lock(workdir), count + 1)
  processes.barrier("the lock of the workdir")
  try:
    yield
  finally:
    if processes.is_first():
      free, count = _held.pop(key)
      if count > 1:
        _held[key] = (free, count - 1)
      else:
        free()


def _lock(workdir) -> Callable[[], None]:
  """Returns: what frees it."""
  if paths.is_remote(workdir):
    metrics.check_writable(workdir)
    return lease.Lease(paths.of(workdir)).release
  path = pathlib.Path(workdir) / LOCK
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
  except OSError as error:
    raise metrics.unwritable(workdir, error) from error
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    said = os.pread(descriptor, 4096, 0).decode(errors="replace")
    os.close(descriptor)
    if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
      print(f"workdir={workdir}: no locks here ({error.strerror}); a second start would not be noticed", flush=True)
      return lambda: None
    raise ValueError(
      f"workdir={str(workdir)!r}: {said or 'another process'} is working in it; wait for its end, stop it, or use "
      "another workdir."
    ) from error
  now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
  metrics.check_writable(workdir)  # before minutes go into a base model
  os.ftruncate(descriptor, 0)
  os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {now},".encode(), 0)
  return functools.partial(os.close, descriptor)


def claim(cfg, allow: Collection[str] = (), step: int | str | None = None) -> Claim:
  """Process 0 makes the workdir the config's own; the others wait until it has, and get to know the same.

  Args: allow: fields that may change though they alter the training. step: that the run is to start from, as in
    `assemble.build`.
  Raises: ValueError, having changed nothing, when the workdir holds a run of another config, or has no such step.
  """
  found = None
  if processes.is_first():
    metrics.check_writable(cfg.workdir)
    taken, starts = _examine(cfg, allow, step)
    folder = paths.of(cfg.workdir)
    _write(folder / CONFIG, json.loads(cfg.to_json()))
    _write(folder / STARTS, starts)
    found = dataclasses.asdict(taken)
  return Claim(**processes.from_first("the claim of the workdir", found))


def check(cfg, allow: Collection[str] = ()) -> None:
  """Raises ValueError as `claim` would; changes nothing."""
  if processes.is_first():
    _examine(cfg, allow, None)


def _examine(cfg, allow: Collection[str], step: int | str | None) -> tuple[Claim, list[dict[str, Any]]]:
  """The claim, and the records of all starts with this one."""
  folder = paths.of(cfg.workdir)
  # Through JSON on both sides, so that tuples and lists compare equal.
  now, starts, notes, changes = json.loads(cfg.to_json()), starts_of(folder), [], []
  with paths.field("checkpoint.folder" if cfg.checkpoint.folder else "workdir", cfg.checkpoint.folder or cfg.workdir):
    steps = checkpoint.steps_in(checkpoint.folder_of(cfg.workdir, cfg.checkpoint.folder))
  if step is not None and not (step in steps or (step == "best" and steps)):
    there = ", ".join(map(str, steps)) or "none"
    raise ValueError(f"--step={step}: no such checkpoint of workdir={cfg.workdir!r}; there are {there}.")
  step = step if isinstance(step, int) else max(steps, default=0)
  old = _old_config(folder)
  logged = lines.exists(folder / "metrics.jsonl")
  made = any(paths.exists(folder / name) for name in ("export", "result.json"))
  if old is not None and not (steps or logged or made or _steps_of(cfg.workdir, old)):
    old, starts = None, []  # a start that failed before it had anything to lose
  facts = facts_of(cfg)
  if old is not None:
    compared = changes_lib.compare(old, now)
    notes += compared.notes
    changed = dict(compared.altering)
    was = starts[-1]["facts"] if starts else {}
    for field in was.keys() & facts.keys():
      if was[field] != facts[field]:
        changed[field] = (f"contents {was[field]}", f"contents {facts[field]}")
    refused = {field: pair for field, pair in changed.items() if not changes_lib.within(field, allow)}
    if refused:
      raise ValueError(_another(cfg.workdir, refused))
    if not steps and (before := _steps_of(cfg.workdir, old)):
      raise ValueError(
        f"checkpoint.folder={cfg.checkpoint.folder!r}: there is no checkpoint, but the run has some (newest: step "
        f"{max(before)}) in {_checkpoints_of(cfg.workdir, old)}; move them first."
      )
    if logged and not steps:
      notes.append(f"workdir={cfg.workdir}: metrics but no checkpoint; the run begins again, and they are replaced")
    changes = [f"{field}: {a!r} -> {b!r}" for field, (a, b) in (compared.free | changed).items()]
    notes += [f"changed: {line}" for line in changes]
  if starts and "ended" not in starts[-1]:
    starts = [*starts[:-1], starts[-1] | {"seen": _last_sign(cfg, starts[-1])}]
  made_by = provenance()
  starts = [*starts, {**made_by, "began": _began(), "step": step, "changes": changes, "facts": facts}]
  return Claim([line for s in starts if s["step"] == step for line in s["changes"]], notes, made_by), starts


def keep_logs(cfg, step: int) -> None:
  """Copies what was logged before the run goes back to an older step, for its lines after that are dropped."""
  for name in ("metrics", "samples") if processes.is_first() else ():
    path = paths.of(cfg.workdir) / f"{name}.jsonl"
    if lines.exists(path):
      number = 1
      while paths.exists(kept := path.with_name(f"{name}.before_step{step}.{number}.jsonl")):
        number += 1
      lines.copy(path, kept)


def _another(workdir, refused: dict[str, tuple[Any, Any]]) -> str:
  lines = [f"{field}: {a!r} -> {b!r}" for field, (a, b) in refused.items()]
  more = f" (and {len(lines) - 3} more)" if len(lines) > 3 else ""
  return (
    f"workdir={workdir!r} holds a run of another config: {'; '.join(lines[:3])}{more}; use another workdir, that "
    f"config to resume, or --allow={','.join(refused)} to go on with what is changed."
  )


def _old_config(folder) -> dict[str, Any] | None:
  if not paths.exists(folder / CONFIG):
    return None
  try:
    return json.loads(paths.read_text(folder / CONFIG))
  except ValueError as e:
    raise ValueError(f"workdir={str(folder)!r}: {CONFIG} is damaged ({e}); use another workdir.") from e


def _checkpoints_of(workdir, old: dict[str, Any]):
  return checkpoint.folder_of(workdir, old.get("checkpoint", {}).get("folder", ""))


def _steps_of(workdir, old: dict[str, Any]) -> list[int]:
  return checkpoint.steps_in(_checkpoints_of(workdir, old))


def starts_of(folder) -> list[dict[str, Any]]:
  try:
    return json.loads(paths.read_text(folder / STARTS))
  except (FileNotFoundError, ValueError):  # none, or torn: it is a record of the past and no part of the run
    return []


def _write(path, value: Any) -> None:
  paths.write(path, json.dumps(value, indent=1, sort_keys=isinstance(value, dict)) + "\n")


def facts_of(cfg) -> dict[str, str]:
  """What files that a run depends on hold, as short hashes: of a model its config and the headers of its tensors."""
  digest = lambda data: hashlib.sha256(data).hexdigest()[:12]
  found = {}
  if cfg.model.path:
    with contextlib.suppress(OSError, ValueError):  # what is wrong with it is said where it is loaded
      found["model.path"] = digest(tensor_files.identity(cfg.model.path).encode())
  if cfg.reward.file:
    found["reward.file"] = digest(paths.read(cfg.reward.file))
  return found


def provenance() -> dict[str, Any]:
  """When, where and with which code this start is made."""
  root = pathlib.Path(__file__).resolve().parent.parent
  commit = ""
  with contextlib.suppress(OSError):  # no git here
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
  return {
    "time": datetime.datetime.now().astimezone().isoformat(" ", "seconds"), "host": socket.gethostname(),
    "pid": os.getpid(), "commit": commit, "jax": importlib.metadata.version("jax"),
  }  # fmt: skip


# ---- the time of a run, see `goodput` ----

HEARTBEAT = "heartbeat.json"  # of `stalls`; its "time" is a sign of life
_first_claim = True  # of this process, which began before it


def _began() -> float:
  """When this start began: the first one of a process with the process, as far as the system says when that was."""
  global _first_claim
  first, _first_claim = _first_claim, False
  if first:
    with contextlib.suppress(OSError, ValueError, IndexError):  # not Linux
      ticks = int(pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
      up = float(pathlib.Path("/proc/uptime").read_text().split()[0])
      return round(time.time() - up + ticks / os.sysconf("SC_CLK_TCK"), 3)
  return round(time.time(), 3)


def _last_sign(cfg, start: dict[str, Any]) -> float:
  """When a start that has not said its end was last alive, in seconds since 1970: its last line or its last beat."""
  said = [row.get("time", 0.0) for row in logged(cfg)[-1:]]
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
    beat = json.loads(paths.read(paths.of(cfg.workdir) / HEARTBEAT))
    said.append(datetime.datetime.fromisoformat(beat["time"]).timestamp())
  return round(max(goodput.began(start), start.get("training", 0.0), *said, 0.0), 3)


@dataclasses.dataclass
class Spent:
  """Of a run that goes on: when its first start was, and the seconds of its iterations so far."""

  first: float
  kept_s: float

  def share(self, step_s: float) -> float:
    """Adds an iteration: the share of the time since the first start that went into iterations which were kept."""
    self.kept_s += step_s
    return self.kept_s / max(time.time() - self.first, 1e-9)


def begin_training(
  cfg, step: int, logged: list[dict[str, Any]], *, devices: str = "", rollbacks: int = 0
) -> tuple[Spent | None, str]:
  """Notes that training begins, from `step` on these devices after so many rollbacks, and what was dropped for that.

  After the metrics were cut: a kill in between leaves what was lost uncounted, never counted twice.
  Args: logged: `logged` from before that.
  Returns: what to go on counting from, and a line on the starts before; None and "" on other processes than the first.
  """
  if not processes.is_first():
    return None, ""
  folder, rows = paths.of(cfg.workdir), logged
  starts = starts_of(folder)
  where = {"devices": devices, "rollbacks": rollbacks}
  starts[-1] |= {"training": round(time.time(), 3), **where, **goodput.lost(rows, step)}
  _write(folder / STARTS, starts)
  kept_s = goodput.seconds_of(row for row in rows if row["step"] <= step)
  said = goodput.said(goodput.account(starts, kept_s, time.time())) if len(starts) > 1 else ""
  return Spent(goodput.began(starts[0]), kept_s), said


def end(cfg) -> None:
  """Notes that this start ends, for whatever reason; of a workdir that this process did not get, nothing."""
  if not processes.is_first():
    return
  folder = paths.of(cfg.workdir)
  with contextlib.suppress(OSError):  # a full disk, or a bucket that refuses, has been said
    starts = starts_of(folder)
    mine = starts and (starts[-1].get("pid"), starts[-1].get("host")) == (os.getpid(), socket.gethostname())
    if mine and "ended" not in starts[-1]:
      starts[-1]["ended"] = round(time.time(), 3)
      _write(folder / STARTS, starts)


def account(cfg) -> dict[str, float]:
  """`goodput.account` of a run that is finished, on process 0; of one that was so before, as it was then."""
  starts, rows, now = starts_of(paths.of(cfg.workdir)), logged(cfg), time.time()
  newest = max((row.get("time", 0.0) for row in rows), default=0.0)
  while len(starts) > 1 and goodput.began(starts[-1]) > newest and "ended" in starts[-2]:
    now = starts[-2]["ended"]
    starts.pop()
  return goodput.account(starts, goodput.seconds_of(rows), now)


def logged(cfg) -> list[dict[str, Any]]:
  """The lines of metrics that can be read; on process 0."""
  rows = []
  for line in lines.read(paths.of(cfg.workdir) / "metrics.jsonl"):
    with contextlib.suppress(ValueError):
      record = json.loads(line.decode(errors="replace"))
      if isinstance(record, dict) and isinstance(record.get("step"), int):
        rows.append(record)
  return rows
