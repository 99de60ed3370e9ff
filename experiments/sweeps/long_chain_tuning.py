"""Learning rate and updates per rollout of experiments/long_chain.py, by DAPO alone: 30 iterations each.

    python launch/sweep.py --sweep=experiments/sweeps/long_chain_tuning.py

Before any run that is compared, and on another seed, other problems and other held-out problems. The rule, written down
before: what has the highest accuracy over the last ten iterations is taken, of two within a point the smaller step. It
goes into the experiment for all arms, FIPO's included. (5e-5 took the place of 4e-4 after ten iterations of 2e-4, in
which policy KL had a step of 0.05.)
"""

EXPERIMENT = "experiments/long_chain.py"
SEEDS = (100,)
COMMON = {"algorithm.name": "dapo", "steps": 30, "data.seed": 102, "eval.data_seed": 101, "eval.every": 30}
ARMS = {
  "rate2e-4": {"optimizer.learning_rate": 2e-4},
  "rate1e-4": {"optimizer.learning_rate": 1e-4},
  "rate5e-5": {"optimizer.learning_rate": 5e-5},
  "rate2e-4_8updates": {"optimizer.learning_rate": 2e-4, "batch.minibatch_prompts": 2},
}
BASELINE = "rate1e-4"
