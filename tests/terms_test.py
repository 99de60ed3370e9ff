"""Terms that any objective can carry: by hand, in expectation, and off by default."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses_test import TERMS, T, packed, value_and_grad
from tolerances import close

from fipo_jax.algorithms import OBJECTIVES, Terms, losses, make_objective, terms


def with_fields(batch, **fields):
  return dataclasses.replace(batch, **fields)


def test_kl_estimates_by_hand():
  logp, ref = jnp.array([[-1.0, -1.0, -1.0]]), jnp.array([[-1.5, -0.5, np.nan]])
  valid = jnp.array([[True, True, False]])
  kl = functools.partial(terms.kl_estimate, logp, ref, valid)
  np.testing.assert_array_equal(kl(kind="k1"), [[0.5, -0.5, 0.0]])
  np.testing.assert_array_equal(kl(kind="k2"), [[0.125, 0.125, 0.0]])
  close(kl(kind="k3"), [[np.exp(-0.5) - 0.5, np.exp(0.5) - 1.5, 0.0]], scale=1.5)  # what is subtracted
  with pytest.raises(ValueError, match="reference_kl='k4'"):
    kl(kind="k4")


def test_kl_estimates_in_expectation():
  """Summed over a whole vocabulary with the policy's weights: k1 and k3 are the KL; as losses, k2 has its gradient."""
  rng = np.random.default_rng(0)
  z, ref = rng.normal(size=6), jax.nn.log_softmax(rng.normal(size=6))
  p = jax.nn.softmax(z)
  size = dict(terms=6, scale=5)  # log-probs of a softmax over six numbers
  exact = lambda z: jnp.sum(jax.nn.softmax(z) * (jax.nn.log_softmax(z) - ref))
  mean = lambda z, kind: jnp.sum(p * terms.kl_estimate(jax.nn.log_softmax(z)[None], ref[None], True, kind=kind)[0])
  for kind in ("k1", "k3"):
    close(mean(z, kind), exact(z), **size)
  gradient = {kind: jax.grad(mean)(jnp.asarray(z), kind) for kind in terms.KL_ESTIMATES}
  close(gradient["k1"], 0, **size)
  close(gradient["k2"], jax.grad(exact)(jnp.asarray(z)), **size)
  forward = lambda z: jnp.sum(jnp.exp(ref) * (ref - jax.nn.log_softmax(z)))
  close(gradient["k3"], jax.grad(forward)(jnp.asarray(z)), **size)


@pytest.mark.parametrize("name", ["fipo", "grpo", "dr_grpo"])
@pytest.mark.parametrize("kind", terms.KL_ESTIMATES)
def test_kl_is_added_on_the_scale_of_the_loss(name, kind):
  """loss + coef · the same weighing of k: sequence means for grpo, kept tokens for fipo, ..."""
  logp, batch = packed(spread=0.3)
  ref = jnp.where(batch.mask > 0, batch.old_logp + 0.1 * jnp.sin(jnp.arange(T)), jnp.nan)
  batch = with_fields(batch, ref_logp=ref)
  settings = dict(terms=Terms(reference_kl=kind, reference_kl_coef=0.5), max_response_tokens=16)
  plain, g0 = value_and_grad(make_objective(name, max_response_tokens=16), logp, batch)
  ours, g1 = value_and_grad(make_objective(name, **settings), logp, batch)
  valid = np.asarray(batch.mask) > 0
  x = np.where(valid, np.asarray(ref) - np.asarray(logp), 0)
  k = {"k1": -x, "k2": x * x / 2, "k3": np.exp(x) - 1 - x}[kind]
  slope = {"k1": 1 + 0 * x, "k2": -x, "k3": 1 - np.exp(x)}[kind]
  share = np.asarray(plain.per_token["keep"] / plain.per_token["divisor"]) * valid
  size = dict(terms=TERMS, scale=10)  # of the log-probs, ratios and losses that are added
  close(ours.loss.total, plain.loss.total + 0.5 * (share * k).sum(), **size)
  close(g1, g0 + 0.5 * share * slope, **size)
  assert ours.loss.count == plain.loss.count
  close(ours.metrics["reference_kl"].value(), k[valid].mean(), **size)


def test_entropy_bonus_raises_entropy():
  logp, batch = packed()
  entropy = jnp.where(batch.mask > 0, 0.7, jnp.nan)
  objective = make_objective("dapo", terms=Terms(entropy_coef=0.1))
  plain = losses.dapo(logp, batch)
  total = lambda h: objective(logp, batch, h).loss.total
  n = float(batch.mask.sum())
  close(total(entropy), plain.loss.total - 0.1 * 0.7 * n, terms=TERMS)
  close(jax.grad(total)(entropy), -0.1 * (np.asarray(batch.mask) > 0))


@pytest.mark.parametrize("name", ["fipo", "dapo", "grpo", "gspo", "cispo"])
def test_sampler_correction_scales_each_token(name):
  """The objective of token t times min(exp(old − sampler), cap), constant for differentiation."""
  logp, batch = packed(spread=0.2)
  gap = np.where(np.asarray(batch.mask) > 0, np.linspace(-2, 2, T), np.nan).astype(np.float32)
  batch = with_fields(batch, sampler_logp=batch.old_logp - gap)
  plain, g0 = value_and_grad(make_objective(name), logp, batch)
  ours, g1 = value_and_grad(make_objective(name, terms=Terms(sampler_ratio_cap=2.0)), logp, batch)
  weight = np.minimum(np.exp(np.nan_to_num(gap)), 2.0)
  close(g1, weight * np.asarray(g0))
  inside = np.asarray(batch.mask) > 0
  close(ours.metrics["sampler_weight_mean"].value(), weight[inside].mean(), terms=TERMS)
  assert weight[inside].max() == 2.0 and weight[inside].min() < 0.5
  equal = with_fields(batch, sampler_logp=batch.old_logp)
  same, g2 = value_and_grad(make_objective(name, terms=Terms(sampler_ratio_cap=2.0)), logp, equal)
  assert same.loss.total == plain.loss.total
  np.testing.assert_array_equal(g2, g0)


def test_value_loss_by_hand():
  V, old, R = jnp.array([[1.0, 1.0, 0.0]]), jnp.array([[0.9, 0.2, 0.0]]), jnp.array([[0.0, 2.0, 1.0]])
  np.testing.assert_array_equal(terms.value_loss(V, old, R, value_clip=None), [[0.5, 0.5, 0.5]])
  # The second moved by 0.8 of at most 0.3: judged as if it stood at 0.5, 1.5 away from 2.
  close(terms.value_loss(V, old, R, value_clip=0.3), [[0.5, 1.125, 0.5]])
  gradient = jax.grad(lambda V: jnp.sum(terms.value_loss(V, old, R, value_clip=0.3)))(V)
  np.testing.assert_array_equal(gradient, [[1.0, 0.0, -1.0]])


def test_value_loss_joins_ppo():
  logp, batch = packed()
  zeros = jnp.where(batch.mask > 0, 0.0, jnp.nan)
  batch = with_fields(batch, old_values=zeros, returns=zeros + 1)
  values = zeros + 0.5
  ours = make_objective("ppo", terms=Terms(value_coef=2.0))(logp, batch, None, values)
  n = float(batch.mask.sum())
  close(ours.loss.total, losses.ppo(logp, batch).loss.total + 2.0 * 0.125 * n, terms=TERMS)
  close(ours.metrics["value_loss"].value(), 0.125, terms=TERMS)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_terms_are_off_by_default_and_cost_nothing(name):
  logp, batch = packed()
  plain, ours = (make_objective(name, max_response_tokens=8, **more)(logp, batch) for more in ({}, {"terms": Terms()}))
  assert plain.loss.total == ours.loss.total and plain.metrics.keys() == ours.metrics.keys()


def test_mistakes_are_named():
  for settings, said in (
    ({"reference_kl": "kl"}, "reference_kl='kl'; choose one of k1, k2, k3"),
    ({"entropy_coef": -0.1}, "entropy_coef=-0.1"),
    ({"sampler_ratio_cap": 0.0}, "sampler_ratio_cap=0.0"),
  ):
    with pytest.raises(ValueError, match=said):
      Terms(**settings)
