"""Tokens sampled per second: equal lengths, a long tail of lengths, a published model."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from fipo_jax.benchmarks.timing import SMALL_QWEN2, timed
from fipo_jax.models import hf, make_model
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



def real_sampler(model_dir: str) -> dict:
  """A Hugging Face checkpoint (--model) in bfloat16: 32 prompts of 64 tokens, 128 new tokens each."""
  if not model_dir:
    raise ValueError("--model='': real_sampler needs a Hugging Face directory, such as Qwen2.5-0.5B.")
  mesh = make_mesh({"data": -1, "fsdp": 1, "context": 1, "tensor": 1})
  model = make_model(dataclasses.replace(hf.read_config(model_dir), dtype="bfloat16", param_dtype="bfloat16"))
  engine = ENGINES["native"](model, mesh, slots=32, max_prompt_tokens=64, max_response_tokens=128, pad_id=0)
  engine.update(hf.load(model_dir, model, mesh))
  tokens = np.random.default_rng(0).integers(3, 50_000, (32, 64))
  batch = [Prompt(i, row.astype(np.int32), "", "", "none") for i, row in enumerate(tokens)]
  sampling = Sampling(max_tokens=128)
  run = lambda seed: engine.generate(batch, 1, key=jax.random.key(seed), sampling=sampling)
  seconds, compile_s = timed(run, runs=3)
  u = engine.usage
  return {
    "tokens": u.tokens, "seconds": seconds, "tok_s": u.tokens / seconds, "occupancy": u.occupancy,
    "prefill_s": u.prefill_seconds, "compile_s": compile_s,
  }  # fmt: skip

