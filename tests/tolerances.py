"""How far rounding may take a number: every tolerance of the tests follows from the arithmetic behind it."""

import jax
import jax.numpy as jnp
import numpy as np

ROOM = 8.0


def limit(*, terms=1, dtype=np.float32, room=ROOM, scale=1.0):
  """The largest difference that rounding explains.

      room · ε · √terms · scale

  A sum of n terms in any order is off by at most n·u times the sum of their magnitudes, u = ε/2; rounding errors of
  independent signs add up like a random walk, so what is seen grows with √n. Room covers what the count of terms leaves
  out: functions such as exp that are right to a few ε, one rounding more or less where products are fused, other
  orders, errors that a later step enlarges. A wrong sign, weight or border moves numbers by a share of their size, far
  more than that: 8·√1000 ε is 3e-5 in float32.

  Args:
    terms: numbers that are added up, one after another, on the way to a result: of a product of matrices its inner
      size, of layers the sum over them. 1: a few operations on single numbers.
    dtype: of the side that rounds most; beside an oracle in float64 that of the code under test. Where sums are kept
      in float32 and only results are rounded to bfloat16, dtype is bfloat16 and terms counts those roundings.
    room: a factor; say why where it is not the usual one.
    scale: magnitude of the numbers that are added, not of a result in which they cancel. A number, or one per entry.
  Source: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, sections 3.1 and 4.2;
    N. J. Higham and T. Mary, SIAM J. Sci. Comput. 41 (2019), A2815, for the √n.
  """
  return room * float(jnp.finfo(dtype).eps) * np.sqrt(terms) * np.asarray(scale, np.float64)


def close(got, want, *, terms=1, dtype=np.float32, room=ROOM, scale=None, name=""):
  """Asserts |got - want| <= limit(...), entry by entry; two trees leaf by leaf.

  Shapes are equal, or one side is a single number. NaN equals NaN, and an infinity itself. Where nothing may differ at
  all, use np.testing.assert_array_equal.

  Args:
    scale: as of limit; None: the largest magnitude in `want` (of each leaf). Where `want` is zero that allows nothing:
      say what was added up to it. scale=abs(want) makes the limit relative for each entry.
    name: what is compared, for the message.
  Raises:
    AssertionError: with the worst entry, its two values, and the limit with what it was made of.
  """
  leaves = jax.tree.leaves_with_path(got)
  if isinstance(got, dict) or (isinstance(got, list | tuple) and any(np.ndim(x) for _, x in leaves)):
    assert jax.tree.structure(got) == jax.tree.structure(want), f"{name}: two trees of different structure"
    for (path, x), y in zip(leaves, jax.tree.leaves(want), strict=True):
      close(x, y, terms=terms, dtype=dtype, room=room, scale=scale, name=name + jax.tree_util.keystr(path))
    return
  got, want = (np.asarray(x).astype(np.float64) for x in (got, want))
  assert got.shape == want.shape or 1 in (got.size, want.size), f"{name}: shapes {got.shape} and {want.shape}"
  if scale is None:
    scale = np.abs(want[np.isfinite(want)]).max(initial=0.0)
  got, want, allowed = np.broadcast_arrays(got, want, limit(terms=terms, dtype=dtype, room=room, scale=scale))
  same = (got == want) | (np.isnan(got) & np.isnan(want))
  with np.errstate(invalid="ignore"):
    off = np.where(same, 0.0, np.abs(got - want))
  far = ~(off <= allowed)  # NaN is far
  if not far.any():
    return
  with np.errstate(invalid="ignore", divide="ignore"):
    worst = np.unravel_index(np.argmax(np.where(far, np.nan_to_num(off / allowed, nan=np.inf), -1)), off.shape)
  raise AssertionError(
    f"{name + ': ' if name else ''}{far.sum()} of {far.size} entries are off by more than rounding explains. "
    f"Worst: entry {tuple(int(i) for i in worst)} is {got[worst]:.9g}, expected {want[worst]:.9g}, "
    f"off by {off[worst]:.3g}; allowed: {allowed[worst]:.3g} = room {room:g} · ε of {jnp.dtype(dtype).name} · "
    f"√{terms:g} · scale"
  )
