"""Terms that any objective can carry: KL to a reference policy, entropy bonus, value loss, sampler correction."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fipo_jax import masked
from fipo_jax.algorithms import diagnostics
from fipo_jax.types import Batch, Mean, TokenLoss

# Estimates of KL(policy ‖ reference) at a sampled token, x = ref_logp − logp, in nats.
KL_ESTIMATES = {
  "k1": lambda x: -x,
  "k2": lambda x: 0.5 * jnp.square(x),
  "k3": lambda x: jnp.expm1(x) - x,
}


def kl_estimate(logp_RT, ref_logp_RT, valid_RT, *, kind: str):
  """Per-token estimate of KL(policy ‖ reference) from samples of the policy.

      k1 = −x,    k2 = x² / 2,    k3 = eˣ − 1 − x,        x = clamp(ref_logp − logp, ±20)

  k1 and k3 are unbiased, k2 and k3 never negative. As a loss they differ: the expected gradient of k2 is that of the
  reverse KL; that of k1 is zero, so it only adds noise; k3's is that of the forward KL.

  Args:
    logp_RT: [R, T] nats, differentiable. ref_logp_RT: [R, T] nats, constant. valid_RT: [R, T] bool; 0 elsewhere.
  Raises ValueError for an unknown kind.
  Source: J. Schulman, "Approximating KL Divergence" (2020); arXiv 2402.03300 eq. 4 (k3).
  """
  if kind not in KL_ESTIMATES:
    raise ValueError(f"reference_kl={kind!r}; choose one of {', '.join(KL_ESTIMATES)}.")
  x_RT = jnp.where(valid_RT, ref_logp_RT - logp_RT, 0)
  x_RT = jnp.where(jnp.abs(x_RT) > 20, jax.lax.stop_gradient(jnp.clip(x_RT, -20, 20)), x_RT)
  return KL_ESTIMATES[kind](x_RT)


def sampler_weight(old_logp_RT, sampler_logp_RT, valid_RT, *, cap: float):
  """Truncated importance weight of the trainer's policy over the sampler's: min(exp(old − sampler), cap), constant.

  For tokens of this iteration that is what the sampler's numerics did differently; for groups that have waited, also
  how far the policy has moved since.

  Source: "Your efficient RL framework secretly brings you off-policy RL training" (Yao et al. 2025).
  """
  gap_RT = jnp.where(valid_RT, old_logp_RT - sampler_logp_RT, 0)
  return jax.lax.stop_gradient(jnp.minimum(jnp.exp(jnp.minimum(gap_RT, 20.0)), cap))


def value_loss(values_RT, old_values_RT, returns_RT, *, value_clip: float | None):
  """Squared error of the value head, pessimistic about moves beyond a trust region; per token.

      l = ½ · max((V − R)², (V_old + clip(V − V_old, ±value_clip) − R)²)

  Args: [R, T] each, units of reward; V is differentiable. value_clip: same unit; None for the plain square.
  Source: the value clipping of PPO's public implementation.
  """
  free_RT = jnp.square(values_RT - returns_RT)
  if value_clip is None:
    return 0.5 * free_RT
  held_RT = old_values_RT + jnp.clip(values_RT - old_values_RT, -value_clip, value_clip)
  return 0.5 * jnp.maximum(free_RT, jnp.square(held_RT - returns_RT))


@dataclasses.dataclass(frozen=True)
class Terms:
  """Which terms are on. A coefficient of 0, or a cap of None, leaves its term out of the program.

  reference_kl: a row of KL_ESTIMATES. reference_kl_coef, entropy_coef, value_coef: factors in the loss.
  sampler_ratio_cap: bound of `sampler_weight`. value_clip: see `value_loss`.
  """

  reference_kl: str = "k3"
  reference_kl_coef: float = 0.0
  entropy_coef: float = 0.0
  sampler_ratio_cap: float | None = None
  value_coef: float = 0.0
  value_clip: float | None = None

  def __post_init__(self):
    if self.reference_kl not in KL_ESTIMATES:
      raise ValueError(f"reference_kl={self.reference_kl!r}; choose one of {', '.join(KL_ESTIMATES)}.")
    for field in ("reference_kl_coef", "entropy_coef", "value_coef"):
      if not getattr(self, field) >= 0:
        raise ValueError(f"{field}={getattr(self, field)}; must be at least 0.")
    if self.sampler_ratio_cap is not None and not self.sampler_ratio_cap > 0:
      raise ValueError(f"sampler_ratio_cap={self.sampler_ratio_cap}; must be above 0, or None for no correction.")


def with_terms(objective: Callable[[jax.Array, Batch], TokenLoss], terms: Terms) -> Callable[..., TokenLoss]:
  """An objective that also takes entropies and values, and adds the terms that are on.

      loss = objective(A · w_sampler)
             + Σ_t share[t] · (reference_kl_coef · k[t] − entropy_coef · H[t] + value_coef · v[t])

  share: how the objective weighs token t (its loss_norm, rejected responses left out), so that a term is on the scale
  of the loss. The sampler's weight goes into the advantages: objectives are linear in |A|.

  Returns: (logp_RT, batch, entropy_RT=None, values_RT=None) -> TokenLoss; entropy_RT [R, T] nats and values_RT [R, T]
    are differentiable and needed by their terms only. Metrics: reference_kl, value_loss, sampler_weight_mean.
  """

  def apply(logp_RT, batch: Batch, entropy_RT=None, values_RT=None) -> TokenLoss:
    valid_RT = (batch.mask > 0) & (batch.segments > 0)
    metrics, extra_RT = {}, 0.0
    if terms.sampler_ratio_cap is not None:
      weight_RT = sampler_weight(batch.old_logp, batch.sampler_logp, valid_RT, cap=terms.sampler_ratio_cap)
      batch = dataclasses.replace(batch, advantages=jnp.where(valid_RT, batch.advantages, 0) * weight_RT)
      metrics["sampler_weight_mean"] = diagnostics.token_mean(weight_RT, valid_RT)
    out = objective(logp_RT, batch)
    if terms.reference_kl_coef:
      k_RT = kl_estimate(logp_RT, batch.ref_logp, valid_RT, kind=terms.reference_kl)
      extra_RT += terms.reference_kl_coef * k_RT
      metrics["reference_kl"] = diagnostics.token_mean(k_RT, valid_RT)
    if terms.entropy_coef:
      extra_RT -= terms.entropy_coef * jnp.where(valid_RT, entropy_RT, 0)
    if terms.value_coef:
      old_RT, returns_RT = (jnp.where(valid_RT, x, 0) for x in (batch.old_values, batch.returns))
      v_RT = value_loss(jnp.where(valid_RT, values_RT, 0), old_RT, returns_RT, value_clip=terms.value_clip)
      extra_RT += terms.value_coef * v_RT
      metrics["value_loss"] = diagnostics.token_mean(v_RT, valid_RT)
      metrics["value_mean"] = diagnostics.token_mean(values_RT, valid_RT)
      metrics["returns_mean"] = diagnostics.token_mean(returns_RT, valid_RT)
    if isinstance(extra_RT, float):
      return dataclasses.replace(out, metrics={**out.metrics, **metrics})
    metrics = jax.lax.stop_gradient(metrics)
    added = masked.sum(extra_RT / out.per_token["divisor"], out.per_token["keep"] > 0)
    loss = Mean(out.loss.total + added, out.loss.count)
    return dataclasses.replace(out, loss=loss, metrics={**out.metrics, **metrics})

  return apply
