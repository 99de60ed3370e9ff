"""How far the sampler's log-probabilities are from the trainer's, on what a published model writes."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np

from fipo_jax import config, parts
from fipo_jax.algorithms.terms import sampler_weight
from fipo_jax.data.tokenizer import Tokenizer
from fipo_jax.models import hf, make_model
from fipo_jax.rollout import ENGINES, Sampling
from fipo_jax.sharding import make_mesh, to_mesh
from fipo_jax.train import batching
from fipo_jax.types import Prompt

GAP_SAMPLES = 4  # of each prompt
GAP_CAP = 2.0  # the example of algorithm.sampler_ratio_cap in config.py; no experiment sets one
GAP_RUNS = tuple((dtype, cache) for dtype in ("bfloat16", "float32") for cache in ("", "int8"))
GAP_TEXTS = (
  "Question: A farmer has 17 sheep and buys 3 more than twice as many. How many are there now?\nAnswer:",
  "Question: What is the remainder when 7^100 is divided by 13? Think step by step.\nAnswer:",
  "Let f(x) = x^3 - 3x + 1. We look for all local extrema. First, the derivative is",
  "Problem: Three fair dice are rolled. Find the probability that the sum is 10.\nSolution:",
  "# Returns the n-th Fibonacci number, n >= 0, without recursion.\ndef fibonacci(n):\n",
  "def is_balanced(text: str) -> bool:\n  \"\"\"Whether brackets (), [] and {} are balanced.\"\"\"\n",
  "-- The ten customers who spent most last year, with what they spent\nSELECT",
  "The train leaves at 9:40 and arrives at 13:05 after two stops of 6 minutes. To find the time it moved, we",
)


def gap(model_dir: str, tokens: int) -> dict:
  """A Hugging Face checkpoint (--model) samples 4 responses to 8 prompts; the trainer's program scores the same tokens.

  In bfloat16 and float32, with the cache in the compute dtype and in int8. Parameters are float32, as in a run.
  """
  if not model_dir:
    raise ValueError("--model='': gap needs a Hugging Face directory, such as Qwen2.5-0.5B.")
  sizes, tokenizer = hf.read_config(model_dir), Tokenizer.load(model_dir)
  mesh = make_mesh({"data": -1, "fsdp": 1, "context": 1, "tensor": 1})
  make = lambda dtype: make_model(dataclasses.replace(sizes, dtype=dtype, param_dtype="float32"))
  params, found = hf.load(model_dir, make("float32"), mesh), {}
  for dtype, cache in GAP_RUNS:
    name = f"{dtype}_{cache}" if cache else dtype
    found[name] = gap_of(*sampled_and_scored(make(dtype), params, mesh, tokenizer, cache, tokens))
    print(f"{name}: {json.dumps(found[name])}", flush=True)
  return found | {"tokens": tokens, "cap": GAP_CAP}



def sampled_and_scored(model, params, mesh, tokenizer, cache: str, tokens: int) -> tuple[list, list]:
  """Log-probabilities of each response's tokens, by the sampler with this cache and by the trainer: ([n], ..) twice."""
  prompts = [Prompt(i, np.asarray(tokenizer.encode(x), np.int32), x, "", "none") for i, x in enumerate(GAP_TEXTS)]
  longest = max(len(p.tokens) for p in prompts)
  engine = ENGINES["native"](
    model, mesh, slots=GAP_SAMPLES * len(prompts), max_prompt_tokens=longest, max_response_tokens=tokens,
    pad_id=tokenizer.pad_id, cache_dtype=cache,
  )  # fmt: skip
  engine.update(params)
  sampling = Sampling(max_tokens=tokens, stop_ids=tokenizer.stop_ids)
  groups = engine.generate(prompts, GAP_SAMPLES, key=jax.random.key(0), sampling=sampling)
  engine.release()
  rows = -(-8 // mesh.size) * mesh.size
  packed = batching.pack(
    groups, row_tokens=-(-(longest + tokens) // 128) * 128, micro_rows=rows, num_micro=GAP_SAMPLES * len(prompts)
  )  # fmt: skip
  steps, _, _ = parts.open_steps(config.default(), model, mesh)
  with jax.set_mesh(mesh):
    logp = steps.score(params, to_mesh(mesh, packed.batch, None, "rows", "tokens"), packed.used)["logp"]
  logp = np.asarray(logp)
  scored = [logp[p.micro, p.row, p.start : p.stop] for p in packed.places]
  return [r.logp for group in groups for r in group], scored



def gap_of(sampled: list, scored: list) -> dict:
  """How far two programs' log-probabilities of the same tokens are apart, x = scored - sampled in nats.

      mean, p99, max of |x|;   bias = mean x;   k3 = mean(exp x - 1 - x);   weight = min(exp x, cap)

  response: mean over responses of |sum of x|. weight_mean, weight_clipped: of the weights that correct for it, the mean
  and the share at the cap.
  """
  apart = [np.asarray(t, np.float64) - s for s, t in zip(sampled, scored, strict=True)]
  weight = np.asarray(sampler_weight(np.concatenate(scored), np.concatenate(sampled), True, cap=GAP_CAP), np.float64)
  x = np.concatenate(apart)
  size = np.abs(x)
  found = {
    "mean": size.mean(), "p99": np.quantile(size, 0.99), "max": size.max(), "bias": x.mean(),
    "k3": (np.expm1(x) - x).mean(), "response": np.mean([abs(sum(a)) for a in apart]), "weight_mean": weight.mean(),
    "weight_clipped": (x > np.log(GAP_CAP)).mean(),
  }  # fmt: skip
  return {"sampled": len(x)} | {name: float(f"{value:.4g}") for name, value in found.items()}

