"""Named evaluation sets: each is the run's config with what the set changes, and later its prompts.

    eval.sets = {"aime24": {"path": "aime-2024.parquet", "samples_per_prompt": 32}, "own": {"prompts": 64}}

A set that names a path or a source is read from there, all of it unless `prompts` says how much; one that names
neither is held out of what is trained on. A config without sets has one without a name: what its section `eval` says.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Collection

import jax
import ml_collections

from fipo_jax import changes
from fipo_jax import config as config_lib
from fipo_jax.types import Prompt

# Field of a set -> field of the config that it stands for.
FIELDS = {
  **{name: f"eval.{name}" for name in (
    "path", "prompts", "samples_per_prompt", "data_seed", "split", "temperature", "top_p", "top_k", "min_p",
    "repetition_penalty",
  )},
  **{name: f"data.{name}" for name in (
    "source", "name", "options", "short_question", "columns", "answer_after", "instruction", "instruct_messages",
    "system", "chat_template",
  )},
  "verifier": "reward.verifier", "max_response_tokens": "rollout.max_response_tokens", "seed": "seed",
}  # fmt: skip
OF_SOURCES = ("name", "options", "short_question", "columns", "answer_after")  # a set with its own starts anew
STREAM = 1  # of the random numbers of an evaluation; see `assemble`


@dataclasses.dataclass(frozen=True)
class EvalSet:
  """name: "" for that of a config without sets. cfg: the config as if this set were all it evaluates on; eval.prompts=0
  stands for all prompts of its own source. own: whether it has one. prompts: once they are read.
  """

  name: str
  cfg: ml_collections.ConfigDict
  own: bool
  prompts: tuple[Prompt, ...] = ()

  def label(self, metric: str) -> str:
    """A metric's name among those of all sets."""
    return f"{self.name}/{metric}" if self.name else metric

  def key(self) -> jax.Array:
    """The random key of its samples, the same at every step; sets of other names draw other numbers."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.cfg.seed), 0), STREAM)
    return jax.random.fold_in(key, zlib.crc32(self.name.encode())) if self.name else key


def of(cfg: ml_collections.ConfigDict) -> list[EvalSet]:
  """The sets of a config without prompts: eval.main, then the others by name, for a saved config has no other order.

  Raises: ValueError naming set and field for what cannot be.
  """
  main, names = cfg.eval.main, sorted(cfg.eval.sets)
  if main and main not in names:
    raise ValueError(f"eval.main={main!r}: no such set in eval.sets; there are {', '.join(names) or 'none'}.")
  if not names:
    return [EvalSet("", cfg, bool(cfg.eval.path))]
  return [_one(cfg, name, cfg.eval.sets[name]) for name in sorted(names, key=lambda name: name != main)]


def check_limits(cfg: ml_collections.ConfigDict) -> None:
  """Raises ValueError for a set whose responses may be longer than the sampler of a training run is made for."""
  for s in of(cfg):
    if s.cfg.rollout.max_response_tokens > cfg.rollout.max_response_tokens:
      raise ValueError(
        f"eval.sets.{s.name}.max_response_tokens={s.cfg.rollout.max_response_tokens}: longer than rollout."
        f"max_response_tokens={cfg.rollout.max_response_tokens}, which the sampler of a run is made for; raise that, "
        "or evaluate this set by launch/evaluate.py."
      )


def chosen(cfg: ml_collections.ConfigDict, names: Collection[str]) -> ml_collections.ConfigDict:
  """The config with these of its sets alone; all, where none is named. Raises: ValueError for one that it has not."""
  if not names:
    return cfg
  there = [*cfg.eval.sets]
  for name in names:
    if name not in there:
      near = changes.nearest(name, there) or f"; there are {', '.join(there) or 'none'}"
      raise ValueError(f"--sets={name}: no such set in eval.sets{near}")
  picked = cfg.copy_and_resolve_references()
  with picked.unlocked():
    picked.eval.sets = ml_collections.ConfigDict({name: cfg.eval.sets[name] for name in names}, type_safe=False)
    picked.eval.main = cfg.eval.main if cfg.eval.main in names else ""
  return picked


def best_by(cfg: ml_collections.ConfigDict) -> str:
  """The metric of an evaluation, as `EvalSet.label` has it, that the best checkpoints are chosen by.

  Raises: ValueError where no evaluation of this config has it, or less of it is better.
  """
  metric = cfg.checkpoint.best_by
  if not cfg.eval.every:
    return metric
  set_name, slash, last = metric.rpartition("/")
  sets = {s.name: s for s in of(cfg)}
  if slash and set_name not in sets:
    raise ValueError(f"checkpoint.best_by={metric!r}: no such set; there are {', '.join(map(repr, sets))}.")
  n = sets.get(set_name, next(iter(sets.values()))).cfg.eval.samples_per_prompt
  known = ("accuracy", f"pass@{n}", f"cons@{n}", "reward")
  if last not in known:
    raise ValueError(f"checkpoint.best_by={metric!r}: expected one of {', '.join(known)}, after a set's name and '/'.")
  return metric


def _one(cfg: ml_collections.ConfigDict, name: str, fields) -> EvalSet:
  where = f"eval.sets.{name}"
  fields = fields.to_dict() if isinstance(fields, ml_collections.ConfigDict) else fields
  if not isinstance(fields, dict):
    raise ValueError(f"{where}={fields!r}: expected fields of a set, such as {{'path': ..., 'prompts': 30}}.")
  if not name or set(name) & set("/ ,."):
    raise ValueError(f"eval.sets: the name {name!r} holds '/', a dot, a comma or a blank, or nothing; use another.")
  one = cfg.copy_and_resolve_references()
  own = bool(fields.get("path") or fields.get("source"))
  with one.unlocked():
    one.eval.sets = ml_collections.ConfigDict(type_safe=False)
    one.eval.path = one.eval.main = ""
    if own:
      default = config_lib.default()
      one.data.mixture = ml_collections.ConfigDict(type_safe=False)
      for field in OF_SOURCES:
        one.data[field] = default.data[field]
      one.data.source = "file"
      one.eval.prompts = 0 if fields.get("path") or fields.get("source") == "tfds" else cfg.eval.prompts
    for field, value in fields.items():
      _put(one, where, field, value)
  one.lock()
  if one.eval.prompts < 0 or (one.eval.prompts == 0 and not own):
    raise ValueError(f"{where}.prompts={one.eval.prompts}: must be greater than 0; 0, for all, is for sets of files.")
  try:
    config_lib.validate(_checked(one))
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from error
  return EvalSet(name, one, own)


def _put(one: ml_collections.ConfigDict, where: str, field: str, value) -> None:
  """Sets a field of a set's config. Raises: ValueError for one that does not exist or does not fit."""
  if field not in FIELDS:
    raise ValueError(f"{where}.{field}={value!r}: no field of a set{changes.nearest(field, FIELDS) or '.'}")
  section, _, name = FIELDS[field].rpartition(".")
  holder = config_lib.at(one, section) if section else one
  if field == "verifier":
    # The function of reward.file judges where the set says so, or says nothing.
    one.reward.file = one.reward.file if value == "file" else ""
    value = "" if value == "file" else value
    if value != "weighted":
      one.reward.weights = ml_collections.ConfigDict(type_safe=False)
  if field == "max_response_tokens" and isinstance(value, int):
    one.reward.overlong_buffer_tokens = min(one.reward.overlong_buffer_tokens, value)
  try:
    if isinstance(value, dict) and name == "columns":
      for column in value:
        if column not in holder.columns:
          raise KeyError(f"no column {column!r}")
      holder.columns.update(value)
    elif isinstance(value, dict) and name == "options":
      with one.unlocked():
        holder.options = ml_collections.ConfigDict(value, type_safe=False)
    else:
      holder.update({name: value})
  except (TypeError, KeyError, AttributeError, ValueError) as error:
    raise ValueError(f"{where}.{field}={value!r}: does not fit {FIELDS[field]}: {error}") from error


def _checked(one: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The same with a number of prompts, where there are to be all, and rows that its responses fit: none is packed."""
  one = one.copy_and_resolve_references()
  one.eval.prompts = one.eval.prompts or 1
  one.batch.row_tokens = max(one.batch.row_tokens, one.data.max_prompt_tokens + one.rollout.max_response_tokens)
  return one
