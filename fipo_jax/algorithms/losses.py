"""Objectives: pure functions (logp_RT, batch, hyperparameters) -> `TokenLoss`.

The policy-gradient ones are all the same clipped surrogate: `dapo` is it, `grpo` is it with its own
settings, `fipo` weights its advantages by the future of each token, and `gspo` gives it one ratio a
response. Rows are packed; whatever concerns a response (Future-KL, rejection, sequence means) stops
at segment borders. Losses are sums with their counts: nothing is divided here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fipo_jax import masked
from fipo_jax.algorithms import aggregation, diagnostics
from fipo_jax.algorithms import future_kl as fkl
from fipo_jax.types import Batch, Mean, TokenLoss, check_axes

# Which tokens enter Future-KL, by whether their ratio is above the threshold and by the sign of their advantage.
PARTICIPATION = {
  # the published code
  "all": lambda beyond_RT, advantages_RT: ~beyond_RT,
  # the paper, eq. 5
  "negative_only": lambda beyond_RT, advantages_RT: ~(beyond_RT & (advantages_RT < 0)),
  "off": lambda beyond_RT, advantages_RT: jnp.ones_like(beyond_RT),
}


def fipo(
  logp_RT,
  batch: Batch,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.28,
  dual_clip: float | None = 10.0,
  half_life_tokens: float = 32.0,
  participation_mask: str = "all",
  participation_ratio: float | None = None,
  weight_clip: tuple[float, float] | None = (1.0, 1.2),
  raw_cap: float | None = 10.0,
  safety_mode: str = "clamp",
  safety_threshold: float = 10.0,
  sequence_reject_count: int | None = 1,
  delta_clamp: float | None = 20.0,
  loss_norm: str = "global_token",
) -> TokenLoss:
  """DAPO with each token's advantage scaled by what the policy has done to the tokens after it.

      d = clamp(logp − old_logp, ±delta_clamp),  r = exp d                                      log ratio, ratio
      F[t] = Σ_{k ≥ t} 2^(−(k − t)/half_life) · d[k] · [k participates]                         Future-KL
      w = safety(clip(exp F)), constant for differentiation                                     influence weight
      l = surrogate(r, A·w)                                                                     `clipped_surrogate`

  A response with more than `sequence_reject_count` dual-clipped tokens of negative advantage leaves
  the loss whole.

  Args:
    logp_RT: [R, T] float, nats, under the policy being trained. Differentiable.
    clip_low, clip_high, dual_clip: see `clipped_surrogate`.
    half_life_tokens: see `future_kl.future_kl`.
    participation_mask: a token with ratio above participation_ratio is left out of F: `all` of
      them, `negative_only` those of negative advantage, or none (`off`).
    participation_ratio: that threshold; None means dual_clip.
    weight_clip, raw_cap: see `future_kl.influence_weight`.
    safety_mode, safety_threshold: see `future_kl.safe_weight`.
    sequence_reject_count: dual-clipped tokens a response may have and stay; None never rejects.
    delta_clamp: bound on |d|, nats; no gradient beyond it. None: no bound (the ratio alone is still
      held finite).
    loss_norm: see `aggregation.aggregate`.
  Returns:
    per_token: delta, ratio, participation, future_kl, raw_weight, clipped_weight (before the safety
      rule), weight, token_loss, dual_clipped, keep (1 on tokens in the loss); all [R, T], to be
      read where mask is 1.
  Raises:
    ValueError: shapes disagree, or a hyperparameter is out of its range.
  Source: arXiv 2603.19835 eq. 3 to 8; the published code for dual clip, rejection and the safety
  clamp.
  """
  valid_RT, advantages_RT = _inputs(logp_RT, batch)
  delta_RT, ratio_RT = log_ratio(logp_RT, batch.old_logp, valid_RT, delta_clamp=delta_clamp)
  shift_RT, change_RT = jax.lax.stop_gradient((delta_RT, ratio_RT))

  threshold = dual_clip if participation_ratio is None else participation_ratio
  joins_RT = participates(
    shift_RT, advantages_RT, participation_mask=participation_mask, participation_ratio=threshold
  )
  F_RT = fkl.future_kl(
    shift_RT, valid_RT & joins_RT, batch.segments, half_life_tokens=half_life_tokens
  )
  clipped_weight_RT = fkl.influence_weight(F_RT, weight_clip=weight_clip, raw_cap=raw_cap)
  weight_RT = fkl.safe_weight(
    clipped_weight_RT, advantages_RT, change_RT,
    safety_mode=safety_mode, safety_threshold=safety_threshold,
  )  # fmt: skip

  surrogate = clipped_surrogate(
    ratio_RT, advantages_RT * weight_RT,
    clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip,
  )  # fmt: skip
  keep_RT = valid_RT & ~rejected(surrogate.dual_clipped, batch.segments, sequence_reject_count)
  loss = aggregation.aggregate(surrogate.loss, keep_RT, valid_RT, batch, loss_norm=loss_norm)

  metrics = _policy_metrics(loss, surrogate, delta_RT, ratio_RT, advantages_RT, batch, valid_RT)
  metrics |= diagnostics.weight_metrics(
    F_RT=F_RT, weight_RT=weight_RT, ratio_RT=ratio_RT, advantages_RT=advantages_RT, valid_RT=valid_RT,
    weight_bounds=fkl.bounds(weight_clip, raw_cap), dual_clip=dual_clip,
  )  # fmt: skip
  metrics["participation_fraction"] = diagnostics.token_mean(joins_RT, valid_RT)
  metrics["rejected_token_fraction"] = diagnostics.token_mean(~keep_RT, valid_RT)
  sequences = aggregation.sequence_count(valid_RT, batch.segments)
  dropped = aggregation.sequence_count(valid_RT & ~keep_RT, batch.segments)
  metrics["rejected_sequence_fraction"] = Mean(dropped, sequences)
  per_token = _floats(
    delta=delta_RT, ratio=ratio_RT, participation=joins_RT, future_kl=F_RT,
    raw_weight=fkl.raw_weight(F_RT), clipped_weight=clipped_weight_RT, weight=weight_RT,
    token_loss=surrogate.loss, dual_clipped=surrogate.dual_clipped, keep=keep_RT,
  )  # fmt: skip
  return TokenLoss(loss, *jax.lax.stop_gradient((metrics, per_token)))


def dapo(
  logp_RT,
  batch: Batch,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.28,
  dual_clip: float | None = 10.0,
  delta_clamp: float | None = 20.0,
  loss_norm: str = "global_token",
) -> TokenLoss:
  """The clipped surrogate with asymmetric and dual clip: l = surrogate(r, A), over all tokens.

  Args and errors as in `fipo`. per_token: delta, ratio, token_loss, dual_clipped, keep.
  Source: arXiv 2503.14476 (asymmetric clip, token mean); arXiv 1912.09729 (dual clip).
  """
  valid_RT, advantages_RT = _inputs(logp_RT, batch)
  delta_RT, ratio_RT = log_ratio(logp_RT, batch.old_logp, valid_RT, delta_clamp=delta_clamp)
  surrogate = clipped_surrogate(
    ratio_RT, advantages_RT, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
  )
  return _plain(surrogate, delta_RT, ratio_RT, advantages_RT, batch, valid_RT, loss_norm)


def grpo(logp_RT, batch: Batch, *, clip_low: float = 0.2, delta_clamp: float | None = 20.0) -> TokenLoss:
  """`dapo` with the original's settings: one clip_low on both sides, no dual clip, responses weigh the same.

  Source: arXiv 2402.03300 eq. 3, without its KL term.
  """
  return dapo(
    logp_RT, batch, clip_low=clip_low, clip_high=clip_low, dual_clip=None,
    delta_clamp=delta_clamp, loss_norm="sequence_mean",
  )  # fmt: skip


def gspo(
  logp_RT,
  batch: Batch,
  *,
  clip_low: float = 3e-4,
  clip_high: float = 4e-4,
  loss_norm: str = "sequence_mean",
) -> TokenLoss:
  """One ratio per response: the geometric mean of its tokens' ratios.

      s = exp(min(mean_t (logp − old_logp), 10)),    l = max(−A·s, −A·clip(s, 1 − clip_low, 1 + clip_high))

  Each token's own log-probability carries the gradient of s (d s / d logp[t] = s; the aggregation
  divides by the length).

  Args and errors as in `fipo`. per_token as in `dapo`, with the response's ratio on each of its
  tokens.
  Source: arXiv 2507.18071, the token variant with equal advantages.
  """
  valid_RT, advantages_RT = _inputs(logp_RT, batch)
  delta_RT = jnp.where(valid_RT, logp_RT - batch.old_logp, 0)
  fixed_RT = jax.lax.stop_gradient(delta_RT)
  tokens_RT = masked.segment_total(valid_RT, batch.segments)
  mean_RT = masked.segment_total(fixed_RT, batch.segments) / jnp.maximum(tokens_RT, 1)
  own_RT = mean_RT + (delta_RT - fixed_RT)  # the value of the mean, the gradient of the token
  ratio_RT = jnp.exp(jnp.where(mean_RT > 10, 10.0, own_RT))
  surrogate = clipped_surrogate(
    ratio_RT, advantages_RT, clip_low=clip_low, clip_high=clip_high, dual_clip=None
  )
  return _plain(surrogate, delta_RT, ratio_RT, advantages_RT, batch, valid_RT, loss_norm)


def sft(logp_RT, batch: Batch, *, loss_norm: str = "global_token") -> TokenLoss:
  """Negative log-likelihood of the response tokens: l = −logp.

  Advantages and old log-probabilities are not read.

  Raises ValueError as `fipo`. per_token: token_loss, keep.
  """
  valid_RT, _ = _inputs(logp_RT, batch)
  loss_RT = jnp.where(valid_RT, -logp_RT, 0)
  loss = aggregation.aggregate(loss_RT, valid_RT, valid_RT, batch, loss_norm=loss_norm)
  metrics = {"loss": loss, "nll": diagnostics.token_mean(loss_RT, valid_RT)}
  per_token = _floats(token_loss=loss_RT, keep=valid_RT)
  return TokenLoss(loss, *jax.lax.stop_gradient((metrics, per_token)))


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
  return masked.segment_total(dual_clipped_RT, segments_RT) > sequence_reject_count


def _clip(x, low, high):
  """clip with full gradient on the bounds (jnp.clip gives half there), none beyond, and NaN left alone."""
  beyond = (x < low) | (x > high)
  return jnp.where(beyond, jax.lax.stop_gradient(jnp.clip(x, low, high)), x)


def _inputs(logp_RT, batch: Batch):
  """Checks shapes; returns which tokens are response tokens, and their advantages (0 elsewhere)."""
  check_axes(logp_RT=logp_RT, mask_RT=batch.mask, segments_RT=batch.segments)
  check_axes(logp_RT=logp_RT, old_logp_RT=batch.old_logp, advantages_RT=batch.advantages)
  valid_RT = (batch.mask > 0) & (batch.segments > 0)
  return valid_RT, jnp.where(valid_RT, batch.advantages, 0)


def _policy_metrics(loss, surrogate, delta_RT, ratio_RT, advantages_RT, batch, valid_RT):
  return diagnostics.policy_metrics(
    loss=loss, delta_RT=delta_RT, ratio_RT=ratio_RT, advantages_RT=advantages_RT,
    clipped_RT=surrogate.clipped, dual_clipped_RT=surrogate.dual_clipped,
    batch=batch, valid_RT=valid_RT,
  )  # fmt: skip


def _plain(surrogate, delta_RT, ratio_RT, advantages_RT, batch, valid_RT, loss_norm) -> TokenLoss:
  """What dapo, grpo and gspo share after the surrogate: nothing rejected, nothing weighted."""
  loss = aggregation.aggregate(surrogate.loss, valid_RT, valid_RT, batch, loss_norm=loss_norm)
  metrics = _policy_metrics(loss, surrogate, delta_RT, ratio_RT, advantages_RT, batch, valid_RT)
  per_token = _floats(
    delta=delta_RT, ratio=ratio_RT, token_loss=surrogate.loss,
    dual_clipped=surrogate.dual_clipped, keep=valid_RT,
  )  # fmt: skip
  return TokenLoss(loss, *jax.lax.stop_gradient((metrics, per_token)))


def _floats(**arrays):
  return {k: x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))
          for k, x in arrays.items()}  # fmt: skip
