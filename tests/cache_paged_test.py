"""Decoding over pages with our own Pallas kernel: interpreted, and in the simulator of a TPU, against attention over
whole sequences and the XLA layout; and compiled by libtpu, without a TPU."""

import functools
import types

import cache_pallas_test
import cache_test
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cache_pallas_test import SMALL, Rounded, sharded
from cache_test import Scene
from jax.experimental.pallas import tpu as pltpu
from tolerances import close

from fipo_jax import sharding
from fipo_jax.models import cache, cache_paged, paged_kernel
from fipo_jax.pods import chips

PAGED = cache_paged.layout(8, interpret=True)
devices = cache_pallas_test.devices  # 64 chips of a v5p


@pytest.fixture
def small_blocks(monkeypatch):
  """Two pages of SMALL in bfloat16, four in int8: some slots have one block, others two or three.

  Two pages are copied in a turn, or what is left of them one by one.
  """
  monkeypatch.setattr(paged_kernel, "BLOCK_BYTES", 2 * 2 * 2 * 4 * 128 * 2)
  monkeypatch.setattr(paged_kernel, "UNROLLED", 2)


@pytest.mark.parametrize("change", [{}, {"share": False, "K": 1}])
def test_equals_attention_over_whole_sequences(change):
  """Weights are rounded to bfloat16 before the second product, as those of the XLA layout; layers are traced."""
  scene = Rounded(**SMALL | change)
  out = cache_test.decode(PAGED, scene, "bfloat16", scan=True)
  close(out, scene.expected(), dtype=jnp.bfloat16, room=1)
  assert not out[:, :, [2, 7]].any()  # idle


def test_in_bfloat16_and_with_layers_named():
  scene = Rounded(**SMALL | {"steps": 2})
  out = cache_test.decode(PAGED, scene, "bfloat16", jnp.bfloat16)
  close(out, scene.expected(), dtype=jnp.bfloat16, room=2)  # the result and the weights are rounded


def test_int8_pages_are_those_of_the_xla_layout():
  """The same whole numbers and scales are stored: only products in bfloat16 are left."""
  scene = Rounded(**SMALL)
  out = cache_test.decode(PAGED, scene, "int8", scan=True)
  close(out, cache_test.decode(cache_test.XLA, scene, "int8"), dtype=jnp.bfloat16, room=2)
  assert 0.02 < np.abs(out - scene.expected()).max() < 0.1
  pools, pages, q, k, v = scene.build(PAGED, "int8")
  assert pools.kv.dtype == jnp.int8 and pools.scale.shape == (*pools.kv.shape[:2], 2 * scene.t)


@pytest.mark.parametrize("dtype, cores", [
  ("int8", 2), *(pytest.param("bfloat16", cores, marks=pytest.mark.slow) for cores in (1, 2))
])  # fmt: skip
def test_in_the_simulator_of_a_tpu(small_blocks, dtype, cores):
  """Where memory that nobody wrote is NaN, copies arrive when they are waited for, and a race is found."""
  from jax._src.pallas.mosaic.interpret import interpret_pallas_call as simulator

  scene = Rounded(**SMALL | {"steps": 3})
  layout = cache_paged.layout(8, interpret=pltpu.InterpretParams(detect_races=True), cores=cores)
  out = cache_test.decode(layout, scene, dtype, scan=True)
  assert not simulator.races.races_found
  want = cache_test.decode(cache_test.XLA, scene, "int8") if dtype == "int8" else scene.expected()
  close(out, want, dtype=jnp.bfloat16, room=2)


def test_bits_do_not_depend_on_where_pages_lie():
  first, other = (
    cache_test.decode(PAGED, Rounded(**SMALL | {"order": order}), "int8", scan=True) for order in range(2)
  )
  np.testing.assert_array_equal(first, other)


def test_the_next_busy_slot_of_each_core():
  lengths = jnp.array([0, 3, 0, 0, 5, 1, 0, 2])
  assert paged_kernel._after(lengths, 1).tolist() == [1, 4, 4, 4, 5, 7, 7, 8, 1]
  assert paged_kernel._after(lengths, 2).tolist() == [4, 5, 4, 5, 8, 7, 8, 8, 4, 1]


def pages_of(pools, kind):
  """Keys of a kind [L, P, K, t, h]."""
  first = sum(pools.pages[: cache.KINDS.index(kind)])
  keys = np.asarray(pools.kv[:, :, 0], np.float32)
  if pools.scale is not None:
    keys = keys * np.asarray(pools.scale[:, :, : pools.page_tokens, None])
  layers = keys.reshape(pools.layers, -1, *keys.shape[1:]).round(5)
  return layers[:, first : first + pools.pages[cache.KINDS.index(kind)]]


def test_pages_beyond_the_last_are_left_out():
  """Not written to the next kind's pages."""
  cache_test.check_that_pages_beyond_the_last_are_left_out(PAGED, pages_of, "bfloat16")


def test_on_a_mesh():
  """Two shards of slots, each with pages of its own, and heads over two devices: bits of the shards alone."""
  scenes = [Rounded(**SMALL | {"seed": seed, "order": seed}) for seed in range(2)]
  alone = [cache_test.decode(PAGED, scene, "int8", scan=True)[0] for scene in scenes]  # the first step
  built = [scene.build(PAGED, "int8") for scene in scenes]
  pools = jax.tree.map(lambda *x: np.concatenate(x), *[b[0] for b in built])
  pages = jax.tree.map(lambda *x: np.concatenate(x), *[b[1][0] for b in built])
  q, k, v = (np.concatenate([b[i][0] for b in built], axis=1) for i in (2, 3, 4))  # [L, S, heads, h]

  def all_layers(pools, pages, q, k, v):
    plan = PAGED.plan(pages, scenes[0].width, pools)
    layer = lambda pools, inputs: PAGED.attend(pools, *inputs, plan)[::-1]
    return jax.lax.scan(layer, pools, (jnp.arange(pools.layers), q, k, v))[::-1]

  mesh = sharding.make_mesh({"data": 1, "fsdp": 2, "context": 1, "tensor": 2}, jax.devices()[:4])
  with jax.set_mesh(mesh):
    out, _ = jax.jit(sharded(all_layers, PAGED.axes(pools), scanned=True))(pools, pages, q, k, v)
  np.testing.assert_array_equal(out, np.concatenate(alone, axis=1))


def test_what_the_kernel_does_not_take_is_refused():
  layout, config = cache_paged.layout(8), types.SimpleNamespace(num_layers=1, num_kv_heads=1, head_dim=128)
  new = lambda page, dtype: layout.new(config, dict.fromkeys(cache.KINDS, 1), page, dtype)
  with pytest.raises(ValueError, match="rollout.cache_dtype='float32'.*'bfloat16' or 'int8', or rollout.attention"):
    new(32, "float32")
  for page, dtype, least in ((12, "bfloat16", 8), (24, "int8", 32)):
    with pytest.raises(ValueError, match=f"rollout.page_tokens={page}.*pages of {dtype}.*multiple of {least}"):
      new(page, dtype)
  config.head_dim = 64
  with pytest.raises(ValueError, match="head_dim=64.*multiple of 128.*rollout.attention='xla'"):
    new(32, "bfloat16")
  with pytest.raises(ValueError, match="rollout.page_tokens: a sequence may have 131072 pages.*3 times as large"):
    cache_paged.layout(131_072)


# ---- compiled for a TPU ----


def compiled(devices, tensor, page, dtype, cores, most_pages=64, slots=16):
  """(program, bytes of a device's pool): four layers of Qwen2.5-32B, a loop over tokens around one over layers."""
  scene = Scene(L=4, H=40, K=8, h=128, t=page, slots=((0, 0),) * slots)
  counts, shards = {"own": 256, "shared": 256, "tail": 16}, len(devices) // tensor
  mesh = sharding.make_mesh({"data": 1, "fsdp": shards, "context": 1, "tensor": tensor}, devices)
  layout = cache_paged.layout(most_pages, cores=cores)
  with jax.set_mesh(mesh):
    decoding, inputs = cache_test.decoding(layout, scene, counts, shards, jnp.bfloat16, scan=True)
    pools = jax.eval_shape(lambda: layout.new(scene.config, counts, page, dtype, shards))
    program = sharded(lambda *x: decoding(*x)[::-1], layout.axes(pools))
    place = lambda axes, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.named(mesh, *axes))
    put = lambda tree, *axes: jax.tree.map(functools.partial(place, axes), tree)
    pages, q, k, v = inputs
    arguments = (
      jax.tree.map(lambda x: place(("rows", "kv_heads", *[None] * (x.ndim - 2)), x), pools), put(pages, "rows"),
      put(q, "rows", "heads", None), put(k, "rows", "kv_heads", None), put(v, "rows", "kv_heads", None),
    )  # fmt: skip
    result = jax.jit(program, donate_argnums=0).lower(*arguments).compile()
  tokens = 8 // tensor * 4 * sum(counts.values()) * page
  return result, 2 * tokens * (128 * 2 if dtype == "bfloat16" else 128 + 4)


@pytest.mark.slow
@pytest.mark.parametrize("tensor, page, dtype, cores", [
  (8, 64, "int8", 2), (1, 128, "int8", 1), (8, 128, "bfloat16", 2), (1, 16, "bfloat16", 1)
])  # fmt: skip
def test_a_loop_on_a_tpu_holds_the_pool_once(devices, tensor, page, dtype, cores):
  """And int8 pages with their scales take 132 bytes where bfloat16 takes 256."""
  program, pool = compiled(devices, tensor, page, dtype, cores)
  memory = program.memory_analysis()
  assert memory.alias_size_in_bytes == pool and memory.temp_size_in_bytes < 0.05 * pool
  calls = [line for line in program.as_text().splitlines() if "tpu_custom_call" in line]
  assert len(calls) == 1 and "write_and_attend" in calls[0]


@pytest.mark.slow
def test_sequences_of_131_072_tokens_fit_on_a_tpu(devices):
  """64 slots in pages of 16: 524,288 numbers of pages, twice what the scalar memory of a core holds."""
  compiled(devices, 8, 16, "bfloat16", 2, most_pages=131_072 // 16, slots=64)


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v6e-8", "v7x-8"])
def test_other_chips_take_the_kernel(devices, topology):
  compiled(chips.open_topology(topology), 8, 64, "int8", 1)
