"""Future-KL against its quadratic definition, whole and cut over a mesh, and the weights made of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from segments_test import mesh, packed_rows, random_rows

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


def test_by_hand():
  delta = jnp.array([[1.0, 2.0, 4.0, 8.0, 16.0]])
  counts = jnp.array([[1, 1, 0, 1, 1]])
  segments = jnp.array([[1, 1, 1, 1, 2]])
  # half-life 1: each step halves; the hole adds nothing but is a step; token 4 belongs to another response
  ours = fkl.future_kl(delta, counts, segments, half_life_tokens=1.0)
  np.testing.assert_array_equal(ours, [[3.0, 4.0, 4.0, 8.0, 16.0]])


@pytest.mark.parametrize("half_life", [0.5, 8.0, 32.0, 300.0])
def test_equals_definition(half_life):
  delta, counts, segments = random_rows()
  slow = slow_future_kl(delta, counts, segments, half_life)
  with jax.enable_x64(True):
    arrays = jnp.asarray(delta), jnp.asarray(counts), jnp.asarray(segments)
    ours = fkl.future_kl(*arrays, half_life_tokens=half_life)
    assert ours.dtype == jnp.float64
    np.testing.assert_allclose(ours, slow, atol=1e-13)
  ours = fkl.future_kl(delta.astype(np.float32), counts, segments, half_life_tokens=half_life)
  assert ours.dtype == jnp.float32
  np.testing.assert_allclose(ours, slow, atol=3e-6)


def test_float32_keeps_its_digits_at_a_long_half_life():
  delta = np.random.default_rng(1).normal(size=(1, 4096)).astype(np.float32)
  one = np.ones((1, 4096), np.int32)
  F, gamma = 0.0, 2.0 ** (-1 / 1000.0)
  slow = np.zeros(4096)
  for t in reversed(range(4096)):
    F = slow[t] = delta[0, t] + gamma * F
  ours = fkl.future_kl(delta, one, one, half_life_tokens=1000.0)
  assert np.abs(slow).max() > 30
  np.testing.assert_allclose(
    ours[0], slow, atol=2e-4
  )  # 5e-5 measured; one float32 step at 34 is 4e-6


def test_what_does_not_count_may_be_nan_and_length_one_works():
  delta = jnp.array([[0.5, jnp.nan, 0.25]])
  ours = fkl.future_kl(
    delta, jnp.array([[1, 0, 1]]), jnp.ones((1, 3), jnp.int32), half_life_tokens=1.0
  )
  np.testing.assert_allclose(ours, [[0.5625, 0.125, 0.25]])
  one = jnp.ones((2, 1), jnp.int32)
  assert (fkl.future_kl(jnp.full((2, 1), 3.0), one, one, half_life_tokens=1.0) == 3.0).all()


def test_past_kl_is_the_definition_read_backwards():
  delta, counts, segments = random_rows(seed=3)
  slow = slow_future_kl(delta[:, ::-1], counts[:, ::-1], segments[:, ::-1], 8.0)[:, ::-1]
  ours = fkl.past_kl(delta.astype(np.float32), counts, segments, half_life_tokens=8.0)
  np.testing.assert_allclose(ours, slow, atol=3e-6)
  hole = fkl.past_kl(
    jnp.array([[0.5, jnp.nan, 0.25]]), jnp.array([[1, 0, 1]]), jnp.ones((1, 3), jnp.int32), half_life_tokens=1.0
  )
  np.testing.assert_allclose(hole, [[0.5, 0.25, 0.375]])


def test_future_and_past_kl_of_cut_rows():
  delta, segments = packed_rows()
  counts = np.random.default_rng(6).random(delta.shape) < 0.7
  arrays = np.where(counts, delta, np.nan).astype(np.float32), counts, segments
  made = mesh(data=2, context=4)
  for function in (fkl.future_kl, fkl.past_kl):
    f = functools.partial(function, half_life_tokens=12.0)
    with jax.set_mesh(made):
      ours = jax.jit(f)(*sharding.to_mesh(made, arrays, "rows", "tokens"))
    np.testing.assert_allclose(ours, f(*arrays), rtol=1e-6, atol=2e-6)


def test_weights_by_hand():
  F = jnp.log(jnp.array([0.5, 0.9, 1.1, 2.0, 50.0]))
  np.testing.assert_allclose(
    fkl.influence_weight(F, weight_clip=(0.8, 1.2), raw_cap=10.0),
    [0.8, 0.9, 1.1, 1.2, 1.2],
    rtol=1e-6,
  )
  np.testing.assert_allclose(
    fkl.influence_weight(F, weight_clip=None, raw_cap=10.0), [0.5, 0.9, 1.1, 2.0, 10.0], rtol=1e-6
  )
  np.testing.assert_allclose(
    fkl.influence_weight(F, weight_clip=None, raw_cap=None)[-1], 50.0, rtol=1e-6
  )


@pytest.mark.parametrize("mode, expected", [("clamp", 0.8), ("reset", 1.0), ("off", 0.1)])
def test_safety_touches_only_risky_tokens(mode, expected):
  weight = jnp.full(4, 0.1)
  advantage, ratio = jnp.array([-1.0, -1.0, 1.0, 0.0]), jnp.array([3.5, 3.0, 3.5, 3.5])
  ours = fkl.safe_weight(weight, advantage, ratio, safety_mode=mode, safety_threshold=3.0)
  np.testing.assert_allclose(ours, [expected, 0.1, 0.1, 0.1], rtol=1e-6)


def test_nothing_overflows():
  F = jnp.array([88.0, 89.0, 1e4, -1e4], jnp.float32)
  raw = fkl.raw_weight(F)
  assert np.isfinite(raw).all() and raw[3] == 0
  np.testing.assert_allclose(raw[0], np.exp(88.0), rtol=1e-5)
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
