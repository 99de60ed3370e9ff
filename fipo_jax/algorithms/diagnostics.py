"""What a policy loss says about itself: `Mean`, `Max` and `Min` records over its tokens.

All of them cover every response token, those of rejected responses too, and merge across
micro-batches and hosts.
"""

from __future__ import annotations

import jax.numpy as jnp

from fipo_jax import masked
from fipo_jax.algorithms import future_kl
from fipo_jax.types import Max, Mean, Min, Quantiles

NEGATIVE_QUANTILES = {"p75": 0.75, "p995": 0.995, "p999": 0.999}
POSITIVE_QUANTILES = {"p25": 0.25, "median": 0.5, "p75": 0.75, "p995": 0.995, "p999": 0.999}
FUTURE_KL_QUANTILES = {"p01": 0.01, "p25": 0.25, "median": 0.5, "p75": 0.75, "p99": 0.99}


def token_mean(x_RT, valid_RT) -> Mean:
  """The mean of x over valid tokens, not yet divided."""
  return Mean(masked.sum(x_RT, valid_RT), masked.count(valid_RT))


def token_max(x_RT, valid_RT) -> Max:
  return Max(masked.max(x_RT, valid_RT))


def token_min(x_RT, valid_RT) -> Min:
  return Min(masked.min(x_RT, valid_RT))


def token_quantiles(x_RT, valid_RT, wanted: dict[str, float]) -> Quantiles:
  """Values and mask from which `summarise` takes quantiles, once a whole mini-batch is there."""
  return Quantiles(x_RT, valid_RT, tuple(wanted.items()))


def summarise(metrics: dict) -> dict[str, Mean | Max | Min]:
  """Replaces every `Quantiles` by one exact quantile per name, `<metric>_<name>`, over all axes of its values.

  As a `Mean` weighted by its tokens, so that the mean over mini-batches is a token mean of their quantiles.
  """
  found = {}
  for name, record in metrics.items():
    if not isinstance(record, Quantiles):
      found[name] = record
      continue
    labels, fractions = zip(*record.wanted, strict=True)
    n = masked.count(record.keep)
    values = masked.quantiles(record.values, record.keep, fractions)
    found |= {f"{name}_{label}": Mean(value * n, n) for label, value in zip(labels, values, strict=True)}
  return found


def policy_metrics(
  *, delta_RT, ratio_RT, advantages_RT, clipped_RT, dual_clipped_RT, batch, valid_RT
) -> dict[str, Mean | Max | Min | Quantiles]:
  """What every policy loss reports.

  policy_kl: mean of −delta, nats (k1 estimate of KL(old ‖ new)).
  clip_fraction, dual_clip_fraction: tokens where the clipped branch is the larger, where the dual
  clip holds. advantage_mean: per token, so long responses count more; weights of a control or
  of the sampler correction are in it. negative_… and positive_…:
  ratio statistics over tokens of that sign. positive_ratio_tiny: share of tokens with A > 0 and
  ratio < 1e-3. sampler_gap_…: the sampler's mismatch over tokens sampled in this iteration, x = old_logp −
  sampler_logp: |x| in nats, and its k3 = mean of eˣ − 1 − x, at least 0. waited_fraction: tokens sampled earlier.
  """
  fresh_RT = valid_RT if batch.age is None else valid_RT & (batch.age == 0)
  negative_RT, positive_RT = valid_RT & (advantages_RT < 0), valid_RT & (advantages_RT > 0)
  gap_RT = jnp.where(fresh_RT, batch.old_logp - batch.sampler_logp, 0)
  held_RT = jnp.clip(gap_RT, -20, 20)
  return {
    "policy_kl": token_mean(-delta_RT, valid_RT),
    "clip_fraction": token_mean(clipped_RT, valid_RT),
    "dual_clip_fraction": token_mean(dual_clipped_RT, valid_RT),
    "advantage_mean": token_mean(advantages_RT, valid_RT),
    "negative_ratio_min": token_min(ratio_RT, negative_RT),
    "negative_ratio_max": token_max(ratio_RT, negative_RT),
    "positive_ratio_min": token_min(ratio_RT, positive_RT),
    "positive_ratio_max": token_max(ratio_RT, positive_RT),
    "positive_ratio_tiny": token_mean(positive_RT & (ratio_RT < 1e-3), valid_RT),
    "sampler_gap_mean": token_mean(jnp.abs(gap_RT), fresh_RT),
    "sampler_gap_max": token_max(jnp.abs(gap_RT), fresh_RT),
    "sampler_gap_k3": token_mean(jnp.expm1(held_RT) - held_RT, fresh_RT),
    "waited_fraction": token_mean(~fresh_RT, valid_RT),
    "negative_ratio": token_quantiles(ratio_RT, negative_RT, NEGATIVE_QUANTILES),
    "positive_ratio": token_quantiles(ratio_RT, positive_RT, POSITIVE_QUANTILES),
  }


def weight_metrics(
  *, F_RT, weight_RT, ratio_RT, advantages_RT, valid_RT, weight_bounds, dual_clip
) -> dict[str, Mean | Max | Min | Quantiles]:
  """What FIPO reports beyond `policy_metrics`.

  weight_…: the weight used. Its deviation is √(weight_offset_square − (weight_mean − 1)²), with
  weight_offset_square the mean of (w − 1)²: near 1 this keeps the digits that mean(w²) − mean(w)²
  would lose. weight_upper_fraction, weight_lower_fraction: tokens at a bound, after the safety
  rule; with a lower bound of 1 that includes every untouched token. raw_weight_…: exp(F); in the
  mean it is held at `future_kl.summable_limit`, so that no sum overflows. future_kl_…: F in nats.
  negative_ratio_2_3 and so on: share of tokens with A < 0 and ratio in [2, 3), [3, 4), [4,
  dual_clip).
  """
  low, high = weight_bounds
  upper_RT, lower_RT = weight_RT >= high - 1e-7, weight_RT <= low + 1e-7
  raw_RT = future_kl.raw_weight(F_RT)
  summable_RT = jnp.minimum(raw_RT, future_kl.summable_limit(raw_RT.dtype))
  negative_RT = valid_RT & (advantages_RT < 0)

  def share_between(start, stop):
    return token_mean(negative_RT & (ratio_RT >= start) & (ratio_RT < stop), valid_RT)

  at_bound = [token_mean(x, valid_RT) for x in (upper_RT, lower_RT)]
  return {
    "weight_mean": token_mean(weight_RT, valid_RT),
    "weight_offset_square": token_mean(jnp.square(weight_RT - 1), valid_RT),
    "weight_min": token_min(weight_RT, valid_RT),
    "weight_max": token_max(weight_RT, valid_RT),
    "weight_bound_fraction": Mean(at_bound[0].total + at_bound[1].total, at_bound[0].count),
    "weight_upper_fraction": at_bound[0],
    "weight_lower_fraction": at_bound[1],
    "raw_weight_mean": token_mean(summable_RT, valid_RT),
    "raw_weight_min": token_min(raw_RT, valid_RT),
    "raw_weight_max": token_max(raw_RT, valid_RT),
    "future_kl_mean": token_mean(F_RT, valid_RT),
    "future_kl_abs_mean": token_mean(jnp.abs(F_RT), valid_RT),
    "future_kl_abs_max": token_max(jnp.abs(F_RT), valid_RT),
    "future_kl": token_quantiles(F_RT, valid_RT, FUTURE_KL_QUANTILES),
    "negative_ratio_2_3": share_between(2, 3),
    "negative_ratio_3_4": share_between(3, 4),
    "negative_ratio_4_up": share_between(4, jnp.inf if dual_clip is None else dual_clip),
  }
