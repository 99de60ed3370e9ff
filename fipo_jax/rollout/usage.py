"""How well the slots, the cache and the time of one `generate` were used."""

from __future__ import annotations

import dataclasses
import statistics

import jax

TIMELINE_POINTS = 100  # at most, in the metrics

_compile = {"seconds": 0.0}


def _listen(event: str, seconds: float, **_) -> None:
  if event == "/jax/core/compile/backend_compile_duration":
    _compile["seconds"] += seconds


jax.monitoring.register_event_duration_secs_listener(_listen)


def compile_seconds() -> float:
  """Seconds that XLA has compiled in this process so far (a hit of the compile cache counts its few)."""
  return _compile["seconds"]


@dataclasses.dataclass
class Usage:
  """Of the last `generate`.

  tokens: sampled, end tokens included. slot_steps: slots times steps that were computed.
  prompts, prefill_tokens: prompts prefilled, and their tokens; a group counts once. interrupted: responses put back for
  want of pages. seconds, prefill_seconds, decode_seconds, compile_s: wall clock, compile time also being inside the
  others. longest_look_s: of the runs of the decode program, between which the host can stop.
  first_sample_s, last_sample_s: when the first and the last response were back on the host.
  peak_cache_bytes, held_bytes: of all pools at their largest, and of the tokens in them at the fullest moment.
  decode_programs, prefill_programs: that this way of sampling has needed so far, in the life of the engine.
  lengths: response tokens of the samples that ended. tail_ratio: the longest of them over the median.
  timeline: per run of the decode program (seconds since the start, share of slots busy, tokens per second, share of the
  cache in use).
  """

  token_bytes: int = 0
  tokens: int = 0
  slot_steps: int = 0
  prompts: int = 0
  prefill_tokens: int = 0
  interrupted: int = 0
  seconds: float = 0.0
  prefill_seconds: float = 0.0
  decode_seconds: float = 0.0
  compile_s: float = 0.0
  longest_look_s: float = 0.0
  first_sample_s: float = 0.0
  last_sample_s: float = 0.0
  peak_cache_bytes: int = 0
  held_bytes: int = 0
  decode_programs: int = 0
  prefill_programs: int = 0
  lengths: list[int] = dataclasses.field(default_factory=list)
  timeline: list[tuple[float, float, float, float]] = dataclasses.field(default_factory=list)

  @property
  def occupancy(self) -> float:
    """Share of the slots' steps that sampled a token."""
    return self.tokens / self.slot_steps if self.slot_steps else 0.0

  def saw(self, at: float, seconds: float, steps: int, slots: int, tokens: int, held: int, capacity: int) -> None:
    """Notes one run of the decode program: when it ended, how long it took, and what it held at most, in tokens."""
    self.longest_look_s = max(self.longest_look_s, seconds)
    self.peak_cache_bytes = max(self.peak_cache_bytes, capacity * self.token_bytes)
    self.held_bytes = max(self.held_bytes, held * self.token_bytes)
    if steps:
      share = tokens / (steps * slots)
      self.timeline.append((round(at, 3), round(share, 4), round(tokens / seconds, 1), round(held / capacity, 4)))

  def values(self) -> dict[str, float | list]:
    """Metrics of a step, by name."""
    found = {
      "occupancy": self.occupancy, "prefill_tokens": self.prefill_tokens, "interrupted": self.interrupted,
      "first_sample_s": self.first_sample_s, "last_sample_s": self.last_sample_s, "compile_s": self.compile_s,
      "longest_look_s": self.longest_look_s,
      "decode_programs": self.decode_programs, "prefill_programs": self.prefill_programs,
      "cache_mb": self.peak_cache_bytes / 2**20, "cache_held_mb": self.held_bytes / 2**20,
    }  # fmt: skip
    if self.decode_seconds:
      found["decode_tokens_per_second"] = self.tokens / self.decode_seconds
    if self.prefill_seconds:
      found["prefill_tokens_per_second"] = self.prefill_tokens / self.prefill_seconds
    if self.peak_cache_bytes:
      found["cache_in_use"] = self.held_bytes / self.peak_cache_bytes
    if self.lengths:
      found["tail_ratio"] = max(self.lengths) / statistics.median(self.lengths)
    found = {f"rollout/{name}": float(value) for name, value in found.items()}
    every = -(-len(self.timeline) // TIMELINE_POINTS) or 1
    return found | ({"rollout/timeline": [list(p) for p in self.timeline[::every]]} if self.timeline else {})
