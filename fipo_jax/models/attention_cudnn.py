"""Training attention on GPUs: cuDNN's kernel on packed rows, through the binding that JAX itself uses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax._src.cudnn import (
  fused_attention_stablehlo as cudnn,  # jax.nn's wrapper of it takes no packed rows
)

from fipo_jax.sharding import RULES, local
from fipo_jax.types import most_segments


def attend_cudnn(q_RTHh, k_RUKh, v_RUKh, segments_RT, segments_RU):
  """`attention.attend` by cuDNN: segments are sequences of their own, so that nothing between them is computed.

  Args:
    segments_RT: 1, 2, ... in order, then padding (0), as `train.batching.pack` lays rows out; at most
      `types.most_segments(T)` of them.
  Raises:
    ValueError: not bfloat16 or float16, or tokens are cut over mesh.context.
  """
  del segments_RU
  mesh = jax.sharding.get_abstract_mesh()
  if q_RTHh.dtype not in (jnp.bfloat16, jnp.float16):
    raise ValueError(f"model.attention='cudnn': model.dtype={q_RTHh.dtype} must be bfloat16; or use 'xla'.")
  if not mesh.empty and (cut := mesh.shape[RULES["tokens"][0]]) > 1:
    raise ValueError(f"model.attention='cudnn': takes whole rows, not mesh.context={cut}; use 1, or 'xla'.")
  scale = q_RTHh.shape[-1] ** -0.5

  def part(q_RTHh, k_RTKh, v_RTKh, segments_RT):
    lengths_RM, starts_RM = _sequences(segments_RT)
    return cudnn.dot_product_attention(
      q_RTHh, k_RTKh, v_RTKh, q_seqlen=lengths_RM, kv_seqlen=lengths_RM, q_offsets=starts_RM, kv_offsets=starts_RM,
      scale=scale, mask_type=cudnn.MaskType.PADDING_CAUSAL,
    )  # fmt: skip

  rows, kv = ("rows", None, "heads", None), ("rows", None, "kv_heads", None)
  return local(part, (rows, kv, kv, ("rows", None)), rows)(q_RTHh, k_RUKh, v_RUKh, segments_RT)


def takes(dtype, head_dim: int) -> bool:
  """Whether the kernel takes such heads on the GPUs of this process; packed rows need Hopper or newer."""
  if dtype not in (jnp.bfloat16, jnp.float16) or head_dim % 8 or head_dim > 128:
    return False
  capability = getattr(jax.devices()[0], "compute_capability", "0.0")
  return float(capability) >= 9


def _sequences(segments_RT):
  """(lengths [R, M], starts [R, M + 1]) of a row's segments, its padding one of them; -1 beyond the last."""
  T = segments_RT.shape[1]
  M = most_segments(T) + 1
  number_RT = jnp.where(segments_RT == 0, jnp.max(segments_RT, axis=1, keepdims=True) + 1, segments_RT)
  lengths_RM = jax.vmap(lambda number_T: jnp.zeros(M, jnp.int32).at[number_T - 1].add(1, mode="drop"))(number_RT)
  ends_RM = jnp.cumsum(lengths_RM, axis=1, dtype=jnp.int32)
  there_RM = lengths_RM > 0
  starts_RM = jnp.pad(jnp.where(there_RM, ends_RM - lengths_RM, -1), ((0, 0), (0, 1)), constant_values=-1)
  return jnp.where(there_RM, lengths_RM, -1), starts_RM
