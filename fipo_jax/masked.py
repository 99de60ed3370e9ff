"""Sum, mean, max, min, quantiles of what a mask keeps.

What is masked out never enters the arithmetic: it is replaced (`where`), not multiplied by zero, so
NaN or inf under the mask reaches neither values nor gradients. Nothing left is not an error: sums,
means and quantiles are then 0, a maximum -inf and a minimum +inf (the neutral elements,
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


def max(x, mask, axis=None):
  """Largest kept element; -inf when there is none."""
  return jnp.max(jnp.where(jnp.asarray(mask, bool), _floating(x), -jnp.inf), axis=axis)


def min(x, mask, axis=None):
  """Smallest kept element; +inf when there is none."""
  return jnp.min(jnp.where(jnp.asarray(mask, bool), _floating(x), jnp.inf), axis=axis)


def quantiles(x, mask, fractions):
  """Quantiles of the kept elements, linear between order statistics (NumPy's default).

      value(q) = x₍i₎ + (q·(n − 1) − i) · (x₍i+1₎ − x₍i₎),   i = ⌊q·(n − 1)⌋,   x₍0₎ ≤ x₍1₎ ≤ …

  Order statistics are found bit by bit, by counting: one pass over x per bit, and on a mesh one
  all-reduce of 2K counts per bit. Nothing is sorted or gathered, so x may be sharded in any way.
  The places q·(n − 1) are rounded to x's precision. Constant for differentiation.

  Args:
    x, mask: same shape, any number of axes. float16 and bfloat16 are widened to float32.
    fractions: [K] floats in [0, 1].
  Returns: [K] float32, or float64 when x is; zeros when nothing is kept. All NaN when a kept
    element is NaN, as in NumPy. Between -inf and a finite number (or +inf and one): that infinity;
    strictly between -inf and +inf: NaN.
  """
  x, kept = jax.lax.stop_gradient(_floating(x)), jnp.asarray(mask, bool)
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  n = jnp.sum(kept, dtype=jnp.int32)
  last = jnp.maximum(n - 1, 0)
  place = jnp.asarray(fractions, x.dtype) * last
  below = jnp.minimum(jnp.floor(place).astype(jnp.int32), last)
  ranks = jnp.concatenate([below, jnp.minimum(below + 1, last)])
  low, high = jnp.split(_order_statistics(x, kept, ranks), 2)
  part, gap = place - below, high - low
  value = jnp.where(jnp.isfinite(gap), low + part * gap, (1 - part) * low + part * high)
  value = jnp.where(part == 0, low, value)  # 0 · inf is no number
  value = jnp.where(jnp.any(kept & jnp.isnan(x)), jnp.nan, value)
  return jnp.where(n > 0, value, 0)


def _order_statistics(x, kept, ranks):
  """The kept elements of these ranks, 0 the smallest: [K]; anything when nothing is kept.

      x₍k₎ = the largest v with #{kept x < v} ≤ k, over unsigned integers in the order of the floats
  """
  bits = x.dtype.itemsize * 8
  unsigned = jnp.dtype(f"uint{bits}")
  sign, everything = unsigned.type(1 << (bits - 1)), unsigned.type(2**bits - 1)
  raw = jax.lax.bitcast_convert_type(x, unsigned)
  # Positive floats are ordered as their bits are, negative ones the other way round and below.
  keys = jnp.where(raw & sign != 0, ~raw, raw | sign)
  keys = jnp.where(kept, keys, everything)  # below no candidate

  def decide(i, found):
    candidate = found | (sign >> i.astype(unsigned))
    smaller = keys < candidate.reshape(-1, *[1] * keys.ndim)  # not flattened: that would gather a sharded x
    count = jnp.sum(smaller, axis=tuple(range(1, smaller.ndim)), dtype=jnp.int32)
    return jnp.where(count <= ranks, candidate, found)

  found = jax.lax.fori_loop(0, bits, decide, jnp.zeros(ranks.shape, unsigned))
  return jax.lax.bitcast_convert_type(jnp.where(found & sign != 0, found ^ sign, ~found), x.dtype)


def _floating(x):
  x = jnp.asarray(x)
  return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))
