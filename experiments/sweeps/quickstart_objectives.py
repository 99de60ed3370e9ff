"""Which part of FIPO's weights helps on the quickstart: FIPO, its two baselines, and three controls of its weights.

    python launch/sweep.py --sweep=experiments/sweeps/quickstart_objectives.py --jobs=2

The controls keep as much of FIPO as they can: "constant" gives every token the same weight, "permuted" shuffles the
weights within a response, "past" sums the shifts of the tokens before instead of those that follow.
"""

EXPERIMENT = "experiments/quickstart.py"
SEEDS = (0, 1, 2, 3, 4)
COMMON = {"eval.samples_per_prompt": 4}  # ours: 1,024 held-out samples, so that a seed's accuracy is less noisy
ARMS = {
  "fipo": {},
  "dapo": {"algorithm.name": "dapo"},
  "grpo": {"algorithm.name": "grpo"},
  "fipo_constant": {"algorithm.control": "constant"},
  "fipo_permuted": {"algorithm.control": "permuted"},
  "fipo_past": {"algorithm.control": "past"},
}
BASELINE = "dapo"
