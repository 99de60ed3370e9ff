"""What may change when a run is resumed: the difference between two configs, by whether it alters the training."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Iterable
from typing import Any

from fipo_jax import config as config_lib

# Where things lie and how fast they go: no field here alters a number that the run computes, but by rounding.
WHERE_AND_HOW_FAST = (
  "workdir", "compile_cache", "compiler_options", "mesh", "batch.micro_rows", "checkpoint", "log", "data.path",
  "model.path", "model.base_experiment", "model.remat", "model.offload_inputs", "model.tile_tokens",
  "model.logits_mib", "model.attention", "optimizer.offload",
  "rollout.slots", "rollout.tensor", "rollout.page_tokens", "rollout.cache_tokens", "rollout.attention",
  "rollout.continuous_decode_steps", "rollout.urls", "rollout.dialect", "rollout.timeout_s", "rollout.retry_s",
  "rollout.concurrency", "rollout.model_name",
  "reward.file", "reward.workers", "reward.timeout_s", "reward.env", "reward.network", "reward.processes",
  "reward.memory_mb", "reward.write_mb",
)  # fmt: skip
# What is measured, how long the run goes on, and what ends it.
RESUMABLE = (*WHERE_AND_HOW_FAST, "steps", "eval", "alarms", "optimizer.max_skipped_updates", "reward.on_error",
             "algorithm.allow_single_update", "model.max_position")  # fmt: skip
# What an older version did that had no such field, where that is not today's default: field -> (value, the field and
# values under which it mattered).
BEFORE = {"data.answer_after": ("", "data.source", ("jsonl", "parquet", "tfds"))}
# Fields that are gone, and what they said when nobody had set them.
GONE = {"data.question_field": "question", "data.answer_field": "answer", "rollout.retries": 3}

Pair = tuple[Any, Any]


@dataclasses.dataclass
class Compared:
  """altering, free: field -> (old, new). notes: what an upgrade has changed in the config."""

  altering: dict[str, Pair]
  free: dict[str, Pair]
  notes: list[str]


def compare(old: dict, new: dict) -> Compared:
  """The difference between a run's config and the present one (as nested dicts from JSON).

  A field that the old one lacks has the value that the old code acted by. The number of steps alters the training under
  a schedule that ends with them.
  """
  before, now = flat(old), flat(new)
  default = flat(config_lib.default().to_dict())
  free_fields = RESUMABLE
  if "cosine" in (before.get("optimizer.schedule"), now.get("optimizer.schedule")):
    free_fields = tuple(field for field in RESUMABLE if field != "steps")
  found = Compared({}, {}, [])
  for field in sorted((before.keys() | now.keys()) - {"workdir"}):  # it is where the old one was found
    if field not in now:
      if before[field] != GONE.get(field, before[field]):
        found.altering[field] = (before[field], "(no such field any more)")
      else:
        found.notes.append(f"{field}={before[field]!r}: no such field any more")
      continue
    if field not in before:
      value, where, matters = BEFORE.get(field, (None, "", ()))
      acted = value if before.get(where) in matters else default.get(field)
      if acted == now[field]:
        found.notes.append(f"{field}={now[field]!r}: not in the config of this run, which acted by it")
        continue
      before[field] = acted
    if before[field] != now[field]:
      kind = found.free if within(field, free_fields) else found.altering
      kind[field] = (before[field], now[field])
  return found


def differences(old: dict, new: dict, free: Iterable[str] = WHERE_AND_HOW_FAST) -> list[str]:
  """Lines 'field: old -> new' for every field in which two configs differ, those of `free` aside."""
  before, now = flat(old), flat(new)
  gone = "(absent)"
  return [
    f"{field}: {before.get(field, gone)!r} -> {now.get(field, gone)!r}" for field in sorted(before.keys() | now.keys())
    if before.get(field, gone) != now.get(field, gone) and not within(field, free)
  ]  # fmt: skip


def within(field: str, names: Iterable[str]) -> bool:
  """Whether a field is one of these, or lies in a section that is."""
  return any(field == name or field.startswith(f"{name}.") for name in names)


def flat(nested: dict, prefix: str = "") -> dict[str, Any]:
  """Dotted name -> value; an empty section is a value."""
  found: dict[str, Any] = {}
  for key, value in nested.items():
    if isinstance(value, dict) and value:
      found |= flat(value, f"{prefix}{key}.")
    else:
      found[f"{prefix}{key}"] = _plain(value)
  return found


def _plain(value: Any) -> Any:
  return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def nearest(field: str, known: Collection[str]) -> str:
  """The known field that was probably meant, as "; NAME?", else "".

  Last parts count most: "optimizer.lr" means optimizer.learning_rate, and "lr" too.
  """
  section, _, last = field.rpartition(".")
  short = lambda name: "".join(word[:1] for word in name.rpartition(".")[2].split("_"))
  alike = lambda name: difflib.SequenceMatcher(None, last, name.rpartition(".")[2]).ratio()
  score = lambda name: (
    max(alike(name), 0.9 * (short(name) == last), 0.8 * (last in name.rpartition(".")[2] and len(last) > 2))
    + 0.1 * (name.rpartition(".")[0] == section)
  )
  best = max(known, key=score, default="")
  return f"; {best}?" if best and score(best) >= 0.65 else ""
