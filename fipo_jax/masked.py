"""Sum, mean, std, max, min, quantiles of what a mask keeps; sums over segments of packed rows.

What is masked out never enters the arithmetic: it is replaced (`where`), not multiplied by zero, so
NaN or inf under the mask reaches neither values nor gradients. Nothing left is not an error: sums,
means, deviations and quantiles are then 0, a maximum -inf and a minimum +inf (the neutral elements,
as `types.Max` and `types.Min` want them).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def count(mask, axis=None):
  """How many elements the mask keeps, as a float."""
  return jnp.sum(jnp.asarray(mask, bool), axis=axis, dtype=jnp.result_type(float))


def sum(x, mask, axis=None):
  """Σ x over kept elements; booleans and integers are summed as floats."""
  return jnp.sum(jnp.where(jnp.asarray(mask, bool), _floating(x), 0), axis=axis)


def mean(x, mask, axis=None):
  """Σ x / n over the n kept elements; 0 when n = 0."""
  return sum(x, mask, axis) / jnp.maximum(count(mask, axis), 1)


def std(x, mask):
  """√(Σ (x − mean)² / n) over the n kept elements (population deviation); 0 when n = 0."""
  x = _floating(x)
  return jnp.sqrt(mean(jnp.square(x - mean(x, mask)), mask))


def max(x, mask, axis=None):
  """Largest kept element; -inf when there is none."""
  return jnp.max(jnp.where(jnp.asarray(mask, bool), _floating(x), -jnp.inf), axis=axis)


def min(x, mask, axis=None):
  """Smallest kept element; +inf when there is none."""
  return jnp.min(jnp.where(jnp.asarray(mask, bool), _floating(x), jnp.inf), axis=axis)


def quantiles(x, mask, fractions):
  """Quantiles of the kept elements, linear between order statistics (NumPy's default).

      value(q) = x₍i₎ + (q·(n − 1) − i) · (x₍i+1₎ − x₍i₎),   i = ⌊q·(n − 1)⌋,   x₍0₎ ≤ x₍1₎ ≤ …

  Args:
    x, mask: same shape, any number of axes; flattened.
    fractions: [K] floats in [0, 1].
  Returns: [K]; zeros when nothing is kept.
  """
  kept = jnp.asarray(mask, bool).ravel()
  ordered = jnp.sort(jnp.where(kept, _floating(x).ravel(), jnp.inf))
  last = jnp.maximum(jnp.sum(kept) - 1, 0)
  place = jnp.asarray(fractions, ordered.dtype) * last
  below = jnp.minimum(jnp.floor(place).astype(jnp.int32), last)
  low, high = ordered[below], ordered[jnp.minimum(below + 1, last)]
  value = low + (place - below) * (high - low)
  return jnp.where(jnp.any(kept), value, 0)


def segment_sums(x_RT, segments_RT):
  """Σ x per segment of each row: [R, T + 1], column s for segment s (0 = padding); absent segments are 0."""
  bins = segments_RT.shape[1] + 1  # a row of T tokens holds at most T segments, and padding

  def of_row(x_T, segments_T):
    return jax.ops.segment_sum(x_T, segments_T, num_segments=bins)

  return jax.vmap(of_row)(_floating(x_RT), segments_RT)


def segment_total(x_RT, segments_RT):
  """Gives each token the sum of x over its own segment within its row.

      total[r, t] = Σ_k x[r, k] · [segments[r, k] = segments[r, t]]

  O(T) per row. Padding is a segment of its own (0). Mask x first: this adds whatever it is given.

  Args:
    x_RT: [R, T] float, int or bool.
    segments_RT: [R, T] int32 in 0..T.
  """
  return jnp.take_along_axis(segment_sums(x_RT, segments_RT), segments_RT, axis=1)


def _floating(x):
  x = jnp.asarray(x)
  return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))
