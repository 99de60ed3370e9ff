"""Which fields of a run may differ in a replay, and what of the step they touch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections

from fipo_jax import changes, config

# What is made of the responses that a step has.
UPDATE = ("algorithm", "optimizer", "batch.minibatch_prompts", "batch.row_tokens")
# Which responses it has.
RESPONSES = ("rollout", "reward", "dynamic_sampling", "batch.prompts")
# Of those above: other shapes of the state, other programs, or nothing that a step reads.
REFUSED = {
  "optimizer.name": "the optimizer's state in the checkpoint is that of another",
  "optimizer.momentum_dtype": "the optimizer's state in the checkpoint is of another type",
  "optimizer.max_skipped_updates": "a replay ends nothing",
  "rollout.engine": "responses are sampled as the run has sampled them",
  "reward.on_error": "a replay takes verdicts that were none from the record",
}
UNREAD = ("log", "eval", "alarms", "steps", "checkpoint")  # by a replay, but for checkpoint.folder
HEADS = ("ppo", "sft")  # objectives whose runs have other parameters, or no responses


class Given(NamedTuple):
  """Fields of the command line: where, which hold for all of the replay; update and responses, for the step alone."""

  where: dict[str, Any]
  update: dict[str, Any]
  responses: dict[str, Any]

  def changed(self) -> dict[str, Any]:
    """What the step would have been under."""
    return self.update | self.responses


def sort(cfg: ml_collections.ConfigDict, given: Mapping[str, Any]) -> Given:
  """Tells fields apart. cfg: that the step was made under; what is as it was is left out of the changed ones.

  Raises: ValueError for a field that cannot be changed.
  """
  found = Given({}, {}, {})
  for field, value in given.items():
    if field in REFUSED:
      raise ValueError(f"--config.{field}={value!r}: {REFUSED[field]}; leave it out.")
    if field == "checkpoint.folder" or (
      changes.within(field, changes.WHERE_AND_HOW_FAST) and not changes.within(field, UNREAD)
    ):
      found.where[field] = value
    elif changes.within(field, UNREAD):
      raise ValueError(f"--config.{field}={value!r}: a replay makes one step and does not read it; leave it out.")
    elif not changes.within(field, (*UPDATE, *RESPONSES)):
      raise ValueError(
        f"--config.{field}={value!r}: the state of the run is that of its own {field.partition('.')[0]}; a replay can "
        f"change {', '.join((*UPDATE, *RESPONSES))}."
      )
    elif config.at(cfg, field) != value:
      (found.update if changes.within(field, UPDATE) else found.responses)[field] = value
  name, now = cfg.algorithm.name, found.update.get("algorithm.name", cfg.algorithm.name)
  if name != now and {name, now} & {*HEADS}:
    raise ValueError(f"--config.algorithm.name={now!r}: of a run of {name!r} its parameters or responses are missing.")
  return found


def different(old: ml_collections.ConfigDict, new: ml_collections.ConfigDict) -> dict[str, tuple[Any, Any]]:
  """Field -> (old, new), where results depend on it."""
  before, now = changes.flat(old.to_dict()), changes.flat(new.to_dict())
  return {
    field: (before.get(field), now.get(field)) for field in sorted(before.keys() | now.keys())
    if before.get(field) != now.get(field) and changes.within(field, (*UPDATE, *RESPONSES, "data", "model", "seed"))
    and not changes.within(field, changes.WHERE_AND_HOW_FAST)
  }  # fmt: skip
