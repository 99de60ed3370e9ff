"""The host's side of continuous batching: one `generate` of the native engine.

    entries (prompts) -> prefill -> queue of a shard -> slots -> harvest -> groups

The host decides by what the device's log says and nothing else, so all hosts of a pod decide alike.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Sequence

import jax
import numpy as np

from fipo_jax.rollout.capacity import Capacity, Shape
from fipo_jax.rollout.device import empty_work
from fipo_jax.rollout.looks import Looks
from fipo_jax.rollout.stops import StopSearch
from fipo_jax.rollout.usage import Usage, compile_seconds
from fipo_jax.types import Rollout, unbegun

NEVER = 2**31
Group = list[Rollout]


@dataclasses.dataclass
class _Sample:
  """One response in the making: `rollout` is what earlier calls made of it, or what it had when it was put back."""

  uid: int
  rollout: Rollout
  key: np.ndarray
  owner: int  # number of its group
  limit: int
  entry: _Entry | None = None
  since: int = NEVER  # the look of the host from which on it has tokens that are not in `rollout`
  done: bool = False
  stops: StopSearch | None = None


@dataclasses.dataclass
class _Entry:
  """A prompt in the pages of one shard (of a response that goes on: with what there is of it), and who needs it.

  A prompt of one sample lies in own pages, which wait for its slot; one of several in shared pages and a tail.
  """

  tokens: np.ndarray
  samples: list[_Sample]
  id: int = -1
  pages: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
  tail: int = -1
  home: int = -1
  waiting: int = 0  # samples not yet in a slot
  open: int = 0  # samples not yet finished

  @property
  def alone(self) -> bool:
    return len(self.samples) == 1

  @property
  def length(self) -> int:
    """Tokens whose keys and values lie in pages before the first step."""
    return len(self.tokens) - 1


@dataclasses.dataclass
class _Shard:
  """What the host knows of one shard: free numbers of each kind, free own pages, and its queue."""

  entries: list[int]
  tails: list[int]
  pages: list[int]
  owner: np.ndarray  # of each shared page: prompt, -1
  index: np.ndarray
  own: int = 0  # free own pages
  queue: collections.deque = dataclasses.field(default_factory=collections.deque)
  active: int = 0


class Call:
  """One `generate`: the host's side of continuous batching."""

  def __init__(
    self, device, capacity: Capacity, prompts, samples_per_prompt: int, key, sampling, pending=(), limits=None, *,
    pad_id: int = 0, text=None, token_bytes: int = 0,
  ):  # fmt: skip
    """Of a `Device`."""
    self.device, self.capacity, self.sampling, self.pad_id = device, capacity, sampling, pad_id
    self.usage, self.width = Usage(token_bytes=token_bytes), samples_per_prompt
    raw = tuple(int(x) for x in np.asarray(jax.random.key_data(key)))
    fresh = [[unbegun(p, number, raw) for number in range(samples_per_prompt)] for p in prompts]
    self.groups: list[Group] = [list(group) for group in pending] + fresh
    limits = [sampling.max_tokens] * len(prompts) if limits is None else list(limits)
    limits = [min(n, sampling.max_tokens) for n in [sampling.max_tokens] * len(pending) + limits]
    self.samples: list[_Sample] = []
    self.entries: collections.deque[_Entry] = collections.deque()
    for number, group in enumerate(self.groups):
      group[:] = [_at_limit(r, limits[number]) for r in group]
      made = []
      for r in (r for r in group if not r.finished):
        stops = None
        if sampling.stop_strings:
          stops = StopSearch(text, sampling.stop_strings, sampling.min_tokens, begun=r.tokens)
        uid = len(self.samples) + len(made)
        made.append(_Sample(uid, r, np.zeros(2, np.uint32), number, limits[number], stops=stops))
      self.samples += made
      self.entries += [_Entry(_so_far(s.rollout), [s]) for s in made if len(s.rollout.tokens)]
      if new := [s for s in made if not len(s.rollout.tokens)]:
        self.entries.append(_Entry(np.asarray(new[0].rollout.prompt.tokens, np.int32), new))
    for sample, data in zip(self.samples, _sample_keys([s.rollout for s in self.samples]), strict=True):
      sample.key = data
    self.left = collections.Counter(s.owner for s in self.samples)
    self.limits = np.array([s.limit for s in self.samples], np.int32)
    self.looks = Looks([len(s.rollout.tokens) for s in self.samples])
    self.finished, self.keep = 0, 0  # samples; see `_keep`

  # ---- the loop ----

  def serve(self, progress, watch) -> None:
    """Prefills, runs and harvests until every sample is done, or watch says that it is enough."""
    began, compiled, state = time.perf_counter(), compile_seconds(), None
    self._allocate()
    while True:
      filled = self._refill()
      more = bool(self.entries) and filled or any(len(s.queue) > self._places for s in self.shards)
      before, fewer = time.perf_counter(), self._fewer()
      queue, histories, ready = self._queue()
      shared = tuple(np.concatenate([getattr(s, name) for s in self.shards]) for name in ("owner", "index"))
      fewest = fewer.slots if fewer else 0
      log = self.device.run(queue, histories, ready, shared, more, fewest, self._larger() is not None, self._keep)
      complete = self._harvest(log)
      before_this, state = state, (self.finished, self.usage.tokens, self.usage.prompts, len(self.entries), self.shape)
      if state == before_this and not (log.taken_D.any() or log.short_D.any() or log.hungry):
        raise RuntimeError(f"the sampler stands still at {state}: please report this, with the run's config.json.")
      self._observe(log, time.perf_counter() - before, time.perf_counter() - began)
      progress(self.finished, len(self.samples))
      if self.finished == len(self.samples):
        if watch and complete:
          watch(complete)
        break
      if watch and watch(complete):
        break
      if log.short_D.any() or log.hungry:
        self._make_room(log)
      elif self.keep > 1 and any(s.queue and s.active < self.shape.slots for s in self.shards):
        self.keep -= 1
      elif fewer and log.active_D.max() <= fewest and not more and not any(s.queue for s in self.shards):
        self._reshape(fewer)
    for sample in self.samples:
      if not sample.done:
        self._write(sample, "unfinished")
    self.usage.decode_programs, self.usage.prefill_programs = map(self.device.programs, ("decode", "prefill"))
    self.usage.seconds = time.perf_counter() - began
    self.usage.compile_s = compile_seconds() - compiled

  def _allocate(self) -> None:
    """Slots, the smallest pools for so many, and the host's lists of what is free, on every shard."""
    c = self.capacity
    shapes = c.shapes(self.width)
    self.whole = [s for s in shapes if s.slots == c.slots]
    self.fewer = [s for s in shapes if s.slots < c.slots]
    small = [s for s in self.fewer if s.slots * c.shards >= len(self.samples)]
    self.shape = small[-1] if small else self.whole[0]
    numbers = lambda n: list(range(n))
    self.most_entries = 2 * (c.slots + c.ahead + self.width)
    shared = self.shape.shared
    self.shards = [
      _Shard(
        numbers(self.most_entries), numbers(self.shape.tail), numbers(shared), *np.full((2, shared), -1, np.int32),
        own=self.shape.own,
      )
      for _ in range(c.shards)
    ]  # fmt: skip
    self.device.allocate(self.shape)

  @property
  def _places(self) -> int:
    """Of the queue of a shard on the device."""
    return min(self.shape.slots, self.capacity.ahead + self.width)

  def _refill(self) -> bool:
    """Prefills prompts, the emptiest shard first, until enough samples wait; False: there are no pages for them."""
    c, filled = self.capacity, True
    while self.entries:
      batch: list[tuple[int, _Entry]] = []
      rows = collections.Counter()
      length = 0
      while self.entries:
        entry = self.entries[0]
        most = c.rows(c.prefill_length(max(length, entry.length)), self.width)
        open_shards = [
          d for d, s in enumerate(self.shards)
          if s.entries and (entry.alone or s.tails) and rows[d] < most and len(s.queue) < c.ahead
        ]  # fmt: skip
        if not open_shards or max(rows.values(), default=0) > most:
          break
        fits = [d for d in open_shards if self._fits(d, entry)]
        if not fits:
          idle = any(not s.queue and s.active < self.shape.slots for s in (self.shards[d] for d in open_shards))
          if not batch and idle and (larger := self._larger()):
            self._reshape(larger)
            continue
          filled = False
          break
        d = min(fits, key=lambda d: (len(self.shards[d].queue) + self.shards[d].active, d))
        self.entries.popleft()
        self._settle(d, entry)
        batch.append((d, entry))
        rows[d] += 1
        length = max(length, entry.length)
      if not batch:
        break
      self._prefill(batch, c.prefill_length(length))
    return filled

  @property
  def _keep(self) -> int:
    """Own pages that are left for each sample that runs, so that few that began must be put back.

    None at first; one more, or twice as many, after each time that responses had to be put back, up to an eighth of the
    longest; one less where slots are idle for want of pages.
    """
    return self.keep if self.shape.own < self.shape.slots * self.capacity.longest else 0

  def _fits(self, d: int, entry: _Entry) -> bool:
    """Whether a shard has pages for a prompt and its next token, beside one or more for each sample that is there."""
    shard, page = self.shards[d], self.capacity.page
    if not entry.alone:
      return entry.length // page <= len(shard.pages)
    return entry.length // page + 1 + self._keep * shard.active + len(shard.queue) <= shard.own

  def _settle(self, d: int, entry: _Entry) -> None:
    """Gives a prompt its numbers on shard d and puts its samples into the queue."""
    shard, page = self.shards[d], self.capacity.page
    entry.home, entry.id = d, shard.entries.pop()
    entry.waiting = entry.open = len(entry.samples)
    if entry.alone:
      shard.own -= -(-entry.length // page)
    else:
      full = entry.length // page
      entry.pages = np.array([shard.pages.pop() for _ in range(full)], np.int32)
      shard.owner[entry.pages], shard.index[entry.pages] = entry.id, np.arange(full)
      entry.tail = shard.tails.pop() if entry.length % page else -1
    for number, sample in enumerate(entry.samples):
      sample.entry = entry
      self.looks.last[sample.uid] = entry.tokens[-1]
      shard.queue.append((sample, number))

  def _prefill(self, batch, length: int) -> None:
    """One program: rows of every shard, short ones and missing ones padded. A prompt of one token needs none."""
    c = self.capacity
    D, R, page = c.shards, c.rows(length, self.width), c.page
    int32 = lambda *shape: np.zeros(shape, np.int32)
    rows = {
      "tokens": np.full((D * R, length), self.pad_id, np.int32), "length": int32(D * R),
      "pages": np.full((D * R, length // page if self.shape.shared else 0), self.shape.shared, np.int32),
      "tail": np.full(D * R, self.shape.tail, np.int32), "own": int32(D * R), "entry": int32(D * R),
    }  # fmt: skip
    used = collections.Counter()
    for d, entry in batch:
      r = d * R + used[d]
      used[d] += 1
      rows["tokens"][r, : entry.length], rows["length"][r] = entry.tokens[:-1], entry.length
      rows["entry"][r] = entry.id
      rows["pages"][r, : len(entry.pages)] = entry.pages
      rows["own"][r] = -(-entry.length // page) if entry.alone else 0
      rows["tail"][r] = entry.tail if entry.tail >= 0 else self.shape.tail
    if not rows["length"].any():
      return
    began = time.perf_counter()
    self.device.prefill(rows)
    self.usage.prefill_seconds += time.perf_counter() - began
    self.usage.prefill_tokens += int(rows["length"].sum())
    self.usage.prompts += int((rows["length"] > 0).sum())

  def _harvest(self, log) -> list[Group]:
    """Takes the tokens of a run to their samples; returns the groups that are complete now."""
    for d, shard in enumerate(self.shards):
      for _ in range(int(log.taken_D[d])):
        sample, _ = shard.queue.popleft()
        sample.since = len(self.looks)
        sample.entry.waiting -= 1
        if not sample.entry.waiting and sample.entry.tail >= 0:
          shard.tails.append(sample.entry.tail)
          sample.entry.tail = -1
      shard.active, shard.own = int(log.active_D[d]), self.shape.own - int(log.used_D[d])
    uids = self.looks.add(log)
    stopped = np.isin(self.looks.last[uids], self.sampling.stop_ids)
    cut = []
    if self.sampling.stop_strings:
      for i, uid in enumerate(uids):
        if self._cut(self.samples[uid]):
          stopped[i] = True
          cut.append(uid)
    over = stopped | (self.looks.count[uids] >= self.limits[uids])
    complete = []
    for uid, stop in zip(uids[over], stopped[over], strict=True):
      sample = self.samples[uid]
      self._write(sample, "stop" if stop else "length")
      self.usage.lengths.append(len(sample.rollout.tokens))
      self._leave(sample)
      self.finished += 1
      self.left[sample.owner] -= 1
      if not self.left[sample.owner]:
        complete.append(self.groups[sample.owner])
    if cut:  # the device may still have them in a slot
      self._drop(log, cut)
    self.usage.tokens += self.looks.sampled
    return complete

  def _cut(self, sample: _Sample) -> bool:
    """Ends a sample at the first token whose text completes a stop string; whether there is one."""
    new = self.looks.newest(sample.uid)
    keep = sample.stops.feed(new)
    if keep is None:
      return False
    self.looks.count[sample.uid] -= len(new) - keep
    return True

  def _write(self, sample: _Sample, reason: str) -> None:
    """The sample's rollout, with the tokens of this call."""
    r = sample.rollout
    whole = lambda old, new, dtype: np.concatenate([np.asarray(old, dtype), new]).astype(dtype, copy=False)
    tokens, logp, raw = self.looks.since(sample.uid, sample.since, len(r.tokens))
    new = dataclasses.replace(
      r, tokens=whole(r.tokens, tokens, np.int32), logp=whole(r.logp, logp, np.float32),
      raw_logp=whole(r.raw_logp, raw, np.float32), stop_reason=reason,
    )  # fmt: skip
    group = self.groups[sample.owner]
    group[next(i for i, x in enumerate(group) if x.sample == r.sample)] = new
    sample.rollout, sample.since, sample.done = new, NEVER, reason != "unfinished"

  def _leave(self, sample: _Sample) -> None:
    """A sample no longer needs its prompt; the last one frees it."""
    entry = sample.entry
    entry.open -= 1
    if not entry.open:
      shard = self.shards[entry.home]
      shard.entries.append(entry.id)
      shard.pages += entry.pages.tolist()
      shard.owner[entry.pages] = -1

  # ---- room ----

  def _larger(self) -> Shape | None:
    """The next shape with more pages for as many slots."""
    if self.shape in self.whole[:-1]:
      return self.whole[self.whole.index(self.shape) + 1]
    return None

  def _make_room(self, log) -> None:
    """More pages; or, at the end of the budget, where pages lack, responses are put back until the others can go on.

    First those with the fewest tokens, which must be prefilled again: a page costs about as many tokens whoever has it,
    but who has got far will soon give all of them back.
    """
    if larger := self._larger():
      return self._reshape(larger)
    self.keep = min(max(1, 2 * self.keep), -(-self.capacity.longest // 8))
    page, victims, freed = self.capacity.page, [], np.zeros((self.capacity.shards, self.most_entries), bool)
    for d in np.nonzero(log.short_D)[0]:
      shard = self.shards[d]
      for item in [x for x in reversed(shard.queue) if x[0].entry.alone]:  # nothing of theirs was sampled yet
        if shard.own >= shard.active:
          break
        shard.queue.remove(item)
        freed[d, item[0].entry.id] = True
        shard.own += -(-item[0].entry.length // page)
        self._put_back(item[0])
      busy = [int(i) for i in log.uid_S.reshape(self.capacity.shards, -1)[d] if i >= 0 and not self.samples[i].done]
      busy.sort(key=lambda uid: -self.looks.count[uid])
      while len(busy) > 1 and shard.own < len(busy):
        victims.append(uid := busy.pop())
        shard.own += self._own_pages(self.samples[uid])
    self._drop(log, victims, freed)
    for uid in victims[::-1]:
      self._put_back(self.samples[uid])

  def _own_pages(self, sample: _Sample) -> int:
    """Pages of a sample in a slot that nobody else has."""
    shared = len(sample.entry.pages) * self.capacity.page
    held = len(sample.rollout.prompt.tokens) - 1 + self.looks.count[sample.uid] - shared
    return -(-int(held) // self.capacity.page)

  def _put_back(self, sample: _Sample) -> None:
    """A sample without a slot waits for one as it did at first, with what it has."""
    self._leave(sample)
    self._write(sample, "unfinished")
    self.entries.appendleft(_Entry(_so_far(sample.rollout), [sample]))
    self.usage.interrupted += 1

  def _drop(self, log, uids: Sequence[int], freed=None) -> None:
    """Takes samples out of their slots, and prompts out of the own pages that are reserved for them."""
    drop_S = np.isin(log.uid_S, np.asarray(uids, np.int32))
    if freed is None:
      freed = np.zeros((self.capacity.shards, self.most_entries), bool)
    if drop_S.any() or freed.any():
      self.device.drop(drop_S, freed.reshape(-1))
    for d, shard in enumerate(self.shards):
      shard.active -= int(drop_S.reshape(self.capacity.shards, -1)[d].sum())

  def _fewer(self) -> Shape | None:
    """The next shape with fewer slots; none while prompts are left, which may all start in the coming run."""
    smaller = [s for s in self.fewer if s.slots < self.shape.slots]
    return smaller[0] if smaller and not self.entries else None

  def _reshape(self, shape: Shape) -> None:
    """Other numbers of slots and pages; shared pages that are in use come first, and the host numbers them anew."""
    old, self.shape = self.shape, shape
    source = np.full((self.capacity.shards, shape.shared), old.shared, np.int32)
    for d, shard in enumerate(self.shards):
      shard.own += shape.own - old.own
      if shape.shared == old.shared:
        continue
      used = np.nonzero(shard.owner >= 0)[0]
      source[d, : len(used)] = used
      new = np.full(old.shared + 1, -1, np.int32)
      new[used] = np.arange(len(used))
      for entry in {id(s.entry): s.entry for s in self.samples if not s.done and s.entry is not None}.values():
        if entry.home == d:
          entry.pages = new[entry.pages]
      owner, index = np.full((2, shape.shared), -1, np.int32)
      owner[: len(used)], index[: len(used)] = shard.owner[used], shard.index[used]
      shard.owner, shard.index, shard.pages = owner, index, list(range(len(used), shape.shared))
    self.device.reshape(shape, source.reshape(-1))

  # ---- to the device ----

  def _queue(self):
    """(columns of `decode.Work`, tokens so far of each place, places that are filled)."""
    places, page = self._places, self.capacity.page
    columns = empty_work(places * len(self.shards))
    histories = [np.zeros(0, np.int32)] * (places * len(self.shards))
    for d, shard in enumerate(self.shards):
      for i, (sample, number) in enumerate(list(shard.queue)[:places]):
        entry, at = sample.entry, d * places + i
        values = dict(
          uid=sample.uid, key=sample.key, last=self.looks.last[sample.uid], length=entry.length,
          shared=len(entry.pages) * page, entry=entry.id, sample=number, tail=entry.tail,
          count=self.looks.count[sample.uid], limit=sample.limit,
        )  # fmt: skip
        for name, value in values.items():
          columns[name][at] = value
        histories[at] = entry.tokens
    return columns, histories, np.array([min(len(s.queue), places) for s in self.shards], np.int32)

  def _observe(self, log, seconds: float, at: float) -> None:
    u, c = self.usage, self.capacity
    steps, slots = int(log.steps), self.shape.slots * c.shards
    shared = sum(int((s.owner >= 0).sum()) for s in self.shards)
    u.slot_steps += steps * slots
    u.decode_seconds += seconds
    capacity = sum(self.shape.pages.values()) * c.shards * c.page
    waiting = sum(  # tails, and prompts in own pages that no slot has yet
      (x.entry.length if x.entry.alone else x.entry.length % c.page) for s in self.shards for x, n in s.queue if n == 0
    )
    held = int(log.held) + shared * c.page + waiting
    u.saw(at, seconds, steps, slots, self.looks.sampled, held, capacity)
    if self.finished and not u.first_sample_s:
      u.first_sample_s = at
    u.last_sample_s = at


def _at_limit(r: Rollout, limit: int) -> Rollout:
  """An unfinished response that has all the tokens it may have is finished."""
  return r if r.finished or len(r.tokens) < limit else dataclasses.replace(r, stop_reason="length")


def _so_far(r: Rollout) -> np.ndarray:
  return np.concatenate([r.prompt.tokens, r.tokens]).astype(np.int32)


@jax.jit
def _fold_many(key_N2, id_N, sample_N):
  def one(key_2, i, g):
    key = jax.random.wrap_key_data(key_2)
    return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, i), g))

  return jax.vmap(one)(key_N2, id_N, sample_N)


def _sample_keys(rollouts: Sequence[Rollout]) -> np.ndarray:
  """[n, 2] uint32: raw data of each sample's own key, from the call that began it, its prompt and its number."""
  if not rollouts:
    return np.zeros((0, 2), np.uint32)
  size = 1 << (len(rollouts) - 1).bit_length()  # few programs
  pad = lambda x: np.resize(np.array(x, np.uint32), (size, *np.shape(x)[1:]))
  keys = pad([r.key for r in rollouts])
  ids, numbers = pad([r.prompt.id & 0xFFFFFFFF for r in rollouts]), pad([r.sample for r in rollouts])
  return np.asarray(_fold_many(keys, ids, numbers))[: len(rollouts)]
