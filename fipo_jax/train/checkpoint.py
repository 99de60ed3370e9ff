"""Checkpoints: one atomic, asynchronous Orbax step holds state, data position and counters.

A step directory is renamed into place when everything in it is durable, so a kill at any moment leaves the last whole
step readable. `state` is the sharded TrainState; `host` is JSON: iterator state, counters, results so far.
"""

from __future__ import annotations

import pathlib
from typing import Any

import orbax.checkpoint as ocp

from fipo_jax.train.state import TrainState


class Checkpointer:
  """Saves and restores runs under `workdir/checkpoints`.

  Args:
    keep: newest steps kept.
  """

  def __init__(self, workdir: str, *, keep: int):
    folder = pathlib.Path(workdir).absolute() / "checkpoints"
    self._manager = ocp.CheckpointManager(
      folder,
      options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True),
      item_names=("state", "host"),
    )

  def latest(self) -> int | None:
    """The newest whole step, or None."""
    return self._manager.latest_step()

  def steps(self) -> list[int]:
    """All whole steps, oldest first."""
    return sorted(self._manager.all_steps())

  def delete(self, step: int) -> None:
    """Removes a step, so that `latest` is an earlier one."""
    self._manager.delete(step)

  def save(self, step: int, state: TrainState, host: dict[str, Any]) -> None:
    """Starts saving; returns once the state was copied off the devices, so that it may be donated."""
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host))
    self._manager.save(step, args=args, force=True)

  def restore(self, step: int, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Reads a step into the shardings of abstract_state, which may belong to another mesh than the one that saved."""
    args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state), host=ocp.args.JsonRestore())
    got = self._manager.restore(step, args=args)
    return got["state"], got["host"]

  def wait(self) -> None:
    """Blocks until what was saved is durable; raises what went wrong in the background."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    self.wait()
    self._manager.close()
