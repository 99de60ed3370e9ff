"""Training attention on GPUs: cuDNN's kernel on packed rows, through the binding that JAX itself uses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax._src.cudnn import (
  fused_attention_stablehlo as cudnn,  # jax.nn's wrapper of it takes no packed rows
)

from fipo_jax.models.scale import scaled
from fipo_jax.sharding import devices_along, local

# Segments of a row: the kernel's workspace grows with their number, each as if it were as long as the row.
MOST_SEGMENTS = 32
WORKSPACE = 2 * 2**30  # bytes of a device, beyond which key/value heads take turns
KERNEL = cudnn._dot_product_attention_fwd_p_wrapper  # by which a remat policy keeps what it made


def attend_cudnn(q_RTHh, k_RUKh, v_RUKh, segments_RT, segments_RU):
  """`attention.attend` by cuDNN: segments are sequences of their own, so that nothing between them is computed.

  Args:
    segments_RT: 1, 2, ... in order, then padding (0), as `train.batching.pack` lays rows out; at most MOST_SEGMENTS of
      them: of more, the result is NaN.
  Raises:
    ValueError: not bfloat16 or float16, heads of a size that it does not take, or tokens are cut over mesh.context.
  """
  del segments_RU
  if q_RTHh.dtype not in (jnp.bfloat16, jnp.float16):
    raise ValueError(f"model.attention='cudnn': model.dtype={q_RTHh.dtype} must be bfloat16; or use 'xla'.")
  if not _takes_heads(q_RTHh.shape[-1]):
    raise ValueError(
      f"model.attention='cudnn': heads of {q_RTHh.shape[-1]} channels are no multiple of 8 up to 128; use 'xla'."
    )
  if (cut := devices_along("tokens")) > 1:
    raise ValueError(f"model.attention='cudnn': takes whole rows, not mesh.context={cut}; use 1, or 'xla'.")

  def part(q_RTHh, k_RTKh, v_RTKh, segments_RT):
    lengths_RM, starts_RM = _sequences(segments_RT)
    run = lambda qkv: cudnn.dot_product_attention(
      *qkv, q_seqlen=lengths_RM, kv_seqlen=lengths_RM, q_offsets=starts_RM, kv_offsets=starts_RM,
      scale=1.0, mask_type=cudnn.MaskType.PADDING_CAUSAL,
    )  # fmt: skip
    bad = jnp.where(jnp.max(segments_RT) > MOST_SEGMENTS, jnp.nan, 0).astype(q_RTHh.dtype)
    groups = _groups(q_RTHh.shape, k_RTKh.shape[2])
    if groups == 1:
      return run((q_RTHh, k_RTKh, v_RTKh)) + bad
    split = lambda x: jnp.moveaxis(x.reshape(*x.shape[:2], groups, -1, x.shape[-1]), 2, 0)
    out_GRTHh = jax.lax.map(run, (split(q_RTHh), split(k_RTKh), split(v_RTKh)))
    return jnp.moveaxis(out_GRTHh, 0, 2).reshape(q_RTHh.shape) + bad

  rows, kv = ("rows", None, "heads", None), ("rows", None, "kv_heads", None)
  return local(part, (rows, kv, kv, ("rows", None)), rows)(scaled(q_RTHh), k_RUKh, v_RUKh, segments_RT)


def takes(dtype, head_dim: int) -> bool:
  """Whether the kernel takes such heads on the GPUs of this process; packed rows need Hopper or newer."""
  if dtype not in (jnp.bfloat16, jnp.float16) or not _takes_heads(head_dim):
    return False
  capability = getattr(jax.devices()[0], "compute_capability", "0.0")
  return float(capability) >= 9


def _takes_heads(head_dim: int) -> bool:
  return head_dim % 8 == 0 and head_dim <= 128


def _groups(q_shape: tuple[int, ...], kv_heads: int) -> int:
  """Turns that the heads take, so that the backward pass finds room: the fewest with

      R · (MOST_SEGMENTS + 1) · T · (H / groups) · 8 h bytes <= WORKSPACE

  or one for each key/value head.
  """
  R, T, H, h = q_shape
  whole = 8 * R * (MOST_SEGMENTS + 1) * T * H * h
  return next((n for n in range(1, kv_heads) if kv_heads % n == 0 and whole <= n * WORKSPACE), kv_heads)


def _sequences(segments_RT):
  """(lengths [R, M], starts [R, M + 1]) of a row's segments, its padding one of them; -1 beyond the last."""
  M = MOST_SEGMENTS + 1
  number_RT = jnp.where(segments_RT == 0, jnp.max(segments_RT, axis=1, keepdims=True) + 1, segments_RT)
  lengths_RM = jax.vmap(lambda number_T: jnp.zeros(M, jnp.int32).at[number_T - 1].add(1, mode="drop"))(number_RT)
  ends_RM = jnp.cumsum(lengths_RM, axis=1, dtype=jnp.int32)
  there_RM = lengths_RM > 0
  starts_RM = jnp.pad(jnp.where(there_RM, ends_RM - lengths_RM, -1), ((0, 0), (0, 1)), constant_values=-1)
  return jnp.where(there_RM, lengths_RM, -1), starts_RM
