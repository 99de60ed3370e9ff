"""Decoding over pages with the Pallas kernel: interpreted, against attention over whole sequences; and compiled by
libtpu for a v5p, without a TPU."""

import types

import cache_test
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cache_test import Scene
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu
from tolerances import close

from fipo_jax import sharding
from fipo_jax.models import cache, cache_pallas

PALLAS = cache_pallas.layout(8, 2, interpret=True)
SMALL = dict(
  h=128, K=2, H=10, steps=5, prompts=(9, 8, 3), slots=((0, 5), (0, 0), None, (1, 0), (2, 7), (0, 2), (2, 0), None)
)


TERMS = 128 + 24  # products of a head, tokens of a sequence


class Rounded(Scene):
  """Keys, values and queries that bfloat16 holds exactly: only the rounding inside the kernel is left."""

  def tokens(self):
    return jax.tree.map(lambda x: np.asarray(x.astype(jnp.bfloat16), np.float32), super().tokens())


def test_equals_attention_over_whole_sequences():
  """And the XLA layout, over the same pages; layers are traced numbers."""
  scene = Rounded(**SMALL)
  out = cache_test.decode(PALLAS, scene, "bfloat16", scan=True)
  close(out, scene.expected(), terms=TERMS)
  other = cache_test.decode(cache_test.XLA, scene, "bfloat16")
  close(out, other, dtype=jnp.bfloat16, room=1)  # which rounds its weights to bfloat16
  assert not out[:, :, [2, 7]].any()  # idle


def test_without_shared_pages_and_with_one_key_value_head():
  scene = Rounded(**SMALL | {"share": False, "K": 1})
  close(cache_test.decode(PALLAS, scene, "bfloat16", scan=True), scene.expected(), terms=TERMS)


def test_in_bfloat16_and_with_layers_named():
  scene = Rounded(**SMALL | {"steps": 2})
  out = cache_test.decode(PALLAS, scene, "bfloat16", jnp.bfloat16)
  close(out, scene.expected(), dtype=jnp.bfloat16, room=2)  # the result and the weights are rounded


@pytest.mark.slow
def test_in_the_simulator_of_a_tpu():
  """Where memory that nobody wrote is NaN, and copies arrive only when they are waited for."""
  scene = Rounded(**SMALL | {"steps": 3})
  layout = cache_pallas.layout(8, 4, interpret=pltpu.InterpretParams())
  close(cache_test.decode(layout, scene, "bfloat16", scan=True), scene.expected(), terms=TERMS)


def test_bits_do_not_depend_on_where_pages_lie():
  first, other = (
    cache_test.decode(PALLAS, Rounded(**SMALL | {"order": order}), "bfloat16", scan=True) for order in range(2)
  )
  np.testing.assert_array_equal(first, other)


def test_the_table_has_shared_pages_first():
  """Three samples of two prompts, and a prompt that waits; 7 own pages come before the shared ones in a layer."""
  ints = lambda *x: np.array(x, np.int32)
  pages = cache.Pages(
    owner_P=ints(2, -1, 0, 2, 4, -1, 0), index_P=ints(1, 5, 0, 0, 0, -1, 1),
    shared_owner_P=ints(9, 3, -1, 3, 5), shared_index_P=ints(0, 1, 2, 0, 0),
    entry_S=ints(3, -1, 9, -1, 3), sample_S=ints(0, 0, 0, 0, 1), shared_S=ints(8, 8, 4, 0, 8),
    length_S=ints(13, 99, 9, 3, 9), page_S=ints(6, 7, 0, 7, 4), offset_S=ints(0, 0, 0, 0, 0),
  )  # fmt: skip
  config = types.SimpleNamespace(num_layers=2, num_kv_heads=1, head_dim=4)
  pools = jax.jit(lambda: PALLAS.new(config, {"own": 7, "shared": 5, "tail": 1}, 4, "bfloat16"))()
  plan = jax.jit(PALLAS.plan, static_argnums=1)(pages, 2, pools)
  busy = np.array([0, 2, 4])  # the others have length 0, and pages that exist
  expected = [[10, 8, 2, 6, 0, 0, 0, 0], [7, 3, 0, 0, 0, 0, 0, 0], [10, 8, 4, 0, 0, 0, 0, 0]]
  np.testing.assert_array_equal(plan["table"][busy], expected)
  assert 0 <= plan["table"].min() and plan["table"].max() < 13
  np.testing.assert_array_equal(plan["length"], [13, 0, 9, 0, 9])


def pages_of(pools, kind):
  """Keys of a kind [L, P, K, t, h]."""
  first = sum(pools.pages[: cache.KINDS.index(kind)])
  K, _, t, h = pools.k.shape
  layers = np.asarray(pools.k, np.float32).reshape(K, pools.layers, -1, t, h).transpose(1, 2, 0, 3, 4)
  return layers[:, first : first + pools.pages[cache.KINDS.index(kind)]]


def test_pages_beyond_the_last_are_left_out():
  """Not written to the next kind's pages."""
  cache_test.check_that_pages_beyond_the_last_are_left_out(PALLAS, pages_of, "bfloat16")


def test_on_a_mesh():
  """Two shards of slots, each with pages of its own, and heads over two devices: bits of the shards alone."""
  scenes = [Rounded(**SMALL | {"seed": seed, "order": seed}) for seed in range(2)]
  alone = [cache_test.decode(PALLAS, scene, "bfloat16", scan=True)[0] for scene in scenes]  # the first step
  built = [scene.build(PALLAS, "bfloat16") for scene in scenes]
  pools = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *[b[0] for b in built])
  pages = jax.tree.map(lambda *x: np.concatenate(x), *[b[1][0] for b in built])
  q, k, v = (np.concatenate([b[i][0] for b in built], axis=1) for i in (2, 3, 4))  # [L, S, heads, h]

  mesh = sharding.make_mesh({"data": 1, "fsdp": 2, "context": 1, "tensor": 2}, jax.devices()[:4])
  with jax.set_mesh(mesh):
    program = jax.jit(sharded(lambda *x: all_layers(*x, width=scenes[0].width), PALLAS.axes(pools), scanned=True))
    out, _ = program(pools, pages, q, k, v)
  np.testing.assert_array_equal(out, np.concatenate(alone, axis=1))


def all_layers(pools, pages, q, k, v, *, width):
  """(outputs [L, S, H, h], pools) of one token."""
  plan = PALLAS.plan(pages, width, pools)

  def layer(pools, inputs):
    out, pools = PALLAS.attend(pools, *inputs, plan)
    return pools, out

  return jax.lax.scan(layer, pools, (jnp.arange(pools.layers), q, k, v))[::-1]


def sharded(function, pool_axes, scanned=False):
  """function(pools, pages, q, k, v) -> (out like q, pools) on the parts of the mesh in use."""
  layers = (None,) * scanned
  heads, kv_heads = (*layers, "rows", "heads", None), (*layers, "rows", "kv_heads", None)
  return sharding.local(function, (pool_axes, ("rows",), heads, kv_heads, kv_heads), (heads, pool_axes))


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_other_types_are_refused(dtype):
  config = types.SimpleNamespace(num_layers=1, num_kv_heads=1, head_dim=128)
  with pytest.raises(ValueError, match=f"rollout.cache_dtype='{dtype}'.*'bfloat16', or rollout.attention='xla'"):
    PALLAS.new(config, dict.fromkeys(cache.KINDS, 1), 16, dtype)


def test_heads_and_pages_that_do_not_fill_registers_are_refused():
  layout = cache_pallas.layout(8, 2)
  config = types.SimpleNamespace(num_layers=1, num_kv_heads=1, head_dim=64)
  with pytest.raises(ValueError, match="head_dim=64.*multiple of 128.*rollout.attention='xla'"):
    layout.new(config, dict.fromkeys(cache.KINDS, 1), 16, "bfloat16")
  config.head_dim = 128
  with pytest.raises(ValueError, match="rollout.page_tokens=12.*multiple of 8"):
    layout.new(config, dict.fromkeys(cache.KINDS, 1), 12, "bfloat16")


# ---- compiled for a TPU ----


@pytest.fixture(scope="module")
def devices():
  """64 chips of a v5p."""
  pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install libtpu")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TPU_SKIP_MDS_QUERY", "1")  # libtpu would ask a cloud's metadata server, and wait
    patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is held, and tests may run in several processes
    topology = topologies.get_topology_desc(
      "v5:4x4x4", "tpu", chip_config_name="megacore", chips_per_host_bounds=(2, 2, 1), wrap=(True, True, True)
    )
  return topology.devices


@pytest.mark.slow
@pytest.mark.parametrize("tensor, page, megacore", [(8, 128, None), (8, 64, "batch"), (1, 128, "batch"), (1, 16, None)])
def test_a_loop_on_a_tpu_holds_the_pool_once(devices, tensor, page, megacore):
  """Four layers of Qwen2.5-32B: a while loop over tokens around a loop over layers, with starts in between."""
  scene = Scene(L=4, H=40, K=8, h=128, t=page, slots=((0, 0),) * 16)
  counts, shards = {"own": 256, "shared": 256, "tail": 16}, 64 // tensor
  mesh = sharding.make_mesh({"data": 1, "fsdp": shards, "context": 1, "tensor": tensor}, devices)
  layout = cache_pallas.layout(64, 4, megacore_mode=megacore)
  with jax.set_mesh(mesh):
    decoding, inputs = cache_test.decoding(layout, scene, counts, shards, jnp.bfloat16, scan=True)
    pools = jax.eval_shape(lambda: layout.new(scene.config, counts, page, "bfloat16", shards))
    program = sharded(lambda *x: decoding(*x)[::-1], layout.axes(pools))
    put = lambda tree, *axes: jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.named(mesh, *axes)), tree
    )
    pages, q, k, v = inputs
    arguments = (
      put(pools, "kv_heads", "rows", None, None), put(pages, "rows"),
      put(q, "rows", "heads", None), put(k, "rows", "kv_heads", None), put(v, "rows", "kv_heads", None),
    )  # fmt: skip
    compiled = jax.jit(program, donate_argnums=0).lower(*arguments).compile()
  memory = compiled.memory_analysis()
  pool = 2 * 8 // tensor * 4 * sum(counts.values()) * page * 128 * 2
  assert memory.alias_size_in_bytes == pool
  assert memory.temp_size_in_bytes < 0.1 * pool
  calls = [line for line in compiled.as_text().splitlines() if "tpu_custom_call" in line]
  assert len(calls) == 1 and "paged_attention" in calls[0]
