"""A device that samples nothing: the rules of `decode.run` over lengths that are given, and a clock.

The host's side of sampling (`serving.Call`) runs on it as it does on the accelerator. Between two events (a sample
ends, pages run out, the host is due) every token step does the same, so that many of them are one piece of NumPy.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np

from fipo_jax.rollout.capacity import Shape
from fipo_jax.rollout.decode import ADMITTED_AT_ONCE, Log
from fipo_jax.rollout.device import STEPS

TOKEN = 0  # of every sampled token but the last
COLUMNS = ("uid", "length", "shared", "entry", "tail", "count", "limit")  # of the queue that matter here


class Costs(Protocol):
  """What the simulated device's clock goes by, in seconds."""

  def token_steps(self, steps: int, shape: Shape, context_D: np.ndarray, growth_D: np.ndarray) -> float:
    """So many token steps at these slots and pages; tokens in use at the first, and how many more at each."""

  def prefill(self, rows: int, length: int) -> float:
    """One program of so many rows per shard, padded to a length."""

  def look(self, slots: int) -> float:
    """The host's, at so many slots over the mesh, between two runs."""

  def resize(self, tokens: int) -> float:
    """Of pools that hold so many tokens on a shard."""


class Clock:
  """Seconds by what they were spent on; slot_s: of slots, busy or not, out of `most` slots per shard."""

  def __init__(self):
    self.seconds: dict[str, float] = collections.defaultdict(float)
    self.busy_slot_s = self.slot_s = 0.0

  @property
  def now(self) -> float:
    return sum(self.seconds.values())


class Simulated:
  """In place of `rollout.device.Device`, with its methods; leading axes are all shards' together.

  Shards run in step, as they do where one program decides for all: a token step takes as long as the fullest needs.
  """

  def __init__(
    self, *, shards: int, page: int, most_slots: int, stop_id: int, costs: Costs, clock: Clock, lengths_of: Callable,
    decide: int = 1,
  ):  # fmt: skip
    """See the class.

    Args:
      most_slots: per shard, of which idle ones are counted. stop_id: token that ends a response.
      lengths_of: keys [n, 2] uint32 of samples -> tokens [n] after which the model would end each.
      decide: token steps from one decision of all shards to the next, a power of two; slots that end in between idle.
    """
    self.D, self.page, self.most_slots, self.stop_id = shards, page, most_slots, stop_id
    self.costs, self.clock, self.lengths_of, self.decide = costs, clock, lengths_of, decide
    self._programs = collections.defaultdict(set)

  def allocate(self, shape) -> None:
    """Empty pools and slots."""
    self.shape = shape
    make = lambda fill: np.full((self.D, shape.slots), fill, np.int64)
    self.work = {name: make(-1 if name == "uid" else 0) for name in COLUMNS}
    self.rest_DS, self.stops_DS = make(0), np.zeros((self.D, shape.slots), bool)
    self.pages_DS = make(0)
    self.reserved = [collections.Counter() for _ in range(self.D)]  # own pages of prompts that wait, by their number
    self._programs["decode"].add(shape)

  def prefill(self, rows: dict[str, np.ndarray]) -> None:
    """Fields of `decode.Rows`."""
    R, T = rows["tokens"].shape
    for d, (own_R, entry_R) in enumerate(zip(*(rows[k].reshape(self.D, -1) for k in ("own", "entry")), strict=True)):
      for own, entry in zip(own_R, entry_R, strict=True):
        if own:
          self.reserved[d][int(entry)] += int(own)
    self.clock.seconds["prefill"] += self.costs.prefill(R // self.D, T)
    self._programs["prefill"].add((R, T))

  def run(self, queue, histories, ready, shared, more: bool, fewest: int, grows: bool, keep: int) -> Log:
    """As `decode.run` with STEPS steps."""
    del histories, shared  # texts and pages are not held
    D, S = self.D, self.shape.slots
    queue = {name: x.reshape(D, -1, *x.shape[1:]) for name, x in queue.items()}
    lengths_DQ = np.zeros((D, queue["uid"].shape[1]), np.int64)
    there_DQ = np.arange(queue["uid"].shape[1]) < ready[:, None]
    lengths_DQ[there_DQ] = self.lengths_of(queue["key"][there_DQ])
    uid_CDS = np.full((STEPS, D, S), -1, np.int32)
    token_CDS = np.full((STEPS, D, S), TOKEN, np.int32)
    taken_D, held, step = np.zeros(D, np.int64), 0, 0
    while True:
      hungry = False
      if step < STEPS:
        for d in range(D):
          hungry |= self._admit(d, queue, lengths_DQ[d], int(ready[d]), taken_D, keep)
      end = step + self._steps(STEPS - step, taken_D >= ready, more, fewest, grows and hungry)
      if step == end:
        break
      while step < end:
        active_DS = self.work["uid"] >= 0
        n = min(end - step, int(self.rest_DS[active_DS].min(initial=end - step)))  # to the next that ends
        own_DS = self.work["length"] - self.work["shared"]
        uid_CDS[step : step + n] = self.work["uid"]
        context_D = np.where(active_DS, self.work["length"] + 1, 0).sum(1)
        seconds = self.costs.token_steps(n, self.shape, context_D, active_DS.sum(1))
        self.clock.seconds["decode"] += seconds
        self.clock.busy_slot_s += seconds * int(active_DS.sum())
        self.clock.slot_s += seconds * D * self.most_slots
        self.pages_DS = np.where(active_DS, -(-(own_DS + n) // self.page), self.pages_DS)
        held = max(held, int(np.where(active_DS, own_DS + n, 0).sum()))
        for name in ("length", "count"):
          self.work[name] += np.where(active_DS, n, 0)
        self.rest_DS -= np.where(active_DS, n, 0)
        step += n
        done_DS = active_DS & (self.rest_DS == 0)
        token_CDS[step - 1][done_DS & self.stops_DS] = self.stop_id
        self._empty(done_DS)
    hungry = grows and self._waits(queue, ready, taken_D, keep)
    short_D = self._needed_D() > self._free_D()
    self.clock.seconds["look"] += self.costs.look(D * S)
    zeros = np.broadcast_to(np.float32(0), (STEPS, D * S))
    flat = lambda x: x.reshape(STEPS, -1)
    i32 = lambda x: np.asarray(x, np.int32)
    return Log(
      flat(uid_CDS), flat(token_CDS), zeros, zeros, i32(step), i32(taken_D), i32(self.work["uid"].reshape(-1)),
      i32((self.work["uid"] >= 0).sum(1)), i32(self._used_D()), i32(held), short_D, np.bool_(hungry),
    )  # fmt: skip

  def drop(self, drop_S: np.ndarray, drop_E: np.ndarray) -> None:
    """As `decode.drop`."""
    self._empty((self.work["uid"] >= 0) & drop_S.reshape(self.D, -1))
    for counter, drop in zip(self.reserved, drop_E.reshape(self.D, -1), strict=True):
      for entry in [e for e in counter if drop[e]]:
        del counter[entry]

  def reshape(self, shape, shared_from: np.ndarray) -> None:
    """Other numbers of slots and pages, with what is in use of both."""
    del shared_from
    tokens = sum(shape.pages[kind] for kind in ("own", "shared") if shape.pages[kind] != self.shape.pages[kind])
    self.clock.seconds["resize"] += self.costs.resize(tokens * self.page)
    order_DS = np.argsort(self.work["uid"] < 0, axis=1, kind="stable")[:, : shape.slots]
    take = lambda x: np.take_along_axis(x, order_DS, 1)
    self.work = {name: take(x) for name, x in self.work.items()}
    self.rest_DS, self.stops_DS, self.pages_DS = map(take, (self.rest_DS, self.stops_DS, self.pages_DS))
    self.shape = shape
    self._programs["decode"].add(shape)

  def programs(self, what: str) -> int:
    """How many "decode" or "prefill" programs the real device would have needed."""
    return len(self._programs[what])

  # ---- the rules ----

  def _used_D(self) -> np.ndarray:
    return self.pages_DS.sum(1) + [sum(r.values()) for r in self.reserved]

  def _free_D(self) -> np.ndarray:
    return self.shape.own - self._used_D()

  def _needed_D(self) -> np.ndarray:
    """Pages that the next token step takes."""
    own_DS = self.work["length"] - self.work["shared"]
    return ((self.work["uid"] >= 0) & (own_DS % self.page == 0)).sum(1)

  def _admit(self, d: int, queue, lengths_Q, ready: int, taken_D, keep: int) -> bool:
    """Fills idle slots of one shard, as `decode._admit` does pass by pass; whether one stays idle for want of pages."""
    S, w = self.shape.slots, {name: x[d] for name, x in self.work.items()}  # views
    while True:
      idle_S = np.flatnonzero(w["uid"] < 0)
      taken = int(taken_D[d])
      most = min(len(idle_S), ready - taken, min(S, ADMITTED_AT_ONCE))
      if most <= 0:
        return False
      from_A = slice(taken, taken + most)
      tail, length, shared, entry = (queue[name][d, from_A] for name in ("tail", "length", "shared", "entry"))
      own = length - shared
      free = self.shape.own - int(self.pages_DS[d].sum()) - sum(self.reserved[d].values())
      needed = int(((w["uid"] >= 0) & ((w["length"] - w["shared"]) % self.page == 0)).sum())
      spare = free - needed - keep * (S - len(idle_S))
      takes = ((tail >= 0) | (own % self.page == 0)).astype(np.int64)
      fits = np.cumsum(takes) + keep * np.arange(most) <= spare
      if not (number := int(fits.sum())):
        return True
      at = idle_S[:number]
      for name in COLUMNS:
        w[name][at] = queue[name][d, taken : taken + number]
      limit, count = w["limit"][at], w["count"][at]
      end = lengths_Q[taken : taken + number]
      self.stops_DS[d, at] = end <= limit
      self.rest_DS[d, at] = np.maximum(np.minimum(end, limit) - count, 1)
      self.pages_DS[d, at] = [
        (t >= 0) + self.reserved[d].pop(int(e), 0)
        for t, e in zip(tail[:number], entry[:number], strict=True)
      ]  # fmt: skip
      taken_D[d] += number

  def _waits(self, queue, ready, taken_D, keep: int) -> bool:
    """Whether a shard has an idle slot and a queue, and lacks pages for the first in it."""
    active_D = (self.work["uid"] >= 0).sum(1)
    next_D = np.minimum(taken_D, queue["uid"].shape[1] - 1)
    tail, length, shared = (queue[name][np.arange(self.D), next_D] for name in ("tail", "length", "shared"))
    takes_D = (tail >= 0) | ((length - shared) % self.page == 0)
    lacks_D = takes_D > self._free_D() - self._needed_D() - keep * active_D
    return bool(np.any((active_D < self.shape.slots) & (taken_D < ready) & lacks_D))

  def _steps(self, most: int, empty_D, more: bool, fewest: int, hungry: bool) -> int:
    """Token steps until something happens: at most so many, 0 where the host is needed now."""
    S, active_DS = self.shape.slots, self.work["uid"] >= 0
    active_D = active_DS.sum(1)
    empty = bool(np.all(empty_D))
    starved = empty and more and int((S - active_D).sum()) * 8 >= self.D * S
    shrinks = empty and not more and int(active_D.max()) <= fewest
    if most <= 0 or not active_D.any() or starved or shrinks or hungry:
      return 0
    own_DS = np.where(active_DS, self.work["length"] - self.work["shared"], 0)
    left_DS = np.where(active_DS, self.work["limit"] - self.work["count"], 0)
    free_D, held_DS = self._free_D(), -(-own_DS // self.page)
    # A block may end early for each slot, but pages are there for the most that its limit allows.
    takes = lambda n: (-(-(own_DS + np.minimum(n, left_DS)) // self.page) - held_DS).sum(1)
    if self.decide > 1:
      size = self.decide
      while size and not np.all(takes(size) <= free_D):
        size //= 2
      return min(most, size, int(left_DS.max()))
    # As many blocks of one step as go by before one ends.
    most = min(most, int(self.rest_DS[active_DS].min()))
    if np.all(takes(most) <= free_D):
      return most
    low, high = 0, most  # takes(low) fits, takes(high) does not
    while high - low > 1:
      middle = (low + high) // 2
      low, high = (middle, high) if np.all(takes(middle) <= free_D) else (low, middle)
    return low

  def _empty(self, gone_DS) -> None:
    self.work["uid"][gone_DS] = -1
    self.pages_DS[gone_DS] = 0


@dataclasses.dataclass(frozen=True)
class Lengths:
  """Response lengths, drawn by a sample's own random key: the same sample has the same length in any slot or call.

      tokens = quantile(u),   u in (0, 1) from the key

  quantiles: at equal steps of u, ascending.
  """

  quantiles: tuple[float, ...]

  def __call__(self, key_n2: np.ndarray) -> np.ndarray:
    """Tokens, at least 1, of samples with these keys."""
    key = key_n2.astype(np.uint64)
    x = (key[:, 0] << np.uint64(32)) | key[:, 1]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64: neighbours fall far apart
      x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    u = ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    grid = (np.arange(len(self.quantiles)) + 0.5) / len(self.quantiles)
    return np.maximum(1, np.rint(np.interp(u, grid, self.quantiles))).astype(np.int64)
