"""Amplify only, or dampen too: the range of f on Qwen2.5-Math-7B, the ablation of arXiv 2603.19835.

    python launch/sweep.py --sweep=experiments/sweeps/weight_range.py --config.model.path=Qwen2.5-Math-7B \
      --config.data.path=data/dapo-math-17k.parquet

The paper's best accuracy in percent on AIME 2024 / 2025: 40 / 19 with [0.8, 1.2], 36 / 19 with [1, 1.2].
"""

EXPERIMENT = "experiments/fipo_qwen2_5_math_7b.py"
SEEDS = (0,)
ARMS = {
  "both_ways": {"algorithm.weight_clip": (0.8, 1.2)},
  "amplify_only": {"algorithm.weight_clip": (1.0, 1.2)},
}
BASELINE = "both_ways"
