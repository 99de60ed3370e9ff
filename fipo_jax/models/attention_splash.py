"""Training attention on TPUs: JAX's splash kernel on every device's part of the rows, heads and tokens."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding, PartitionSpec

from fipo_jax.models.scale import scaled
from fipo_jax.sharding import devices_along, gather, local, spec

LANES = 128  # blocks are multiples of it
KEPT = "context"  # name of the result, by which a remat policy keeps it: the backward pass needs it again
BLOCK = 1024  # the most queries, and keys, of one step of the kernel; half of it is large enough
KV_HEADS = 2  # of one run of the kernel, where they divide the heads; two cores share them
BACKWARD_BLOCK = 2048  # the most keys of one step of the backward kernel
# Of one run: the fused backward kernel writes a partial dq for each block of keys; beyond, dq is a kernel of its own.
PARTIAL_DQ = 2 * 2**30
PADDED = -1  # the segment of what is added to a row; the row's own padding is 0


def attend_splash(
  q_RTHh, k_RUKh, v_RUKh, segments_RT, segments_RU, *, interpret: bool = False
):  # fmt: skip
  """`attention.attend` in blocks that never leave the chip; blocks above the diagonal are skipped.

  Heads and tokens may be cut over the mesh: a device gathers the keys and values of its rows over `context` (few heads,
  so few bytes) and keeps its own queries. The kernel computes all blocks up to the diagonal, also between segments.
  A device's part of a row is padded to what divides into large blocks (`blocks_of`), as a segment of its own.

  Args:
    interpret: run the kernel's program on a CPU, for tests.
  """
  mesh = jax.sharding.get_abstract_mesh()
  context, cut = devices_along("tokens"), devices_along("heads")
  T, H, h = q_RTHh.shape[1:]
  groups = groups_of(k_RUKh.shape[2] // cut)
  blocks, heads = blocks_of(T, context), H // cut // groups
  rows = max(1, q_RTHh.shape[0] // devices_along("rows"))
  fused = rows * heads * blocks.partial_dq * h * q_RTHh.dtype.itemsize <= PARTIAL_DQ
  kernel = _kernel(blocks, heads, context, fused, interpret)

  def part(kernel, q_RTHh, k_RTKh, v_RTKh, segments_RT):
    tokens = q_RTHh.shape[1]
    pad = lambda x, fill=0: jnp.pad(
      x, [(0, 0), (0, blocks.queries - tokens)] + [(0, 0)] * (x.ndim - 2), constant_values=fill
    )
    segments_RT = pad(segments_RT, PADDED)
    k_RUKh, v_RUKh = (gather(pad(x), 1, "tokens") for x in (k_RTKh, v_RTKh))  # their gradients are reduce-scatters
    segments_RU = gather(segments_RT, 1, "tokens")
    grouped = lambda x: jnp.moveaxis(x.reshape(*x.shape[:2], groups, -1, h), (2, 3), (0, 2))  # [groups, R, heads, T, h]
    segments = splash.SegmentIds(segments_RT, segments_RU)
    run = lambda qkv: jax.vmap(kernel)(*qkv, segments)
    out_GRHTh = jax.lax.map(run, (grouped(pad(scaled(q_RTHh))), grouped(k_RUKh), grouped(v_RUKh)))
    out_RTGHh = jnp.moveaxis(out_GRHTh, (0, 2), (2, 3))
    return out_RTGHh.reshape(*out_RTGHh.shape[:2], *q_RTHh.shape[2:])[:, :tokens]

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


@dataclasses.dataclass(frozen=True)
class Blocks:
  """How a row is laid out for the kernel.

  queries: of a device, padded. keys: of the row, padded. q, kv: of one step forward. back: keys of one step backward,
  compute: of those at a time.
  """

  queries: int
  keys: int
  q: int
  kv: int
  back: int
  compute: int

  @property
  def partial_dq(self) -> int:
    """Queries, once for each block of keys, for which the fused backward kernel writes a gradient."""
    return self.queries * (self.keys // self.back)


def blocks_of(tokens: int, context: int) -> Blocks:
  """Blocks of a row, cut over `context` devices and padded no further than makes them large: by 896 tokens at most.

  Rows of a block or less are one block. Small blocks cost more than the padding: the kernel's steps are then many, and
  each block of keys a partial dq.
  """
  one = lambda units, most: max(b for b in range(1, most // LANES + 1) if units % b == 0)
  wanted = ("q", BLOCK), ("kv", BLOCK), ("back", BACKWARD_BLOCK), ("compute", BLOCK)
  for queries in itertools.count(-(-tokens // (LANES * context))):  # in units of LANES; a whole BACKWARD_BLOCK will do
    whole = {"q": queries, "kv": queries * context, "back": queries * context}
    found = {name: one(units, dict(wanted)[name]) for name, units in whole.items()}
    whole["compute"] = found["back"]
    found["compute"] = one(found["back"], BLOCK)
    if all(found[name] == whole[name] or 2 * found[name] * LANES >= most for name, most in wanted):
      break
  return Blocks(LANES * queries, LANES * queries * context, **{name: LANES * b for name, b in found.items()})


def _kernel(blocks: Blocks, heads: int, context: int, fused: bool, interpret: bool):
  mask = masks.MultiHeadMask([masks.CausalMask((blocks.keys, blocks.keys)) for _ in range(heads)])
  own = {} if fused else dict(block_q_dq=blocks.q, block_kv_dq=blocks.kv)
  sizes = splash.BlockSizes(
    block_q=blocks.q, block_kv=blocks.kv, block_kv_compute=blocks.kv, block_q_dkv=blocks.q,
    block_kv_dkv=blocks.back, block_kv_dkv_compute=blocks.compute, use_fused_bwd_kernel=fused, **own,
  )  # fmt: skip
  return splash.make_splash_mha(
    mask, block_sizes=sizes, head_shards=1, q_seq_shards=context, interpret=interpret, residual_checkpoint_name=KEPT
  )
