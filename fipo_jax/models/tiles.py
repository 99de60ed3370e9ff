"""Functions of single tokens over long rows, a tile of tokens at a time, with parameters that are cut over the mesh."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fipo_jax.sharding import gather, local, scatter_sum, sum_over

LANES = 128  # tiles are multiples of it
# Tokens of a tile where none is asked for. An H100 is a quarter faster with whole rows. A TPU's compiler takes longer
# the larger the tile; by its own estimate v5p gains 2% from 2,048, and v6e needs that (experiments/results).
TILE, GPU_TILE = 1024, 32_768


def by_tiles(function: Callable, weights, xs: tuple, given: tuple, *, axes: tuple, tile_tokens: int, sum_dtype):
  """function(weights, xs, given) for functions in which tokens do not see each other; keeps only what goes in.

      y[t] = f(w, x[t]),    d_x[t] = d_y[t] · ∂f/∂x,    d_w = Σ_t d_y[t] · ∂f/∂w

  The backward pass computes the inside of f once more, tile by tile: of its inner width exists what one tile needs.
  Each device gathers the parameters over `embed` once a pass, and keeps its part of their gradient's sum over all
  tokens. Sums over tiles are float32.

  Args:
    function: (weights, xs, given) -> a tuple of arrays; sees whole `embed` axes and one device's part of the others,
      and ends what it computes from such a part by `sharding.leave`.
    weights: a tree of parameters in the compute dtype. xs, given: tuples of arrays [R, T, ...]; given have no gradient.
    axes: logical axes of weights (a tree), of xs, of given and of the results.
    tile_tokens: at most so many tokens of a device at a time; 0 and more in `tile_of`.
    sum_dtype: of the gradients that devices add up.
  """

  def forward_part(weights, xs, given):
    weights = _whole(weights, axes[0])
    return _map_tiles(lambda tile, _: (function(weights, *tile), ()), (xs, given), (), tile_tokens)[0]

  def backward_part(weights, xs, given, d_ys):
    weights = _whole(weights, axes[0])

    def one(tile, sums):
      xs, given, d_ys = tile
      _, pull = jax.vjp(lambda w, xs: function(w, xs, given), weights, xs)
      new, d_xs = pull(d_ys)
      return d_xs, jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, new)

    start = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights)
    d_xs, d_weights = _map_tiles(one, (xs, given, d_ys), start, tile_tokens)
    return _scattered(d_weights, axes[0], sum_dtype), d_xs

  @jax.custom_vjp
  def run(weights, xs, given):
    return local(forward_part, axes[:3], axes[3])(weights, xs, given)

  def backward(saved, d_ys):
    weights = saved[0]
    d_weights, d_xs = local(backward_part, axes, axes[:2])(*saved, d_ys)
    return jax.tree.map(lambda d, w: d.astype(w.dtype), d_weights, weights), d_xs, None

  run.defvjp(lambda *inputs: (run(*inputs), inputs), backward)
  return run(weights, xs, given)


def tile_of(rows: int, tokens: int, most: int) -> int:
  """Tokens of a row in one tile: the largest part in whole lanes with rows · tile <= most, or the smallest there is.

  most=0: as many as suit the platform. Rows of no multiple of 128 tokens are one tile.
  """
  most = most or (GPU_TILE if jax.default_backend() == "gpu" else TILE)
  parts = [tokens // n for n in range(1, tokens // LANES + 1) if tokens % (n * LANES) == 0] or [tokens]
  return next((tile for tile in parts if rows * tile <= most), parts[-1])


def over_tiles(one: Callable, inputs, state, sums, tile_tokens: int):
  """Loops over tiles: one(inputs of a tile, its state, sums so far) -> (its new state, sums); (state, sums) at the end.

  inputs, state: trees of arrays [R, T, ...]. One tile alone is no loop.
  """
  R, T = jax.tree.leaves(inputs)[0].shape[:2]
  tile = tile_of(R, T, tile_tokens)
  if tile == T:
    return one(inputs, state, sums)

  def body(i, carry):
    state, sums = carry
    cut = lambda x: jax.lax.dynamic_slice_in_dim(x, i * tile, tile, axis=1)
    new, sums = one(jax.tree.map(cut, inputs), jax.tree.map(cut, state), sums)
    put = lambda all_, x: jax.lax.dynamic_update_slice_in_dim(all_, x, i * tile, axis=1)
    return jax.tree.map(put, state, new), sums

  return jax.lax.fori_loop(0, T // tile, body, (state, sums))


def _map_tiles(one: Callable, inputs, sums, tile_tokens: int):
  """`over_tiles` of one(inputs, sums) -> (results, sums): tokens have no state before."""
  shapes, _ = jax.eval_shape(one, inputs, sums)
  start = jax.tree.map(lambda s: jnp.empty(s.shape, s.dtype), shapes)  # every tile is written
  return over_tiles(lambda inputs, _, sums: one(inputs, sums), inputs, start, sums, tile_tokens)


def _whole(weights, axes):
  one = lambda w, names: gather(w, names.index("embed"), "embed") if "embed" in names else w
  return jax.tree.map(one, weights, axes)


def _scattered(d_weights, axes, dtype):
  def one(d, names):
    d = d.astype(dtype)
    if "embed" in names:
      return sum_over(scatter_sum(d, names.index("embed"), "embed"), "slices", "tokens")
    return sum_over(d, "rows", "tokens")

  return jax.tree.map(one, d_weights, axes)
