"""What a sum of per-token losses is divided by: the part of an objective that weighs responses.

Losses stay sums with their counts; the division happens once, after micro-batches and hosts are
added.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fipo_jax import masked
from fipo_jax.algorithms.segments import segment_total, sequence_count
from fipo_jax.types import Batch, Mean


def _global_token(keep_RT, valid_RT, batch, limit):
  return jnp.ones(keep_RT.shape), masked.count(keep_RT)


def _sequence_mean(keep_RT, valid_RT, batch, limit):
  tokens_RT = jnp.maximum(segment_total(keep_RT, batch.segments), 1)
  return tokens_RT, sequence_count(valid_RT, batch.segments)


def _sequence_sum(keep_RT, valid_RT, batch, limit):
  return jnp.ones(keep_RT.shape), sequence_count(valid_RT, batch.segments)


def _sequence_fixed(keep_RT, valid_RT, batch, limit):
  if not limit or not limit > 0:
    raise ValueError(f"max_response_tokens={limit}: loss_norm='sequence_fixed' divides by it; give it, above 0.")
  return jnp.full(keep_RT.shape, float(limit)), sequence_count(valid_RT, batch.segments)


def _group_token(keep_RT, valid_RT, batch, limit):
  tokens_RT = jnp.where(valid_RT, batch.group_tokens, 1)
  return tokens_RT, masked.sum(1 / tokens_RT, valid_RT)


def _verl_microbatch(keep_RT, valid_RT, batch, limit):
  rows = sequence_count(valid_RT, batch.segments)
  tokens = masked.count(keep_RT) + 1e-8
  return jnp.full(keep_RT.shape, tokens / jnp.maximum(rows, 1)), rows


LOSS_NORMS = {
  "global_token": _global_token,
  "sequence_mean": _sequence_mean,
  "sequence_sum": _sequence_sum,
  "sequence_fixed": _sequence_fixed,
  "group_token": _group_token,
  "verl_microbatch": _verl_microbatch,
}


class Weighing(NamedTuple):
  """How a loss_norm weighs tokens: loss = Σ_keep l / divisor_RT, divided in the end by count."""

  divisor_RT: jax.Array
  count: jax.Array


def weigh(
  keep_RT, valid_RT, batch: Batch, *, loss_norm: str, max_response_tokens: int | None = None
) -> Weighing:
  """Says by what each token's loss, and in the end their sum, is to be divided.

      global_token     Σ l / kept tokens                       every token counts the same
      sequence_mean    Σ_responses (mean of l) / responses     every response counts the same
      sequence_sum     Σ l / responses                         longer responses count more
      sequence_fixed   Σ l / max_response_tokens / responses   the same on the scale of a token
      group_token      Σ_groups (Σ l / tokens of the group) / groups
      verl_microbatch  Σ_micro n_micro · (mean of l in it) / Σ n_micro,   n: responses

  A rejected response leaves the sum, and the count of `global_token`; it still counts as a response
  and in its group's tokens. Responses without any valid token do not count.

  `verl_microbatch` is the published trainer's own, for comparison only: it depends on how the batch
  was cut into micro-batches, and where those hold few responses it favours short ones.

  Args:
    keep_RT, valid_RT: [R, T] bool, tokens in the loss; tokens of responses.
    batch: its segments, and group_tokens for `group_token`.
    max_response_tokens: the limit of the rollout, for `sequence_fixed`.
  Raises ValueError for an unknown loss_norm.
  Source: arXiv 2402.03300 (sequence_mean), 2503.20783 (sequence_fixed), 2503.14476 and 2603.19835
  eq. 8 (token means).
  """
  if loss_norm not in LOSS_NORMS:
    raise ValueError(f"loss_norm={loss_norm!r}; choose one of {', '.join(LOSS_NORMS)}.")
  divisor_RT, count = LOSS_NORMS[loss_norm](keep_RT, valid_RT, batch, max_response_tokens)
  return Weighing(*jax.lax.stop_gradient((divisor_RT, count)))


def aggregate(
  loss_RT, keep_RT, valid_RT, batch: Batch, *, loss_norm: str, max_response_tokens: int | None = None
) -> Mean:
  """`weighed_sum` with the weights of `weigh`."""
  weighing = weigh(keep_RT, valid_RT, batch, loss_norm=loss_norm, max_response_tokens=max_response_tokens)
  return weighed_sum(loss_RT, keep_RT, weighing)


def weighed_sum(loss_RT, keep_RT, weighing: Weighing) -> Mean:
  """Per-token losses [R, T] over their divisors, summed over the tokens kept; not yet divided by the count."""
  return Mean(masked.sum(loss_RT / weighing.divisor_RT, keep_RT), weighing.count)
