"""Sampling responses. ENGINES is the table of ways to do it: config name -> class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from fipo_jax.rollout.http import HttpEngine
from fipo_jax.rollout.native import NativeEngine
from fipo_jax.rollout.sampling import Sampling
from fipo_jax.rollout.usage import Usage
from fipo_jax.types import Prompt, Rollout


class Engine(Protocol):
  """What the loop asks of a sampler. usage: how the last `generate` went, for the metrics."""

  usage: Usage

  def update(self, params) -> None:
    """Takes the parameters to sample with from now on."""

  def release(self) -> None:
    """Lets go of them, so that the trainer has the memory; `generate` needs another `update`."""

  def generate(
    self,
    prompts: Sequence[Prompt],
    samples_per_prompt: int,
    *,
    key,
    sampling: Sampling,
    progress: Callable[[int, int], None] | None = None,
    watch: Callable[[list[list[Rollout]]], bool] | None = None,
    pending: Sequence[list[Rollout]] = (),
  ) -> list[list[Rollout]]:
    """Samples each prompt; randomness from (key, prompt.id, sample, position) only.

    Args:
      key: random key of all samples that begin in this call.
      progress: called with (samples done, samples in total).
      watch: called now and then, at least every second or look, with the groups that have become complete since the
        last time, of which there may be none; True ends the call early.
      pending: groups of an earlier call that ended early; their unfinished responses are continued under the present
        weights, each with the key that it began with.
    Returns:
      Groups, the pending ones first, then in prompt order; samples in order within. After an early end some rollouts
      are `unfinished`: nothing that was sampled is lost.
    """


ENGINES: dict[str, Callable[..., Engine]] = {
  "native": NativeEngine,
  "http": HttpEngine,
}
