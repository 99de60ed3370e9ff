"""Tokens per second of an optimizer step: of the small model, of an experiment on the devices there are."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from fipo_jax import config, parts
from fipo_jax.algorithms.presets import PRESETS
from fipo_jax.benchmarks.timing import SMALL_QWEN2, timed
from fipo_jax.models import make_model
from fipo_jax.pods import chips, programs
from fipo_jax.sharding import for_rollout, make_mesh, to_mesh
from fipo_jax.train import state
from fipo_jax.types import Batch


def step() -> dict:
  """One DAPO step of the small model in float32: 16 rows of 64 prompt and 448 response tokens, AdamW."""
  rows, prompt_tokens, micro_rows = 16, 64, 2
  cfg = config.default()
  cfg.algorithm.update(PRESETS["dapo"])
  cfg.batch.row_tokens, cfg.batch.micro_rows = prompt_tokens + 448, micro_rows
  mesh = make_mesh({"data": 1, "fsdp": -1, "context": 1, "tensor": 1})
  return optimizer_step(cfg, make_model(SMALL_QWEN2), mesh, rows // micro_rows, prompt_tokens)



def train(cfg, micro_batches: int) -> dict:
  """An experiment's step with random weights, in one process; MFU counts what the mathematics needs, no recomputation.

  Raises ValueError: no config, or one that the run would refuse, or of ppo: its value head is not timed.
  """
  if cfg is None:
    raise ValueError("--config=None: train needs an experiment, such as experiments/fipo_qwen2_5_32b.py.")
  if cfg.algorithm.name == "ppo":
    raise ValueError("algorithm.name='ppo': its step with a value head is not timed; use another.")
  programs.validate(cfg)
  model, mesh = make_model(programs.model_config(cfg)), make_mesh(cfg.mesh)
  config.check_mesh(cfg, mesh.shape, for_rollout(mesh, cfg.rollout.tensor).shape)
  result = optimizer_step(cfg, model, mesh, micro_batches, prompt_tokens=1)
  linear, attention, _ = programs.forward_flops(model, cfg.batch, mesh)
  tflop_s = 3 * (linear + attention) * micro_batches / result["seconds"] / 1e12
  device = mesh.devices.flat[0]
  peak = next((v for kind, v in chips.PEAK_TFLOP_S.items() if device.device_kind.startswith(kind)), None)
  memory = device.memory_stats() or {}
  return result | {
    "device": device.device_kind, "devices": mesh.size, "tflop_s_per_device": tflop_s,
    "mfu": tflop_s / peak if peak else None, "peak_gib": memory.get("peak_bytes_in_use", 0) / 2**30 or None,
  }  # fmt: skip



def optimizer_step(cfg, model, mesh, num_micro: int, prompt_tokens: int) -> dict:
  """Times the update program of a config on random weights and full rows of one sequence each."""
  steps, optimizer, abstract = parts.open_steps(cfg, model, mesh)
  layout = state.layout(abstract)
  with jax.set_mesh(mesh):
    params = jax.jit(model.init, out_shardings=layout.params)(jax.random.key(0))
    create = jax.jit(lambda p: state.create(p, optimizer), donate_argnums=0, out_shardings=layout)
    current = create(params)
  del params
  rng, shape = np.random.default_rng(0), (num_micro, cfg.batch.micro_rows, cfg.batch.row_tokens)
  wide = lambda x: np.broadcast_to(x, shape)
  mask = wide(np.arange(shape[-1]) >= prompt_tokens).astype(np.float32)
  batch = Batch(
    tokens=rng.integers(3, model.config.vocab_size, shape).astype(np.int32),
    positions=wide(np.arange(shape[-1], dtype=np.int32)), segments=np.ones(shape, np.int32), mask=mask,
    advantages=mask * rng.normal(size=shape[:2])[..., None].astype(np.float32), old_logp=mask,
    sampler_logp=mask, group_tokens=8.0 * mask * (shape[-1] - prompt_tokens), age=np.zeros(shape, np.float32),
  )  # fmt: skip
  batch = to_mesh(mesh, batch, None, "rows", "tokens")
  with jax.set_mesh(mesh):
    logp = steps.score(current.params, batch, num_micro)["logp"]  # on policy: no objective turns rows away
  batch, loss = dataclasses.replace(batch, old_logp=logp, sampler_logp=logp, ref_logp=logp), None

  def run(_):
    nonlocal current, loss
    with jax.set_mesh(mesh):
      current, metrics = steps.update(current, batch, num_micro)
      jax.block_until_ready((current, metrics))
    loss = float(metrics["loss"].value())

  seconds, compile_s = timed(run)
  tokens = int(np.prod(shape))
  return {
    "rows": tokens // shape[-1], "tokens": tokens, "seconds": seconds, "tok_s": tokens / seconds,
    "compile_s": compile_s, "loss": loss,
  }  # fmt: skip

