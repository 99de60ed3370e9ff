"""What a run is, in lines for people: said at its start, in the order in which it becomes known."""

from __future__ import annotations

import collections
import math
import platform

import jax

from fipo_jax import processes, sharding
from fipo_jax.data.pipeline import PromptStream
from fipo_jax.data.tokenizer import Tokenizer
from fipo_jax.evaluation.sets import EvalSet
from fipo_jax.models import attention_splash, tiles
from fipo_jax.models.transformer import TILED, Model

SHOWN = 600  # characters of the first prompt


def code(provenance: dict) -> str:
  """Which code runs, where."""
  commit = provenance["commit"] or "not under git"
  return f"code: {commit}, jax {provenance['jax']}, python {platform.python_version()}, on {provenance['host']}"


def mesh(mesh) -> str:
  """Devices and how they are laid out."""
  kinds = collections.Counter(d.device_kind for d in mesh.devices.flat)
  devices = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
  axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
  n = processes.count()
  return f"devices: {devices} ({axes}{f'; {n} processes' if n > 1 else ''})"


def model(cfg, model: Model, tokenizer: Tokenizer) -> str:
  """Which model, of what size, and what ends its responses."""
  sizes = [math.prod(x.shape) for x in jax.tree.leaves(model.abstract())]
  texts = {text: tokenizer.special_id(text) for text in cfg.rollout.stop_strings}
  ids = dict.fromkeys([*tokenizer.stop_ids, *(i for i in texts.values() if i is not None)])
  ends = ", ".join(f"{i} {tokenizer.decode([i], skip_special=False)!r}" for i in ids)
  plain = [text for text, i in texts.items() if i is None]
  strings = f", and the texts {', '.join(map(repr, plain))}" if plain else ""
  return (
    f"model: {cfg.model.path or cfg.model.preset}, {_count(sum(sizes))} parameters in {cfg.model.param_dtype}, "
    f"computed in {cfg.model.dtype}; responses end at {ends}{strings}"
  )


def prompts(cfg, stream: PromptStream, sets: list[EvalSet]) -> list[str]:
  """How many prompts there are, who judges responses to them, and the first of them as the model sees it."""
  (first,) = stream.spread(1)
  judges = ", ".join(sorted(filter(None, stream.verifiers))) or "what the config says"
  judge = cfg.reward.file or cfg.reward.verifier or judges
  text = first.text if len(first.text) <= SHOWN else f"{first.text[:SHOWN]}... ({len(first.text)} characters)"
  held = ", ".join(f"{len(s.prompts)} {f'in {s.name}' if s.name else 'held out'}" for s in sets)
  held = held or "none held out (eval.every=0)"
  judged = "" if cfg.algorithm.name == "sft" else f"; judged by {judge}"
  return [
    f"prompts: {stream.len_epoch:,} to train on, {held}{judged}",
    f"the first prompt, {len(first.tokens)} tokens: {text!r}",
  ]


def schedule(cfg, stream: PromptStream) -> str:
  """How much the run will do, as far as it is known before."""
  b, g = cfg.batch, 1 if cfg.algorithm.name == "sft" else cfg.rollout.samples_per_prompt
  updates = b.prompts // b.minibatch_prompts
  total = cfg.steps * b.prompts
  return (
    f"schedule: {cfg.steps:,} iterations of {b.prompts} prompts x {g} samples in {updates} updates: {total:,} prompts "
    f"({total / stream.len_epoch:.2g} epochs), {total * g:,} samples, {cfg.steps * updates:,} updates"
    + (", beside what dynamic sampling draws" if cfg.dynamic_sampling.enabled and g > 1 else "")
  )


def rows(cfg, model: Model) -> str:
  """What a row costs by its length, on the mesh of `jax.set_mesh`, where another would not; "" if nothing."""
  T, context = cfg.batch.row_tokens, sharding.devices_along("tokens")
  attention, notes, better = model.attention_of(T), [], T
  if T % (tiles.LANES * context) and T > tiles.TILE * context and cfg.model.remat in TILED:
    better = -(-T // (tiles.LANES * context)) * tiles.LANES * context
    notes.append(f"no multiple of {tiles.LANES} on a device, so layers run on whole rows instead of tiles")
  if attention == "splash" and (padded := attention_splash.blocks_of(T, context).keys) != T:
    better = padded
    notes.append(f"attention pads them to {padded:,}")
  if notes:
    notes[-1] += f"; batch.row_tokens={better} would do"
  if attention == "xla" and cfg.model.attention == "auto" and jax.default_backend() != "cpu":
    notes.append("attention is XLA's: no kernel takes such rows, heads and numbers here")
  return f"rows of {T:,} tokens: {'; '.join(notes)}" if notes else ""


def grace(seconds: float | None) -> str:
  """How long a scheduler must wait after SIGTERM, for the start of a run; seconds: as measured before, if it was."""
  what = "told to stop (SIGTERM), it finishes an update or the sampler's present look, saves, and ends with code 75"
  return f"{what}: {seconds:.0f} s when last measured" if seconds else f"{what}; see grace_s in the metrics"


def evaluation(result: dict[str, float]) -> str:
  """Of each set: accuracy with its 95% interval over prompts (normal: ± 1.96 standard errors), length, and troubles."""
  names = [metric.removesuffix("/accuracy") for metric in result if metric.endswith("/accuracy")]
  if not names:
    return _evaluation(result)
  own = lambda name: {m.removeprefix(f"{name}/"): v for m, v in result.items() if m.startswith(f"{name}/")}
  return "; ".join(f"{name}: {_evaluation(own(name))}" for name in names)


def _evaluation(result: dict[str, float]) -> str:
  error = result.get("accuracy_se", math.nan)
  low, high = max(result["accuracy"] - 1.96 * error, 0.0), min(result["accuracy"] + 1.96 * error, 1.0)
  interval = "" if math.isnan(error) else f" [{low:.3f}, {high:.3f}]"
  said = f"accuracy {result['accuracy']:.3f}{interval}, mean length {result['response_tokens']:.1f} tokens"
  troubles = (("errors", "reward_errors"), ("time-outs", "reward_timeouts"))
  return said + "".join(f", {result[name]:.0f} verifier {label}" for label, name in troubles if result.get(name))


def _count(n: int) -> str:
  for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
    if n >= size:
      return f"{n / size:.3g}{unit}"
  return str(n)
