"""Masked reductions against NumPy on what is left, with nothing left, and quantiles of a sharded array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from segments_test import collectives
from tolerances import close

from fipo_jax import masked, sharding

X = np.array([[1.0, np.nan, 4.0], [2.0, np.inf, -3.0]])
MASK = np.array([[1, 0, 1], [1, 0, 1]], np.float32)
KEPT = np.array([1.0, 4.0, 2.0, -3.0])


def test_reductions_see_only_what_is_kept():
  assert masked.count(MASK) == 4
  assert masked.sum(X, MASK) == 4.0
  assert masked.mean(X, MASK) == 1.0
  assert masked.max(X, MASK) == 4.0
  assert masked.min(X, MASK) == -3.0
  np.testing.assert_array_equal(masked.sum(X, MASK, axis=1), [5.0, -1.0])
  assert masked.sum(X > 1.5, MASK) == 2.0 and masked.sum(X > 1.5, MASK).dtype == jnp.float32


FRACTIONS = (0.0, 0.25, 0.5, 0.995, 1.0)
quantiles = jax.jit(masked.quantiles)


def close_quantiles(got, x, fractions, dtype=np.float32):
  """To those of NumPy. The place of a quantile among n numbers is rounded, too, and then times the gap there."""
  x, fractions = np.asarray(x, np.float64), np.asarray(fractions)
  low, high = (np.quantile(x, fractions, method=method) for method in ("lower", "higher"))
  scale = np.maximum(np.abs(low), np.abs(high)) + len(x) * (high - low)
  close(got, np.quantile(x, fractions), dtype=dtype, scale=scale)


@pytest.mark.parametrize("n", [1, 2, 5, 40, 119, 120])
def test_quantiles_equal_numpy(n):
  x = np.random.default_rng(n).normal(size=(3, 40)).astype(np.float32)
  mask = np.zeros((3, 40), bool)
  mask.ravel()[np.random.default_rng(0).permutation(120)[:n]] = True
  ours = quantiles(np.where(mask, x, np.nan), mask, FRACTIONS)
  assert ours.dtype == jnp.float32
  close_quantiles(ours, x[mask], FRACTIONS)


@pytest.mark.parametrize("n", [1, 2, 7, 60, 120])
def test_order_statistics_are_exact(n):
  """At fractions k / (n − 1) quantiles are elements of x, over all of float32's range and with repeats."""
  rng = np.random.default_rng(n)
  size = 240  # of x and of the fractions for every n: one program
  x = (rng.choice([-1, 1], size) * 10.0 ** rng.uniform(-37, 38, size)).astype(np.float32)
  x[rng.random(size) < 0.5] = x[0]
  x[rng.random(size) < 0.1] = 0
  mask = np.arange(size) < n
  fractions = np.minimum(np.arange(size) / max(n - 1, 1), 1)
  with jax.enable_x64(True):  # places in float64, values those of float32
    ours = quantiles(jnp.asarray(x, jnp.float64), mask, fractions)[:n]
  np.testing.assert_array_equal(np.asarray(ours).astype(np.float32), np.sort(x[mask]))
  ends = quantiles(x, mask, (0.0, 1.0))
  np.testing.assert_array_equal(ends, [x[mask].min(), x[mask].max()])


def test_quantiles_in_float64():
  x = 1 + 1e-12 * np.random.default_rng(0).normal(size=(4, 50))  # one and the same number in float32
  mask = np.random.default_rng(1).random((4, 50)) < 0.6
  with jax.enable_x64(True):
    ours = quantiles(jnp.asarray(x), mask, FRACTIONS)
    assert ours.dtype == jnp.float64
  close_quantiles(ours, x[mask], FRACTIONS, np.float64)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_quantiles_of_narrow_floats_are_float32(dtype):
  x = jnp.asarray(np.random.default_rng(0).normal(size=200), dtype)
  ours = quantiles(x, np.ones(200), FRACTIONS)
  assert ours.dtype == jnp.float32
  close_quantiles(ours, x, FRACTIONS)


def test_quantiles_of_zeros_infinities_and_nan():
  def of(values, fractions):
    padded = np.full(5, 9.0, np.float32)
    padded[: len(values)] = values
    all_ = quantiles(padded, np.arange(5) < len(values), np.pad(fractions, (0, 5 - len(fractions))))
    return all_[: len(fractions)]

  inf, nan = np.inf, np.nan
  np.testing.assert_array_equal(of([0.0, -0.0, 0.0, -0.0], (0.0, 0.4, 1.0)), [0, 0, 0])
  np.testing.assert_array_equal(of([-0.0, 1.0, -1.0], (0.5, 0.75)), [0, 0.5])
  np.testing.assert_array_equal(of([inf, 2.0, -inf], (0.0, 0.25, 0.5, 0.75, 1.0)), [-inf, -inf, 2, inf, inf])
  np.testing.assert_array_equal(of([inf, inf, 1.0], (0.0, 0.5, 0.75)), [1, inf, inf])
  np.testing.assert_array_equal(of([-inf, inf], (0.0, 0.5, 1.0)), [-inf, nan, inf])
  close(of([-3e38, 3e38], (0.25, 0.5)), [-1.5e38, 0])
  for not_a_number in (nan, -nan):  # NaN has a sign, and negative ones would sort first
    np.testing.assert_array_equal(of([1.0, not_a_number, 2.0], (0.0, 0.5)), [nan, nan])


def test_quantiles_are_constant_for_differentiation():
  gradient = jax.jit(jax.grad(lambda x: jnp.sum(masked.quantiles(x, MASK > 0, FRACTIONS))))(X)
  np.testing.assert_array_equal(gradient, np.zeros_like(X))


def test_quantiles_of_a_sharded_array_move_only_counts():
  mesh = sharding.make_mesh({"data": 2, "fsdp": 1, "context": 4, "tensor": 1})
  x = np.random.default_rng(0).normal(size=(16, 256)).astype(np.float32)
  mask = np.random.default_rng(1).random(x.shape) < 0.3
  f = jax.jit(lambda x, mask: masked.quantiles(x, mask, FRACTIONS))
  placed = sharding.to_mesh(mesh, (x, mask), "rows", "tokens")
  with jax.set_mesh(mesh):
    found = collectives(f.lower(*placed).compile().as_text())
    ours = f(*placed)
  np.testing.assert_array_equal(ours, f(x, mask))
  close_quantiles(ours, x[mask], FRACTIONS)
  assert {name for name, _ in found} == {"all-reduce"}
  shapes = {shape for _, shapes in found for shape in shapes}
  counts = f"s32[{2 * len(FRACTIONS)}]"
  assert counts in shapes and all(shape.endswith("[]") for shape in shapes - {counts})


def test_nothing_left():
  nothing = np.zeros_like(MASK)
  assert masked.sum(X, nothing) == masked.mean(X, nothing) == 0
  assert masked.max(X, nothing) == -np.inf and masked.min(X, nothing) == np.inf
  np.testing.assert_array_equal(quantiles(X, nothing, (0.5, 0.9)), [0, 0])


def test_gradients_pass_no_nan_from_under_the_mask():
  gradient = jax.grad(lambda x: masked.mean(x, MASK) + masked.sum(x, MASK))(jnp.asarray(X))
  np.testing.assert_array_equal(gradient, MASK * 1.25)
