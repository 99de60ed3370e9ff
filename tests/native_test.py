"""The native engine: order, sharing, determinism, stop reasons, sharding and errors."""

import dataclasses

import jax
import numpy as np
import pytest

from fipo_jax.models import PRESETS, make_model
from fipo_jax.rollout import ENGINES, Sampling
from fipo_jax.rollout import native as native_lib
from fipo_jax.sharding import make_mesh
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


def random_params(model=MODEL, std=0.4):
  leaves, tree = jax.tree.flatten(model.abstract())
  keys = jax.random.split(jax.random.key(3), len(leaves))
  return tree.unflatten(
    [std * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
  )


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


def test_groups_come_back_in_prompt_order_with_all_fields():
  prompts = make_prompts(5)
  groups = engine(8).generate(prompts, 4, key=KEY, sampling=SAMPLING)
  assert [[(r.prompt.id, r.sample) for r in g] for g in groups] == [
    [(p.id, i) for i in range(4)] for p in prompts
  ]
  reasons = set()
  for r in (r for g in groups for r in g):
    assert r.tokens.dtype == np.int32 and r.logp.dtype == np.float32
    assert 1 <= len(r.tokens) == len(r.logp) <= 12 and (r.logp < 0).all()
    assert not np.isin(r.tokens[:-1], SAMPLING.stop_ids).any()
    stopped = r.tokens[-1] in SAMPLING.stop_ids
    assert r.stop_reason == ("stop" if stopped else "length") and (stopped or len(r.tokens) == 12)
    assert r.truncated is not stopped and r.text == ""
    reasons.add(r.stop_reason)
  assert reasons == {"stop", "length"}


@pytest.mark.parametrize("slots", [3, 6])
def test_tokens_do_not_depend_on_batch_slot_or_order(slots):
  """gcd(4, slots) samples share a prefill, one and two here, all of them in 8 slots; prompts are shuffled."""
  prompts = make_prompts(6)
  want = by_sample(engine(8).generate(prompts, 4, key=KEY, sampling=SAMPLING))
  shuffled = [prompts[i] for i in np.random.default_rng(slots).permutation(6)]
  assert by_sample(engine(slots).generate(shuffled, 4, key=KEY, sampling=SAMPLING)) == want
  alone = by_sample(engine(slots).generate(prompts[2:3], 4, key=KEY, sampling=SAMPLING))
  assert alone == {k: want[k] for k in alone} and len(alone) == 4


def test_the_key_matters_and_samples_of_a_group_differ():
  prompts = make_prompts(3)
  e = engine(8)
  first, second = (
    by_sample(e.generate(prompts, 4, key=k, sampling=SAMPLING)) for k in (KEY, jax.random.key(6))
  )
  assert sum(first[k] == second[k] for k in first) < len(first) / 2
  assert by_sample(e.generate(prompts, 4, key=KEY, sampling=SAMPLING)) == first
  assert all(len({str(first[p.id, i]) for i in range(4)}) > 1 for p in prompts)


@pytest.mark.parametrize("shape,slots", [
  (dict(data=2, fsdp=2, context=1, tensor=2), 8), (dict(data=1, fsdp=8, context=1, tensor=1), 6),
])  # fmt: skip
def test_sharded_equals_unsharded(shape, slots):
  """Slots spread over eight devices, prefilled prompts not always divisible; and slots that cannot be spread."""
  prompts = make_prompts(5)
  want = engine(8).generate(prompts, 4, key=KEY, sampling=SAMPLING)
  mesh = make_mesh(shape)
  e = engine(
    slots, mesh=mesh, params=jax.tree.map(jax.device_put, random_params(), MODEL.shardings(mesh))
  )
  got = e.generate(prompts, 4, key=KEY, sampling=SAMPLING)
  assert by_sample(got) == by_sample(want)
  for a, b in zip(sum(got, []), sum(want, []), strict=True):
    np.testing.assert_allclose(a.logp, b.logp, atol=2e-5)


def test_weights_are_whole_on_every_row_group():
  mesh = make_mesh(dict(data=1, fsdp=4, context=1, tensor=2))
  e = engine(
    8, mesh=mesh, params=jax.tree.map(jax.device_put, random_params(), MODEL.shardings(mesh))
  )
  gate = e.params["layers"]["mlp"]["gate_DF"]
  assert gate.sharding.shard_shape(gate.shape) == (2, 16, 12)  # cut by tensor, not by fsdp


def test_longer_responses_grow_the_cache(monkeypatch):
  prompts = make_prompts(3)
  sampling = Sampling(max_tokens=40, stop_ids=(7,))
  want = by_sample(
    engine(8, max_response_tokens=40).generate(prompts, 4, key=KEY, sampling=sampling)
  )
  monkeypatch.setattr(native_lib, "SMALLEST_CACHE", 16)
  got = by_sample(
    engine(8, max_response_tokens=40).generate(prompts, 4, key=KEY, sampling=sampling)
  )
  assert got == want and max(len(tokens) for tokens, _ in got.values()) > 16


def test_update_changes_what_is_sampled_and_casts():
  model = make_model(dataclasses.replace(CONFIG, dtype="bfloat16"))
  e = engine(8, model=model)
  assert e.params["layers"]["mlp"]["gate_DF"].dtype == np.dtype("bfloat16")
  prompts = make_prompts(2)
  before = by_sample(e.generate(prompts, 4, key=KEY, sampling=SAMPLING))
  e.update(jax.tree.map(lambda x: -x, random_params(model)))
  assert by_sample(e.generate(prompts, 4, key=KEY, sampling=SAMPLING)) != before


def test_progress_and_usage():
  calls = []
  e = engine(8)
  groups = e.generate(
    make_prompts(5), 4, key=KEY, sampling=SAMPLING, progress=lambda *x: calls.append(x)
  )
  assert [done for done, _ in calls] == [8, 16, 20] and {total for _, total in calls} == {20}
  assert e.usage.tokens == sum(len(r.tokens) for g in groups for r in g)
  assert e.usage.slot_steps % 8 == 0 and 0 < e.usage.occupancy <= 1


@pytest.mark.parametrize(("prompts", "slots"), [(1, 4), (2, 8), (3, 16), (5, 16)])
def test_a_small_wave_takes_fewer_slots(prompts, slots):
  e = engine(16)
  groups = e.generate(make_prompts(prompts), 4, key=KEY, sampling=SAMPLING)
  longest = [max(len(r.tokens) for g in groups[i : i + 4] for r in g) for i in range(0, prompts, 4)]
  last = slots if prompts <= 4 else 4
  assert e.usage.slot_steps == sum(n * s for n, s in zip(longest, [slots, last], strict=False))
  want = by_sample(engine(12).generate(make_prompts(prompts), 4, key=KEY, sampling=SAMPLING))
  assert by_sample(groups) == want


def test_slots_stay_divisible_by_the_rows_of_the_mesh():
  e = engine(16, mesh=make_mesh(dict(data=1, fsdp=8, context=1, tensor=1)))
  assert [e._slots_for(n, 4) for n in (1, 8, 9)] == [8, 8, 16]
  assert engine(6)._slots_for(1, 1) == 3 and engine(20)._slots_for(4, 4) == 20  # 5 or 10 would split a group of 4


def test_an_update_lets_go_of_the_old_parameters_first(monkeypatch):
  e, seen = engine(8), []
  adopt = e._adopt
  monkeypatch.setattr(e, "_adopt", lambda params: seen.append(e.params) or adopt(params))
  e.update(random_params())
  assert seen == [None] and e.params is not None


def test_a_released_engine_asks_for_new_parameters():
  e = engine(8)
  e.release()
  with pytest.raises(ValueError, match=r"call update\(params\)"):
    e.generate(make_prompts(1), 4, key=KEY, sampling=SAMPLING)


def test_no_prompts_is_no_work():
  assert engine(8).generate([], 4, key=KEY, sampling=SAMPLING) == []


def test_limits_are_reachable():
  """A prompt of exactly the limit, a response of exactly the limit, and neither a power of two."""
  longest = Prompt(1, np.ones(40, np.int32), "", "", "none")
  [[rollout]] = engine(2).generate([longest], 1, key=KEY, sampling=Sampling(max_tokens=12))
  assert len(rollout.tokens) == 12 and rollout.stop_reason == "length"


def test_user_errors():
  e = engine(8)
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
  with pytest.raises(ValueError, match="rollout.slots=0"):
    engine(0)
  with pytest.raises(ValueError, match="pad_id=40"):
    ENGINES["native"](MODEL, e.mesh, slots=1, max_prompt_tokens=4, max_response_tokens=4, pad_id=40)
  with pytest.raises(ValueError, match=r"call update\(params\)"):
    ENGINES["native"](
      MODEL, e.mesh, slots=1, max_prompt_tokens=4, max_response_tokens=4, pad_id=0
    ).generate([ok], 1, key=KEY, sampling=SAMPLING)


def test_buckets():
  assert [native_lib._bucket(n, 100) for n in (1, 16, 17, 64, 65)] == [16, 16, 32, 64, 100]
  assert native_lib._bucket(3, 10) == 10
  assert [native_lib._cache_entries(n, 1000) for n in (1, 128, 129, 600)] == [128, 128, 256, 1000]
