"""Attention over whole rows against loops in NumPy, segments, padding, and blocks of queries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import close

from fipo_jax.models import attention

SEGMENTS_RT = np.array([[1, 1, 1, 2, 2, 0, 0], [3, 3, 3, 3, 3, 3, 3]], np.int32)


def inputs(R=2, T=7, H=4, K=2, h=6, seed=0):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return normal(R, T, H, h), normal(R, T, K, h), normal(R, T, K, h)


def oracle(q, k, v, segments):
  """The definition, one query head and token at a time, in float64."""
  out = np.zeros(q.shape)
  R, T, H, h = q.shape
  for r in range(R):
    for head in range(H):
      kv = head // (H // k.shape[2])
      for t in range(T):
        seen = [u for u in range(t + 1) if segments[r, u] == segments[r, t]]
        scores = np.array([q[r, t, head].astype(np.float64) @ k[r, u, kv] for u in seen]) / np.sqrt(h)
        weights = np.exp(scores - scores.max())
        out[r, t, head] = (weights / weights.sum()) @ v[r, seen, kv].astype(np.float64)
  return out


attend = jax.jit(attention.attend)


def test_matches_the_definition():
  q, k, v = inputs()
  got = attend(q, k, v, SEGMENTS_RT, SEGMENTS_RT)
  close(got, oracle(q, k, v, SEGMENTS_RT), terms=6 + 7)  # h products, T values


def test_first_token_of_a_segment_returns_its_own_value():
  q, k, v = inputs()
  got = attend(q, k, v, SEGMENTS_RT, SEGMENTS_RT)
  close(got[0, 3], np.repeat(v[0, 3], 2, axis=0))


def test_other_segments_and_the_future_do_not_matter():
  q, k, v = inputs()
  before = np.asarray(attend(q, k, v, SEGMENTS_RT, SEGMENTS_RT))
  k[0, :3] *= 5.0  # segment 1 of row 0
  v[1, 4:] -= 3.0  # the future of tokens 0..3 in row 1
  after = np.asarray(attend(q, k, v, SEGMENTS_RT, SEGMENTS_RT))
  np.testing.assert_array_equal(before[0, 3:], after[0, 3:])
  np.testing.assert_array_equal(before[1, :4], after[1, :4])
  assert np.abs(before[0, 1] - after[0, 1]).max() > 1e-3
  assert np.abs(before[1, 4:] - after[1, 4:]).max() > 1e-3


def test_padding_gives_finite_values_and_gradients():
  q, k, v = inputs()
  segments = np.zeros((2, 7), np.int32)
  loss = lambda *x: jnp.sum(attention.attend(*x, segments, segments) ** 2)
  value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(q, k, v)
  assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)


@functools.partial(jax.jit, static_argnames="block")
def value_and_gradients(q, k, v, segments, block):
  loss = lambda *x: jnp.sum(jnp.sin(attention.attend_xla(*x, segments, segments, block=block)))
  return jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)


@pytest.mark.parametrize("block", [2, 3, 7])
def test_blocks_of_queries_change_nothing(block):
  x = (*inputs(), SEGMENTS_RT)
  whole, blocked = (value_and_gradients(*x, size) for size in (100, block))
  close(blocked[0], whole[0], terms=x[0].size, scale=1)
  close(blocked[1], whole[1], terms=6 + 7)


@pytest.mark.parametrize("T", [300, 512])
def test_rows_in_one_piece_look_at_no_key_after_their_block(T):
  """Values and gradients of a row in blocks of keys are those of a row whose every query meets every key."""
  x = (*inputs(R=1, T=T), np.repeat([[1, 2]], T // 2, axis=1))
  got, expected = (value_and_gradients(*x, block) for block in (1024, T // 2))
  close(got[0], expected[0], terms=x[0].size, scale=1)
  close(got[1], expected[1], terms=6 + T)


def test_long_rows_never_hold_all_scores():
  T = 4096
  shape = jax.ShapeDtypeStruct((1, T, 2, 4), jnp.float32)
  key = jax.ShapeDtypeStruct((1, T, 1, 4), jnp.float32)
  segments = jax.ShapeDtypeStruct((1, T), jnp.int32)
  loss = lambda q, k, v, s: jnp.sum(attention.attend(q, k, v, s, s))
  compiled = jax.jit(jax.grad(loss)).lower(shape, key, key, segments).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 2 * T * T * 4  # all scores of the two heads


def test_unknown_implementation_is_named():
  q, k, v = inputs()
  with pytest.raises(ValueError, match="attention='flush' is unknown.*xla"):
    attention.attend(q, k, v, SEGMENTS_RT, SEGMENTS_RT, implementation="flush")
