"""Log-probabilities and entropies of tokens, without ever holding all their logits."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fipo_jax.models.tiles import LANES, over_tiles, tile_of
from fipo_jax.sharding import (
  devices_along,
  gather,
  index_along,
  local,
  max_over,
  scatter_sum,
  sum_over,
)
from fipo_jax.types import check_axes

LOWEST = -1e30  # below every logit; finite, so that differences are numbers
HIDDEN = ("rows", "tokens", None)
HEAD = ("vocab", "embed")
TOKENS = ("rows", "tokens")


class _How(NamedTuple):
  """What does not change within a run."""

  logits_mib: float
  tile_tokens: int
  sum_dtype: str
  with_entropy: bool
  entropy_gradient: bool


@jax.named_scope("log_probs")
def token_logprobs(
  hidden_RTD, head_VD, tokens_RT, segments_RT, *, temperature=1.0, logits_mib: float = 384.0,
  tile_tokens: int = 0, sum_dtype: str = "", with_entropy: bool = True, entropy_gradient: bool = False,
):  # fmt: skip
  """What the model thought of each token given what precedes it; the shift by one lives here and only here.

      z[t] = hidden[t - 1] · headᵀ / temperature
      logp[t] = z[t, token[t]] - log Σ_v exp z[t, v]
      entropy[t] = - Σ_v p_v log p_v,   p = softmax(z[t])

  Both are 0 on padding (segment 0) and on the first token of a segment, which nothing precedes. Logits exist for one
  piece of the vocabulary and one tile of tokens at a time, in the forward and, again, in the backward pass; sums over
  the vocabulary go on from piece to piece. The gradient of logp is exact; so is the entropy's, if asked for.

  On a mesh each device works on its own tokens and its own part of the vocabulary. A piece of the head is gathered over
  `embed` when its turn comes, and its gradient is summed back right away (reduce-scatter); over
  `tensor` only three numbers a token travel forward, and the gradient of the hidden states backward.

  Args:
    hidden_RTD: compute dtype, final-normed. head_VD: same dtype. tokens_RT, segments_RT: int32.
    temperature: positive, a Python number or a scalar array.
    logits_mib: MiB that a device spends on a piece: its logits, its part of the head and that part's gradient.
    tile_tokens: as in `tiles.by_tiles`. sum_dtype: of the head's gradients that devices add up; "": of the head.
    with_entropy: False returns zeros for it.
    entropy_gradient: False makes the entropy a constant.
  Returns:
    (logp_RT, entropy_RT), float32, nats.
  Source: arXiv 2205.14135 (sums of a softmax piece by piece).
  """
  check_axes(hidden_RTD=hidden_RTD, head_VD=head_VD, tokens_RT=tokens_RT, segments_RT=segments_RT)
  targets_RT = jnp.roll(tokens_RT, -1, axis=1)
  temperature = jnp.asarray(temperature, jnp.float32)
  # Where nothing is added up the gradient is rounded once in any case; XLA's CPU backend then has no wide product.
  alone = devices_along("rows") * devices_along("tokens") == 1
  sum_dtype = str(head_VD.dtype) if alone or not sum_dtype else sum_dtype
  how = _How(logits_mib, tile_tokens, sum_dtype, with_entropy, entropy_gradient)
  logp_RT, entropy_RT = _next_token(hidden_RTD, head_VD, targets_RT, temperature, how)
  if not entropy_gradient:
    entropy_RT = jax.lax.stop_gradient(entropy_RT)
  return of_preceding(logp_RT, segments_RT), of_preceding(entropy_RT, segments_RT)


def of_preceding(x_RT, segments_RT):
  """Moves what was computed at a position to the token it is about, the next one of its segment.

      y[t] = x[t − 1]; 0 on padding and on the first token of a segment
  """
  follows_RT = (segments_RT != 0) & (segments_RT == jnp.roll(segments_RT, 1, axis=1))
  follows_RT = follows_RT.at[:, 0].set(False)
  return jnp.where(follows_RT, jnp.roll(x_RT, 1, axis=1), 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _next_token(hidden_RTD, head_VD, targets_RT, temperature, how: _How):
  """(log-probability of target[t], entropy) under the logits of hidden[t]."""
  return _forward(hidden_RTD, head_VD, targets_RT, temperature, how)[0]


def _forward(hidden_RTD, head_VD, targets_RT, temperature, how: _How):
  part = local(functools.partial(_forward_part, how=how), (HIDDEN, HEAD, TOKENS, ()), (TOKENS,) * 3)
  logp_RT, entropy_RT, norm_RT = part(hidden_RTD, head_VD, targets_RT, temperature)
  return (logp_RT, entropy_RT), (hidden_RTD, head_VD, targets_RT, temperature, norm_RT, entropy_RT)


def _backward(how: _How, saved, cotangents):
  """d logp / d z = onehot(target) - p;  d entropy / d z = -p (log p + entropy);  p = softmax(z)."""
  hidden_RTD, head_VD, *rest = saved
  part = local(
    functools.partial(_backward_part, how=how), (HIDDEN, HEAD, TOKENS, (), *[TOKENS] * 4), (HIDDEN, HEAD)
  )
  d_hidden_RTD, d_head_VD = part(hidden_RTD, head_VD, *rest, *cotangents)
  return d_hidden_RTD, d_head_VD, None, None


_next_token.defvjp(_forward, _backward)


def _forward_part(hidden_RTD, head_VD, targets_RT, temperature, *, how: _How):
  """(logp, entropy, log Σ exp z) of one device's N tokens, C entries of its part of the vocabulary at a time.

  Sums are relative to the largest logit so far: what a confident token loses by rounding is then relative to its own
  small log-probability, not to the size of the logits.
  """
  inputs = (_flat(hidden_RTD), _flat(targets_RT))
  pieces, piece = _pieces(inputs[0], head_VD, how)

  def one(i, state):
    _, head_CD, id_C, new_C = piece(i)

    def tile(inputs, state, _):
      (hidden_1ND, targets_1N), (top_1N, sum_1N, weighted_1N, target_1N) = inputs, state
      z_1NC, is_target_1NC = _logits(hidden_1ND, head_CD, targets_1N, id_C, new_C, temperature)
      most_1N = jnp.maximum(top_1N, jnp.max(z_1NC, axis=-1))
      target_1N += jnp.sum(jnp.where(is_target_1NC, z_1NC, 0.0), axis=-1)
      z_1NC -= most_1N[..., None]
      e_1NC = jnp.exp(z_1NC)
      if how.with_entropy:
        weighted = jnp.sum(jnp.where(e_1NC > 0, e_1NC * z_1NC, 0.0), axis=-1)
        weighted_1N = _moved(weighted_1N, sum_1N, top_1N, most_1N) + weighted
      sum_1N = sum_1N * jnp.exp(top_1N - most_1N) + jnp.sum(e_1NC, axis=-1)
      return (most_1N, sum_1N, weighted_1N, target_1N), ()

    return over_tiles(tile, inputs, state, (), how.tile_tokens)[0]

  zeros_1N = jnp.zeros(inputs[1].shape, jnp.float32)
  start = (zeros_1N + LOWEST, zeros_1N, zeros_1N, zeros_1N)
  top_1N, sum_1N, weighted_1N, target_1N = _repeat(pieces, one, start)
  most_1N = max_over(top_1N, "vocab")
  weighted_1N = sum_over(_moved(weighted_1N, sum_1N, top_1N, most_1N), "vocab")
  sum_1N = sum_over(sum_1N * jnp.exp(top_1N - most_1N), "vocab")
  log_1N = jnp.log(sum_1N)
  logp_1N = (sum_over(target_1N, "vocab") - most_1N) - log_1N
  entropy_1N = log_1N - weighted_1N / sum_1N if how.with_entropy else zeros_1N
  return tuple(x.reshape(targets_RT.shape) for x in (logp_1N, entropy_1N, most_1N + log_1N))


def _backward_part(
  hidden_RTD, head_VD, targets_RT, temperature, norm_RT, entropy_RT, d_logp_RT, d_entropy_RT, *, how: _How
):  # fmt: skip
  """(d hidden, d head) of one device's tokens and its part of the head; logits are computed once more."""
  dtype, precision = hidden_RTD.dtype, _precision(hidden_RTD)
  inputs = tuple(map(_flat, (hidden_RTD, targets_RT, norm_RT, entropy_RT, d_logp_RT, d_entropy_RT)))
  pieces, piece = _pieces(inputs[0], head_VD, how)

  def one(i, carry):
    d_hidden_1ND, d_head_VD = carry
    start, head_CD, id_C, new_C = piece(i)

    def tile(inputs, d_hidden_1ND, d_head_DC):
      hidden_1ND, targets_1N, *rest = inputs
      norm, entropy, d_logp, d_entropy = (x[..., None] for x in rest)
      z_1NC, is_target_1NC = _logits(hidden_1ND, head_CD, targets_1N, id_C, new_C, temperature)
      p_1NC = jnp.exp(z_1NC - norm)
      d_z_1NC = (is_target_1NC - p_1NC) * (d_logp / temperature)
      if how.entropy_gradient:
        d_z_1NC -= jnp.where(p_1NC > 0, p_1NC * (z_1NC - norm + entropy), 0.0) * (d_entropy / temperature)
      d_z_1NC = d_z_1NC.astype(dtype)
      wide = dict(preferred_element_type=jnp.float32, precision=precision)
      d_hidden_1ND += jnp.einsum("onc,cd->ond", d_z_1NC, head_CD, **wide)
      return d_hidden_1ND, d_head_DC + jnp.einsum("ond,onc->dc", hidden_1ND, d_z_1NC, **wide)

    zeros_DC = jnp.zeros(head_CD.shape[::-1], jnp.float32)
    d_hidden_1ND, d_head_DC = over_tiles(tile, inputs, d_hidden_1ND, zeros_DC, how.tile_tokens)
    # Scattered by whole rows of a tile of memory: along the last axis a TPU would sum and send all of it.
    d_head_CD = scatter_sum(d_head_DC.astype(how.sum_dtype), 0, "embed").astype(jnp.float32).T
    old_CD = jax.lax.dynamic_slice_in_dim(d_head_VD, start, d_head_CD.shape[0])
    return d_hidden_1ND, jax.lax.dynamic_update_slice_in_dim(d_head_VD, old_CD + d_head_CD, start, 0)

  zeros = (jnp.zeros(inputs[0].shape, jnp.float32), jnp.zeros(head_VD.shape, jnp.float32))
  d_hidden_1ND, d_head_VD = _repeat(pieces, one, zeros)
  d_head_VD = sum_over(d_head_VD.astype(how.sum_dtype), "slices", "tokens").astype(head_VD.dtype)
  return sum_over(d_hidden_1ND.astype(dtype), "vocab").reshape(hidden_RTD.shape), d_head_VD


def _flat(x_RT):
  """A device's rows as one long one, [1, N, ...]."""
  return x_RT.reshape(1, -1, *x_RT.shape[2:])


def _pieces(hidden_1ND, head_VD, how: _How):
  """(number of pieces, i -> (first entry, head_CD whole in D, id_C in the whole vocabulary, new_C)).

  The last piece begins early enough to be as large as the others; entries that were there before are not new.

      C · (4 · tile + 8 · D) bytes = logits_mib, about:  logits, the piece of the head and its gradient
  """
  V, (_, N, D) = head_VD.shape[0], hidden_1ND.shape
  most = max(1, int(how.logits_mib * 2**20 / (4 * tile_of(1, N, how.tile_tokens) + 8 * D)))
  pieces = -(-V // most)
  C = -(-V // pieces)
  if most > LANES:
    C = min(V, -(-C // LANES) * LANES)
  first = index_along("vocab") * V

  def piece(i):
    start = jnp.minimum(i * C, V - C)
    head_CD = gather(jax.lax.dynamic_slice_in_dim(head_VD, start, C), 1, "embed")
    id_C = start + jnp.arange(C)
    return start, head_CD, first + id_C, (id_C >= i * C if V % C else None)

  return -(-V // C), piece


def _logits(hidden_1ND, head_CD, targets_1N, id_C, new_C, temperature):
  """(z, whether an entry is the token's target), [1, N, C]; of entries that are not new, LOWEST and no."""
  product = dict(preferred_element_type=jnp.float32, precision=_precision(hidden_1ND))
  z_1NC = jnp.einsum("ond,cd->onc", hidden_1ND, head_CD, **product) / temperature
  # A comparison and not a gather: most targets are in other pieces.
  is_target_1NC = targets_1N[..., None] == id_C
  if new_C is not None:
    z_1NC, is_target_1NC = jnp.where(new_C, z_1NC, LOWEST), is_target_1NC & new_C
  return z_1NC, is_target_1NC


def _repeat(times: int, body, carry):
  return body(0, carry) if times == 1 else jax.lax.fori_loop(0, times, body, carry)


def _moved(weighted_N, sum_N, old_N, new_N):
  """Σ e^(z - old) (z - old), relative to another top."""
  return jnp.exp(old_N - new_N) * (weighted_N + (old_N - new_N) * sum_N)


def _precision(x):
  return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
