"""Training attention on TPUs: JAX's splash kernel on every device's part of the rows, heads and tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding, PartitionSpec

from fipo_jax.sharding import devices_along, gather, local, spec

LANES = 128  # blocks are multiples of it
KEPT = "context"  # name of the result, by which a remat policy keeps it: the backward pass needs it again
BLOCK = 1024  # queries and keys of one step of the kernel, where they divide the row
KV_HEADS = 2  # of one run of the kernel, where they divide the heads; two cores share them
BACKWARD_BLOCK = 2048  # keys of one step of the fused backward kernel, which writes a partial dq for each


def attend_splash(
  q_RTHh, k_RUKh, v_RUKh, segments_RT, segments_RU, *, interpret: bool = False
):  # fmt: skip
  """`attention.attend` in blocks that never leave the chip; blocks above the diagonal are skipped.

  Heads and tokens may be cut over the mesh: a device gathers the keys and values of its rows over `context` (few heads,
  so few bytes) and keeps its own queries. The kernel computes all blocks up to the diagonal, also between segments.

  Args:
    interpret: run the kernel's program on a CPU, for tests.
  Raises:
    ValueError: a device's part of the row is no multiple of 128 tokens.
  """
  mesh = jax.sharding.get_abstract_mesh()
  context, cut = devices_along("tokens"), devices_along("heads")
  T, H, h = q_RTHh.shape[1:]
  if not fits(T, context):
    raise ValueError(
      f"model.attention='splash': {T} tokens over mesh.context={context} is no multiple of {LANES} tokens per device; "
      f"use batch.row_tokens={-(-T // (LANES * context)) * LANES * context}."
    )
  groups = groups_of(k_RUKh.shape[2] // cut)
  kernel = _kernel(T, H // cut // groups, context, interpret)

  def part(kernel, q_RTHh, k_RTKh, v_RTKh, segments_RT):
    k_RUKh, v_RUKh = (gather(x, 1, "tokens") for x in (k_RTKh, v_RTKh))  # their gradients are reduce-scatters
    segments_RU = gather(segments_RT, 1, "tokens")
    grouped = lambda x: jnp.moveaxis(x.reshape(*x.shape[:2], groups, -1, h), (2, 3), (0, 2))  # [groups, R, heads, T, h]
    segments = splash.SegmentIds(segments_RT, segments_RU)
    run = lambda qkv: jax.vmap(kernel)(*qkv, segments)
    out_GRHTh = jax.lax.map(run, (grouped(q_RTHh * h**-0.5), grouped(k_RUKh), grouped(v_RUKh)))
    return jnp.moveaxis(out_GRHTh, (0, 2), (2, 3)).reshape(q_RTHh.shape)

  del segments_RU  # the same, before a mesh cuts them
  q, kv = ("rows", "tokens", "heads", None), ("rows", "tokens", "kv_heads", None)
  if mesh.empty or mesh.size == 1:
    return part(kernel, q_RTHh, k_RUKh, v_RUKh, segments_RT)
  # The kernel is a tree of tables about its mask; those about queries are cut like them.
  tables = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, *spec("tokens"))))
  return local(part, (tables, q, kv, kv, ("rows", "tokens")), q)(kernel, q_RTHh, k_RUKh, v_RUKh, segments_RT)


def groups_of(kv_heads: int) -> int:
  """Runs of the kernel, one after the other, that so many key/value heads of a device take."""
  return kv_heads // KV_HEADS if kv_heads % KV_HEADS == 0 else 1


def fits(tokens: int, context: int) -> bool:
  """Whether the kernel takes rows of so many tokens, cut over `context` devices."""
  return tokens % (LANES * context) == 0


def _kernel(T: int, heads: int, context: int, interpret: bool):
  mask = masks.MultiHeadMask([masks.CausalMask((T, T)) for _ in range(heads)])
  q, kv, back = _block(T // context, BLOCK), _block(T, BLOCK), _block(T, BACKWARD_BLOCK)
  sizes = splash.BlockSizes(
    block_q=q, block_kv=kv, block_kv_compute=kv, block_q_dkv=q, block_kv_dkv=back,
    block_kv_dkv_compute=_block(back, BLOCK), use_fused_bwd_kernel=True,
  )  # fmt: skip
  return splash.make_splash_mha(
    mask, block_sizes=sizes, head_shards=1, q_seq_shards=context, interpret=interpret, residual_checkpoint_name=KEPT
  )


def _block(tokens: int, most: int) -> int:
  """The largest power of two times 128 that divides tokens, up to `most`."""
  block = LANES
  while 2 * block <= most and tokens % (2 * block) == 0:
    block *= 2
  return block
