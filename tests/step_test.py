"""The trainer's programs on a tiny model: sums not means, packing, meshes, non-finite updates."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import close, limit

from fipo_jax import sharding
from fipo_jax.algorithms import make_objective
from fipo_jax.models import make_model
from fipo_jax.models.transformer import ModelConfig
from fipo_jax.train import batching, state
from fipo_jax.train.optimizer import make_optimizer, schedule
from fipo_jax.train.step import make_steps
from fipo_jax.types import Prompt, Rollout

TINY = ModelConfig(
  vocab_size=64, num_layers=2, d_model=16, d_mlp=32, num_heads=4, num_kv_heads=2, head_dim=4, rope_theta=1e4,
  norm_eps=1e-6, tie_embeddings=True, max_position=64,
)  # fmt: skip
MODEL = make_model(TINY)
WIDE = make_model(dataclasses.replace(TINY, num_heads=8, num_kv_heads=8))  # heads for a tensor axis of 8
TILED = make_model(dataclasses.replace(TINY, remat="full"))
ONE = dict(data=1, fsdp=1, context=1, tensor=1)
ONE_ITEMS = tuple(ONE.items())
# What a gradient adds up: 140 tokens, and through two layers the inner sizes of their products.
TERMS = 140 + 2 * (16 + 16 + 16 + 32) + 64


def groups(count=4, samples=4, seed=0):
  rng = np.random.default_rng(seed)
  out = []
  for p in range(count):
    prompt = Prompt(p, rng.integers(0, 64, rng.integers(2, 5)).astype(np.int32), "", "", "gym")
    group = []
    for i in range(samples):
      n = rng.integers(2, 11)
      logp = -4 - rng.random(n).astype(np.float32)
      group.append(Rollout(prompt, i, rng.integers(0, 64, n).astype(np.int32), logp, "stop", advantage=rng.normal()))
    out.append(group)
  return out


RATE = schedule(learning_rate=1e-2, warmup_updates=0, total_updates=10, kind="constant")
OPTIMIZER = make_optimizer(RATE, name="adamw", b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1, clip_norm=1.0)


@functools.lru_cache
def setup(mesh_shape=ONE_ITEMS, algorithm="fipo", model=MODEL, offload=False):
  """(mesh, abstract state, programs)"""
  shape = dict(mesh_shape)
  mesh = sharding.make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])
  abstract = state.abstract(model, OPTIMIZER, mesh, offload=offload)
  settings = dict(half_life_tokens=4.0, weight_clip=(0.8, 1.2), clip_low=0.2, clip_high=0.28, dual_clip=1.3)
  objective = make_objective(algorithm, sequence_reject_count=2, **settings)
  steps = make_steps(model, objective, OPTIMIZER, RATE, abstract, mesh, temperature=1.0, logits_mib=1)
  return mesh, abstract, steps


@functools.lru_cache
def start(model, optimizer):
  """A state on the host: on each mesh it is placed, not made anew."""
  return jax.device_get(jax.jit(lambda key: state.create(model.init(key), optimizer))(jax.random.key(0)))


def fresh(abstract, model=MODEL):
  return jax.device_put(jax.tree.map(np.copy, start(model, OPTIMIZER)), state.layout(abstract))


def place(mesh, packed, noise=0.3):
  """On the mesh, with old log-probs that differ per token, the same for a token wherever it lies."""
  b = packed.batch
  old = np.where(b.mask > 0, b.sampler_logp + noise * np.sin(b.tokens), 0).astype(np.float32)
  return sharding.to_mesh(mesh, dataclasses.replace(b, old_logp=old), None, "rows", "tokens")


def run(mesh_shape=ONE, **how):
  """One update of a fresh model: (state on the host, metrics). Shared by the tests, since compiling is what costs."""
  return _run(tuple(mesh_shape.items()), **how)


@functools.lru_cache
def _run(mesh_shape, *, row_tokens=32, micro_rows=4, num_micro=4, algorithm="fipo", model=MODEL, order=None, **how):
  mesh, abstract, steps = setup(mesh_shape, algorithm, model, **how)
  rollouts = groups()
  packed = batching.pack(
    [rollouts[i] for i in order or range(len(rollouts))], row_tokens=row_tokens, micro_rows=micro_rows,
    num_micro=num_micro,
  )  # fmt: skip
  with jax.set_mesh(mesh):
    new, metrics = steps.update(fresh(abstract, model), place(mesh, packed), packed.used)
  values = {k: float(m.value()) for k, m in metrics.items()}
  return jax.device_get(new), values


def assert_same(a, b):
  (state_a, values_a), (state_b, values_b) = a, b
  # Metrics are made of log-probs of size 5 and ratios of them.
  close(values_a, values_b, terms=TERMS, scale=5)
  # Not parameters: Adam divides by the gradient's own size, so a first step amplifies rounding where that is about 0.
  close(state_a.opt_state, state_b.opt_state, terms=TERMS)


def test_packing_and_the_cut_into_micro_batches_do_not_matter():
  """Two micro-batches of 4 rows, and two that are not used, against one of 16 rows half as long."""
  cut, whole = run(), run(row_tokens=16, micro_rows=16, num_micro=1)
  assert_same(whole, cut)


def test_the_order_of_groups_does_not_matter():
  assert_same(run(), run(order=(2, 0, 3, 1)))


def test_every_branch_of_the_loss_is_met():
  """Else invariance would say little: tokens rejected, clipped, dual-clipped, weights on and off their bounds."""
  _, values = run()
  for name in ("rejected_sequence_fraction", "clip_fraction", "dual_clip_fraction", "weight_upper_fraction",
               "weight_lower_fraction", "policy_kl"):  # fmt: skip
    assert 0 < abs(values[name]) < 0.9, name
  assert values["weight_upper_fraction"] + values["weight_lower_fraction"] < 0.95


def slow(**shape):
  """A mesh whose compile is left to `make test-all`."""
  return pytest.param(shape, marks=pytest.mark.slow)


@pytest.mark.parametrize("shape", [
  dict(data=2, context=2, tensor=2), slow(data=2, fsdp=2, tensor=2),
  slow(data=8), slow(fsdp=8), slow(context=8), slow(tensor=2),
  slow(data=2), slow(data=4), slow(fsdp=2), slow(fsdp=4), slow(context=2), slow(context=4), slow(data=4, context=2),
], ids=str)  # fmt: skip
def test_sharded_is_unsharded(shape):
  """Loss, gradients (in the moments) and every metric, on 2, 4 and 8 devices over each axis."""
  assert_same(run(), run({**ONE, **shape}, micro_rows=8 if 8 in shape.values() else 4))


@pytest.mark.parametrize("shape", [dict(fsdp=4, context=2), slow(data=2, fsdp=2, tensor=2), slow(fsdp=4)], ids=str)
def test_layers_in_tiles_sharded_are_whole_layers_unsharded(shape):
  assert_same(run(algorithm="sft"), run({**ONE, **shape}, algorithm="sft", model=TILED))


def test_moments_that_wait_on_the_host_change_no_bit():
  two = (*dict(ONE, fsdp=2).items(),)
  _, abstract, _ = setup(two, "sft", offload=True)
  here, there = (_run(two, algorithm="sft", offload=offload)[0] for offload in (False, True))
  on_host = lambda matrix: {
    x.sharding.memory_kind == "pinned_host" for x in jax.tree.leaves(abstract.opt_state) if x.ndim
    if ("fsdp" in x.sharding.spec) == matrix
  }  # fmt: skip
  assert on_host(True) == {True} and on_host(False) == {False}
  jax.tree.map(np.testing.assert_array_equal, here, there)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [dict(tensor=8), dict(tensor=4)], ids=str)
def test_sharded_over_the_heads_is_unsharded(shape):
  assert_same(run(model=WIDE), run({**ONE, **shape}, model=WIDE))


def test_bfloat16_gradients_are_summed_in_float32():
  """40 copies of a micro-batch have the mean gradient of one; added up in bfloat16 they would be percents apart."""
  model = make_model(dataclasses.replace(MODEL.config, dtype="bfloat16"))
  mesh, abstract, _ = setup()
  steps = make_steps(model, make_objective("sft"), OPTIMIZER, RATE, abstract, mesh, temperature=1.0, logits_mib=1)
  packed = batching.pack(groups(), row_tokens=32, micro_rows=16, num_micro=1)
  many = dataclasses.replace(packed, batch=jax.tree.map(lambda x: np.repeat(x, 40, axis=0), packed.batch))
  with jax.set_mesh(mesh):
    one, values = steps.update(fresh(abstract), place(mesh, many), 1)
    forty, again = steps.update(fresh(abstract), place(mesh, many), 40)
  assert {x.dtype for x in jax.tree.leaves(one.params)} == {jnp.dtype("float32")}
  close(again["grad_norm"].value(), values["grad_norm"].value(), terms=40)
  close(forty.opt_state, one.opt_state, terms=40)
  _, exact = run(algorithm="sft")
  # Each of a layer's few borders rounds to bfloat16.
  close(values["grad_norm"].value(), exact["grad_norm"], terms=8, dtype=jnp.bfloat16, room=1)


def test_gradient_is_the_global_token_mean():
  """Against jax.grad of the loss over all rollouts, one per row, divided by all response tokens."""
  packed = batching.pack(groups(), row_tokens=16, micro_rows=16, num_micro=1)
  b = jax.tree.map(lambda x: x[0], packed.batch)

  def loss(params):
    hidden = MODEL.hidden(params, b.tokens, b.positions, b.segments)
    logp = jax.nn.log_softmax(MODEL.logits(params, hidden))[:, :-1]
    taken = jnp.take_along_axis(logp, b.tokens[:, 1:, None], -1)[..., 0]
    return -jnp.sum(taken * b.mask[:, 1:]) / jnp.sum(b.mask)

  value, grads = jax.jit(jax.value_and_grad(loss))(start(MODEL, OPTIMIZER).params)
  _, values = run(algorithm="sft")
  close(values["loss"], value, terms=TERMS)
  norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in jax.tree.leaves(grads)))
  close(values["grad_norm"], norm, terms=TERMS)


def test_score_equals_inspect_and_makes_the_first_update_on_policy():
  mesh, abstract, steps = setup()
  packed = batching.pack(groups(), row_tokens=32, micro_rows=4, num_micro=4)
  s = fresh(abstract)
  with jax.set_mesh(mesh):
    batch = place(mesh, packed)
    logp_MRT = steps.score(s.params, batch, packed.used)["logp"]
    batch = dataclasses.replace(batch, old_logp=logp_MRT)
    seen = steps.inspect(s.params, jax.tree.map(lambda x: x[0], batch))
    close(seen["logp"], logp_MRT[0], terms=TERMS)
    s, first = steps.update(s, batch, packed.used)
    _, second = steps.update(s, batch, packed.used)
  assert first["future_kl_abs_mean"].value() < limit(terms=TERMS, scale=5) < second["future_kl_abs_mean"].value() / 10


def test_a_non_finite_update_is_skipped_and_counted():
  mesh, abstract, steps = setup()
  bad = groups()
  bad[1][2].advantage = np.nan
  with jax.set_mesh(mesh):
    before = jax.device_get(fresh(abstract))
    packed = batching.pack(bad, row_tokens=32, micro_rows=4, num_micro=4)
    after, values = steps.update(fresh(abstract), place(mesh, packed), packed.used)
    after = jax.device_get(after)
    assert int(after.skipped) == 1 and int(after.updates) == 0 and float(values["skipped_updates"].value()) == 1
    assert float(values["empty_updates"].value()) == 0
    kept = lambda s: jax.tree.leaves((s.params, s.opt_state))  # a NaN in Adam's moments would spoil every later update
    for x, y in zip(kept(before), kept(after), strict=True):
      np.testing.assert_array_equal(x, y)
    packed = batching.pack(groups(), row_tokens=32, micro_rows=4, num_micro=4)
    good, _ = steps.update(jax.device_put(after, state.layout(abstract)), place(mesh, packed), packed.used)
  assert int(good.skipped) == 0 and int(good.updates) == 1


def test_a_mini_batch_without_a_token_changes_nothing():
  """As when all its responses were rejected: not even weight decay."""
  mesh, abstract, steps = setup()
  packed = batching.pack(groups(), row_tokens=32, micro_rows=4, num_micro=4)
  with jax.set_mesh(mesh):
    before = jax.device_get(fresh(abstract))
    batch = place(mesh, packed)
    batch = dataclasses.replace(batch, mask=jnp.zeros_like(batch.mask))
    after, values = steps.update(fresh(abstract), batch, packed.used)
    after = jax.device_get(after)
  assert int(after.skipped) == 1 and int(after.updates) == 0 and float(values["skipped_updates"].value()) == 1
  assert float(values["empty_updates"].value()) == 1
  jax.tree.map(np.testing.assert_array_equal, after.params, before.params)


def test_scores_are_at_the_temperature_of_the_sampler():
  """Half the temperature doubles logits, as does twice the scale of the norm before them."""
  mesh, abstract, steps = setup()
  how = dict(temperature=0.5, logits_mib=1)
  cold = make_steps(MODEL, make_objective("sft"), OPTIMIZER, lambda _: 0.0, abstract, mesh, **how)
  packed = batching.pack(groups(), row_tokens=32, micro_rows=4, num_micro=4)
  with jax.set_mesh(mesh):
    params, batch = fresh(abstract).params, place(mesh, packed)
    got = cold.score(params, batch, packed.used)["logp"]
    twice = params | {"final_norm": jax.tree.map(lambda x: 2 * x, params["final_norm"])}
    close(got, steps.score(twice, batch, packed.used)["logp"], terms=TERMS)
    assert float(jnp.max(jnp.abs(got - steps.score(params, batch, packed.used)["logp"]))) > 1e-3
