"""Objectives beside fipo and dapo: each by hand, against a slow oracle, and reduced to a simpler one."""

import functools

import jax
import numpy as np
import pytest
from losses_test import TERMS, packed, responses, row, value_and_grad
from tolerances import close

from fipo_jax import config, parts
from fipo_jax.algorithms import (
  ESTIMATORS,
  OBJECTIVES,
  advantages,
  check_given,
  losses,
  make_advantages,
  make_objective,
)


def slow_surrogate(logp, batch, *, clip_low, weigh):
  """(total, count, gradient of total) of max(−A·r, −A·clip(r)), token by token; weigh: tokens -> divisor."""
  A = np.asarray(batch.advantages, float)
  r = np.exp(np.asarray(logp, float) - np.asarray(batch.old_logp, float))
  total, count, gradient = 0.0, 0, np.zeros(r.shape)
  for line, tokens in responses(batch):
    count += 1
    for t in tokens:
      i = (line, t)
      held = np.clip(r[i], 1 - clip_low, 1 + clip_low)
      total += max(-A[i] * r[i], -A[i] * held) / weigh(len(tokens))
      moves = r[i] <= 1 + clip_low if A[i] > 0 else r[i] >= 1 - clip_low
      gradient[i] = -A[i] * r[i] * moves / weigh(len(tokens))
  return total, count, gradient


@pytest.mark.parametrize(
  "name, weigh, tokens_count",
  [
    ("dr_grpo", lambda n: 20.0, False), ("rloo", lambda n: 1.0, False), ("grpo", lambda n: n, False),
    ("reinforce_pp", lambda n: 1.0, True), ("ppo", lambda n: 1.0, True),
  ],
)  # fmt: skip
def test_clipped_ones_equal_a_slow_oracle(name, weigh, tokens_count):
  with jax.enable_x64(True):
    logp, batch = packed(dtype=np.float64, spread=0.5)
    objective = make_objective(name, clip_low=0.3, max_response_tokens=20, clip_high=0.9, dual_clip=1.5)
    out, gradient = value_and_grad(objective, logp, batch)
  total, count, slow_gradient = slow_surrogate(logp, batch, clip_low=0.3, weigh=weigh)
  tokens = int(np.asarray(batch.mask).sum())
  assert 0 < (slow_gradient == 0)[np.asarray(batch.mask) > 0].sum() < tokens  # both sides of the clip are met
  close(out.loss.total, total, terms=TERMS, dtype=np.float64)
  assert out.loss.count == (tokens if tokens_count else count)
  close(gradient, slow_gradient, terms=TERMS, dtype=np.float64)


def two_responses(advantages_B, logp, old):
  """A row of two responses of 2 and 1 tokens."""
  return row(logp, old, [advantages_B[0], advantages_B[0], advantages_B[1]], segments=[1, 1, 2])


def test_dr_grpo_by_hand():
  logp, batch = two_responses([1.0, -1.0], [-1.0, -2.0, -0.5], [-1.0, -2.0, -0.5])
  out, gradient = value_and_grad(make_objective("dr_grpo", max_response_tokens=10), logp, batch)
  close([out.loss.total, out.loss.count], [(-2 + 1) / 10, 2], terms=3)
  close(gradient[0, :3], [-0.1, -0.1, 0.1])
  np.testing.assert_array_equal(make_advantages("dr_grpo", std_ddof=1)([[1.0, 0.0, 0.0, 0.0]]), [[0.75] + [-0.25] * 3])


def test_rloo_by_hand():
  close(make_advantages("rloo")([[3.0, 0.0, 1.0]]), [[2.5, -2.0, -0.5]], terms=3, dtype=np.float64)
  logp, batch = two_responses([2.5, -2.0], [-1.0, -2.0, -0.5], [-1.0, -2.0, -0.5])
  out, gradient = value_and_grad(make_objective("rloo"), logp, batch)
  close([out.loss.total, out.loss.count], [-3.0, 2], terms=3)
  close(gradient[0, :3], [-2.5, -2.5, 2.0])
  with pytest.raises(ValueError, match=r"shape \(2, 1\)"):
    advantages.leave_one_out([[1.0], [0.0]])


def test_reinforce_pp_by_hand():
  rewards = [[1.0, 0.0], [1.0, 2.0]]  # mean 1, deviation sqrt(1/2)
  # 1e-8 or so is added to the deviation against division by zero.
  close(make_advantages("reinforce_pp")(rewards), [[0, -(2**0.5)], [0, 2**0.5]])
  assert (advantages.batch_normalised(np.full((3, 2), 0.1)) == 0).all()
  logp, batch = two_responses([2.0, -1.0], [np.log(1.5), 0.0, np.log(0.5)], [0.0, 0.0, 0.0])
  out, gradient = value_and_grad(make_objective("reinforce_pp", clip_low=0.2), logp, batch)
  close([out.loss.total, out.loss.count], [-2 * 1.2 - 2 + 0.8, 3], terms=3)
  np.testing.assert_array_equal(gradient[0, :3], [0.0, -2.0, 0.0])


def test_cispo_by_hand_and_against_its_definition():
  logp, batch = two_responses([2.0, -1.0], [np.log(8.0) - 3, -2.0, np.log(0.25) - 1], [-3.0, -2.0, -1.0])
  out, gradient = value_and_grad(make_objective("cispo", cispo_ratio_cap=4.0), logp, batch)
  # Ratios 8, 1, 1/4: the first is cut to 4 and keeps its gradient, the last has no lower bound.
  close(gradient[0, :3], [-8.0, -2.0, 0.25])
  close(out.loss.total, np.sum(np.asarray(gradient) * np.asarray(logp)), terms=3)
  close(out.metrics["clip_fraction"].value(), 1 / 3)
  with jax.enable_x64(True):
    logp, batch = packed(dtype=np.float64)
    ours, gradient = value_and_grad(functools.partial(losses.cispo, cispo_ratio_cap=1.5), logp, batch)
  valid = np.asarray(batch.mask) > 0
  r = np.exp(np.where(valid, np.asarray(logp) - np.asarray(batch.old_logp), 0))
  slow = -np.minimum(r, 1.5) * np.where(valid, batch.advantages, 0)
  close(gradient, slow, terms=TERMS, dtype=np.float64)
  close(ours.loss.total, (slow * np.where(valid, logp, 0)).sum(), terms=TERMS, dtype=np.float64)


def test_rloo_is_dr_grpo_on_another_scale():
  """As arXiv 2503.20783 notes: leaving one out multiplies the centred reward by G / (G − 1)."""
  rewards = np.random.default_rng(0).normal(size=(5, 4))
  ours = advantages.leave_one_out(rewards)
  close(ours, 4 / 3 * advantages.group_centred(rewards), terms=4, dtype=np.float64)
  logp, batch = packed()
  rloo, rloo_gradient = value_and_grad(make_objective("rloo"), logp, batch)
  dr, dr_gradient = value_and_grad(make_objective("dr_grpo", max_response_tokens=16), logp, batch)
  close(rloo_gradient, 16 * dr_gradient)
  assert rloo.loss.count == dr.loss.count


def test_cispo_without_a_cap_has_the_gradient_of_dapo_without_a_clip():
  logp, batch = packed()
  _, ours = value_and_grad(make_objective("cispo", cispo_ratio_cap=1e30), logp, batch)
  _, free = value_and_grad(make_objective("dapo", clip_low=1.0, clip_high=1e30, dual_clip=None), logp, batch)
  close(ours, free)


@pytest.mark.parametrize("name", ["ppo", "reinforce_pp"])
def test_symmetric_dapo_is_ppo(name):
  logp, batch = packed()
  ours, gradient = value_and_grad(make_objective(name, clip_low=0.25, dual_clip=3.0), logp, batch)
  dapo, same = value_and_grad(make_objective("dapo", clip_low=0.25, clip_high=0.25, dual_clip=None), logp, batch)
  assert ours.loss.total == dapo.loss.total and ours.loss.count == dapo.loss.count
  np.testing.assert_array_equal(gradient, same)


def test_gspo_on_responses_of_one_token_is_grpo_and_does_not_read_the_clip_of_others():
  rng = np.random.default_rng(3)
  old, logp, A = rng.normal(size=(3, 8)).astype(np.float32)
  logp, batch = row(logp, old, A, segments=np.arange(1, 9))
  gspo = make_objective("gspo", gspo_clip_low=0.2, gspo_clip_high=0.2, clip_low=0.01, clip_high=0.01)
  ours, gradient = value_and_grad(gspo, logp, batch)
  grpo, same = value_and_grad(make_objective("grpo", clip_low=0.2), logp, batch)
  close(ours.loss.total, grpo.loss.total, terms=8)
  close(gradient, same)


def test_an_estimator_is_chosen_without_a_new_objective():
  rewards = np.random.default_rng(1).normal(size=(3, 4))
  np.testing.assert_array_equal(make_advantages("fipo", "leave_one_out")(rewards), advantages.leave_one_out(rewards))
  with pytest.raises(ValueError, match="algorithm.advantage='gae'; choose one of group_relative, .* or '' for its own"):
    make_advantages("fipo", "gae")
  with pytest.raises(ValueError, match="algorithm.name='ppo' has no advantages of groups; use ''"):
    make_advantages("ppo", "group_relative")


def test_every_row_is_given_what_it_asks_for_and_half_a_row_is_refused(monkeypatch):
  given = {*parts.hyperparameters(config.default()), "std_ddof"}
  for name in OBJECTIVES:
    for estimator in ("", *ESTIMATORS):
      if not estimator or OBJECTIVES[name].advantages is not advantages.rewards_themselves:
        check_given(name, given, estimator=estimator, samples=2)

  def loss(logp_RT, batch, *, clip_low, sharpness=1.0):
    return losses.grpo(logp_RT, batch, clip_low=clip_low * sharpness)

  def shrunk(rewards_PG, *, strength=0.5):
    return np.asarray(rewards_PG) * strength

  for half, says in (
    (OBJECTIVES["grpo"]._replace(loss=loss), "loss asks for 'sharpness', which no field of the config gives"),
    (OBJECTIVES["grpo"]._replace(advantages=shrunk), "shrunk asks for 'strength', which no field of the config gives"),
    (OBJECTIVES["grpo"]._replace(advantages=lambda r: r[:, 9]), "its advantages fail for 2 samples a prompt: "),
    (OBJECTIVES["grpo"]._replace(advantages=lambda r: r.ravel()), r"have shape \(4,\) for rewards \[2, 2\]"),
  ):
    monkeypatch.setitem(OBJECTIVES, "mine", half)
    with pytest.raises(ValueError, match=f"algorithm.name='mine': .*{says}"):
      check_given("mine", given)


def test_advantages_follow_the_name():
  rewards = np.random.default_rng(1).normal(size=(3, 4))
  given = {name: make_advantages(name, std_ddof=1)(rewards) for name in ("fipo", "dapo", "grpo", "gspo", "cispo")}
  for A in given.values():
    np.testing.assert_array_equal(A, advantages.group_relative(rewards, std_ddof=1))
  np.testing.assert_array_equal(make_advantages("ppo")(rewards), rewards)
  with pytest.raises(ValueError, match="objective='trpo'"):
    make_advantages("trpo")
