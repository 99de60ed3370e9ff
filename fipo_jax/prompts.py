"""Config -> the endless stream of training prompts and the held-out ones, and what there is to say about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import ml_collections

from fipo_jax import changes, paths
from fipo_jax import config as config_lib
from fipo_jax.data import SOURCES, files, pipeline
from fipo_jax.data.records import Mixture, Part
from fipo_jax.data.tokenizer import Tokenizer
from fipo_jax.evaluation import overlap as overlap_lib
from fipo_jax.evaluation import sets as sets_lib
from fipo_jax.evaluation.sets import EvalSet


def check(cfg: ml_collections.ConfigDict, given: Collection[str] = ()) -> None:
  """Raises ValueError or OSError for a source, a path or a mixture that cannot be, and for a field that nothing reads.

  Args: given: fields that were set on the command line. Where that changed the source, what the experiment itself has
  set for its own is no mistake; it is said at the start instead.
  """
  for name, (part, _) in parts_of(cfg).items():
    where = f"data.mixture.{name}." if cfg.data.mixture else "data."
    config_lib.one_of(f"{where}source", part.data.source, tuple(SOURCES))
    if SOURCES[part.data.source].is_file:
      if not part.data.path:
        raise ValueError(f"{where}path='': data.source={part.data.source!r} needs a file.")
      _check_path(f"{where}path", part.data.path, _insisted(part.data.source))
  if cfg.eval.every:
    check_sets(cfg)
    sets_lib.check_limits(cfg)
    sets_lib.best_by(cfg)
  for field in unread(cfg):
    if field in given or "data.source" not in given:
      raise ValueError(f"{field}={_values(cfg)(field)!r}: {_not_read(cfg)}; leave it out.")


def unread(cfg: ml_collections.ConfigDict) -> list[str]:
  """Fields of sources that are set and that none of the chosen sources reads."""
  read, known = {"eval.path", "eval.prompts"}, {"eval.path"}
  for source in SOURCES.values():
    known |= {*source.fields.values(), *source.heldout.values()}
  for part, _ in parts_of(cfg).values():
    source = SOURCES[part.data.source]
    read |= {*source.fields.values(), *(() if cfg.eval.path else source.heldout.values())}
  if cfg.eval.path:
    read |= {*SOURCES["file"].fields.values()}
  default = config_lib.default()
  return [f for f in sorted(known - read) if _plain(config_lib.at(cfg, f)) != _plain(config_lib.at(default, f))]


def _plain(value: Any) -> Any:
  # A section that an experiment has set to {} takes only values of one type, and so is not equal to the default's.
  return value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value


def parts_of(cfg: ml_collections.ConfigDict) -> dict[str, tuple[ml_collections.ConfigDict, float]]:
  """The sources of a config: name -> (config as if it were the only one, weight). eval.prompts is shared out by weight.

  Raises: ValueError for a mixture that cannot be.
  """
  if not cfg.data.mixture:
    return {"": (cfg, 1.0)}
  found = {}
  for name, entry in cfg.data.mixture.items():
    where = f"data.mixture.{name}"
    fields = entry.to_dict() if isinstance(entry, ml_collections.ConfigDict) else entry
    if not isinstance(fields, dict) or not isinstance(fields.get("weight"), int | float) or not fields["weight"] > 0:
      raise ValueError(f"{where}={fields!r}: expected fields of data and a weight greater than 0.")
    part = cfg.copy_and_resolve_references()
    part.data.mixture = ml_collections.ConfigDict(type_safe=False)
    for field, value in fields.items():
      if field == "weight":
        continue
      if field not in part.data or field in ("mixture", *SHARED):
        near = changes.nearest(field, [name for name in part.data if name not in SHARED])
        raise ValueError(f"{where}.{field}: no field of a source{near or '.'}")
      try:
        part.data.update({field: value})
      except (TypeError, KeyError, AttributeError) as e:
        raise ValueError(f"{where}.{field}={value!r}: does not fit data.{field}: {e}") from e
    found[name] = (part, float(fields["weight"]))
  total = sum(weight for _, weight in found.values())
  ideal = [cfg.eval.prompts * weight / total for _, weight in found.values()]
  shares = [int(share) for share in ideal]
  for k in sorted(range(len(ideal)), key=lambda k: shares[k] - ideal[k])[: cfg.eval.prompts - sum(shares)]:
    shares[k] += 1
  for (part, _), share in zip(found.values(), shares, strict=True):
    part.eval.prompts = share
  return found


# Fields of data that all sources of a mixture share: they say what becomes of records.
SHARED = ("instruction", "instruct_messages", "system", "chat_template", "max_prompt_tokens", "on_long_prompt")


def check_sets(cfg: ml_collections.ConfigDict) -> None:
  """Raises ValueError or OSError for evaluation sets that cannot be."""
  if cfg.eval.sets and cfg.eval.path:
    raise ValueError(f"eval.path={cfg.eval.path!r}: not read beside eval.sets, whose sets have paths of their own.")
  for s in sets_lib.of(cfg):
    where = f"eval.sets.{s.name}" if s.name else "eval"
    config_lib.one_of(f"{where}.source" if s.name else "data.source", s.cfg.data.source, tuple(SOURCES))
    if s.cfg.eval.path:
      _check_path(f"{where}.path", s.cfg.eval.path, _insisted(s.cfg.data.source, s.cfg.eval.path))
    elif s.own and SOURCES[s.cfg.data.source].is_file:
      raise ValueError(f"{where}.path='': {where}.source={s.cfg.data.source!r} needs a file.")
    if s.own and not s.cfg.eval.prompts and not (s.cfg.eval.path or s.cfg.data.source == "tfds"):
      raise ValueError(f"{where}.prompts=0: data.source={s.cfg.data.source!r} makes as many as it is told to.")


def open_sets(cfg, tokenizer: Tokenizer) -> tuple[list[EvalSet], list[str]]:
  """The evaluation sets that have sources of their own, with their prompts, and notes; nothing else is read.

  Raises: as `open_data`.
  """
  notes: list[str] = []
  sets = [_with_prompts(s, _own_records(s, notes), tokenizer, notes) for s in sets_lib.of(cfg) if s.own]
  return sets, notes


def count(s: EvalSet) -> int | None:
  """How many problems a set has, for a plan: what it says itself, else what is in its file. None: that is not here.

  Repeated questions count once, prompts that are too long count too: no tokenizer is asked. Buckets are not read.
  """
  if s.cfg.eval.prompts:
    return s.cfg.eval.prompts
  several = s.cfg.eval.path if isinstance(s.cfg.eval.path, tuple | list) else [s.cfg.eval.path]
  if not all(several) or any(paths.is_remote(path) for path in several):
    return None
  try:
    return len(_own_records(s, []))
  except FileNotFoundError:
    return None


def open_data(cfg, tokenizer: Tokenizer) -> tuple[pipeline.PromptStream, list[EvalSet], list[str], overlap_lib.Overlap]:
  """The endless training stream, the evaluation sets, which share no text with it, notes on both, what they share.

  Raises: ValueError or OSError for data that cannot be used, naming file and line where there are any.
  """
  training = {}
  notes = [*tokenizer.notes, *(f"{field}={_values(cfg)(field)!r}: {_not_read(cfg)}" for field in unread(cfg))]
  sets = sets_lib.of(cfg) if cfg.eval.every else []
  held: dict[str, dict[str, Any]] = {s.name: {} for s in sets if not s.own}  # those apart from what is trained on
  shares = {s.name: parts_of(s.cfg) for s in sets if not s.own}
  for name, (part, weight) in parts_of(cfg).items():
    source = SOURCES[part.data.source]
    records = source.records(_values(part))
    said = f"data.path={part.data.path!r}" if source.is_file else f"data.name={part.data.name!r}"
    notes += [f"{said}: {note}" for note in records.notes]
    wanted = {s: parts[name][0] for s, parts in shares.items() if parts[name][0].eval.prompts}
    n = max((own.eval.prompts for own in wanted.values()), default=0)
    if source.is_file and n:
      if len(records) <= n:
        raise ValueError(
          f"eval.prompts={n}: data.path={part.data.path!r} has only {len(records)} records, and they are "
          "split into held-out and training ones; use fewer, or eval.path."
        )
      for s, own in wanted.items():
        held[s][name] = Part(records, range(own.eval.prompts))
      records = Part(records, range(n, len(records)))
    elif n:
      for s, own in wanted.items():
        held[s][name] = source.records(_values(own), heldout=True)
    training[name] = (records, weight)
  found = []
  overlap = overlap_lib.Overlap()
  for s in sets:
    records = _own_records(s, notes) if s.own else _joined(held[s.name])
    found.append(_with_prompts(s, records, tokenizer, notes, overlap))
  # Generated problems repeat: one that is evaluated must not be trained on.
  texts = {prompt.text for s in found for prompt in s.prompts}
  whole = next(iter(training.values()))[0] if len(training) == 1 else Mixture(training)
  stream = pipeline.PromptStream(
    whole, tokenizer, seed=cfg.seed, exclude=texts, inspect=overlap.see if found else None, **_rendering(cfg)
  )
  if stream.dropped_long:
    notes.append(
      f"{stream.dropped_long} prompts are longer than data.max_prompt_tokens={cfg.data.max_prompt_tokens} and left "
      f"out; {stream.len_epoch} remain"
    )
  if stream.excluded:
    notes.append(f"{stream.excluded} prompts read like held-out ones and are left out; {stream.len_epoch} remain")
  return stream, found, notes + overlap.notes(), overlap


def _rendering(cfg) -> dict[str, Any]:
  """How records become prompts: keywords of `pipeline`."""
  d = cfg.data
  return dict(
    max_prompt_tokens=d.max_prompt_tokens, on_long_prompt=d.on_long_prompt, chat_template=d.chat_template,
    instruction=d.instruction, default_verifier=cfg.reward.verifier, system=d.system,
    instruct_messages=d.instruct_messages,
  )  # fmt: skip


def _own_records(s: EvalSet, notes: list[str]):
  """The records of a set that has a source of its own."""
  if not s.cfg.eval.path:
    return SOURCES[s.cfg.data.source].records(_values(s.cfg), heldout=True)
  read = SOURCES[_insisted(s.cfg.data.source, s.cfg.eval.path) or "file"].records
  records = read(_values(s.cfg, {"data.path": s.cfg.eval.path}))
  notes += [f"{f'eval.sets.{s.name}.path' if s.name else 'eval.path'}={s.cfg.eval.path!r}: {n}" for n in records.notes]
  return records


def _joined(parts: dict[str, Any]):
  return next(iter(parts.values())) if len(parts) == 1 else Mixture({k: (r, 1.0) for k, r in parts.items()})


def _with_prompts(s: EvalSet, records, tokenizer: Tokenizer, notes: list[str], overlap=None) -> EvalSet:
  """The set with its prompts; its questions go to `overlap`."""
  count, questions = s.cfg.eval.prompts or None, []
  prompts = pipeline.prompts(
    records, tokenizer, count=count, inspect=lambda record: questions.append(overlap_lib.asked(record)),
    **_rendering(s.cfg),
  )  # fmt: skip
  if overlap is not None:
    overlap.add(s.name, questions)
  if count is None and (left_out := len(records) - len(prompts)):
    notes.append(
      f"eval.sets.{s.name}: {left_out} of {len(records)} prompts are longer than data.max_prompt_tokens="
      f"{s.cfg.data.max_prompt_tokens} and left out"
    )
  return dataclasses.replace(s, prompts=tuple(prompts))


def _values(cfg, instead: dict[str, Any] | None = None) -> Callable[[str], Any]:
  """A function from fields to values, as the functions of SOURCES take them."""

  def value(field: str) -> Any:
    found = (instead or {}).get(field, config_lib.at(cfg, field))
    return found.to_dict() if isinstance(found, ml_collections.ConfigDict) else found

  return value


def _insisted(source: str, path: Any = "") -> str:
  """The kind of file that a source's name insists on; for another path than its own only where the ending says none."""
  kind = source if source in files.KINDS else ""
  if not kind or not path:
    return kind
  try:
    for file in files.expand(path, ""):
      files.kind_of(file)
  except (ValueError, OSError):
    return kind
  return ""


def _check_path(field: str, path: Any, kind: str) -> None:
  several = isinstance(path, tuple | list)
  if not all(isinstance(one, str) and one for one in (path if several else [path])) or not path:
    raise ValueError(f"{field}={path!r}: expected a file, a folder, a glob, or several of them.")
  try:
    for file in files.expand(path, kind):
      if not kind:
        files.kind_of(file)
  except paths.BucketError as e:
    raise e.about(f"{field}={path!r}") from e
  except OSError as e:
    raise type(e)(f"{field}={path!r}: {e}") from e
  except ValueError as e:
    raise ValueError(f"{field}={path!r}: {e}") from e


def _not_read(cfg) -> str:
  sources = sorted({part.data.source for part, _ in parts_of(cfg).values()})
  return f"not read by data.source={', '.join(map(repr, sources))}"
