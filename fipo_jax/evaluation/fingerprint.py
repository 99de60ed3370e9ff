"""What tells weights from others: a hash of all their bits, made on the devices, whatever the mesh."""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

PRIMES = (1_000_003, 998_244_353, 16_777_619, 40_503, 65_599, 31_337)  # of an axis each; odd, so no bit is lost


def of(params) -> str:
  """16 hexadecimal digits over names, shapes, dtypes and values of a tree of arrays.

      Σ mix(bits + mix(Σ_axes place_axis · prime_axis))      modulo 2³², over the elements of an array, twice

  Sums of whole numbers: the order in which devices add does not matter. `mix` lets each bit act on all: without it
  numbers of the other sign would add up to the same. Not made to withstand an attack.
  Source: the finalizer of MurmurHash3 (Appleby, public domain).
  """
  sums = {}
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    a, b = np.asarray(_sums(x))
    sums[jax.tree_util.keystr(path)] = f"{x.shape} {x.dtype} {a:08x}{b:08x}"
  return hashlib.sha256("\n".join(f"{name} {said}" for name, said in sorted(sums.items())).encode()).hexdigest()[:16]


@jax.jit
def _sums(x: jax.Array) -> jax.Array:
  """[2] uint32."""
  bits = jax.lax.bitcast_convert_type(x, {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]).astype(jnp.uint32)
  place = jnp.ones(x.shape, jnp.uint32)
  for axis, prime in zip(range(x.ndim), PRIMES, strict=False):
    place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(prime)
  mixed = _mix(bits + _mix(place))
  return jnp.stack([mixed.sum(dtype=jnp.uint32), _mix(mixed + 1).sum(dtype=jnp.uint32)])


def _mix(x: jax.Array) -> jax.Array:
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
