"""Keys and values of decoding in pages: where a token's are written, and attention over them.

A page holds the keys and values of `page` consecutive tokens of one sequence. Three kinds of pages:

    own      of one slot: the tokens that nobody else has; allotted one by one as its sequence grows
    shared   full pages of a prompt, read by all its samples and never written again
    tail     the rest of a prompt that waits for its samples: copied into an own page of each that starts

So a sample's own page 0 begins where its prompt's last full page ends, and its tokens are contiguous from there.

CACHES is the table of layouts. Functions here see one device's part (P, S, K, H are its share): `sharding.local` runs
them on each device of the mesh, and page numbers never cross a device.

Axes besides the usual ones: P pages, t tokens of a page, E prompts that have pages here, W samples of a prompt,
g = H / K query heads per key/value head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fipo_jax.models.attention import HIDDEN_SCORE
from fipo_jax.models.scale import scaled
from fipo_jax.sharding import local

KINDS = ("own", "shared", "tail")
Pools = Any  # of one layer or all: a pytree of arrays, its first axis P in every layout's own way


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pages:
  """Who has which page now, as int32 arrays; -1 is nobody.

  owner_P, index_P: slot that has this own page, and which of its own pages it is (0, 1, ...).
  shared_owner_P, shared_index_P: the same of shared pages, whose owners are prompts e.
  entry_S, sample_S: prompt of a slot and which of its samples it is; entry -1: idle.
  shared_S: tokens in the slot's shared pages. length_S: tokens that attention sees, the one being written included.
  page_S, offset_S: where the token being written goes; page P (beyond the last) for idle slots.
  """

  owner_P: jax.Array
  index_P: jax.Array
  shared_owner_P: jax.Array
  shared_index_P: jax.Array
  entry_S: jax.Array
  sample_S: jax.Array
  shared_S: jax.Array
  length_S: jax.Array
  page_S: jax.Array
  offset_S: jax.Array


@dataclasses.dataclass(frozen=True)
class Layout:
  """One way to lay out pages, as functions; `axes` names the logical axes of the arrays, for sharding.

  new(config, pages {kind: P}, page_tokens, dtype, shards) -> pools, all devices' pages together.
  write_rows(pools, layer, kind, k_RtKh, v_RtKh, page_R) -> pools: whole pages of prefilled tokens of one layer.
  start(pools, tail_A, page_A) -> pools: copies tails into own pages.
  plan(pages, width, pools) -> what attend needs, once per token for all layers.
  attend(pools, layer, q_SHh, k_SKh, v_SKh, plan) -> (out_SHh, pools): writes one token per slot, then looks.
  resize(pools, kind, from_P) -> pools whose page p of that kind is the old page from_P[p], or any where that is none.
    None: never, as attention reads the pages in use alone.
  """

  new: Callable
  axes: Callable
  write_rows: Callable
  start: Callable
  plan: Callable
  attend: Callable
  resize: Callable | None = None


def bytes_per_token(config, dtype: str) -> int:
  """Cache bytes of one token in all layers; int8 has a float32 scale per head, for keys and for values."""
  size = jnp.dtype(dtype).itemsize
  per_head = config.head_dim * size + (4 if dtype == "int8" else 0)
  return 2 * config.num_layers * config.num_kv_heads * per_head


# ---- xla: a tuple of layers, keys transposed, attention page by page ----


def new_xla(config, pages: dict[str, int], page_tokens: int, dtype: str, shards: int = 1):
  """{kind: tuple over layers of {k [P, K, h, t], v [P, K, t, h]}}, int8 with scales {k_scale, v_scale} [P, K, t].

  Keys are transposed so that scores come out along the tokens of a page: on a CPU the product of a few queries with a
  page took half the time of the other order.
  """
  K, h = config.num_kv_heads, config.head_dim

  def layer(P):
    pools = {"k": jnp.zeros((P, K, h, page_tokens), dtype), "v": jnp.zeros((P, K, page_tokens, h), dtype)}
    if dtype == "int8":
      pools |= {name: jnp.zeros((P, K, page_tokens), jnp.float32) for name in ("k_scale", "v_scale")}
    return pools

  return {kind: tuple(layer(shards * pages[kind]) for _ in range(config.num_layers)) for kind in KINDS}


def axes_xla(pools):
  """Logical axes of every array."""
  return jax.tree.map(lambda x: ("rows", "kv_heads", *[None] * (x.ndim - 2)), pools)


def write_rows_xla(pools, layer: int, kind: str, k_RtKh, v_RtKh, page_R):
  """Writes page_R[r] of a layer; pages beyond the last are left out."""
  pool, parts = pools[kind][layer], _parts(pools[kind][layer], k_RtKh, v_RtKh)
  moves = {"k": (0, 2, 3, 1), "v": (0, 2, 1, 3), "k_scale": (0, 2, 1), "v_scale": (0, 2, 1)}
  pool = {name: pool[name].at[page_R].set(part.transpose(moves[name]), mode="drop") for name, part in parts.items()}
  return pools | {kind: (*pools[kind][:layer], pool, *pools[kind][layer + 1 :])}


def resize_xla(pools, kind: str, from_P):
  """Array by array, each old one given back before the next: no more than one is ever there twice.

  from_P: int32, of all shards, each numbering its own pages.
  """
  layers = [dict(pool) for pool in pools[kind]]
  for pool in layers:
    for name in pool:
      old, pool[name] = pool[name], None
      pool[name] = jax.block_until_ready(_taken(old, from_P))
      old.delete()
  return pools | {kind: tuple(layers)}


@jax.jit
def _taken(x, from_P):
  rest = (("kv_heads",) if x.ndim > 1 else ()) + (None,) * (x.ndim - 2)
  take = lambda x, from_P: x.at[from_P].get(mode="fill", fill_value=0)
  return local(take, (("rows", *rest), ("rows",)), ("rows", *rest))(x, from_P)


def start_xla(pools, tail_A, page_A):
  """own[page_A] = tail[tail_A]; pages beyond the last are left out."""
  copy = lambda own, tail: own.at[page_A].set(tail[tail_A], mode="drop")
  return pools | {"own": jax.tree.map(copy, pools["own"], pools["tail"])}


def plan_xla(pages: Pages, width: int, pools):
  """Pages in the order of their owners, so that the sum over a sequence's pages does not depend on where they lie."""
  S = pages.entry_S.shape[0]
  t = pools["own"][0]["v"].shape[2]
  held = pages.owner_P >= 0
  own_S = pages.length_S - pages.shared_S
  plan = {
    "write": (pages.page_S, pages.offset_S),
    "own": _order(pages.owner_P, pages.index_P, S),
    "count_P": jnp.where(held, jnp.clip(own_S[pages.owner_P] - pages.index_P * t, 0, t), 0),
  }
  if (shared := pages.shared_owner_P.shape[0]) and width:
    # At most as many prompts with shared pages as shared pages: their owners are renumbered 0, 1, ...
    order_P, owner_P = _order(pages.shared_owner_P, pages.shared_index_P, jnp.int32(2**30))
    first_P = jnp.concatenate([jnp.ones(1, bool), owner_P[1:] != owner_P[:-1]])
    number_P = jnp.cumsum(first_P) - 1
    entries = jnp.full(shared, -1, jnp.int32).at[number_P].set(jnp.where(owner_P == 2**30, -1, owner_P))
    same_SE = (pages.entry_S[:, None] == entries) & (pages.entry_S >= 0)[:, None]
    number_S = jnp.where(jnp.any(same_SE, 1), jnp.argmax(same_SE, 1), shared)
    slot_EW = jnp.zeros((shared, width), jnp.int32).at[number_S, pages.sample_S].set(jnp.arange(S), mode="drop")
    numbered_P = jnp.zeros(shared, jnp.int32).at[order_P].set(number_P)
    plan |= {"shared": (order_P, number_P), "slot_PW": slot_EW[numbered_P], "of_slot": (number_S, pages.sample_S)}
  return plan


def attend_xla(pools, layer: int, q_SHh, k_SKh, v_SKh, plan):
  """Attention page by page: scores, their maximum and the weighted values of each page, then joined per sequence.

      m_p = max s_p,   l_p = Σ exp(s_p - m_p),   o_p = Σ exp(s_p - m_p) v
      out = Σ_p exp(m_p - m) o_p / Σ_p exp(m_p - m) l_p,   m = max m_p

  A shared page meets the queries of all samples of its prompt in one product. Reads each page once and copies none.
  Source: arXiv 2205.14135 (the softmax in blocks), 2402.05099 (shared prefixes).
  """
  S, H, h = q_SHh.shape
  pool = _write(pools["own"][layer], k_SKh, v_SKh, *plan["write"])
  K = pool["k"].shape[1]
  q_SKgh = scaled(q_SHh).reshape(S, K, H // K, h)
  order_P, owner_P = plan["own"]
  q_PKgh = q_SKgh.at[jnp.zeros_like(order_P).at[order_P].set(owner_P)].get(mode="clip")
  parts = _page_sums(q_PKgh, pool, plan["count_P"])
  o_SKgh, m_SKg, l_SKg = _join(parts, order_P, owner_P, S)
  if "shared" in plan:
    q_PWKgh = q_SKgh[plan["slot_PW"]]
    P, W = plan["slot_PW"].shape
    q_PKxh = jnp.moveaxis(q_PWKgh, 1, 2).reshape(P, K, -1, h)
    parts = _page_sums(q_PKxh, pools["shared"][layer], None)
    parts = _join(parts, *plan["shared"], P)
    number_S, sample_S = plan["of_slot"]
    split = lambda x: jnp.moveaxis(x.reshape(P, K, W, H // K, *x.shape[3:]), 1, 2)
    mine = lambda x, fill: split(x).at[number_S, sample_S].get(mode="fill", fill_value=fill)
    o2_SKgh, m2_SKg, l2_SKg = mine(parts[0], 0), mine(parts[1], HIDDEN_SCORE), mine(parts[2], 0)
    top_SKg = jnp.maximum(m_SKg, m2_SKg)
    a_SKg, b_SKg = jnp.exp(m_SKg - top_SKg), jnp.exp(m2_SKg - top_SKg)
    o_SKgh = o_SKgh * a_SKg[..., None] + o2_SKgh * b_SKg[..., None]
    l_SKg = l_SKg * a_SKg + l2_SKg * b_SKg
  out_SKgh = o_SKgh / jnp.maximum(l_SKg, 1e-30)[..., None]  # an idle slot has seen nothing: 0
  own = (*pools["own"][:layer], pool, *pools["own"][layer + 1 :])
  return out_SKgh.reshape(S, H, h).astype(q_SHh.dtype), pools | {"own": own}


def _order(owner_P, index_P, nobody):
  """(order, owners in that order): by owner and then by index, pages of nobody last."""
  owner_P = jnp.where(owner_P < 0, nobody, owner_P)
  order_P = jnp.lexsort((index_P, owner_P))
  return order_P, owner_P[order_P]


def _page_sums(q_PKxh, pool, count_P):
  """(o, m, l) of each page, float32, for its queries x; count_P tokens of it are real, None: all."""
  # Else a conversion of pages that no step changes would be moved out of the loop over tokens, for all layers at once.
  q_PKxh, pool = jax.lax.optimization_barrier((q_PKxh, pool))
  k_PKht, v_PKth = pool["k"], pool["v"]
  if "k_scale" in pool:
    k_PKht, v_PKth = k_PKht.astype(q_PKxh.dtype), v_PKth.astype(q_PKxh.dtype)
  precision = jax.lax.Precision.HIGHEST if q_PKxh.dtype == jnp.float32 else None
  product = dict(preferred_element_type=jnp.float32, precision=precision)
  s_PKxt = jnp.einsum("pkxh,pkht->pkxt", q_PKxh, k_PKht.astype(q_PKxh.dtype), **product)
  if "k_scale" in pool:
    s_PKxt *= pool["k_scale"][:, :, None]
  if count_P is not None:
    real_Pt = jnp.arange(s_PKxt.shape[-1]) < count_P[:, None]
    s_PKxt = jnp.where(real_Pt[:, None, None], s_PKxt, HIDDEN_SCORE)
  m_PKx = jnp.max(s_PKxt, axis=-1)
  w_PKxt = jnp.exp(s_PKxt - m_PKx[..., None])
  l_PKx = jnp.sum(w_PKxt, axis=-1)
  if "v_scale" in pool:
    w_PKxt *= pool["v_scale"][:, :, None]
  o_PKxh = jnp.einsum("pkxt,pkth->pkxh", w_PKxt.astype(v_PKth.dtype), v_PKth, **product)
  return o_PKxh, m_PKx, l_PKx


def _join(parts, order_P, owner_P, owners: int):
  """(o, m, l) of each owner 0 .. owners - 1 from those of its pages; an owner without pages has o = l = 0."""
  o, m, total = (x[order_P] for x in parts)
  per_owner = dict(num_segments=owners, indices_are_sorted=True)
  top = jnp.maximum(jax.ops.segment_max(m, owner_P, **per_owner), HIDDEN_SCORE)
  scale = jnp.exp(m - top.at[owner_P].get(mode="clip"))
  o = jax.ops.segment_sum(o * scale[..., None], owner_P, **per_owner)
  return o, top, jax.ops.segment_sum(total * scale, owner_P, **per_owner)


def _write(pool, k_SKh, v_SKh, page_S, offset_S):
  parts = _parts(pool, k_SKh, v_SKh)
  return {
    name: pool[name].at[(page_S, slice(None), *([slice(None)] if name == "k" else []), offset_S)].set(
      part, mode="drop", unique_indices=True
    )
    for name, part in parts.items()
  }  # fmt: skip


def _parts(pool, k, v):
  """What is stored of keys and values [..., h]: themselves in the pool's dtype, or int8 and its scale.

      scale = max|x| / 127,   stored = round(x / scale)
  """
  if "k_scale" not in pool:
    return {"k": k.astype(pool["k"].dtype), "v": v.astype(pool["v"].dtype)}
  parts = {}
  for name, x in (("k", k), ("v", v)):
    parts[name], parts[f"{name}_scale"] = to_int8(x)
  return parts


def to_int8(x):
  """(int8 like x [..., h], its float32 scale [...]), as in `_parts`."""
  x = x.astype(jnp.float32)
  scale = jnp.maximum(jnp.max(jnp.abs(x), axis=-1), 1e-30) / 127
  return jnp.round(x / scale[..., None]).astype(jnp.int8), scale


CACHES: dict[str, Layout] = {
  "xla": Layout(new_xla, axes_xla, write_rows_xla, start_xla, plan_xla, attend_xla, resize_xla),
}
