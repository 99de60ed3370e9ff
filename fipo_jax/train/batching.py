"""Rollouts -> packed rows.

A row of T tokens holds several responses, each with its prompt, as segments 1, 2, ...; 0 is padding. Rows are grouped
into micro-batches [M, R, T] here, on the host, so that splitting moves no data between devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from fipo_jax.types import Batch, Rollout


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a rollout's response lies in a packed batch: `array[micro, row, start:stop]`."""

  micro: int
  row: int
  start: int
  stop: int


@dataclasses.dataclass(frozen=True)
class Packed:
  """batch: host arrays [M, R, T], None once they are on the mesh. used: micro-batches that hold anything, the first
  ones. places: one per rollout."""

  batch: Batch | None
  used: int
  places: list[Place]


def minibatches(
  groups: Sequence[Sequence[Rollout]], count: int, *, seed: int, step: int
) -> list[list[Sequence[Rollout]]]:
  """The groups of an iteration in `count` parts of equal size, or one apart; fewer where there are fewer groups.

  In an order of the step's own: groups that waited come first, and only the first mini-batch has f = 1.
  """
  order = np.random.default_rng([seed, step]).permutation(len(groups))
  return [[groups[i] for i in part] for part in np.array_split(order, count) if len(part)]


def first_fit(lengths: Sequence[int], capacity: int, most: int | None = None) -> list[list[int]]:
  """First-fit decreasing bin packing: lists of at most `most` indices whose lengths add up to at most capacity.

  Deterministic; equal lengths keep their order. Uses at most 11/9 of the optimum + 1 bins (Johnson 1973).
  Raises ValueError when one length exceeds the capacity.
  """
  bins: list[list[int]] = []
  room: list[int] = []
  for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
    if lengths[i] > capacity:
      raise ValueError(f"batch.row_tokens={capacity}: a prompt with its response has {lengths[i]} tokens.")
    fits = (b for b, free in enumerate(room) if free >= lengths[i] and (most is None or len(bins[b]) < most))
    b = next(fits, len(bins))
    if b == len(bins):
      bins.append([])
      room.append(capacity)
    bins[b].append(i)
    room[b] -= lengths[i]
  return bins


def pack(
  groups: Sequence[Sequence[Rollout]], *, row_tokens: int, micro_rows: int, num_micro: int, segments: int | None = None
) -> Packed:
  """Packs the rollouts of one mini-batch.

  Args:
    groups: rollouts by prompt, with advantages filled in.
    row_tokens: T. micro_rows: R. num_micro: M, so that every mini-batch has one shape; unused ones are padding.
    segments: the most of a row; None: as many as there is room for.
  Returns:
    `Packed`; places are in the order of the rollouts, group after group.
  Raises:
    ValueError: a rollout is longer than a row, or the rows do not fit into M micro-batches.
  """
  rollouts = [r for group in groups for r in group]
  group_tokens = [n for group in groups for n in [sum(len(r.tokens) for r in group)] * len(group)]
  lengths = [len(r.prompt.tokens) + len(r.tokens) for r in rollouts]
  rows = first_fit(lengths, row_tokens, segments)
  used = -(-len(rows) // micro_rows)
  if used > num_micro:
    raise ValueError(f"batch.micro_rows={micro_rows}: {len(rows)} rows need {used} micro-batches, not {num_micro}.")
  shape = (num_micro, micro_rows, row_tokens)
  names = [f.name for f in dataclasses.fields(Batch) if f.default is dataclasses.MISSING] + ["age"]
  a = {n: np.zeros(shape, np.int32 if n in ("tokens", "positions", "segments") else np.float32) for n in names}
  places: list[Place | None] = [None] * len(rollouts)
  for number, members in enumerate(rows):
    # Deal rows round the used micro-batches, so that all are about equally full.
    micro, row, at = number % used, number // used, 0
    for segment, i in enumerate(members, start=1):
      r = rollouts[i]
      start, stop = at + len(r.prompt.tokens), at + len(r.prompt.tokens) + len(r.tokens)
      whole, response = (micro, row, slice(at, stop)), (micro, row, slice(start, stop))
      a["tokens"][whole] = np.concatenate([r.prompt.tokens, r.tokens])
      a["positions"][whole] = np.arange(stop - at)
      a["segments"][whole] = segment
      a["mask"][response] = 1.0
      a["advantages"][response] = r.advantage
      a["sampler_logp"][response] = r.logp
      a["group_tokens"][whole] = group_tokens[i]
      a["age"][whole] = r.age
      places[i], at = Place(micro, row, start, stop), stop
  return Packed(Batch(**a), used, places)
