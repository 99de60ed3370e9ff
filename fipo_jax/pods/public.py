"""What others have measured and published, beside our bounds of the same workloads: where the efficiencies come from.

Only measurements that state their workload and chip are here. The share that each reaches of the bound is what a
forecast divides by: the least of a chip's own for that part, or of all chips where it has none. Those that the same
engine has since left behind on the same chip are shown and not used.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from fipo_jax.pods.chips import CHIPS
from fipo_jax.pods.costs import Efficiencies, Sampled

FP8 = 2.0  # how much faster the arithmetic of v7x is in 8 bits: 4,614 to 2,307 TFLOP/s of a chip


@dataclasses.dataclass(frozen=True)
class Measured:
  """One published figure.

  part: "decode", "prefill" or "train", by what most of the bound is. reached: share of the bound. bound, value: in the
  unit that was published. superseded: whether later figures of the same engine, model and chip are here.
  """

  what: str
  chip: str
  part: str
  unit: str
  value: float
  bound: float
  source: str
  superseded: bool = False

  @property
  def reached(self) -> float:
    return self.value / self.bound


@dataclasses.dataclass(frozen=True)
class Workload:
  """Requests to a server, as its benchmark makes them: lengths uniform in a range, all there at the beginning.

  slots: sequences at a time. shards: copies of the model. prompts, answers: (shortest, longest) tokens.
  """

  of: Sampled
  requests: int
  slots: int
  prompts: tuple[float, float]
  answers: tuple[float, float]

  def seconds(self) -> tuple[float, float]:
    """(prefill, decode) that the bounds allow: a slot that ends is filled at once, and every prompt computed once."""
    rng = np.random.default_rng(0)
    draw = lambda low, high: rng.integers(round(low), round(high) + 1, self.requests)
    prompts, answers = draw(*self.prompts), draw(*self.answers)
    prefill = sum(self.of.prefill_bound(1, n) for n in prompts)
    rest = np.zeros(self.slots, np.int64)
    context = np.zeros(self.slots, np.int64)
    following, decode = 0, 0.0
    while True:
      for slot in np.flatnonzero(rest == 0)[: self.requests - following]:
        rest[slot], context[slot] = answers[following], prompts[following]
        following += 1
      active = rest > 0
      if not active.any():
        return prefill, decode
      steps, number = int(rest[active].min()), int(active.sum())
      middle = float(context[active].sum()) + number * (steps + 1) / 2
      decode += steps * self.of.step(number, middle)
      rest[active] -= steps
      context[active] += steps


def dense(
  chip: str, cut: int, *, layers: int, width: int, mlp: int, heads: int, kv_heads: int, head: int, vocab: int,
  weight_bytes: float = 2, cache_bytes: float = 2, faster: float = 1.0,
) -> Sampled:  # fmt: skip
  """A dense transformer by its sizes; its table of embeddings is looked up, its output head is read."""
  layer = 2 * width * heads * head + 2 * width * kv_heads * head + 3 * width * mlp
  numbers = layers * layer + vocab * width
  token = 2 * layers * kv_heads * head * cache_bytes / cut
  read = numbers * weight_bytes / cut
  return Sampled(CHIPS[chip], cut, numbers, layers, width, heads * head, read, token, faster)


LLAMA_70B = dict(layers=80, width=8192, mlp=28672, heads=64, kv_heads=8, head=128, vocab=128256)
QWEN3_32B = dict(layers=64, width=5120, mlp=25600, heads=64, kv_heads=8, head=128, vocab=151936)


def serving() -> list[Measured]:
  """Published speeds of samplers on TPUs."""
  found = []
  # One v7x chip is two devices here, which share the model (tensor parallel 2).
  ironwood = dense("v7x", 2, **QWEN3_32B, weight_bytes=1, cache_bytes=1, faster=FP8)
  recipe = "AI-Hypercomputer/tpu-recipes inference/ironwood/vLLM/Qwen3-32B (c8cfe2f)"
  rows = [
    ("1k/1k", 320, 135, 1024, 1024, 6556.72, recipe, "decode"),
    ("1k/8k", 320, 135, 1024, 8192, 3959.56, recipe, "decode"),
    ("8k/1k", 320, 135, 8192, 1024, 1382.18, recipe, "prefill"),
    ("1k/8k", 320, 135, 1024, 8192, 4054.90, "vllm-project/tpu-inference pull 1961 (batched kernel)", "decode"),
  ]  # fmt: skip
  for name, requests, slots, prompt, answer, value, source, part in rows:
    work = Workload(ironwood, requests, slots, (0.8 * prompt, prompt), (0.8 * answer, answer))
    tokens = requests * 0.9 * answer
    what = f"Qwen3-32B, weights and cache fp8, {name}, {slots} slots on a chip"
    found.append(Measured(what, "v7x", part, "tokens/s", value, tokens / sum(work.seconds()), source))
  work = Workload(ironwood, 1000, 256, (1024, 1024), (4096, 4096))
  for value, which in ((2889.15, "before"), (2929.06, "after")):
    source = f"vllm-project/tpu-inference pull 730 ({which}; September 2025)"
    what = "Qwen3-32B, weights and cache fp8, 1k/4k, 256 slots on a chip"
    bound = 1000 * 4096 / sum(work.seconds())
    found.append(Measured(what, "v7x", "decode", "tokens/s", value, bound, source, superseded=True))
  trillium = dense("v6e", 8, **LLAMA_70B)
  for slots, value in ((64, 2494.80), (128, 3544.46)):
    work = Workload(trillium, 3000, slots, (999, 999), (1000, 1000))
    what = f"Llama-3.3-70B, bfloat16, 1k/1k, {slots} slots on 8 chips"
    source = "AI-Hypercomputer/tpu-recipes inference/trillium/vLLM/Llama3.x (c8cfe2f)"
    found.append(Measured(what, "v6e", "decode", "tokens/s", value, 3e6 / sum(work.seconds()), source))
  return found


def training() -> list[Measured]:
  """Published model FLOPs utilisation of training, of a peak of 1: we let recomputed FLOPs run at no more."""
  tiers = "maxtext.readthedocs.io v0.2.2, reference/models/tiering"
  ironwood = "AI-Hypercomputer/tpu-recipes training/ironwood (c8cfe2f), bf16, TFLOP/s of a chip over 2,310"
  rows = [
    ("Llama 2 70B, 512 chips, rows of 4,096", "v5p", 0.654, tiers),
    ("Llama 2 70B, 256 chips, rows of 4,096", "v6e", 0.438, tiers),
    ("Llama 3.1 8B, 256 chips, rows of 8,192", "v6e", 0.4546, tiers),
    ("Llama 3.1 70B, 256 chips, rows of 8,192", "v6e", 0.5033, tiers),
    ("Llama 3.1 405B, 256 chips, rows of 8,192", "v6e", 0.3855, tiers),
    ("16B, 256 chips", "v5e", 0.6110, "google/maxtext MaxText/configs/v5e"),
    ("32B, 256 chips", "v5e", 0.6686, "google/maxtext MaxText/configs/v5e"),
    ("64B, 256 chips", "v5e", 0.5990, "google/maxtext MaxText/configs/v5e"),
    ("Llama 3.1 70B, 64 chips, rows of 8,192", "v7x", 1207.05 / 2310, ironwood),
    ("Llama 3.1 70B, 256 chips, rows of 131,072", "v7x", 897.94 / 2310, ironwood),
    ("Gemma 4 31B, 64 chips, rows of 8,192", "v7x", 1057.76 / 2310, ironwood),
  ]  # fmt: skip
  return [Measured(what, chip, "train", "MFU", value, 1.0, source) for what, chip, value, source in rows]


def measured() -> list[Measured]:
  return serving() + training()


def efficiencies(chip: str, table: list[Measured] | None = None) -> tuple[Efficiencies, dict[str, str]]:
  """Those of a kind of chip, and where each is from.

  look_s: 130 ms between windows of 2,048 sequences, of which pull 3577 of tpu-inference removed 60 (v7x). decision_s:
  216 us of one reduction over 128 devices (pull 3509, v7x). decisions: `decode.run` makes one gather of a few numbers,
  once in `decide` steps (decode_test.py counts it in the compiled program). links, host: nothing public was found; half
  is assumed.
  """
  table = measured() if table is None else table
  values, said = {}, {}
  for part in ("decode", "prefill", "train"):
    found = [m for m in table if m.part == part and not m.superseded]
    least = min([m for m in found if m.chip == chip] or found, key=lambda m: m.reached)
    values[part] = float(least.reached)
    said[part] = f"{least.what} on {least.chip}: {least.source}"
  said |= {
    "links": "assumed", "host": "assumed", "look_s": "tpu-inference pull 3577", "decision_s": "tpu-inference pull 3509",
  }  # fmt: skip
  return Efficiencies(**values, links=0.5, host=0.5, look_s=70e-3 / 2048, decision_s=216e-6, decisions=1.0), said
