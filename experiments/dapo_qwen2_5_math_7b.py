"""DAPO on Qwen2.5-Math-7B, the baseline of arXiv 2603.19835 Table 5.

    python launch/run.py --config=experiments/dapo_qwen2_5_math_7b.py --config.model.path=Qwen2.5-Math-7B \
      --config.data.path=data/dapo-math-17k.parquet

Not a controlled comparison with fipo_qwen2_5_math_7b.py, in the paper as here: half the samples per prompt, shorter
responses, twice the updates per rollout.
"""

from experiments import fipo_qwen2_5_math_7b
from fipo_jax.algorithms.presets import PRESETS


def get_config():
  c = fipo_qwen2_5_math_7b.get_config()
  c.workdir = "runs/dapo_qwen2_5_math_7b"
  c.algorithm.update(PRESETS["dapo"])
  c.rollout.samples_per_prompt = 16
  c.rollout.max_response_tokens = 8192
  c.reward.overlong_buffer_tokens = 4096
  c.batch.minibatch_prompts = 32
  c.batch.row_tokens = 10_240
  c.optimizer.warmup_updates = 160
  return c
