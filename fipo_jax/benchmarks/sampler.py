"""Tokens sampled per second: equal lengths, a long tail of lengths, a published model beside its memory's limit."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from fipo_jax import config, paths
from fipo_jax.benchmarks.timing import SMALL_QWEN2, timed
from fipo_jax.models import hf, make_model
from fipo_jax.pods import chips, programs
from fipo_jax.rollout import ENGINES, Sampling
from fipo_jax.sharding import make_mesh
from fipo_jax.types import Prompt

LONGTAIL_PAGE, LONGTAIL_CACHE = 32, 6144  # tokens; without a bound 32 slots could need 10,240


def small_engine(**options):
  """The native engine with random weights of the small model, and prompts of 64 tokens: (engine, prompts(n))."""
  model, prompt_tokens = make_model(SMALL_QWEN2), 64
  mesh = make_mesh({"data": -1, "fsdp": 1, "context": 1, "tensor": 1})
  engine = ENGINES["native"](
    model, mesh, slots=32, max_prompt_tokens=prompt_tokens, max_response_tokens=256, pad_id=0, **options
  )  # fmt: skip
  engine.update(jax.jit(model.init)(jax.random.key(0)))

  def prompts(n):
    tokens = np.random.default_rng(0).integers(3, SMALL_QWEN2.vocab_size, (n, prompt_tokens))
    return [Prompt(i, row.astype(np.int32), "", "", "none") for i, row in enumerate(tokens)]

  return engine, prompts



def sampler() -> dict:
  """32 prompts of 64 tokens, 256 new tokens each, temperature 1, nothing stops early."""
  engine, prompts = small_engine()
  sampling, batch = Sampling(max_tokens=256), prompts(32)
  seconds, compile_s = timed(lambda seed: engine.generate(batch, 1, key=jax.random.key(seed), sampling=sampling))
  u = engine.usage
  return {
    "tokens": u.tokens, "seconds": seconds, "tok_s": u.tokens / seconds, "occupancy": u.occupancy,
    "cache_over_held": u.peak_cache_bytes / u.held_bytes, "compile_s": compile_s,
  }  # fmt: skip



def longtail() -> dict:
  """256 prompts of 64 tokens in 32 slots; lengths mostly short, some at the limit of 256: 8 + geometric, mean 48."""
  engine, prompts = small_engine(page_tokens=LONGTAIL_PAGE, cache_tokens=LONGTAIL_CACHE)
  lengths = np.minimum(256, np.random.default_rng(1).geometric(1 / 48, size=256) + 8)
  sampling, batch = Sampling(max_tokens=256), prompts(256)
  run = lambda seed: engine.generate(batch, 1, key=jax.random.key(seed), sampling=sampling, limits=lengths)
  seconds, compile_s = timed(run)
  u = engine.usage
  return {
    "useful_tokens": int(lengths.sum()), "seconds": seconds, "useful_tok_s": float(lengths.sum() / seconds),
    "occupancy": u.occupancy, "cache_over_held": u.peak_cache_bytes / u.held_bytes,
    "prefill_tokens": u.prefill_tokens, "interrupted": u.interrupted,
    "first_sample_s": u.first_sample_s, "tail_ratio": float(lengths.max() / np.median(lengths)),
    "compile_s": compile_s,
  }  # fmt: skip



def real_sampler(model_dir: str, slots: int) -> dict:
  """A checkpoint (--model) in bfloat16, or a published size's random weights: prompts of 64 tokens, 128 new each.

  As many prompts as --slots, all of which decode at once.
  """
  if not model_dir:
    raise ValueError("--model='': real_sampler needs a Hugging Face directory, or a size such as Qwen2.5-0.5B.")
  cfg, prompt, new = config.default(), 64, 128
  cfg.model.path = model_dir
  sizes = dataclasses.replace(programs.model_config(cfg), dtype="bfloat16", param_dtype="bfloat16")
  mesh, model = make_mesh({"data": -1, "fsdp": 1, "context": 1, "tensor": 1}), make_model(sizes)
  engine = ENGINES["native"](model, mesh, slots=slots, max_prompt_tokens=prompt, max_response_tokens=new, pad_id=0)
  stored = paths.is_file(paths.of(model_dir) / "config.json")
  engine.update(hf.load(model_dir, model, mesh) if stored else jax.jit(model.init)(jax.random.key(0)))
  tokens = np.random.default_rng(0).integers(3, min(50_000, sizes.vocab_size), (slots, prompt))
  batch = [Prompt(i, row.astype(np.int32), "", "", "none") for i, row in enumerate(tokens)]
  sampling = Sampling(max_tokens=new)
  run = lambda seed: engine.generate(batch, 1, key=jax.random.key(seed), sampling=sampling)
  seconds, compile_s = timed(run, runs=3)
  u = engine.usage
  return {
    "tokens": u.tokens, "seconds": seconds, "tok_s": u.tokens / seconds, "occupancy": u.occupancy,
    "prefill_s": u.prefill_seconds, "compile_s": compile_s, "slots": slots, "weights": "stored" if stored else "random",
    **_beside_memory(engine, slots, prompt, new, seconds),
  }  # fmt: skip


def _beside_memory(engine, slots: int, prompt: int, new: int, seconds: float) -> dict:
  """What the device is, and where it is a GPU that is known, the tokens per second that its memory allows."""
  kind, c = engine.mesh.devices.flat[0].device_kind, engine.model.config
  table = 0 if c.tie_embeddings else c.vocab_size * c.d_model * 2
  weights = sum(x.nbytes for x in jax.tree.leaves(engine.params)) - table
  gpu = chips.gpu_of(kind)
  least = gpu and least_seconds(weights, engine.token_bytes, slots, prompt, new, gpu.tb_s)
  return {
    "device": kind, "weight_mib": weights / 2**20, "bound_tok_s": least and slots * new / least,
    "of_bound": least and least / seconds,
  }  # fmt: skip


def least_seconds(weights: float, token: float, slots: int, prompt: int, new: int, tb_s: float) -> float:
  """Seconds of `new` token steps of full slots that do nothing but read; prefill is left out.

      Σ_i (weights + slots · (prompt + i) · token) / bandwidth,   i = 1 ... new

  Args:
    weights: bytes that a token step reads. token: bytes of the keys and values of one token. tb_s: TB/s of the memory.
  """
  context = new * prompt + new * (new + 1) / 2
  return (new * weights + slots * context * token) / (tb_s * 1e12)

