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
  tokens so far. limit_x: at which it ends. seen_xV: for the repetition penalty, tokens already there: bool in a slot,
  in the queue a bit each, as by np.packbits; else None.
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
class Rows:
  """What one prefill computes; int32. tokens_RT: padded on the right. length_R: tokens of each; 0: nothing here.

  pages_RN: shared page of each full page of a prompt; beyond the last page: none. tail_R: tail page likewise.
  own_R: own pages to reserve for a prompt that shares none, entry_R: its number, by which a slot will find them.
  """

  tokens: jax.Array
  length: jax.Array
  pages: jax.Array
  tail: jax.Array
  own: jax.Array
  entry: jax.Array


NOBODY = -1  # owner of a free page


def reserved(entry):
  """Owner of the own pages that wait with their prompt for a slot."""
  return -2 - entry


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
  """Work in the slots, and the own pages: owner_P (a slot, `NOBODY` or `reserved`) and index_P as in `cache.Pages`."""

  work: Work
  owner_P: jax.Array
  index_P: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Log:
  """What a run did, whole on every host: per step and slot, uid (-1: idle), token, log-prob, raw log-prob.

  steps: how many of C were run. taken_D: taken from the queue. uid_S: in the slots at the end. active_D: how many.
  used_D: own pages that are not free. short_D: whether slots lack pages.
  hungry: whether one stays idle for want of pages, and there could be more.
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
  held: jax.Array
  short_D: jax.Array
  hungry: jax.Array


@functools.partial(jax.jit, static_argnames=("model",))
@jax.named_scope("rollout")
def prefill(model: Model, params, tokens_RT, length_R):
  """Keys and values of prompts, padded on the right, as `Model.prefill` gives them; a program that knows no pools."""
  column_T = jnp.arange(tokens_RT.shape[1])
  segments_RT = (column_T < length_R[:, None]).astype(jnp.int32)
  kv = model.prefill(params, tokens_RT, jnp.broadcast_to(column_T, tokens_RT.shape), segments_RT)
  return jax.tree.map(lambda x: constrain(x, *[None] * (x.ndim - 4), "rows", None, "kv_heads", None), kv)


@functools.partial(jax.jit, static_argnames=("layout", "page"), donate_argnames=("pools", "slots"))
@jax.named_scope("rollout")
def store(layout: Layout, pools, slots: Slots, kv, rows: Rows, *, page: int):
  """Writes what `prefill` made into pages.

  Returns:
    (pools, slots), the latter with what own pages were reserved.
  """
  T = rows.tokens.shape[1]
  slots_axes, rows_axes = (jax.tree.map(lambda x: ROWS, x) for x in (slots, rows))
  reserve = local(functools.partial(_reserve, page=page), (slots_axes, rows_axes), (slots_axes, ROWS))
  slots, own_RN = reserve(slots, rows)

  def write(pools, layer, k, v, length_R, pages_RN, tail_R, own_RN):
    R = k.shape[0]
    pad = [(0, 0), (0, -T % page + page), (0, 0), (0, 0)]  # one page more: a tail may be empty
    k, v = (jnp.pad(x, pad).reshape(R, -1, page, *x.shape[2:]) for x in (k, v))
    for kind, page_RN in (("shared", pages_RN), ("own", own_RN)):
      if N := page_RN.shape[1]:
        flat = lambda x: x[:, :N].reshape(R * N, *x.shape[2:])
        pools = layout.write_rows(pools, layer, kind, flat(k), flat(v), page_RN.reshape(-1))
    last = lambda x: x[jnp.arange(R), length_R // page]
    return layout.write_rows(pools, layer, "tail", last(k), last(v), tail_R)

  axes, one = layout.axes(pools), ("rows", None, "kv_heads", None)
  numbers = (rows.length, rows.pages, rows.tail, own_RN)
  if not isinstance(kv[0], tuple):  # stacked
    write = local(write, (axes, (), one, one, *[ROWS] * 4), axes)
    body = lambda pools, numbered: (write(pools, *numbered, *numbers), None)
    return jax.lax.scan(body, pools, (jnp.arange(kv[0].shape[0]), *kv))[0], slots
  for layer, (k, v) in enumerate(kv):  # named in the program
    part = local(lambda pools, *x, layer=layer: write(pools, layer, *x), (axes, one, one, *[ROWS] * 4), axes)
    pools = part(pools, k, v, *numbers)
  return pools, slots


def _reserve(slots: Slots, rows: Rows, *, page: int):
  """The lowest free own pages of one shard, to each row as many as it says: (slots, own_RN), beyond the last: none."""
  T, P = rows.tokens.shape[1], slots.owner_P.shape[0]
  N = min(T // page + 1, P)
  free_P = slots.owner_P == NOBODY
  page_P = jnp.argsort(~free_P)  # free ones first, ascending
  first_R = jnp.cumsum(rows.own) - rows.own
  number_N = jnp.arange(N)
  rank_RN = first_R[:, None] + number_N
  own_RN = jnp.where(number_N < rows.own[:, None], page_P.at[rank_RN].get(mode="fill", fill_value=P), P)
  owner_P = slots.owner_P.at[own_RN].set(reserved(rows.entry)[:, None], mode="drop")
  index_P = slots.index_P.at[own_RN].set(number_N[None], mode="drop")
  return Slots(slots.work, owner_P, index_P), own_RN


@functools.partial(
  jax.jit, static_argnames=("model", "layout", "sampling", "page", "width", "steps", "decide"),
  donate_argnames=("pools", "slots"),
)  # fmt: skip
@jax.named_scope("rollout")
def run(
  model: Model, layout: Layout, sampling: Sampling, params, pools, slots: Slots, queue: Work, ready_D, shared, more,
  fewest, grows, keep, *, page: int, width: int, steps: int, decide: int = 1,
):  # fmt: skip
  """Decodes until the host is needed: after C steps, when nothing is left, or as `more`, `fewest` and the pages say.

  Args:
    ready_D: int32, places of the queue that are filled.
    shared: (owner_P, index_P) of the shared pages, as in `cache.Pages`.
    more: bool, whether the host can fill the queue again: then it is called when an eighth of the slots is idle.
    fewest: int32, with an empty queue and nothing more: stop when no shard has more active slots than this.
    grows: bool, whether there could be more own pages: stop when a slot is idle for want of them.
    keep: int32, pages that are left for each slot that runs, so that it is not interrupted as soon as it has begun.
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

  @jax.named_scope("look")
  def look(slots, taken_D):
    """What decides, of all shards on each: all that shards ever tell each other."""
    work = slots.work
    active_S = work.uid >= 0
    left_D = jnp.max(jnp.where(active_S, work.limit - work.count, 0).reshape(D, -1), axis=1)
    free_D = per_shard(slots.owner_P == NOBODY)
    # Of the first in the queue, by a sum: a gather by shard would be one over shards.
    takes_DQ = _takes_page(queue.tail, queue.length, queue.shared, page).reshape(D, -1)
    takes_D = jnp.sum(jnp.where(jnp.arange(takes_DQ.shape[1]) == taken_D[:, None], takes_DQ, 0), axis=1)
    facts = [taken_D, ready_D, per_shard(active_S), left_D, free_D, takes_D]
    facts += [per_shard(_new_pages(work, page, size)) for size in sizes_J]
    taken_D, ready, active_D, left_D, free_D, takes_D, *needed_JD = constrain(jnp.stack(facts), None, None)
    short_J = [jnp.any(needed_D > free_D) for needed_D in needed_JD]
    idle_D = S // D - active_D
    empty = jnp.all(taken_D >= ready)
    starved = empty & more & (jnp.sum(idle_D) * 8 >= S)
    shrinks = empty & ~more & (jnp.max(active_D) <= fewest)
    waits_D = (idle_D > 0) & (taken_D < ready)
    fits_D = takes_D <= free_D - needed_JD[-1] - keep * active_D
    hungry = grows & jnp.any(waits_D & ~fits_D)
    # As many steps as there are pages for, and no more than the longest response may still have.
    size = jnp.int32(0)
    for here, short in zip(sizes_J[::-1], short_J[::-1], strict=True):
      size = jnp.where(short, size, here)
    return {
      "active_D": active_D, "free_D": free_D, "short_D": needed_JD[-1] > free_D, "hungry": hungry,
      "size": jnp.where(starved | shrinks | hungry, 0, jnp.minimum(size, jnp.max(left_D))),
      "admits": jnp.any(waits_D & fits_D),
    }  # fmt: skip

  decodes = lambda c: (c["step"] < steps) & (c["look"]["size"] > 0)
  admits = lambda c: c["look"]["admits"]

  @jax.named_scope("admit")
  def admit(c):
    slots_axes = jax.tree.map(lambda x: ROWS, c["slots"])
    queue_axes = jax.tree.map(lambda x: ROWS, queue)
    start = local(
      functools.partial(_admit, layout=layout, page=page),
      (pool_axes, slots_axes, queue_axes, ROWS, ROWS, ()), (pool_axes, slots_axes, ROWS),
    )  # fmt: skip
    pools, new, taken_D = start(c["pools"], c["slots"], queue, ready_D, c["taken_D"], keep)
    return c | {"pools": pools, "slots": new, "taken_D": taken_D, "look": look(new, taken_D)}

  @jax.named_scope("decode")
  def one_token(c):
    slots_axes = jax.tree.map(lambda x: ROWS, c["slots"])
    allot = local(
      lambda slots, *shared: _allot(slots, *shared, page=page), (slots_axes, ROWS, ROWS), (slots_axes, ROWS)
    )
    slots, pages = allot(c["slots"], *shared)
    plan = local(lambda pages, pools: layout.plan(pages, width, pools), (ROWS, pool_axes), ROWS)(pages, c["pools"])

    @jax.named_scope("attention")
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
    freed = lambda owner_P, done_S: jnp.where((owner_P >= 0) & done_S[owner_P], NOBODY, owner_P)
    free = local(freed, (ROWS, ROWS), ROWS)
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
      "step": c["step"] + 1,
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
    "pools": pools, "slots": slots, "taken_D": zeros_D, "step": jnp.int32(0),
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
    P // D - found["free_D"], jnp.max(jnp.sum(log["held"], axis=1)), found["short_D"],
    found["hungry"],
  ))  # fmt: skip


@functools.partial(jax.jit, donate_argnames=("slots",))
def drop(slots: Slots, drop_S, drop_E) -> Slots:
  """Empties the slots of drop_S and frees their pages, and those that are reserved for the prompts of drop_E."""

  def part(slots, drop_S, drop_E):
    uid = jnp.where(drop_S, -1, slots.work.uid)
    owner_P = slots.owner_P
    gone_P = jnp.where(owner_P >= 0, drop_S[owner_P], drop_E[jnp.maximum(reserved(owner_P), 0)] & (owner_P != NOBODY))
    return Slots(dataclasses.replace(slots.work, uid=uid), jnp.where(gone_P, NOBODY, owner_P), slots.index_P)

  axes = jax.tree.map(lambda x: ROWS, slots)
  return local(part, (axes, ROWS, ROWS), axes)(slots, drop_S, drop_E)


@functools.partial(jax.jit, static_argnames=("fewer", "pages"))
def reshape(slots: Slots, *, fewer: int, pages: int):
  """Other numbers of slots and own pages per shard, with what is in use of both, which must fit.

  Returns:
    (slots, from_P): of each page which it was; one beyond the old ones: none.
  """

  def part(slots):
    old, P = slots.work.uid.shape[0], slots.owner_P.shape[0]
    order = jnp.argsort(slots.work.uid < 0)[:fewer]
    new = jnp.full(old, NOBODY, jnp.int32).at[order].set(jnp.arange(fewer, dtype=jnp.int32))
    owner_P = jnp.where(slots.owner_P >= 0, new[slots.owner_P], slots.owner_P)
    order_P = jnp.argsort(owner_P == NOBODY) if pages != P else jnp.arange(P)  # as many: each stays where it is
    from_P = order_P.astype(jnp.int32)[:pages]
    from_P = jnp.pad(from_P, (0, max(0, pages - P)), constant_values=P)
    take = lambda x: x.at[from_P].get(mode="fill", fill_value=NOBODY)
    return Slots(jax.tree.map(lambda x: x[order], slots.work), take(owner_P), take(slots.index_P)), from_P

  axes = jax.tree.map(lambda x: ROWS, slots)
  return local(part, (axes,), (axes, ROWS))(slots)


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


def _takes_page(tail, length, shared, page: int):
  """Own pages that a sample takes when it starts: none where it goes on in the midst of one that is reserved for it."""
  return ((tail >= 0) | ((length - shared) % page == 0)).astype(jnp.int32)


def _new_pages(work: Work, page: int, steps: int):
  """New own pages that each slot may take in so many steps: one for every page that it begins before its limit."""
  own_S = work.length - work.shared
  steps_S = jnp.minimum(steps, work.limit - work.count)
  begun = lambda tokens: (tokens + page - 1) // page
  return jnp.where(work.uid >= 0, begun(own_S + steps_S) - begun(own_S), 0)


def _admit(pools, slots: Slots, queue: Work, ready_D, taken_D, keep, *, layout: Layout, page: int):
  """Fills idle slots of one shard from its queue: tails become their own first pages, reserved pages are theirs."""
  S, P = slots.work.uid.shape[0], slots.owner_P.shape[0]
  A = min(S, ADMITTED_AT_ONCE)
  active_S, free_P = slots.work.uid >= 0, slots.owner_P == NOBODY
  spare = jnp.sum(free_P) - jnp.sum(_needs_page(slots.work, page)) - keep * jnp.sum(active_S)
  index_A = jnp.arange(A)
  from_A = jnp.minimum(taken_D[0] + index_A, queue.uid.shape[0] - 1)
  tail_A, length_A, shared_A, entry_A = (x[from_A] for x in (queue.tail, queue.length, queue.shared, queue.entry))
  most = jnp.minimum(S - jnp.sum(active_S), ready_D[0] - taken_D[0])
  used_A = (index_A < most) & (jnp.cumsum(_takes_page(tail_A, length_A, shared_A, page)) + keep * index_A <= spare)
  slot_A = jnp.where(used_A, jnp.argsort(active_S)[:A], S)
  seen = queue.seen
  if seen is not None:
    seen = jnp.unpackbits(seen[from_A], axis=-1, count=slots.work.seen.shape[-1]).astype(bool)
  plain = lambda work: dataclasses.replace(work, seen=None)
  work = jax.tree.map(
    lambda old, new: old.at[slot_A].set(new[from_A], mode="drop"), plain(slots.work), plain(queue)
  )
  if seen is not None:
    work = dataclasses.replace(work, seen=slots.work.seen.at[slot_A].set(seen, mode="drop"))
  copies_A = used_A & (tail_A >= 0)
  page_A = jnp.argsort(~free_P)[: min(A, P)]
  page_A = jnp.pad(page_A, (0, A - page_A.shape[0]), constant_values=P)
  page_A = jnp.where(copies_A, page_A, P)
  pools = layout.start(pools, jnp.maximum(tail_A, 0), page_A)
  owner_P = slots.owner_P.at[page_A].set(slot_A, mode="drop")
  index_P = slots.index_P.at[page_A].set(0, mode="drop")
  mine_AP = (owner_P == reserved(entry_A)[:, None]) & used_A[:, None]
  owner_P = jnp.where(jnp.any(mine_AP, 0), slot_A[jnp.argmax(mine_AP, 0)], owner_P)
  return pools, Slots(work, owner_P, index_P), taken_D + jnp.sum(used_A, dtype=jnp.int32)


def _allot(slots: Slots, shared_owner_P, shared_index_P, *, page: int):
  """A new own page for each slot of one shard that needs one, and who has what then: (slots, Pages)."""
  work = slots.work
  S, P = work.uid.shape[0], slots.owner_P.shape[0]
  active_S = work.uid >= 0
  own_S = work.length - work.shared
  needs_S = _needs_page(work, page)
  free_P = slots.owner_P == NOBODY
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
