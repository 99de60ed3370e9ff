"""The TPU's attention kernel, interpreted, against plain XLA: values, gradients, and cut over a mesh."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import close

from fipo_jax.models import attention, attention_splash
from fipo_jax.models.attention_splash import _block, attend_splash
from fipo_jax.sharding import MESH_AXES, make_mesh

R, T, H, K, h = 2, 512, 4, 2, 64


def inputs():
  """Rows of three segments and padding, queries of 4 heads over 2; and weights of a loss on what is real."""
  rng = np.random.default_rng(0)
  q, k, v = (jnp.asarray(rng.standard_normal((R, T, n, h)), jnp.float32) for n in (H, K, K))
  segments_RT = np.sort(rng.integers(1, 4, (R, T)), axis=1).astype(np.int32)
  segments_RT[:, -30:] = 0
  weights = rng.standard_normal((R, T, H, h)).astype(np.float32) * (segments_RT > 0)[..., None, None]
  return (q, k, v), segments_RT, weights


def results(attend):
  """(values, gradients) of what is real."""
  qkv, segments_RT, weights = inputs()

  def loss(q, k, v):
    out = attend(q, k, v, segments_RT, segments_RT) * (segments_RT > 0)[..., None, None]
    return jnp.sum(out * weights), out

  (_, out), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*qkv)
  return jax.tree.map(np.asarray, (out, gradients))


@functools.cache
def expected():
  return results(attention.attend_xla)


INTERPRETED = functools.partial(attend_splash, interpret=True)


def test_gradients_of_gathered_keys_are_scattered():
  """Each device gets its part of the sum, and not all of it: half of the bytes of an all-reduce."""
  (q, k, v), segments_RT, _ = inputs()
  mesh = make_mesh(dict(data=1, fsdp=1, context=4, tensor=1), jax.devices()[:4])
  with jax.set_mesh(mesh):
    loss = lambda *qkv: jnp.sum(INTERPRETED(*qkv, segments_RT, segments_RT) ** 2)
    text = str(jax.make_jaxpr(jax.grad(loss, argnums=(1, 2)))(q, k, v))
  assert text.count("all_gather[") >= 2 and text.count("reduce_scatter[") == 2 and "psum" not in text


@pytest.mark.parametrize("shape", [None, (1, 1, 2, 2), pytest.param((2, 1, 4, 1), marks=pytest.mark.slow)])
def test_equals_plain_attention(shape, monkeypatch):
  """On one device; with heads and tokens cut; with tokens cut in four: queries are, keys and values are gathered."""
  monkeypatch.setattr(attention_splash, "BLOCK", 128)  # several blocks, of which some are skipped
  monkeypatch.setattr(attention_splash, "BACKWARD_BLOCK", 256)
  if shape is None:
    got = results(INTERPRETED)
  else:
    mesh = make_mesh(dict(zip(MESH_AXES, shape, strict=True)), jax.devices()[: math.prod(shape)])
    with jax.set_mesh(mesh):
      got = results(INTERPRETED)
  close(got, expected(), terms=h + T)
  assert all(np.abs(x).max() > 0.1 for x in jax.tree.leaves(expected()))


@pytest.mark.parametrize("head_dim", [20, pytest.param(128, marks=pytest.mark.slow)])
def test_heads_of_any_size(head_dim):
  rng = np.random.default_rng(1)
  q, k, v = (jnp.asarray(rng.standard_normal((1, 128, n, head_dim)), jnp.float32) for n in (2, 1, 1))
  segments_RT = np.repeat([[1, 2]], 64, axis=1)
  got, want = (jax.jit(attend)(q, k, v, segments_RT, segments_RT) for attend in (INTERPRETED, attention.attend_xla))
  close(got, want, terms=head_dim + 128)


def test_rows_that_do_not_fit_are_refused():
  x = jnp.zeros((1, 100, 2, 64))
  with pytest.raises(ValueError, match="100 tokens over mesh.context=1 .* batch.row_tokens=128"):
    attend_splash(x, x, x, jnp.ones((1, 100), jnp.int32), jnp.ones((1, 100), jnp.int32))


def test_blocks_divide_the_row():
  assert [_block(T, 2048) for T in (22_528, 20_480, 384, 128)] == [2048, 2048, 128, 128]
  assert _block(22_528 // 4, 1024) == 512


def test_automatic_is_xla_on_a_cpu():
  qkv, segments_RT, _ = inputs()
  attend = jax.jit(attention.attend, static_argnames="implementation")
  got, plain = (attend(*qkv, segments_RT, segments_RT, implementation=name) for name in ("auto", "xla"))
  np.testing.assert_array_equal(got, plain)
