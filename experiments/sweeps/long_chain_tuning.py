"""Learning rate of experiments/long_chain.py, by DAPO alone: 25 iterations each.

    python launch/sweep.py --sweep=experiments/sweeps/long_chain_tuning.py

Before any run that is compared, and on another seed, other problems and other held-out problems. The rule, written down
before: the rate with the highest accuracy over the last ten iterations is taken, of two within a point the smaller. It
goes into the experiment for all arms, FIPO's included.
"""

EXPERIMENT = "experiments/long_chain.py"
SEEDS = (100,)
COMMON = {
  "algorithm.name": "dapo", "steps": 25, "data.seed": 102, "eval.data_seed": 101, "eval.every": 25, "log.samples": 4,
}
ARMS = {
  "rate1e-4": {"optimizer.learning_rate": 1e-4},
  "rate2e-4": {"optimizer.learning_rate": 2e-4},
}
BASELINE = "rate1e-4"
