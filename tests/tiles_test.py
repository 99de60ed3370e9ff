"""Layers in tiles of tokens: the same numbers and gradients as whole rows, on one device and on meshes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import close, limit

from fipo_jax.models import make_model, tiles
from fipo_jax.models.transformer import ModelConfig
from fipo_jax.sharding import make_mesh

WHOLE = ModelConfig(
  vocab_size=64, num_layers=2, d_model=32, d_mlp=48, num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=1e4,
  norm_eps=1e-6, tie_embeddings=False, max_position=1024, init_std=0.2,
)  # fmt: skip
KEY = jax.random.key(0)
TOKENS_RT = np.random.default_rng(0).integers(0, 64, (4, 512))
POSITIONS_RT = np.tile(np.arange(256), (4, 2))
SEGMENTS_RT = np.repeat([[1, 2]], 256, axis=1).repeat(4, axis=0)
TERMS = 4 * 512  # tokens that a gradient adds up


@functools.lru_cache
def value_and_gradient(config, mesh_shape=()):
  model = make_model(config)
  params = jax.jit(make_model(dataclasses.replace(config, dtype="float32")).init)(KEY)

  def loss(params):
    hidden = model.hidden(model.cast(params), TOKENS_RT, POSITIONS_RT, SEGMENTS_RT)
    return jnp.mean(jnp.sin(hidden.astype(jnp.float32)) ** 2)

  if not mesh_shape:
    return jax.device_get(jax.jit(jax.value_and_grad(loss))(params))
  mesh = make_mesh(dict(zip(("data", "fsdp", "context", "tensor"), mesh_shape, strict=True)))
  with jax.set_mesh(mesh):
    params = jax.device_put(params, model.shardings(mesh))
    return jax.device_get(jax.jit(jax.value_and_grad(loss))(params))


def distance(a, b):
  """Of two trees, relative to the second."""
  size = lambda tree: np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(tree)))
  return size(jax.tree.map(lambda x, y: np.float32(x) - y, a, b)) / size(b)


@pytest.mark.parametrize(("tile_tokens", "mesh_shape", "family"), [
  (128, (), "qwen2"), (128, (1, 4, 1, 2), "qwen2"), (128, (2, 2, 2, 1), "qwen2"), (4096, (), "qwen2"),
  *(pytest.param(4096, shape, "qwen2", marks=pytest.mark.slow) for shape in ((1, 4, 1, 2), (2, 2, 2, 1))),
  pytest.param(128, (2, 2, 1, 2), "qwen3", marks=pytest.mark.slow),
], ids=str)  # fmt: skip
def test_tiles_are_whole_rows(tile_tokens, mesh_shape, family):
  """Heads have a size of their own; of qwen3 all devices share the scales of norms over heads that are cut."""
  whole = WHOLE if family == "qwen2" else dataclasses.replace(WHOLE, family=family, head_dim=20)
  expected, gradient = value_and_gradient(whole)
  tiled = dataclasses.replace(whole, remat="full", tile_tokens=tile_tokens)
  value, got = value_and_gradient(tiled, mesh_shape)
  close(value, expected, terms=TERMS)
  assert distance(got, gradient) < limit(terms=TERMS)


def test_a_tile_suits_the_platform(monkeypatch):
  assert (tiles.tile_of(1, 22_528, 0), tiles.tile_of(1, 22_528, 3000)) == (1024, 2816)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert tiles.tile_of(1, 22_528, 0) == 22_528


def test_inputs_that_wait_on_the_host_change_no_bit():
  tiled = dataclasses.replace(WHOLE, remat="full", tile_tokens=128)
  expected, gradient = value_and_gradient(tiled, (1, 4, 1, 2))
  value, got = value_and_gradient(dataclasses.replace(tiled, offload_inputs=True), (1, 4, 1, 2))
  assert value == expected
  assert distance(got, gradient) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_add_up_over_devices_in_the_chosen_dtype(dtype):
  """bfloat16 rounds what each of 8 devices sends; float32 rounds the sum once."""
  half = dataclasses.replace(WHOLE, dtype="bfloat16", remat="full", sum_dtype=dtype)
  model, mesh = make_model(half), make_mesh(dict(data=1, fsdp=8, context=1, tensor=1))
  params = jax.eval_shape(model.init, KEY)
  loss = lambda p: jnp.sum(model.hidden(model.cast(p), *rows).astype(jnp.float32))
  rows = [jnp.concatenate([x, x]) for x in (TOKENS_RT, POSITIONS_RT, SEGMENTS_RT)]
  with jax.set_mesh(mesh):
    text = jax.jit(jax.grad(loss), in_shardings=(model.shardings(mesh),)).lower(params).as_text()
  sums = text.split("stablehlo.reduce_scatter")[1:]
  written = {"float32": "f32", "bfloat16": "bf16"}[dtype]
  matrices = [s.split("}) : (tensor<")[1].split(">")[0] for s in sums]
  assert len(matrices) >= 4 and {m.rsplit("x", 1)[1] for m in matrices} == {written}


def test_bfloat16_follows_float32():
  """The gradient in bfloat16 with float32 sums over tiles stays near float32's, and is not float32's."""
  _, exact = value_and_gradient(WHOLE)
  _, half = value_and_gradient(dataclasses.replace(WHOLE, dtype="bfloat16", remat="full", tile_tokens=128))
  # On the way forth and back 8 borders a layer round to bfloat16.
  assert limit(terms=TERMS) < distance(half, exact) < limit(terms=2 * 8, dtype=jnp.bfloat16, room=1)


@pytest.mark.parametrize(("rows", "tokens", "most", "tile"), [
  (1, 22_528, 1024, 1024), (1, 22_528, 2047, 1408), (2, 22_528, 2048, 1024), (1, 22_528, 10**6, 22_528),
  (1, 22_528, 5, 128), (4, 512, 1024, 256), (1, 100, 10, 100), (1, 448, 128, 448), (1, 128, 128, 128),
])  # fmt: skip
def test_a_tile_divides_the_row_in_whole_lanes(rows, tokens, most, tile):
  assert tiles.tile_of(rows, tokens, most) == tile


def test_inputs_cannot_wait_where_everything_is_kept():
  with pytest.raises(ValueError, match="model.sum_dtype='float32': under model.remat='none' gradients are added up in"):
    dataclasses.replace(WHOLE, dtype="bfloat16", remat="none", sum_dtype="float32")
  with pytest.raises(ValueError, match="model.offload_inputs=True needs model.remat='full' or 'context'"):
    dataclasses.replace(WHOLE, offload_inputs=True)
