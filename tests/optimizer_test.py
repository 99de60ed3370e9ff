"""Schedule values by hand, one AdamW step against the formula, what Muon does to matrices and what to the rest."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from tolerances import close

from fipo_jax import sharding
from fipo_jax.models import PRESETS, make_model
from fipo_jax.train import state
from fipo_jax.train.optimizer import MUON_UPDATE_RMS, make_optimizer, schedule

MODEL = make_model(
  dataclasses.replace(PRESETS["tiny"], num_layers=2, d_model=32, d_mlp=64, num_heads=4, num_kv_heads=2, head_dim=8)
)


def optimizer(name, learning_rate=0.1, weight_decay=0.0):
  rate = schedule(learning_rate=learning_rate, warmup_updates=0, total_updates=1, kind="constant")
  return make_optimizer(
    rate, name=name, b1=0.9, b2=0.99, eps=1e-8, weight_decay=weight_decay, clip_norm=1.0,
    matrix_axes=MODEL.matrix_axes(),
  )  # fmt: skip


def test_warmup_counts_every_update():
  rate = schedule(learning_rate=1.0, warmup_updates=4, total_updates=100, kind="constant")
  np.testing.assert_array_equal([float(rate(u)) for u in (0, 1, 3, 50)], [0.25, 0.5, 1.0, 1.0])


def test_no_warmup_starts_at_full_rate():
  rate = schedule(learning_rate=0.5, warmup_updates=0, total_updates=10, kind="constant")
  assert float(rate(0)) == 0.5


def test_cosine_falls_to_zero_at_the_last_update():
  rate = schedule(learning_rate=1.0, warmup_updates=2, total_updates=12, kind="cosine")
  close([float(rate(u)) for u in (1, 2, 7, 12)], [1.0, 1.0, 0.5, 0.0])


def test_unknown_schedule_is_named():
  with pytest.raises(ValueError, match="optimizer.schedule='step'"):
    schedule(learning_rate=1.0, warmup_updates=2, total_updates=12, kind="step")


def test_one_step_is_clipped_adamw():
  chain = optimizer("adamw", weight_decay=0.5)
  p, g = np.array([1.0, -2.0], np.float32), np.array([30.0, 40.0], np.float32)
  update, _ = chain.update(g, chain.init(p), p)
  clipped = g / 50.0
  m, v = 0.1 * clipped / (1 - 0.9), 0.01 * clipped**2 / (1 - 0.99)
  close(update, -0.1 * (m / (np.sqrt(v) + 1e-8) + 0.5 * p), terms=10)  # one after another


def test_unknown_optimizer_is_named():
  with pytest.raises(ValueError, match="optimizer.name='sgd'"):
    optimizer("sgd")


@functools.cache
def start():
  return jax.device_get(jax.jit(MODEL.init)(jax.random.key(0)))


def first_update(chain, grads, params):
  return jax.jit(lambda grads, params: chain.update(grads, chain.init(params), params)[0])(grads, params)


def test_muon_makes_every_matrix_update_orthogonal_and_leaves_the_rest_to_adam():
  params, rng = start(), np.random.default_rng(1)
  grads = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)
  muon, adamw = (first_update(optimizer(name), grads, params) for name in ("muon", "adamw"))
  c = MODEL.config
  for path, inner in (("attention/q_DHh", c.d_model), ("attention/o_DHh", c.d_model), ("mlp/down_DF", c.d_mlp)):
    part, name = path.split("/")
    for one in np.asarray(muon["layers"][part][name]):
      values = np.linalg.svd(one.reshape(c.d_model, -1), compute_uv=False)
      largest = 0.1 * MUON_UPDATE_RMS * np.sqrt(inner)  # each singular value of an orthogonal update
      # Newton-Schulz leaves the few tiny ones of a square matrix behind.
      assert 0.6 * largest < np.quantile(values, 0.15) and values.max() < 1.3 * largest, path
  for find in (lambda t: t["embed_VD"], lambda t: t["layers"]["attention"]["q_bias_Hh"]):
    # The first step of Adam goes against the gradient's sign, all entries equally far but the tiniest.
    update, before = np.asarray(find(muon)), np.asarray(find(grads))
    np.testing.assert_array_equal(np.sign(update), -np.sign(before))
    np.testing.assert_array_equal(np.sign(update), np.sign(find(adamw)))
    assert np.median(np.abs(update)) > 0.8 * np.abs(update).max()


@pytest.mark.parametrize(("name", "moments"), [("adamw", 2), ("muon", 1)])
def test_moments_are_sharded_as_their_parameters(name, moments):
  mesh = sharding.make_mesh({"data": 1, "fsdp": 4, "context": 1, "tensor": 2})
  abstract = state.abstract(MODEL, optimizer(name), mesh)
  wanted = abstract.params["layers"]["mlp"]["up_DF"].sharding
  found = [
    leaf.sharding
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract.opt_state)
    if jax.tree_util.keystr(path).endswith("['up_DF']")
  ]
  assert not wanted.is_fully_replicated and found == [wanted] * moments
  counters = [x for x in jax.tree.leaves(abstract.opt_state) if x.ndim == 0]
  assert counters and all(x.sharding.is_fully_replicated for x in counters)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_part_of_the_parameters_may_have_its_own_rate(name):
  params = start()
  grads = jax.tree.map(lambda p: 0.01 * np.cos(7 * p), params)
  rate = schedule(learning_rate=0.1, warmup_updates=0, total_updates=1, kind="constant")
  how = dict(name=name, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1, clip_norm=1.0, matrix_axes=MODEL.matrix_axes())
  plain, scaled = make_optimizer(rate, **how), make_optimizer(rate, **how, scales={"final_norm": 10.0})
  ours, same = (first_update(chain, grads, params) for chain in (scaled, plain))
  close(ours["final_norm"]["scale_D"], 10 * same["final_norm"]["scale_D"])
  np.testing.assert_array_equal(ours["embed_VD"], same["embed_VD"])


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("momentum_dtype", ["bfloat16", "float32"])
def test_moments_keep_their_dtypes_under_float32_gradients(name, dtype, momentum_dtype):
  """Else the second update would be another program, on arrays that cannot be donated. The first moment's is chosen."""
  rate = schedule(learning_rate=0.1, warmup_updates=0, total_updates=1, kind="constant")
  chain = make_optimizer(
    rate, name=name, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.0, clip_norm=1.0, momentum_dtype=momentum_dtype,
    matrix_axes=MODEL.matrix_axes(),
  )  # fmt: skip
  cast = lambda dtype: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), MODEL.abstract())
  before = jax.eval_shape(chain.init, cast(dtype))
  _, after = jax.eval_shape(chain.update, cast("float32"), before, cast(dtype))
  kinds = lambda tree: [x.dtype for x in jax.tree.leaves(tree)]
  assert kinds(after) == kinds(before)
  assert momentum_dtype in map(str, kinds(before))


def test_the_second_step_remembers_the_clipped_first_by_b1_and_b2():
  chain = optimizer("adamw")
  p, first, second = (np.array(x, np.float32) for x in ([1.0, -2.0], [0.6, 0.8], [-0.6, 0.1]))
  _, state_1 = chain.update(50 * first, chain.init(p), p)
  update, _ = chain.update(second, state_1, p)
  m, v = 0.9 * 0.1 * first + 0.1 * second, 0.99 * 0.01 * first**2 + 0.01 * second**2
  # The bias corrections lose digits: 1 - 0.99² is a hundredth of what is subtracted.
  close(update, -0.1 * m / (1 - 0.9**2) / np.sqrt(v / (1 - 0.99**2)), room=8 * 100)
