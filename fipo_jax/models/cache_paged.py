"""Keys and values of decoding in pages, on TPU: pages of all heads in one piece, bfloat16 or int8, by `paged_kernel`.

One pool per device, [rows, K, 2, t, h], a page a row, keys and values side by side, and with int8 its scales
[rows, K, 2 t], which fill registers with pages of 64 tokens. Rows are numbered as in `cache_pallas`, so a layer may be
a traced number. The kernel both writes and reads: XLA never touches the pool while tokens are decoded.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from fipo_jax.models.cache import KINDS, Layout, to_int8
from fipo_jax.models.cache_pallas import LANES, SUBLANES, plan_pallas, rows_of
from fipo_jax.models.paged_kernel import write_and_attend
from fipo_jax.models.scale import scaled

MOST_PAGES = 60_000  # of a sequence: a core's scalar memory holds four rows of so many page numbers, 1 MiB in all


@functools.partial(jax.tree_util.register_dataclass, data_fields=["kv", "scale"], meta_fields=["pages", "layers"])
@dataclasses.dataclass(frozen=True)
class PagedPools:
  """kv: [rows, K, 2, t, h]. scale: [rows, K, 2 t] float32, those of keys first; or None. The rest as `PallasPools`."""

  kv: jax.Array
  scale: jax.Array | None
  pages: tuple[int, ...]
  layers: int

  @property
  def page_tokens(self) -> int:
    return self.kv.shape[3]


@functools.cache  # a Layout is a static argument of jitted programs: the same one again compiles nothing
def layout(most_pages: int, interpret=False, cores: int = 1) -> Layout:
  """The Layout of this file, which is the same object for the same arguments.

  Args:
    most_pages: the most pages a sequence can have, its own and its prompt's shared ones.
    interpret: as in `cache_pallas.layout`.
    cores: 2 shares slots out to the two cores of a v4 or v5p chip, where their number on a device is even.
  Raises:
    ValueError: too many pages.
  """
  if most_pages > MOST_PAGES:
    raise ValueError(
      f"rollout.page_tokens: a sequence may have {most_pages} pages, more than the {MOST_PAGES} that "
      f"rollout.attention='pallas' can number; use pages {-(-most_pages // MOST_PAGES)} times as large."
    )
  return Layout(
    new=functools.partial(new_paged, interpret=interpret),
    axes=axes_paged,
    write_rows=write_rows_paged,
    start=start_paged,
    plan=functools.partial(plan_pallas, most_pages=most_pages),
    attend=functools.partial(attend_paged, interpret=interpret, cores=cores),
  )


def new_paged(config, pages: dict[str, int], page_tokens: int, dtype: str, shards: int = 1, *, interpret=False):
  """Empty pools, `shards` of them one after the other.

  Raises:
    ValueError: the kernel takes bfloat16 and int8, heads of multiples of 128 and pages of multiples of 8 tokens, of 32
      in int8. `interpret` takes any head and any page.
  """
  if dtype not in ("bfloat16", "int8"):
    raise ValueError(
      f"rollout.cache_dtype={dtype!r} is not for rollout.attention='pallas': use 'bfloat16' or 'int8', or "
      "rollout.attention='xla'."
    )
  if config.head_dim % LANES and not interpret:
    raise ValueError(
      f"head_dim={config.head_dim} is not for rollout.attention='pallas', whose kernel needs a multiple of {LANES}: "
      "use rollout.attention='xla'."
    )
  least = SUBLANES * (4 if dtype == "int8" else 1)
  if page_tokens % least and not interpret:
    raise ValueError(
      f"rollout.page_tokens={page_tokens} is not for rollout.attention='pallas' with pages of {dtype}, which needs a "
      f"multiple of {least}."
    )
  pages = tuple(pages[kind] for kind in KINDS)
  rows = shards * config.num_layers * sum(pages)
  kv = jnp.zeros((rows, config.num_kv_heads, 2, page_tokens, config.head_dim), dtype)
  scale = jnp.zeros((rows, config.num_kv_heads, 2 * page_tokens), jnp.float32) if dtype == "int8" else None
  return PagedPools(kv, scale, pages, config.num_layers)


def axes_paged(pools: PagedPools):
  """Logical axes of every array."""
  return jax.tree.map(lambda x: ("rows", "kv_heads", *[None] * (x.ndim - 2)), pools)


def write_rows_paged(pools: PagedPools, layer, kind: str, k_RtKh, v_RtKh, page_R):
  """Writes page_R[r] of a layer; pages beyond the last are left out."""
  row_R = rows_of(pools, kind, page_R, layer)
  parts = _stored(pools, jnp.stack([k_RtKh, v_RtKh], axis=-2).transpose(0, 2, 3, 1, 4))
  kv, scale = pools.kv.at[row_R].set(parts[0], mode="drop"), pools.scale
  if scale is not None:
    scale = scale.at[row_R].set(parts[1].reshape(*row_R.shape, *scale.shape[1:]), mode="drop")
  return dataclasses.replace(pools, kv=kv, scale=scale)


def start_paged(pools: PagedPools, tail_A, page_A):
  """own[page_A] = tail[tail_A] in all layers; pages beyond the last are left out."""
  layers = jnp.arange(pools.layers)[:, None]
  from_LA, to_LA = rows_of(pools, "tail", tail_A, layers), rows_of(pools, "own", page_A, layers)
  return jax.tree.map(lambda pool: pool.at[to_LA].set(pool.at[from_LA].get(mode="clip"), mode="drop"), pools)


def attend_paged(pools: PagedPools, layer, q_SHh, k_SKh, v_SKh, plan, *, interpret=False, cores: int = 1):
  """Writes one token per slot and looks, with the kernel. A slot of length 0 is skipped by it and yields zeros."""
  new_SK2h, scale_SK2 = _stored(pools, jnp.stack([k_SKh, v_SKh], axis=2))
  out_SHh, kv, scale = write_and_attend(
    scaled(q_SHh), new_SK2h, scale_SK2, pools.kv, pools.scale, plan["length"], plan["table"], layer * sum(pools.pages),
    cores=cores if q_SHh.shape[0] % cores == 0 else 1, interpret=interpret,
  )  # fmt: skip
  return out_SHh, dataclasses.replace(pools, kv=kv, scale=scale)


def _stored(pools: PagedPools, x):
  """(what is stored of keys or values [..., h], its scale [...] or None)."""
  return (x.astype(pools.kv.dtype), None) if pools.scale is None else to_int8(x)
