"""The jitted programs of sampling, run by the engine, against golden continuations and the trainer's own log-probs."""

import collections
import dataclasses
import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import close

from fipo_jax.models import PRESETS, hf, make_model
from fipo_jax.models.cache import CACHES
from fipo_jax.models.logprobs import token_logprobs
from fipo_jax.pods import chips, hlo
from fipo_jax.rollout import capacity, decode, native
from fipo_jax.rollout.sampling import Sampling
from fipo_jax.sharding import make_mesh, named, named_tree
from fipo_jax.types import Prompt

GOLDEN = pathlib.Path(__file__).parent / "golden"
MODEL = make_model(
  dataclasses.replace(
    PRESETS["tiny"], vocab_size=40, num_layers=2, d_model=16, d_mlp=24, num_heads=4, num_kv_heads=2, head_dim=4
  )
)
MESH = make_mesh(dict(data=1, fsdp=1, context=1, tensor=1), jax.devices()[:1])
STOP_IDS = (7, 11, 19, 23)
PAGE = 4
# What is added up on the way through two layers to a log-prob, and the size of logits.
SIZE = dict(terms=2 * (3 * 16 + 24 + 28), scale=10)


@functools.cache
def random_params(std=0.4):
  leaves, tree = jax.tree.flatten(MODEL.abstract())

  @jax.jit
  def draw(key):
    keys = jax.random.split(key, len(leaves))
    return [std * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]

  return tree.unflatten(draw(jax.random.key(3)))


def as_prompts(rows):
  return [Prompt(i, np.asarray(row, np.int32), "", "", "none") for i, row in enumerate(rows)]


@functools.cache
def engine():
  """Five slots, an odd number: none to shrink to."""
  e = native.NativeEngine(
    MODEL, MESH, slots=5, max_prompt_tokens=16, max_response_tokens=12, pad_id=0, page_tokens=PAGE
  )
  e.update(random_params())
  return e


def sampled(rows, samples, sampling):
  groups = engine().generate(as_prompts(rows), samples, key=jax.random.key(9), sampling=sampling)
  assert engine().usage.interrupted == 0
  return sum(groups, [])


RAGGED = [np.random.default_rng(1).integers(1, 40, n) for n in (3, 9, 5, 1, 14)]  # a tail, full pages, nothing


@jax.jit
def score(params, rows, segments, temperature):
  """By the trainer's program: (logits, log-probs at the temperature and at 1)."""
  hidden = MODEL.hidden(params, rows, jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape), segments)
  head = MODEL.head(params)
  logp, raw = (token_logprobs(hidden, head, rows, segments, temperature=t)[0] for t in (temperature, 1.0))
  return MODEL.logits(params, hidden), logp, raw


def forward(rollouts, temperature=1.0):
  """`score` of prompts and responses in NumPy."""
  rows, segments = np.zeros((2, len(rollouts), 16 + 12), np.int32)
  for i, r in enumerate(rollouts):
    full = np.concatenate([r.prompt.tokens, r.tokens])
    rows[i, : len(full)], segments[i, : len(full)] = full, 1
  return map(np.asarray, score(random_params(), rows, segments, temperature))


@pytest.mark.parametrize("name", [
  "qwen3/untied_gqa",  # whose heads have a size of their own; qwen2 is sampled in the tests below
  *(pytest.param(name, marks=pytest.mark.slow) for name in (
    "qwen2/tied_mqa", "qwen2/untied_gqa", "qwen3/tied", "qwen2_yarn/factor4")),
])
def test_greedy_equals_the_published_implementation(name, monkeypatch):
  """Prompts cut to ragged lengths, two samples each: full pages are shared, tails copied, and the pool grows."""
  monkeypatch.setattr(capacity, "SMALLEST_POOL", 0)
  model = make_model(hf.read_config(GOLDEN / name))
  want = np.load(GOLDEN / name / "golden.npz")["greedy"]
  e = native.NativeEngine(
    model, MESH, slots=3, max_prompt_tokens=16, max_response_tokens=24, pad_id=0, page_tokens=PAGE
  )
  e.update(hf.load(GOLDEN / name, model, MESH))
  starts = [12, 15, 13][: len(want)]
  n = 9  # tokens, after which the pool grew once
  prompts = as_prompts(row[:s] for row, s in zip(want, starts, strict=True))
  groups = e.generate(prompts, 2, key=jax.random.key(0), sampling=Sampling(temperature=0.0, max_tokens=n))
  for row, s, group in zip(want, starts, groups, strict=True):
    for r in group:
      np.testing.assert_array_equal(r.tokens, row[s : s + n])
  assert e.usage.decode_programs > 1


@pytest.mark.parametrize("temperature", [pytest.param(1.0, marks=pytest.mark.slow), 0.7])
def test_sampler_logp_equals_trainer_logp(temperature):
  sampling = Sampling(temperature=temperature, max_tokens=12, stop_ids=STOP_IDS)
  rollouts = sampled(RAGGED, 4, sampling)
  assert len({len(r.tokens) for r in rollouts}) > 2
  _, logp, raw = forward(rollouts, temperature)
  for i, r in enumerate(rollouts):
    here = slice(len(r.prompt.tokens), len(r.prompt.tokens) + len(r.tokens))
    close(r.logp, logp[i, here], **SIZE)
    close(r.raw_logp, raw[i, here], **SIZE)


def test_stopping_limits_and_samples():
  rollouts = sampled(RAGGED, 4, Sampling(temperature=0.7, max_tokens=12, stop_ids=STOP_IDS))
  for r in rollouts:
    ended = np.isin(r.tokens, STOP_IDS)
    assert len(r.tokens) == (1 + ended.argmax() if ended.any() else 12)
    assert r.stop_reason == ("stop" if ended.any() else "length")
  assert {r.stop_reason for r in rollouts} == {"stop", "length"}
  assert len({tuple(r.tokens) for r in rollouts}) == len(rollouts)


def test_min_tokens_and_repetition_penalty_by_hand():
  """Greedy, token by token in NumPy from the logits of the trainer's program."""
  sampling = Sampling(temperature=0.0, max_tokens=12, stop_ids=STOP_IDS, min_tokens=5, repetition_penalty=1.5)
  rollouts = sampled(RAGGED, 2, sampling)
  logits = next(forward(rollouts)).astype(np.float64)
  penalised = barred = 0
  for i, r in enumerate(rollouts):
    prompt = r.prompt.tokens
    for t, token in enumerate(r.tokens):
      plain = logits[i, len(prompt) + t - 1]
      row = plain.copy()
      seen = np.unique(np.concatenate([prompt, r.tokens[:t]]))
      row[seen] = np.where(row[seen] > 0, row[seen] / 1.5, row[seen] * 1.5)
      penalised += row.argmax() != plain.argmax()
      if t < 5:
        barred += row.argmax() in STOP_IDS
        row[list(STOP_IDS)] = -np.inf
      assert token == row.argmax()
      want = [x[token] - x.max() - np.log(np.exp(x - x.max()).sum()) for x in (row, plain)]
      close((r.logp[t], r.raw_logp[t]), want, **SIZE)
    assert len(r.tokens) >= 6
  assert penalised and barred  # both changed what was chosen


def slots(uid, owner, index):
  n, i32 = len(uid), lambda x: jnp.asarray(x, jnp.int32)
  columns = {f.name: i32(np.arange(n) * 10) for f in dataclasses.fields(decode.Work) if f.name not in ("uid", "seen")}
  columns["key"] = jnp.zeros((n, 2), jnp.uint32)
  return decode.Slots(decode.Work(uid=i32(uid), **columns), i32(owner), i32(index))


def test_dropping_frees_the_pages_of_those_slots_alone():
  before = slots([4, -1, 6, 9], [0, 2, -1, 3, -3, -2], [0, 1, 5, 0, 0, 1])  # two are reserved, for prompts 1 and 0
  after = decode.drop(before, np.array([False, True, True, False]), np.array([False, True]))
  np.testing.assert_array_equal(after.work.uid, [4, -1, -1, 9])
  np.testing.assert_array_equal(after.owner_P, [0, -1, -1, 3, -1, -2])


def test_shrinking_keeps_who_has_which_page():
  before = slots([-1, 4, -1, 9], [1, 3, -1, 3, -1, 1], [0, 1, 5, 0, 0, 1])
  after, source = decode.reshape(before, fewer=2, pages=6)
  np.testing.assert_array_equal(after.work.uid, [4, 9])
  np.testing.assert_array_equal(after.work.last, [10, 30])
  np.testing.assert_array_equal(after.owner_P, [0, 1, -1, 1, -1, 0])
  np.testing.assert_array_equal(after.index_P, before.index_P)
  np.testing.assert_array_equal(source, np.arange(6))


def test_pages_that_wait_with_their_prompt_are_for_its_slot_alone():
  """First in the queue is a sample whose tail goes to a free page, behind it one whose own pages are reserved."""
  layout = CACHES["xla"]
  pools = layout.new(MODEL.config, {"own": 4, "shared": 0, "tail": 2}, PAGE, "float32", 1)
  before = slots([-1, -1], [decode.reserved(7), -1, -1, decode.reserved(7)], [0, 0, 0, 1])
  i32 = lambda *x: jnp.array(x, jnp.int32)
  queue = dataclasses.replace(
    before.work, uid=i32(10, 11), length=i32(3, PAGE + 2), shared=i32(0, 0), entry=i32(5, 7), tail=i32(1, -1)
  )
  pools, after, taken = decode._admit(pools, before, queue, i32(2), i32(0), 0, layout=layout, page=PAGE)
  assert taken.tolist() == [2]
  np.testing.assert_array_equal(after.work.uid, [10, 11])
  np.testing.assert_array_equal(after.owner_P, [1, 0, -1, 1])
  np.testing.assert_array_equal(after.index_P, [0, 0, 0, 1])


@pytest.mark.parametrize(("pages", "source"), [(5, [0, 1, 3, 4, 5]), (8, [0, 1, 3, 4, 5, 2, 6, 6])])
def test_other_numbers_of_pages(pages, source):
  """What is in use comes first, in order, whoever has it; the rest is nobody's."""
  before = slots([-1, 4, -1, 9], [1, 3, -1, 3, -5, 1], [0, 1, 5, 0, 7, 1])
  after, got = decode.reshape(before, fewer=4, pages=pages)
  np.testing.assert_array_equal(got, source)
  np.testing.assert_array_equal(after.work.uid, [4, 9, -1, -1])
  np.testing.assert_array_equal(after.owner_P, [0, 1, 1, -5, 0, -1, -1, -1][:pages])
  np.testing.assert_array_equal(after.index_P[:5], [0, 1, 0, 7, 1])


def test_the_cache_is_updated_in_place():
  """Besides its arguments the program needs less memory than one more cache would take."""
  layout, S = CACHES["xla"], 8
  new = lambda: layout.new(MODEL.config, {"own": 1024, "shared": 0, "tail": 2}, PAGE, "float32", 1)
  pools = jax.eval_shape(new)
  shape = lambda *size: jax.ShapeDtypeStruct(size, jnp.int32)
  work = jax.eval_shape(lambda: slots(np.zeros(S), np.zeros(1024), np.zeros(1024)))
  params = jax.eval_shape(MODEL.unstack, MODEL.abstract())
  compiled = decode.run.lower(
    MODEL, layout, Sampling(max_tokens=64), params, pools, work, work.work, shape(1), (shape(0), shape(0)),
    jax.ShapeDtypeStruct((), bool), shape(), jax.ShapeDtypeStruct((), bool), shape(), page=PAGE, width=0, steps=16,
  ).compile()  # fmt: skip
  cache_bytes = sum(np.prod(x.shape) * 4 for x in jax.tree.leaves(pools))
  assert compiled.memory_analysis().alias_size_in_bytes >= cache_bytes
  assert compiled.memory_analysis().temp_size_in_bytes < 0.9 * cache_bytes


def test_pages_that_a_slot_may_begin_in_a_block():
  """Pages of 4: tokens of its own, tokens until its limit, and pages begun in 1, 4 and 16 steps."""
  rows = [(0, 99, 1, 1, 4), (1, 99, 0, 1, 4), (3, 99, 0, 1, 4), (4, 99, 1, 1, 4), (3, 1, 0, 0, 0), (3, 2, 0, 1, 1)]
  own, left = np.array([row[:2] for row in rows]).T
  work = dataclasses.replace(
    slots(np.arange(len(rows)), [], []).work, length=8 + own, shared=np.full_like(own, 8), count=100 - left,
    limit=np.full_like(own, 100),
  )  # fmt: skip
  for k, steps in enumerate((1, 4, 16)):
    assert decode._new_pages(work, 4, steps).tolist() == [row[2 + k] for row in rows]
  assert not decode._new_pages(dataclasses.replace(work, uid=work.uid * 0 - 1), 4, 16).any()  # nobody is there


def collectives(shape, penalty, devices=None):
  """Of `program`, (loops that they are in: 1 turns, 2 blocks or starts, 3 steps; kind; how many)."""
  found = collections.Counter()
  for c in hlo.read(program(tuple(shape.items()), penalty, devices).compile().as_text()).collectives:
    found[c.depth, c.kind] += c.times
  return [(*which, times) for which, times in found.items()]


@functools.cache
def program(shape, penalty, devices=None):
  """`run` with blocks of 16 steps, lowered."""
  shape, devices = dict(shape), devices and list(devices)
  mesh, layout, S = make_mesh(shape, devices), CACHES["xla"], 4
  D = mesh.shape["data"] * mesh.shape["fsdp"]
  rows = lambda n, *more, dtype=jnp.int32: jax.ShapeDtypeStruct((D * n, *more), dtype, sharding=named(mesh, "rows"))

  def put(tree, axes):
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, named_tree(mesh, axes)
    )

  pools = jax.eval_shape(lambda: layout.new(MODEL.config, {"own": 16, "shared": 4, "tail": 2}, PAGE, "float32", D))
  columns = {f.name: rows(S) for f in dataclasses.fields(decode.Work) if f.name not in ("key", "seen")}
  seen = None if penalty == 1 else rows(S, 40, dtype=bool)
  work = decode.Work(**columns, key=rows(S, 2, dtype=jnp.uint32), seen=seen)
  queue = dataclasses.replace(work, seen=None if seen is None else rows(S, 5, dtype=jnp.uint8))
  flag, number = jax.ShapeDtypeStruct((), bool), jax.ShapeDtypeStruct((), jnp.int32)
  params = jax.eval_shape(MODEL.unstack, MODEL.abstract())
  whole = jax.tree.map(native._without_row_axes, named_tree(mesh, MODEL.unstacked_axes()))
  params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, whole)
  sampling = Sampling(max_tokens=64, stop_ids=STOP_IDS, top_k=5, top_p=0.9, repetition_penalty=penalty)
  with jax.set_mesh(mesh):
    return decode.run.lower(
      MODEL, layout, sampling, params, put(pools, layout.axes(pools)), decode.Slots(work, rows(16), rows(16)), queue,
      rows(1), (rows(4), rows(4)), flag, number, flag, number, page=PAGE, width=2, steps=64, decide=16,
    )  # fmt: skip


def test_operations_carry_the_names_of_their_stages():
  text = program(tuple(dict(data=2, fsdp=4, context=1, tensor=1).items()), 1.5).as_text(debug_info=True)
  names = set(re.findall(r'"(jit.run./rollout/[^"]*)"', text))
  for stage in ("admit", "look", "decode", "decode/embed", "decode/attention", "decode/mlp", "decode/sample"):
    assert any(f"/{stage}/" in name for name in names), stage


def test_between_decisions_shards_send_each_other_nothing():
  """Eight shards: one small gather after a block and one after a start. Cut by heads, a step does send."""
  found = collectives(dict(data=2, fsdp=4, context=1, tensor=1), penalty=1.5)
  assert [c for c in found if c[0]] == [(2, "all-gather", 2)]
  found = collectives(dict(data=1, fsdp=4, context=1, tensor=2), penalty=1.0)
  assert {depth for depth, _, _ in found} == {0, 2, 3} and [c for c in found if c[0] == 2] == [(2, "all-gather", 2)]


@pytest.mark.slow
def test_on_a_tpu_shards_send_each_other_nothing_between_decisions():
  """Compiled for a v6e-8, without one."""
  pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install libtpu")
  found = collectives(dict(data=1, fsdp=8, context=1, tensor=1), 1.0, tuple(chips.open_topology("v6e-8")))
  assert [c for c in found if c[0]] == [(2, "all-gather", 2)]
