"""What a sum of per-token losses is divided by: the part of an objective that weighs responses.

Losses stay sums with their counts; the division happens once, after micro-batches and hosts are
added.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fipo_jax import masked
from fipo_jax.types import Batch, Mean


def sequence_count(valid_RT, segments_RT):
  """Responses with any valid token, as a float."""
  return masked.count(masked.segment_sums(valid_RT, segments_RT)[:, 1:] > 0)


def _global_token(loss_RT, keep_RT, valid_RT, batch):
  return masked.sum(loss_RT, keep_RT), masked.count(keep_RT)


def _sequence_mean(loss_RT, keep_RT, valid_RT, batch):
  tokens_RT = jnp.maximum(masked.segment_total(keep_RT, batch.segments), 1)
  return masked.sum(loss_RT / tokens_RT, keep_RT), sequence_count(valid_RT, batch.segments)


def _sequence_sum(loss_RT, keep_RT, valid_RT, batch):
  return masked.sum(loss_RT, keep_RT), sequence_count(valid_RT, batch.segments)


def _group_token(loss_RT, keep_RT, valid_RT, batch):
  share_RT = 1 / jnp.where(valid_RT, batch.group_tokens, 1)
  return masked.sum(loss_RT * share_RT, keep_RT), masked.sum(share_RT, valid_RT)


LOSS_NORMS = {
  "global_token": _global_token,
  "sequence_mean": _sequence_mean,
  "sequence_sum": _sequence_sum,
  "group_token": _group_token,
}


def aggregate(loss_RT, keep_RT, valid_RT, batch: Batch, *, loss_norm: str) -> Mean:
  """Sums per-token losses, and says by what the sum is to be divided in the end.

      global_token   Σ l / kept tokens                       every token counts the same
      sequence_mean  Σ_responses (mean of l) / responses     every response counts the same
      sequence_sum   Σ l / responses                         longer responses count more
      group_token    Σ_groups (Σ l / tokens of the group) / groups

  A rejected response leaves the sum, and the count of `global_token`; it still counts as a response
  and in its group's tokens. Responses without any valid token do not count.

  Args:
    loss_RT: [R, T]. keep_RT, valid_RT: [R, T] bool, tokens in the loss; tokens of responses.
    batch: its segments, and group_tokens for `group_token`.
  Raises ValueError for an unknown loss_norm.
  Source: arXiv 2402.03300 (sequence_mean), 2503.14476 and 2603.19835 eq. 8 (token means).
  """
  if loss_norm not in LOSS_NORMS:
    raise ValueError(f"loss_norm={loss_norm!r}; choose one of {', '.join(LOSS_NORMS)}.")
  total, count = LOSS_NORMS[loss_norm](loss_RT, keep_RT, valid_RT, batch)
  return Mean(total, jax.lax.stop_gradient(count))
