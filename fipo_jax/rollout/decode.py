"""The jitted programs of sampling: `prefill` prompts into pages, `run` slots for some tokens, and their upkeep.

    queue (prefilled) -> admit -> slot: one token a step -> finished: pages freed -> admit the next

All of it happens on the device, so every host of a pod stays in step without talking; the host looks in once in many
tokens, to take away what was sampled and to prefill more. Rows of the mesh (data x fsdp) are shards that share
nothing: each has its own slots, pages and queue. They still have to go on or stop together, so once in `decide` tokens
they tell each other how they stand, in one small gather; in between nothing passes from shard to shard.

Axes besides the usual ones: D shards, Q places of the queue, C steps of one run, P pages, A slots admitted at a time,
J numbers of steps that a block can have.
Leading axes are all shards' together; page, slot and prompt numbers count within a shard.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from fipo_jax.models.cache import Layout, Pages
from fipo_jax.models.transformer import Model
from fipo_jax.rollout.sampling import Sampling, sample
from fipo_jax.sharding import constrain, devices_along, local

ADMITTED_AT_ONCE = 8  # slots that start in one pass; copies so many pages
ROWS = ("rows",)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Work:
  """A sample that waits in the queue or is being decoded in a slot; x is Q or S. int32 unless said otherwise.

  uid_x: the host's number of it, -1: nothing here. key_x2: uint32, raw data of its random key. last_x: token to feed
  next. length_x: tokens before that one, all of whose keys and values are in pages. shared_x: those of them in shared
  pages. entry_x, sample_x: which prompt, which of its samples. tail_x: tail page to copy, -1: none. count_x: response
  tokens so far. limit_x: at which it ends. seen_xV: bool, tokens already there, for the repetition penalty, else None.
  """

  uid: jax.Array
  key: jax.Array
  last: jax.Array
  length: jax.Array
  shared: jax.Array
  entry: jax.Array
  sample: jax.Array
  tail: jax.Array
  count: jax.Array
  limit: jax.Array
  seen: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
  """Work in the slots, and the own pages: owner_P and index_P as in `cache.Pages`."""

  work: Work
  owner_P: jax.Array
  index_P: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Log:
  """What a run did, whole on every host: per step and slot, uid (-1: idle), token, log-prob, raw log-prob.

  steps: how many of C were run. taken_D: taken from the queue. uid_S: in the slots at the end. active_D: how many.
  used_D: own pages in use, most_used_D: the most at any step. short: whether it ended for want of pages.
  held: most tokens in own pages at any step, all shards.
  """

  uid_CS: jax.Array
  token_CS: jax.Array
  logp_CS: jax.Array
  raw_CS: jax.Array
  steps: jax.Array
  taken_D: jax.Array
  uid_S: jax.Array
  active_D: jax.Array
  used_D: jax.Array
  most_used_D: jax.Array
  held: jax.Array
  short: jax.Array


@functools.partial(jax.jit, static_argnames=("model", "layout", "page"), donate_argnames=("pools",))
def prefill(model: Model, layout: Layout, params, pools, tokens_RT, length_R, pages_RN, tail_R, *, page: int):
  """Computes keys and values of prompts, once for all their samples, and writes them into pages.

  Args:
    tokens_RT: int32, padded on the right. length_R: int32, tokens of each; 0: no prompt here.
    pages_RN: int32, shared page of each full page of a prompt; beyond the last page: none. tail_R: tail page likewise.
  """
  R, T = tokens_RT.shape
  column_T = jnp.arange(T)
  segments_RT = (column_T < length_R[:, None]).astype(jnp.int32)
  positions_RT = jnp.broadcast_to(column_T, (R, T))
  k_LRTKh, v_LRTKh = model.prefill(params, tokens_RT, positions_RT, segments_RT)

  def write(pools, k, v, length_R, pages_RN, tail_R):
    L, R = k.shape[:2]
    pad = [(0, 0), (0, 0), (0, -T % page + page), (0, 0), (0, 0)]  # one page more: a tail may be empty
    k, v = (jnp.pad(x, pad).reshape(L, R, -1, page, *x.shape[3:]) for x in (k, v))
    N = pages_RN.shape[1]
    if N:
      flat = lambda x: x[:, :, :N].reshape(L, R * N, *x.shape[3:])
      pools = layout.write_rows(pools, "shared", flat(k), flat(v), pages_RN.reshape(-1))
    last = lambda x: x[:, jnp.arange(R), length_R // page]
    return layout.write_rows(pools, "tail", last(k), last(v), tail_R)

  axes, kv = layout.axes(pools), (None, "rows", None, "kv_heads", None)
  return local(write, (axes, kv, kv, ROWS, ROWS, ROWS), axes)(pools, k_LRTKh, v_LRTKh, length_R, pages_RN, tail_R)


@functools.partial(
  jax.jit, static_argnames=("model", "layout", "sampling", "page", "width", "steps", "decide"),
  donate_argnames=("pools", "slots"),
)  # fmt: skip
def run(
  model: Model, layout: Layout, sampling: Sampling, params, pools, slots: Slots, queue: Work, ready_D, shared, more,
  fewest, *, page: int, width: int, steps: int, decide: int = 1,
):  # fmt: skip
  """Decodes until the host is needed: after C steps, when nothing is left, or as `more`, `fewest` and the pages say.

  Args:
    ready_D: int32, places of the queue that are filled.
    shared: (owner_P, index_P) of the shared pages, as in `cache.Pages`.
    more: bool, whether the host can fill the queue again: then it is called when an eighth of the slots is idle.
    fewest: int32, with an empty queue and nothing more: stop when no shard has more active slots than this.
    page: tokens of a page. width: samples per prompt. steps: C.
    decide: steps from one decision to the next, a power of two. A slot that ends in between idles until then. Where a
      shard lacks the pages that its slots may take in so many steps, half as many are made, and so on down to one.
  Returns:
    (pools, slots, Log).
  """
  S, D, P = slots.work.uid.shape[0], ready_D.shape[0], slots.owner_P.shape[0]
  pool_axes = layout.axes(pools)
  per_shard = lambda x: jnp.sum(x.reshape(D, -1), axis=1, dtype=jnp.int32)
  sizes_J = [decide >> j for j in range(decide.bit_length())]

  def look(slots, taken_D):
    """What decides, of all shards on each: all that shards ever tell each other."""
    work = slots.work
    active_S = work.uid >= 0
    left_D = jnp.max(jnp.where(active_S, work.limit - work.count, 0).reshape(D, -1), axis=1)
    free_D = P // D - per_shard(slots.owner_P >= 0)
    facts = [taken_D, ready_D, per_shard(active_S), left_D, free_D]
    facts += [per_shard(_new_pages(work, page, size)) for size in sizes_J]
    taken_D, ready, active_D, left_D, free_D, *needed_JD = constrain(jnp.stack(facts), None, None)
    short_J = [jnp.any(needed_D > free_D) for needed_D in needed_JD]
    idle_D = S // D - active_D
    empty = jnp.all(taken_D >= ready)
    starved = empty & more & (jnp.sum(idle_D) * 8 >= S)
    shrinks = empty & ~more & (jnp.max(active_D) <= fewest)
    # As many steps as there are pages for, and no more than the longest response may still have.
    size = jnp.int32(0)
    for here, short in zip(sizes_J[::-1], short_J[::-1], strict=True):
      size = jnp.where(short, size, here)
    return {
      "active_D": active_D, "free_D": free_D, "short": short_J[-1],
      "size": jnp.where(starved | shrinks, 0, jnp.minimum(size, jnp.max(left_D))),
      "admits": jnp.any((idle_D > 0) & (taken_D < ready) & (_spare(free_D - needed_JD[-1], active_D, P // D) > 0)),
    }  # fmt: skip

  decodes = lambda c: (c["step"] < steps) & (c["look"]["size"] > 0)
  admits = lambda c: c["look"]["admits"]

  def admit(c):
    slots_axes = jax.tree.map(lambda x: ROWS, c["slots"])
    queue_axes = jax.tree.map(lambda x: ROWS, queue)
    start = local(
      functools.partial(_admit, layout=layout, page=page),
      (pool_axes, slots_axes, queue_axes, ROWS, ROWS), (pool_axes, slots_axes, ROWS),
    )  # fmt: skip
    pools, new, taken_D = start(c["pools"], c["slots"], queue, ready_D, c["taken_D"])
    return c | {"pools": pools, "slots": new, "taken_D": taken_D, "look": look(new, taken_D)}

  def one_token(c):
    slots_axes = jax.tree.map(lambda x: ROWS, c["slots"])
    allot = local(
      lambda slots, *shared: _allot(slots, *shared, page=page), (slots_axes, ROWS, ROWS), (slots_axes, ROWS)
    )
    slots, pages = allot(c["slots"], *shared)
    plan = local(lambda pages, pools: layout.plan(pages, width, pools), (ROWS, pool_axes), ROWS)(pages, c["pools"])

    def attend(pools, layer, q, k, v):
      heads, kv_heads = ("rows", "heads", None), ("rows", "kv_heads", None)
      if isinstance(layer, int):  # named in the program
        part = lambda pools, q, k, v, plan: layout.attend(pools, layer, q, k, v, plan)
        return local(part, (pool_axes, heads, kv_heads, kv_heads, ROWS), (heads, pool_axes))(pools, q, k, v, plan)
      axes = (pool_axes, (), heads, kv_heads, kv_heads, ROWS)
      return local(layout.attend, axes, (heads, pool_axes))(pools, layer, q, k, v, plan)

    work = slots.work
    hidden_SD, pools = model.decode(params, work.last, work.length, c["pools"], attend)
    active_S = work.uid >= 0
    keys_S = jax.random.wrap_key_data(jax.vmap(_fold)(work.key, work.count))
    logits_SV = _spread(model.logits(params, hidden_SD), D)
    drawn = sample(logits_SV, keys_S, sampling, count_S=work.count, seen_SV=work.seen)
    token_S, logp_S, raw_S = (constrain(x, "rows") for x in drawn)
    stop_S = jnp.zeros(S, bool)
    for stop_id in sampling.stop_ids:
      stop_S |= token_S == stop_id
    count_S = work.count + 1
    done_S = active_S & (stop_S | (count_S >= work.limit))
    seen = work.seen
    if seen is not None:
      note = lambda seen_SV, token_S: seen_SV.at[jnp.arange(token_S.shape[0]), token_S].set(True)
      seen = local(note, (("rows", None), ROWS), ("rows", None))(seen, token_S)
    free = local(lambda owner_P, done_S: jnp.where((owner_P >= 0) & done_S[owner_P], -1, owner_P), (ROWS, ROWS), ROWS)
    after = dataclasses.replace(
      work, uid=jnp.where(done_S, -1, work.uid), last=token_S, length=work.length + 1, count=count_S, seen=seen
    )
    put = lambda log, row: jax.lax.dynamic_update_slice(log, row[None].astype(log.dtype), (c["step"], 0))
    log = {
      "uid": put(c["log"]["uid"], work.uid), "token": put(c["log"]["token"], token_S),
      "logp": put(c["log"]["logp"], logp_S), "raw": put(c["log"]["raw"], raw_S),
      "held": put(c["log"]["held"], per_shard(jnp.where(active_S, work.length - work.shared + 1, 0))),
    }  # fmt: skip
    return c | {
      "pools": pools, "slots": Slots(after, free(slots.owner_P, done_S), slots.index_P), "log": log,
      "step": c["step"] + 1, "most_used_D": jnp.maximum(c["most_used_D"], per_shard(slots.owner_P >= 0)),
    }  # fmt: skip

  def block(c):
    end = jnp.minimum(c["step"] + c["look"]["size"], steps)
    # The decision is not carried, so that nothing inside depends on it.
    inside = {name: value for name, value in c.items() if name != "look"}
    inside = one_token(inside) if decide == 1 else jax.lax.while_loop(lambda c: c["step"] < end, one_token, inside)
    return inside | {"look": look(inside["slots"], inside["taken_D"])}

  def turn(c):
    c = jax.lax.while_loop(admits, admit, c)
    return jax.lax.while_loop(lambda c: decodes(c) & ~admits(c), block, c)

  row = lambda dtype, fill, n=S: constrain(jnp.full((steps, n), fill, dtype), None, "rows")
  zeros_D = constrain(jnp.zeros(D, jnp.int32), "rows")
  c = {
    "pools": pools, "slots": slots, "taken_D": zeros_D, "step": jnp.int32(0), "most_used_D": zeros_D,
    "log": {
      "uid": row(jnp.int32, -1), "token": row(jnp.int32, 0), "logp": row(jnp.float32, 0), "raw": row(jnp.float32, 0),
      "held": row(jnp.int32, 0, D),
    },
    "look": look(slots, zeros_D),
  }  # fmt: skip
  c = jax.lax.while_loop(lambda c: (admits(c) & (c["step"] < steps)) | decodes(c), turn, c)
  log, found = c["log"], c["look"]
  whole = lambda x: constrain(x, *[None] * x.ndim)
  return c["pools"], c["slots"], jax.tree.map(whole, Log(
    log["uid"], log["token"], log["logp"], log["raw"], c["step"], c["taken_D"], c["slots"].work.uid, found["active_D"],
    P // D - found["free_D"], c["most_used_D"], jnp.max(jnp.sum(log["held"], axis=1)), found["short"],
  ))  # fmt: skip


@functools.partial(jax.jit, donate_argnames=("slots",))
def drop(slots: Slots, drop_S) -> Slots:
  """Empties the slots of drop_S and frees their pages."""

  def part(slots, drop_S):
    uid = jnp.where(drop_S, -1, slots.work.uid)
    owner_P = jnp.where((slots.owner_P >= 0) & drop_S[slots.owner_P], -1, slots.owner_P)
    return Slots(dataclasses.replace(slots.work, uid=uid), owner_P, slots.index_P)

  axes = jax.tree.map(lambda x: ROWS, slots)
  return local(part, (axes, ROWS), axes)(slots, drop_S)


@functools.partial(jax.jit, static_argnames=("fewer",))
def shrink(slots: Slots, *, fewer: int) -> Slots:
  """The active slots alone, in `fewer` slots per shard: idle ones cost as much as busy ones."""

  def part(slots):
    order = jnp.argsort(slots.work.uid < 0)[:fewer]
    new = jnp.full(slots.work.uid.shape[0], -1, jnp.int32).at[order].set(jnp.arange(fewer, dtype=jnp.int32))
    owner_P = jnp.where(slots.owner_P >= 0, new[slots.owner_P], -1)
    return Slots(jax.tree.map(lambda x: x[order], slots.work), owner_P, slots.index_P)

  axes = jax.tree.map(lambda x: ROWS, slots)
  return local(part, (axes,), axes)(slots)


@functools.partial(jax.jit, static_argnames=("by", "shards"))
def more_pages(slots: Slots, *, by: int, shards: int) -> Slots:
  """Room for so many more own pages of each shard, which nobody has."""
  pad = lambda x: jnp.pad(x.reshape(shards, -1), ((0, 0), (0, by)), constant_values=-1).reshape(-1)
  grown = {name: constrain(pad(getattr(slots, name)), "rows") for name in ("owner_P", "index_P")}
  return dataclasses.replace(slots, **grown)


def _spread(logits_SV, shards: int):
  """Logits cut by vocabulary, now by slot: each device of a shard draws for its part of the slots, if they divide.

  Left alone, the partitioner gathers all slots' logits on every device, as blocks of the draw straddle the cuts.
  """
  (S, V), cut = logits_SV.shape, devices_along("vocab")
  if cut == 1 or S % (shards * cut):
    return logits_SV
  logits_SV = constrain(logits_SV, "rows", "vocab")
  return constrain(logits_SV.reshape(shards, cut, -1, V), "rows", "vocab", None, None).reshape(S, V)


def _fold(key_2, count):
  """Raw key data of fold_in(key, count)."""
  return jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(key_2), count))


def _needs_page(work: Work, page: int):
  """Whether the next token of a slot is the first of a new own page."""
  return (work.uid >= 0) & ((work.length - work.shared) % page == 0)


def _new_pages(work: Work, page: int, steps: int):
  """New own pages that each slot may take in so many steps: one for every page that it begins before its limit."""
  own_S = work.length - work.shared
  steps_S = jnp.minimum(steps, work.limit - work.count)
  begun = lambda tokens: (tokens + page - 1) // page
  return jnp.where(work.uid >= 0, begun(own_S + steps_S) - begun(own_S), 0)


def _spare(free, active, pages: int):
  """Pages that new samples may take: a few are left for those that run, or they would be interrupted at once."""
  return free - jnp.where(active > 0, pages // 32, 0)


def _admit(pools, slots: Slots, queue: Work, ready_D, taken_D, *, layout: Layout, page: int):
  """Fills idle slots of one shard from its queue: tails become their own first pages."""
  S, P = slots.work.uid.shape[0], slots.owner_P.shape[0]
  A = min(S, ADMITTED_AT_ONCE)
  active_S, free_P = slots.work.uid >= 0, slots.owner_P < 0
  spare = _spare(jnp.sum(free_P) - jnp.sum(_needs_page(slots.work, page)), jnp.sum(active_S), P)
  number = jnp.minimum(jnp.minimum(S - jnp.sum(active_S), ready_D[0] - taken_D[0]), jnp.minimum(A, spare))
  index_A = jnp.arange(A)
  used_A = index_A < number
  from_A = jnp.minimum(taken_D[0] + index_A, queue.uid.shape[0] - 1)
  slot_A = jnp.where(used_A, jnp.argsort(active_S)[:A], S)
  work = jax.tree.map(lambda old, new: old.at[slot_A].set(new[from_A], mode="drop"), slots.work, queue)
  tail_A = queue.tail[from_A]
  copies_A = used_A & (tail_A >= 0)
  page_A = jnp.argsort(~free_P)[: min(A, P)]
  page_A = jnp.pad(page_A, (0, A - page_A.shape[0]), constant_values=P)
  page_A = jnp.where(copies_A, page_A, P)
  pools = layout.start(pools, jnp.maximum(tail_A, 0), page_A)
  owner_P = slots.owner_P.at[page_A].set(slot_A, mode="drop")
  index_P = slots.index_P.at[page_A].set(0, mode="drop")
  return pools, Slots(work, owner_P, index_P), taken_D + jnp.maximum(number, 0)


def _allot(slots: Slots, shared_owner_P, shared_index_P, *, page: int):
  """A new own page for each slot of one shard that needs one, and who has what then: (slots, Pages)."""
  work = slots.work
  S, P = work.uid.shape[0], slots.owner_P.shape[0]
  active_S = work.uid >= 0
  own_S = work.length - work.shared
  needs_S = _needs_page(work, page)
  free_P = slots.owner_P < 0
  rank_P = jnp.cumsum(free_P) - 1
  takes_P = free_P & (rank_P < jnp.sum(needs_S))
  taker_P = jnp.argsort(~needs_S)[jnp.clip(rank_P, 0, S - 1)].astype(jnp.int32)
  owner_P = jnp.where(takes_P, taker_P, slots.owner_P)
  index_P = jnp.where(takes_P, own_S[taker_P] // page, slots.index_P)
  current_P = (owner_P >= 0) & (index_P == own_S[owner_P] // page)
  page_S = jnp.full(S, P, jnp.int32).at[jnp.where(current_P, owner_P, S)].set(jnp.arange(P), mode="drop")
  here = lambda x, nothing: jnp.where(active_S, x, nothing)
  pages = Pages(
    owner_P, index_P, shared_owner_P, shared_index_P, here(work.entry, -1), work.sample, here(work.shared, 0),
    here(work.length + 1, 0), here(page_S, P), own_S % page,
  )  # fmt: skip
  return Slots(work, owner_P, index_P), pages
