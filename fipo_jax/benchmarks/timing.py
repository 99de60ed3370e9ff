"""Medians of repeated runs, and the small model that several benchmarks share."""

from __future__ import annotations

import statistics
import time

from fipo_jax.models.transformer import ModelConfig

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


def timed(run, runs: int = 0) -> tuple[float, float]:
  """(median seconds of so many runs (0: RUNS) after one that compiles, seconds that the first took longer)."""
  times = []
  for seed in range(1 + (runs or RUNS)):
    begin = time.perf_counter()
    run(seed)
    times.append(time.perf_counter() - begin)
  seconds = statistics.median(times[1:])
  return seconds, times[0] - seconds

