"""The host's side of continuous batching: one `generate` of the native engine.

    entries (prompts) -> prefill -> queue of a shard -> slots -> harvest -> groups

The host decides by what the device's log says and nothing else, so all hosts of a pod decide alike.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import time
from collections.abc import Sequence

import jax
import numpy as np

from fipo_jax.models.cache import KINDS
from fipo_jax.rollout import decode
from fipo_jax.rollout.stops import StopSearch
from fipo_jax.rollout.usage import Usage, compile_seconds
from fipo_jax.sharding import named_tree, to_mesh
from fipo_jax.types import Rollout

SMALLEST_PROMPT_BUCKET = 16  # tokens; prompts are padded to this times a power of two
PREFILL_TOKENS = 16_384  # padded tokens of one shard in one prefill, or one prompt
STEPS = 64  # tokens per slot between two looks of the host
GROWTH = 4  # a pool that is too small grows by a quarter

Group = list[Rollout]


@dataclasses.dataclass
class _Sample:
  """One response in the making: `rollout` is what earlier calls made of it, the lists what this one adds."""

  uid: int
  rollout: Rollout
  key: np.ndarray
  entry: _Entry | None = None
  tokens: list[np.ndarray] = dataclasses.field(default_factory=list)
  logp: list[np.ndarray] = dataclasses.field(default_factory=list)
  raw: list[np.ndarray] = dataclasses.field(default_factory=list)
  count: int = 0
  last: int = -1
  done: bool = False
  stops: StopSearch | None = None


@dataclasses.dataclass
class _Entry:
  """A prompt in the pages of one shard (of a response that goes on: with what there is of it), and who needs it."""

  tokens: np.ndarray
  samples: list[_Sample]
  id: int = -1
  pages: list[int] = dataclasses.field(default_factory=list)
  tail: int = -1
  home: _Shard | None = None
  waiting: int = 0  # samples not yet in a slot
  open: int = 0  # samples not yet finished


@dataclasses.dataclass
class _Shard:
  """What the host knows of one shard: free numbers of each kind, and its queue."""

  entries: list[int]
  tails: list[int]
  pages: list[int]
  owner: np.ndarray  # of each shared page: prompt, -1
  index: np.ndarray
  queue: collections.deque = dataclasses.field(default_factory=collections.deque)
  active: int = 0


class Call:
  """One `generate`: the host's side of continuous batching."""

  def __init__(self, engine, prompts, samples_per_prompt, key, sampling, pending, limits):
    self.engine, self.sampling, self.usage = engine, sampling, Usage(token_bytes=engine.token_bytes)
    raw = tuple(int(x) for x in np.asarray(jax.random.key_data(key)))
    empty = np.zeros(0, np.float32)
    fresh = [
      [
        Rollout(p, g, np.zeros(0, np.int32), empty, "unfinished", raw_logp=empty, key=raw)
        for g in range(samples_per_prompt)
      ]
      for p in prompts
    ]
    self.groups: list[Group] = [list(group) for group in pending] + fresh
    limits = [sampling.max_tokens] * len(prompts) if limits is None else list(limits)
    limits = [sampling.max_tokens] * len(pending) + limits
    self.limit = {}
    self.samples: list[_Sample] = []
    self.owner: list[int] = []  # of each sample: its group
    self.entries: collections.deque[_Entry] = collections.deque()
    for number, group in enumerate(self.groups):
      group[:] = [_at_limit(r, min(limits[number], sampling.max_tokens)) for r in group]
      mine = [r for r in group if not r.finished]
      made = [_Sample(len(self.samples) + i, r, np.zeros(2, np.uint32)) for i, r in enumerate(mine)]
      for sample in made:
        self.limit[sample.uid] = min(limits[number], sampling.max_tokens)
        sample.count = len(sample.rollout.tokens)
        if sampling.stop_strings:
          sample.stops = StopSearch(
            engine.text, sampling.stop_strings, sampling.min_tokens, begun=sample.rollout.tokens
          )
      self.samples += made
      self.owner += [number] * len(made)
      if begun := [s for s in made if s.count]:
        self.entries += [_Entry(_so_far(s), [s]) for s in begun]
      if new := [s for s in made if not s.count]:
        self.entries.append(_Entry(np.asarray(new[0].rollout.prompt.tokens, np.int32), new))
    self.left = collections.Counter(self.owner)
    for sample, data in zip(self.samples, _sample_keys([s.rollout for s in self.samples]), strict=True):
      sample.key = data
    self.width = max((len(e.samples) for e in self.entries), default=1)

  # ---- the loop ----

  def serve(self, progress, watch) -> None:
    """Prefills, runs and harvests until every sample is done, or watch says that it is enough."""
    e, began, compiled = self.engine, time.perf_counter(), compile_seconds()
    self._allocate()
    while True:
      self._refill()
      more = bool(self.entries) or any(len(s.queue) > self.size for s in self.shards)
      before = time.perf_counter()
      fewest = self._fewer()
      queue, ready = self._queue()
      shared = [self._place(np.concatenate([getattr(s, name) for s in self.shards])) for name in ("owner", "index")]
      self.pools, self.slots, log = decode.run(
        e.model, e.layout, dataclasses.replace(self.sampling, stop_strings=()), e.params, self.pools, self.slots, queue,
        ready, tuple(shared), np.bool_(more), np.int32(fewest), page=e.page,
        width=self.width if self.kinds["shared"] else 0, steps=STEPS, decide=e.decide,
      )  # fmt: skip
      log = jax.tree.map(np.asarray, log)
      finished = self._harvest(log)
      self._observe(log, time.perf_counter() - before, time.perf_counter() - began)
      progress(sum(s.done for s in self.samples), len(self.samples))
      if all(s.done for s in self.samples):
        if watch and finished:
          watch(finished)
        break
      if watch and finished and watch(finished):
        break
      if log.short:
        self._make_room(log)
      elif fewest and log.active_D.max() <= fewest and not more and not any(s.queue for s in self.shards):
        self.slots, self.size = decode.shrink(self.slots, fewer=fewest), fewest
    for sample in self.samples:
      if not sample.done:
        self._write(sample, "unfinished")
    self.usage.seconds = time.perf_counter() - began
    self.usage.compile_s = compile_seconds() - compiled

  def _allocate(self) -> None:
    """Slots, pools and the host's lists of what is free, on every shard."""
    e, D = self.engine, self.engine.shards
    most = e.slots // D
    self.size = next((n for n in _sizes(most)[::-1] if n * D >= len(self.samples)), most)
    self.ahead = max(1, self.size // 4)  # samples that wait in the queue of a shard
    self.rows = max(1, self.ahead // self.width)  # prompts of one prefill
    page, longest = e.page, max(len(x.tokens) for x in self.entries)
    tails = max(2, self.ahead)
    if e.cache_tokens:
      own = e.cache_tokens // page // D
    else:
      begin = -(-min(self.sampling.max_tokens, page) // page) + (min(longest, page) > 1)
      own = max(e._own_pages, self.size * begin)
    full = (longest - 1) // page
    groups = -(-self.size // self.width) + self.rows
    shared = max(e._shared_pages, full * min(groups, len(self.entries)))
    self.kinds = {"own": own, "shared": shared, "tail": tails}
    numbers = lambda n: list(range(n))
    self.shards = [
      _Shard(
        numbers(2 * self.size + tails), numbers(tails), numbers(shared), *np.full((2, shared), -1, np.int32)
      )
      for _ in range(D)
    ]  # fmt: skip
    self.pools = _new_pools(e.layout, e.model.config, tuple(self.kinds.items()), page, e.cache_dtype, D, e.mesh)()
    none = np.full(D * own, -1, np.int32)
    self.slots = decode.Slots(self._work([None] * (D * self.size)), self._place(none), self._place(none))
    self._remember()

  def _refill(self) -> None:
    """Prefills prompts, the emptiest shard first, until enough samples wait on each."""
    e = self.engine
    while self.entries:
      batch: list[tuple[int, _Entry]] = []
      rows = collections.Counter()
      length = 0
      while self.entries:
        entry = self.entries[0]
        n = _bucket(max(length, len(entry.tokens) - 1), e.max_prompt_tokens + e.max_response_tokens)
        open_shards = [
          d for d, s in enumerate(self.shards)
          if s.entries and s.tails and rows[d] < self.rows and self._load(d) < self.ahead
          and (rows[d] == 0 or n * (rows[d] + 1) <= PREFILL_TOKENS)
        ]  # fmt: skip
        if not open_shards:
          break
        d = min(open_shards, key=lambda d: (self._load(d) + self.shards[d].active, d))
        full = (len(entry.tokens) - 1) // e.page
        if full > len(self.shards[d].pages):
          if batch:
            break
          self._grow("shared", full - len(self.shards[d].pages))
        self.entries.popleft()
        self._settle(d, entry, full)
        batch.append((d, entry))
        rows[d] += 1
        length = max(length, len(entry.tokens) - 1)
      if not batch:
        return
      self._prefill(batch, _bucket(max(length, 1), e.max_prompt_tokens + e.max_response_tokens))

  def _load(self, d: int) -> int:
    return len(self.shards[d].queue)

  def _settle(self, d: int, entry: _Entry, full: int) -> None:
    """Gives a prompt its numbers on shard d and puts its samples into the queue."""
    shard = self.shards[d]
    entry.home, entry.id = shard, shard.entries.pop()
    entry.pages = [shard.pages.pop() for _ in range(full)]
    shard.owner[entry.pages], shard.index[entry.pages] = entry.id, np.arange(full)
    rest = (len(entry.tokens) - 1) % self.engine.page
    entry.tail = shard.tails.pop() if rest else -1
    entry.waiting = entry.open = len(entry.samples)
    for number, sample in enumerate(entry.samples):
      sample.entry = entry
      sample.last = int(entry.tokens[-1])
      shard.queue.append((sample, number))

  def _prefill(self, batch, length: int) -> None:
    """One program: rows of every shard, short ones and missing ones padded. A prompt of one token needs none."""
    e, D, R = self.engine, self.engine.shards, self.rows
    R = min(R, max(1, PREFILL_TOKENS // length))
    tokens = np.full((D * R, length), e.pad_id, np.int32)
    lengths, tails = np.zeros(D * R, np.int32), np.full(D * R, self.kinds["tail"], np.int32)
    pages = np.full((D * R, length // e.page if self.kinds["shared"] else 0), self.kinds["shared"], np.int32)
    rows = collections.Counter()
    for d, entry in batch:
      r = d * R + rows[d]
      rows[d] += 1
      n = len(entry.tokens) - 1
      tokens[r, :n], lengths[r] = entry.tokens[:-1], n
      pages[r, : len(entry.pages)] = entry.pages
      tails[r] = entry.tail if entry.tail >= 0 else tails[r]
    if not lengths.any():
      return
    began = time.perf_counter()
    self.pools = decode.prefill(
      e.model, e.layout, e.params, self.pools, *map(self._place, (tokens, lengths, pages, tails)), page=e.page
    )
    jax.block_until_ready(self.pools)
    self.usage.prefill_seconds += time.perf_counter() - began
    self.usage.prefill_tokens += int(lengths.sum())
    self.usage.prompts += int((lengths > 0).sum())

  def _harvest(self, log) -> list[Group]:
    """Takes the tokens of a run to their samples; returns the groups that are complete now."""
    for d, shard in enumerate(self.shards):
      for _ in range(int(log.taken_D[d])):
        sample, _ = shard.queue.popleft()
        sample.entry.waiting -= 1
        if not sample.entry.waiting and sample.entry.tail >= 0:
          shard.tails.append(sample.entry.tail)
          sample.entry.tail = -1
      shard.active = int(log.active_D[d])
    n = int(log.steps)
    uid = log.uid_CS[:n].reshape(-1)
    order = np.argsort(uid, kind="stable")  # by sample, steps in order
    order = order[np.searchsorted(uid[order], 0) :]
    ids, first = np.unique(uid[order], return_index=True)
    parts = [np.split(x[:n].reshape(-1)[order], first[1:]) for x in (log.token_CS, log.logp_CS, log.raw_CS)]
    finished = []
    strings = []
    for k, i in enumerate(ids):
      sample = self.samples[i]
      for to, of in zip((sample.tokens, sample.logp, sample.raw), parts, strict=True):
        to.append(of[k])
      sample.count += len(parts[0][k])
      sample.last = int(parts[0][k][-1])
      ended = sample.last in self.sampling.stop_ids
      if sample.stops and self._cut(sample):
        ended = True
        strings.append(i)
      if ended or sample.count >= self.limit[i]:
        self._write(sample, "stop" if ended else "length")
        self.usage.lengths.append(sample.count)
        self._leave(sample)
        self.left[self.owner[i]] -= 1
        if not self.left[self.owner[i]]:
          finished.append(self.groups[self.owner[i]])
    if strings:  # those that the device still has in a slot
      self.slots = decode.drop(self.slots, self._place(np.isin(log.uid_S, strings)))
      for d, shard in enumerate(self.shards):
        shard.active -= int(np.isin(log.uid_S.reshape(len(self.shards), -1)[d], strings).sum())
    self.usage.tokens += int((uid >= 0).sum())
    return finished

  def _cut(self, sample: _Sample) -> bool:
    """Ends a sample at the first token whose text completes a stop string; whether there is one."""
    new = len(sample.tokens[-1])
    keep = sample.stops.feed(sample.tokens[-1])
    if keep is None:
      return False
    for parts in (sample.tokens, sample.logp, sample.raw):
      parts[-1] = parts[-1][:keep]
    sample.count -= new - keep
    return True

  def _write(self, sample: _Sample, reason: str) -> None:
    """The sample's rollout, with this call's tokens."""
    r, number = sample.rollout, self.owner[sample.uid]
    join = lambda old, parts, dtype: np.concatenate([np.asarray(old, dtype), *parts]).astype(dtype)
    new = dataclasses.replace(
      r, tokens=join(r.tokens, sample.tokens, np.int32), logp=join(r.logp, sample.logp, np.float32),
      raw_logp=join(r.raw_logp, sample.raw, np.float32), stop_reason=reason,
    )  # fmt: skip
    group = self.groups[number]
    group[next(i for i, x in enumerate(group) if x.sample == r.sample)] = new
    sample.done = reason != "unfinished"

  def _leave(self, sample: _Sample) -> None:
    """A sample no longer needs its prompt; the last one frees it."""
    entry = sample.entry
    entry.open -= 1
    if not entry.open:
      entry.home.entries.append(entry.id)
      entry.home.pages += entry.pages
      entry.home.owner[entry.pages] = -1

  def _make_room(self, log) -> None:
    """More own pages; or, where their number is fixed, the shortest responses are put back until the rest can go on."""
    e, D = self.engine, self.engine.shards
    if not e.cache_tokens:
      return self._grow("own", max(1, self.kinds["own"] // GROWTH))
    victims = []
    for uid_s in log.uid_S.reshape(D, -1):
      busy = sorted((i for i in uid_s if i >= 0 and not self.samples[i].done), key=lambda i: (self.samples[i].count, i))
      victims += busy[: max(1, len(busy) // 8)] if len(busy) > 1 else []
    self.slots = decode.drop(self.slots, self._place(np.isin(log.uid_S, victims)))
    for i in sorted(victims, reverse=True):
      sample = self.samples[i]
      self._leave(sample)
      self._write(sample, "unfinished")
      sample.rollout = next(r for r in self.groups[self.owner[i]] if r.sample == sample.rollout.sample)
      sample.tokens, sample.logp, sample.raw = [], [], []
      self.entries.appendleft(_Entry(_so_far(sample), [sample]))
      self.usage.interrupted += 1
    for d, shard in enumerate(self.shards):
      shard.active -= int(np.isin(log.uid_S.reshape(D, -1)[d], victims).sum())

  def _grow(self, kind: str, by: int) -> None:
    """A larger pool of one kind, on every shard."""
    D, old = self.engine.shards, self.kinds[kind]
    by = max(by, -(-old // GROWTH))
    self.kinds[kind] += by
    self.pools = self.engine.layout.grow(self.pools, kind, by, D)
    if kind == "own":
      self.slots = decode.more_pages(self.slots, by=by, shards=D)
    else:
      for s in self.shards:
        s.pages += range(old, old + by)
        s.owner, s.index = (np.pad(x, (0, by), constant_values=-1) for x in (s.owner, s.index))
    self._remember()

  def _remember(self) -> None:
    """The next call starts with what this one needed, and compiles nothing anew."""
    self.engine._own_pages, self.engine._shared_pages = self.kinds["own"], self.kinds["shared"]

  def _fewer(self) -> int:
    """The next smaller number of slots per shard, 0 where there is none or it is too early."""
    if self.entries:
      return 0  # what waits in the queue may all start in the coming run, which shrinks only once it is empty
    smaller = [n for n in _sizes(self.engine.slots // self.engine.shards) if n < self.size]
    return max(smaller, default=0)

  # ---- to the device ----

  def _queue(self):
    places = self.size
    rows = [(list(s.queue)[:places] + [None] * places)[:places] for s in self.shards]
    ready = np.array([min(len(s.queue), places) for s in self.shards], np.int32)
    return self._work([x for row in rows for x in row]), self._place(ready)

  def _work(self, items) -> decode.Work:
    """The record of queued (sample, number of its entry) pairs, None: nothing."""
    n, e = len(items), self.engine
    columns = {
      f.name: np.zeros(n, np.int32) for f in dataclasses.fields(decode.Work) if f.name not in ("key", "seen")
    }
    columns["uid"] -= 1
    columns["key"] = np.zeros((n, 2), np.uint32)
    seen = np.zeros((n, e.model.config.vocab_size), bool) if self.sampling.repetition_penalty != 1 else None
    for i, item in enumerate(items):
      if item is None:
        continue
      sample, number = item
      entry = sample.entry
      length = len(entry.tokens) - 1
      values = dict(
        uid=sample.uid, key=sample.key, last=sample.last, length=length, shared=len(entry.pages) * e.page,
        entry=entry.id, sample=number, tail=entry.tail if length % e.page else -1, count=sample.count,
        limit=self.limit[sample.uid],
      )  # fmt: skip
      for name, value in values.items():
        columns[name][i] = value
      if seen is not None:
        seen[i, entry.tokens] = True
    place = self._place
    return decode.Work(**{k: place(v) for k, v in columns.items()}, seen=None if seen is None else place(seen))

  def _place(self, x):
    return to_mesh(self.engine.mesh, np.asarray(x), "rows")

  def _observe(self, log, seconds: float, at: float) -> None:
    e, u = self.engine, self.usage
    steps, slots = int(log.steps), self.size * e.shards
    held = int(log.held)
    shared = sum(int((s.owner >= 0).sum()) for s in self.shards)
    u.slot_steps += steps * slots
    u.decode_seconds += seconds
    capacity = sum(self.kinds[k] for k in KINDS) * e.shards * e.page
    first = [x.entry for s in self.shards for x, number in s.queue if number == 0]
    waiting = sum((len(entry.tokens) - 1) % e.page for entry in first)
    u.saw(at, seconds, steps, slots, int((log.uid_CS[:steps] >= 0).sum()), held + shared * e.page + waiting, capacity)
    done = sum(s.done for s in self.samples)
    if done and not u.first_sample_s:
      u.first_sample_s = at
    u.last_sample_s = at


@functools.lru_cache(maxsize=8)
def _new_pools(layout, config, kinds, page: int, dtype: str, shards: int, mesh):
  """The jitted program that makes empty pools of {kind: pages per shard}."""
  new = lambda: layout.new(config, dict(kinds), page, dtype, shards)
  return jax.jit(new, out_shardings=named_tree(mesh, layout.axes(jax.eval_shape(new))))


def _at_limit(r: Rollout, limit: int) -> Rollout:
  """An unfinished response that has all the tokens it may have is finished."""
  return r if r.finished or len(r.tokens) < limit else dataclasses.replace(r, stop_reason="length")


def _so_far(sample: _Sample) -> np.ndarray:
  r = sample.rollout
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


def _sizes(most: int) -> list[int]:
  """Numbers of slots per shard, largest first: all, a half, a quarter; few, as each is a program of its own."""
  return [most // n for n in (1, 2, 4) if most % n == 0]


def _bucket(tokens: int, limit: int) -> int:
  """Padded prompt length: the next power of two, so that few programs are compiled; never above the limit."""
  return min(limit, max(SMALLEST_PROMPT_BUCKET, 1 << (max(tokens, 1) - 1).bit_length()))
