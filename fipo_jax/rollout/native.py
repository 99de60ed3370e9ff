"""The sampler that needs nothing but JAX: continuous batching over the jitted programs of `decode`."""

from __future__ import annotations

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fipo_jax.models import cache_pallas
from fipo_jax.models.cache import CACHES, KINDS, bytes_per_token
from fipo_jax.models.transformer import Model
from fipo_jax.rollout import decode
from fipo_jax.rollout.sampling import Sampling
from fipo_jax.rollout.usage import Usage, compile_seconds
from fipo_jax.sharding import RULES, named, to_mesh
from fipo_jax.types import Prompt, Rollout

SMALLEST_PROMPT_BUCKET = 16  # tokens; prompts are padded to this times a power of two
PREFILL_TOKENS = 16_384  # padded tokens of one shard in one prefill, or one prompt
STEPS = 64  # tokens per slot between two looks of the host
PAGES_PER_BLOCK = 8  # of the cache that the TPU kernel works on at a time
GROWTH = 4  # a pool that is too small grows by a quarter

Group = list[Rollout]


@dataclasses.dataclass
class _Sample:
  """One response in the making: `rollout` holds what earlier calls made of it, tokens and the rest what this one did."""

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


class NativeEngine:
  """Samples with the trainer's own model code on the trainer's mesh.

  `slots` sequences are decoded side by side; one that ends makes room for the next prompt without leaving the program.
  A prompt is prefilled once for all its samples, who share its full pages. The cache is as large as the pages in use
  need, and at the end, when the queue is empty, half or a quarter of the slots take over what is left.

  A sample's randomness is derived from (key, prompt.id, sample, position) alone. Padding to other lengths can still move
  the last bit of a logit, so equal tokens in another batch are as good as certain in float32 and likely in bfloat16.
  """

  def __init__(
    self, model: Model, mesh, *, slots: int, max_prompt_tokens: int, max_response_tokens: int, pad_id: int,
    page_tokens: int = 64, cache_tokens: int = 0, cache_dtype: str = "", attention: str = "auto",
    text: Callable | None = None,
  ):  # fmt: skip
    """See the class.

    Args:
      slots: sequences decoded at a time, a multiple of the shards (data x fsdp); 0: from the free memory of the device.
      max_prompt_tokens, max_response_tokens: longest prompt taken; limit that `Sampling.max_tokens` must respect.
      pad_id: token id that fills padding; any id of the vocabulary.
      page_tokens: tokens of a page of the cache.
      cache_tokens: tokens in the responses' pages, over the mesh; when they are full the youngest responses are put
        back and continued later. 0: the cache grows as needed (with slots=0: from the free memory).
      cache_dtype: "int8", or "" for the model's compute dtype.
      attention: layout of the cache: "xla", "pallas" (TPU), or "auto": pallas on a TPU where the model allows it.
      text: token ids -> text, for `Sampling.stop_strings`.
    Raises:
      ValueError: a size is out of range, or pad_id is not in the vocabulary.
    """
    sizes = {"max_prompt_tokens": max_prompt_tokens, "max_response_tokens": max_response_tokens}
    for name, value in (sizes | {"page_tokens": page_tokens}).items():
      if value < 1:
        raise ValueError(f"rollout.{name}={value} must be at least 1.")
    if slots < 0 or cache_tokens < 0:
      raise ValueError(f"rollout.slots={slots}, rollout.cache_tokens={cache_tokens}: must be 0 (automatic) or more.")
    if cache_dtype not in ("", "int8", "bfloat16", "float32"):
      raise ValueError(f"rollout.cache_dtype={cache_dtype!r}: expected '' (the compute dtype), 'int8' or 'bfloat16'.")
    if not 0 <= pad_id < model.config.vocab_size:
      raise ValueError(f"pad_id={pad_id} is not in the vocabulary of {model.config.vocab_size} tokens.")
    self.model, self.mesh, self.pad_id, self.page, self.text = model, mesh, pad_id, page_tokens, text
    self.max_prompt_tokens, self.max_response_tokens = max_prompt_tokens, max_response_tokens
    self.cache_dtype = cache_dtype or model.config.dtype
    self.shards = math.prod(mesh.shape[axis] for axis in RULES["rows"])
    self.token_bytes = bytes_per_token(model.config, self.cache_dtype)
    self.slots, self.cache_tokens = slots, cache_tokens
    if slots % self.shards:
      raise ValueError(
        f"rollout.slots={slots} must be a multiple of data*fsdp={self.shards}; "
        f"try {-(-slots // self.shards) * self.shards}."
      )
    if cache_tokens and cache_tokens // self.shards < (need := self._longest()):
      raise ValueError(
        f"rollout.cache_tokens={cache_tokens} must hold one longest response on each of {self.shards} shards; "
        f"use at least {need * self.shards}, or 0."
      )
    self.params, self.usage = None, Usage()
    kernel = pallas_fits(model.config, self.cache_dtype, page_tokens) and mesh.devices.flat[0].platform == "tpu"
    if attention not in ("auto", "xla", "pallas"):
      raise ValueError(f"rollout.attention={attention!r}: expected 'auto', 'xla' or 'pallas'.")
    attention = ("pallas" if kernel else "xla") if attention == "auto" else attention
    most_pages = -(-(max_prompt_tokens + max_response_tokens) // page_tokens) + 1
    self.layout = CACHES["xla"] if attention == "xla" else cache_pallas.layout(most_pages, PAGES_PER_BLOCK)
    self.unstacked = attention == "xla"  # layers by name; else a scan over them, and a program that depth does not grow
    self._own_pages = self._shared_pages = 0  # of one shard, as large as past calls needed
    self._adopt = jax.jit(self._resident, out_shardings=self._shardings())

  def update(self, params) -> None:
    """Takes the policy's parameters: in the compute dtype, layer by layer, whole on every row group of the mesh.

    One program casts and reshards; the caller's arrays stay his own.
    """
    self.release()  # never two copies
    with jax.set_mesh(self.mesh):
      self.params = self._adopt(params)
    if not self.slots:
      self._size_from_memory()

  def release(self) -> None:
    """Lets go of the parameters; see Engine."""
    self.params = None

  def generate(
    self, prompts: Sequence[Prompt], samples_per_prompt: int, *, key, sampling: Sampling, progress=None, watch=None,
    pending: Sequence[Group] = (), limits: Sequence[int] | None = None,
  ) -> list[Group]:  # fmt: skip
    """Samples responses; see Engine.

    Args:
      limits: max_tokens of each prompt, where that is less than the sampling's.
    Raises:
      ValueError: a prompt is empty, too long, or has ids outside the vocabulary; max_tokens is above the limit; or
        there was no `update` since the start or the last `release`.
    """
    self._check(prompts, samples_per_prompt, sampling, pending)
    with jax.set_mesh(self.mesh):
      call = _Call(self, prompts, samples_per_prompt, key, sampling, pending, limits)
      self.usage = call.usage
      if call.samples:
        call.serve(progress or (lambda done, total: None), watch)
    return call.groups

  def _resident(self, params):
    params = self.model.cast(params)
    return self.model.unstack(params) if self.unstacked else params

  def _shardings(self):
    """Whole along the axes that also spread slots: a weight cut by them would be gathered anew for every token."""
    whole = jax.tree.map(_without_row_axes, self.model.shardings(self.mesh))
    if not self.unstacked:
      return whole
    unstack = lambda s: NamedSharding(s.mesh, PartitionSpec(*s.spec[1:]))
    layer = jax.tree.map(unstack, whole["layers"])
    return whole | {"layers": (layer,) * self.model.config.num_layers}

  def _longest(self) -> int:
    """Tokens in whole pages that one longest response needs for itself."""
    return (-(-self.max_response_tokens // self.page) + 1) * self.page

  def _size_from_memory(self):
    """slots="auto": most of what is free on a device goes to pages; slots so that responses of half the limit fit."""
    devices = self.mesh.local_devices
    stats = devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
      free = stats["bytes_limit"] - stats["bytes_in_use"]
    else:
      free = _free_host_memory() // len(devices)
    cut = self.mesh.shape["tensor"]
    tokens = int(0.8 * free) * cut // self.token_bytes
    if tokens < (need := self.max_prompt_tokens + self._longest()):
      raise ValueError(
        f"rollout.slots='auto': {free / 2**30:.2f} GiB are free on a device, {tokens} tokens of cache, but one longest "
        f"response needs {need}; use rollout.cache_dtype='int8', a larger mesh.tensor, or a shorter limit."
      )
    per_slot = self.max_prompt_tokens + self.max_response_tokens // 2
    self.slots = self.shards * max(1, min(256, tokens // per_slot))
    self.cache_tokens = self.cache_tokens or self.shards * min(tokens, self.slots // self.shards * self._longest())

  def _check(self, prompts, samples_per_prompt, sampling, pending):
    if self.params is None:
      raise ValueError("the engine has no parameters; call update(params) before generate.")
    if samples_per_prompt < 1:
      raise ValueError(f"samples_per_prompt={samples_per_prompt} must be at least 1.")
    if sampling.max_tokens > self.max_response_tokens:
      raise ValueError(
        f"sampling.max_tokens={sampling.max_tokens} must be at most "
        f"rollout.max_response_tokens={self.max_response_tokens}."
      )
    if sampling.stop_strings and self.text is None:
      raise ValueError(f"sampling.stop_strings={sampling.stop_strings}: this engine was given no way to make text.")
    vocab = self.model.config.vocab_size
    for prompt in [*prompts, *(group[0].prompt for group in pending)]:
      n = len(prompt.tokens)
      if not 1 <= n <= self.max_prompt_tokens:
        raise ValueError(
          f"prompt id={prompt.id} has {n} tokens; need 1 to rollout.max_prompt_tokens={self.max_prompt_tokens}: "
          "raise the limit or filter the prompts."
        )
      if not (0 <= np.min(prompt.tokens) and np.max(prompt.tokens) < vocab):
        raise ValueError(
          f"prompt id={prompt.id} has a token id outside 0..{vocab - 1}, the model's vocabulary; "
          "do tokenizer and model belong together?"
        )


class _Call:
  """One `generate`: the host's side of continuous batching."""

  def __init__(self, engine: NativeEngine, prompts, samples_per_prompt, key, sampling, pending, limits):
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
    limits = [sampling.max_tokens] * len(pending) + list([sampling.max_tokens] * len(prompts) if limits is None else limits)
    self.limit = {}
    self.samples: list[_Sample] = []
    self.owner: list[int] = []  # of each sample: its group
    self.entries: collections.deque[_Entry] = collections.deque()
    for number, group in enumerate(self.groups):
      mine = [r for r in group if not r.finished]
      made = [_Sample(len(self.samples) + i, r, np.zeros(2, np.uint32)) for i, r in enumerate(mine)]
      for sample in made:
        self.limit[sample.uid] = min(limits[number], sampling.max_tokens)
        sample.count = len(sample.rollout.tokens)
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
      more = bool(self.entries)
      before = time.perf_counter()
      fewest = self._fewer()
      queue, ready = self._queue()
      e_shared = tuple(self._place(np.concatenate([getattr(s, name) for s in self.shards])) for name in ("owner", "index"))
      self.pools, self.slots, log = decode.run(
        e.model, e.layout, dataclasses.replace(self.sampling, stop_strings=()), e.params, self.pools, self.slots, queue, ready, e_shared,
        np.bool_(more), np.int32(fewest), page=e.page, width=self.width if self.kinds["shared"] else 0, steps=STEPS,
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
    self.shards = [
      _Shard(list(range(2 * self.size + tails)), list(range(tails)), list(range(shared)), *np.full((2, shared), -1, np.int32))
      for _ in range(D)
    ]
    new = lambda: e.layout.new(e.model.config, self.kinds, page, e.cache_dtype, D)
    shape = jax.eval_shape(new)
    axes = jax.tree.structure(shape).flatten_up_to(e.layout.axes(shape))
    places = [named(e.mesh, *a) for a in axes]
    self.pools = jax.jit(new, out_shardings=jax.tree.unflatten(jax.tree.structure(shape), places))()
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
    self.usage.prompts += len(batch)

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
      if self.sampling.stop_strings and self._cut(sample, len(parts[0][k])):
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

  def _cut(self, sample: _Sample, new: int) -> bool:
    """Ends a sample at the first token whose text completes a stop string; whether there is one."""
    tokens = np.concatenate([sample.rollout.tokens, *sample.tokens])
    has = lambda n: any(s in self.engine.text(tokens[:n]) for s in self.sampling.stop_strings)
    if not has(len(tokens)):
      return False
    low, high = len(tokens) - new, len(tokens)  # not complete with low tokens, complete with high
    while high - low > 1:
      middle = (low + high) // 2
      low, high = (low, middle) if has(middle) else (middle, high)
    surplus = len(tokens) - high
    if surplus:
      for parts in (sample.tokens, sample.logp, sample.raw):
        parts[-1] = parts[-1][:-surplus]
    sample.count -= surplus
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
      pad = lambda x: self._place(np.pad(np.asarray(x).reshape(D, -1), ((0, 0), (0, by)), constant_values=-1).reshape(-1))
      self.slots = dataclasses.replace(self.slots, owner_P=pad(self.slots.owner_P), index_P=pad(self.slots.index_P))
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
    if self.entries or any(s.queue for s in self.shards):
      return 0
    smaller = [n for n in _sizes(self.engine.slots // self.engine.shards) if n < self.size]
    return max(smaller, default=0)

  # ---- to the device ----

  def _queue(self):
    D, places = self.engine.shards, self.size
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
    waiting = sum((len(x.entry.tokens) - 1) % e.page for s in self.shards for x, n in s.queue if n == 0 and x.entry.tail >= 0)
    u.saw(at, seconds, steps, slots, int((log.uid_CS[:steps] >= 0).sum()), held + shared * e.page + waiting, capacity)
    done = sum(s.done for s in self.samples)
    if done and not u.first_sample_s:
      u.first_sample_s = at
    u.last_sample_s = at


def pallas_fits(config, cache_dtype: str, page_tokens: int) -> bool:
  """Whether JAX's paged attention kernel takes this model and cache."""
  return config.head_dim % 128 == 0 and cache_dtype == "bfloat16" and page_tokens % 8 == 0


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


def _free_host_memory() -> int:
  with open("/proc/meminfo") as file:
    for line in file:
      if line.startswith("MemAvailable:"):
        return int(line.split()[1]) * 1024
  raise ValueError("rollout.slots='auto': this system does not say how much memory is free; give a number.")


def _without_row_axes(sharding: NamedSharding) -> NamedSharding:
  """The same layout, but whole along every mesh axis that `rows` uses."""

  def keep(part):
    axes = tuple(a for a in ((part,) if isinstance(part, str) else part or ()) if a not in RULES["rows"])
    return axes if len(axes) > 1 else axes[0] if axes else None

  return NamedSharding(sharding.mesh, PartitionSpec(*(keep(part) for part in sharding.spec)))
