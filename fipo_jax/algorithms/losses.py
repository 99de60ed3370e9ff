"""Objectives: pure functions (logp_RT, batch, hyperparameters) -> `TokenLoss`.

Most are one clipped surrogate: `dapo` is it, `grpo`, `dr_grpo`, `rloo` and `reinforce_pp` are it with
their own clip, weighing of responses and advantages, `fipo` weights its advantages by the future of
each token, `gspo` gives it one ratio a response, and `ppo` takes its advantages from a value head.
`cispo` cuts the ratio instead of the loss. Rows are packed; whatever concerns a response (Future-KL,
rejection, sequence means) stops at segment borders. Losses are sums with their counts: nothing is
divided here.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fipo_jax.algorithms import aggregation, diagnostics
from fipo_jax.algorithms import future_kl as fkl
from fipo_jax.algorithms.segments import segment_total, sequence_count
from fipo_jax.algorithms.surrogate import (
  Surrogate,
  clipped_surrogate,
  log_ratio,
  participates,
  rejected,
)
from fipo_jax.types import Batch, Mean, TokenLoss, check_axes


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
    clip_low, clip_high, dual_clip: see `surrogate.clipped_surrogate`.
    half_life_tokens: see `future_kl.future_kl`.
    participation_mask: a token with ratio above participation_ratio is left out of F: `all` of
      them, `negative_only` those of negative advantage, or none (`off`).
    participation_ratio: that threshold; None means dual_clip.
    weight_clip, raw_cap: see `future_kl.influence_weight`.
    safety_mode, safety_threshold: see `future_kl.safe_weight`.
    sequence_reject_count: dual-clipped tokens a response may have and stay; None never rejects.
    delta_clamp: bound on |d|, nats; no gradient beyond it. None: no bound (the ratio alone is still
      held finite).
    loss_norm: see `aggregation.weigh`.
  Returns:
    per_token: delta, ratio, participation, future_kl, raw_weight, clipped_weight (before the safety
      rule), weight, token_loss, dual_clipped, keep (1 on tokens in the loss), divisor (of
      `aggregation.weigh`); all [R, T], to be read where mask is 1.
  Raises:
    ValueError: shapes disagree, or a hyperparameter is out of its range.
  Source: arXiv 2603.19835 eq. 3 to 8; the published code for dual clip, rejection and the safety
  clamp.
  """
  valid_RT, advantages_RT = _inputs(logp_RT, batch)
  delta_RT, ratio_RT = log_ratio(logp_RT, batch.old_logp, valid_RT, delta_clamp=delta_clamp)
  credit = influence(
    *jax.lax.stop_gradient((delta_RT, ratio_RT)), advantages_RT, valid_RT, batch.segments,
    half_life_tokens=half_life_tokens, participation_mask=participation_mask,
    participation_ratio=dual_clip if participation_ratio is None else participation_ratio,
    weight_clip=weight_clip, raw_cap=raw_cap, safety_mode=safety_mode, safety_threshold=safety_threshold,
  )  # fmt: skip
  surrogate = clipped_surrogate(
    ratio_RT, advantages_RT * credit.weight,
    clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip,
  )  # fmt: skip
  keep_RT = valid_RT & ~rejected(surrogate.dual_clipped, batch.segments, sequence_reject_count)

  metrics = _policy_metrics(surrogate, delta_RT, ratio_RT, advantages_RT, batch, valid_RT)
  metrics |= diagnostics.weight_metrics(
    F_RT=credit.future_kl, weight_RT=credit.weight, ratio_RT=ratio_RT, advantages_RT=advantages_RT,
    valid_RT=valid_RT, weight_bounds=fkl.bounds(weight_clip, raw_cap), dual_clip=dual_clip,
  )  # fmt: skip
  metrics["participation_fraction"] = diagnostics.token_mean(credit.joins, valid_RT)
  metrics["rejected_token_fraction"] = diagnostics.token_mean(~keep_RT, valid_RT)
  sequences = sequence_count(valid_RT, batch.segments)
  dropped = sequence_count(valid_RT & ~keep_RT, batch.segments)
  metrics["rejected_sequence_fraction"] = Mean(dropped, sequences)
  per_token = dict(
    delta=delta_RT, ratio=ratio_RT, participation=credit.joins, future_kl=credit.future_kl,
    raw_weight=fkl.raw_weight(credit.future_kl), clipped_weight=credit.clipped_weight,
    weight=credit.weight, dual_clipped=surrogate.dual_clipped,
  )  # fmt: skip
  return _token_loss(surrogate.loss, keep_RT, valid_RT, batch, metrics, per_token, loss_norm)


class Influence(NamedTuple):
  """Which tokens join Future-KL, its value (nats), and the weight before and after the safety rule; [R, T]."""

  joins: jax.Array
  future_kl: jax.Array
  clipped_weight: jax.Array
  weight: jax.Array


@jax.named_scope("future_kl")
def influence(
  delta_RT, ratio_RT, advantages_RT, valid_RT, segments_RT, *,
  half_life_tokens, participation_mask, participation_ratio, weight_clip, raw_cap, safety_mode,
  safety_threshold, scan=fkl.future_kl,
) -> Influence:  # fmt: skip
  """From log-probability shifts to the influence weight of each token. Args as `fipo`; nothing is differentiated.

  scan: `future_kl.future_kl`, or `past_kl` for the ablation that looks the other way.
  """
  joins_RT = participates(
    delta_RT, advantages_RT, participation_mask=participation_mask, participation_ratio=participation_ratio
  )
  F_RT = scan(delta_RT, valid_RT & joins_RT, segments_RT, half_life_tokens=half_life_tokens)
  clipped_RT = fkl.influence_weight(F_RT, weight_clip=weight_clip, raw_cap=raw_cap)
  weight_RT = fkl.safe_weight(
    clipped_RT, advantages_RT, ratio_RT, safety_mode=safety_mode, safety_threshold=safety_threshold
  )
  return Influence(joins_RT, F_RT, clipped_RT, weight_RT)


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

  Args and errors as in `fipo`. per_token: delta, ratio, token_loss, dual_clipped, keep, divisor.
  Source: arXiv 2503.14476 (asymmetric clip, token mean); arXiv 1912.09729 (dual clip).
  """
  return _clipped(
    logp_RT, batch, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip, delta_clamp=delta_clamp,
    loss_norm=loss_norm,
  )  # fmt: skip


def grpo(logp_RT, batch: Batch, *, clip_low: float = 0.2, delta_clamp: float | None = 20.0) -> TokenLoss:
  """`dapo` with the original's settings: one clip_low on both sides, no dual clip, responses weigh the same.

  Source: arXiv 2402.03300 eq. 3; its KL term is `terms.with_terms`.
  """
  return _clipped(logp_RT, batch, clip_low=clip_low, delta_clamp=delta_clamp, loss_norm="sequence_mean")


def dr_grpo(
  logp_RT, batch: Batch, *, clip_low: float = 0.2, delta_clamp: float | None = 20.0, max_response_tokens: int = 1
) -> TokenLoss:
  """`grpo` without its two biases: no division by a response's length, and advantages not divided by a deviation.

      loss = Σ_responses Σ_t l / max_response_tokens / responses,    A = r − mean_group r

  max_response_tokens: the limit of the rollout; a constant, so it only sets the scale.
  Source: arXiv 2503.20783 section 3 and its code (a constant instead of the length).
  """
  return _clipped(
    logp_RT, batch, clip_low=clip_low, delta_clamp=delta_clamp, loss_norm="sequence_fixed",
    max_response_tokens=max_response_tokens,
  )  # fmt: skip


def rloo(logp_RT, batch: Batch, *, clip_low: float = 0.2, delta_clamp: float | None = 20.0) -> TokenLoss:
  """REINFORCE with the other samples of the group as baseline, clipped for updates after the first.

      loss = Σ_responses Σ_t l / responses,    A[i] = r[i] − mean_{j ≠ i} r[j]

  At the sampling policy its gradient is −A · ∇ log π(response), the estimator of the paper.

  Source: arXiv 2402.14740 section 2; the clip (one epsilon, per token) as other multi-update trainers add it.
  """
  return _clipped(logp_RT, batch, clip_low=clip_low, delta_clamp=delta_clamp, loss_norm="sequence_sum")


def reinforce_pp(logp_RT, batch: Batch, *, clip_low: float = 0.2, delta_clamp: float | None = 20.0) -> TokenLoss:
  """REINFORCE++: the clipped surrogate over all tokens, with advantages normalised over the whole batch.

      A[i] = (r[i] − mean_batch r) / std_batch r

  Source: arXiv 2501.03262 section 3; its KL penalty is `terms.with_terms`, in the loss instead of the reward.
  """
  return _clipped(logp_RT, batch, clip_low=clip_low, delta_clamp=delta_clamp, loss_norm="global_token")


def ppo(
  logp_RT,
  batch: Batch,
  *,
  clip_low: float = 0.2,
  delta_clamp: float | None = 20.0,
) -> TokenLoss:
  """PPO's policy loss: the clipped surrogate with one epsilon; its advantages are `gae.gae` of a value head.

  The value loss is added by `terms.with_terms`.
  Source: arXiv 1707.06347 eq. 7.
  """
  return _clipped(logp_RT, batch, clip_low=clip_low, delta_clamp=delta_clamp, loss_norm="global_token")


def cispo(
  logp_RT,
  batch: Batch,
  *,
  cispo_ratio_cap: float = 5.0,
  delta_clamp: float | None = 20.0,
  loss_norm: str = "global_token",
) -> TokenLoss:
  """REINFORCE with a truncated importance ratio: no token ever loses its gradient.

      l = −sg(min(r, cispo_ratio_cap)) · A · logp,    sg: constant for differentiation

  Args and errors as in `fipo`. per_token as in `dapo`; `clip_fraction` counts truncated ratios.
  Source: arXiv 2506.13585 eq. 4 (no lower bound, as there); 2510.13786 for caps of 4 to 8.
  """
  if not cispo_ratio_cap > 0:
    raise ValueError(f"cispo_ratio_cap={cispo_ratio_cap}; must be above 0.")
  valid_RT, advantages_RT = _inputs(logp_RT, batch)
  delta_RT, ratio_RT = log_ratio(logp_RT, batch.old_logp, valid_RT, delta_clamp=delta_clamp)
  held_RT = jax.lax.stop_gradient(jnp.minimum(ratio_RT, cispo_ratio_cap))
  loss_RT = -held_RT * advantages_RT * jnp.where(valid_RT, logp_RT, 0)
  surrogate = Surrogate(loss_RT, ratio_RT > cispo_ratio_cap, jnp.zeros_like(valid_RT))
  return _plain(surrogate, delta_RT, ratio_RT, advantages_RT, batch, valid_RT, loss_norm)


def gspo(
  logp_RT,
  batch: Batch,
  loss_norm: str = "sequence_mean",
  *,
  gspo_clip_low: float = 3e-4,
  gspo_clip_high: float = 4e-4,
) -> TokenLoss:
  """One ratio per response: the geometric mean of its tokens' ratios; responses weigh the same.

      s = exp(min(mean_t (logp − old_logp), 10)),    l = max(−A·s, −A·clip(s, 1 − gspo_clip_low, 1 + gspo_clip_high))

  Each token's own log-probability carries the gradient of s (d s / d logp[t] = s; the weighing
  divides by the length).

  Args and errors as in `fipo`; loss_norm is the paper's, and not the config's to change. per_token as in `dapo`,
  with the response's ratio on each of its tokens.
  Source: arXiv 2507.18071, the token variant with equal advantages.
  """
  valid_RT, advantages_RT = _inputs(logp_RT, batch)
  delta_RT = jnp.where(valid_RT, logp_RT - batch.old_logp, 0)
  fixed_RT = jax.lax.stop_gradient(delta_RT)
  tokens_RT = segment_total(valid_RT, batch.segments)
  mean_RT = segment_total(fixed_RT, batch.segments) / jnp.maximum(tokens_RT, 1)
  own_RT = mean_RT + (delta_RT - fixed_RT)  # the value of the mean, the gradient of the token
  ratio_RT = jnp.exp(jnp.where(mean_RT > 10, 10.0, own_RT))
  surrogate = clipped_surrogate(
    ratio_RT, advantages_RT, clip_low=gspo_clip_low, clip_high=gspo_clip_high, dual_clip=None
  )
  return _plain(surrogate, delta_RT, ratio_RT, advantages_RT, batch, valid_RT, loss_norm)


def sft(logp_RT, batch: Batch, *, loss_norm: str = "global_token") -> TokenLoss:
  """Negative log-likelihood of the response tokens: l = −logp.

  Advantages and old log-probabilities are not read.

  Raises ValueError as `fipo`. per_token: token_loss, keep, divisor.
  """
  valid_RT, _ = _inputs(logp_RT, batch)
  loss_RT = jnp.where(valid_RT, -logp_RT, 0)
  metrics = {"nll": diagnostics.token_mean(loss_RT, valid_RT)}
  return _token_loss(loss_RT, valid_RT, valid_RT, batch, metrics, {}, loss_norm)


def _inputs(logp_RT, batch: Batch):
  """Checks shapes; returns which tokens are response tokens, and their advantages (0 elsewhere)."""
  check_axes(logp_RT=logp_RT, mask_RT=batch.mask, segments_RT=batch.segments)
  check_axes(logp_RT=logp_RT, old_logp_RT=batch.old_logp, advantages_RT=batch.advantages)
  valid_RT = (batch.mask > 0) & (batch.segments > 0)
  return valid_RT, jnp.where(valid_RT, batch.advantages, 0)


def _policy_metrics(surrogate, delta_RT, ratio_RT, advantages_RT, batch, valid_RT):
  return diagnostics.policy_metrics(
    delta_RT=delta_RT, ratio_RT=ratio_RT, advantages_RT=advantages_RT,
    clipped_RT=surrogate.clipped, dual_clipped_RT=surrogate.dual_clipped,
    batch=batch, valid_RT=valid_RT,
  )  # fmt: skip


def _clipped(
  logp_RT, batch, *, clip_low, delta_clamp, loss_norm, clip_high=None, dual_clip=None, max_response_tokens=None
) -> TokenLoss:  # fmt: skip
  """The clipped surrogate over all tokens; clip_high None means clip_low on both sides."""
  valid_RT, advantages_RT = _inputs(logp_RT, batch)
  delta_RT, ratio_RT = log_ratio(logp_RT, batch.old_logp, valid_RT, delta_clamp=delta_clamp)
  surrogate = clipped_surrogate(
    ratio_RT, advantages_RT, clip_low=clip_low, clip_high=clip_low if clip_high is None else clip_high,
    dual_clip=dual_clip,
  )  # fmt: skip
  return _plain(surrogate, delta_RT, ratio_RT, advantages_RT, batch, valid_RT, loss_norm, max_response_tokens)


def _plain(
  surrogate, delta_RT, ratio_RT, advantages_RT, batch, valid_RT, loss_norm, max_response_tokens=None
) -> TokenLoss:
  """What objectives other than fipo share after the surrogate: nothing rejected, nothing weighted."""
  metrics = _policy_metrics(surrogate, delta_RT, ratio_RT, advantages_RT, batch, valid_RT)
  per_token = dict(delta=delta_RT, ratio=ratio_RT, dual_clipped=surrogate.dual_clipped)
  return _token_loss(surrogate.loss, valid_RT, valid_RT, batch, metrics, per_token, loss_norm, max_response_tokens)


def _token_loss(
  loss_RT, keep_RT, valid_RT, batch, metrics, per_token, loss_norm, max_response_tokens=None
) -> TokenLoss:
  weighing = aggregation.weigh(
    keep_RT, valid_RT, batch, loss_norm=loss_norm, max_response_tokens=max_response_tokens
  )
  loss = aggregation.weighed_sum(loss_RT, keep_RT, weighing)
  per_token = _floats(**per_token, token_loss=loss_RT, keep=keep_RT, divisor=weighing.divisor_RT)
  return TokenLoss(loss, *jax.lax.stop_gradient(({"loss": loss, **metrics}, per_token)))


def _floats(**arrays):
  return {k: x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))
          for k, x in arrays.items()}  # fmt: skip
