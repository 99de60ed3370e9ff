"""Keys and values of whole rows as one array each, where tests want no pages."""

import jax
import jax.numpy as jnp


def prefilled(model, params, tokens_RT, positions_RT, segments_RT):
  """(k, v) [L, R, T, K, h] of `Model.prefill`, jitted."""
  kv = jax.jit(model.prefill)(params, tokens_RT, positions_RT, segments_RT)
  return kv if not isinstance(params["layers"], tuple) else tuple(jnp.stack(x) for x in zip(*kv, strict=True))
