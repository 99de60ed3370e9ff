"""Future-KL and the weight it gives a token: the part of FIPO that is not DAPO."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from fipo_jax import sharding


def discounted_sum(x_RT, segments_RT, *, decay: float, reverse: bool = True):
  """Sum over the rest of a token's segment, each term discounted by its distance.

      S[t] = x[t] + decay · S[t + 1]    where segments[t + 1] = segments[t], else x[t]     (reverse)
      S[t] = x[t] + decay · S[t − 1]    where segments[t − 1] = segments[t], else x[t]     (otherwise)

  Under a mesh that cuts the tokens of a row, every shard scans its own part, and one all-gather of
  four numbers per row and shard (not of the row) lets it add what comes from beyond its border.

  Args:
    x_RT: [R, T] float, any unit. Computed in float32, or float64 when x is. Differentiable.
    segments_RT: [R, T] int in 0..2²⁴, in runs; the sum stops at the end of a run.
    decay: factor per position, in [0, 1].
    reverse: True sums over k ≥ t, False over k ≤ t.
  Returns: [R, T], the unit of x.
  Raises:
    ValueError: decay is not in [0, 1], or the mesh cuts T into unequal parts.
  """
  if not 0 <= decay <= 1:
    raise ValueError(f"decay={decay}; must be in [0, 1].")
  x_RT, segments_RT = jnp.asarray(x_RT), jnp.asarray(segments_RT)
  x_RT = x_RT.astype(jnp.promote_types(x_RT.dtype, jnp.float32))
  axes = sharding.RULES["tokens"]
  sizes = jax.sharding.get_abstract_mesh().shape  # no mesh has no axes
  shards = math.prod(sizes.get(axis, 1) for axis in axes)
  if shards == 1:
    return _sum_of_part(x_RT, segments_RT, decay, reverse)[1]
  if x_RT.shape[1] % shards:
    raise ValueError(f"rows of {x_RT.shape[1]} tokens cannot be cut over mesh {'*'.join(axes)}={shards}.")

  def of_shard(x_RT, segments_RT):
    decay_RT, S_RT = _sum_of_part(x_RT, segments_RT, decay, reverse)
    out, into = (0, -1) if reverse else (-1, 0)  # the ends where the sum leaves this shard and enters it
    edges = decay_RT[:, out], S_RT[:, out], segments_RT[:, out], segments_RT[:, into]
    edges_ER = jnp.stack([edge.astype(S_RT.dtype) for edge in edges])
    edges_NER = jax.lax.all_gather(edges_ER, axes)  # N shards
    decay_NR, S_NR, out_NR, into_NR = jnp.moveaxis(edges_NER, 1, 0)
    goes_on_NR = into_NR == _from_neighbour(out_NR, reverse)
    _, S_NR = _scan(jnp.where(goes_on_NR, decay_NR, 0), S_NR, reverse, axis=0)
    beyond_NR = jnp.where(goes_on_NR, _from_neighbour(S_NR, reverse), 0)
    return S_RT + decay_RT * beyond_NR[jax.lax.axis_index(axes)][:, None]

  rows = sharding.spec("rows", "tokens")
  return jax.shard_map(of_shard, in_specs=(rows, rows), out_specs=rows)(x_RT, segments_RT)


def _sum_of_part(x_RT, segments_RT, decay: float, reverse: bool):
  """(decay from just beyond the part's end to each token, the sum within the part), both [R, T].

  The token at that end is taken to have a neighbour of its own segment.
  """
  next_RT = jnp.roll(segments_RT, -1 if reverse else 1, axis=1)
  inside_RT = (segments_RT == next_RT).at[:, -1 if reverse else 0].set(True)
  return _scan(jnp.where(inside_RT, decay, 0).astype(x_RT.dtype), x_RT, reverse, axis=1)


def _scan(decay, x, reverse: bool, axis: int):
  """(cumulative product of decay, S[t] = x[t] + decay[t] · S[t ± 1]) along an axis."""

  def combine(before, here):
    return here[0] * before[0], here[1] + here[0] * before[1]

  return jax.lax.associative_scan(combine, (decay, x), reverse=reverse, axis=axis)


def _from_neighbour(x_NR, reverse: bool):
  """What each shard's neighbour on the side the sum comes from has; 0 where there is none."""
  zero_1R = jnp.zeros_like(x_NR[:1])
  return jnp.concatenate([x_NR[1:], zero_1R] if reverse else [zero_1R, x_NR[:-1]])


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
    ValueError: half_life_tokens is not above 0, or as in `discounted_sum`.
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
