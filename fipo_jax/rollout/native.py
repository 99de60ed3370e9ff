"""The sampler that needs nothing but JAX: waves of slots through the jitted programs of `decode`."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fipo_jax.models.transformer import Model
from fipo_jax.rollout import decode
from fipo_jax.rollout.sampling import Sampling
from fipo_jax.sharding import RULES, to_mesh
from fipo_jax.types import Prompt, Rollout

SMALLEST_PROMPT_BUCKET = 16  # tokens; prompts are padded to this times a power of two
SMALLEST_CACHE = (
  128  # entries; the cache doubles from here, so short responses never pay for long ones
)


@dataclasses.dataclass
class Usage:
  """How well the slots of the last `generate` were used."""

  tokens: int = 0  # sampled, end tokens included
  slot_steps: int = 0  # slots times steps that were computed

  @property
  def occupancy(self) -> float:
    return self.tokens / self.slot_steps if self.slot_steps else 0.0


class NativeEngine:
  """Samples with the trainer's own model code on the trainer's mesh.

  The samples of a call run in waves of `slots`; a wave with few samples takes half or a quarter of them. A prompt is
  prefilled once for gcd(slots, samples per prompt) of its samples: once for all of them when slots is a multiple. A
  wave lasts as long as its longest response.

  A sample's randomness is derived from (key, prompt.id, sample) alone. Padding to other lengths can still move the last
  bit of a logit, so equal tokens in another batch are as good as certain in float32 and likely in bfloat16.
  """

  def __init__(
    self,
    model: Model,
    mesh,
    *,
    slots: int,
    max_prompt_tokens: int,
    max_response_tokens: int,
    pad_id: int,
  ):
    """See the class.

    Args:
      slots: sequences decoded at a time. Spread over the mesh's row axes if those divide it, else repeated on each.
      max_prompt_tokens, max_response_tokens: longest prompt taken; limit that `Sampling.max_tokens` must respect.
      pad_id: token id that fills padding; any id of the vocabulary.
    Raises:
      ValueError: a size is below 1, or pad_id is not in the vocabulary.
    """
    sizes = {
      "slots": slots,
      "max_prompt_tokens": max_prompt_tokens,
      "max_response_tokens": max_response_tokens,
    }
    for name, value in sizes.items():
      if value < 1:
        raise ValueError(f"rollout.{name}={value} must be at least 1.")
    if not 0 <= pad_id < model.config.vocab_size:
      raise ValueError(
        f"pad_id={pad_id} is not in the vocabulary of {model.config.vocab_size} tokens."
      )
    self.model, self.mesh, self.slots, self.pad_id = model, mesh, slots, pad_id
    self.max_prompt_tokens, self.max_response_tokens = max_prompt_tokens, max_response_tokens
    self.params = None
    self.usage = Usage()
    # A weight spread over the axes that also spread slots would be gathered anew for every token.
    resident = jax.tree.map(_without_row_axes, model.shardings(mesh))
    self._adopt = jax.jit(model.cast, out_shardings=resident)

  def update(self, params) -> None:
    """Takes the policy's parameters: in the compute dtype, whole on every row group of the mesh.

    Where nothing changes the arrays are shared with the caller, who must update again after donating them.
    """
    self.release()  # never two copies
    with jax.set_mesh(self.mesh):
      self.params = self._adopt(params)

  def release(self) -> None:
    """Lets go of the parameters; see Engine."""
    self.params = None

  def generate(
    self, prompts: list[Prompt], samples_per_prompt: int, *, key, sampling: Sampling, progress=None
  ) -> list[list[Rollout]]:
    """Samples responses; groups come back in prompt order, samples in order within.

    Args:
      key: random key of the whole call.
      progress: called with (samples done, samples in total) as they finish.
    Raises:
      ValueError: a prompt is empty, too long, or has ids outside the vocabulary; max_tokens is above the limit; or
        there was no `update` since the start or the last `release`.
    """
    self._check(prompts, samples_per_prompt, sampling)
    self.usage = Usage()
    samples = [(prompt, number) for prompt in prompts for number in range(samples_per_prompt)]
    report = progress or (lambda done, total: None)
    rollouts: list[Rollout] = []
    with jax.set_mesh(self.mesh):
      for first in range(0, len(samples), self.slots):
        rollouts += self._wave(
          samples[first : first + self.slots],
          samples_per_prompt,
          key,
          sampling,
          lambda done, first=first: report(first + done, len(samples)),
        )
    return [
      rollouts[i : i + samples_per_prompt] for i in range(0, len(rollouts), samples_per_prompt)
    ]

  def _wave(self, samples, samples_per_prompt, key, sampling, report) -> list[Rollout]:
    """Runs at most `slots` samples, groups of the same prompt in a row, to their ends."""
    sharing = math.gcd(samples_per_prompt, self.slots)
    slots = self._slots_for(len(samples), sharing)
    length = _bucket(max(len(prompt.tokens) for prompt, _ in samples), self.max_prompt_tokens)
    limit = length + sampling.max_tokens
    entries = _cache_entries(length + 1, limit)
    wave = decode.start(
      self.model,
      sampling,
      self.params,
      *self._prompts([prompt for prompt, _ in samples[::sharing]], length, slots // sharing),
      key,
      *self._slots(samples, slots),
      entries=entries,
      pad_id=self.pad_id,
    )
    idle = slots - len(samples)
    while True:
      wave, done, unfinished = decode.extend(
        self.model, sampling, self.params, wave, np.int32(length), pad_id=self.pad_id
      )
      if not unfinished:
        break
      report(int(done) - idle)
      entries = _cache_entries(entries + 1, limit)
      wave = decode.grow(wave, entries=entries)
    tokens_SN, logp_SN, count_S, step = map(np.asarray, decode.harvest(wave))
    self.usage.tokens += int(count_S.sum())
    self.usage.slot_steps += int(step) * slots
    report(len(samples))
    return [
      _rollout(prompt, number, tokens_SN[s, : count_S[s]], logp_SN[s, : count_S[s]], sampling)
      for s, (prompt, number) in enumerate(samples)
    ]

  def _prompts(self, prompts, length, rows):
    """Mesh arrays (prompt_RT, length_R) of prompts padded on the left; missing rows are empty."""
    tokens_RT = np.full((rows, length), self.pad_id, np.int32)
    length_R = np.zeros(rows, np.int32)
    for r, prompt in enumerate(prompts):
      tokens_RT[r, length - len(prompt.tokens) :] = prompt.tokens
      length_R[r] = len(prompt.tokens)
    return self._place(tokens_RT), self._place(length_R)

  def _slots_for(self, samples: int, sharing: int) -> int:
    """All slots, or a half or a quarter of them where that is enough: idle slots cost as much as busy ones.

    Not fewer, so that few programs are compiled; and not where the samples that share a prefill, or the rows of the
    mesh, would no longer divide them.
    """
    whole = math.lcm(self._row_groups(), sharing)
    smaller = [self.slots // n for n in (4, 2) if self.slots % (n * whole) == 0]
    return next((slots for slots in smaller if slots >= samples), self.slots)

  def _slots(self, samples, slots):
    """Mesh arrays (id_S, sample_S, used_S)."""
    id_S, sample_S = np.zeros(slots, np.uint32), np.zeros(slots, np.uint32)
    id_S[: len(samples)] = [prompt.id & 0xFFFFFFFF for prompt, _ in samples]
    sample_S[: len(samples)] = [number for _, number in samples]
    return (
      self._place(id_S),
      self._place(sample_S),
      self._place(np.arange(slots) < len(samples)),
    )

  def _row_groups(self) -> int:
    return math.prod(self.mesh.shape[axis] for axis in RULES["rows"])

  def _place(self, x):
    return to_mesh(self.mesh, x, *(("rows",) if len(x) % self._row_groups() == 0 else ()))

  def _check(self, prompts, samples_per_prompt, sampling):
    if self.params is None:
      raise ValueError("the engine has no parameters; call update(params) before generate.")
    if samples_per_prompt < 1:
      raise ValueError(f"samples_per_prompt={samples_per_prompt} must be at least 1.")
    if sampling.max_tokens > self.max_response_tokens:
      raise ValueError(
        f"sampling.max_tokens={sampling.max_tokens} must be at most "
        f"rollout.max_response_tokens={self.max_response_tokens}."
      )
    vocab = self.model.config.vocab_size
    for prompt in prompts:
      n = len(prompt.tokens)
      if not 1 <= n <= self.max_prompt_tokens:
        raise ValueError(
          f"prompt id={prompt.id} has {n} tokens; need 1 to rollout.max_prompt_tokens={self.max_prompt_tokens}: "
          "raise the limit or filter the prompts."
        )
      if not (0 <= np.min(prompt.tokens) and np.max(prompt.tokens) < vocab):
        raise ValueError(
          f"prompt id={prompt.id} has a token id outside 0..{vocab - 1}, the model's vocabulary; "
          "do tokenizer and model belong together?"
        )


def _rollout(prompt, number, tokens_n, logp_n, sampling) -> Rollout:
  stopped = int(tokens_n[-1]) in sampling.stop_ids
  return Rollout(prompt, number, tokens_n.copy(), logp_n.copy(), "stop" if stopped else "length")


def _bucket(tokens: int, limit: int) -> int:
  """Padded prompt length: the next power of two, so that few programs are compiled; never above the limit."""
  return min(limit, max(SMALLEST_PROMPT_BUCKET, 1 << (tokens - 1).bit_length()))


def _cache_entries(needed: int, limit: int) -> int:
  """Cache size for at least `needed` entries: powers of two up to the most that can be needed."""
  return min(limit, max(SMALLEST_CACHE, 1 << (needed - 1).bit_length()))


def _without_row_axes(sharding: NamedSharding) -> NamedSharding:
  """The same layout, but whole along every mesh axis that `rows` uses."""

  def keep(part):
    axes = tuple(
      a for a in ((part,) if isinstance(part, str) else part or ()) if a not in RULES["rows"]
    )
    return axes if len(axes) > 1 else axes[0] if axes else None

  return NamedSharding(sharding.mesh, PartitionSpec(*(keep(part) for part in sharding.spec)))
