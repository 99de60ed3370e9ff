"""The records that flow through a run, and the letters of their axes.

    P prompts           G samples per prompt     B = P * G sequences
    M micro-batches     R packed rows            T tokens of a row
    S decode slots      D model width            F MLP width           V vocabulary
    L layers            H query heads            K key/value heads     h head size

A name's suffix is its type: `logp_RT` is a log-probability per row and token. `check_axes` holds code to it.
Host records (`Prompt`, `Rollout`) are NumPy and Python; mesh records (`Batch`, `TokenLoss`, metrics) are pytrees.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One question, ready for the model.

  id: stable integer key of the question in its source; seeds the sampler together with the sample number.
  tokens: [n] int32, the rendered prompt. text: the same before tokenisation.
  answer: ground truth for the verifier; a tuple holds several, of which any is right. verifier: a row of VERIFIERS.
  extras: what else the source knew.
  """

  id: int
  tokens: np.ndarray
  text: str
  answer: str | tuple[str, ...]
  verifier: str
  extras: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Rollout:
  """One sampled response of one prompt; a group is the list of the G rollouts of one prompt.

  tokens: [n] int32, the sampled end token included when stop_reason is "stop".
  logp: [n] float32, nats, of each sampled token under the distribution really sampled from.
  raw_logp: [n] float32, nats, of each token under the model itself (temperature 1, nothing restricted); () if unknown.
  key: raw data of the random key of the call that began the sample; a continuation goes on with it.
  stop_reason: "stop" (a stop id or string was sampled), "length" (the limit was reached), or "unfinished": the engine
    was stopped; such a response is continued and never trained on as it is.
  accuracy, score, reward: filled by scoring. accuracy is raw correctness in [0, 1]; score is the verifier's
    value; reward is score plus shaping (overlong penalty). advantage: filled from the group's rewards.
  pred: the answer the verifier read from the text, None when it found none; filled by scoring.
  flags: "timeout" or "error" where there is no verdict, "unread" where the verifier does not read answers.
  text: of the tokens, where this process has verified it. age: iterations since the group's first token; while a group
    waits for a batch, what it was when the group was finished. The policy has moved since.
  """

  prompt: Prompt
  sample: int
  tokens: np.ndarray
  logp: np.ndarray
  stop_reason: str
  text: str = ""
  accuracy: float = float("nan")
  score: float = float("nan")
  reward: float = float("nan")
  advantage: float = float("nan")
  flags: tuple[str, ...] = ()
  pred: str | None = None
  age: int = 0
  raw_logp: np.ndarray | tuple = ()
  key: tuple[int, ...] = ()

  @property
  def finished(self) -> bool:
    return self.stop_reason != "unfinished"

  @property
  def failed(self) -> bool:
    """Whether the verification gave no verdict: it raised, or ran out of time or memory."""
    return "timeout" in self.flags or "error" in self.flags

  @property
  def truncated(self) -> bool:
    return self.stop_reason == "length"


def unbegun(prompt: Prompt, sample: int, key: tuple[int, ...] = ()) -> Rollout:
  """Response number `sample` to a prompt before its first token; key: raw data of the random key that draws it."""
  nothing = np.zeros(0, np.float32)
  return Rollout(prompt, sample, np.zeros(0, np.int32), nothing, "unfinished", raw_logp=nothing, key=key)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """Packed rows for the trainer, [R, T] each (or [M, R, T], micro-batches first).

  tokens: int32. positions: int32, restarting at 0 in each segment. segments: int32, 1, 2, ... per response in a
  row, 0 = padding. mask: float32, 1 on response tokens (end token included), 0 on prompt and padding.
  advantages: float32, per token. old_logp: float32 nats, under the policy before this batch's updates, by the
  trainer's program. sampler_logp: float32 nats, as the sampler saw it; for the mismatch metrics and the correction.
  group_tokens: float32, response tokens of the token's whole group in this mini-batch; for `group_token` only.
  age: float32, iterations since the token was sampled; None when it is not known (0).
  Where they are used, and None elsewhere:
  ref_logp: float32 nats, under the reference policy. old_values, returns: float32 in units of reward, the value
  head's estimate before this batch's updates, and what it should have been.
  """

  tokens: jax.Array
  positions: jax.Array
  segments: jax.Array
  mask: jax.Array
  advantages: jax.Array
  old_logp: jax.Array
  sampler_logp: jax.Array
  group_tokens: jax.Array
  age: jax.Array | None = None
  ref_logp: jax.Array | None = None
  old_values: jax.Array | None = None
  returns: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
  """A mean not yet divided: (total, count). Add freely across micro-batches and hosts; divide once, at the end."""

  total: Any
  count: Any

  def merge(self, other: Mean) -> Mean:
    return Mean(self.total + other.total, self.count + other.count)

  def value(self):
    """total / count; NaN when nothing was counted."""
    return jnp.where(self.count > 0, self.total / jnp.where(self.count > 0, self.count, 1.0), jnp.nan)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Max:
  """A maximum over everything merged; -inf when nothing was seen."""

  peak: Any

  def merge(self, other: Max) -> Max:
    return Max(jnp.maximum(self.peak, other.peak))

  def value(self):
    return jnp.where(jnp.isneginf(self.peak), jnp.nan, self.peak)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Min:
  """A minimum over everything merged; +inf when nothing was seen."""

  floor: Any

  def merge(self, other: Min) -> Min:
    return Min(jnp.minimum(self.floor, other.floor))

  def value(self):
    return jnp.where(jnp.isposinf(self.floor), jnp.nan, self.floor)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantiles:
  """Values whose quantiles are wanted. Quantiles do not add, so the values are kept until the mini-batch is whole.

  values: any shape; keep: bool, the same shape. wanted: (name, fraction in [0, 1]) pairs.
  """

  values: Any
  keep: Any
  wanted: tuple[tuple[str, float], ...] = dataclasses.field(metadata=dict(static=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenLoss:
  """What an objective says of one (micro-)batch.

  loss: `Mean`; its total is differentiable, its count is not. Gradient of the step = sum of d total / sum of count.
  metrics: name -> Mean | Max | Min | Quantiles, all detached. per_token: name -> [R, T] arrays for inspection
  (`future_kl`, `weight`, ...), detached; dropped by the train step, kept by the inspect step.
  """

  loss: Mean
  metrics: dict[str, Mean | Max | Min | Quantiles]
  per_token: dict[str, jax.Array]


def check_axes(**arrays) -> dict[str, int]:
  """Holds arrays to the axes their names promise: `check_axes(logp_RT=x, mask_RT=m)`.

  Returns the sizes by letter. Raises ValueError when a rank differs or one letter has two sizes.
  """
  sizes: dict[str, tuple[int, str]] = {}
  for name, array in arrays.items():
    letters = name.rsplit("_", 1)[-1]
    shape = jnp.shape(array)
    if len(shape) != len(letters):
      raise ValueError(f"{name}: expected {len(letters)} axes ({letters}), got shape {shape}.")
    for letter, size in zip(letters, shape, strict=True):
      known, owner = sizes.setdefault(letter, (size, name))
      if known != size:
        raise ValueError(f"{name}: axis {letter} has size {size}, but {known} in {owner}.")
  return {letter: size for letter, (size, _) in sizes.items()}
