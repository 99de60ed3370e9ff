"""Responses to scores: the verifiers (VERIFIERS) and the process pool that runs them (score)."""

from fipo_jax.rewards import gym, math_dapo, math_symbolic
from fipo_jax.rewards.outcome import Score

# Each row: function(response, answer, extras) -> Score. The name "file" stands for the user's own function.
VERIFIERS = {
  "math_dapo": math_dapo.verify,
  "math_dapo_strict_box": math_dapo.verify_strict_box,
  "math_symbolic": math_symbolic.verify,
  "gym": gym.verify,
}

__all__ = ["VERIFIERS", "Score"]
