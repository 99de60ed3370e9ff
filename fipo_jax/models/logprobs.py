"""Log-probabilities and entropies of tokens, without ever holding all their logits."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fipo_jax.sharding import gather, index_along, local, max_over, scatter_sum, sum_over
from fipo_jax.types import check_axes

LOWEST = -1e30  # below every logit; finite, so that differences are numbers
LANES = 128  # pieces of the vocabulary are multiples of it, where they are larger
HIDDEN = ("rows", "tokens", None)
HEAD = ("vocab", "embed")
TOKENS = ("rows", "tokens")


class _How(NamedTuple):
  """What does not change within a run."""

  logits_mib: float
  with_entropy: bool
  entropy_gradient: bool


def token_logprobs(
  hidden_RTD, head_VD, tokens_RT, segments_RT, *, temperature=1.0, logits_mib: float = 384.0,
  with_entropy: bool = True, entropy_gradient: bool = False,
):  # fmt: skip
  """What the model thought of each token given what precedes it; the shift by one lives here and only here.

      z[t] = hidden[t - 1] · headᵀ / temperature
      logp[t] = z[t, token[t]] - log Σ_v exp z[t, v]
      entropy[t] = - Σ_v p_v log p_v,   p = softmax(z[t])

  Both are 0 on padding (segment 0) and on the first token of a segment, which nothing precedes. Logits exist for one
  piece of the vocabulary at a time, in the forward and, again, in the backward pass; sums over it go on from piece to
  piece. The gradient of logp is exact; so is the entropy's, if asked for.

  On a mesh each device works on its own tokens and its own part of the vocabulary. A piece of the head is gathered over
  `embed` when its turn comes, and its gradient is summed back right away (reduce-scatter), in the head's dtype; over
  `tensor` only three numbers a token travel forward, and the gradient of the hidden states backward.

  Args:
    hidden_RTD: compute dtype, final-normed. head_VD: same dtype. tokens_RT, segments_RT: int32.
    temperature: positive, a Python number or a scalar array.
    logits_mib: MiB of float32 logits that exist on a device at one time (the backward pass holds about twice that).
    with_entropy: False returns zeros for it.
    entropy_gradient: False makes the entropy a constant.
  Returns:
    (logp_RT, entropy_RT), float32, nats.
  Source: arXiv 2205.14135 (sums of a softmax piece by piece).
  """
  check_axes(hidden_RTD=hidden_RTD, head_VD=head_VD, tokens_RT=tokens_RT, segments_RT=segments_RT)
  targets_RT = jnp.roll(tokens_RT, -1, axis=1)
  temperature = jnp.asarray(temperature, jnp.float32)
  how = _How(logits_mib, with_entropy, entropy_gradient)
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
  targets_N = targets_RT.reshape(-1)
  pieces, piece = _pieces(hidden_RTD, head_VD, targets_N, temperature, how)

  def one(i, carry):
    top_N, sum_N, weighted_N, target_N = carry
    z_NC, is_target_NC, *_ = piece(i)
    new_N = jnp.maximum(top_N, jnp.max(z_NC, axis=-1))
    target_N += jnp.sum(jnp.where(is_target_NC, z_NC, 0.0), axis=-1)
    z_NC -= new_N[:, None]
    e_NC = jnp.exp(z_NC)
    if how.with_entropy:
      weighted_N = _moved(weighted_N, sum_N, top_N, new_N) + jnp.sum(jnp.where(e_NC > 0, e_NC * z_NC, 0.0), axis=-1)
    return new_N, sum_N * jnp.exp(top_N - new_N) + jnp.sum(e_NC, axis=-1), weighted_N, target_N

  zeros_N = jnp.zeros(targets_N.shape, jnp.float32)
  start = (zeros_N + LOWEST, zeros_N, zeros_N, zeros_N)
  top_N, sum_N, weighted_N, target_N = _repeat(pieces, one, start)
  most_N = max_over(top_N, "vocab")
  weighted_N = sum_over(_moved(weighted_N, sum_N, top_N, most_N), "vocab")
  sum_N = sum_over(sum_N * jnp.exp(top_N - most_N), "vocab")
  log_N = jnp.log(sum_N)
  logp_N = (sum_over(target_N, "vocab") - most_N) - log_N
  entropy_N = log_N - weighted_N / sum_N if how.with_entropy else zeros_N
  return tuple(x.reshape(targets_RT.shape) for x in (logp_N, entropy_N, most_N + log_N))


def _backward_part(
  hidden_RTD, head_VD, targets_RT, temperature, norm_RT, entropy_RT, d_logp_RT, d_entropy_RT, *, how: _How
):  # fmt: skip
  """(d hidden, d head) of one device's tokens and its part of the head; logits are computed once more."""
  flat = lambda x: x.reshape(-1)[:, None]
  norm_N1, entropy_N1, d_logp_N1, d_entropy_N1 = map(flat, (norm_RT, entropy_RT, d_logp_RT, d_entropy_RT))
  dtype, precision = hidden_RTD.dtype, _precision(hidden_RTD)
  hidden_ND = hidden_RTD.reshape(-1, hidden_RTD.shape[-1])
  pieces, piece = _pieces(hidden_RTD, head_VD, targets_RT.reshape(-1), temperature, how)

  def one(i, carry):
    d_hidden_ND, d_head_VD = carry
    z_NC, is_target_NC, start, head_CD = piece(i)
    p_NC = jnp.exp(z_NC - norm_N1)
    d_z_NC = (is_target_NC - p_NC) * (d_logp_N1 / temperature)
    if how.entropy_gradient:
      d_z_NC -= jnp.where(p_NC > 0, p_NC * (z_NC - norm_N1 + entropy_N1), 0.0) * (d_entropy_N1 / temperature)
    d_z_NC = d_z_NC.astype(dtype)
    wide = dict(preferred_element_type=jnp.float32, precision=precision)
    d_hidden_ND += jnp.einsum("nc,cd->nd", d_z_NC, head_CD, **wide)
    d_head_CD = jnp.einsum("nc,nd->cd", d_z_NC, hidden_ND, **wide).astype(head_VD.dtype)
    d_head_CD = scatter_sum(d_head_CD, 1, "embed").astype(jnp.float32)
    old_CD = jax.lax.dynamic_slice_in_dim(d_head_VD, start, d_head_CD.shape[0])
    return d_hidden_ND, jax.lax.dynamic_update_slice_in_dim(d_head_VD, old_CD + d_head_CD, start, 0)

  zeros = (jnp.zeros(hidden_ND.shape, jnp.float32), jnp.zeros(head_VD.shape, jnp.float32))
  d_hidden_ND, d_head_VD = _repeat(pieces, one, zeros)
  d_head_VD = sum_over(d_head_VD, "slices", "tokens")
  return sum_over(d_hidden_ND.astype(dtype), "vocab").reshape(hidden_RTD.shape), d_head_VD.astype(head_VD.dtype)


def _pieces(hidden_RTD, head_VD, targets_N, temperature, how: _How):
  """(number of pieces, i -> (z_NC, is_target_NC, first entry, head_CD whole in D)).

  The last piece begins early enough to be as large as the others; entries that were there before count as -inf.
  """
  hidden_ND = hidden_RTD.reshape(-1, hidden_RTD.shape[-1])
  V, N = head_VD.shape[0], hidden_ND.shape[0]
  most = max(1, int(how.logits_mib * 2**20 / (4 * N)))
  C = min(V, most - most % LANES if most > LANES else most)
  first = index_along("vocab") * V

  def piece(i):
    start = jnp.minimum(i * C, V - C)
    head_CD = gather(jax.lax.dynamic_slice_in_dim(head_VD, start, C), 1, "embed")
    product = dict(preferred_element_type=jnp.float32, precision=_precision(hidden_ND))
    z_NC = jnp.einsum("nd,cd->nc", hidden_ND, head_CD, **product) / temperature
    id_C = start + jnp.arange(C)
    if V % C:
      z_NC = jnp.where(id_C >= i * C, z_NC, LOWEST)
    # A comparison and not a gather: most targets are in other pieces.
    is_target_NC = (targets_N[:, None] == first + id_C) & (id_C >= i * C)
    return z_NC, is_target_NC, start, head_CD

  return -(-V // C), piece


def _repeat(times: int, body, carry):
  return body(0, carry) if times == 1 else jax.lax.fori_loop(0, times, body, carry)


def _moved(weighted_N, sum_N, old_N, new_N):
  """Σ e^(z - old) (z - old), relative to another top."""
  return jnp.exp(old_N - new_N) * (weighted_N + (old_N - new_N) * sum_N)


def _precision(x):
  return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
