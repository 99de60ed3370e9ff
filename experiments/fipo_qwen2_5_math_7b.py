"""FIPO on Qwen2.5-Math-7B: arXiv 2603.19835 Table 5.

    python launch/run.py --config=experiments/fipo_qwen2_5_math_7b.py --config.model.path=Qwen2.5-Math-7B \
      --config.data.path=data/dapo-math-17k.parquet

f in [0.8, 1.2] and a safety threshold of 3, 32 samples per prompt of up to 10,240 tokens. The published config.json
ends at 4,096 positions; the authors raised that to 32,768, as here. batch.micro_rows suits 8 chips, one row each.
"""

from experiments import fipo_qwen2_5_32b
from fipo_jax.algorithms.presets import PRESETS


def get_config():
  c = fipo_qwen2_5_32b.get_config()
  c.workdir = "runs/fipo_qwen2_5_math_7b"
  c.algorithm.update(PRESETS["official_7b"])
  c.model.path = "Qwen2.5-Math-7B"  # override: --config.model.path=DIR
  c.model.max_position = 32_768
  c.model.remat, c.model.offload_inputs, c.optimizer.offload = "full", False, False
  c.mesh.data, c.mesh.fsdp = 1, -1
  c.batch.micro_rows = 8
  c.rollout.samples_per_prompt = 32
  c.rollout.tensor = 0
  c.rollout.max_response_tokens = 10_240
  c.reward.overlong_buffer_tokens = 2048
  c.batch.row_tokens = 12_288
  return c
