"""The scaling of queries, one for attention over rows and over a cache: the same numbers meet the keys in all."""

from __future__ import annotations

import jax.numpy as jnp


def scaled(q):
  """q / √h in the dtype of q, with one rounding: the factor of a head size that is no power of 4 is not rounded, too.

  Args:
    q: [..., h], rotated.
  """
  return (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
