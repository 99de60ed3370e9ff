"""The decoder against published-implementation logits, its own decode path, packing, sharding and remat."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from prefilled import prefilled
from tolerances import close

from fipo_jax.models import PRESETS, hf, layers, make_model, transformer
from fipo_jax.models.logprobs import token_logprobs
from fipo_jax.sharding import make_mesh, to_mesh

GOLDEN = pathlib.Path(__file__).parent / "golden"
NAMES = ("qwen2/tied_mqa", "qwen2/untied_gqa", "qwen3/tied", "qwen3/untied_gqa", "qwen2_yarn/factor4")
ONE = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}
SMALL = dataclasses.replace(
  PRESETS["tiny"], vocab_size=32, num_layers=2, d_model=16, d_mlp=24, num_heads=4, num_kv_heads=2, head_dim=4
)

SMALL_QWEN3 = dataclasses.replace(SMALL, family="qwen3", head_dim=6)


def terms(config, tokens):
  """Numbers that are added up on the way through a model: each layer's inner sizes, one after another."""
  return config.num_layers * (3 * config.d_model + config.d_mlp + tokens)


TERMS = terms(SMALL, 8)


@functools.cache
def golden(name):
  model = make_model(hf.read_config(GOLDEN / name))
  params = hf.load(GOLDEN / name, model, make_mesh(ONE, jax.devices()[:1]))
  return model, params, dict(np.load(GOLDEN / name / "golden.npz"))


def positions_like(tokens_RT):
  return np.broadcast_to(np.arange(tokens_RT.shape[1], dtype=np.int32), tokens_RT.shape)


def random_params(model, std=0.3):
  """Parameters large enough that every part of the model matters."""
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: rng.normal(0, std, x.shape).astype(x.dtype), model.abstract())


@pytest.mark.parametrize("name", NAMES)
def test_golden_logits_logprobs_entropy(name):
  model, params, want = golden(name)
  tokens_RT, mask_RT = want["token_ids"], want["mask"].astype(np.int32)
  real = mask_RT == 1

  @jax.jit
  def run(params, tokens_RT, mask_RT):
    hidden_RTD = model.hidden(params, tokens_RT, positions_like(tokens_RT), mask_RT)
    score = token_logprobs(hidden_RTD, model.head(params), tokens_RT, mask_RT, logits_mib=1)
    return model.logits(params, hidden_RTD), *score

  logits, logp, entropy = map(np.asarray, run(params, tokens_RT, mask_RT))
  size = dict(terms=terms(model.config, tokens_RT.shape[1]), scale=np.abs(want["logits"][real]).max())
  close(logits[real], want["logits"][real], **size)
  close(logp[real], want["token_logprob"][real], **size)
  close(entropy[:, 1:][real[:, 1:]], want["entropy"][:, :-1][real[:, 1:]], **size)


def dense(at_S):
  """Attention of one token per slot over a cache (k, v) [L, S, M, K, h]: written at entry at_S, which it sees last."""

  def attend(cache, layer, q_SHh, k_SKh, v_SKh):
    (S, H, h), K = q_SHh.shape, k_SKh.shape[1]
    k, v = (x.at[layer, jnp.arange(S), at_S].set(new) for x, new in zip(cache, (k_SKh, v_SKh), strict=True))
    exact = dict(precision="highest")
    scores = jnp.einsum("skgh,smkh->skgm", q_SHh.reshape(S, K, H // K, h) / h**0.5, k[layer], **exact)
    seen_SM = jnp.arange(k.shape[2]) <= at_S[:, None]
    weights = jax.nn.softmax(jnp.where(seen_SM[:, None, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("skgm,smkh->skgh", weights, v[layer], **exact).reshape(S, H, h), (k, v)

  return attend


def one_token(model, params, token_S, position_S, cache):
  return model.decode(params, token_S, position_S, cache, dense(position_S))


def filled(model, params, tokens_SM, at_S):
  """The cache of the tokens before at_S, with nonsense in every other entry."""
  kv = prefilled(model, params, tokens_SM, positions_like(tokens_SM), np.ones_like(tokens_SM))
  old = (np.arange(tokens_SM.shape[1]) < at_S[:, None])[None, :, :, None, None]
  return tuple(jnp.where(old, x, 7.0) for x in kv)


@pytest.mark.parametrize(("name", "unstacked"), [
  *((name, unstacked) for name in NAMES[:2] for unstacked in (True, False)),
  ("qwen3/untied_gqa", True), ("qwen3/tied", False), ("qwen2_yarn/factor4", True),
  *(pytest.param(*case, marks=pytest.mark.slow) for case in (
    ("qwen3/untied_gqa", False), ("qwen3/tied", True), ("qwen2_yarn/factor4", False))),
])  # fmt: skip
def test_golden_greedy_continuation(name, unstacked):
  model, params, want = golden(name)
  S, M = want["greedy"].shape
  n = 12
  params = model.unstack(params) if unstacked else params
  tokens = jnp.zeros((S, M), jnp.int32).at[:, :n].set(want["greedy"][:, :n])

  def step(i, carry):
    tokens, cache = carry
    hidden_SD, cache = one_token(model, params, tokens[:, i], jnp.full((S,), i), cache)
    token = jnp.argmax(model.logits(params, hidden_SD), axis=-1).astype(jnp.int32)
    return tokens.at[:, i + 1].set(token), cache

  carry = (tokens, filled(model, params, tokens, np.full(S, n - 1)))
  tokens = jax.jit(lambda carry: jax.lax.fori_loop(n - 1, M - 1, step, carry))(carry)[0]
  np.testing.assert_array_equal(tokens, want["greedy"])


@pytest.mark.parametrize("unstacked", [True, False])
def test_decode_equals_hidden_at_staggered_positions(unstacked):
  """Slot 0 continues at entry 3, slot 1 at entry 5 of its cache: each must see its own past only."""
  model = make_model(SMALL)
  params = random_params(model)
  tokens = np.random.default_rng(0).integers(0, 32, (2, 6)).astype(np.int32)
  rows = (tokens, positions_like(tokens), np.ones_like(tokens))
  full, kv = jax.jit(model.hidden)(params, *rows), prefilled(model, params, *rows)
  at = np.array([3, 5], np.int32)
  cache = filled(model, params, tokens, at)
  params = model.unstack(params) if unstacked else params
  got, written = jax.jit(functools.partial(one_token, model))(params, tokens[[0, 1], at], at, cache)
  close(got, full[np.arange(2), at], terms=TERMS)
  for new, expected in zip(written, kv, strict=True):
    close(new[:, [0, 1], at], expected[:, [0, 1], at], terms=TERMS)


@pytest.mark.parametrize("config", [SMALL, SMALL_QWEN3], ids=["qwen2", "qwen3"])
def test_trainer_and_sampler_round_queries_and_keys_alike(config):
  """In bfloat16, by programs of their own: a sum in another order may end in the next number, but seldom does."""
  model = make_model(dataclasses.replace(config, dtype="bfloat16", d_model=64, head_dim=16))
  tree = jax.tree.map(lambda x: x[0], random_params(model)["layers"])
  x_SD, position_S = np.random.default_rng(1).normal(size=(64, 64)).astype(jnp.bfloat16), np.arange(64)

  def project(tree, x, position, form):
    block = transformer._parts(model.config, form)[0]
    return nnx.merge(block, tree).before(x, *model._rotation(position))

  rows = jax.jit(functools.partial(project, form="stored"))(tree, x_SD[None], position_S[None])
  slots = jax.jit(functools.partial(project, form="flat"))(layers.flatten(tree), x_SD, position_S)
  for one, other in zip(rows, slots, strict=True):
    assert np.mean(np.asarray(one[0]) != np.asarray(other)) < 0.02


def test_unstacked_layers_change_no_number():
  model = make_model(SMALL)
  params, (_, inputs) = random_params(model), losses(model)
  unstacked = model.unstack(params)
  assert len(unstacked["layers"]) == 2 and {"qkv_YD", "o_DX", "qkv_bias_Kxh"} == set(
    unstacked["layers"][0]["attention"]
  )
  axes = model.unstacked_axes()
  jax.tree.map(lambda x, names: None if len(names) == x.ndim else pytest.fail(str(names)), unstacked, axes)
  run = functools.partial(prefilled, model)
  close(run(unstacked, *inputs), run(params, *inputs), terms=TERMS)
  k, v = run(params, *inputs)
  assert k.shape == v.shape == (2, 4, 8, 2, 4) and float(jnp.max(jnp.abs(k[0] - k[1]))) > 0.1


def test_decode_updates_the_cache_in_place():
  model = make_model(dataclasses.replace(SMALL, num_layers=8))
  S, M = 8, 1024
  cache = jax.ShapeDtypeStruct((8, S, M, 2, 4), jnp.float32)
  i32 = jax.ShapeDtypeStruct((S,), jnp.int32)
  step = jax.jit(functools.partial(one_token, model), donate_argnums=3)
  memory = step.lower(model.abstract(), i32, i32, (cache, cache)).compile().memory_analysis()
  one = 8 * S * M * 2 * 4 * 4
  assert memory.alias_size_in_bytes >= 2 * one
  assert memory.temp_size_in_bytes < one


def test_packed_equals_alone():
  model = make_model(SMALL)
  params = random_params(model)
  tokens = np.random.default_rng(0).integers(0, 32, (1, 9)).astype(np.int32)
  segments = np.array([[1, 1, 1, 2, 2, 2, 2, 0, 0]], np.int32)
  positions = np.array([[0, 1, 2, 0, 1, 2, 3, 0, 0]], np.int32)
  hidden = jax.jit(model.hidden)
  packed = hidden(params, tokens, positions, segments)
  for start, stop in ((0, 3), (3, 7)):  # each alone in a row of the same length
    room = [(0, 0), (0, 9 - (stop - start))]
    alone = hidden(params, *(np.pad(x[:, start:stop], room) for x in (tokens, positions, segments)))
    close(packed[:, start:stop], alone[:, : stop - start], terms=TERMS)
  assert np.isfinite(packed).all()


def losses(model):
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, model.config.vocab_size, (4, 8)).astype(np.int32)
  segments = np.repeat(np.array([[1, 1, 1, 2, 2, 2, 2, 0]], np.int32), 4, axis=0)
  positions = np.repeat(np.array([[0, 1, 2, 0, 1, 2, 3, 0]], np.int32), 4, axis=0)

  def loss(params, tokens, positions, segments):
    hidden_RTD = model.hidden(params, tokens, positions, segments)
    logp, _ = token_logprobs(hidden_RTD, model.head(params), tokens, segments)
    return -jnp.sum(logp)

  return jax.jit(jax.value_and_grad(loss)), (tokens, positions, segments)


@functools.cache
def unsharded(model):
  step, inputs = losses(model)
  return step(random_params(model), *inputs)


@pytest.mark.parametrize(("config", "remat"), [
  (SMALL, "none"), (dataclasses.replace(SMALL, tie_embeddings=False), "none"), (SMALL_QWEN3, "full"),
], ids=["tied", "untied", "qwen3"])  # fmt: skip
def test_sharded_equals_unsharded(config, remat):
  """With remat "full" each device runs its own heads by itself: of a norm over them all share the scale."""
  want, model = unsharded(make_model(config)), make_model(dataclasses.replace(config, remat=remat))
  params, (step, inputs) = random_params(model), losses(model)
  mesh = make_mesh({"data": 2, "fsdp": 2, "context": 1, "tensor": 2})
  with jax.set_mesh(mesh):
    placed = jax.tree.map(jax.device_put, params, model.shardings(mesh))
    assert placed["layers"]["mlp"]["up_DF"].sharding.shard_shape((2, 16, 24)) == (2, 8, 12)
    got = step(placed, *to_mesh(mesh, inputs, "rows", "tokens"))
  close(got, want, terms=TERMS)


def test_sharded_decode_equals_unsharded():
  model = make_model(SMALL)
  params = random_params(model)
  S, M = 4, 6
  rng = np.random.default_rng(0)
  cache = tuple(rng.normal(size=(2, 2, S, M, 2, 4)).astype(np.float32))
  inputs = (rng.integers(0, 32, S).astype(np.int32), np.array([1, 2, 3, 4], np.int32), cache)
  step = jax.jit(functools.partial(one_token, model))
  want = step(params, *jax.tree.map(jnp.asarray, inputs))
  mesh = make_mesh({"data": 2, "fsdp": 2, "context": 1, "tensor": 2})
  with jax.set_mesh(mesh):
    got = step(jax.tree.map(jax.device_put, params, model.shardings(mesh)), *jax.tree.map(jnp.asarray, inputs))
  close(got, want, terms=TERMS)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_no_number(remat):
  model = make_model(dataclasses.replace(SMALL, remat=remat))
  step, inputs = losses(model)
  close(step(random_params(model), *inputs), unsharded(make_model(SMALL)), terms=TERMS)


def test_full_remat_keeps_less():
  def temp(remat):
    model = make_model(dataclasses.replace(SMALL, num_layers=12, remat=remat))
    i32 = jax.ShapeDtypeStruct((4, 64), jnp.int32)
    loss = lambda params, *rows: jnp.sum(model.hidden(params, *rows))
    return jax.jit(jax.grad(loss)).lower(model.abstract(), i32, i32, i32).compile().memory_analysis().temp_size_in_bytes

  assert temp("full") < 0.5 * temp("none")


def test_bfloat16_is_near_and_cast_changes_nothing():
  exact, model = make_model(SMALL), make_model(dataclasses.replace(SMALL, dtype="bfloat16"))
  params, (_, inputs) = random_params(model, std=0.1), losses(model)
  run = jax.jit(model.hidden)
  hidden = run(params, *inputs)
  assert hidden.dtype == jnp.bfloat16
  # Six borders a layer round to bfloat16.
  close(hidden, jax.jit(exact.hidden)(params, *inputs), terms=2 * 6, dtype=jnp.bfloat16, room=1)
  cast = jax.jit(model.cast)(params)
  assert {x.dtype for x in jax.tree.leaves(cast)} == {jnp.dtype(jnp.bfloat16)}
  np.testing.assert_array_equal(np.asarray(run(cast, *inputs)), np.asarray(hidden))


@pytest.mark.parametrize("table_dtype", ["float32", "bfloat16"])
def test_embedding_gradient_adds_up_in_float32(table_dtype):
  tokens = jnp.full((1, 300), 3)
  total = lambda table: jnp.sum(layers.lookup(table, tokens, "bfloat16").astype(jnp.float32))
  grad = jax.jit(jax.grad(total))(jnp.zeros((8, 4), table_dtype))
  assert grad.dtype == table_dtype
  np.testing.assert_array_equal(grad[3], 300.0)  # in bfloat16 the sum would stop at 256


@pytest.mark.parametrize("lead", [(3,), (2, 5)])
@pytest.mark.parametrize(("equation", "x", "w"), [
  ("...d,dhe->...he", (8,), (8, 2, 4)), ("...he,dhe->...d", (2, 4), (8, 2, 4)),
  ("...d,df->...f", (8,), (8, 6)), ("...f,df->...d", (6,), (8, 6)),
])  # fmt: skip
def test_matmul_has_the_gradients_of_einsum(equation, x, w, lead):
  rng = np.random.default_rng(0)
  x, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((*lead, *x), w))
  einsum = functools.partial(jnp.einsum, precision="highest")
  d_y = jnp.asarray(rng.normal(size=jax.eval_shape(functools.partial(einsum, equation), x, w).shape), jnp.float32)

  def results(product):
    y, pull = jax.vjp(functools.partial(product, equation), x, w)
    return y, pull(d_y)

  close(*(jax.jit(results, static_argnums=0)(product) for product in (layers.matmul, einsum)), terms=10)


def test_init_abstract_and_axes_agree():
  for config in (SMALL, dataclasses.replace(SMALL_QWEN3, tie_embeddings=False, param_dtype="bfloat16")):
    model = make_model(config)
    assert jax.eval_shape(model.init, jax.random.key(0)) == model.abstract()
    ranks = jax.tree.map(lambda x, axes: len(axes) == x.ndim, model.abstract(), model.logical_axes())
    assert all(jax.tree.leaves(ranks))


def test_norms_of_heads_are_no_matrices():
  """Neither biases nor scales are for an optimizer of matrices, and no mesh axis cuts a scale."""
  model = make_model(SMALL_QWEN3)
  matrices, axes = model.matrix_axes()["layers"]["attention"], model.logical_axes()["layers"]["attention"]
  assert matrices.keys() == {"q_DHh", "k_DKh", "v_DKh", "o_DHh", "q_scale_h", "k_scale_h"}
  assert {name for name, sides in matrices.items() if sides is None} == {"q_scale_h", "k_scale_h"}
  assert axes["q_scale_h"] == axes["k_scale_h"] == ("layers", None)


def test_init_numbers():
  params = jax.jit(make_model(SMALL).init)(jax.random.key(0))
  up_LDF = np.asarray(params["layers"]["mlp"]["up_DF"])
  assert 0.9 < up_LDF.std() / SMALL.init_std < 1.1 and np.abs(up_LDF[0] - up_LDF[1]).max() > 0.01  # layers differ
  assert np.abs(up_LDF - np.asarray(params["layers"]["mlp"]["gate_DF"])).max() > 0.01  # so do matrices
  assert (params["layers"]["mlp_norm"]["scale_D"] == 1).all()
  assert (params["layers"]["attention"]["q_bias_Hh"] == 0).all()
  attention = layers.Attention(SMALL_QWEN3, nnx.Rngs(0))
  assert (attention.q_scale_h[...] == 1).all() and (attention.k_scale_h[...] == 1).all()


def parameters(name):
  return sum(x.size for x in jax.tree.leaves(make_model(PRESETS[name]).abstract()))


@pytest.mark.parametrize(
  ("name", "billions"),
  [("qwen2_5_0_5b", 0.494), ("qwen2_5_1_5b", 1.544), ("qwen2_5_3b", 3.086), ("qwen2_5_7b", 7.616),
   ("qwen2_5_14b", 14.770), ("qwen2_5_32b", 32.764), ("qwen2_5_72b", 72.706), ("qwen2_5_math_1_5b", 1.544),
   ("qwen2_5_math_7b", 7.616), ("qwen3_0_6b", 0.596), ("qwen3_1_7b", 1.721), ("qwen3_4b", 4.022),
   ("qwen3_8b", 8.191), ("qwen3_14b", 14.768), ("qwen3_32b", 32.762)],
)  # fmt: skip
def test_presets_have_the_published_sizes(name, billions):
  assert round(parameters(name) / 1e9, 3) == billions
  assert 0.3e6 < parameters("tiny") < 2e6


def test_mistakes_are_named():
  with pytest.raises(ValueError, match="num_heads=4.*num_kv_heads=3"):
    dataclasses.replace(SMALL, num_kv_heads=3)
  with pytest.raises(ValueError, match="family='qwen4'.*'qwen2', 'qwen3'"):
    dataclasses.replace(SMALL, family="qwen4")
  with pytest.raises(ValueError, match="model.remat='some'.*full"):
    dataclasses.replace(SMALL, remat="some")
  mesh = make_mesh({"data": 1, "fsdp": 1, "context": 1, "tensor": 8})
  with pytest.raises(ValueError, match="mesh.tensor=8 must divide .*, as must rollout.tensor"):
    make_model(SMALL).shardings(mesh)


def test_value_head_by_hand_and_beside_the_policy():
  model = make_model(dataclasses.replace(SMALL, value_head=True))
  params = jax.tree.map(jnp.asarray, random_params(model))
  hidden = np.random.default_rng(1).normal(size=(2, 3, 16)).astype(np.float32)
  head = params["value_head"]
  close(model.values(params, hidden), hidden @ head["w_D"] + head["bias_1"][0], terms=16)
  zero = jax.jit(model.init)(jax.random.key(0))
  assert not np.asarray(model.values(zero, hidden)).any()
  policy, own = model.policy(), model.policy_params(params)
  assert policy == make_model(SMALL) and jax.tree.structure(own) == jax.tree.structure(policy.abstract())
  tokens = np.ones((1, 4), np.int32)
  args = (tokens, positions_like(tokens), tokens)
  np.testing.assert_array_equal(jax.jit(model.hidden)(params, *args), jax.jit(policy.hidden)(own, *args))
