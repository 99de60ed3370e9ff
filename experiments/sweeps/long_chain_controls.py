"""More arms of experiments/long_chain.py: no filter, FIPO's settings for 7B, two controls of its weights, GRPO.

    python launch/sweep.py --sweep=experiments/sweeps/long_chain_controls.py

"permuted" shuffles f within a response, "past" sums the shifts of the tokens before instead of those that follow.
"unfiltered" keeps too likely tokens in Future-KL and drops no response: arXiv 2603.19835 saw that break. Compared with
the runs of experiments/sweeps/long_chain.py, by launch/curves.py.
"""

EXPERIMENT = "experiments/long_chain.py"
SEEDS = (0, 1)
ARMS = {
  "fipo_permuted": {"algorithm.control": "permuted"},
  "fipo_unfiltered": {"algorithm.participation_mask": "off", "algorithm.sequence_reject_count": -1},
  "fipo_7b": {"algorithm.weight_clip": (0.8, 1.2), "algorithm.safety_threshold": 3.0},  # presets.py, official_7b
  "fipo_past": {"algorithm.control": "past"},
  "grpo": {"algorithm.name": "grpo"},
}
BASELINE = "fipo_7b"
