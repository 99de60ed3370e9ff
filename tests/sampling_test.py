"""Sampling against NumPy oracles, and its frequencies against the probabilities it reports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fipo_jax.rollout import sampling as sampling_lib
from fipo_jax.rollout.sampling import Sampling, sample


def oracle_restrict(logits, top_k, top_p):
  """Sorting, in float64: ties with the last kept token stay in."""
  out = np.array(logits, np.float64)
  for row in out:
    if 0 < top_k < row.size:
      row[row < np.sort(row)[-top_k]] = -np.inf
    if top_p < 1:
      p = np.exp(row - row.max())
      p /= p.sum()
      order = np.argsort(-row, kind="stable")
      before = np.cumsum(p[order]) - p[order]
      row[row < row[order][before < top_p].min()] = -np.inf
  return out


def log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def keys(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


@pytest.mark.parametrize(
  "top_k,top_p", [(0, 1.0), (1, 1.0), (7, 1.0), (0, 0.7), (0, 0.05), (20, 0.6), (999, 0.999)]
)
def test_restrict_matches_sorting(top_k, top_p):
  logits = np.random.default_rng(top_k).normal(size=(16, 300)).astype(np.float32) * 3
  got = np.asarray(sampling_lib.restrict(jnp.array(logits), top_k=top_k, top_p=top_p))
  want = oracle_restrict(logits, top_k, top_p)
  np.testing.assert_array_equal(np.isinf(got), np.isinf(want))
  np.testing.assert_array_equal(got[~np.isinf(want)], logits[~np.isinf(want)])


def kept_tokens(logits_SV, **limits):
  return np.isfinite(np.asarray(sampling_lib.restrict(logits_SV, **limits)))[0].tolist()


def test_restrict_by_hand():
  logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))

  def kept(**kw):
    return kept_tokens(logits, **kw)

  assert kept(top_p=0.45) == [True, False, False, False]
  assert kept(top_p=0.55) == [True, True, False, False]
  assert kept(top_k=3) == [True, True, True, False]
  assert kept(top_k=3, top_p=0.9) == [True, True, True, False]  # 0.8 / 0.95 does not reach 0.9
  assert kept(top_k=2, top_p=0.6) == [True, False, False, False]  # 0.5 / 0.8 does


def test_ties_stay_in_and_signs_do_not_matter():
  logits = jnp.array([[-5.0, 1.0, 1.0, 1.0, -0.0, -7.0]])
  assert kept_tokens(logits, top_k=2) == [False, True, True, True, False, False]
  assert kept_tokens(logits, top_k=5) == [True] * 5 + [False]


@pytest.mark.parametrize(
  "config",
  [
    Sampling(),
    Sampling(temperature=0.6),
    Sampling(temperature=1.7, top_k=9),
    Sampling(top_p=0.8),
    Sampling(temperature=1.3, top_k=50, top_p=0.7),
  ],
)
def test_logp_is_that_of_the_restricted_distribution(config):
  logits = np.random.default_rng(3).normal(size=(64, 200)).astype(np.float32) * 2
  token, logp = sample(jnp.array(logits), keys(64), config)
  want = log_softmax(
    oracle_restrict(logits / np.float32(config.temperature), config.top_k, config.top_p)
  )
  want = want[np.arange(64), np.asarray(token)]
  assert token.dtype == jnp.int32 and logp.dtype == jnp.float32 and np.isfinite(want).all()
  np.testing.assert_allclose(np.asarray(logp), want, atol=3e-6)


@pytest.mark.parametrize(
  "config", [Sampling(), Sampling(temperature=0.5), Sampling(top_k=5), Sampling(top_p=0.6)]
)
def test_frequencies(config):
  """χ² of 20,000 draws over a vocabulary that is not a multiple of the block; threshold at p ≈ 1e-6."""
  n, vocab = 20_000, 300
  logits = np.random.default_rng(5).normal(size=vocab).astype(np.float32) * 2
  rows = jnp.broadcast_to(jnp.array(logits), (n, vocab))
  token, _ = jax.jit(sample, static_argnums=2)(rows, keys(n, 7), config)
  p = np.exp(
    log_softmax(oracle_restrict(logits[None] / config.temperature, config.top_k, config.top_p))
  )[0]
  count = np.bincount(np.asarray(token), minlength=vocab)
  assert count[p == 0].sum() == 0
  big = p * n >= 5
  observed = np.append(count[big], count[~big].sum())
  expected = np.append(p[big] * n, max(p[~big].sum() * n, 1e-9))
  if expected[-1] < 5:
    observed, expected = observed[:-1], expected[:-1]
  free = len(observed) - 1
  assert ((observed - expected) ** 2 / expected).sum() < free + 5 * np.sqrt(2 * free) + 15


def test_greedy_takes_the_maximum_and_reports_temperature_one():
  logits = np.random.default_rng(1).normal(size=(8, 50)).astype(np.float32)
  logits[0, [3, 9]] = 11.0
  token, logp = sample(jnp.array(logits), keys(8), Sampling(temperature=0.0, top_k=3))
  np.testing.assert_array_equal(np.asarray(token), logits.argmax(-1))
  assert token[0] == 3
  np.testing.assert_allclose(
    np.asarray(logp), log_softmax(logits.astype(np.float64)).max(-1), atol=2e-6
  )


def test_a_slot_depends_on_its_own_key_and_logits_only():
  logits = jnp.array(np.random.default_rng(2).normal(size=(12, 90)), jnp.float32)
  order = np.random.default_rng(4).permutation(12)
  token, logp = sample(logits, keys(12), Sampling())
  moved, moved_logp = sample(logits[order], keys(12)[order], Sampling())
  np.testing.assert_array_equal(np.asarray(moved), np.asarray(token)[order])
  np.testing.assert_array_equal(np.asarray(moved_logp), np.asarray(logp)[order])
  assert not np.array_equal(
    np.asarray(sample(logits, keys(12, 1), Sampling())[0]), np.asarray(token)
  )


@pytest.mark.parametrize("u", [0.0, 0.3, 0.5, np.nextafter(np.float32(1), np.float32(0))])
def test_draw_never_takes_weight_zero(u):
  weight = np.zeros((1, 700), np.float32)
  weight[0, [130, 131, 640]] = [1.0, 1.0, 2.0]
  token = int(sampling_lib.draw(jnp.array(weight), jnp.full((1, 2), u, jnp.float32))[0])
  assert token == {0.0: 130, 0.3: 130, 0.5: 640}.get(float(u), 640)


def test_certain_and_lopsided_distributions():
  logits = jnp.array([[-jnp.inf, 0.0, -jnp.inf], [1e4, 0.0, -1e4], [-1e30, -1e30, -1e30]])
  token, logp = sample(logits, keys(3), Sampling())
  assert token[0] == 1 and token[1] == 0
  np.testing.assert_allclose(np.asarray(logp), [0.0, 0.0, -np.log(3)], atol=1e-6)


def test_bfloat16_logits_give_float32_logp():
  logits = np.random.default_rng(6).normal(size=(4, 64)).astype(jnp.bfloat16)
  token, logp = sample(jnp.array(logits), keys(4), Sampling())
  want = log_softmax(logits.astype(np.float64))[np.arange(4), np.asarray(token)]
  np.testing.assert_allclose(np.asarray(logp), want, atol=2e-6)


def test_no_sort_in_the_program():
  text = (
    jax.jit(sample, static_argnums=2)
    .lower(jnp.zeros((2, 64)), keys(2), Sampling(top_k=4, top_p=0.5))
    .as_text()
  )
  assert "stablehlo.sort" not in text and "top_k" not in text


@pytest.mark.parametrize(
  "bad",
  [
    dict(temperature=-1.0),
    dict(temperature=float("nan")),
    dict(top_k=-1),
    dict(top_p=0.0),
    dict(top_p=1.5),
    dict(max_tokens=0),
  ],
)
def test_bad_fields_are_named(bad):
  with pytest.raises(ValueError, match=f"sampling.{next(iter(bad))}="):
    Sampling(**bad)


def test_stop_ids_become_hashable():
  assert hash(Sampling(stop_ids=[1, np.int32(2)])) == hash(Sampling(stop_ids=(1, 2)))
