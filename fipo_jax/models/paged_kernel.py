"""A Pallas kernel for TPU: one token per slot is written into its page, then attention over all pages of the slot.

What it does that `jax.experimental.pallas.ops.tpu.paged_attention` does not: pages may be int8 with a scale per head
and token, and are then read as int8; a page has the keys and values of all heads of a device in one piece, so one copy
fetches it; only pages that a slot has are fetched; the new token is put into the page that was fetched anyway, and the
page written back, where XLA would scatter row by row; of the table of pages only a few rows are in the core's scalar
memory at a time, so that sequences may be long.

Axes besides the usual ones: N pages of a sequence, B pages of a block, t tokens of a page, g = H / K, 2: keys, values.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from fipo_jax.models.attention import HIDDEN_SCORE

BLOCK_BYTES = 1 << 20  # of pages that are worked on at a time; as much is on its way meanwhile
# Pages whose copies are started, or waited for, in one turn of a loop: 6 cycles a page on v5p, where a turn for each,
# with bounds checked, took 33 and the pages' bytes take 47 (experiments/results/compile/attention.md).
UNROLLED = 8


def write_and_attend(
  q_SHh, new_SK2h, new_scale_SK2, kv, scale, length_S, table_SN, base, *, cores: int = 1, interpret=False
):
  """Attention of one query per slot over its pages, of which the last gets the slot's new token first.

      s[t] = q · k[t],   out = Σ softmax(s)[t] v[t]      over the slot's `length` tokens, the new one the last

  Args:
    q_SHh: scaled, any float dtype; products are in bfloat16, sums in float32.
    new_SK2h: the new token as it is stored: bfloat16, or whole numbers in -127..127. new_scale_SK2: its scale, float32.
    kv: [rows, K, 2, t, h] bfloat16, or int8 with scale [rows, K, 2 t] float32, else None. Both are written in place.
    length_S: int32, tokens of a slot with the new one; 0: idle, which yields zeros and writes nothing.
    table_SN: int32, page numbers of a slot's tokens in order. base: int32, what is added to them: rows of this layer.
    cores: 2 shares the slots out to the two cores of a chip that is one device; S must be even then.
    interpret: for tests, see `pallas_call`.
  Returns:
    (out_SHh in the queries' dtype, kv, scale).
  """
  S, H, h = q_SHh.shape
  _, K, _, t, _ = kv.shape
  N = table_SN.shape[1]
  quantized = scale is not None
  B = max(1, min(N, BLOCK_BYTES // (K * 2 * t * h * kv.dtype.itemsize)))
  q_SKgh = q_SHh.astype(jnp.bfloat16).reshape(S, K, H // K, h)
  new_SK21h = new_SK2h.astype(jnp.float32)[:, :, :, None]
  slot = lambda c, b: b * cores + c
  at = lambda *rest: lambda c, b, *_: (slot(c, b), *rest)
  row = lambda index: pl.BlockSpec((1, 1, N), index, memory_space=pltpu.SMEM)
  anywhere = pl.BlockSpec(memory_space=pl.ANY)
  ahead = lambda c, b, length, after, base: (jnp.minimum(after[slot(c, b)], S - 1), 0, 0)
  inputs = [table_SN[:, None], table_SN[:, None], q_SKgh, new_SK21h, kv]
  in_specs = [
    row(at(0, 0)), row(ahead), pl.BlockSpec((1, K, H // K, h), at(0, 0, 0)),
    pl.BlockSpec((1, K, 2, 1, h), at(0, 0, 0, 0)), anywhere,
  ]  # fmt: skip
  scratch = [
    pltpu.VMEM((2, B, K, 2, t, h), kv.dtype), pltpu.VMEM((2, K, 2, t, h), kv.dtype), pltpu.SemaphoreType.DMA((2,)),
    pltpu.SemaphoreType.DMA((2,)), pltpu.SMEM((3,), jnp.int32), *(pltpu.VMEM((K, H // K, n), jnp.float32)
    for n in (1, 1, h)),
  ]  # fmt: skip
  out_shape, out_specs = [jax.ShapeDtypeStruct(q_SKgh.shape, jnp.float32), kv], [in_specs[2], anywhere]
  if quantized:
    inputs += [jnp.repeat(new_scale_SK2, t, axis=2), scale]
    in_specs += [pl.BlockSpec((1, K, 2 * t), at(0, 0)), anywhere]
    out_shape, out_specs = [*out_shape, scale], [*out_specs, anywhere]
    scratch += [pltpu.VMEM((2, B, K, 2 * t), jnp.float32), pltpu.VMEM((2, K, 2 * t), jnp.float32)]
  scalars = (length_S, _after(length_S, cores), jnp.reshape(base, 1).astype(jnp.int32))
  out, kv, *scale = pl.pallas_call(
    functools.partial(_kernel, quantized=quantized, cores=cores, slots=S),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(scalars), grid=(cores, S // cores), in_specs=in_specs, out_specs=out_specs,
      scratch_shapes=scratch,
    ),
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in out_shape],
    input_output_aliases={len(scalars) + 4: 1} | ({len(scalars) + 6: 2} if quantized else {}),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary"), disable_bounds_checks=True  # page numbers are the engine's own
    ),
    interpret=interpret,
    name="write_and_attend",
  )(*scalars, *inputs)  # fmt: skip
  return out.reshape(S, H, h).astype(q_SHh.dtype), kv, scale[0] if quantized else None


def _after(length_S, cores: int):
  """[S + cores]: the next busy slot after each on its core, S if there is none; then the first of each core."""
  S = length_S.shape[0]
  busy_bc = jnp.where(length_S > 0, jnp.arange(S), S).reshape(-1, cores)
  from_here = jax.lax.cummin(busy_bc, axis=0, reverse=True)
  after = jnp.concatenate([from_here[1:], jnp.full((1, cores), S, from_here.dtype)])
  return jnp.concatenate([after.reshape(-1), from_here[0]]).astype(jnp.int32)


def _kernel(length_ref, after_ref, base_ref, table_ref, ahead_ref, q_ref, new_ref, _, *refs, quantized, cores, slots):
  """One slot. Blocks of pages come one ahead, the first of the next busy slot beside the last of this one.

  state: which half of the buffers the next block is in; whether the page in each half of `written` is on its way.
  """
  if quantized:
    new_scale_ref, _, out_ref, kv_ref, scale_ref, pages, written, sems, sent, state, top, total, acc, *scales = refs
    scales, scales_written = scales
  else:
    out_ref, kv_ref, pages, written, sems, sent, state, top, total, acc = refs
  core, b = pl.program_id(0), pl.program_id(1)
  s = b * cores + core
  length, after = length_ref[s], after_ref[s]
  _, B, K, _, t, h = pages.shape
  blocks = pl.cdiv(length, B * t)

  def copies(table, length, i, half, act):
    """Starts, or waits for, the copies of the pages that block i has."""

    def one(p, _):
      page = base_ref[0] + table[0, 0, i * B + p]
      act(pltpu.make_async_copy(kv_ref.at[page], pages.at[half, p], sems.at[half]))
      if quantized:
        act(pltpu.make_async_copy(scale_ref.at[page], scales.at[half, p], sems.at[half]))

    def several(n, _):
      for p in range(UNROLLED):
        one(n * UNROLLED + p, None)

    has = jnp.minimum(B, pl.cdiv(length, t) - i * B)
    turns = has // UNROLLED
    jax.lax.fori_loop(0, turns, several, None)
    jax.lax.fori_loop(turns * UNROLLED, has, one, None)

  start, wait = lambda copy: copy.start(), lambda copy: copy.wait()

  def sending(half, page):
    found = [pltpu.make_async_copy(written.at[half], kv_ref.at[page], sent.at[half])]
    if quantized:
      found.append(pltpu.make_async_copy(scales_written.at[half], scale_ref.at[page], sent.at[half]))
    return found

  def settle(half):
    @pl.when(state[1 + half] == 1)
    def _():
      for copy in sending(half, 0):  # a wait asks for the size alone
        copy.wait()
      state[1 + half] = 0

  @pl.when(b == 0)
  def _():
    pages[...] = jnp.zeros_like(pages)  # what is not fetched is multiplied by 0, and must not be NaN
    if quantized:
      scales[...] = jnp.zeros_like(scales)
    for i in range(3):
      state[i] = 0

  @pl.when((length > 0) & (s == after_ref[slots + core]))
  def _():
    copies(table_ref, length, 0, state[0], start)

  def write(half, i):
    """The new token into its page, in this block and in the pool."""
    p, offset, to = (length - 1) // t - i * B, (length - 1) % t, b % 2
    page = base_ref[0] + table_ref[0, 0, (length - 1) // t]
    settle(to)
    here = jax.lax.broadcasted_iota(jnp.int32, (K, 2, t, h), 2) == offset
    new = jnp.where(here, new_ref[0], pages[half, p].astype(jnp.float32)).astype(pages.dtype)
    pages[half, p], written[to] = new, new
    if quantized:
      here = jax.lax.broadcasted_iota(jnp.int32, (K, 2 * t), 1) % t == offset
      new = jnp.where(here, new_scale_ref[0], scales[half, p])
      scales[half, p], scales_written[to] = new, new
    for copy in sending(to, page):
      copy.start()
    state[1 + to] = 1

  def block(i, _):
    half = state[0]

    @pl.when(i + 1 < blocks)
    def _():
      copies(table_ref, length, i + 1, 1 - half, start)

    @pl.when((i + 1 == blocks) & (after < slots))
    def _():
      copies(ahead_ref, length_ref[jnp.minimum(after, slots - 1)], 0, 1 - half, start)

    copies(table_ref, length, i, half, wait)
    pl.when(i + 1 == blocks)(lambda: write(half, i))
    g = q_ref.shape[2]
    iota = lambda axis: jax.lax.broadcasted_iota(jnp.int32, (B, g, t), axis)
    seen_Bgt = (i * B + iota(0)) * t + iota(2) < length
    product = dict(preferred_element_type=jnp.float32)
    for k in range(K):
      q_Bgh = jnp.broadcast_to(q_ref[0, k][None], (B, g, h))
      k_Bth, v_Bth = (pages[half, :, k, n].astype(jnp.bfloat16) for n in range(2))
      s_Bgt = jax.lax.dot_general(q_Bgh, k_Bth, (((2,), (2,)), ((0,), (0,))), **product)
      if quantized:
        s_Bgt *= scales[half, :, k, :t][:, None]
      s_Bgt = jnp.where(seen_Bgt, s_Bgt, HIDDEN_SCORE)
      before_g1 = top[k]
      top_g1 = jnp.maximum(before_g1, jnp.max(jnp.max(s_Bgt, axis=2, keepdims=True), axis=0))
      w_Bgt = jnp.where(seen_Bgt, jnp.exp(s_Bgt - top_g1[None]), 0.0)
      keep_g1 = jnp.exp(before_g1 - top_g1)
      total[k] = total[k] * keep_g1 + jnp.sum(jnp.sum(w_Bgt, axis=2, keepdims=True), axis=0)
      if quantized:
        w_Bgt *= scales[half, :, k, t:][:, None]
      o_Bgh = jax.lax.dot_general(w_Bgt.astype(jnp.bfloat16), v_Bth, (((2,), (1,)), ((0,), (0,))), **product)
      acc[k] = acc[k] * keep_g1 + jnp.sum(o_Bgh, axis=0)
      top[k] = top_g1
    state[0] = 1 - half

  top[...], total[...], acc[...] = jnp.full_like(top, HIDDEN_SCORE), jnp.zeros_like(total), jnp.zeros_like(acc)
  jax.lax.fori_loop(0, blocks, block, None)
  out_ref[0] = acc[...] / jnp.maximum(total[...], 1e-30)

  @pl.when(b == pl.num_programs(1) - 1)
  def _():
    settle(0)
    settle(1)
