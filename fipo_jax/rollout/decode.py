"""The jitted programs of sampling: `start` a wave of slots, `extend` it until all are done, `grow` its cache.

All slots of a wave sit at the same index of the cache: prompts are padded on the left, so the next key and value
of every slot go to one contiguous place, and only positions and validity differ between slots. The cache is carried
through the loop and donated; it is never stacked or copied whole per step.

Axes besides the usual ones: R prefilled prompts (each serves S / R slots), T padded prompt tokens, M cache entries,
N response tokens.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from fipo_jax.models.transformer import Model
from fipo_jax.rollout.sampling import Sampling, sample
from fipo_jax.sharding import constrain


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Wave:
  """Slots in flight. Response token n of every slot belongs to the same step, whether the slot still counts or not.

  step: int32 scalar, response tokens sampled so far. prompt_S: int32, real prompt tokens. keys_S: a key per sample.
  last_S: int32, token to feed next. done_S: bool, ended or never in use. count_S: int32, response tokens, end included.
  tokens_SN: int32. logp_SN: float32 nats. cache_k, cache_v: [L, S, M, K, h].
  """

  step: jax.Array
  prompt_S: jax.Array
  keys_S: jax.Array
  last_S: jax.Array
  done_S: jax.Array
  count_S: jax.Array
  tokens_SN: jax.Array
  logp_SN: jax.Array
  cache_k: jax.Array
  cache_v: jax.Array


@functools.partial(jax.jit, static_argnames=("model", "sampling", "entries", "pad_id"))
def start(
  model: Model,
  sampling: Sampling,
  params,
  prompt_RT,
  length_R,
  key,
  id_S,
  sample_S,
  used_S,
  *,
  entries,
  pad_id,
):
  """Prefills each prompt once, repeats its cache for its samples, and samples the first token of every slot.

  Args:
    prompt_RT: int32, padded on the left. length_R: int32, real tokens of each.
    key: one random key. id_S, sample_S: uint32, what a slot's own key is derived from: (prompt, sample), not the slot.
    used_S: bool, False on slots that only fill up the wave.
    entries: M, above T. pad_id: token written where a response has ended.
  Returns:
    Wave after one step.
  """
  S, (R, T) = id_S.shape[0], prompt_RT.shape
  column_RT = jnp.arange(T) - (T - length_R)[:, None]  # 0 at a prompt's first real token
  hidden_RTD, cache_k, cache_v = model.prefill(
    params, prompt_RT, jnp.maximum(column_RT, 0), (column_RT >= 0).astype(jnp.int32)
  )
  logits_SV = _per_slot(model.logits(params, hidden_RTD[:, -1]), S // R, axis=0)
  room = [(0, 0), (0, 0), (0, entries - T), (0, 0), (0, 0)]
  cache_k, cache_v = (_pin(jnp.pad(_per_slot(x, S // R, axis=1), room)) for x in (cache_k, cache_v))
  keys_S = jax.vmap(lambda i, g: jax.random.fold_in(jax.random.fold_in(key, i), g))(id_S, sample_S)
  N = sampling.max_tokens
  wave = Wave(
    step=jnp.int32(0),
    prompt_S=_per_slot(length_R, S // R, axis=0),
    keys_S=keys_S,
    last_S=jnp.full(S, pad_id, jnp.int32),
    done_S=~used_S,
    count_S=jnp.zeros(S, jnp.int32),
    tokens_SN=jnp.full((S, N), pad_id, jnp.int32),
    logp_SN=jnp.zeros((S, N), jnp.float32),
    cache_k=cache_k,
    cache_v=cache_v,
  )
  return _record(wave, logits_SV, sampling, pad_id)


@functools.partial(
  jax.jit, static_argnames=("model", "sampling", "pad_id"), donate_argnames=("wave",)
)
def extend(model: Model, sampling: Sampling, params, wave: Wave, base, *, pad_id):
  """Decodes until every slot is done, the limit is reached, or the cache is full.

  Args:
    base: int32 scalar, T of the prefill: the cache index of the first response token.
  Returns:
    (wave, number of slots done, whether another step is possible only in a larger cache).
  """
  M, N = wave.cache_k.shape[2], sampling.max_tokens
  index_M = jnp.arange(M)
  first_S = base - wave.prompt_S

  def unfinished(wave):
    return (wave.step < N) & ~jnp.all(wave.done_S)

  def fits(wave):
    return base + wave.step <= M  # the last sampled token goes to base + step - 1

  def one_token(wave):
    write = base + wave.step - 1
    valid_SM = (index_M >= first_S[:, None]) & (index_M <= write)
    position_S = wave.prompt_S + wave.step - 1
    hidden_SD, cache_k, cache_v = model.decode(
      params, wave.last_S, position_S, wave.cache_k, wave.cache_v, write, valid_SM
    )
    wave = dataclasses.replace(wave, cache_k=_pin(cache_k), cache_v=_pin(cache_v))
    return _record(wave, model.logits(params, hidden_SD), sampling, pad_id)

  wave = jax.lax.while_loop(lambda w: unfinished(w) & fits(w), one_token, wave)
  return wave, jnp.sum(wave.done_S), unfinished(wave)


@functools.partial(jax.jit, static_argnames=("entries",))
def grow(wave: Wave, *, entries: int) -> Wave:
  """The same wave with room for `entries` cache entries."""
  room = [(0, 0), (0, 0), (0, entries - wave.cache_k.shape[2]), (0, 0), (0, 0)]
  cache_k, cache_v = (_pin(jnp.pad(x, room)) for x in (wave.cache_k, wave.cache_v))
  return dataclasses.replace(wave, cache_k=cache_k, cache_v=cache_v)


@jax.jit
def harvest(wave: Wave):
  """(tokens_SN, logp_SN, count_S, step), whole on every device: what each host may read."""
  return tuple(
    constrain(x, *[None] * x.ndim) for x in (wave.tokens_SN, wave.logp_SN, wave.count_S, wave.step)
  )


def _record(wave: Wave, logits_SV, sampling: Sampling, pad_id: int) -> Wave:
  """Samples one token for every slot that is not done and writes it down."""
  keys_S = jax.vmap(jax.random.fold_in, in_axes=(0, None))(wave.keys_S, wave.step)
  token_S, logp_S = sample(logits_SV, keys_S, sampling)
  token_S = jnp.where(wave.done_S, pad_id, token_S)
  logp_S = jnp.where(wave.done_S, 0.0, logp_S)
  stop_S = jnp.zeros_like(wave.done_S)
  for stop_id in sampling.stop_ids:
    stop_S |= token_S == stop_id
  return dataclasses.replace(
    wave,
    step=wave.step + 1,
    last_S=token_S,
    count_S=wave.count_S + ~wave.done_S,
    done_S=wave.done_S | stop_S,
    tokens_SN=jax.lax.dynamic_update_slice(wave.tokens_SN, token_S[:, None], (0, wave.step)),
    logp_SN=jax.lax.dynamic_update_slice(wave.logp_SN, logp_S[:, None], (0, wave.step)),
  )


def _per_slot(x, times: int, *, axis: int):
  """Each prompt's entry `times` times in a row: the slots of its samples."""
  return x if times == 1 else jnp.repeat(x, times, axis=axis)


def _pin(cache):
  return constrain(cache, "layers", "rows", None, "kv_heads", None)
