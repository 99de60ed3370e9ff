"""Sums over the responses of packed rows: one scan, which also works where a row is cut over several devices."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from fipo_jax import masked, sharding


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


def segment_total(x_RT, segments_RT):
  """Gives each token the sum of x over its own segment.

      total[r, t] = Σ_k x[r, k] · [segments[r, k] = segments[r, t]]

  As what lies before, plus what lies after: O(T), and no more exchange between devices than `discounted_sum`.
  Padding is a segment of its own (0). Mask x first: this adds whatever it is given.

  Args:
    x_RT: [R, T] float, int or bool. segments_RT: [R, T] int, in runs.
  """
  x_RT = jnp.asarray(x_RT)
  if not jnp.issubdtype(x_RT.dtype, jnp.floating):
    x_RT = x_RT.astype(jnp.result_type(float))
  after_RT = discounted_sum(x_RT, segments_RT, decay=1.0)
  before_RT = discounted_sum(x_RT, segments_RT, decay=1.0, reverse=False)
  return before_RT + after_RT - x_RT


def sequence_count(valid_RT, segments_RT):
  """Responses with any valid token, as a float."""
  last_RT = (segments_RT != jnp.roll(segments_RT, -1, axis=1)).at[:, -1].set(True)
  return masked.count(last_RT & (segments_RT > 0) & (segment_total(valid_RT, segments_RT) > 0))
