"""Config -> the parts of a run, each by itself: model, programs, objective, engine, weights."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from fipo_jax import console, paths, sharding
from fipo_jax.algorithms import Terms, control, credit, make_advantages, make_objective
from fipo_jax.data import pipeline
from fipo_jax.data.tokenizer import Tokenizer, characters
from fipo_jax.evaluation import sets as sets_lib
from fipo_jax.models import PRESETS, hf, make_model
from fipo_jax.models.transformer import NUMERICS, Model
from fipo_jax.rollout import ENGINES, Engine
from fipo_jax.rollout.sampling import Sampling
from fipo_jax.train import compiler_options
from fipo_jax.train import state as state_lib
from fipo_jax.train import step as step_lib
from fipo_jax.train.checkpoint import Checkpointer
from fipo_jax.train.optimizer import make_optimizer, schedule

# Streams of randomness: folded into key(seed) after the step, so that no two uses share numbers.
STREAM_ROLLOUT, STREAM_EVAL, STREAM_INIT, STREAM_CONTROL = 0, sets_lib.STREAM, 2, 3


def sampling_of(cfg, tokenizer: Tokenizer, *, evaluation: bool) -> Sampling:
  """How responses are drawn by a config: that of a run, or of an evaluation set.

  A stop string that is one special token becomes a stop id: it can be kept out before min_tokens.
  """
  c = cfg.eval if evaluation else cfg.rollout
  own = dict(repetition_penalty=c.repetition_penalty) if evaluation else dict(min_tokens=c.min_tokens)
  ids = {text: tokenizer.special_id(text) for text in cfg.rollout.stop_strings}
  special = [i for i in ids.values() if i is not None]
  return Sampling(
    temperature=c.temperature, top_k=c.top_k, top_p=c.top_p, min_p=c.min_p,
    max_tokens=cfg.rollout.max_response_tokens,
    stop_ids=tuple(dict.fromkeys([*tokenizer.stop_ids, *special])),
    stop_strings=tuple(text for text, i in ids.items() if i is None), **own,
  )  # fmt: skip


def open_checkpointer(cfg, *, read_only: bool = False) -> Checkpointer:
  """The checkpoints of a run."""
  c = cfg.checkpoint
  return Checkpointer(
    cfg.workdir, keep=c.keep, best=c.keep_best, every=c.keep_every, folder=c.folder, read_only=read_only
  )


def with_model(cfg: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The config of a run that has trained; where its model.path is gone, tokenizer and sizes are those of its export."""
  is_model = lambda folder: paths.is_file(paths.of(folder) / "config.json")
  own = paths.of(cfg.workdir) / "export"
  if not cfg.model.path or is_model(cfg.model.path) or not is_model(own):
    return cfg
  console.say(f"model.path={cfg.model.path!r}: not there; tokenizer and sizes are read from {own}")
  cfg = cfg.copy_and_resolve_references()
  cfg.model.path = str(own)
  return cfg


def open_model(cfg) -> tuple[Tokenizer, Model]:
  """Tokenizer and model of model.path, or of model.preset with a character tokenizer; no weights yet."""
  if cfg.model.path:
    with paths.field("model.path", cfg.model.path):
      model_config, tokenizer = hf.read_config(cfg.model.path), Tokenizer.load(cfg.model.path)
  else:
    tokenizer = characters(cfg.model.alphabet)
    model_config = dataclasses.replace(PRESETS[cfg.model.preset], vocab_size=tokenizer.vocab_size)
  pipeline.check_vocab(tokenizer, model_config.vocab_size)
  if cfg.model.max_position:
    model_config = dataclasses.replace(model_config, max_position=cfg.model.max_position)
  longest = cfg.model.max_position or model_config.longest
  if (need := cfg.data.max_prompt_tokens + cfg.rollout.max_response_tokens) > longest:
    yarn = f", to {longest} with its YaRN" if longest > model_config.max_position else ""
    raise ValueError(
      f"data.max_prompt_tokens + rollout.max_response_tokens = {need} is beyond the model's "
      f"max_position_embeddings={model_config.max_position}{yarn}; use shorter limits, model.max_position, or YaRN: "
      "rope_scaling in its config.json."
    )
  numerics = {name: cfg.model[name] for name in NUMERICS}
  return tokenizer, make_model(
    dataclasses.replace(model_config, **numerics, value_head=cfg.algorithm.name == "ppo")
  )


def open_engine(cfg, model: Model, mesh, tokenizer) -> Engine:
  """The configured row of ENGINES."""
  r, text = cfg.rollout, functools.partial(tokenizer.decode, skip_special=False)
  limits = dict(max_prompt_tokens=cfg.data.max_prompt_tokens, max_response_tokens=r.max_response_tokens)
  own = {
    "native": dict(
      slots=r.slots, pad_id=tokenizer.pad_id, page_tokens=r.page_tokens, cache_tokens=r.cache_tokens,
      cache_dtype=r.cache_dtype, attention=r.attention, continuous_decode_steps=r.continuous_decode_steps, text=text,
    ),
    "http": dict(
      urls=tuple(r.urls), dialect=r.dialect, timeout_s=r.timeout_s, retry_s=r.retry_s, concurrency=r.concurrency,
      export_dir=str(paths.absolute(cfg.workdir) / "served"), template_dir=cfg.model.path or None,
      api_key=os.environ.get("FIPO_API_KEY", ""), model_name=r.model_name, text=text,
      say=console.say,
    ),
  }.get(r.engine, {})  # fmt: skip
  return ENGINES[r.engine](model.policy(), sharding.for_rollout(mesh, r.tensor), **limits, **own)


def open_steps(cfg, model, mesh) -> tuple[step_lib.Steps, Any, state_lib.TrainState]:
  """The trainer's programs, the optimizer and the state's shapes; nothing is computed."""
  if model.config.offload_inputs:
    sharding.check_host(mesh, "model.offload_inputs")
  objective = make_objective(cfg.algorithm.name, terms=open_terms(cfg), **hyperparameters(cfg))
  optimizer, rate = open_optimizer(cfg, model)
  abstract = state_lib.abstract(model, optimizer, mesh, offload=cfg.optimizer.offload)
  steps = step_lib.make_steps(
    model, objective, optimizer, rate, abstract, mesh,
    temperature=cfg.rollout.temperature, logits_mib=cfg.model.logits_mib,
    entropy_gradient=cfg.algorithm.entropy_coef > 0,
    compiler_options=compiler_options.options_of(mesh, cfg.compiler_options),
  )  # fmt: skip
  return steps, optimizer, abstract


def open_optimizer(cfg, model) -> tuple[Any, Callable]:
  """The Optax chain and its learning-rate schedule."""
  o = cfg.optimizer
  rate = schedule(
    learning_rate=o.learning_rate, warmup_updates=o.warmup_updates, kind=o.schedule,
    total_updates=cfg.steps * (cfg.batch.prompts // cfg.batch.minibatch_prompts),
  )  # fmt: skip
  chain = make_optimizer(
    rate, name=o.name, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay, clip_norm=o.clip_norm,
    momentum_dtype=o.momentum_dtype or cfg.model.param_dtype, matrix_axes=model.matrix_axes(),
    scales={"value_head": o.value_learning_rate / o.learning_rate} if model.config.value_head else None,
  )  # fmt: skip
  return chain, rate


def hyperparameters(cfg) -> dict[str, Any]:
  """The config's algorithm fields as the objectives take them: its (), 0 and -1 for "none" become None."""
  a = cfg.algorithm
  weight_clip = tuple(a.weight_clip) or None
  return dict(
    clip_low=a.clip_low, clip_high=a.clip_high, dual_clip=a.dual_clip or None, gspo_clip_low=a.gspo_clip_low,
    gspo_clip_high=a.gspo_clip_high, cispo_ratio_cap=a.cispo_ratio_cap,
    max_response_tokens=cfg.rollout.max_response_tokens,
    delta_clamp=a.delta_clamp or None, half_life_tokens=a.half_life_tokens, participation_mask=a.participation_mask,
    participation_ratio=a.participation_ratio or None,
    # An ablation multiplies its weights into the advantages; the loss itself then has none.
    weight_clip=weight_clip if a.control == "none" else (1.0, 1.0), raw_cap=a.raw_cap, safety_mode=a.safety_mode,
    safety_threshold=a.safety_threshold, loss_norm=a.loss_norm,
    sequence_reject_count=None if a.sequence_reject_count < 0 else a.sequence_reject_count,
  )  # fmt: skip


def open_terms(cfg) -> Terms:
  """What the loss holds beside the objective."""
  a = cfg.algorithm
  return Terms(
    reference_kl=a.reference_kl, reference_kl_coef=a.reference_kl_coef, entropy_coef=a.entropy_coef,
    sampler_ratio_cap=a.sampler_ratio_cap or None, value_clip=a.value_clip or None,
    value_coef=a.value_coef if a.name == "ppo" else 0.0,
  )  # fmt: skip


def open_advantages(cfg) -> Callable:
  """Rewards [P, G] -> advantages [P, G], as objective or config say."""
  ddof = cfg.algorithm.advantage_std_ddof
  return make_advantages(cfg.algorithm.name, cfg.algorithm.advantage, std_ddof=None if ddof < 0 else ddof)


def open_control(cfg) -> Callable | None:
  """The jitted ablation of algorithm.control; None for none."""
  a, h = cfg.algorithm, hyperparameters(cfg)
  if a.control == "none":
    return None
  names = (
    "delta_clamp", "dual_clip", "participation_ratio", "half_life_tokens", "participation_mask", "raw_cap",
    "safety_mode", "safety_threshold",
  )  # fmt: skip
  own = {name: h[name] for name in names} | {"weight_clip": tuple(a.weight_clip) or None}
  return jax.jit(functools.partial(control, kind=a.control, **own))


def open_credit(cfg) -> Callable | None:
  """The jitted advantages of a value head, for ppo; None for objectives whose advantages the host has computed."""
  a = cfg.algorithm
  if a.name != "ppo":
    return None
  return jax.jit(functools.partial(credit, discount=a.discount, gae_lambda=a.gae_lambda))


def open_reference(cfg, model: Model, mesh) -> Any:
  """The starting weights once more, in the compute dtype: the policy that a KL term holds on to."""
  if not cfg.algorithm.reference_kl_coef:
    return None
  with jax.set_mesh(mesh):
    return jax.jit(model.cast, donate_argnums=0)(fresh_params(cfg, model, mesh))


def fresh_state(cfg, model, optimizer, abstract, mesh) -> state_lib.TrainState:
  """State at step 0."""
  with jax.set_mesh(mesh):
    params = fresh_params(cfg, model, mesh)
    layout = state_lib.layout(abstract)
    return jax.jit(lambda p: state_lib.create(p, optimizer), donate_argnums=0, out_shardings=layout)(params)


def fresh_params(cfg, model: Model, mesh) -> Any:
  """The weights of model.path, or random ones for model.preset; a value head is 0."""
  shardings = model.shardings(mesh)
  if not cfg.model.path:
    key = jax.random.fold_in(jax.random.key(cfg.seed), STREAM_INIT)
    return jax.jit(model.init, out_shardings=shardings)(key)
  with paths.field("model.path", cfg.model.path):
    params = hf.load(cfg.model.path, model.policy(), mesh)
  if model.config.value_head:
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), model.abstract()["value_head"])
    params["value_head"] = jax.device_put(zeros, shardings["value_head"])
  return params
