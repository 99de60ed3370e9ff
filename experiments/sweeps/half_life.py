"""How far ahead Future-KL looks: the half-life tau on Qwen2.5-Math-7B, the ablation of arXiv 2603.19835.

    python launch/sweep.py --sweep=experiments/sweeps/half_life.py --config.model.path=Qwen2.5-Math-7B \
      --config.data.path=data/dapo-math-17k.parquet

The paper's best accuracy in percent on AIME 2024 / 2025: 40 / 17 (8), 40 / 19 (32), 39 / 21 (128), 42 / 16 (256).
One field needs no file; the same arms, under other names, are those of

    python launch/sweep.py --config=experiments/fipo_qwen2_5_math_7b.py --config.model.path=Qwen2.5-Math-7B \
      --config.data.path=data/dapo-math-17k.parquet \
      --axis="algorithm.half_life_tokens=8|32|128|256" --baseline=half_life_tokens=32
"""

EXPERIMENT = "experiments/fipo_qwen2_5_math_7b.py"
SEEDS = (0,)
ARMS = {
  "tau8": {"algorithm.half_life_tokens": 8.0},
  "tau32": {},  # the experiment's own
  "tau128": {"algorithm.half_life_tokens": 128.0},
  "tau256": {"algorithm.half_life_tokens": 256.0},
}
BASELINE = "tau32"
