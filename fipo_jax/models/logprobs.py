"""Log-probabilities and entropies of tokens, without ever holding all their logits."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from fipo_jax.sharding import constrain
from fipo_jax.types import check_axes


def token_logprobs(
  hidden_RTD, head_VD, tokens_RT, segments_RT, *, temperature=1.0, chunk_tokens: int = 512,
  with_entropy: bool = True, entropy_gradient: bool = False,
):  # fmt: skip
  """What the model thought of each token given what precedes it; the shift by one lives here and only here.

      z[t] = hidden[t - 1] · headᵀ / temperature
      logp[t] = z[t, token[t]] - log Σ_v exp z[t, v]
      entropy[t] = - Σ_v p_v log p_v,   p = softmax(z[t])

  Both are 0 on padding (segment 0) and on the first token of a segment, which nothing precedes. The gradient of logp is
  exact, recomputes the logits chunk by chunk and adds up the head's in float32; so is the entropy's, if asked for.

  Args:
    hidden_RTD: compute dtype, final-normed. head_VD: same dtype. tokens_RT, segments_RT: int32.
    temperature: positive, a Python number or a scalar array. chunk_tokens: tokens per row whose logits exist at once.
    with_entropy: False returns zeros for it and saves a pass over the logits.
    entropy_gradient: False makes the entropy a constant.
  Returns:
    (logp_RT, entropy_RT), float32, nats.
  """
  check_axes(hidden_RTD=hidden_RTD, head_VD=head_VD, tokens_RT=tokens_RT, segments_RT=segments_RT)
  targets_RT = jnp.roll(tokens_RT, -1, axis=1)
  temperature = jnp.asarray(temperature, jnp.float32)
  logp_RT, entropy_RT = _next_token(
    hidden_RTD, head_VD, targets_RT, temperature, chunk_tokens, with_entropy, entropy_gradient
  )
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _next_token(hidden_RTD, head_VD, targets_RT, temperature, chunk_tokens, with_entropy, entropy_gradient):
  """(log-probability of target[t], entropy) under the logits of hidden[t]."""
  return _forward(hidden_RTD, head_VD, targets_RT, temperature, chunk_tokens, with_entropy, entropy_gradient)[0]


def _forward(hidden_RTD, head_VD, targets_RT, temperature, chunk_tokens, with_entropy, entropy_gradient):
  del entropy_gradient

  def chunk(inputs):
    hidden_RCD, targets_RC = inputs
    z_RCV = _logits(hidden_RCD, head_VD) / temperature
    # Everything relative to the largest logit: what a confident token loses by rounding is then relative to its own
    # small log-probability, not to the size of the logits.
    top_RC = jnp.max(z_RCV, axis=-1)
    z_RCV = z_RCV - top_RC[..., None]
    norm_RC = jnp.log(jnp.sum(jnp.exp(z_RCV), axis=-1))
    logp_RC = jnp.sum(jnp.where(_is_target(targets_RC, z_RCV), z_RCV, 0.0), axis=-1) - norm_RC
    entropy_RC = jnp.zeros_like(norm_RC)
    if with_entropy:
      logp_RCV = z_RCV - norm_RC[..., None]
      entropy_RC = -jnp.sum(jnp.exp(logp_RCV) * logp_RCV, axis=-1)
    return logp_RC, entropy_RC, top_RC + norm_RC

  T = targets_RT.shape[1]
  pieces = jax.lax.map(chunk, _split((hidden_RTD, targets_RT), chunk_tokens))
  logp_RT, entropy_RT, norm_RT = _join(pieces, T)
  return (logp_RT, entropy_RT), (hidden_RTD, head_VD, targets_RT, temperature, norm_RT, entropy_RT)


def _backward(chunk_tokens, with_entropy, entropy_gradient, saved, cotangents):
  """d logp / d z = onehot(target) - p;  d entropy / d z = -p (log p + entropy);  p = softmax(z)."""
  del with_entropy
  hidden_RTD, head_VD, targets_RT, temperature, norm_RT, entropy_RT = saved
  dtype, precision = hidden_RTD.dtype, _precision(hidden_RTD)

  def chunk(d_head_VD, inputs):
    hidden_RCD, targets_RC, norm_RC, entropy_RC, d_logp_RC, d_entropy_RC = inputs
    z_RCV = _logits(hidden_RCD, head_VD) / temperature
    onehot_RCV = _is_target(targets_RC, z_RCV).astype(jnp.float32)
    logp_RCV = z_RCV - norm_RC[..., None]
    d_z_RCV = (onehot_RCV - jnp.exp(logp_RCV)) * (d_logp_RC / temperature)[..., None]
    if entropy_gradient:
      d_z_RCV -= jnp.exp(logp_RCV) * (logp_RCV + entropy_RC[..., None]) * (d_entropy_RC / temperature)[..., None]
    d_z_RCV = d_z_RCV.astype(dtype)
    d_hidden_RCD = jnp.einsum("rcv,vd->rcd", d_z_RCV, head_VD, precision=precision)
    d_head_VD += jnp.einsum(
      "rcv,rcd->vd", d_z_RCV, hidden_RCD, preferred_element_type=jnp.float32, precision=precision
    )
    return d_head_VD, d_hidden_RCD

  T = targets_RT.shape[1]
  start = constrain(jnp.zeros(head_VD.shape, jnp.float32), "vocab", None)
  pieces = _split((hidden_RTD, targets_RT, norm_RT, entropy_RT, *cotangents), chunk_tokens)
  d_head_VD, d_hidden = jax.lax.scan(chunk, start, pieces)
  return _join(d_hidden, T), d_head_VD.astype(head_VD.dtype), None, None


_next_token.defvjp(_forward, _backward)


def _logits(hidden_RCD, head_VD):
  z_RCV = jnp.einsum(
    "rcd,vd->rcv", hidden_RCD, head_VD, preferred_element_type=jnp.float32, precision=_precision(hidden_RCD)
  )
  return constrain(z_RCV, "rows", "tokens", "vocab")


def _precision(x):
  return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


def _is_target(targets_RC, z_RCV):
  """A comparison instead of a gather: the vocabulary may be sharded."""
  return targets_RC[..., None] == jax.lax.broadcasted_iota(jnp.int32, z_RCV.shape, 2)


def _split(tree, chunk_tokens: int):
  """[R, T, ...] -> [n, R, C, ...]; chunk i takes tokens i, i + n, ..., so that with tokens sharded over `context` every
  device has its part of every chunk.
  """

  def one(x):
    R, T = x.shape[:2]
    C = min(chunk_tokens, T)
    n = -(-T // C)
    x = jnp.pad(x, [(0, 0), (0, n * C - T)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(R, C, n, *x.shape[2:]), 2, 0)

  return jax.tree.map(one, tree)


def _join(tree, T: int):
  """The inverse of `_split`."""

  def one(x):
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :T]

  return jax.tree.map(one, tree)
