"""Learning rate of experiments/long_chain.py, by DAPO alone: 25 iterations each.

    python launch/sweep.py --sweep=experiments/sweeps/long_chain_tuning.py

Before any run that is compared, and on another seed, other problems and other held-out problems. The rule, written down
before: the rate with the highest accuracy over the last ten iterations is taken, of two within a point the smaller. It
goes into the experiment for all arms, FIPO's included.

Found: 1e-4, with 0.665 (119 tokens, from 50); 2e-4 came to 0.434, with jumps of the policy KL up to 0.05. Smaller rates
were not tried. A first tuning with at most 320 tokens had 0.62 and 8% of responses at the limit after 25 iterations.
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
