"""Token log-probabilities: hand case, float64 oracle, chunks, gradients, segments and memory."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import close

from fipo_jax.models.logprobs import token_logprobs
from fipo_jax.sharding import MESH_AXES, make_mesh, named

SEGMENTS_RT = np.array([[1, 1, 1, 2, 2, 2, 0, 0, 0], [4, 4, 4, 4, 4, 4, 4, 4, 7]], np.int32)


# Programs share their compiled form where only numbers differ.
run = jax.jit(token_logprobs, static_argnames=("logits_mib", "with_entropy", "entropy_gradient"))


def inputs(R=2, T=9, D=5, V=11, seed=0):
  rng = np.random.default_rng(seed)
  hidden_RTD = rng.normal(size=(R, T, D)).astype(np.float32)
  head_VD = rng.normal(size=(V, D)).astype(np.float32)
  return hidden_RTD, head_VD, rng.integers(0, V, (R, T)).astype(np.int32)


slow = functools.partial(pytest.param, marks=pytest.mark.slow)
TERMS = 8 + 12 + 32  # of the largest sums of a gradient: width, vocabulary, tokens


def mib(tokens_RT, piece):
  """Memory for the logits of so many entries of the vocabulary."""
  return (4 * tokens_RT.size * piece + 1) / 2**20


def oracle(hidden_RTD, head_VD, tokens_RT, segments_RT, temperature):
  logp, entropy = np.zeros(tokens_RT.shape), np.zeros(tokens_RT.shape)
  for r, t in np.ndindex(*tokens_RT.shape):
    if t == 0 or segments_RT[r, t] == 0 or segments_RT[r, t] != segments_RT[r, t - 1]:
      continue
    z = head_VD.astype(np.float64) @ hidden_RTD[r, t - 1].astype(np.float64) / temperature
    p = np.exp(z - z.max())
    p /= p.sum()
    logp[r, t], entropy[r, t] = np.log(p[tokens_RT[r, t]]), -np.sum(p * np.log(p))
  return logp, entropy


def test_by_hand():
  # Two words, D = 1, head = (0, 1): the logits after a token with hidden x are (0, x).
  hidden_RTD = np.log(np.array([[[3.0], [1.0], [9.0]]], np.float32))
  head_VD, tokens_RT = np.array([[0.0], [1.0]], np.float32), np.array([[0, 1, 0]], np.int32)
  logp, entropy = run(hidden_RTD, head_VD, tokens_RT, np.ones((1, 3), np.int32))
  close(logp, [[0.0, np.log(3 / 4), np.log(1 / 2)]], scale=np.log(9))
  mixed = -(3 / 4 * np.log(3 / 4) + 1 / 4 * np.log(1 / 4))
  close(entropy, [[0.0, mixed, np.log(2)]], scale=np.log(9))


@pytest.mark.parametrize("piece", [1, 2, 4, 10, 512])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_matches_the_definition_in_any_pieces(piece, temperature):
  hidden_RTD, head_VD, tokens_RT = inputs()
  got = run(
    hidden_RTD, head_VD, tokens_RT, SEGMENTS_RT, temperature=temperature, logits_mib=mib(tokens_RT, piece)
  )
  expected = oracle(hidden_RTD, head_VD, tokens_RT, SEGMENTS_RT, temperature)
  logits = np.abs(hidden_RTD @ head_VD.T).max() / temperature
  for ours, theirs in zip(got, expected, strict=True):
    close(ours, theirs, terms=5 + 11, scale=logits)  # D products, V exponentials
  assert got[0].dtype == got[1].dtype == jnp.float32


def test_zero_at_starts_and_padding():
  logp, entropy = run(*inputs(), SEGMENTS_RT)
  starts = np.array([[1, 0, 0, 1, 0, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0, 0, 0, 1]], bool)
  assert not np.asarray(logp)[starts].any() and not np.asarray(entropy)[starts].any()
  assert (np.asarray(logp)[~starts] < 0).all() and (np.asarray(entropy)[~starts] > 0).all()


def test_one_token_rows_and_all_padding():
  hidden_RTD, head_VD, tokens_RT = inputs(T=1)
  for segments in (np.zeros((2, 1), np.int32), np.ones((2, 1), np.int32)):
    logp, entropy = run(hidden_RTD, head_VD, tokens_RT, segments)
    assert not logp.any() and not entropy.any()


def test_entropy_can_be_left_out():
  logp, entropy = run(*inputs(), SEGMENTS_RT)
  bare, zeros = run(*inputs(), SEGMENTS_RT, with_entropy=False)
  np.testing.assert_array_equal(bare, logp)
  assert not np.asarray(zeros).any() and np.asarray(entropy).any()


@pytest.mark.parametrize("piece", [2, 512])
def test_gradients_equal_autodiff_of_the_whole(piece):
  hidden_RTD, head_VD, tokens_RT = inputs()
  weight_RT = np.random.default_rng(1).normal(size=tokens_RT.shape).astype(np.float32)

  def chunked(hidden_RTD, head_VD):
    logp, entropy = token_logprobs(
      hidden_RTD, head_VD, tokens_RT, SEGMENTS_RT, temperature=0.7, logits_mib=mib(tokens_RT, piece)
    )
    return jnp.sum(weight_RT * logp) + jnp.sum(entropy)  # entropy must add no gradient

  def whole(hidden_RTD, head_VD):
    z = jax.nn.log_softmax(jnp.einsum("rtd,vd->rtv", hidden_RTD[:, :-1], head_VD, precision="highest") / 0.7)
    logp = jnp.take_along_axis(z, tokens_RT[:, 1:, None], axis=-1)[..., 0]
    follows = (SEGMENTS_RT[:, 1:] == SEGMENTS_RT[:, :-1]) & (SEGMENTS_RT[:, 1:] != 0)
    return jnp.sum(jnp.where(follows, weight_RT[:, 1:] * logp, 0))

  got, expected = (jax.jit(jax.grad(f, argnums=(0, 1)))(hidden_RTD, head_VD) for f in (chunked, whole))
  close(got, expected, terms=TERMS)
  assert np.abs(expected[1]).max() > 0.1


def test_head_gradient_adds_up_in_float32():
  # 4096 equal contributions of one token: a bfloat16 sum would stop growing long before the end.
  T, V = 4097, 4
  hidden = jnp.ones((1, T, 1), jnp.bfloat16)
  head = jnp.zeros((V, 1), jnp.bfloat16)
  tokens, segments = np.zeros((1, T), np.int32), np.ones((1, T), np.int32)
  d_head = jax.jit(jax.grad(lambda w: jnp.sum(token_logprobs(hidden, w, tokens, segments)[0])))(head)
  want = 4096 * np.array([0.75, -0.25, -0.25, -0.25])
  close(d_head[:, 0], want, dtype=jnp.bfloat16, room=1)  # rounded once, at the end


@pytest.mark.parametrize("fsdp", [1, 8])
def test_sums_in_float32_need_devices_that_add_up(fsdp):
  """One device rounds once, whatever sums are made in; XLA's CPU backend refused a product of that program."""
  rows = np.zeros((8, 128), np.int32)
  mesh = make_mesh({"data": 1, "fsdp": fsdp, "context": 1, "tensor": 1}, jax.devices()[:fsdp])

  def loss(hidden, head):
    return jnp.sum(token_logprobs(hidden, head, rows, rows + 1, sum_dtype="float32", tile_tokens=128)[0])

  with jax.set_mesh(mesh):
    shapes = (jax.ShapeDtypeStruct((8, 128, 16), jnp.bfloat16), jax.ShapeDtypeStruct((32, 16), jnp.bfloat16))
    text = str(jax.make_jaxpr(jax.grad(loss, argnums=1))(*shapes))
  assert text.count("reduce_scatter") == (fsdp > 1) and ("f32[2,32] = reduce_scatter" in text) == (fsdp > 1)
  assert ("bf16[16,32] = convert_element_type" in text) == (fsdp == 1)


def test_logits_never_exist_whole():
  T, V, D = 4096, 2048, 8
  f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  i32 = jax.ShapeDtypeStruct((1, T), jnp.int32)
  loss = lambda h, w, t, s: sum(jnp.sum(x) for x in token_logprobs(h, w, t, s, logits_mib=0.5))
  compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(f32(1, T, D), f32(V, D), i32, i32).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < T * V * 4 / 8


@pytest.mark.parametrize("shape", [(1, 2, 2, 2), *map(slow, [(2, 1, 2, 2), (2, 2, 1, 2), (1, 4, 1, 1)])], ids=str)
def test_sharded_equals_unsharded(shape):
  """Pieces of 3 of a vocabulary of 12, or of 6 on each of two devices; `embed` is cut, too."""
  hidden_RTD, head_VD, tokens_RT = inputs(R=4, T=8, D=8, V=12)
  segments_RT = np.repeat(np.array([[1, 1, 1, 2, 2, 2, 2, 0]], np.int32), 4, axis=0)
  weight_RT = np.random.default_rng(1).normal(size=tokens_RT.shape).astype(np.float32)

  def loss(hidden_RTD, head_VD, tokens_RT):
    logp, entropy = token_logprobs(hidden_RTD, head_VD, tokens_RT, segments_RT, logits_mib=mib(tokens_RT, 4) / 4)
    return jnp.sum(weight_RT * logp), (logp, entropy)

  step = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
  expected = jax.jit(step)(hidden_RTD, head_VD, tokens_RT)
  mesh = make_mesh(dict(zip(MESH_AXES, shape, strict=True)), jax.devices()[: math.prod(shape)])
  with jax.set_mesh(mesh):
    got = jax.jit(step)(
      jax.device_put(hidden_RTD, named(mesh, "rows", "tokens", None)),
      jax.device_put(head_VD, named(mesh, "vocab", "embed")),
      jax.device_put(tokens_RT, named(mesh, "rows", "tokens")),
    )
  close(got, expected, terms=TERMS)


def test_shapes_are_checked():
  hidden_RTD, head_VD, tokens_RT = inputs()
  with pytest.raises(ValueError, match="axis D"):
    token_logprobs(hidden_RTD, head_VD[:, :-1], tokens_RT, SEGMENTS_RT)


@pytest.mark.parametrize("piece", [2, 512])
def test_gradient_of_the_entropy(piece):
  """Against jax.grad of the definition; and none unless it is asked for."""
  hidden_RTD, head_VD, tokens_RT = inputs()
  weight_RT = np.random.default_rng(1).normal(size=tokens_RT.shape).astype(np.float32)

  def ours(hidden, head, gradient=True):
    how = dict(temperature=0.7, logits_mib=mib(tokens_RT, piece), entropy_gradient=gradient)
    logp, entropy = token_logprobs(hidden, head, tokens_RT, SEGMENTS_RT, **how)
    return jnp.sum(weight_RT * entropy) + 0.5 * jnp.sum(logp) * gradient

  def plain(hidden, head):
    logp_RTV = jax.nn.log_softmax(jnp.einsum("rtd,vd->rtv", hidden, head, precision="highest") / 0.7)
    entropy = -jnp.sum(jnp.exp(logp_RTV) * logp_RTV, -1)[:, :-1]
    taken = jnp.take_along_axis(logp_RTV[:, :-1], tokens_RT[:, 1:, None], -1)[..., 0]
    on = (SEGMENTS_RT[:, 1:] != 0) & (SEGMENTS_RT[:, 1:] == SEGMENTS_RT[:, :-1])
    return jnp.sum(jnp.where(on, weight_RT[:, 1:] * entropy + 0.5 * taken, 0))

  got, expected = (jax.jit(jax.grad(f, (0, 1)))(hidden_RTD, head_VD) for f in (ours, plain))
  close(got, expected, terms=TERMS, scale=10)  # logits are of this size
  assert not any(x.any() for x in jax.jit(jax.grad(lambda *x: ours(*x, False), (0, 1)))(hidden_RTD, head_VD))
