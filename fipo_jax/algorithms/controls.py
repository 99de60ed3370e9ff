"""Ablations of FIPO's weight: does it matter what lies ahead of a token, or only that weights differ, or their mean?

The weight f of the present policy is computed first, from a forward pass over the whole mini-batch, changed, and
multiplied into the advantages; the update then runs with f = 1. That is the same loss: the surrogate, its dual clip and
the rejection of responses depend on A · f alone.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fipo_jax import masked
from fipo_jax.algorithms import future_kl as fkl
from fipo_jax.algorithms import losses
from fipo_jax.algorithms.surrogate import log_ratio
from fipo_jax.types import Batch, Max, Mean, Min

CONTROLS = ("none", "constant", "permuted", "past")


def control(
  batch: Batch, logp_MRT, key, *, kind: str, delta_clamp: float | None, dual_clip: float | None,
  participation_ratio: float | None, **weight
) -> tuple[Batch, dict[str, Mean | Max | Min]]:  # fmt: skip
  """Multiplies a mini-batch's advantages by a changed influence weight.

      constant   g[t] = mean of f over all response tokens of the mini-batch: what a larger learning rate does
      permuted   g[t] = f[π(t)], π a random permutation of the response's tokens: the same weights, in wrong places
      past       g[t] from Σ_{k ≤ t} instead of k ≥ t: how far the policy has shifted what came before

  Args:
    batch: [M, R, T]. logp_MRT: under the policy about to be updated, nats. key: of the permutation.
    kind: one of CONTROLS but none. The rest as in `losses.fipo`.
  Returns:
    the batch, and the metrics weight_mean, weight_offset_square, weight_min, weight_max of g.
  """
  if kind not in CONTROLS[1:]:
    raise ValueError(f"control={kind!r}; choose one of {', '.join(CONTROLS[1:])}.")
  valid = (batch.mask > 0) & (batch.segments > 0)
  advantages = jnp.where(valid, batch.advantages, 0)

  def weights(logp_RT, old_RT, valid_RT, advantages_RT, segments_RT):
    delta_RT, ratio_RT = log_ratio(logp_RT, old_RT, valid_RT, delta_clamp=delta_clamp)
    return losses.influence(
      delta_RT, ratio_RT, advantages_RT, valid_RT, segments_RT,
      participation_ratio=dual_clip if participation_ratio is None else participation_ratio,
      scan=fkl.past_kl if kind == "past" else fkl.future_kl, **weight,
    ).weight  # fmt: skip

  g = jax.lax.map(lambda x: weights(*x), (logp_MRT, batch.old_logp, valid, advantages, batch.segments))
  if kind == "constant":
    g = jnp.full_like(g, masked.mean(g, valid))
  if kind == "permuted":
    # Prompts and padding share class 0 and are mixed too: nothing reads their weights.
    classes = jnp.where(valid, batch.segments, 0)
    g = permute(g, classes, jax.random.uniform(key, g.shape))
  return dataclasses.replace(batch, advantages=advantages * g), {
    "weight_mean": Mean(masked.sum(g, valid), masked.count(valid)),
    "weight_offset_square": Mean(masked.sum(jnp.square(g - 1), valid), masked.count(valid)),
    "weight_min": Min(masked.min(g, valid)),
    "weight_max": Max(masked.max(g, valid)),
  }


def permute(x, classes, noise):
  """Permutes x along its last axis within equal `classes`, in the order of `noise`; all of one shape."""
  places = jnp.argsort(classes, axis=-1, stable=True)
  sources = jnp.lexsort((noise, classes), axis=-1)
  return jnp.put_along_axis(x, places, jnp.take_along_axis(x, sources, -1), axis=-1, inplace=False)
