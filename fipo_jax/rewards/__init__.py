"""Responses to scores: the verifiers (VERIFIERS) and the process pool that runs them (score)."""

from fipo_jax.rewards.outcome import Score
from fipo_jax.rewards.verifiers import VERIFIERS

__all__ = ["VERIFIERS", "Score"]
