"""Generalised advantages: by hand, against the recurrence, and in their two limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses_test import TERMS, R, T, packed, responses
from tolerances import close

from fipo_jax.algorithms import gae
from fipo_jax.types import Batch


def test_by_hand():
  """One response of two tokens after a prompt token: reward 1 at its end, values 0.5 and 0.25, γ = 1, λ = 0.5."""
  segments, mask = jnp.array([[1, 1, 1, 0]]), jnp.array([[0, 1, 1, 0]])
  values = jnp.array([[9.0, 0.5, 0.25, 9.0]])
  rewards = gae.at_the_end(jnp.array([[1.0, 1.0, 1.0, 9.0]]), mask, segments)
  np.testing.assert_array_equal(rewards, [[0, 0, 1, 0]])
  A, returns = gae.gae(rewards, values, mask, segments, discount=1.0, gae_lambda=0.5)
  np.testing.assert_array_equal(A, [[0, -0.25 + 0.5 * 0.75, 0.75, 0]])
  np.testing.assert_array_equal(returns, [[0, 0.625, 1.0, 0]])


@pytest.mark.parametrize("discount, lam", [(1.0, 1.0), (0.99, 0.95), (0.9, 0.0)])
def test_equals_the_recurrence(discount, lam):
  _, batch = packed()
  rng = np.random.default_rng(4)
  values, rewards = rng.normal(size=(2, R, T))
  A, returns = gae.gae(rewards, values, batch.mask, batch.segments, discount=discount, gae_lambda=lam)
  slow = np.zeros((R, T))
  for r, tokens in responses(batch):
    after, next_value = 0.0, 0.0
    for t in tokens[::-1]:
      after = rewards[r, t] + discount * next_value - values[r, t] + discount * lam * after
      next_value, slow[r, t] = values[r, t], after
  valid = np.asarray(batch.mask) > 0
  close(A, slow, terms=TERMS)
  close(np.asarray(returns)[valid], (slow + values)[valid], terms=TERMS)
  assert (np.asarray(returns)[~valid] == 0).all()


def test_without_discount_it_is_the_reward_minus_the_value():
  _, batch = packed()
  values = np.random.default_rng(5).normal(size=(R, T)).astype(np.float32)
  reward = jnp.where(batch.mask > 0, batch.advantages, 0)
  A, returns = gae.gae(
    gae.at_the_end(reward, batch.mask, batch.segments), values, batch.mask, batch.segments, discount=1.0, gae_lambda=1.0
  )
  size = dict(terms=TERMS, scale=np.abs(values).max())  # values are subtracted and added up again
  close(returns, reward, **size)
  close(A, np.where(np.asarray(batch.mask) > 0, reward - values, 0), **size)


def test_credit_normalises_over_all_mini_batches():
  _, batch = packed()
  two = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), batch)  # [M, R, T]
  values = jnp.asarray(np.random.default_rng(6).normal(size=two.mask.shape), jnp.float32)
  two = Batch(**{**vars(two), "old_values": values})
  other = Batch(**{**vars(two), "advantages": 3 * two.advantages})
  done = gae.credit([two, other], discount=1.0, gae_lambda=0.9)
  on = np.asarray(two.mask) > 0
  A = np.concatenate([np.asarray(b.advantages)[on] for b in done])
  close([A.mean(), A.std()], [0, 1], terms=len(A))
  assert all((np.asarray(b.advantages)[~on] == 0).all() for b in done)
  raw, returns = gae.gae(
    gae.at_the_end(two.advantages[1], two.mask[1], two.segments[1]), values[1], two.mask[1], two.segments[1],
    discount=1.0, gae_lambda=0.9,
  )  # fmt: skip
  close(done[0].returns[1], returns, terms=TERMS)
  scale = np.polyfit(np.asarray(raw)[on[1]], np.asarray(done[0].advantages[1])[on[1]], 1)
  fitted = np.polyval(scale, np.asarray(raw)[on[1]])
  close(done[0].advantages[1][on[1]], fitted, terms=len(A))  # one line for all


def test_a_response_that_fills_its_row_ends_with_it():
  one = jnp.ones((1, 3), jnp.int32)
  A, _ = gae.gae(jnp.zeros((1, 3)), jnp.array([[1.0, 2.0, 4.0]]), one, one, discount=1.0, gae_lambda=0.0)
  np.testing.assert_array_equal(A, [[1.0, 2.0, -4.0]])
  np.testing.assert_array_equal(gae.at_the_end(jnp.ones((1, 3)), one, one), [[0, 0, 1]])
