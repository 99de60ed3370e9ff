"""Decoding over pages against softmax attention over whole sequences in NumPy, and what the pages cost."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import close

from fipo_jax.models import cache
from fipo_jax.sharding import make_mesh, named_tree, to_mesh

POISON = 50.0  # fills whatever nobody wrote: it would drown the values if it were seen


@dataclasses.dataclass(frozen=True)
class Scene:
  """Sequences that decode for a few steps, and the pages they lie in.

  prompts: their lengths. slots: (prompt, tokens after it so far), None: idle. A slot at 0 starts from its prompt's
  tail if `share`; without, every token lies in own pages. seed: of the numbers; order: of the pages.
  """

  prompts: tuple = (9, 8, 3, 12)
  slots: tuple = ((0, 5), (0, 0), None, (1, 0), (2, 7), (0, 2), (2, 0), None, (3, 3))
  steps: int = 6
  t: int = 4
  L: int = 2
  K: int = 2
  H: int = 6
  h: int = 8
  share: bool = True
  seed: int = 0
  order: int = 0

  @property
  def config(self):
    return types.SimpleNamespace(num_layers=self.L, num_kv_heads=self.K, num_heads=self.H, head_dim=self.h)

  @property
  def width(self):
    """Samples of a prompt."""
    return max(sum(s is not None and s[0] == e for s in self.slots) for e in range(len(self.prompts)))

  def shared(self, e):
    """Tokens of a prompt's shared pages."""
    return self.prompts[e] // self.t * self.t if self.share else 0

  def tokens(self):
    """(k, v, q): k and v of each slot [2, tokens, L, K, h], q [steps, L, S, H, h]."""
    rng = np.random.default_rng(self.seed)
    prompts = [rng.normal(size=(2, n, self.L, self.K, self.h)) for n in self.prompts]
    kv = [np.zeros((2, 0, self.L, self.K, self.h))] * len(self.slots)
    for s, slot in enumerate(self.slots):
      if slot is not None:
        more = rng.normal(size=(2, slot[1] + self.steps, self.L, self.K, self.h))
        kv[s] = np.concatenate([prompts[slot[0]], more], axis=1)
    q = 2 * rng.normal(size=(self.steps, self.L, len(self.slots), self.H, self.h))
    to = lambda x: np.asarray(x, np.float32)
    return [to(p) for p in prompts], [to(x) for x in kv], to(q)

  def expected(self):
    """[steps, L, S, H, h] in float64."""
    _, kv, q = self.tokens()
    out = np.zeros(q.shape)
    for s, slot in enumerate(self.slots):
      for step in range(self.steps if slot is not None else 0):
        n = self.prompts[slot[0]] + slot[1] + step + 1
        k, v = np.repeat(kv[s][:, :n].astype(np.float64), self.H // self.K, axis=3)
        scores = np.einsum("lhd,nlhd->lhn", q[step, :, s], k) * self.h**-0.5
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[step, :, s] = np.einsum("lhn,nlhd->lhd", weights / weights.sum(-1, keepdims=True), v)
    return out

  def build(self, layout, dtype="float32", spare=2):
    """(pools, [Pages of each step], q, k [steps, L, S, K, h], v): all that was written before the first step."""
    t, S = self.t, len(self.slots)
    prompts, kv, q = self.tokens()
    order = np.random.default_rng(100 + self.order)
    shared_of = [(e, i) for e in range(len(prompts)) for i in range(self.shared(e) // t)]
    last = lambda s: self.prompts[s[0]] + s[1] + self.steps - self.shared(s[0])  # own tokens in the end
    own_of = [(s, i) for s, slot in enumerate(self.slots) if slot is not None for i in range(-(-last(slot) // t))]
    counts = {
      "own": len(own_of) + spare,
      "shared": len(shared_of) + spare if self.share else 0,
      "tail": len(prompts) + spare if self.share else 0,
    }
    own, shared, tail = (order.permutation(counts[kind]).tolist() for kind in cache.KINDS)
    own, shared = dict(zip(own_of, own, strict=False)), dict(zip(shared_of, shared, strict=False))

    def written(kind, rows, numbers):
      """rows: up to t tokens each; pads them, and adds one row too many."""
      full = np.full((2, len(rows) + 1, t, self.L, self.K, self.h), POISON, np.float32)
      for r, row in enumerate(rows):
        full[:, r, : row.shape[1]] = row
      return *full.transpose(0, 3, 1, 2, 4, 5), np.array([*numbers, counts[kind]], np.int32)

    cut = lambda x, first, i: x[:, first + i * t : first + (i + 1) * t]
    starts, writes = [], {}
    if self.share:
      rows = [cut(prompts[e], 0, i) for e, i in shared_of]
      writes["shared"] = written("shared", rows, [shared[x] for x in shared_of])
      ragged = [e for e in range(len(prompts)) if self.prompts[e] % t]
      writes["tail"] = written("tail", [prompts[e][:, self.shared(e) :] for e in ragged], [tail[e] for e in ragged])
      starts = [s for s, slot in enumerate(self.slots) if slot is not None and not slot[1] and slot[0] in ragged]
      tails = [tail[self.slots[s][0]] for s in starts] + [0]
      pages = [own[s, 0] for s in starts] + [counts["own"]]
      writes["start"] = np.array([tails, pages], np.int32)
    rows, numbers = [], []
    for s, i in own_of:
      e, n = self.slots[s]
      so_far = kv[s][:, : self.prompts[e] + n]
      row = cut(so_far, self.shared(e), i)
      if s not in starts and row.shape[1]:
        rows.append(row)
        numbers.append(own[s, i])
    writes["own"] = written("own", rows, numbers)
    pools = jax.eval_shape(lambda: layout.new(self.config, counts, t, dtype))
    pools = fill(layout, jax.tree.map(lambda x: np.full(x.shape, POISON, x.dtype), pools), writes)

    def table(of, numbers, count):
      owner, index = np.full((2, count), -1, np.int32)
      for key in of:
        owner[numbers[key]], index[numbers[key]] = key
      return owner, index

    names = 40 - 3 * np.arange(len(prompts))  # of prompts: any numbers, in no order
    entry, sample = np.full(S, -1, np.int32), np.zeros(S, np.int32)
    for s, slot in enumerate(self.slots):
      if slot is not None:
        sample[s] = sum(x is not None and x[0] == slot[0] for x in self.slots[:s])
        entry[s] = names[slot[0]]
    shared_owner, shared_index = table(shared_of, shared, counts["shared"])
    shared_owner = np.where(shared_owner >= 0, names[shared_owner], -1).astype(np.int32)
    steps = []
    k_new, v_new = np.zeros((2, self.steps, self.L, S, self.K, self.h), np.float32)
    for step in range(self.steps):
      length, page, offset, before = np.full(S, 7, np.int32), np.full(S, counts["own"]), np.zeros(S), np.zeros(S)
      for s, slot in enumerate(self.slots):
        if slot is not None:
          length[s], before[s] = self.prompts[slot[0]] + slot[1] + step + 1, self.shared(slot[0])
          index, offset[s] = divmod(length[s] - 1 - before[s], t)
          page[s] = own[s, index]
          k_new[step, :, s], v_new[step, :, s] = kv[s][:, length[s] - 1]
      ints = [np.asarray(x, np.int32) for x in (entry, sample, before, length, page, offset)]
      steps.append(cache.Pages(*table(own_of, own, counts["own"]), shared_owner, shared_index, *ints))
    return pools, steps, q, k_new, v_new


@functools.partial(jax.jit, static_argnames="layout")
def fill(layout, pools, writes):
  """What was written to each kind of page before the first token; own pages begin with a copy of the prompt's tail."""
  if "start" in writes:
    for kind in ("shared", "tail"):
      pools = write_rows(layout, pools, kind, *writes[kind])
    pools = layout.start(pools, *writes["start"])
  return write_rows(layout, pools, "own", *writes["own"])


def write_rows(layout, pools, kind, k_LRtKh, v_LRtKh, page_R):
  """Of all layers."""
  for layer, (k, v) in enumerate(zip(k_LRtKh, v_LRtKh, strict=True)):
    pools = layout.write_rows(pools, layer, kind, k, v, page_R)
  return pools


@functools.cache
def decode(layout, scene, dtype="float32", compute=jnp.float32, scan=False):
  """Outputs [steps, L, S, H, h]; `scan`: layers are traced numbers."""
  pools, pages, *qkv = scene.build(layout, dtype)
  inputs = (jax.tree.map(lambda *x: np.stack(x), *pages), *[np.asarray(x, compute) for x in qkv])
  out = decoded(layout, scene.L, scene.width if scene.share else 0, scan, pools, inputs)
  assert out.dtype == compute
  return np.asarray(out, np.float32)


@functools.partial(jax.jit, static_argnames=("layout", "L", "width", "scan"))
def decoded(layout, L, width, scan, pools, inputs):
  def layer(pools, numbered, plan):
    number, q, k, v = numbered
    out, pools = layout.attend(pools, number, q, k, v, plan)
    return pools, out

  def step(pools, inputs):
    pages, q, k, v = inputs
    plan = layout.plan(pages, width, pools)
    if scan:
      return jax.lax.scan(lambda c, x: layer(c, x, plan), pools, (jnp.arange(L), q, k, v))
    outs = []
    for i in range(L):
      pools, out = layer(pools, (i, q[i], k[i], v[i]), plan)
      outs.append(out)
    return pools, jnp.stack(outs)

  return jax.lax.scan(step, pools, inputs)[1]


XLA = cache.CACHES["xla"]
TERMS = 8 + 24  # products of a head, tokens of a sequence


@pytest.mark.parametrize(("share", "K"), [(True, 2), (True, 6), (False, 1)])
def test_equals_attention_over_whole_sequences(share, K):
  scene = Scene(share=share, K=K)
  close(decode(XLA, scene), scene.expected(), terms=TERMS)


@pytest.mark.parametrize("share", [False, True])
def test_in_bfloat16(share):
  scene = Scene(share=share)
  out = decode(XLA, scene, "bfloat16", jnp.bfloat16)
  assert np.isfinite(out).all()
  close(out, scene.expected(), terms=8, dtype=jnp.bfloat16, room=1)  # products of rounded numbers


def test_int8_costs_less_than_a_percent():
  """Mean error of the outputs, measured on normal keys and values: 0.61 % of their root mean square."""
  scene = Scene(h=64, steps=4)
  expected = scene.expected()
  out = decode(XLA, scene, "int8")
  error = np.abs(out - expected).mean() / np.sqrt((expected**2).mean())
  assert 0.002 < error < 0.01


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_bits_do_not_depend_on_where_pages_lie(dtype):
  first, *others = [decode(XLA, Scene(order=order), dtype) for order in range(3)]
  for other in others:
    np.testing.assert_array_equal(first, other)


def test_idle_slots_yield_zeros():
  out = decode(XLA, Scene())
  assert not out[:, :, [2, 7]].any() and out[:, :, [0, 1, 3, 4, 5, 6, 8]].all()


def small(layout, dtype, h):
  """Pools of zeros: 3 own, 2 shared and 2 tail pages, 2 layers."""
  config = types.SimpleNamespace(num_layers=2, num_kv_heads=1, head_dim=h)
  return layout.new(config, {"own": 3, "shared": 2, "tail": 2}, 4, dtype)


def pages_of(pools, kind):
  """Keys of a kind [L, P, K, t, h], of the XLA layout."""
  return np.stack([np.asarray(pool["k"], np.float32).swapaxes(2, 3) for pool in pools[kind]])


def check_that_pages_beyond_the_last_are_left_out(layout, pages_of, dtype="float32", h=4):
  """For write_rows, start and attend: nothing else changes, and each kind has its own last page."""
  pools = small(layout, dtype, h)
  number = lambda rows: np.full((2, rows, 4, 1, h), np.arange(1, rows + 1)[:, None, None, None], np.float32)
  found = lambda pools: {kind: pages_of(pools, kind)[:, :, 0, 0, 0].tolist() for kind in cache.KINDS}
  write = jax.jit(functools.partial(write_rows, layout), static_argnums=1)
  pools = write(pools, "own", number(3), number(3), np.array([2, 3, 4]))
  pools = write(pools, "shared", number(3), number(3), np.array([2, 0, 1]))
  pools = write(pools, "tail", number(2) + 6, number(2) + 6, np.array([1, 2]))
  expected = {"own": [[0, 0, 1]] * 2, "shared": [[2, 3]] * 2, "tail": [[0, 7]] * 2}
  assert found(pools) == expected
  pools = jax.jit(layout.start)(pools, np.array([1, 1, 1]), np.array([3, 0, 4]))
  assert found(pools) == expected | {"own": [[7, 0, 1]] * 2}

  ints = lambda *x: np.array(x, np.int32)
  pages = cache.Pages(
    ints(-1, 1, -1), ints(-1, 0, -1), ints(-1, -1), ints(-1, -1), ints(-1, 0, -1), ints(0, 0, 0),
    ints(0, 0, 0), ints(0, 1, 0), ints(3, 1, 3), ints(0, 0, 0),
  )  # fmt: skip
  rows = np.ones((3, 1, h), np.float32) * np.array([4.0, 5.0, 6.0], np.float32)[:, None, None]
  attend = lambda pools, pages, x: layout.attend(pools, 1, x, x, x, layout.plan(pages, 1, pools))
  out, pools = jax.jit(attend)(pools, pages, rows)
  assert found(pools) == expected | {"own": [[7, 0, 1], [7, 5, 1]]}
  np.testing.assert_array_equal(out[:, 0, 0], [0, 5, 0])


def test_pages_beyond_the_last_are_left_out():
  check_that_pages_beyond_the_last_are_left_out(XLA, pages_of)


def test_resizing_takes_pages_to_where_they_are_wanted():
  """More, fewer, in another order; those beyond the last are empty, and other kinds are left alone."""
  rows = np.broadcast_to(np.arange(1.0, 4, dtype=np.float32)[:, None, None, None], (2, 3, 4, 1, 4))
  counts = dict(zip(cache.KINDS, (3, 2, 2), strict=True))

  def filled():
    pools = small(XLA, "float32", 4)
    for i, (kind, count) in enumerate(counts.items()):
      pools = write_rows(XLA, pools, kind, rows[:, :count] + 10 * i, rows[:, :count] + 10 * i, np.arange(count))
    return pools

  found = lambda pools: {kind: pages_of(pools, kind)[:, :, 0, 0, 0].tolist() for kind in cache.KINDS}
  before = found(filled())
  for kind, source in (("own", [0, 1, 2, 3, 3]), ("own", [2, 0]), ("shared", [1, 0, 2]), ("tail", [1])):
    [layer] = {tuple([*x, 0][min(i, counts[kind])] for i in source) for x in map(tuple, before[kind])}
    after = XLA.resize(filled(), kind, np.array(source, np.int32))
    assert found(after) == before | {kind: [list(layer)] * 2}


def test_resizing_two_shards_holds_no_array_but_one_twice():
  """Pages are numbered within a shard; the old arrays are gone, one by one."""
  config = types.SimpleNamespace(num_layers=3, num_kv_heads=1, head_dim=2)
  mesh = make_mesh(dict(data=2, fsdp=1, context=1, tensor=1), jax.devices()[:2])
  with jax.set_mesh(mesh):
    new = lambda: XLA.new(config, dict.fromkeys(cache.KINDS, 2), 4, "float32", 2)
    pools = jax.jit(new, out_shardings=named_tree(mesh, XLA.axes(jax.eval_shape(new))))()
    pools["own"][2]["v"] = pools["own"][2]["v"] + jnp.arange(1.0, 5)[:, None, None, None]
    old, seen = jax.tree.leaves(pools["own"]), []
    taken, cache._taken = cache._taken, lambda *x: seen.append(sum(not o.is_deleted() for o in old)) or taken(*x)
    try:
      source = to_mesh(mesh, np.array([0, 1, 2, 1, 2, 2], np.int32), "rows")
      grown = XLA.resize(pools, "own", source)
    finally:
      cache._taken = taken
  assert grown["own"][2]["v"][:, 0, 0, 0].tolist() == [1, 2, 0, 4, 0, 0]
  assert grown["own"][2]["v"].sharding.is_equivalent_to(old[-1].sharding, 4)
  assert seen == [6, 5, 4, 3, 2, 1] and all(x.is_deleted() for x in old)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_bytes_per_token(dtype):
  config = types.SimpleNamespace(num_layers=3, num_kv_heads=2, head_dim=16)
  pages = {"own": 5, "shared": 3, "tail": 2}
  for shards in (1, 4):
    pools = jax.eval_shape(lambda shards=shards: XLA.new(config, pages, 8, dtype, shards))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pools))
    assert size == cache.bytes_per_token(config, dtype) * 8 * 10 * shards
  assert cache.bytes_per_token(config, "int8") == 2 * 3 * 2 * (16 + 4)


def decoding(layout, scene, counts, shards=1, compute=jnp.float32, scan=False):
  """(program, its arguments after the pools, abstract): tokens of a while loop over all layers, a start before each."""

  def program(pools, pages, q, k, v):
    def token(carry):
      i, pools, q = carry
      pools = layout.start(pools, jnp.zeros(2, jnp.int32), pages.page_S[:2])
      plan = layout.plan(pages, scene.width, pools)

      def layer(carry, number):
        out, pools = layout.attend(carry[0], number, carry[1], k, v, plan)
        return (pools, carry[1] + out), None

      if scan:
        (pools, q), _ = jax.lax.scan(layer, (pools, q), jnp.arange(scene.L))
      else:
        for number in range(scene.L):
          (pools, q), _ = layer((pools, q), number)
      return i + 1, pools, q

    return jax.lax.while_loop(lambda carry: carry[0] < 5, token, (0, pools, q))[1:]

  S = shards * len(scene.slots)
  kinds = {"owner_P": "own", "index_P": "own", "shared_owner_P": "shared", "shared_index_P": "shared"}
  size = lambda name: shards * counts[kinds[name]] if name in kinds else S
  names = [field.name for field in dataclasses.fields(cache.Pages)]
  pages = cache.Pages(**{name: jax.ShapeDtypeStruct((size(name),), jnp.int32) for name in names})
  q, k = (jax.ShapeDtypeStruct((S, heads, scene.h), compute) for heads in (scene.H, scene.K))
  return program, (pages, q, k, k)


@pytest.mark.parametrize("dtype, L", [("float32", 4), ("int8", 12)])
def test_a_loop_holds_the_pool_once(dtype, L):
  """Half of the pages are shared, so a copy of either kind would show. Of int8, a layer at a time is float32."""
  scene = Scene(L=L, h=32, t=32, slots=((0, 0), (0, 0), (1, 0), (1, 0)))
  counts = {"own": 512, "shared": 512, "tail": 16}
  program, inputs = decoding(XLA, scene, counts)
  pools = jax.eval_shape(lambda: XLA.new(scene.config, counts, scene.t, dtype))
  memory = jax.jit(program, donate_argnums=0).lower(pools, *inputs).compile().memory_analysis()
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pools))
  assert memory.alias_size_in_bytes >= size
  assert memory.temp_size_in_bytes < 0.25 * size
