"""The parts of a clipped policy loss: ratio, participation in Future-KL, clipped surrogate, rejection."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fipo_jax.algorithms.segments import segment_total

# Which tokens enter Future-KL, by whether their ratio is above the threshold and by the sign of their advantage.
PARTICIPATION = {
  # the published code
  "all": lambda beyond_RT, advantages_RT: ~beyond_RT,
  # the paper, eq. 5
  "negative_only": lambda beyond_RT, advantages_RT: ~(beyond_RT & (advantages_RT < 0)),
  "off": lambda beyond_RT, advantages_RT: jnp.ones_like(beyond_RT),
}


def log_ratio(logp_RT, old_logp_RT, valid_RT, *, delta_clamp: float | None):
  """(d, r): d = clamp(logp − old_logp, ±delta_clamp) and r = exp d; 0 and 1 where not valid.

  The gradient passes inside the bounds, bounds included, and is 0 beyond. NaN on a valid token
  stays NaN: it must be seen.
  """
  if delta_clamp is not None and not delta_clamp > 0:
    raise ValueError(f"delta_clamp={delta_clamp}; must be above 0, or None for no bound.")
  delta_RT = jnp.where(valid_RT, logp_RT - old_logp_RT, 0)
  if delta_clamp is None:
    return delta_RT, jnp.exp(jnp.minimum(delta_RT, 80.0))  # exp(89) overflows float32
  delta_RT = _clip(delta_RT, -delta_clamp, delta_clamp)
  return delta_RT, jnp.exp(delta_RT)


def participates(
  delta_RT, advantages_RT, *, participation_mask: str, participation_ratio: float | None
):
  """[R, T] bool: whether a token's shift enters Future-KL; a ratio equal to the threshold does.

  Raises ValueError for an unknown participation_mask, or a threshold missing or not above 0.
  """
  if participation_mask not in PARTICIPATION:
    raise ValueError(
      f"participation_mask={participation_mask!r}; choose one of {', '.join(PARTICIPATION)}."
    )
  if participation_mask == "off":
    return jnp.ones_like(delta_RT, bool)
  if participation_ratio is None or not participation_ratio > 0:
    raise ValueError(
      f"participation_mask={participation_mask!r} needs a ratio: set participation_ratio or dual_clip above 0, "
      "or participation_mask='off'."
    )
  return PARTICIPATION[participation_mask](delta_RT > math.log(participation_ratio), advantages_RT)


class Surrogate(NamedTuple):
  """Per-token loss, where its clipped branch is the larger, and where the dual clip holds it; [R, T]."""

  loss: jax.Array
  clipped: jax.Array
  dual_clipped: jax.Array


def clipped_surrogate(
  ratio_RT, advantages_RT, *, clip_low: float, clip_high: float, dual_clip: float | None
) -> Surrogate:
  """The pessimistic policy loss of each token.

      u = max(−A·r, −A·clip(r, 1 − clip_low, 1 + clip_high)),    l = min(u, −A·dual_clip) where A < 0, else u

  Args:
    ratio_RT: [R, T]. Differentiable.
    advantages_RT: [R, T], weights included, constant.
    clip_low, clip_high: offsets from 1, at least 0.
    dual_clip: ratio above which a bad token pushes no more, above 1; None for no such limit.
  Raises ValueError when one is out of range.
  """
  if not (clip_low >= 0 and clip_high >= 0):
    raise ValueError(f"clip_low={clip_low}, clip_high={clip_high}; both must be at least 0.")
  if dual_clip is not None and not dual_clip > 1:
    raise ValueError(f"dual_clip={dual_clip}; must be above 1, or None for no dual clip.")
  free_RT = -advantages_RT * ratio_RT
  held_RT = -advantages_RT * _clip(ratio_RT, 1 - clip_low, 1 + clip_high)
  loss_RT, clipped_RT = jnp.maximum(free_RT, held_RT), held_RT > free_RT
  if dual_clip is None:
    return Surrogate(loss_RT, clipped_RT, jnp.zeros_like(clipped_RT))
  limit_RT = -advantages_RT * dual_clip
  bad_RT = advantages_RT < 0
  dual_clipped_RT = bad_RT & (loss_RT > limit_RT)
  loss_RT = jnp.where(bad_RT, jnp.minimum(loss_RT, limit_RT), loss_RT)
  return Surrogate(loss_RT, clipped_RT, dual_clipped_RT)


def rejected(dual_clipped_RT, segments_RT, sequence_reject_count: int | None):
  """[R, T] bool: tokens of responses with more than sequence_reject_count dual-clipped tokens; None: no token."""
  if sequence_reject_count is None:
    return jnp.zeros_like(dual_clipped_RT)
  if sequence_reject_count < 0:
    raise ValueError(
      f"sequence_reject_count={sequence_reject_count}; must be at least 0, or None to reject nothing."
    )
  return segment_total(dual_clipped_RT, segments_RT) > sequence_reject_count


def _clip(x, low, high):
  """clip with full gradient on the bounds (jnp.clip gives half there), none beyond, and NaN left alone."""
  beyond = (x < low) | (x > high)
  return jnp.where(beyond, jax.lax.stop_gradient(jnp.clip(x, low, high)), x)
