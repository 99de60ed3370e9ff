"""Causal grouped-query attention inside segments, over whole rows. (Of one new token over a cache: cache.py.)"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fipo_jax.models import attention_cudnn, attention_splash
from fipo_jax.models.scale import scaled
from fipo_jax.sharding import devices_along

# Scores of what may not be seen. Finite, so that a row with nothing to see gives numbers and not NaN.
HIDDEN_SCORE = -1e30
# Rows longer than this are scored so many queries at a time, each block against all keys, in a loop.
QUERY_BLOCK = 1024
# Shorter ones so many at a time, without a loop, each block against the keys up to its own: near half the work.
SEEN_BLOCK = 128


@jax.named_scope("attention")
def attend(q_RTHh, k_RUKh, v_RUKh, segments_RT, segments_RU, *, implementation: str = "xla"):
  """Each query looks at the keys of its own segment at its own index or before.

      out[t] = Σ_u softmax_u(q[t] · k[u] / √h) v[u],   u ≤ t, segment[u] = segment[t]

  Query head i uses key/value head i // (H / K). Padding (segment 0) looks at padding and yields finite numbers.

  Args:
    q_RTHh: queries, rotated. k_RUKh, v_RUKh: keys (rotated) and values; U = T.
    segments_RT, segments_RU: int32 of queries and keys; the same, which the kernels rely on.
    implementation: a row of IMPLEMENTATIONS, or "auto": what is fastest on the platform and takes such rows.
  Returns:
    [R, T, H, h] in the dtype of q.
  """
  if implementation not in NAMES:
    raise ValueError(f"attention={implementation!r} is unknown; choose from {', '.join(NAMES)}.")
  if implementation == "auto":
    implementation = automatic(q_RTHh.shape[1], q_RTHh.shape[3], q_RTHh.dtype)
  return IMPLEMENTATIONS[implementation](q_RTHh, k_RUKh, v_RUKh, segments_RT, segments_RU)


def attend_xla(q_RTHh, k_RUKh, v_RUKh, segments_RT, segments_RU, *, block: int = QUERY_BLOCK):
  """`attend` in plain XLA, for every platform; at most [R, H, block, U] scores exist at a time."""
  R, T, H, h = q_RTHh.shape
  K = k_RUKh.shape[2]
  q_RTKGh = scaled(q_RTHh).reshape(R, T, K, H // K, h)
  index_T = jnp.arange(T)

  def some(queries, end=T):
    q, segments, index = queries  # a block of B queries, none of which sees a key at `end` or after
    seen_RBU = (segments[:, :, None] == segments_RU[:, None, :end]) & (index[:, None] >= index_T[:end])
    return _weighted(q, k_RUKh[:, :end], v_RUKh[:, :end], seen_RBU)

  if T <= block:
    # Blocks of a row that is cut over devices would have to move.
    step = SEEN_BLOCK if devices_along("tokens") == 1 else T
    parts = [slice(t, min(t + step, T)) for t in range(0, T, step)]
    out = [some((q_RTKGh[:, p], segments_RT[:, p], index_T[p]), p.stop) for p in parts]
    return jnp.concatenate(out, axis=1).reshape(R, T, H, h)
  pad = -T % block  # padded queries see nothing real and are cut off below
  q, segments = (jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2)) for x in (q_RTKGh, segments_RT))
  blocks = (T + pad) // block
  split = lambda x: jnp.moveaxis(x.reshape(R, blocks, block, *x.shape[2:]), 1, 0)
  index = jnp.arange(T + pad).reshape(blocks, block)
  out = jax.lax.map(jax.checkpoint(some, prevent_cse=False), (split(q), split(segments), index))
  return jnp.moveaxis(out, 0, 1).reshape(R, T + pad, H, h)[:, :T]


# What the kernels made can be kept for the backward pass, splash's by its name, cuDNN's as its own: transformer.REMAT.
IMPLEMENTATIONS = {"xla": attend_xla, "splash": attention_splash.attend_splash, "cudnn": attention_cudnn.attend_cudnn}
NAMES = ("auto", *IMPLEMENTATIONS)


def automatic(tokens: int, head_dim: int, dtype) -> str:
  """What "auto" stands for: the fastest row of IMPLEMENTATIONS on this platform and mesh that takes such rows.

  Args:
    tokens: T of a whole row. head_dim: h. dtype: of the queries.
  """
  platform, context = jax.default_backend(), devices_along("tokens")
  # Shorter rows (prompts) would be padded to many times their length.
  if platform == "tpu" and tokens >= attention_splash.LANES * context:
    return "splash"
  if platform == "gpu" and context == 1 and attention_cudnn.takes(dtype, head_dim):
    return "cudnn"
  return "xla"


def _weighted(q_RTKGh, k_RUKh, v_RUKh, seen_RTU):
  """softmax over the seen keys, then the mean of the values under it; scores and softmax in float32."""
  precision = jax.lax.Precision.HIGHEST if q_RTKGh.dtype == jnp.float32 else None
  scores = jnp.einsum(
    "rtkgh,rukh->rkgtu", q_RTKGh, k_RUKh, preferred_element_type=jnp.float32, precision=precision
  )
  scores = jnp.where(seen_RTU[:, None, None], scores, HIDDEN_SCORE)
  weights = jax.nn.softmax(scores, axis=-1).astype(v_RUKh.dtype)
  return jnp.einsum("rkgtu,rukh->rtkgh", weights, v_RUKh, precision=precision)
