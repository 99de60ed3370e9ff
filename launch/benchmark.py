"""Speed of one part of the project on this machine: `python launch/benchmark.py --what=NAME`.

The last line is one JSON object. Times are medians of five runs after one that compiles.

    sampler     tok_s: tokens sampled per second; every response has the same length
    longtail    useful_tok_s: the same for responses of very different lengths; occupancy: share of slot steps used
    real_sampler  tok_s: a Hugging Face checkpoint (--model=DIR) in bfloat16
    step        tok_s: tokens of one optimizer step of DAPO on 16 rows of 512 tokens; peak_rss_mb is of interest, too
    future_kl   seconds, baseline_seconds, ratio: Future-KL by scan against the published form, a chunked matmul;
                through the loss and its gradient: loss_seconds
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import pathlib
import resource
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from fipo_jax import assemble, config
from fipo_jax.algorithms import future_kl as fkl
from fipo_jax.algorithms import losses
from fipo_jax.algorithms.presets import PRESETS
from fipo_jax.models import hf, make_model
from fipo_jax.models.transformer import ModelConfig
from fipo_jax.rollout import ENGINES, Sampling
from fipo_jax.sharding import make_mesh, to_mesh
from fipo_jax.train import state
from fipo_jax.types import Batch, Prompt

SMALL_QWEN2 = ModelConfig(
  vocab_size=4096,
  num_layers=4,
  d_model=256,
  d_mlp=1024,
  num_heads=4,
  num_kv_heads=2,
  head_dim=64,
  rope_theta=1e6,
  norm_eps=1e-6,
  tie_embeddings=True,
  max_position=4096,
)
RUNS = 5
LONGTAIL_PAGE, LONGTAIL_CACHE = 32, 3584  # tokens


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


def timed(run, runs: int = 5) -> tuple[float, float]:
  """(median seconds of a run after one that compiles, seconds that the first took longer)."""
  times = []
  for seed in range(1 + runs):
    begin = time.perf_counter()
    run(seed)
    times.append(time.perf_counter() - begin)
  seconds = statistics.median(times[1:])
  return seconds, times[0] - seconds


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
    raise SystemExit("--model='': real_sampler needs a Hugging Face directory, such as Qwen2.5-0.5B.")
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


def step() -> dict:
  """One DAPO step of the small model in float32: 16 rows of 64 prompt and 448 response tokens, AdamW."""
  rows, prompt_tokens, response_tokens, micro_rows = 16, 64, 448, 2
  tokens = prompt_tokens + response_tokens
  cfg = config.default()
  cfg.algorithm.update(PRESETS["dapo"])
  cfg.batch.row_tokens, cfg.batch.micro_rows = tokens, micro_rows
  model, mesh = make_model(SMALL_QWEN2), make_mesh({"data": 1, "fsdp": -1, "context": 1, "tensor": 1})
  steps, optimizer, abstract = assemble.open_steps(cfg, model, mesh)
  layout = state.layout(abstract)
  current = jax.jit(lambda key: state.create(model.init(key), optimizer), out_shardings=layout)(jax.random.key(0))
  rng, num_micro = np.random.default_rng(0), rows // micro_rows
  shape = (num_micro, micro_rows, tokens)
  wide = lambda x: np.broadcast_to(x, shape)
  mask = wide(np.arange(tokens) >= prompt_tokens).astype(np.float32)
  batch = Batch(
    tokens=rng.integers(3, SMALL_QWEN2.vocab_size, shape).astype(np.int32),
    positions=wide(np.arange(tokens, dtype=np.int32)), segments=np.ones(shape, np.int32), mask=mask,
    advantages=mask * rng.normal(size=shape[:2])[..., None].astype(np.float32), old_logp=-8.3 * mask,
    sampler_logp=-8.3 * mask, group_tokens=8.0 * response_tokens * mask, age=np.zeros(shape, np.float32),
  )  # fmt: skip
  batch = to_mesh(mesh, batch, None, "rows", "tokens")

  def run(_):
    nonlocal current
    with jax.set_mesh(mesh):
      current, metrics = steps.update(current, batch, num_micro)
      jax.block_until_ready((current, metrics))

  seconds, compile_s = timed(run)
  return {
    "rows": rows, "tokens": rows * tokens, "seconds": seconds, "tok_s": rows * tokens / seconds, "compile_s": compile_s
  }  # fmt: skip


def future_kl() -> dict:
  """16 rows of 20,480 tokens in float32, half-life 32: ours and the chunked matmul of the published code, in turn."""
  rows, tokens, half_life, chunk = 16, 20_480, 32.0, 128
  rng = np.random.default_rng(0)
  delta_RT = jnp.asarray(0.02 * rng.standard_normal((rows, tokens)), jnp.float32)
  one_RT = jnp.ones((rows, tokens), jnp.int32)
  unit_RT = jnp.ones((rows, tokens), jnp.float32)
  advantages_RT = jnp.asarray(rng.standard_normal((rows, tokens)), jnp.float32)
  batch = Batch(one_RT, one_RT, one_RT, unit_RT, advantages_RT, -unit_RT, -unit_RT, unit_RT)

  def matmul(x_RT):
    """Per chunk of source tokens a dense [T, chunk] block of decays and a product, added to the running sum."""
    t = jnp.arange(tokens)[:, None]

    def one(i, F_RT):
      distance = i * chunk + jnp.arange(chunk) - t
      decay = jnp.where(distance >= 0, 2.0 ** (-jnp.maximum(distance, 0) / half_life), 0.0).astype(jnp.float32)
      return F_RT + jax.lax.dynamic_slice_in_dim(x_RT, i * chunk, chunk, axis=1) @ decay.T

    return jax.lax.fori_loop(0, tokens // chunk, one, jnp.zeros_like(x_RT))

  # Everything is an argument: what is constant would be computed by the compiler.
  scan = jax.jit(functools.partial(fkl.future_kl, half_life_tokens=half_life))
  loss = lambda logp_RT, batch: losses.fipo(logp_RT, batch, half_life_tokens=half_life).loss.total
  programs = {"seconds": scan, "baseline_seconds": jax.jit(matmul), "loss_seconds": jax.jit(jax.value_and_grad(loss))}
  scanned = (delta_RT, one_RT, one_RT)
  inputs = {"seconds": scanned, "baseline_seconds": (delta_RT,), "loss_seconds": (delta_RT - 1, batch)}
  results = {name: program(*inputs[name]) for name, program in programs.items()}
  apart = float(jnp.abs(results["seconds"] - results["baseline_seconds"]).max())
  if not apart < 1e-4:
    raise ValueError(f"Future-KL by scan and by matmul are {apart} nats apart; they must agree.")
  times = {name: [] for name in programs}
  for _ in range(RUNS):
    for name, program in programs.items():
      begin = time.perf_counter()
      jax.block_until_ready(program(*inputs[name]))
      times[name].append(time.perf_counter() - begin)
  medians = {name: statistics.median(t) for name, t in times.items()}
  temporaries = scan.lower(*scanned).compile().memory_analysis().temp_size_in_bytes
  return {
    "rows": rows, "tokens": tokens, **medians, "ratio": medians["baseline_seconds"] / medians["seconds"],
    "largest_difference": apart, "temporary_mb": temporaries / 2**20,
  }  # fmt: skip


BENCHMARKS = {
  "sampler": sampler,
  "longtail": longtail,
  "real_sampler": real_sampler,
  "step": step,
  "future_kl": future_kl,
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--what", choices=sorted(BENCHMARKS), required=True)
  parser.add_argument("--model", default="", help="Hugging Face directory, for real_sampler")
  options = parser.parse_args()
  what = options.what
  result = real_sampler(options.model) if what == "real_sampler" else BENCHMARKS[what]()
  peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
  rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in result.items()}
  print(json.dumps({"what": what, **rounded, "peak_rss_mb": peak_rss_mb, "jax": jax.__version__}))


if __name__ == "__main__":
  main()
