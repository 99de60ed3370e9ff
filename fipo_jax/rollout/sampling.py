"""Drawing one token per slot, and the log-probability of what was drawn.

No vocabulary is ever sorted. Cutoffs are found bit by bit (32 passes of a masked sum), and a draw walks the
cumulative distribution from large blocks of the vocabulary to small ones and to a token. A few random numbers per
slot are enough, where Gumbel noise would need one per token of the vocabulary.

Order: repetition penalty, min_tokens, temperature, top-k, top-p, min-p: that of Hugging Face's generate. vLLM differs
in one place: its V1 sampler applies min-p before top-k and top-p, its V0 sampler after them. Beside top-k the order is
the same set of tokens, as both keep the most likely ones; beside top-p it is not, as top-p is measured on what is left.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

BLOCK_TOKENS = 128  # entries per block of the draw: one lane row of a TPU register


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How tokens are drawn; hashable, so that it can be a static argument of the jitted programs.

  temperature: logits are divided by it; 0 is greedy.
  top_k: only the k most likely tokens can be drawn; 0 is off. Ties with the last of them stay in.
  top_p: then only the smallest set of most likely tokens whose probability reaches top_p; 1 is off.
  max_tokens: limit of a response, its end token included.
  stop_ids: token ids that end a response; the sampled one stays in it.
  min_p: then only tokens at least min_p times as likely as the most likely one; 0 is off (Nguyen et al. 2024).
  repetition_penalty: positive logits of tokens already in prompt or response are divided by it, negative ones
    multiplied; 1 is off. Meant for evaluation. From Keskar et al. 2019 (CTRL), who only divide; the rule for negative
    logits is Hugging Face's and vLLM's.
  min_tokens: no stop id can be drawn before the response has that many tokens, so the first can be token
    min_tokens + 1; 0 is off.
  stop_strings: texts that end a response, once it has more than min_tokens; the token that completes one stays in it.
    The engine looks for them in the text with its special tokens, see `stops.StopSearch`.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  max_tokens: int = 128
  stop_ids: tuple[int, ...] = ()
  min_p: float = 0.0
  repetition_penalty: float = 1.0
  min_tokens: int = 0
  stop_strings: tuple[str, ...] = ()

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
    if not 0 <= self.min_p <= 1:
      raise ValueError(f"sampling.min_p={self.min_p} must be at least 0 (off) and at most 1.")
    if not (self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty)):
      raise ValueError(
        f"sampling.repetition_penalty={self.repetition_penalty} must be 1 (off) or another positive number."
      )
    if not 0 <= self.min_tokens <= self.max_tokens:
      raise ValueError(
        f"sampling.min_tokens={self.min_tokens} must be at least 0 (off) and at most max_tokens={self.max_tokens}."
      )
    if isinstance(self.stop_strings, str):  # tuple() would take it for one text per letter
      raise ValueError(
        f"sampling.stop_strings={self.stop_strings!r} must be several texts: write ({self.stop_strings!r},)."
      )
    if not all(isinstance(text, str) and text for text in self.stop_strings):
      raise ValueError(
        f"sampling.stop_strings={self.stop_strings!r} must hold texts of at least one character."
      )
    # lists would not hash
    object.__setattr__(self, "stop_ids", tuple(int(i) for i in self.stop_ids))
    object.__setattr__(self, "stop_strings", tuple(self.stop_strings))


@jax.named_scope("sample")
def sample(logits_SV, keys_S, sampling: Sampling, *, count_S=None, seen_SV=None):
  """Draws a token per slot; reports how likely it was where it was drawn, and how likely to the model itself.

      l = logits, penalised where seen, -inf at stop ids before min_tokens
      q = softmax(l / temperature), zero outside top-k, top-p and min-p, renormalised
      token ~ q;   logp = log q[token];   raw_logp = log softmax(logits)[token]

  Greedy (temperature 0) takes the most likely token of l, ties to the smallest id, and reports log softmax(l)[token] as
  logp: the draw itself is certain, and its log-probability 0 would say nothing. Where nothing changes the logits,
  raw_logp is logp, computed once; otherwise it costs one more pass over them.

  Args:
    logits_SV: [S, V] any float dtype.
    keys_S: [S] typed random keys, one per slot; a slot's draw depends on its own key and logits only.
    count_S: [S] int32, tokens each response has so far; needed for min_tokens only.
    seen_SV: [S, V] bool, tokens already in a slot's prompt or response; needed for a repetition penalty only.
  Returns:
    token_S [S] int32, logp_S [S] float32 nats, raw_logp_S [S] float32 nats.
  Raises:
    ValueError: count_S or seen_SV is needed and missing.
  """
  raw_SV = logits_SV.astype(jnp.float32)
  logits_SV = adjust(raw_SV, sampling, count_S, seen_SV)
  if sampling.temperature not in (0, 1):
    logits_SV = logits_SV / sampling.temperature
  if sampling.temperature != 0:
    logits_SV = restrict(
      logits_SV, top_k=sampling.top_k, top_p=sampling.top_p, min_p=sampling.min_p
    )
  peak_SB, mass_SB = blocks(logits_SV)
  if sampling.temperature == 0:
    token_S = most_likely(logits_SV, peak_SB)
  else:
    shape = (draw_levels(logits_SV.shape[-1]),)
    uniform_SL = jax.vmap(lambda key: jax.random.uniform(key, shape))(keys_S)
    token_S = draw(logits_SV, peak_SB, mass_SB, uniform_SL)
  logp_S = _log_softmax_at(token_S, logits_SV, peak_SB, mass_SB)
  if logits_SV is raw_SV:  # each step returns the very array it was given where it is off
    return token_S, logp_S, logp_S
  return token_S, logp_S, _log_softmax_at(token_S, raw_SV, *blocks(raw_SV))


def adjust(logits_SV, sampling: Sampling, count_S=None, seen_SV=None):
  """Logits after the repetition penalty and with -inf at stop ids before min_tokens; themselves if both are off.

      l = l / penalty where seen and l > 0;   l * penalty where seen and l <= 0

  The two could change places: -inf stays -inf under a penalty.

  Args:
    logits_SV: [S, V] float32, not yet divided by the temperature.
    count_S, seen_SV: see `sample`.
  """
  if sampling.repetition_penalty != 1:
    if seen_SV is None:
      raise ValueError(
        f"sampling.repetition_penalty={sampling.repetition_penalty} needs seen_SV, the tokens of prompt and response;"
        " pass it or set the penalty to 1."
      )
    penalty = jnp.float32(sampling.repetition_penalty)
    penalised_SV = jnp.where(logits_SV > 0, logits_SV / penalty, logits_SV * penalty)
    logits_SV = jnp.where(seen_SV, penalised_SV, logits_SV)
  if sampling.min_tokens > 0:
    if count_S is None:
      raise ValueError(
        f"sampling.min_tokens={sampling.min_tokens} needs count_S, the tokens of each response; pass it or set it to 0."
      )
    for stop_id in sampling.stop_ids:
      stop_V = jnp.arange(logits_SV.shape[-1]) == stop_id
      early_S = count_S < sampling.min_tokens
      logits_SV = jnp.where(stop_V & early_S[:, None], -jnp.inf, logits_SV)
  return logits_SV


def restrict(logits_SV, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0):
  """Logits with -inf outside top-k, then top-p of what is left, then min-p. All off returns the logits themselves.

  min-p compares logits, which saves the probabilities: p >= min_p max(p) is l >= max(l) + log(min_p), whatever was
  cut before, as the most likely token never is.

  Args:
    logits_SV: [S, V] float32, already divided by the temperature.
  """
  if 0 < top_k < logits_SV.shape[-1]:
    logits_SV = keep_most_likely(logits_SV, jnp.ones_like(logits_SV), jnp.float32(top_k))
  if top_p < 1:
    logits_SV = keep_most_likely(logits_SV, jax.nn.softmax(logits_SV, axis=-1), jnp.float32(top_p))
  if min_p > 0:
    cutoff_S = jnp.max(logits_SV, axis=-1) + math.log(min_p)
    logits_SV = jnp.where(logits_SV >= cutoff_S[:, None], logits_SV, -jnp.inf)
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


def blocks(logits_SV):
  """Per block of BLOCK_TOKENS tokens, the last one shorter: highest logit, and sum of exp(logit - the row's highest).

  Args:
    logits_SV: [S, V] float32, some finite in each row.
  Returns:
    peak_SB, mass_SB: [S, blocks] float32.
  """
  peak_SB = _per_block(jnp.max, logits_SV)
  peak_S11 = jnp.max(peak_SB, axis=-1)[:, None, None]
  return peak_SB, _per_block(lambda x, axis: jnp.sum(jnp.exp(x - peak_S11), axis), logits_SV)


def most_likely(logits_SV, peak_SB):
  """The token of the highest logit, ties to the smallest id: [S] int32. peak_SB: of `blocks`.

  Two small searches for a known value; XLA's argmax over a vocabulary is several times slower on CPUs.
  """
  peak_S1 = jnp.max(peak_SB, axis=-1, keepdims=True)
  # Entries of the window that belong to the block before are below the peak, or that block would be the first.
  first_S, logits_Sb, _ = _block(logits_SV, _first(peak_SB == peak_S1))
  return first_S + _first(logits_Sb == peak_S1)


def draw_levels(vocab: int) -> int:
  """Random numbers that a draw takes: one to choose among at most BLOCK_TOKENS blocks, one per level below."""
  levels, size = 2, -(-vocab // BLOCK_TOKENS)
  while size > BLOCK_TOKENS:
    levels, size = levels + 1, -(-size // BLOCK_TOKENS)
  return levels


def draw(logits_SV, peak_SB, mass_SB, uniform_SL):
  """A token per slot with probability softmax(logits), by the inverse of the cumulative distribution.

  Each level uses a random number of its own: blocks of blocks where there are many, blocks, tokens. So the resolution
  of float32 is relative to a block and not to the whole vocabulary. Only one block's weights are ever formed, from
  its logits. A token of weight 0 is never drawn.

  Args:
    logits_SV: [S, V] float32; -inf is weight 0.
    peak_SB, mass_SB: of `blocks`.
    uniform_SL: [S, draw_levels(V)] float32 in [0, 1).
  Returns:
    token_S [S] int32.
  """
  masses = [mass_SB]
  while masses[-1].shape[-1] > BLOCK_TOKENS:
    masses.append(_per_block(jnp.sum, masses[-1]))
  index_S = _invert(masses.pop(), uniform_SL[:, 0])
  for level in range(1, uniform_SL.shape[-1] - 1):
    first_S, mass_Sb, own_Sb = _block(masses.pop(), index_S)
    index_S = first_S + _invert(jnp.where(own_Sb, mass_Sb, 0.0), uniform_SL[:, level])
  first_S, logits_Sb, own_Sb = _block(logits_SV, index_S)
  weight_Sb = jnp.where(own_Sb, jnp.exp(logits_Sb - jnp.max(peak_SB, axis=-1)[:, None]), 0.0)
  return first_S + _invert(weight_Sb, uniform_SL[:, -1])


def _log_softmax_at(token_S, logits_SV, peak_SB, mass_SB):
  """log softmax(logits)[token], [S] float32. peak_SB, mass_SB: of `blocks`."""
  chosen_S = jnp.take_along_axis(logits_SV, token_S[:, None], axis=-1)[:, 0]
  return chosen_S - jnp.max(peak_SB, axis=-1) - jnp.log(jnp.sum(mass_SB, axis=-1))


def _per_block(reduce, x_SN):
  """reduce(block, axis) of every block: [S, N] -> [S, blocks]. The rest is a slice of its own: padding costs a pass."""
  S, N = x_SN.shape
  whole = N - N % BLOCK_TOKENS
  parts = []
  if whole:
    parts.append(reduce(x_SN[:, :whole].reshape(S, -1, BLOCK_TOKENS), axis=-1))
  if whole < N:
    parts.append(reduce(x_SN[:, None, whole:], axis=-1))
  # Without the barrier XLA turns a reduction of this result into another one over all of N.
  return jax.lax.optimization_barrier(jnp.concatenate(parts, axis=-1))


def _block(x_SN, block_S):
  """Block block_S of each row.

  Returns:
    first_S: index of its first entry. x_Sb: [S, min(N, BLOCK_TOKENS)] entries from there on; the last block's window
    starts early, to end with the row. own_Sb: bool, entries that belong to the block.
  """
  N = x_SN.shape[-1]
  size = min(N, BLOCK_TOKENS)
  start_S = block_S * BLOCK_TOKENS
  first_S = jnp.minimum(start_S, N - size)
  x_Sb = jax.vmap(lambda x_N, first: jax.lax.dynamic_slice(x_N, (first,), (size,)))(x_SN, first_S)
  return first_S, x_Sb, first_S[:, None] + jnp.arange(size, dtype=jnp.int32) >= start_S[:, None]


def _invert(weight_SN, uniform_S):
  """First index whose cumulative weight exceeds uniform * total, among indices of positive weight. N is small."""
  weight_SN = cumulative_SN = jax.lax.optimization_barrier(weight_SN)
  shift = 1
  while shift < weight_SN.shape[-1]:  # log2(N) shifted sums, faster on CPUs than jnp.cumsum
    shifted_SN = jnp.pad(cumulative_SN[:, :-shift], ((0, 0), (shift, 0)))
    # Without the barriers XLA computes every sum anew inside the later ones.
    cumulative_SN = jax.lax.optimization_barrier(cumulative_SN + shifted_SN)
    shift *= 2
  positive_SN = weight_SN > 0
  above_SN = positive_SN & (cumulative_SN > (uniform_S * cumulative_SN[:, -1])[:, None])
  # Rounding may leave nothing above; then it is the last positive one. (Nor need such sums be monotone, as their terms
  # are added in different orders: hence the explicit test for positive weights.)
  index_N = jnp.arange(weight_SN.shape[-1], dtype=jnp.int32)
  return jnp.minimum(_first(above_SN), jnp.max(jnp.where(positive_SN, index_N, 0), axis=-1))


def _first(mask_SN):
  """Smallest index that is set, or the last index if none is: [S] int32."""
  last = mask_SN.shape[-1] - 1
  return jnp.min(jnp.where(mask_SN, jnp.arange(last + 1, dtype=jnp.int32), last), axis=-1)
