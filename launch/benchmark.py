"""Speed of one part of the project on this machine: `python launch/benchmark.py --what=sampler`.

The last line is one JSON object. `tok_s` is the median of five runs after one that compiles.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np

from fipo_jax.models import make_model
from fipo_jax.models.transformer import ModelConfig
from fipo_jax.rollout import ENGINES, Sampling
from fipo_jax.sharding import make_mesh
from fipo_jax.types import Prompt

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


def sampler() -> dict:
  """32 prompts of 64 tokens, 256 new tokens each, temperature 1, nothing stops early."""
  prompts, prompt_tokens, new_tokens = 32, 64, 256
  model = make_model(SMALL_QWEN2)
  mesh = make_mesh({"data": -1, "fsdp": 1, "context": 1, "tensor": 1})
  engine = ENGINES["native"](
    model,
    mesh,
    slots=prompts,
    max_prompt_tokens=prompt_tokens,
    max_response_tokens=new_tokens,
    pad_id=0,
  )
  engine.update(jax.jit(model.init)(jax.random.key(0)))
  tokens = np.random.default_rng(0).integers(3, SMALL_QWEN2.vocab_size, (prompts, prompt_tokens))
  batch = [Prompt(i, row.astype(np.int32), "", "", "none") for i, row in enumerate(tokens)]
  sampling = Sampling(max_tokens=new_tokens)

  def run(seed: int) -> float:
    begin = time.perf_counter()
    engine.generate(batch, 1, key=jax.random.key(seed), sampling=sampling)
    return time.perf_counter() - begin

  compile_s = run(0)
  seconds = statistics.median(run(1 + i) for i in range(RUNS))
  return {
    "tokens": engine.usage.tokens,
    "seconds": seconds,
    "tok_s": engine.usage.tokens / seconds,
    "occupancy": engine.usage.occupancy,
    "compile_s": compile_s - seconds,
  }


BENCHMARKS = {
  "sampler": sampler,
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--what", choices=sorted(BENCHMARKS), required=True)
  what = parser.parse_args().what
  result = BENCHMARKS[what]()
  peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
  rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()}
  print(json.dumps({"what": what, **rounded, "peak_rss_mb": peak_rss_mb, "jax": jax.__version__}))


if __name__ == "__main__":
  main()
