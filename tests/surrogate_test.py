"""The parts of a clipped loss at their very borders, which belong to the inside."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from fipo_jax.algorithms import surrogate


def test_a_ratio_at_the_threshold_stays_in_future_kl():
  at = np.float32(math.log(10.0))
  delta = jnp.array([at, np.nextafter(at, np.float32(9))])
  joins = surrogate.participates(delta, jnp.ones(2), participation_mask="all", participation_ratio=10.0)
  assert joins.tolist() == [True, False]


def test_shifts_are_held_on_both_sides_and_keep_their_gradient_on_the_bounds():
  logp, old = jnp.array([-3.0, -2.0, 0.5, 2.0, 3.0]), jnp.zeros(5)
  shift = lambda logp: surrogate.log_ratio(logp, old, jnp.ones(5, bool), delta_clamp=2.0)
  delta, ratio = shift(logp)
  assert delta.tolist() == [-2.0, -2.0, 0.5, 2.0, 2.0]
  np.testing.assert_allclose(ratio, np.exp(delta), rtol=1e-6)
  assert jax.grad(lambda x: jnp.sum(shift(x)[0]))(logp).tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_ratios_on_the_bounds_of_the_clip_keep_their_gradient():
  ratio = jnp.array([0.75, 1.25])  # bounds that floats have
  for A in (1.0, -1.0):
    loss = lambda r, A=A: jnp.sum(
      surrogate.clipped_surrogate(r, jnp.full(2, A), clip_low=0.25, clip_high=0.25, dual_clip=None).loss
    )
    assert jax.grad(loss)(ratio).tolist() == [-A, -A]


def test_more_than_so_many_dual_clipped_tokens_reject_a_response():
  ratio, advantages = jnp.array([[4.0, 2.0, 1.0, 4.0, 3.0, 4.0]]), -jnp.ones((1, 6))
  held = surrogate.clipped_surrogate(ratio, advantages, clip_low=0.2, clip_high=0.2, dual_clip=2.0).dual_clipped
  assert held.tolist() == [[True, False, False, True, True, True]]
  segments = jnp.array([[1, 1, 1, 2, 2, 3]])
  rejected = lambda count: surrogate.rejected(held, segments, count).tolist()[0]
  assert rejected(0) == [True] * 6 and rejected(1) == [False] * 3 + [True] * 2 + [False] and rejected(2) == [False] * 6
  assert rejected(None) == [False] * 6


def test_the_clipped_loss_by_hand():
  """Ratios below, inside and above the clip, and beyond the dual clip; good tokens first, then bad ones."""
  ratio = jnp.array([0.5, 1.0, 1.5, 4.0] * 2)
  advantages = jnp.array([2.0] * 4 + [-2.0] * 4)
  of = lambda ratio: surrogate.clipped_surrogate(ratio, advantages, clip_low=0.2, clip_high=0.3, dual_clip=3.0)
  found = of(ratio)
  np.testing.assert_allclose(found.loss, [-1.0, -2.0, -2.6, -2.6, 1.6, 2.0, 3.0, 6.0], rtol=1e-6)
  assert found.clipped.tolist() == [False, False, True, True, True, False, False, False]
  assert found.dual_clipped.tolist() == [False] * 7 + [True]
  slope = jax.grad(lambda ratio: jnp.sum(of(ratio).loss))(ratio)
  assert slope.tolist() == [-2.0, -2.0, 0.0, 0.0, 0.0, 2.0, 2.0, 0.0]


def test_who_joins_future_kl():
  delta, advantages = jnp.log(jnp.array([5.0, 20.0, 5.0, 20.0])), jnp.array([1.0, 1.0, -1.0, -1.0])
  how = dict(participation_ratio=10.0)
  joins = lambda mask: surrogate.participates(delta, advantages, participation_mask=mask, **how).tolist()
  assert joins("all") == [True, False, True, False]
  assert joins("negative_only") == [True, True, True, False] and joins("off") == [True] * 4
