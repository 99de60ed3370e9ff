"""Masked reductions against NumPy on what is left, and with nothing left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fipo_jax import masked

X = np.array([[1.0, np.nan, 4.0], [2.0, np.inf, -3.0]])
MASK = np.array([[1, 0, 1], [1, 0, 1]], np.float32)
KEPT = np.array([1.0, 4.0, 2.0, -3.0])


def test_reductions_see_only_what_is_kept():
  assert masked.count(MASK) == 4
  assert masked.sum(X, MASK) == 4.0
  assert masked.mean(X, MASK) == 1.0
  assert masked.max(X, MASK) == 4.0
  assert masked.min(X, MASK) == -3.0
  np.testing.assert_allclose(masked.std(X, MASK), KEPT.std(), rtol=1e-6)
  np.testing.assert_array_equal(masked.sum(X, MASK, axis=1), [5.0, -1.0])
  assert masked.sum(X > 1.5, MASK) == 2.0 and masked.sum(X > 1.5, MASK).dtype == jnp.float32


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_quantiles_equal_numpy(n):
  x = np.random.default_rng(n).normal(size=(3, 40)).astype(np.float32)
  mask = np.zeros((3, 40), bool)
  mask.ravel()[np.random.default_rng(0).permutation(120)[:n]] = True
  fractions = (0.0, 0.25, 0.5, 0.995, 1.0)
  ours = masked.quantiles(np.where(mask, x, np.nan), mask, fractions)
  np.testing.assert_allclose(ours, np.quantile(x[mask], fractions), rtol=1e-5, atol=1e-6)


def test_nothing_left():
  nothing = np.zeros_like(MASK)
  assert masked.sum(X, nothing) == masked.mean(X, nothing) == masked.std(X, nothing) == 0
  assert masked.max(X, nothing) == -np.inf and masked.min(X, nothing) == np.inf
  np.testing.assert_array_equal(masked.quantiles(X, nothing, (0.5, 0.9)), [0, 0])


def test_gradients_pass_no_nan_from_under_the_mask():
  gradient = jax.grad(lambda x: masked.mean(x, MASK) + masked.sum(x, MASK))(jnp.asarray(X))
  np.testing.assert_array_equal(gradient, MASK * 1.25)


def test_segment_total_adds_within_a_segment_of_a_row():
  x = jnp.array([[1.0, 2.0, 4.0, 8.0], [1.0, 1.0, 1.0, 5.0]])
  segments = jnp.array([[1, 1, 2, 0], [1, 2, 3, 4]])
  np.testing.assert_array_equal(masked.segment_total(x, segments), [[3, 3, 4, 8], [1, 1, 1, 5]])
  np.testing.assert_array_equal(
    masked.segment_sums(x, segments), [[8, 3, 4, 0, 0], [0, 1, 1, 1, 5]]
  )
