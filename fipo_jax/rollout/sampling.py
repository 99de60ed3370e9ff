"""Drawing one token per slot, and the log-probability of what was drawn.

No vocabulary is ever sorted. Cutoffs are found bit by bit (32 passes of a masked sum), and a draw walks the
cumulative distribution in two levels: first a block of the vocabulary, then a token inside it. One random pair per
slot is enough, where Gumbel noise would need a random number per token of the vocabulary.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

BLOCK_TOKENS = 128  # vocabulary per block of the two-level draw: one lane row of a TPU register


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How tokens are drawn; hashable, so that it can be a static argument of the jitted programs.

  temperature: logits are divided by it; 0 is greedy.
  top_k: only the k most likely tokens can be drawn; 0 is off. Ties with the last of them stay in.
  top_p: then only the smallest set of most likely tokens whose probability reaches top_p; 1 is off.
  max_tokens: limit of a response, its end token included.
  stop_ids: token ids that end a response; the sampled one stays in it.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  max_tokens: int = 128
  stop_ids: tuple[int, ...] = ()

  def __post_init__(self):
    if not (self.temperature >= 0 and math.isfinite(self.temperature)):
      raise ValueError(
        f"sampling.temperature={self.temperature} must be 0 (greedy) or a positive number."
      )
    if self.top_k < 0:
      raise ValueError(
        f"sampling.top_k={self.top_k} must be 0 (off) or a positive number of tokens."
      )
    if not 0 < self.top_p <= 1:
      raise ValueError(f"sampling.top_p={self.top_p} must be above 0 and at most 1 (off).")
    if self.max_tokens < 1:
      raise ValueError(f"sampling.max_tokens={self.max_tokens} must be at least 1.")
    object.__setattr__(
      self, "stop_ids", tuple(int(i) for i in self.stop_ids)
    )  # a list would not hash


def sample(logits_SV, keys_S, sampling: Sampling):
  """Draws a token per slot; the log-probability is that of the distribution really drawn from.

      q = softmax(logits / temperature), zero outside top-k and top-p, renormalised;   token ~ q;   logp = log q[token]

  Greedy (temperature 0) takes the most likely token, ties to the smallest id, and reports log softmax(logits)[token]:
  the draw itself is certain, and its log-probability 0 would say nothing.

  Args:
    logits_SV: [S, V] any float dtype.
    keys_S: [S] typed random keys, one per slot; a slot's draw depends on its own key and logits only.
  Returns:
    token_S [S] int32, logp_S [S] float32 nats.
  """
  logits_SV = logits_SV.astype(jnp.float32)
  if sampling.temperature == 0:
    token_S = jnp.argmax(logits_SV, axis=-1).astype(jnp.int32)
  else:
    logits_SV = restrict(
      logits_SV / sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p
    )
  peak_S = jnp.max(logits_SV, axis=-1)
  weight_SV = jnp.exp(logits_SV - peak_S[:, None])
  if sampling.temperature != 0:
    token_S = draw(weight_SV, jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys_S))
  chosen_S = jnp.take_along_axis(logits_SV, token_S[:, None], axis=-1)[:, 0]
  return token_S, chosen_S - peak_S - jnp.log(jnp.sum(weight_SV, axis=-1))


def restrict(logits_SV, *, top_k: int = 0, top_p: float = 1.0):
  """Logits with -inf outside top-k, then outside top-p of what is left. Both off returns the logits themselves.

  Args:
    logits_SV: [S, V] float32, already divided by the temperature.
  """
  if 0 < top_k < logits_SV.shape[-1]:
    logits_SV = keep_most_likely(logits_SV, jnp.ones_like(logits_SV), jnp.float32(top_k))
  if top_p < 1:
    logits_SV = keep_most_likely(logits_SV, jax.nn.softmax(logits_SV, axis=-1), jnp.float32(top_p))
  return logits_SV


def keep_most_likely(logits_SV, weight_SV, goal):
  """-inf below the highest cutoff c at which the weight of all tokens with logit >= c still reaches the goal.

  Unit weights and goal k give top-k, probabilities and goal p give top-p. The cutoff is built from its highest bit
  down, on integers that order like the floats: exact, and 32 sums instead of a sort.
  """
  bits_SV = jax.lax.bitcast_convert_type(logits_SV, jnp.uint32)
  sign = jnp.uint32(1 << 31)
  order_SV = jnp.where(bits_SV >= sign, ~bits_SV, bits_SV | sign)

  def lower_bit(i, cutoff_S):
    higher_S = cutoff_S | (sign >> i.astype(jnp.uint32))
    reached_S = jnp.sum(jnp.where(order_SV >= higher_S[:, None], weight_SV, 0.0), axis=-1) >= goal
    return jnp.where(reached_S, higher_S, cutoff_S)

  cutoff_S = jax.lax.fori_loop(0, 32, lower_bit, jnp.zeros(logits_SV.shape[0], jnp.uint32))
  return jnp.where(order_SV >= cutoff_S[:, None], logits_SV, -jnp.inf)


def draw(weight_SV, uniform_S2):
  """A token per slot with probability weight / sum of weights, by the inverse of the cumulative sum.

  The block of the vocabulary and the token in it use a uniform number each, so the resolution of float32 is
  relative to a block and not to the whole vocabulary. A token of weight 0 is never drawn.

  Args:
    weight_SV: [S, V] float32, not negative, some positive in each row.
    uniform_S2: [S, 2] float32 in [0, 1).
  """
  S, V = weight_SV.shape
  blocks = -(-V // BLOCK_TOKENS)
  weight_SBb = jnp.pad(weight_SV, ((0, 0), (0, blocks * BLOCK_TOKENS - V))).reshape(
    S, blocks, BLOCK_TOKENS
  )
  block_S = _invert(jnp.sum(weight_SBb, axis=-1), uniform_S2[:, 0])
  within_Sb = jnp.take_along_axis(weight_SBb, block_S[:, None, None], axis=1)[:, 0]
  return block_S * BLOCK_TOKENS + _invert(within_Sb, uniform_S2[:, 1])


def _invert(weight_SN, uniform_S):
  """First index whose cumulative weight exceeds uniform * total, among indices of positive weight."""
  positive_SN = weight_SN > 0
  cumulative_SN = jnp.cumsum(weight_SN, axis=-1)
  above_SN = positive_SN & (cumulative_SN > (uniform_S * cumulative_SN[:, -1])[:, None])
  # Rounding may leave nothing above; then it is the last positive one. (Cumulative sums need not be monotone either,
  # as accelerators add their terms in different orders: hence the explicit test for positive weights.)
  size = weight_SN.shape[-1]
  last_S = size - 1 - jnp.argmax(positive_SN[:, ::-1], axis=-1)
  return jnp.where(jnp.any(above_SN, axis=-1), jnp.argmax(above_SN, axis=-1), last_S).astype(
    jnp.int32
  )
