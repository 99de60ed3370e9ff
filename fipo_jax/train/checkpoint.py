"""Checkpoints: one atomic, asynchronous Orbax step holds state, data position and counters.

On a disk a step directory is renamed into place when everything in it is durable, and out of the way before any of it
is deleted; in a bucket it is whole as long as it holds its commit file, which is written last and deleted first. So a
kill at any moment leaves every step that is there whole. `state` is the sharded TrainState; `host` is JSON: iterator
state, counters, results so far; `waiting` holds its arrays, where it has any. Every process takes part; what is not cut
over them, process 0 writes alone.
The folder may be local or gs://; with several processes all must see the same one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import sys
import time
import uuid
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import PreservationPolicy

from fipo_jax import console, host_arrays, paths, processes
from fipo_jax.train.state import TrainState

UNMEASURED = -1.0  # accuracy of a step at which no evaluation was made
DELETED = "deleted"  # steps are moved here before they are deleted
LARGE = 2**26  # bytes of an array that is saved in pieces of a layer each; smaller ones in pieces of a device each
ASIDE = "aside"  # and here when the user starts from an older one
COMMIT = "commit_success.txt"  # Orbax's word that a step is whole


class _WithoutTraces(logging.Filter):
  """Each thread of Orbax that meets an error logs it with its stack, some hundred lines; `Checkpointer` raises it.

  That a folder is only read is what was asked for.
  """

  def filter(self, record: logging.LogRecord) -> bool:
    expected = record.exc_info or "read_only" in str(record.msg) or "read only" in str(record.msg)
    return not (expected and "orbax" in record.pathname)


logging.getLogger("absl").addFilter(_WithoutTraces())


def _of_closed_loops(unraisable, before=sys.unraisablehook) -> None:
  """What TensorStore tells a loop of Orbax that a failed save has closed is nobody's news."""
  if str(unraisable.exc_value) != "Event loop is closed":
    before(unraisable)


sys.unraisablehook = _of_closed_loops


def folder_of(workdir, folder: str = "") -> epath.Path:
  """Where the checkpoints of a run are: `folder`, local or gs://, or `workdir/checkpoints`."""
  return paths.absolute(folder if folder else paths.of(workdir) / "checkpoints")


def steps_in(folder: epath.Path) -> list[int]:
  """All whole steps in a folder, oldest first; nothing of it is opened, and other processes are not asked."""
  if not paths.names(folder):  # which a bucket may refuse to say, while Orbax would take that for none
    return []
  return sorted(found.step for found in ocp.path.step.standard_name_format().find_all(folder))


def choose(folder: epath.Path, step: int | str | None = None) -> int:
  """The step that a number, "best" or None (the newest) names, of those in a folder; nothing there is changed.

  Raises: ValueError when there is no such step.
  """
  steps = steps_in(folder)
  found = step
  if step is None:
    found = max(steps, default=None)
  elif step == "best":
    measured = {s: _measured(folder / str(s)) for s in steps}
    found = max((s for s in steps if measured[s] != UNMEASURED), key=lambda s: (measured[s], s), default=None)
  if found not in steps:
    there = f"there are {', '.join(map(str, steps))}" if steps else "there is none"
    why = "none of them was evaluated" if step == "best" and steps else there
    raise ValueError(f"--step={step or 'newest'}: no such checkpoint in {folder}; {why}.")
  return found


def _measured(step: epath.Path) -> float:
  """What the best are chosen by, as `Checkpointer.save` was given it."""
  try:
    return json.loads(paths.read(step / "metrics" / "metrics"))["accuracy"]
  except (FileNotFoundError, ValueError, KeyError):
    return UNMEASURED


def read_params(folder: epath.Path, step: int, abstract_params) -> Any:
  """The parameters of a step alone, into the shardings of abstract_params: no optimizer state is read or made.

  A value head that abstract_params has no place for is left where it is.
  Raises: ValueError, in one line, for a step that cannot be read.
  """
  item = {"params": abstract_params}
  how = ocp.checkpoint_utils.construct_restore_args(item)
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      args = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
      return reader.restore(folder / str(step) / "state", args=args)["params"]
  except Exception as error:  # Orbax, TensorStore, JSON and the file system have errors of their own
    _await_reason(error)
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise ValueError(f"checkpoint {folder / str(step)} cannot be read: {reason}.") from error


def check_shared(folder: epath.Path) -> None:
  """Raises ValueError on all processes when some do not see the folder that process 0 sees, or other steps in it."""
  if processes.count() == 1:
    return
  token = processes.from_first("a name for the shared folder", f".shared-{uuid.uuid4().hex[:8]}")
  if processes.is_first():
    paths.write(folder / token, "removed in a moment\n")
  processes.barrier("the shared folder")
  newest = max(steps_in(folder), default=0)
  seen = "the same folder" if paths.exists(folder / token) else "another folder"
  try:
    processes.agree("the checkpoints", {"newest step": newest, str(folder): seen})
  finally:
    if processes.is_first():
      paths.delete(folder / token)


def _pieces(state: TrainState) -> TrainState:
  """How arrays are cut when they are saved: large parameters by layers, so that an export need not hold several."""

  def of(path, x) -> ocp.SaveArgs:
    names = [getattr(key, "name", getattr(key, "key", None)) for key in path[:2]]
    large = names == ["params", "layers"] and len(x.shape) > 2 and x.size * x.dtype.itemsize >= LARGE
    return ocp.SaveArgs(shard_axes=(0,)) if large else ocp.SaveArgs()

  return jax.tree_util.tree_map_with_path(of, state)


@dataclasses.dataclass
class _Keep(PreservationPolicy):
  """The newest steps; besides those with the best accuracy, the later of equals, and multiples of every (0 = none)."""

  newest: int
  best: int
  every: int = 0

  def should_preserve(self, checkpoints, *, context):
    accuracy = lambda c: (c.metrics or {}).get("accuracy", UNMEASURED)
    ranked = sorted((c for c in checkpoints if accuracy(c) != UNMEASURED), key=lambda c: (accuracy(c), c.step))
    kept = {c.step for c in [*checkpoints[-self.newest :], *ranked[len(ranked) - min(self.best, len(ranked)) :]]}
    kept |= {c.step for c in checkpoints if self.every and c.step % self.every == 0}
    return [c.step in kept for c in checkpoints]


class _CommitFirst:
  """Orbax's deleter for buckets, where objects go one by one: the first to go is what says that the step is whole."""

  def __init__(self, folder: epath.Path, inner):
    self._folder, self._inner = folder, inner

  def delete(self, step: int) -> None:
    if processes.is_first():
      paths.delete(self._folder / str(step) / COMMIT)
    self._inner.delete(step)

  def delete_steps(self, steps) -> None:
    for step in steps:
      self.delete(step)

  def close(self) -> None:
    self._inner.close()


class Checkpointer:
  """Saves and restores a run.

  Args:
    keep: newest steps kept. best: so many with the best accuracy are kept besides. every: as are its multiples.
    folder: see `folder_of`.
    read_only: to look beside whoever owns the run: nothing there is made, moved or deleted.
  since: when the last save began, or this object, by time.monotonic. seconds: until the last save was durable; 0 before
  the first.
  """

  def __init__(
    self, workdir, *, keep: int, best: int = 0, every: int = 0, folder: str = "", read_only: bool = False
  ):
    self.folder, self._read_only = folder_of(workdir, folder), read_only
    self.since, self.seconds = time.monotonic(), 0.0
    self._clear(torn=True)
    self._manager = ocp.CheckpointManager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=_Keep(keep, best, every), enable_async_checkpointing=True,
        todelete_subdir=None if read_only else DELETED, read_only=read_only, create=not read_only,
        async_options=ocp.options.AsyncOptions(post_finalization_callback=self._is_durable),
        best_fn=lambda metrics: metrics["accuracy"],  # has metrics written; the policy decides
      ),
      item_names=("state", "host", "waiting"),
    )  # fmt: skip
    if paths.is_remote(self.folder):
      self._manager._checkpoint_deleter = _CommitFirst(self.folder, self._manager._checkpoint_deleter)

  def latest(self) -> int | None:
    """The newest whole step, or None."""
    return self._manager.latest_step()

  def steps(self) -> list[int]:
    """All whole steps, oldest first."""
    return sorted(self._manager.all_steps())

  def start_from(self, step: int | str) -> int:
    """The step that a number or "best" names; newer ones are set aside in `aside/`, and `latest` is this one.

    Raises: ValueError when there is no such step.
    """
    steps = self.steps()
    if step == "best":
      step = self._manager.best_step() or 0
    if step not in steps:
      raise ValueError(f"--step={step}: no such checkpoint in {self.folder}; there are {', '.join(map(str, steps))}.")
    for newer in [s for s in steps if s > step] if processes.is_first() else []:
      paths.make_folder(self.folder / ASIDE)
      target = self.folder / ASIDE / f"{newer}-{uuid.uuid4().hex[:8]}"
      paths.move_folder(self.folder / str(newer), target, last=COMMIT)
      console.say(f"checkpoint {newer} is set aside: {target}")
    processes.barrier("the choice of a checkpoint")
    self._manager.reload()
    return step

  def delete(self, step: int) -> None:
    """Removes a step, so that `latest` is an earlier one."""
    self._manager.delete(step)
    self._clear()

  def save(self, step: int, state: TrainState, host: dict[str, Any], accuracy: float | None = None) -> None:
    """Starts saving; returns once the state was copied off the devices, so that it may be donated.

    host: JSON, and NumPy arrays (of at least one number) anywhere in its dicts.
    accuracy: of an evaluation with this state, if there was one: what the best are chosen by.
    """
    rest, arrays = host_arrays.split(host)
    waiting = {"waiting": ocp.args.StandardSave(arrays)} if arrays else {}
    whole = ocp.args.StandardSave(state, save_args=_pieces(state))
    args = ocp.args.Composite(state=whole, host=ocp.args.JsonSave(rest), **waiting)
    measured = UNMEASURED if accuracy is None else float(accuracy)
    self.since = time.monotonic()
    with self._said_once():
      self._manager.save(step, args=args, metrics={"accuracy": measured}, force=True)
    self._clear()

  def _is_durable(self) -> None:
    self.seconds = time.monotonic() - self.since

  def restore(self, step: int, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Reads a step into the shardings of abstract_state, which may belong to another mesh, and to more or fewer
    processes, than those that saved."""
    waiting = paths.exists(self.folder / str(step) / "waiting")
    args = ocp.args.Composite(
      state=ocp.args.StandardRestore(abstract_state), host=ocp.args.JsonRestore(),
      **({"waiting": ocp.args.StandardRestore()} if waiting else {}),
    )  # fmt: skip
    try:
      got = self._manager.restore(step, args=args)
    except Exception as error:  # Orbax, TensorStore, JSON and the file system have errors of their own
      _await_reason(error)
      others = [s for s in self.steps() if s < step]
      remedy = f"--step={others[-1]} starts from the one before" if others else "there is no older one"
      reason = " ".join(str(error).split())[:200] or type(error).__name__
      raise ValueError(f"checkpoint {self.folder / str(step)} cannot be read: {reason}; {remedy}.") from error
    return got["state"], host_arrays.join(got["host"], got["waiting"] if waiting else {})

  def wait(self) -> None:
    """Blocks until what was saved is durable.

    Raises:
      OSError: it could not be written, in the background or now: a full disk, no permission.
    """
    with self._said_once():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _said_once(self):
    """What Orbax and TensorStore raise of a folder that cannot be written, as one line."""
    try:
      yield
    except Exception as error:  # Orbax, TensorStore and the clients of buckets have errors of their own
      remote = paths.is_remote(self.folder)
      if not remote and not isinstance(error, OSError | ValueError):
        raise
      _await_reason(error)
      reason = " ".join(str(error).split())[:200]
      full = getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in reason
      goes_on = "the same command goes on"
      with contextlib.suppress(OSError):
        newest = max(steps_in(self.folder), default=0)
        goes_on += f" from step {newest}" if newest else " at the beginning"
      if remote:
        meant = paths.explained(self.folder, error)
        where = f"checkpoints cannot be written to {self.folder}"
        raise paths.BucketError(where, meant.reason, f"{meant.remedy}: {goes_on}", meant.again) from error
      raise OSError(
        f"checkpoints cannot be written to {self.folder}: {'no space left on the device' if full else reason}; make "
        f"room, or name a checkpoint.folder with more: {goes_on}."
      ) from error

  def close(self) -> None:
    self.wait()
    self._manager.close()
    self._clear()

  def _clear(self, *, torn: bool = False) -> None:
    """Deletes what was moved out of the way and, at the start, what saves that were cut off have left."""
    if self._read_only or not processes.is_first():
      return
    left = [self.folder / DELETED / name for name in paths.names(self.folder / DELETED)]
    if torn and (there := paths.names(self.folder)):
      left += [self.folder / name for name in there if ocp.path.step.TMP_DIR_SUFFIX in name]
      if paths.is_remote(self.folder):
        steps = [self.folder / name for name in there if name.isdecimal()]
        steps += [self.folder / ASIDE / name for name in paths.names(self.folder / ASIDE)]
        left += [path for path in steps if not paths.is_file(path / COMMIT)]
    for path in left:
      paths.delete_folder(path)


def _await_reason(error: Exception) -> None:
  """Processes save and load together: where the system has refused nothing, it may be that one of them was lost."""
  if not getattr(error, "errno", None) and "No space left" not in str(error):
    processes.await_reason()
