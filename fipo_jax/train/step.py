"""The jitted programs of the trainer: update, score, inspect.

All work on packed mini-batches [M, R, T]. Micro-batches are a loop inside the program, over the `used` first ones;
(gradient sums, metric sums, counts) are added up and divided once, by the global count of the mini-batch. So the
objective does not depend on M, R, packing or the mesh.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fipo_jax import sharding
from fipo_jax.models import logprobs
from fipo_jax.models.transformer import Model
from fipo_jax.train.state import TrainState, layout
from fipo_jax.types import Batch, Max, Mean, TokenLoss

Objective = Callable[[jax.Array, Batch], TokenLoss]


@dataclasses.dataclass(frozen=True)
class Steps:
  """update(state, batch, used) -> (state, metrics); donates state.
  score(params, batch, used) -> logp [M, R, T]. inspect(params, batch [R, T]) -> per-token arrays."""

  update: Callable
  score: Callable
  inspect: Callable


def make_steps(
  model: Model,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  learning_rate: optax.Schedule,
  abstract_state: TrainState,
  mesh: jax.sharding.Mesh,
  *,
  temperature: float,
  chunk_tokens: int,
) -> Steps:
  """Builds the programs of one run.

  Args:
    objective: logp_RT, batch -> TokenLoss. temperature: of the sampler; log-probs are taken at it.
    chunk_tokens: tokens of a row whose logits exist at one time.
  """
  rows = sharding.named(mesh, None, "rows", "tokens")
  one = sharding.named(mesh, "rows", "tokens")
  everywhere = sharding.named(mesh)
  states = layout(abstract_state)

  def narrow(params):
    return jax.lax.with_sharding_constraint(model.cast(params), states.params)

  def token_logp(params, b: Batch, with_entropy: bool):
    hidden_RTD = model.hidden(params, b.tokens, b.positions, b.segments)
    return logprobs.token_logprobs(
      hidden_RTD, model.head(params), b.tokens, b.segments,
      temperature=temperature, chunk_tokens=chunk_tokens, with_entropy=with_entropy,
    )  # fmt: skip

  def total_loss(params, b: Batch):
    logp_RT, entropy_RT = token_logp(params, b, with_entropy=True)
    out = objective(logp_RT, b)
    metrics = {**out.metrics, **_common_metrics(entropy_RT, b)}
    return out.loss.total, (out.loss.count, metrics)

  def update(state: TrainState, batch: Batch, used: jax.Array):
    grad = jax.value_and_grad(total_loss, has_aux=True)
    # Narrowed once for all micro-batches. Their gradients are narrow too (as products of narrow operands are); the sum
    # over micro-batches is float32.
    total, (count, metrics), grads = _accumulate(grad, narrow(state.params), batch, used)
    grads = jax.tree.map(lambda g: g / jnp.maximum(count, 1e-8).astype(g.dtype), grads)
    norm = optax.global_norm(grads)
    ok = jnp.isfinite(norm) & jnp.isfinite(total) & (count > 0)
    changes, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, changes)
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)
    new = TrainState(
      updates=state.updates + ok.astype(jnp.int32),
      skipped=jnp.where(ok, 0, state.skipped + 1),
      params=keep(params, state.params),
      opt_state=keep(opt_state, state.opt_state),
    )
    metrics |= {
      "loss": Mean(total, count),
      "grad_norm": Mean(norm, jnp.float32(1)),
      "learning_rate": Mean(learning_rate(state.updates), jnp.float32(1)),
      "skipped_updates": Mean(1.0 - ok, jnp.float32(1)),
    }
    return new, metrics

  def score(params, batch: Batch, used: jax.Array):
    params = narrow(params)

    def body(m, logp_MRT):
      micro = jax.tree.map(lambda x: x[m], batch)
      return logp_MRT.at[m].set(token_logp(params, micro, with_entropy=False)[0])

    return jax.lax.fori_loop(0, used, body, jnp.zeros(batch.tokens.shape, jnp.float32))

  def inspect(params, b: Batch):
    logp_RT, entropy_RT = token_logp(params, b, with_entropy=True)
    return {**objective(logp_RT, b).per_token, "logp": logp_RT, "entropy": entropy_RT}

  params = states.params
  return Steps(
    update=jax.jit(
      update, donate_argnums=0, in_shardings=(states, rows, everywhere), out_shardings=(states, everywhere)
    ),
    score=jax.jit(score, in_shardings=(params, rows, everywhere), out_shardings=rows),
    inspect=jax.jit(inspect, in_shardings=(params, one), out_shardings=everywhere),
  )


def _accumulate(grad: Callable, params: Any, batch: Batch, used: jax.Array):
  """Sums (loss total, (count, metrics), gradients) over the first `used` micro-batches, gradients in float32."""
  micro = lambda m: jax.tree.map(lambda x: x[m], batch)
  (total, (count, metrics)), _ = jax.eval_shape(grad, params, micro(0))
  zero = lambda s: jnp.zeros(s.shape, s.dtype)
  start = (
    zero(total),
    (zero(count), {name: _identity(record) for name, record in metrics.items()}),
    jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params),
  )

  def body(m, carry):
    total, (count, metrics), grads = carry
    (t, (c, new)), g = grad(params, micro(m))
    merged = {name: metrics[name].merge(new[name]) for name in metrics}
    grads = jax.tree.map(lambda a, b: a + b.astype(a.dtype), grads, g)
    return total + t, (count + c, merged), grads

  return jax.lax.fori_loop(0, used, body, start)


def _identity(record):
  """What merges with anything and changes nothing: zeros for Mean, -inf for Max, +inf for Min."""
  fill = 0.0 if isinstance(record, Mean) else -jnp.inf if isinstance(record, Max) else jnp.inf
  return jax.tree.map(lambda s: jnp.full(s.shape, fill, s.dtype), record)


def _common_metrics(entropy_RT: jax.Array, b: Batch) -> dict[str, Mean]:
  """Metrics that do not depend on the objective: entropy, and how far the sampler is from the trainer.

      sampler_gap_k3 = mean of exp(x) - 1 - x,   x = old_logp - sampler_logp   (>= 0; Schulman's k3 estimate of the KL)
  """
  on = b.mask > 0
  n = jnp.sum(b.mask)
  x_RT = jnp.clip(jnp.where(on, b.old_logp - b.sampler_logp, 0.0), -20.0, 20.0)
  return {
    "entropy": Mean(jnp.sum(jnp.where(on, entropy_RT, 0.0)), n),
    "sampler_gap_k3": Mean(jnp.sum(jnp.expm1(x_RT) - x_RT), n),
  }
