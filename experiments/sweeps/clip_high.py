"""The upper clip of the ratio: 1.28 or 1.4 on Qwen2.5-32B, an experiment of arXiv 2603.19835 (appendix D.1).

    python launch/sweep.py --sweep=experiments/sweeps/clip_high.py --config.model.path=Qwen2.5-32B \
      --config.data.path=data/dapo-math-17k.parquet

The paper reports an early surge of length and entropy (to between 2 and 3) with 1.4, and no better accuracy.
"""

EXPERIMENT = "experiments/fipo_qwen2_5_32b.py"
SEEDS = (0,)
ARMS = {
  "high0.28": {"algorithm.clip_high": 0.28},
  "high0.4": {"algorithm.clip_high": 0.4},
}
BASELINE = "high0.28"
