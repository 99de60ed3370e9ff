"""Future-KL by scan beside the published form, a chunked matmul."""

from __future__ import annotations

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from fipo_jax.algorithms import future_kl as fkl
from fipo_jax.algorithms import losses
from fipo_jax.benchmarks.timing import RUNS
from fipo_jax.types import Batch


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

