"""Optimizer steps per rollout: mini-batches of 64 or 32 prompts on Qwen2.5-32B, the ablation of arXiv 2603.19835.

    python launch/sweep.py --sweep=experiments/sweeps/minibatch.py --config.model.path=Qwen2.5-32B \
      --config.data.path=data/dapo-math-17k.parquet

The paper finds 64 stable; with 32 (16 steps per rollout) the length often stops growing, while one run that went well
came to about 60% on AIME 2024.
"""

EXPERIMENT = "experiments/fipo_qwen2_5_32b.py"
SEEDS = (0,)
ARMS = {
  "prompts64": {},  # the experiment's own
  # The warm-up stays 10 rollouts long: 10 x 512 / 32 updates.
  "prompts32": {"batch.minibatch_prompts": 32, "optimizer.warmup_updates": 160},
}
BASELINE = "prompts64"
