"""Generalised advantage estimation: the advantages of PPO with a value head, on the device, over packed rows."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fipo_jax import masked
from fipo_jax.algorithms.segments import discounted_sum
from fipo_jax.types import Batch


def gae(rewards_RT, values_RT, mask_RT, segments_RT, *, discount: float, gae_lambda: float):
  """Advantages and value targets of each response token.

      δ[t] = r[t] + γ·V[t + 1] − V[t],    A[t] = Σ_{k ≥ t} (γλ)^(k − t) · δ[k],    returns[t] = A[t] + V[t]

  V[t] is the value of what precedes token t; after a response's last token it is 0. The sum is the same reverse scan
  as Future-KL's.

  Args:
    rewards_RT: [R, T] float, units of reward, given at each token (see `at_the_end`).
    values_RT: [R, T] float, the same unit. mask_RT: [R, T] bool or 0/1, response tokens, contiguous to the end of
      their segment. segments_RT: [R, T] int.
    discount: γ. gae_lambda: λ. Both in [0, 1].
  Returns: (advantages_RT, returns_RT), 0 outside the mask.
  Source: arXiv 1506.02438 eq. 11 to 16.
  """
  mask_RT = jnp.asarray(mask_RT, bool)
  values_RT = jnp.where(mask_RT, values_RT, 0)
  next_RT = jnp.where(_continues(mask_RT, segments_RT), jnp.roll(values_RT, -1, axis=1), 0)
  delta_RT = jnp.where(mask_RT, rewards_RT + discount * next_RT - values_RT, 0)
  advantages_RT = jnp.where(mask_RT, discounted_sum(delta_RT, segments_RT, decay=discount * gae_lambda), 0)
  return advantages_RT, jnp.where(mask_RT, advantages_RT + values_RT, 0)


def at_the_end(rewards_RT, mask_RT, segments_RT):
  """Keeps a reward that is written on every token of a response at its last token only."""
  mask_RT = jnp.asarray(mask_RT, bool)
  return jnp.where(mask_RT & ~_continues(mask_RT, segments_RT), rewards_RT, 0)


@jax.named_scope("advantages")
def credit(batches: list[Batch], *, discount: float, gae_lambda: float) -> list[Batch]:
  """Turns the rewards of a step's mini-batches into advantages and value targets.

  Each batch [M, R, T] comes with a response's reward as the advantage of all its tokens, and with old_values; it
  leaves with GAE advantages normalised over all tokens of all batches, (A − mean) / (std + 1e-8), and with returns.
  Source: the advantage normalisation of PPO's public implementations; population deviation.
  """

  def of_micro(b: Batch):
    rewards_RT = at_the_end(b.advantages, b.mask, b.segments)
    return gae(rewards_RT, b.old_values, b.mask, b.segments, discount=discount, gae_lambda=gae_lambda)

  pairs = [jax.lax.map(of_micro, b) for b in batches]
  n = sum(masked.count(b.mask) for b in batches)
  mean = sum(masked.sum(a, b.mask) for (a, _), b in zip(pairs, batches, strict=True)) / n
  square = sum(masked.sum(jnp.square(a - mean), b.mask) for (a, _), b in zip(pairs, batches, strict=True)) / n
  scaled = lambda a, b: jnp.where(b.mask > 0, (a - mean) / (jnp.sqrt(square) + 1e-8), 0)
  return [
    dataclasses.replace(b, advantages=scaled(a, b), returns=returns)
    for (a, returns), b in zip(pairs, batches, strict=True)
  ]


def _continues(mask_RT, segments_RT):
  """Whether the next position of the row is a token of the same response."""
  same_RT = mask_RT & jnp.roll(mask_RT, -1, axis=1) & (segments_RT == jnp.roll(segments_RT, -1, axis=1))
  return same_RT.at[:, -1].set(False)
