"""Keys and values of decoding in pages, on TPU, by JAX's oldest Pallas kernel for it, `paged_attention`.

It is the default of bfloat16 pages, because it has run on chips for years; `cache_paged`, that of int8, has been
compiled and simulated alone. Beside others: experiments/results/compile/attention.md.

The kernel takes a table of page numbers per slot and copies those pages, in whole blocks, into on-chip memory. So a
prompt's shared pages are stored once, but read once for each of its samples.

One pool per device for keys and one for values, [K, rows, t, h], a page a row: layer by layer and inside a layer own,
shared and tail pages. Row of page p of a kind in layer l, with P pages of all kinds in a layer:

    row = l P + first[kind] + p

A layer is then a shift of the page numbers, and may be a traced number: a loop over layers carries the pool whole and
never cuts it. Besides the axes of `cache.py`: N pages of a sequence, L layers, A copies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention

from fipo_jax.models.cache import KINDS, Layout, Pages
from fipo_jax.models.scale import scaled

MOST_NUMBERS = 200_000  # of pages in the table of a device: it lies in the scalar memory of a core, 1 MiB
LANES, SUBLANES = 128, 8  # of a TPU register: heads and pages have to fill whole ones


@functools.partial(jax.tree_util.register_dataclass, data_fields=["k", "v"], meta_fields=["pages", "layers"])
@dataclasses.dataclass(frozen=True)
class PallasPools:
  """k, v: [K, rows, t, h]. pages: how many of each kind, in the order of KINDS, one device has in a layer."""

  k: jax.Array
  v: jax.Array
  pages: tuple[int, ...]
  layers: int

  @property
  def page_tokens(self) -> int:
    return self.k.shape[2]


@functools.cache  # a Layout is a static argument of jitted programs: the same one again compiles nothing
def layout(most_pages: int, pages_per_compute_block: int, interpret=False, megacore_mode: str | None = None) -> Layout:
  """The Layout of this file, which is the same object for the same arguments.

  Args:
    most_pages: the most pages a sequence can have, its own and its prompt's shared ones; rounded up to whole blocks.
      A device's slots * most_pages may be MOST_NUMBERS.
    pages_per_compute_block: pages the kernel holds at a time, twice, of keys and of values. On a v5p 8192 tokens fit,
      and 16384 do not.
    interpret: True computes what the kernel says by XLA, on any device: slow, for tests. `pltpu.InterpretParams()`
      plays a TPU's memories and copies as well.
    megacore_mode: "batch" (an even number of slots) or "kv_head" (an even number of key/value heads on a device)
      shares the work out to the two cores of a v4 or v5p chip. Where they are separate devices it may hang.
  """
  most_pages += -most_pages % pages_per_compute_block
  kernel = dict(pages_per_compute_block=pages_per_compute_block, interpret=interpret, megacore_mode=megacore_mode)
  return Layout(
    new=functools.partial(new_pallas, interpret=interpret),
    axes=axes_pallas,
    write_rows=write_rows_pallas,
    start=start_pallas,
    plan=functools.partial(plan_pallas, most_pages=most_pages),
    attend=functools.partial(attend_pallas, **kernel),
  )


def new_pallas(
  config, pages: dict[str, int], page_tokens: int, dtype: str, shards: int = 1, *, interpret=False
) -> PallasPools:
  """Empty pools. Every device has its `pages` of all layers together, so `shards` of them lie one after the other.

  Raises:
    ValueError: the kernel cannot do it. It multiplies in bfloat16 whatever is stored and compiles for heads of
      multiples of 128 only; with pages that are no multiple of 8 tokens, XLA would copy the pool for every token.
      `interpret` takes any head and any page.
  """
  if jnp.dtype(dtype) != jnp.bfloat16:
    raise ValueError(
      f"rollout.cache_dtype={jnp.dtype(dtype).name!r} is not for rollout.attention='paged_attention', whose kernel "
      "multiplies in bfloat16: use rollout.cache_dtype='bfloat16', or rollout.attention='xla'."
    )
  if config.head_dim % LANES and not interpret:
    raise ValueError(
      f"head_dim={config.head_dim} is not for rollout.attention='paged_attention', whose kernel needs a multiple of "
      f"{LANES}: use rollout.attention='xla'."
    )
  if page_tokens % SUBLANES and not interpret:
    raise ValueError(
      f"rollout.page_tokens={page_tokens} is not for rollout.attention='paged_attention', which needs a multiple of "
      f"{SUBLANES}."
    )
  pages = tuple(pages[kind] for kind in KINDS)
  shape = (config.num_kv_heads, shards * config.num_layers * sum(pages), page_tokens, config.head_dim)
  return PallasPools(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), pages, config.num_layers)


def axes_pallas(pools: PallasPools):
  """Logical axes of every array."""
  return jax.tree.map(lambda _: ("kv_heads", "rows", None, None), pools)


def write_rows_pallas(pools: PallasPools, layer, kind: str, k_RtKh, v_RtKh, page_R):
  """Writes page_R[r] of a layer; pages beyond the last are left out."""
  head_K, row_R = jnp.arange(k_RtKh.shape[2])[:, None], rows_of(pools, kind, page_R, layer)
  move = lambda pool, x_RtKh: pool.at[head_K, row_R].set(x_RtKh.transpose(2, 0, 1, 3).astype(pool.dtype), mode="drop")
  return dataclasses.replace(pools, k=move(pools.k, k_RtKh), v=move(pools.v, v_RtKh))


def start_pallas(pools: PallasPools, tail_A, page_A):
  """own[page_A] = tail[tail_A] in all layers; pages beyond the last are left out."""
  layers = jnp.arange(pools.layers)[:, None]
  from_LA, to_LA = rows_of(pools, "tail", tail_A, layers), rows_of(pools, "own", page_A, layers)
  copy = lambda pool: pool.at[:, to_LA].set(pool.at[:, from_LA].get(mode="clip"), mode="drop")
  return dataclasses.replace(pools, k=copy(pools.k), v=copy(pools.v))


def plan_pallas(pages: Pages, width: int, pools: PallasPools, *, most_pages: int):
  """Page numbers of each slot in the order of its tokens: those of its prompt, then its own. `width` is not needed."""
  S = pages.entry_S.shape[0]
  busy_S = pages.entry_S >= 0
  same_SS = (pages.entry_S[:, None] == pages.entry_S) & busy_S
  same_SP = (pages.entry_S[:, None] == pages.shared_owner_P) & busy_S[:, None]
  # The first slot of each prompt gathers its shared pages; the others copy from there.
  first_P = jnp.where(jnp.any(same_SP, 0), jnp.argmax(same_SP, 0), S)
  number_P = _first(pools, "shared") + jnp.arange(first_P.shape[0])
  table_SN = jnp.zeros((S, most_pages), jnp.int32)  # the rest is loaded too, if not seen: it has to exist
  table_SN = table_SN.at[first_P, pages.shared_index_P].set(number_P, mode="drop")
  table_SN = table_SN[jnp.argmax(same_SS, 1)]
  held_P = pages.owner_P >= 0
  shared_S = pages.shared_S // pools.page_tokens
  index_P = jnp.where(held_P, shared_S[pages.owner_P] + pages.index_P, most_pages)
  table_SN = table_SN.at[pages.owner_P, index_P].set(jnp.arange(held_P.shape[0]), mode="drop")
  return {
    "write": (pages.page_S, pages.offset_S),
    "table": table_SN,
    "length": jnp.where(busy_S, pages.length_S, 0).astype(jnp.int32),
  }


def attend_pallas(
  pools: PallasPools, layer, q_SHh, k_SKh, v_SKh, plan, *, pages_per_compute_block, interpret=False, megacore_mode=None
):
  """Writes one token per slot and looks, with the kernel. A slot of length 0 is skipped by it and yields zeros."""
  page_S, offset_S = plan["write"]
  row_S = rows_of(pools, "own", page_S, layer)
  # Heads are indexed, too: where they are part of what is written, XLA moves them inside, and the whole pool with them.
  head_K = jnp.arange(k_SKh.shape[1])[:, None]
  write = lambda pool, x_SKh: pool.at[head_K, row_S, offset_S].set(
    x_SKh.swapaxes(0, 1).astype(pool.dtype), mode="drop", unique_indices=True
  )
  pools = dataclasses.replace(pools, k=write(pools.k, k_SKh), v=write(pools.v, v_SKh))
  # Queries in float32, because the kernel keeps its running sum in their type.
  q_SHh, dtype = scaled(q_SHh).astype(jnp.float32), q_SHh.dtype
  with pltpu.force_tpu_interpret_mode(interpret) if interpret else contextlib.nullcontext():
    out_SHh = paged_attention(
      q_SHh,
      pools.k,
      pools.v,
      plan["length"],
      plan["table"] + layer * sum(pools.pages),
      pages_per_compute_block=pages_per_compute_block,
      megacore_mode=megacore_mode,
    )
  return out_SHh.astype(dtype), pools


def _first(pools, kind: str) -> int:
  """Number of a kind's first page in a layer."""
  return sum(pools.pages[: KINDS.index(kind)])


def rows_of(pools, kind: str, page, layer):
  """Rows of pages; one beyond the pool for a page that this kind does not have."""
  total = sum(pools.pages)
  here = (page >= 0) & (page < pools.pages[KINDS.index(kind)])
  return jnp.where(here, layer * total + _first(pools, kind) + page, pools.layers * total)
