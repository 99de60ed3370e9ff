"""The step that `launch/benchmark.py --what=train` times is an experiment's own, on the devices there are."""

import math

import numpy as np
import pytest

from fipo_jax import config
from fipo_jax.algorithms.presets import PRESETS
from launch import benchmark
from tests.tolerances import close


def tiny():
  c = config.default()
  c.algorithm.update(PRESETS["dapo"])
  c.model.path, c.model.dtype = "tiny", "float32"
  c.data.max_prompt_tokens, c.rollout.max_response_tokens, c.batch.row_tokens = 16, 48, 64
  c.batch.micro_rows, c.mesh.data, c.mesh.fsdp = 8, 2, 4
  c.reward.verifier, c.reward.overlong_buffer_tokens, c.eval.every = "math_dapo", 16, 0
  return c


@pytest.mark.slow
def test_a_step_with_a_reference_policy_is_timed(monkeypatch):
  monkeypatch.setattr(benchmark, "RUNS", 1)
  c = tiny()
  c.algorithm.reference_kl_coef = 0.1
  result = benchmark.train(c, 2)
  assert (result["rows"], result["tokens"], result["devices"]) == (16, 16 * 64, 8)
  close(result["tok_s"], result["tokens"] / result["seconds"], dtype=np.float64)
  assert math.isfinite(result["loss"]) and result["loss"] != 0 and result["mfu"] is None
  # And biases, norms, attention: a tenth at most.
  useful = 6 * (3 * 160 * (480 * 3 + 160 * 2 + 160 * 2) + 256 * 160) * 1024
  assert result["tflop_s_per_device"] * 1e12 * 8 * result["seconds"] == pytest.approx(useful, rel=0.1)


def test_what_cannot_be_timed_is_one_line():
  c = tiny()
  c.batch.micro_rows = 6
  with pytest.raises(ValueError, match="batch.micro_rows=6"):
    benchmark.train(c, 1)
  c = tiny()
  c.algorithm.name = "ppo"
  with pytest.raises(ValueError, match="algorithm.name='ppo'"):
    benchmark.train(c, 1)
  with pytest.raises(ValueError, match="--config=None"):
    benchmark.train(None, 1)
