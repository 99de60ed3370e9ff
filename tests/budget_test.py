"""The cache keeps its budget, whatever lengths do: bytes that are really alive, and the programs that are compiled."""

import collections
import contextlib
import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from native_test import KEY, random_params, same_numbers

from fipo_jax.models import PRESETS, cache, make_model
from fipo_jax.rollout import ENGINES, Sampling, capacity, decode, device
from fipo_jax.rollout.capacity import MOST_DECODE, MOST_PREFILL
from fipo_jax.sharding import make_mesh
from fipo_jax.types import Prompt

MODEL = make_model(
  dataclasses.replace(
    PRESETS["tiny"], vocab_size=40, num_layers=4, d_model=16, d_mlp=24, num_heads=2, num_kv_heads=2, head_dim=32
  )
)
SAMPLING = Sampling(max_tokens=48, stop_ids=(7,))
SLOTS = 6  # of a shard; half and a quarter of an odd number there are not


@pytest.fixture(autouse=True)
def small_pools(monkeypatch):
  """Pools may grow, small as they are."""
  monkeypatch.setattr(capacity, "SMALLEST_POOL", 0)


def make_prompts(n, equal):
  rng = np.random.default_rng(1)
  sizes = np.full(n, 13) if equal else rng.integers(1, 24, n)
  return [Prompt(i, rng.integers(8, 40, size).astype(np.int32), "", "", "none") for i, size in enumerate(sizes)]


def engine(shards, share=0.0):
  """share: of what every slot at its longest needs; 0: no bound."""
  mesh = make_mesh(dict(data=shards, fsdp=1, context=1, tensor=1), jax.devices()[:shards])
  make = lambda cache_tokens: ENGINES["native"](
    MODEL, mesh, slots=SLOTS * shards, pad_id=0, max_prompt_tokens=24, max_response_tokens=48, page_tokens=4,
    cache_tokens=cache_tokens,
  )  # fmt: skip
  e, c = make(0), make(0).capacity
  if share:
    budget = max(int(share * SLOTS * c.longest), c.smallest_budget(2))
    e = make(budget * e.page * shards)
  e.update(jax.tree.map(jax.device_put, random_params(MODEL, 0.2), MODEL.shardings(mesh)))
  return e


@functools.cache
def with_room(equal):
  e = engine(1)
  return e.generate(make_prompts(9, equal), 4, key=KEY, sampling=SAMPLING)


def alive():
  """Bytes of live arrays by device; to ask an array for its shards would make arrays of them."""
  found = collections.Counter()
  for x in jax.live_arrays():
    if not x.is_deleted():
      size = math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      found.update({device.id: size for device in x.sharding.device_set})
  return found


@contextlib.contextmanager
def watched(monkeypatch):
  """Yields the most bytes alive by device, beside those at the start: at programs, and between those of a resizing."""
  most, before = collections.Counter(), alive()

  def look():
    most.update({d: max(0, n - before[d] - most[d]) for d, n in alive().items()})

  def around(function):
    def wrapped(*args, **kwargs):
      look()
      result = function(*args, **kwargs)
      jax.block_until_ready(result)
      look()
      return result

    return wrapped

  with monkeypatch.context() as m:
    for owner, name in (
      (decode, "run"), (decode, "prefill"), (decode, "store"), (decode, "reshape"), (cache, "_taken"),
      (device.Device, "allocate"),
    ):
      m.setattr(owner, name, around(getattr(owner, name)))
    yield most


CASES = [(0.1, False, 1), (0.25, True, 1)]
MORE = [
  (s, e, d) for s in (1.0, 0.75, 0.5, 0.25, 0.1) for e in (True, False) for d in (1, 8) if (s, e, d) not in CASES
]


@pytest.mark.parametrize(("share", "equal", "shards"), [
  *CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)
])  # fmt: skip
def test_live_bytes_keep_the_budget(share, equal, shards, monkeypatch):
  """Weights, the slots' own numbers and the log are no part of it: what is alive beside the cache is taken off."""
  e = engine(shards, share)
  want = with_room(equal)
  with watched(monkeypatch) as most:
    groups = e.generate(make_prompts(9, equal), 4, key=KEY, sampling=SAMPLING)
  same_numbers(groups, want)
  budget = e.cache_tokens * e.token_bytes / shards
  small = 64 * SLOTS * 16 * 2 + 32_000  # two logs, and the numbers of slots, queue and pages; whatever the model
  assert max(most.values()) <= 1.02 * budget + small, (most, budget)
  assert max(most.values()) > 0.5 * min(budget, e.usage.peak_cache_bytes / shards)  # something was measured
  assert e.usage.peak_cache_bytes <= e.cache_tokens * e.token_bytes
  assert e.usage.decode_programs <= MOST_DECODE and e.usage.prefill_programs <= MOST_PREFILL


def test_programs_need_no_second_cache():
  """What XLA allocates beside arguments and results, of the programs that hold the pools."""
  e = engine(1)
  shape = e.capacity.shapes(4)[-2]
  d = device.Device(e, SAMPLING, 4)
  with jax.set_mesh(e.mesh):
    d.allocate(shape)
  cache_bytes = sum(x.nbytes for x in jax.tree.leaves(d.pools))
  layer = max(sum(x.nbytes for x in jax.tree.leaves(d.pools[kind][0])) for kind in ("own", "shared"))
  row = jax.ShapeDtypeStruct((1,), np.int32)
  rows = decode.Rows(
    jax.ShapeDtypeStruct((1, 24), np.int32), row, jax.ShapeDtypeStruct((1, 6), np.int32), row, row, row
  )
  kv = jax.eval_shape(functools.partial(decode.prefill, MODEL), e.params, rows.tokens, row)
  compiled = decode.store.lower(e.layout, d.pools, d.slots, kv, rows, page=e.page).compile()
  memory = compiled.memory_analysis()
  assert memory.alias_size_in_bytes >= cache_bytes and memory.temp_size_in_bytes < layer


def test_programs_are_few_when_lengths_grow_tenfold():
  """Responses of 5 tokens, then of 10, 20 and 48, in one engine's life; then evaluation; and again: nothing new."""
  mesh = make_mesh(dict(data=1, fsdp=1, context=1, tensor=1), jax.devices()[:1])
  model = make_model(dataclasses.replace(MODEL.config, vocab_size=42))  # that nobody has compiled yet
  e = ENGINES["native"](model, mesh, slots=8, pad_id=0, max_prompt_tokens=24, max_response_tokens=48, page_tokens=4)
  e.update(random_params(model, 0.2))
  compiled, seen, cache = collections.Counter(), [], []
  count = lambda event, _, fun_name="", **__: compiled.update([fun_name] if "backend_compile" in event else [])
  jax.monitoring.register_event_duration_secs_listener(count)
  for limit in (5, 10, 20, 48, 5, 48):
    sampling = dataclasses.replace(SAMPLING, max_tokens=limit, stop_ids=())
    e.generate(make_prompts(6, False), 4, key=KEY, sampling=sampling)
    seen.append((e.usage.decode_programs, e.usage.prefill_programs))
    cache.append(e.usage.peak_cache_bytes)
    assert e.usage.values()["rollout/decode_programs"] == seen[-1][0]
  assert seen == sorted(seen) and seen[0][0] < seen[3][0] and seen[3] == seen[-1]
  assert cache[0] == cache[4] < cache[3] == cache[5]  # each call begins with the smallest pools
  jax.monitoring.unregister_event_duration_listener(count)
  assert seen[-1] == (compiled["jit(run)"], compiled["jit(prefill)"]), (seen, compiled)
  assert seen[-1][0] <= MOST_DECODE and seen[-1][1] <= MOST_PREFILL
