"""What the host asks of the accelerator while it serves, in NumPy: the only place where serving meets JAX."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from fipo_jax.models.cache import KINDS
from fipo_jax.rollout import decode
from fipo_jax.rollout.capacity import Shape
from fipo_jax.rollout.sampling import Sampling
from fipo_jax.sharding import named_tree, to_mesh

STEPS = 64  # tokens per slot between two looks of the host


class Device:
  """Pools, slots and parameters of one `generate`. Leading axes are all shards' together, as in `decode`."""

  def __init__(self, engine, sampling: Sampling, width: int):
    """Of a native engine that has parameters, for `width` samples per prompt."""
    # What the programs do not read is none of their business: another limit is no other program.
    self.sampling = dataclasses.replace(sampling, stop_strings=(), max_tokens=max(1, sampling.min_tokens))
    self.engine, self.width = engine, width
    self.place = functools.partial(_place, engine.mesh)

  def allocate(self, shape: Shape) -> None:
    """Empty pools and slots."""
    e, self.shape = self.engine, shape
    pages = tuple(shape.pages.items())
    self.pools = _new_pools(e.layout, e.model.config, pages, e.page, e.cache_dtype, e.shards, e.mesh)()
    n, none = e.shards * shape.slots, np.full(e.shards * shape.own, decode.NOBODY, np.int32)
    seen = np.zeros((n, e.model.config.vocab_size), bool) if self.sampling.repetition_penalty != 1 else None
    work = decode.Work(**empty_work(n), seen=seen)
    self.slots = jax.tree.map(self.place, decode.Slots(work, none, none))
    self._count("decode", shape)

  def prefill(self, rows: dict[str, np.ndarray]) -> None:
    """Fields of `decode.Rows`; waits until it is done."""
    e = self.engine
    rows = decode.Rows(**{name: self.place(x) for name, x in rows.items()})
    kv = decode.prefill(e.model, e.params, rows.tokens, rows.length)
    self.pools, self.slots = decode.store(e.layout, self.pools, self.slots, kv, rows, page=e.page)
    jax.block_until_ready(self.pools)
    self._count("prefill", rows.tokens.shape)

  def run(self, queue, histories, ready, shared, more: bool, fewest: int, grows: bool, keep: int) -> decode.Log:
    """Decodes until the host is needed; arguments as of `decode.run`, in NumPy.

    queue: fields of `decode.Work` but seen. histories: tokens of each place so far, for the repetition penalty.
    """
    e = self.engine
    seen = None
    if self.slots.work.seen is not None:
      seen = np.zeros((len(histories), e.model.config.vocab_size), bool)
      for row, tokens in zip(seen, histories, strict=True):
        row[tokens] = True
      seen = self.place(np.packbits(seen, axis=-1))
    work = decode.Work(**{name: self.place(x) for name, x in queue.items()}, seen=seen)
    self.pools, self.slots, log = decode.run(
      e.model, e.layout, self.sampling, e.params, self.pools, self.slots, work, self.place(ready),
      tuple(map(self.place, shared)), np.bool_(more), np.int32(fewest), np.bool_(grows), np.int32(keep), page=e.page,
      width=self.width if self.shape.shared else 0, steps=STEPS, decide=e.decide,
    )  # fmt: skip
    return jax.tree.map(np.asarray, log)

  def drop(self, drop_S: np.ndarray, drop_E: np.ndarray) -> None:
    """As `decode.drop`."""
    self.slots = decode.drop(self.slots, self.place(drop_S), self.place(drop_E))

  def reshape(self, shape: Shape, shared_from: np.ndarray) -> None:
    """Other numbers of slots and pages. shared_from: of each shared page which it was; beyond the old ones: none."""
    layout, old, self.shape = self.engine.layout, self.shape, shape
    self.slots, own_from = decode.reshape(self.slots, fewer=shape.slots, pages=shape.own)
    # Where own pages go is said on the devices, and not brought to the host: it sees those of its own process alone.
    for kind, source in (("own", own_from), ("shared", self.place(shared_from))):
      if shape.pages[kind] != old.pages[kind]:
        self.pools = layout.resize(self.pools, kind, source)
    self._count("decode", shape)

  def _count(self, what: str, *key) -> None:
    """Of the programs of this way of sampling."""
    self.engine.programs.setdefault((self.sampling, self.width, what), set()).add(key)

  def programs(self, what: str) -> int:
    """How many "decode" or "prefill" programs this way of sampling has needed, in the life of the engine."""
    return len(self.engine.programs.get((self.sampling, self.width, what), ()))


def empty_work(n: int) -> dict[str, np.ndarray]:
  """Fields of `decode.Work` but seen, with nothing in any place."""
  names = (f.name for f in dataclasses.fields(decode.Work) if f.name not in ("key", "seen"))
  columns = {name: np.zeros(n, np.int32) for name in names}
  return columns | {"uid": np.full(n, -1, np.int32), "key": np.zeros((n, 2), np.uint32)}


def _place(mesh, x):
  return to_mesh(mesh, np.asarray(x), "rows")


@functools.lru_cache(maxsize=16)
def _new_pools(layout, config, pages, page: int, dtype: str, shards: int, mesh):
  """The jitted program that makes empty pools of {kind: pages per shard}."""
  new = lambda: layout.new(config, {kind: dict(pages)[kind] for kind in KINDS}, page, dtype, shards)
  return jax.jit(new, out_shardings=named_tree(mesh, layout.axes(jax.eval_shape(new))))
