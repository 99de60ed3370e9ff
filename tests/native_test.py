"""The native engine: order, sharing, determinism, early ends, stop reasons, sharding and errors.

Compiling is what takes time here, so most tests use SLOTS: an odd number has no half to shrink to, hence one program.
"""

import contextlib
import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tolerances
from tolerances import close

from fipo_jax.models import PRESETS, cache_paged, make_model
from fipo_jax.models.logprobs import token_logprobs
from fipo_jax.rollout import ENGINES, Sampling, capacity, device
from fipo_jax.rollout import native as native_lib
from fipo_jax.sharding import for_rollout, make_mesh
from fipo_jax.types import Prompt

CONFIG = dataclasses.replace(
  PRESETS["tiny"],
  vocab_size=40,
  num_layers=2,
  d_model=16,
  d_mlp=24,
  num_heads=4,
  num_kv_heads=2,
  head_dim=4,
)
MODEL = make_model(CONFIG)
SAMPLING = Sampling(max_tokens=12, stop_ids=(7, 11, 19, 23))
KEY = jax.random.key(5)
SLOTS = 7
# What is added up on the way through two layers to a log-prob, and the size of logits.
SIZE = dict(terms=2 * (3 * 16 + 24 + 24), scale=10)


@functools.cache
def random_params(model=MODEL, std=0.4):
  leaves, tree = jax.tree.flatten(model.abstract())

  @jax.jit
  def draw(key):
    keys = jax.random.split(key, len(leaves))
    return [std * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]

  return tree.unflatten(draw(jax.random.key(3)))


def engine(slots, *, model=MODEL, mesh=None, params=None, **sizes):
  mesh = mesh or make_mesh(dict(data=1, fsdp=1, context=1, tensor=1), jax.devices()[:1])
  sizes = {"max_prompt_tokens": 40, "max_response_tokens": 12} | sizes
  made = ENGINES["native"](model, mesh, slots=slots, pad_id=0, **sizes)
  made.update(random_params(model) if params is None else params)
  return made


def make_prompts(n, seed=0):
  """Ragged prompts; one id is beyond 32 bits."""
  rng = np.random.default_rng(seed)
  ids = [100 + 7 * i for i in range(n - 1)] + [2**40 + 3]
  return [
    Prompt(i, rng.integers(1, 40, rng.integers(1, 12)).astype(np.int32), "", "", "none")
    for i in ids
  ]


def by_sample(groups):
  return {
    (r.prompt.id, r.sample): (r.tokens.tolist(), r.stop_reason) for group in groups for r in group
  }


@functools.cache
def reference(n=6):
  """Groups of `make_prompts(n)`, four samples each, in one page per sample and one wave after the other."""
  return engine(SLOTS).generate(make_prompts(n), 4, key=KEY, sampling=SAMPLING)


def same_numbers(got, want):
  assert by_sample(got) == by_sample(want)
  logp = {(r.prompt.id, r.sample): (r.logp, r.raw_logp) for group in want for r in group}
  for r in sum(got, []):
    close((r.logp, r.raw_logp), logp[r.prompt.id, r.sample], **SIZE)


def as_text(ids):
  return "".join(chr(97 + int(i)) for i in ids)


def test_groups_come_back_in_prompt_order_with_all_fields():
  prompts = make_prompts(5)
  groups = engine(SLOTS).generate(prompts, 4, key=KEY, sampling=SAMPLING)
  assert [[(r.prompt.id, r.sample) for r in g] for g in groups] == [
    [(p.id, i) for i in range(4)] for p in prompts
  ]
  reasons = set()
  for r in (r for g in groups for r in g):
    assert r.tokens.dtype == np.int32 and r.logp.dtype == np.float32
    assert 1 <= len(r.tokens) == len(r.logp) == len(r.raw_logp) <= 12 and (r.logp < 0).all()
    np.testing.assert_array_equal(r.raw_logp, r.logp)  # temperature 1, nothing restricted
    assert not np.isin(r.tokens[:-1], SAMPLING.stop_ids).any()
    stopped = r.tokens[-1] in SAMPLING.stop_ids
    assert r.stop_reason == ("stop" if stopped else "length") and (stopped or len(r.tokens) == 12)
    assert r.truncated is not stopped and r.text == ""
    reasons.add(r.stop_reason)
  assert reasons == {"stop", "length"}


@pytest.mark.parametrize(("slots", "sizes"), [
  (8, dict(page_tokens=64)), (SLOTS, dict(page_tokens=4, max_prompt_tokens=12, cache_tokens=60)),
  (5, dict(page_tokens=4, max_prompt_tokens=12)),  # the pool grows, while prompts share pages
])  # fmt: skip
def test_tokens_do_not_depend_on_batch_slot_page_or_order(slots, sizes, monkeypatch):
  """In 15 pages of 4 tokens, 7 slots do not fit: samples are put back and continued, and still get the same tokens."""
  monkeypatch.setattr(capacity, "SMALLEST_POOL", 0)
  prompts = make_prompts(6)
  e = engine(slots, **sizes)
  same_numbers(e.generate([prompts[i] for i in (4, 0, 5, 2, 1, 3)], 4, key=KEY, sampling=SAMPLING), reference())
  assert (e.usage.interrupted > 0) == (sizes.get("cache_tokens") == 60)
  assert e.usage.held_bytes <= e.usage.peak_cache_bytes
  if slots == SLOTS:
    assert e.usage.lengths and sorted(e.usage.lengths) == sorted(len(r.tokens) for g in reference() for r in g)
  else:
    alone = by_sample(e.generate(prompts[2:3], 4, key=KEY, sampling=SAMPLING))
    assert alone == {k: v for k, v in by_sample(reference()).items() if k[0] == prompts[2].id} and len(alone) == 4


@pytest.mark.parametrize("samples", [1, 4, 16])
def test_a_prompt_is_prefilled_once_for_all_its_samples(samples):
  prompts = make_prompts(6)
  e = engine(SLOTS)
  e.generate(prompts, samples, key=KEY, sampling=SAMPLING)
  assert e.usage.prefill_tokens == sum(len(p.tokens) - 1 for p in prompts)
  assert e.usage.interrupted == 0 and len(e.usage.lengths) == 6 * samples


def ended_early(e, prompts, samples, stop, sampling=SAMPLING):
  """Groups of a first call that `stop(groups that became complete)` may end, and of the calls that go on with them."""
  calls = [e.generate(prompts, samples, key=KEY, sampling=sampling, watch=stop)]
  while pending := [g for g in calls[-1] if not all(r.finished for r in g)]:
    calls.append(e.generate([], samples, key=jax.random.key(99), sampling=sampling, pending=pending, watch=stop))
    assert len(calls) < 100
  return calls


def test_an_early_end_loses_nothing(monkeypatch):
  monkeypatch.setattr(device, "STEPS", 4)
  e, seen = engine(SLOTS), []
  stop = lambda groups: bool(groups) and (seen.append([g[0].prompt.id for g in groups]) or True)
  first, *rest = ended_early(e, make_prompts(6), 4, stop)
  want = by_sample(reference())
  order = lambda groups: [[(r.prompt.id, r.sample) for r in g] for g in groups]
  assert order(first) == order(reference())
  unfinished = [r for g in first for r in g if not r.finished]
  assert any(0 < len(r.tokens) < 12 for r in unfinished) and any(len(r.tokens) == 0 for r in unfinished)
  for r in sum(first, []):
    tokens, reason = want[r.prompt.id, r.sample]
    assert r.tokens.tolist() == tokens[: len(r.tokens)] and len(r.tokens) == len(r.logp) == len(r.raw_logp)
    assert r.stop_reason == (reason if r.finished else "unfinished")
  assert rest and sorted(sum(seen, [])) == sorted(p.id for p in make_prompts(6))  # each group is reported once
  before = {(r.prompt.id, r.sample): r for g in first for r in g if r.finished}
  last = {g[0].prompt.id: g for call in [first, *rest] for g in call}
  same_numbers(last.values(), reference())
  for group in rest[0]:
    for r in group:
      assert before.get((r.prompt.id, r.sample), r) is r  # a finished response is the very one that was given


def test_stopping_after_every_chunk_does_not_bias_lengths(monkeypatch):
  """Whoever ends calls as soon as something is complete sees short responses first; at the end all must be there."""
  monkeypatch.setattr(device, "STEPS", 4)
  prompts = make_prompts(12, seed=2)
  e = engine(SLOTS)
  want = [len(g[0].tokens) for g in e.generate(prompts, 1, key=KEY, sampling=SAMPLING)]
  calls = ended_early(e, prompts, 1, bool)
  got = [len(g[0].tokens) for call in calls for g in call if g[0].finished]
  assert len(calls) > 2 and len(set(want)) > 3 and sorted(got) == sorted(want)
  early = [len(g[0].tokens) for g in calls[0] if g[0].finished]
  assert np.mean(early) < np.mean(want)  # why this matters


def test_limits_of_single_prompts():
  prompts, limits = make_prompts(6), [12, 1, 3, 12, 5, 40]
  groups = engine(SLOTS).generate(prompts, 4, key=KEY, sampling=SAMPLING, limits=limits)
  for group, whole, limit in zip(groups, reference(), limits, strict=True):
    for r, w in zip(group, whole, strict=True):
      assert r.tokens.tolist() == w.tokens[:limit].tolist()
      assert r.stop_reason == ("stop" if r.tokens[-1] in SAMPLING.stop_ids else "length")


def test_stop_strings_end_a_response_at_the_token_that_completes_one(monkeypatch):
  """Pairs of tokens, some of them across two runs of the device, and one token alone."""
  monkeypatch.setattr(device, "STEPS", 4)
  whole = {(r.prompt.id, r.sample): as_text(r.tokens) for g in reference() for r in g}
  texts = list(whole.values())
  strings = (texts[0][3:5], texts[1][6:8], texts[4][2:4], texts[3][9])
  e = engine(SLOTS, text=as_text)
  groups = e.generate(make_prompts(6), 4, key=KEY, sampling=dataclasses.replace(SAMPLING, stop_strings=strings))
  cut = 0
  for r in sum(groups, []):
    text = whole[r.prompt.id, r.sample]
    ends = [text.index(s) + len(s) for s in strings if s in text]
    assert as_text(r.tokens) == text[: min(ends, default=len(text))]
    assert len(r.logp) == len(r.raw_logp) == len(r.tokens)
    if ends:
      assert r.stop_reason == "stop"
    cut += min(ends, default=len(text)) < len(text)
  assert cut >= 4
  with pytest.raises(ValueError, match="sampling.stop_strings=.*no way to make text"):
    engine(SLOTS).generate(make_prompts(1), 1, key=KEY, sampling=Sampling(max_tokens=2, stop_strings=("a",)))


def test_stop_strings_of_a_continued_response_and_before_min_tokens():
  """A string may begin before the response was put aside; one that is complete by min_tokens does not count."""
  e, sampling = engine(SLOTS, text=as_text), dataclasses.replace(SAMPLING, stop_ids=(), min_tokens=6)
  [[whole]] = e.generate(make_prompts(1), 1, key=KEY, sampling=sampling)
  text = as_text(whole.tokens)
  for begun, string in ((7, text[6:8]), (0, text[3:6]), (3, text[4:7])):
    cut = {name: getattr(whole, name)[:begun] for name in ("tokens", "logp", "raw_logp")}
    pending = [[dataclasses.replace(whole, stop_reason="unfinished", **cut)]]
    [[r]] = e.generate([], 1, key=KEY, sampling=dataclasses.replace(sampling, stop_strings=(string,)), pending=pending)
    ends = [n for n in range(max(6, begun) + 1, 13) if text[:n].endswith(string)]
    assert as_text(r.tokens) == text[: min(ends, default=12)]
    assert r.stop_reason == ("stop" if ends else "length")


def test_fewer_slots_at_the_tail():
  """Eight samples in eight slots: those left at the end move to four and to two."""
  e = engine(8)
  groups = e.generate(make_prompts(2), 4, key=KEY, sampling=SAMPLING)
  lengths = [len(r.tokens) for r in sum(groups, [])]
  assert sorted(e.usage.lengths) == sorted(lengths) and e.usage.tokens == sum(lengths)
  expected, left = 0, 8
  for step in range(max(lengths)):
    active = sum(n > step for n in lengths)
    left = next(n for n in (2, 4, 8) if n <= left and n >= active)
    expected += left
  assert e.usage.slot_steps == expected < 8 * max(lengths)
  assert e.usage.occupancy == sum(lengths) / expected
  assert by_sample(groups) == by_sample(engine(SLOTS).generate(make_prompts(2), 4, key=KEY, sampling=SAMPLING))


@pytest.mark.parametrize("attention", ["xla", "pallas"])
def test_an_int8_cache_is_near(attention):
  """Greedy, against the trainer's program in float32: how far are log-probs, and how much worse the chosen tokens."""
  sampling, prompts = Sampling(temperature=0.0, max_tokens=12), make_prompts(6)
  e = engine(SLOTS, cache_dtype="int8", attention=attention, page_tokens=64 if attention == "xla" else 4)
  if attention == "pallas":  # the kernel of TPUs, interpreted: it multiplies in bfloat16, and layers are scanned
    e.layout = cache_paged.layout(16, interpret=True)
  groups = e.generate(prompts, 1, key=KEY, sampling=sampling)
  rows, segments = np.zeros((2, 6, 24), np.int32)
  for i, [r] in enumerate(groups):
    full = np.concatenate([r.prompt.tokens, r.tokens])
    rows[i, : len(full)], segments[i, : len(full)] = full, 1

  @jax.jit
  def scored(params, rows, segments):
    hidden = MODEL.hidden(params, rows, jnp.broadcast_to(jnp.arange(24), rows.shape), segments)
    logp, _ = token_logprobs(hidden, MODEL.head(params), rows, segments)
    return logp, jax.nn.log_softmax(MODEL.logits(params, hidden)).max(-1)

  logp, best = map(np.asarray, scored(random_params(), rows, segments))
  error, regret = 0.0, 0.0
  for i, [r] in enumerate(groups):
    n = len(r.prompt.tokens)
    error = max(error, np.abs(r.logp - logp[i, n : n + 12]).max())
    regret = max(regret, (best[i, n - 1 : n + 11] - logp[i, n : n + 12]).max())
  # Numbers of 127 steps have about the precision of bfloat16; keys and values of two layers were rounded.
  rounding = tolerances.limit(terms=4, dtype=jnp.bfloat16)
  assert tolerances.limit(**SIZE) < error < rounding and regret < rounding, (error, regret)
  assert e.usage.token_bytes == 2 * 2 * 2 * (4 + 4) < engine(SLOTS).token_bytes


def test_slots_from_the_free_memory(monkeypatch):
  free = 34_000
  monkeypatch.setattr(native_lib, "_free_host_memory", lambda: free)
  e = engine("auto", page_tokens=16)  # no prompt fills a page: no program for one more shared page
  assert e.slots == 0.7 * free // e.token_bytes // (40 + 12 // 2) == 4
  same_numbers(e.generate(make_prompts(6), 4, key=KEY, sampling=SAMPLING), reference())
  assert 0.2 * free < e.usage.peak_cache_bytes <= free
  monkeypatch.setattr(native_lib, "_free_host_memory", lambda: 5000)
  with pytest.raises(ValueError, match="rollout.slots='auto'.*27 tokens of cache.*needs 176.*cache_dtype='int8'"):
    engine("auto", page_tokens=16)


def test_given_slots_take_no_more_than_the_free_memory(monkeypatch, capsys):
  """Of a device that says what it has: 20,000 tokens would be needed, 0.7 of 300 kB hold 1,640."""
  stats, e = {"bytes_limit": 400_000, "bytes_in_use": 100_000}, engine(256, page_tokens=16)
  e.mesh = types.SimpleNamespace(
    local_devices=[types.SimpleNamespace(memory_stats=lambda: stats)], shape=e.mesh.shape, devices=e.mesh.devices
  )
  monkeypatch.setattr(e, "_adopt", lambda params: params)
  monkeypatch.setattr(jax, "set_mesh", lambda mesh: contextlib.nullcontext())
  e.update(None)
  assert e.cache_tokens == 210_000 // e.token_bytes == 1640
  assert "cache: 256 slots of the longest responses would need" in capsys.readouterr().out
  e.update(None)  # said once
  assert not capsys.readouterr().out
  e.cache_tokens, stats["bytes_limit"] = 0, 110_000
  with pytest.raises(ValueError, match="rollout.slots=256: 0.00 GiB are free.*54 tokens of cache"):
    e.update(None)
  e.cache_tokens, stats["bytes_limit"] = 0, 10**9
  e.update(None)
  assert e.cache_tokens == 0


def test_the_key_matters_and_samples_of_a_group_differ():
  prompts = make_prompts(3)
  e = engine(SLOTS)
  first, second = (
    by_sample(e.generate(prompts, 4, key=k, sampling=SAMPLING)) for k in (KEY, jax.random.key(6))
  )
  assert sum(first[k] == second[k] for k in first) < len(first) / 2
  assert by_sample(e.generate(prompts, 4, key=KEY, sampling=SAMPLING)) == first
  assert all(len({str(first[p.id, i]) for i in range(4)}) > 1 for p in prompts)


@pytest.mark.parametrize("shape,slots", [
  (dict(data=2, fsdp=2, context=1, tensor=2), 12),
  pytest.param(dict(data=1, fsdp=8, context=1, tensor=1), 8, marks=pytest.mark.slow),
])
def test_sharded_equals_unsharded(shape, slots):
  """Slots spread over four and eight shards, each with pages of its own; five prompts are not divisible."""
  prompts = make_prompts(5)
  want = engine(SLOTS).generate(prompts, 4, key=KEY, sampling=SAMPLING)
  mesh = make_mesh(shape)
  e = engine(
    slots, mesh=mesh, params=jax.tree.map(jax.device_put, random_params(), MODEL.shardings(mesh))
  )
  got = e.generate(prompts, 4, key=KEY, sampling=SAMPLING)
  same_numbers(got, want)
  assert e.usage.prefill_tokens == sum(len(p.tokens) - 1 for p in prompts)


@functools.cache
def decided(steps, shards=1, cache_tokens=60):
  """(groups, usage) of six prompts in pages of 4 with a decision every so many steps, 7 slots or two on each shard."""
  mesh = make_mesh(dict(data=1, fsdp=shards, context=1, tensor=1), jax.devices()[:shards])
  e = engine(
    SLOTS if shards == 1 else 2 * shards, mesh=mesh, page_tokens=4, max_prompt_tokens=12, cache_tokens=cache_tokens,
    continuous_decode_steps=steps,
    params=random_params() if shards == 1 else jax.tree.map(jax.device_put, random_params(), MODEL.shardings(mesh)),
  )  # fmt: skip
  return e.generate(make_prompts(6), 4, key=KEY, sampling=SAMPLING), e.usage


@pytest.mark.parametrize("steps, shards, cache_tokens", [
  (4, 1, 60),
  *(pytest.param(*row, marks=pytest.mark.slow) for row in (
    (16, 1, 60), (64, 1, 60), (4, 8, 480), (16, 8, 480), (64, 8, 480))),
])  # fmt: skip
def test_tokens_do_not_depend_on_how_often_is_decided(steps, shards, cache_tokens):
  """In so few pages samples are put back and continued; blocks are longer than pages, and often longer than fit."""
  (want, once), (got, usage) = (decided(n, shards, cache_tokens) for n in (1, steps))
  same_numbers(want, reference())
  same_numbers(got, reference())
  assert once.interrupted and usage.interrupted


@pytest.mark.parametrize("shards", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_bits_and_the_log_do_not_depend_on_how_often_is_decided(shards):
  """With room for all, and no sample that waits: the same programs' bits, and the same numbers about the cache."""
  prompts = make_prompts(shards)
  made = []
  for steps in (1, 4, 16):
    mesh = make_mesh(dict(data=1, fsdp=shards, context=1, tensor=1), jax.devices()[:shards])
    params = jax.tree.map(jax.device_put, random_params(), MODEL.shardings(mesh))
    e = engine(3 * shards, mesh=mesh, params=params, page_tokens=4, max_prompt_tokens=12,
               continuous_decode_steps=steps)  # fmt: skip
    made.append((sum(e.generate(prompts, 3, key=KEY, sampling=SAMPLING), []), e.usage))
  (want, once), *others = made
  longest = max(once.lengths)
  assert once.slot_steps == 3 * shards * longest and once.held_bytes
  for got, usage in others:
    for a, b in zip(got, want, strict=True):
      np.testing.assert_array_equal(a.tokens, b.tokens)
      np.testing.assert_array_equal(np.stack([a.logp, a.raw_logp]), np.stack([b.logp, b.raw_logp]))
    assert usage.held_bytes == once.held_bytes and sorted(usage.lengths) == sorted(once.lengths)
    # Not more steps than the longest response may have.
    assert once.slot_steps <= usage.slot_steps <= 3 * shards * 12


def test_a_block_ends_where_the_host_looks_in(monkeypatch):
  """Blocks begin anywhere, as one ends with the longest response that is left."""
  monkeypatch.setattr(device, "STEPS", 8)
  e, looks = engine(1, continuous_decode_steps=8), []

  def progress(done, total):
    looks.append(done)
    assert len(looks) < 100  # tokens that are lost are waited for without end

  got = e.generate(make_prompts(6), 4, key=KEY, sampling=SAMPLING, progress=progress)
  same_numbers(got, reference())


def test_where_the_kernel_of_tpus_is_used():
  fits = lambda head_dim, *rest: native_lib.pallas_fits(dataclasses.replace(CONFIG, head_dim=head_dim), *rest)
  assert fits(128, "bfloat16", 8) and fits(256, "int8", 32) and fits(128, "int8", 64)
  assert not (fits(64, "bfloat16", 8) or fits(128, "float32", 64) or fits(128, "int8", 16) or fits(128, "bfloat16", 4))
  assert engine(SLOTS).attention == "xla"  # no TPU
  assert native_lib.proven("bfloat16") == "paged_attention" and native_lib.proven("int8") == "pallas"
  layouts = {name: engine(SLOTS, attention=name).layout for name in ("pallas", "paged_attention")}
  assert layouts["pallas"] is cache_paged.layout(2, cores=1) and layouts["pallas"].new != layouts["paged_attention"].new
  with pytest.raises(ValueError, match="rollout.attention='flash': expected 'auto', 'xla', 'pallas' or 'paged_atten"):
    engine(SLOTS, attention="flash")
  with pytest.raises(ValueError, match="rollout.page_tokens=1: 7 slots of 40013 pages.*200000 page numbers.*'pallas'"):
    engine(SLOTS, attention="paged_attention", page_tokens=1, max_response_tokens=39_972)


def test_how_often_is_decided():
  every = native_lib.decided_every
  assert [every(8, n) for n in (12, 64, 200, 256, 1023, 20_480)] == [1, 1, 2, 4, 8, 16] and every(1, 20_480) == 1
  assert engine(SLOTS).decide == 1 and engine(SLOTS, continuous_decode_steps=8).decide == 8


def test_parameters_of_the_trainers_mesh_sample_on_that_of_the_rollouts():
  """Trained over fsdp 4, sampled by four groups of two devices: the same numbers, and no device with a whole copy."""
  prompts, trained = make_prompts(5), make_mesh(dict(data=2, fsdp=4, context=1, tensor=1))
  want = engine(SLOTS).generate(prompts, 4, key=KEY, sampling=SAMPLING)
  mesh = for_rollout(trained, 2)
  assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "context": 1, "tensor": 2}
  assert list(mesh.devices.flat) == list(trained.devices.flat) and for_rollout(trained, 0) is trained
  params = jax.tree.map(jax.device_put, random_params(), MODEL.shardings(trained))
  with jax.set_mesh(trained):  # as the training loop does
    e = engine(12, mesh=mesh, params=params)
    same_numbers(e.generate(prompts, 4, key=KEY, sampling=SAMPLING), want)
  gate = e.params["layers"][1]["mlp"]["gate_FD"]
  assert gate.sharding.shard_shape(gate.shape) == (12, 16)
  with pytest.raises(ValueError, match=r"rollout.tensor=3 must divide fsdp\*context\*tensor=4 of the mesh"):
    for_rollout(trained, 3)


def test_weights_are_whole_on_every_row_group():
  mesh = make_mesh(dict(data=1, fsdp=4, context=1, tensor=2))
  e = engine(
    8, mesh=mesh, params=jax.tree.map(jax.device_put, random_params(), MODEL.shardings(mesh))
  )
  gate = e.params["layers"][1]["mlp"]["gate_FD"]
  assert gate.sharding.shard_shape(gate.shape) == (12, 16)  # cut by tensor, not by fsdp


def test_update_changes_what_is_sampled_and_casts():
  model = make_model(dataclasses.replace(CONFIG, dtype="bfloat16"))
  e = engine(SLOTS, model=model)
  assert e.params["layers"][0]["mlp"]["gate_FD"].dtype == np.dtype("bfloat16")
  prompts = make_prompts(2)
  before = by_sample(e.generate(prompts, 4, key=KEY, sampling=SAMPLING))
  e.update(jax.tree.map(lambda x: -x, random_params(model)))
  assert by_sample(e.generate(prompts, 4, key=KEY, sampling=SAMPLING)) != before


def test_progress_and_usage():
  calls = []
  e = engine(SLOTS)
  groups = e.generate(make_prompts(5), 4, key=KEY, sampling=SAMPLING, progress=lambda *x: calls.append(x))
  assert calls[-1] == (20, 20) and calls == sorted(calls) and {total for _, total in calls} == {20}
  u, lengths = e.usage, [len(r.tokens) for g in groups for r in g]
  assert u.tokens == sum(lengths) and sorted(u.lengths) == sorted(lengths)
  assert u.prompts == 3 == sum(len(p.tokens) > 1 for p in make_prompts(5))
  assert u.slot_steps % SLOTS == 0 and u.occupancy == u.tokens / u.slot_steps and 0.5 < u.occupancy <= 1
  assert 0 < u.first_sample_s <= u.last_sample_s <= u.seconds
  assert 0 < u.held_bytes <= u.peak_cache_bytes and u.held_bytes % u.token_bytes == 0
  assert all(0 < busy <= 1 and 0 < used <= 1 for _, busy, _, used in u.timeline) and 1 < len(u.timeline) <= len(calls)
  values = u.values()
  assert values["rollout/tail_ratio"] == max(lengths) / np.median(lengths)
  assert values["rollout/cache_in_use"] == u.held_bytes / u.peak_cache_bytes
  e.generate(make_prompts(1), 1, key=KEY, sampling=SAMPLING)
  assert len(e.usage.lengths) == 1  # of the last call alone


def test_an_update_lets_go_of_the_old_parameters_first(monkeypatch):
  e, seen = engine(SLOTS), []
  adopt = e._adopt
  monkeypatch.setattr(e, "_adopt", lambda params: seen.append(e.params) or adopt(params))
  e.update(random_params())
  assert seen == [None] and e.params is not None


def test_a_released_engine_asks_for_new_parameters():
  e = engine(SLOTS)
  e.release()
  with pytest.raises(ValueError, match=r"call update\(params\)"):
    e.generate(make_prompts(1), 4, key=KEY, sampling=SAMPLING)


def test_no_prompts_is_no_work():
  assert engine(SLOTS).generate([], 4, key=KEY, sampling=SAMPLING) == []


def test_limits_are_reachable():
  """A prompt of exactly the limit, a response of exactly the limit, and neither a power of two."""
  longest = Prompt(1, np.ones(40, np.int32), "", "", "none")
  [group] = engine(SLOTS).generate([longest], 4, key=KEY, sampling=SAMPLING)
  assert (12, "length") in [(len(r.tokens), r.stop_reason) for r in group]


def test_user_errors():
  e = engine(SLOTS)
  ok = Prompt(1, np.ones(3, np.int32), "", "", "none")

  def prompt(tokens):
    return [dataclasses.replace(ok, id=77, tokens=np.array(tokens, np.int32))]

  for prompts, text in (
    (prompt([1] * 41), "prompt id=77 has 41 tokens.*rollout.max_prompt_tokens=40"),
    (prompt([]), "prompt id=77 has 0 tokens"),
    (prompt([3, 40]), "prompt id=77 has a token id outside 0..39"),
    (prompt([-1]), "prompt id=77 has a token id outside"),
  ):
    with pytest.raises(ValueError, match=text):
      e.generate([ok, *prompts], 2, key=KEY, sampling=SAMPLING)
  with pytest.raises(ValueError, match="sampling.max_tokens=13 .*rollout.max_response_tokens=12"):
    e.generate([ok], 2, key=KEY, sampling=Sampling(max_tokens=13))
  with pytest.raises(ValueError, match="samples_per_prompt=0"):
    e.generate([ok], 0, key=KEY, sampling=SAMPLING)
  for slots in (0, -1, "many"):
    with pytest.raises(ValueError, match=f"rollout.slots={slots!r}: expected a number of at least 1, or 'auto'"):
      engine(slots)
  with pytest.raises(ValueError, match=r"rollout.slots=6 must be a multiple of data\*fsdp=8; try 8"):
    engine(6, mesh=make_mesh(dict(data=1, fsdp=8, context=1, tensor=1)))
  with pytest.raises(ValueError, match="cache_tokens=12 must hold a longest prompt with its response.*at least"):
    engine(8, page_tokens=4, cache_tokens=12)
  with pytest.raises(ValueError, match="rollout.cache_dtype='int4'"):
    engine(8, cache_dtype="int4")
  with pytest.raises(ValueError, match="rollout.continuous_decode_steps=3: expected 0, or a divisor of 64"):
    engine(8, continuous_decode_steps=3)
  with pytest.raises(ValueError, match="pad_id=40"):
    ENGINES["native"](MODEL, e.mesh, slots=1, max_prompt_tokens=4, max_response_tokens=4, pad_id=40)
  with pytest.raises(ValueError, match=r"call update\(params\)"):
    ENGINES["native"](
      MODEL, e.mesh, slots=1, max_prompt_tokens=4, max_response_tokens=4, pad_id=0
    ).generate([ok], 1, key=KEY, sampling=SAMPLING)
