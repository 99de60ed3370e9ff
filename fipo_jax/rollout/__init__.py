"""Sampling responses. ENGINES is the table of ways to do it: config name -> class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fipo_jax.rollout.native import NativeEngine
from fipo_jax.rollout.sampling import Sampling
from fipo_jax.types import Prompt, Rollout


class Engine(Protocol):
  """What the loop asks of a sampler."""

  def update(self, params) -> None:
    """Takes the parameters to sample with from now on."""

  def release(self) -> None:
    """Lets go of them, so that the trainer has the memory; `generate` needs another `update`."""

  def generate(
    self,
    prompts: list[Prompt],
    samples_per_prompt: int,
    *,
    key,
    sampling: Sampling,
    progress: Callable[[int, int], None] | None = None,
  ) -> list[list[Rollout]]:
    """Samples each prompt; groups in prompt order, randomness from (key, prompt.id, sample) only."""


ENGINES: dict[str, Callable[..., Engine]] = {
  "native": NativeEngine,
}
