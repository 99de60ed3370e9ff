"""Keys and values of whole rows as one array each, where tests want no pages."""

import jax
import jax.numpy as jnp


def prefilled(model, params, tokens_RT, positions_RT, segments_RT):
  """(k, v) [L, R, T, K, h] of `Model.prefill`, jitted."""
  c = model.config
  shape = (c.num_layers, *tokens_RT.shape, c.num_kv_heads, c.head_dim)
  keep = lambda cache, layer, k, v: tuple(x.at[layer].set(new) for x, new in zip(cache, (k, v), strict=True))

  @jax.jit
  def run(params, *rows):
    return model.prefill(params, *rows, (jnp.zeros(shape, c.dtype),) * 2, keep)

  return run(params, tokens_RT, positions_RT, segments_RT)
