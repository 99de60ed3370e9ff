"""Future-KL and the weight it gives a token: the part of FIPO that is not DAPO."""

from __future__ import annotations

import math

import jax.numpy as jnp

from fipo_jax.algorithms.segments import discounted_sum


def future_kl(delta_RT, counts_RT, segments_RT, *, half_life_tokens: float):
  """Discounted sum of log-probability shifts from each token to the end of its response.

      F[t] = Σ_{k ≥ t, same segment} γ^(k − t) · counts[k] · delta[k],    γ = 2^(−1 / half_life_tokens)

  F > 0: what follows token t, itself included, is being reinforced. A token that does not count
  adds nothing (even when its delta is NaN) but still lies between its neighbours: distance is in
  positions. Gradients are the caller's to stop.

  Args:
    delta_RT: [R, T] float, nats. Computed in float32, or float64 when delta is.
    counts_RT: [R, T] bool or 0/1, whether the token adds to the sum.
    segments_RT: [R, T] int, responses of a packed row; the sum stops at the last token of each.
    half_life_tokens: distance at which a shift counts half, in tokens, above 0.
  Returns: [R, T], nats.
  Raises:
    ValueError: half_life_tokens is not above 0, or as in `segments.discounted_sum`.
  Source: arXiv 2603.19835 eq. 4 and 6.
  """
  return _kl(delta_RT, counts_RT, segments_RT, half_life_tokens, reverse=True)


def past_kl(delta_RT, counts_RT, segments_RT, *, half_life_tokens: float):
  """Future-KL turned around: the shifts from the start of the response to each token. A control, not in the paper.

      P[t] = Σ_{k ≤ t, same segment} γ^(t − k) · counts[k] · delta[k],    γ = 2^(−1 / half_life_tokens)

  The same discount and, over a response, as many terms; but nothing in it follows from the token.

  Args, returns and errors as in `future_kl`.
  """
  return _kl(delta_RT, counts_RT, segments_RT, half_life_tokens, reverse=False)


def _kl(delta_RT, counts_RT, segments_RT, half_life_tokens: float, reverse: bool):
  if not half_life_tokens > 0:
    raise ValueError(f"half_life_tokens={half_life_tokens}; must be above 0 (32 is the paper's).")
  x_RT = jnp.where(jnp.asarray(counts_RT, bool), delta_RT, 0)
  return discounted_sum(x_RT, segments_RT, decay=2.0 ** (-1.0 / half_life_tokens), reverse=reverse)


def raw_weight(F_RT):
  """exp(F), held just below the largest finite number so that it never becomes inf."""
  return jnp.exp(jnp.minimum(F_RT, math.log(jnp.finfo(F_RT.dtype).max) - 2e-5))


def summable_limit(dtype) -> float:
  """The largest raw weight that enters a loss or a mean: e^25 below overflow, so sums and products stay finite."""
  return math.exp(math.log(float(jnp.finfo(dtype).max)) - 25.0)


def bounds(weight_clip: tuple[float, float] | None, raw_cap: float | None) -> tuple[float, float]:
  """(lowest, highest) weight before the safety rule: weight_clip, or (0, raw_cap) without one.

  Raises ValueError when weight_clip is no ordered pair or raw_cap is not above 0.
  """
  if weight_clip is not None:
    if len(weight_clip) != 2 or not weight_clip[0] <= weight_clip[1]:
      raise ValueError(
        f"weight_clip={weight_clip}; expected (low, high) with low <= high, or None."
      )
    return float(weight_clip[0]), float(weight_clip[1])
  if raw_cap is not None and not raw_cap > 0:
    raise ValueError(f"raw_cap={raw_cap}; must be above 0, or None for no cap.")
  return 0.0, math.inf if raw_cap is None else float(raw_cap)


def influence_weight(F_RT, *, weight_clip: tuple[float, float] | None, raw_cap: float | None):
  """The weight Future-KL gives a token, before the safety rule.

      w = clip(exp F, low, high)    with weight_clip = (low, high)
      w = min(exp F, raw_cap)       without

  Args:
    F_RT: [R, T] float, nats.
    weight_clip: bounds of the weight (not offsets from 1), or None.
    raw_cap: upper bound used only when weight_clip is None; None leaves it open (up to
      `summable_limit`).
  Source: arXiv 2603.19835 eq. 7; the cap is the published code's meaning of a clip ratio of 0.
  """
  low, high = bounds(weight_clip, raw_cap)
  return jnp.clip(raw_weight(F_RT), low, min(high, summable_limit(F_RT.dtype)))


SAFETY = {
  "clamp": lambda weight_RT: jnp.clip(weight_RT, 0.8, 1.0),  # published code
  "reset": jnp.ones_like,  # paper
  "off": lambda weight_RT: weight_RT,
}


def safe_weight(weight_RT, advantages_RT, ratio_RT, *, safety_mode: str, safety_threshold: float):
  """Holds back the weight of tokens that are bad and have already become much more likely.

      A < 0 and ratio > threshold:  w ← clip(w, 0.8, 1) (`clamp`),  1 (`reset`),  w (`off`);
      elsewhere unchanged

  `clamp` also raises weights below 0.8, which exist when there is no lower weight clip.

  Raises ValueError for an unknown safety_mode.
  Source: arXiv 2603.19835 section 3.2.2 (reset); the published code (clamp).
  """
  if safety_mode not in SAFETY:
    raise ValueError(f"safety_mode={safety_mode!r}; choose one of {', '.join(SAFETY)}.")
  risky_RT = (advantages_RT < 0) & (ratio_RT > safety_threshold)
  return jnp.where(risky_RT, SAFETY[safety_mode](weight_RT), weight_RT)
