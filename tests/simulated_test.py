"""The simulated device follows the rules of the real one: the same logs, step by step, for the same lengths."""

import dataclasses
import itertools
import resource
import time
import types

import jax
import numpy as np
import pytest

from fipo_jax.models import PRESETS, make_model
from fipo_jax.pods.iteration import SimulatedEngine
from fipo_jax.pods.simulated import Clock, Lengths, Simulated
from fipo_jax.rollout import ENGINES, Sampling, device, serving
from fipo_jax.rollout import capacity as capacity_lib
from fipo_jax.rollout.capacity import Capacity, Shape
from fipo_jax.sharding import make_mesh
from fipo_jax.types import Prompt

STOPS = (1, 21)  # a random model draws one of them every 20 tokens
MODEL = make_model(dataclasses.replace(
  PRESETS["tiny"], vocab_size=40, num_layers=1, d_model=8, d_mlp=8, num_heads=2, num_kv_heads=1, head_dim=4
))  # fmt: skip
SAMPLING = Sampling(max_tokens=40, stop_ids=STOPS, temperature=1.0)
RESPONSE, PROMPT, PAGE = 40, 24, 4


class Free:
  """Costs nothing but a second a token step."""

  token_steps = staticmethod(lambda steps, slots, context_D, growth_D: float(steps))
  prefill = look = resize = staticmethod(lambda *_: 0.0)


def prompts(n):
  rng = np.random.default_rng(1)
  return [Prompt(i, rng.integers(1, 40, rng.integers(1, PROMPT + 1)).astype(np.int32), "", "", "") for i in range(n)]


@pytest.fixture(scope="module")
def params():
  leaves, tree = jax.tree.flatten(MODEL.abstract())
  keys = jax.random.split(jax.random.key(3), len(leaves))
  return tree.unflatten([0.02 * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)])


def recorded(kind, monkeypatch):
  """The logs of every run of devices of this kind, as they are made."""
  logs, run = [], kind.run

  def keep(self, *args):
    logs.append(run(self, *args))
    return logs[-1]

  monkeypatch.setattr(kind, "run", keep)
  return logs


@pytest.mark.parametrize(("shards", "slots", "samples", "width", "cache_tokens", "decide"), [
  pytest.param(1, 8, 40, 4, 0, 1, marks=pytest.mark.slow),  # a queue, then half the slots
  (2, 16, 24, 4, 320, 4),  # pages run out: responses are put back
  pytest.param(1, 6, 30, 1, 0, 1, marks=pytest.mark.slow),  # one sample of a prompt: no shared pages
])  # fmt: skip
def test_logs_are_those_of_the_real_device(params, monkeypatch, shards, slots, samples, width, cache_tokens, decide):
  if not cache_tokens and width > 1:
    monkeypatch.setattr(capacity_lib, "SMALLEST_POOL", 0)  # pools grow
  mesh = make_mesh(dict(data=1, fsdp=shards, context=1, tensor=1), jax.devices()[:shards])
  real = ENGINES["native"](
    MODEL, mesh, slots=slots, max_prompt_tokens=PROMPT, max_response_tokens=RESPONSE, pad_id=0, page_tokens=PAGE,
    cache_tokens=cache_tokens, continuous_decode_steps=decide,
  )  # fmt: skip
  real.update(params)
  key, asked = jax.random.key(5), prompts(samples // width)
  logs = recorded(device.Device, monkeypatch)
  groups = real.generate(asked, width, key=key, sampling=SAMPLING)
  every = [r for group in groups for r in group]
  length = {tuple(k): len(r.tokens) for k, r in zip(serving._sample_keys(every), every, strict=True)}
  if cache_tokens:
    assert real.usage.interrupted > 0
  ends = {r.stop_reason for r in every}
  assert "stop" in ends
  simulated = SimulatedEngine(
    real.capacity, type("Costs", (Free,), {"decide": decide}),
    lambda keys: np.array([length[tuple(k)] for k in keys]), STOPS[0], Clock(),
  )
  theirs = recorded(Simulated, monkeypatch)
  answers = simulated.generate(asked, width, key=key, sampling=SAMPLING)
  assert [len(r.tokens) for g in answers for r in g] == [len(r.tokens) for r in every]
  assert simulated.usage.interrupted == real.usage.interrupted
  assert len(theirs) == len(logs)
  for mine, other in zip(theirs, logs, strict=True):
    for name in (f.name for f in dataclasses.fields(mine) if f.name not in ("token_CS", "logp_CS", "raw_CS")):
      np.testing.assert_array_equal(getattr(mine, name), getattr(other, name), err_msg=name)
  assert simulated.clock.seconds["decode"] == sum(int(log.steps) for log in logs)
  assert simulated.clock.busy_slot_s == simulated.usage.tokens


def test_a_sample_has_its_length_from_its_key():
  lengths = Lengths((10.0, 20.0, 30.0, 40.0))
  key = np.random.default_rng(0).integers(0, 2**32, (4000, 2), dtype=np.uint32)
  drawn = lengths(key)
  np.testing.assert_array_equal(drawn[::-1], lengths(key[::-1]))
  assert drawn.min() == 10 and drawn.max() == 40 and abs(drawn.mean() - 25) < 0.5
  following = np.stack([np.zeros(4000, np.uint32), np.arange(4000, dtype=np.uint32)], 1)  # no pattern of its own
  assert abs(lengths(following).mean() - 25) < 0.5
  np.testing.assert_array_equal(Lengths((0.2,))(key[:2]), [1, 1])


def test_slots_of_the_fullest_shard_set_the_pace():
  """Two shards of 2 slots; one with 3 + 4 tokens, one with 9: a step costs what 9 + 1 tokens do."""
  seen = []
  costs = types.SimpleNamespace(
    token_steps=lambda steps, shape, context_D, growth_D: (
      seen.append((steps, shape.slots, *context_D, *growth_D)) or 1.0
    ),
    look=lambda slots: 0.5, prefill=lambda *_: 0.0,
  )  # fmt: skip
  clock = Clock()
  made = Simulated(
    shards=2, page=4, most_slots=2, stop_id=7, costs=costs, clock=clock, lengths_of=lambda k: np.full(len(k), 5)
  )
  made.allocate(Shape(2, 20, 0, 1))
  queue = device.empty_work(4) | {
    "uid": np.array([0, 1, 2, -1]), "length": np.array([3, 4, 9, 0]), "tail": np.full(4, -1), "limit": np.full(4, 9)
  }
  log = made.run(queue, None, np.array([2, 1]), None, False, 0, False, 0)
  assert seen == [(5, 2, 9, 10, 2, 1)] and int(log.steps) == 5
  assert dict(clock.seconds) == {"decode": 1.0, "look": 0.5} and (clock.busy_slot_s, clock.slot_s) == (3.0, 4.0)
  np.testing.assert_array_equal(log.token_CS[4], [7, 7, 7, 0])


@pytest.mark.parametrize("own", [20, 3])
def test_decisions_come_once_in_a_block_that_the_pages_can_hold(own):
  """One ends after 5 of 12 tokens, in the second block, and idles to its end; few pages make blocks shorter."""
  seen = []
  costs = types.SimpleNamespace(
    token_steps=lambda n, slots, context_D, growth_D: seen.append((n, int(growth_D[0]))) or 1.0,
    look=lambda slots: 0.0,
  )  # fmt: skip
  made = Simulated(
    shards=1, page=4, most_slots=2, stop_id=7, costs=costs, clock=Clock(), decide=4,
    lengths_of=lambda keys: np.where(keys[:, 0] == 0, 5, 12),
  )  # fmt: skip
  made.allocate(Shape(2, own, 0, 1))
  queue = device.empty_work(2) | {
    "uid": np.array([0, 1]), "tail": np.full(2, -1), "limit": np.full(2, 12),
    "key": np.array([[0, 0], [1, 0]], np.uint32),
  }  # fmt: skip
  log = made.run(queue, None, np.array([2]), None, False, 0, False, 0)
  if own == 20:
    assert seen == [(4, 2), (1, 2), (3, 1), (4, 1)] and int(log.steps) == 12
    np.testing.assert_array_equal((log.uid_CS[:, 0] >= 0).sum(), 5)
  else:  # 3 pages of 4: both take one, then neither can be sure of 4 more
    assert seen == [(4, 2)] and bool(log.short_D[0])


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3])  # of the need; 0: no bound
def test_every_call_comes_to_an_end(share):
  """One slot or many, prompts of any width, pages longer than a response: nobody waits for what nobody gives back."""
  for slots, shards, width, page, prompt in itertools.product((1, 2, 5, 8), (1, 3), (1, 2, 4), (4, 64), (1, 9, 24)):
    c = Capacity(slots, shards, 24, 12, page, 0, 2, resizes=slots != 5)
    if share:
      c = dataclasses.replace(c, budget=max(int(share * slots * c.longest), c.smallest_budget(width)))
    rng = np.random.default_rng(slots)
    made = Simulated(
      shards=shards, page=page, most_slots=slots, stop_id=1, costs=Free, clock=Clock(),
      lengths_of=lambda keys, rng=rng: rng.integers(1, 20, len(keys)),
    )  # fmt: skip
    asked = [Prompt(i, np.full(prompt, 3, np.int32), "", "", "none") for i in range(7)]
    call = serving.Call(made, c, asked, width, jax.random.key(0), Sampling(max_tokens=12, stop_ids=(1,)))
    looks = itertools.count()

    def progress(done, total, looks=looks, said=(slots, shards, width, page, prompt)):
      assert next(looks) < 1000, said

    call.serve(progress, None)
    assert all(r.finished for group in call.groups for r in group)


def test_few_tokens_are_prefilled_again():
  """65,536 tokens in a quarter of the pages that 32 slots need at their longest: how many, and how many token steps.

  Every response is as long as it may be, which nobody knows: at best pages hold some 15 of them at a time, each at
  another length, and 4,300 steps would do. With one page kept for each, 34,000 tokens are prefilled again.
  """
  capacity = Capacity(32, 1, 32, 256, 16, 144, 24, resizes=True)
  clock = Clock()
  made = Simulated(
    shards=1, page=16, most_slots=32, stop_id=1, costs=Free, clock=clock,
    lengths_of=lambda keys: np.full(len(keys), 999),
  )  # fmt: skip
  asked = [Prompt(i, np.full(20, 3, np.int32), "", "", "none") for i in range(16)]
  call = serving.Call(made, capacity, asked, 16, jax.random.key(0), Sampling(max_tokens=256, stop_ids=(1,)))
  call.serve(lambda done, total: None, None)
  assert call.usage.tokens == 16 * 16 * 256
  again = call.usage.prefill_tokens - 16 * 19
  assert 0 < again < 0.4 * call.usage.tokens and clock.seconds["decode"] < 7600, (again, clock.seconds)


@pytest.mark.slow
def test_the_host_keeps_up_with_a_pod():
  """The real host code through 512 x 16 responses of up to 20,480 tokens in 1,280 slots: time and memory."""
  capacity = Capacity(80, 16, 2048, 20_480, 64, 0, 64, resizes=False)
  rng = np.random.default_rng(0)
  lengths = lambda keys: np.clip(rng.lognormal(np.log(7000), 0.7, len(keys)), 4, None).astype(int)
  made = Simulated(
    shards=16, page=64, most_slots=80, stop_id=1, costs=type("Costs", (Free,), {"decide": 16}), clock=Clock(),
    lengths_of=lengths, decide=16,
  )  # fmt: skip
  asked = [Prompt(i, rng.integers(2, 40, 150).astype(np.int32), "", "", "none") for i in range(512)]
  began = time.process_time()
  call = serving.Call(made, capacity, asked, 16, jax.random.key(0), Sampling(max_tokens=20_480, stop_ids=(1,)))
  call.serve(lambda done, total: None, None)
  assert call.usage.tokens > 5e7 and call.usage.decode_programs <= 6
  assert time.process_time() - began < 60  # 16 s, a quarter of it the device's; a slow machine takes longer
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 12 * 2**20
