"""FIPO beside DAPO where answers have room to grow: experiments/long_chain.py over four seeds.

    python launch/sweep.py --sweep=experiments/sweeps/long_chain.py
    python launch/curves.py --sweep=experiments/sweeps/long_chain.py --sweep=experiments/sweeps/long_chain_controls.py \
      --out=experiments/results/long_chain

fipo_32b is the algorithm of the authors' script, the default of the config. Both arms make as many updates per rollout.
"""

EXPERIMENT = "experiments/long_chain.py"
SEEDS = (0, 1, 2, 3)
ARMS = {
  "dapo": {"algorithm.name": "dapo"},
  "fipo_32b": {},  # the experiment's own
}
BASELINE = "dapo"
