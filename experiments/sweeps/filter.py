"""With and without the rules against extreme ratios on Qwen2.5-Math-7B, the ablation of arXiv 2603.19835.

    python launch/sweep.py --sweep=experiments/sweeps/filter.py --config.model.path=Qwen2.5-Math-7B \
      --config.data.path=data/dapo-math-17k.parquet

The paper's best accuracy in percent on AIME 2024 / 2025: 40 / 19 with filtering, 38 / 21 without. Which rules
"without" switches off is our reading: all three. Too likely tokens stay in Future-KL, no response is dropped, and f of
over-likely negative tokens has no bound of its own.
"""

EXPERIMENT = "experiments/fipo_qwen2_5_math_7b.py"
SEEDS = (0,)
ARMS = {
  "filtered": {},  # the experiment's own
  "unfiltered": {
    "algorithm.participation_mask": "off",
    "algorithm.sequence_reject_count": -1,
    "algorithm.safety_mode": "off",
  },
}
BASELINE = "filtered"
