"""DAPO on Qwen2.5-32B, the paper's baseline: run_dapo_qwen2.5_32b.sh and arXiv 2603.19835 Table 2.

    python launch/run.py --config=experiments/dapo_qwen2_5_32b.py --config.model.path=Qwen2.5-32B \
      --config.data.path=data/dapo-math-17k.parquet

As fipo_qwen2_5_32b.py, but for the objective and for 16 smaller updates per rollout instead of 8.
"""

from experiments import fipo_qwen2_5_32b
from fipo_jax.algorithms.presets import PRESETS


def get_config():
  c = fipo_qwen2_5_32b.get_config()
  c.workdir = "runs/dapo_qwen2_5_32b"
  c.algorithm.update(PRESETS["dapo"])
  c.batch.minibatch_prompts = 32  # 16 updates of 512 samples
  c.optimizer.warmup_updates = 160  # 10 rollouts of 16 updates
  return c
