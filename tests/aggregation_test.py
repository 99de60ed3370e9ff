"""The loss norms on one packed row, by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import close

from fipo_jax.algorithms import aggregation
from fipo_jax.train.batching import first_fit
from fipo_jax.types import Batch

# Two responses of 3 and 1 tokens of one group (4 tokens), one of 2 of another, padding.
SEGMENTS = jnp.array([[1, 1, 1, 2, 3, 3, 0]])
LOSS = jnp.array([[1.0, 2.0, 6.0, 5.0, 10.0, 20.0, jnp.nan]])
VALID = SEGMENTS > 0
GROUP_TOKENS = jnp.array([[4.0, 4.0, 4.0, 4.0, 2.0, 2.0, 0.0]])


def batch():
  zero = jnp.zeros(SEGMENTS.shape)
  return Batch(SEGMENTS, SEGMENTS, SEGMENTS, zero, zero, zero, zero, GROUP_TOKENS)


@pytest.mark.parametrize(
  "loss_norm, total, count, without_first",
  [
    ("global_token", 44.0, 6.0, (35.0, 3.0)),
    ("sequence_mean", 3.0 + 5.0 + 15.0, 3.0, (20.0, 3.0)),
    ("sequence_sum", 44.0, 3.0, (35.0, 3.0)),
    ("sequence_fixed", 44.0 / 8, 3.0, (35.0 / 8, 3.0)),
    ("group_token", 14 / 4 + 30 / 2, 2.0, (5 / 4 + 30 / 2, 2.0)),
    ("verl_microbatch", 44.0 / 6 * 3, 3.0, (35.0 / 3 * 3, 3.0)),
  ],
)
def test_by_hand(loss_norm, total, count, without_first):
  mean = aggregation.aggregate(LOSS, VALID, VALID, batch(), loss_norm=loss_norm, max_response_tokens=8)
  close([mean.total, mean.count], [total, count], terms=7)
  keep = VALID & (SEGMENTS != 1)  # the first response is rejected
  mean = aggregation.aggregate(LOSS, keep, VALID, batch(), loss_norm=loss_norm, max_response_tokens=8)
  close([mean.total, mean.count], without_first, terms=7)


@pytest.mark.parametrize("loss_norm", aggregation.LOSS_NORMS)
def test_gradient_is_the_weight_of_a_token_and_zero_outside(loss_norm):
  def total(loss):
    return aggregation.aggregate(loss, VALID, VALID, batch(), loss_norm=loss_norm, max_response_tokens=8).total

  gradient = jax.grad(total)(LOSS)
  close(jnp.sum(gradient * jnp.nan_to_num(LOSS)), total(LOSS), terms=7)
  assert gradient[0, -1] == 0 and (gradient[0, :-1] > 0).all()


def test_unknown_norm_is_named():
  with pytest.raises(ValueError, match="loss_norm='token'; choose one of global_token"):
    aggregation.aggregate(LOSS, VALID, VALID, batch(), loss_norm="token")


@functools.partial(jax.jit, static_argnames="loss_norm")
def divisor_and_count(segments, loss_norm):
  """Of the first token of a packed row [1, T], and of the row."""
  zero = jnp.zeros(segments.shape)
  row = Batch(segments, segments, segments, zero, zero, zero, zero, zero)
  weighing = aggregation.weigh(segments > 0, segments > 0, row, loss_norm=loss_norm)
  return weighing.divisor_RT[0, 0], weighing.count


def token_weights(lengths, budget_tokens, loss_norm):
  """Weight of a token of each response relative to the global token mean; micro-batches of at most budget_tokens."""
  weights, total = np.zeros(len(lengths)), 0.0
  for members in first_fit(lengths, budget_tokens):
    segments = np.repeat(np.arange(1, len(members) + 1), [lengths[i] for i in members])
    padded = np.pad(segments, (0, budget_tokens - len(segments)))[None]
    divisor, count = divisor_and_count(padded, loss_norm)
    weights[members] = 1 / float(divisor)
    total += float(count)
  return weights / total * sum(lengths)


def test_the_bias_of_verl_microbatch():
  """The published trainer's mean, on responses as long as one (scaled by 1/64) in micro-batches of one packed row.

  Long responses sit in micro-batches with few others, so their tokens count less. Measured here: a token of the
  shortest fifth weighs 1.73, one of the longest fifth 0.76 of its weight in the true token mean, which with one
  micro-batch comes back.
  """
  lengths = sorted(np.clip(np.random.default_rng(0).lognormal(np.log(125), 0.5, 64), 8, 320).astype(int))
  biased = token_weights(lengths, 352, "verl_microbatch")
  short, long = biased[:13].mean(), biased[-13:].mean()
  assert (round(short, 2), round(long, 2)) == (1.73, 0.76)
  close(np.average(biased, weights=lengths), 1, terms=len(lengths))
  close(token_weights(lengths, sum(lengths), "verl_microbatch"), np.ones(64), terms=len(lengths))
  close(token_weights(lengths, 352, "global_token"), np.ones(64), terms=len(lengths))
