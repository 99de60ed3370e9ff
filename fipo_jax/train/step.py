"""The jitted programs of the trainer: update, score, inspect.

All work on packed mini-batches [M, R, T]. Micro-batches are a loop inside the program, over the `used` first ones;
(gradient sums, metric sums, counts) are added up and divided once, by the global count of the mini-batch. So the
objective does not depend on M, R, packing or the mesh.

Operations carry the names of their stages into traces: old_logp, forward, loss, future_kl, optimizer; those of a
gradient as transpose(jvp(forward)).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fipo_jax import sharding
from fipo_jax.algorithms import diagnostics
from fipo_jax.models import logprobs
from fipo_jax.models.transformer import Model
from fipo_jax.train.state import TrainState, layout, on_device
from fipo_jax.types import Batch, Max, Mean, Quantiles, TokenLoss

Objective = Callable[..., TokenLoss]


@dataclasses.dataclass(frozen=True)
class Steps:
  """update(state, batch, used) -> (state, metrics); donates state.
  score(params, batch, used) -> {"logp": [M, R, T]}, with a value head also "values".
  inspect(params, batch [R, T]) -> per-token arrays."""

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
  logits_mib: float,
  entropy_gradient: bool = False,
  compiler_options: dict[str, str] | None = None,
) -> Steps:
  """Builds the programs of one run.

  Args:
    objective: logp_RT, batch, entropy_RT, values_RT -> TokenLoss. temperature: of the sampler; log-probs are taken
      at it. logits_mib: as in `logprobs.token_logprobs`.
    entropy_gradient: whether the objective differentiates the entropy.
    compiler_options: of update and score.
  """
  rows = sharding.named(mesh, None, "rows", "tokens")
  one = sharding.named(mesh, "rows", "tokens")
  everywhere = sharding.named(mesh)
  states = layout(abstract_state)
  offloaded = any(s.memory_kind == sharding.HOST for s in jax.tree.leaves(states.opt_state))

  def narrow(params):
    return jax.lax.with_sharding_constraint(model.cast(params), states.params)

  @jax.named_scope("forward")
  def outputs(params, b: Batch, **entropy):
    """(logp_RT, entropy_RT, values_RT or None) of the tokens of packed rows."""
    hidden_RTD = model.hidden(params, b.tokens, b.positions, b.segments)
    logp_RT, entropy_RT = logprobs.token_logprobs(
      hidden_RTD, model.head(params), b.tokens, b.segments,
      temperature=temperature, logits_mib=logits_mib, tile_tokens=model.config.tile_tokens,
      sum_dtype=model.config.sum_dtype, **entropy,
    )  # fmt: skip
    values_RT = None
    if model.config.value_head:
      values_RT = logprobs.of_preceding(model.values(params, hidden_RTD), b.segments)
    return logp_RT, entropy_RT, values_RT

  def total_loss(params, b: Batch):
    logp_RT, entropy_RT, values_RT = outputs(params, b, with_entropy=True, entropy_gradient=entropy_gradient)
    with jax.named_scope("loss"):
      out = objective(logp_RT, b, entropy_RT, values_RT)
    metrics = {**out.metrics, "entropy": diagnostics.token_mean(jax.lax.stop_gradient(entropy_RT), b.mask > 0)}
    return out.loss.total, (out.loss.count, metrics)

  def update(state: TrainState, batch: Batch, used: jax.Array):
    grad = jax.value_and_grad(total_loss, has_aux=True)
    # Narrowed once for all micro-batches. Their gradients are narrow too (as products of narrow operands are); the sum
    # over micro-batches is float32.
    total, (count, metrics), grads = _accumulate(grad, narrow(state.params), batch, used)
    grads = jax.tree.map(lambda g: g / jnp.maximum(count, 1e-8).astype(g.dtype), grads)
    norm = optax.global_norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(total)
    ok = finite & (count > 0)
    old = state.opt_state
    if offloaded:
      old = jax.device_put(old, on_device(states.opt_state))
    with jax.named_scope("optimizer"):
      changes, opt_state = optimizer.update(grads, old, state.params)
      params = optax.apply_updates(state.params, changes)
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)
    new = TrainState(
      updates=state.updates + ok.astype(jnp.int32),
      skipped=jnp.where(ok, 0, state.skipped + 1),
      params=keep(params, state.params),
      opt_state=keep(opt_state, old),
    )
    metrics |= {
      "loss": Mean(total, count),
      "grad_norm": Mean(norm, jnp.float32(1)),
      "learning_rate": Mean(learning_rate(state.updates), jnp.float32(1)),
      "skipped_updates": Mean(1.0 - ok, jnp.float32(1)),
      "empty_updates": Mean((finite & ~ok).astype(jnp.float32), jnp.float32(1)),  # of those: no token counted
    }
    return new, metrics

  @jax.named_scope("old_logp")
  def score(params, batch: Batch, used: jax.Array):
    params = narrow(params)
    names = ("logp", "values") if model.config.value_head else ("logp",)

    def body(m, scored):
      logp_RT, _, values_RT = outputs(params, jax.tree.map(lambda x: x[m], batch), with_entropy=False)
      new = {"logp": logp_RT, "values": values_RT}
      return {name: scored[name].at[m].set(new[name]) for name in names}

    return jax.lax.fori_loop(0, used, body, {name: jnp.zeros(batch.tokens.shape, jnp.float32) for name in names})

  def inspect(params, b: Batch):
    logp_RT, entropy_RT, values_RT = outputs(params, b, with_entropy=True)
    known = {"old_logp": b.old_logp, "advantages": b.advantages, "logp": logp_RT, "entropy": entropy_RT}
    return {**objective(logp_RT, b, entropy_RT, values_RT).per_token, **known}

  params = states.params
  return Steps(
    update=jax.jit(
      update, donate_argnums=0, in_shardings=(states, rows, everywhere), out_shardings=(states, everywhere),
      compiler_options=compiler_options,
    ),
    score=jax.jit(
      score, in_shardings=(params, rows, everywhere), out_shardings=rows, compiler_options=compiler_options
    ),
    inspect=jax.jit(inspect, in_shardings=(params, one), out_shardings=everywhere),
  )


def _accumulate(grad: Callable, params: Any, batch: Batch, used: jax.Array):
  """Sums (loss total, (count, metrics), gradients) over the first `used` micro-batches, gradients in float32.

  What metrics say of quantiles is kept token by token and summarised once, over all micro-batches.
  """
  micro = lambda m: jax.tree.map(lambda x: x[m], batch)
  (total, (count, metrics)), _ = jax.eval_shape(grad, params, micro(0))
  zero = lambda s: jnp.zeros(s.shape, s.dtype)
  stacked = lambda s: sharding.constrain(jnp.zeros((batch.tokens.shape[0], *s.shape), s.dtype), None, "rows", "tokens")
  start = (
    zero(total),
    (zero(count), {
      name: jax.tree.map(stacked, r) if isinstance(r, Quantiles) else _identity(r) for name, r in metrics.items()
    }),
    jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params),
  )  # fmt: skip

  def merge(old, new, m):
    if isinstance(old, Quantiles):
      return jax.tree.map(lambda all_, one: all_.at[m].set(one), old, new)
    return old.merge(new)

  def body(m, carry):
    total, (count, metrics), grads = carry
    (t, (c, new)), g = grad(params, micro(m))
    merged = {name: merge(metrics[name], new[name], m) for name in metrics}
    grads = jax.tree.map(lambda a, b: a + b.astype(a.dtype), grads, g)
    return total + t, (count + c, merged), grads

  total, (count, metrics), grads = jax.lax.fori_loop(0, used, body, start)
  return total, (count, diagnostics.summarise(metrics)), grads


def _identity(record):
  """What merges with anything and changes nothing: zeros for Mean, -inf for Max, +inf for Min."""
  fill = 0.0 if isinstance(record, Mean) else -jnp.inf if isinstance(record, Max) else jnp.inf
  return jax.tree.map(lambda s: jnp.full(s.shape, fill, s.dtype), record)
