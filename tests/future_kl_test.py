"""Future-KL against its quadratic definition, whole and cut over a mesh, and the weights made of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from segments_test import mesh, packed_rows, random_rows
from tolerances import close

from fipo_jax import sharding
from fipo_jax.algorithms import future_kl as fkl


def slow_future_kl(delta, counts, segments, half_life):
  """The definition, one term at a time."""
  F = np.zeros(delta.shape)
  for r, t in np.ndindex(*delta.shape):
    for k in range(t, delta.shape[1]):
      if counts[r, k] and segments[r, k] == segments[r, t]:
        F[r, t] += 2.0 ** (-(k - t) / half_life) * delta[r, k]
  return F


FUTURE_1, PAST_1 = (jax.jit(functools.partial(f, half_life_tokens=1.0)) for f in (fkl.future_kl, fkl.past_kl))


def test_by_hand():
  delta = jnp.array([[1.0, 2.0, 4.0, 8.0, 16.0]])
  counts = jnp.array([[1, 1, 0, 1, 1]])
  segments = jnp.array([[1, 1, 1, 1, 2]])
  # half-life 1: each step halves; the hole adds nothing but is a step; token 4 belongs to another response
  ours = FUTURE_1(delta, counts, segments)
  np.testing.assert_array_equal(ours, [[3.0, 4.0, 4.0, 8.0, 16.0]])


@pytest.mark.parametrize("half_life", [0.5, 8.0, 32.0, 300.0])
def test_equals_definition(half_life):
  delta, counts, segments = random_rows()
  slow = slow_future_kl(delta, counts, segments, half_life)
  with jax.enable_x64(True):
    arrays = jnp.asarray(delta), jnp.asarray(counts), jnp.asarray(segments)
    ours = fkl.future_kl(*arrays, half_life_tokens=half_life)
    assert ours.dtype == jnp.float64
    close(ours, slow, terms=delta.shape[1], dtype=np.float64)
  ours = fkl.future_kl(delta.astype(np.float32), counts, segments, half_life_tokens=half_life)
  assert ours.dtype == jnp.float32
  close(ours, slow, terms=delta.shape[1])


def test_float32_keeps_its_digits_at_a_long_half_life():
  delta = np.random.default_rng(1).normal(size=(1, 4096)).astype(np.float32)
  one = np.ones((1, 4096), np.int32)
  F, gamma = 0.0, 2.0 ** (-1 / 1000.0)
  slow = np.zeros(4096)
  for t in reversed(range(4096)):
    F = slow[t] = delta[0, t] + gamma * F
  ours = jax.jit(functools.partial(fkl.future_kl, half_life_tokens=1000.0))(delta, one, one)
  assert np.abs(slow).max() > 30
  close(ours[0], slow, terms=4096, room=1)  # a tree of 12 levels; a rounded γ to the power of hundreds


def test_what_does_not_count_may_be_nan_and_length_one_works():
  delta = jnp.array([[0.5, jnp.nan, 0.25]])
  ours = FUTURE_1(delta, jnp.array([[1, 0, 1]]), jnp.ones((1, 3), jnp.int32))
  np.testing.assert_array_equal(ours, [[0.5625, 0.125, 0.25]])
  one = jnp.ones((2, 1), jnp.int32)
  assert (FUTURE_1(jnp.full((2, 1), 3.0), one, one) == 3.0).all()


def test_past_kl_is_the_definition_read_backwards():
  delta, counts, segments = random_rows(seed=3)
  slow = slow_future_kl(delta[:, ::-1], counts[:, ::-1], segments[:, ::-1], 8.0)[:, ::-1]
  ours = fkl.past_kl(delta.astype(np.float32), counts, segments, half_life_tokens=8.0)
  close(ours, slow, terms=delta.shape[1])
  hole = PAST_1(jnp.array([[0.5, jnp.nan, 0.25]]), jnp.array([[1, 0, 1]]), jnp.ones((1, 3), jnp.int32))
  np.testing.assert_array_equal(hole, [[0.5, 0.25, 0.375]])


def test_future_and_past_kl_of_cut_rows():
  delta, segments = packed_rows()
  counts = np.random.default_rng(6).random(delta.shape) < 0.7
  arrays = np.where(counts, delta, np.nan).astype(np.float32), counts, segments
  made = mesh(data=2, context=4)
  both = lambda *rows: [f(*rows, half_life_tokens=12.0) for f in (fkl.future_kl, fkl.past_kl)]
  with jax.set_mesh(made):
    ours = jax.jit(both)(*sharding.to_mesh(made, arrays, "rows", "tokens"))
  close(ours, jax.jit(both)(*arrays), terms=delta.shape[1])


def test_weights_by_hand():
  F = jnp.log(jnp.array([0.5, 0.9, 1.1, 2.0, 50.0]))
  close(fkl.influence_weight(F, weight_clip=(0.8, 1.2), raw_cap=10.0), [0.8, 0.9, 1.1, 1.2, 1.2])
  close(fkl.influence_weight(F, weight_clip=None, raw_cap=10.0), [0.5, 0.9, 1.1, 2.0, 10.0])
  close(fkl.influence_weight(F, weight_clip=None, raw_cap=None)[-1], 50.0)


@pytest.mark.parametrize("mode, expected", [("clamp", 0.8), ("reset", 1.0), ("off", 0.1)])
def test_safety_touches_only_risky_tokens(mode, expected):
  weight = jnp.full(4, 0.1)
  advantage, ratio = jnp.array([-1.0, -1.0, 1.0, 0.0]), jnp.array([3.5, 3.0, 3.5, 3.5])
  ours = fkl.safe_weight(weight, advantage, ratio, safety_mode=mode, safety_threshold=3.0)
  close(ours, [expected, 0.1, 0.1, 0.1])


def test_nothing_overflows():
  F = jnp.array([88.0, 89.0, 1e4, -1e4], jnp.float32)
  raw = fkl.raw_weight(F)
  assert np.isfinite(raw).all() and raw[3] == 0
  close(raw[0], np.exp(88.0), scale=88 * np.exp(88.0))  # exp enlarges a relative error of 88 so many times
  largest = np.float64(fkl.influence_weight(F, weight_clip=None, raw_cap=None)[2])
  assert largest * np.exp(20.0) < np.finfo(np.float32).max


def test_mistakes_are_named():
  x = jnp.zeros((1, 2))
  for value in (0.0, -1.0, float("nan")):
    with pytest.raises(ValueError, match="half_life_tokens="):
      fkl.future_kl(x, x, x, half_life_tokens=value)
    with pytest.raises(ValueError, match="half_life_tokens="):
      fkl.past_kl(x, x, x, half_life_tokens=value)
  with pytest.raises(ValueError, match="weight_clip="):
    fkl.influence_weight(x, weight_clip=(1.2, 1.0), raw_cap=None)
  with pytest.raises(ValueError, match="raw_cap=0"):
    fkl.influence_weight(x, weight_clip=None, raw_cap=0)
  with pytest.raises(ValueError, match="safety_mode='clip'"):
    fkl.safe_weight(x, x, x, safety_mode="clip", safety_threshold=3.0)


def test_the_safety_clamp_raises_and_lowers():
  weight, bad, risky = jnp.array([0.1, 0.9, 1.1]), -jnp.ones(3), jnp.full(3, 4.0)
  ours = fkl.safe_weight(weight, bad, risky, safety_mode="clamp", safety_threshold=3.0)
  close(ours, [0.8, 0.9, 1.0])
