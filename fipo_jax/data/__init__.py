"""Prompts: where they come from (SOURCES), how they become tokens (tokenizer), in what order (pipeline)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from fipo_jax.data import chain_sum, countdown, sources
from fipo_jax.data.records import Records


@dataclasses.dataclass(frozen=True)
class Source:
  """A row of SOURCES.

  read: (**keywords) -> Records. fields: keyword -> the field of the config that it comes from. heldout: the same for
  keywords that come from another field where held-out questions are read. is_file: whether it reads data.path, whose
  first records are held out unless eval.path names others.
  """

  read: Callable[..., Records]
  fields: Mapping[str, str]
  heldout: Mapping[str, str] = dataclasses.field(default_factory=dict)
  is_file: bool = False

  def records(self, value: Callable[[str], Any], *, heldout: bool = False) -> Records:
    """Its records. value: (field of the config) -> value."""
    chosen = {**self.fields, **self.heldout} if heldout else self.fields
    return self.read(**{keyword: value(field) for keyword, field in chosen.items()})


_COLUMNS = {
  "question": "data.columns.question", "answer": "data.columns.answer", "system": "data.columns.system",
  "id": "data.columns.id", "answer_after": "data.answer_after",
}  # fmt: skip
_GENERATED = {"size": "data.size", "seed": "data.seed", "options": "data.options"}
_GENERATED_HELDOUT = {"size": "eval.prompts", "seed": "eval.data_seed"}
_FILE = {"path": "data.path", **_COLUMNS}

SOURCES = {
  "reasoning_gym": Source(
    sources.reasoning_gym, {"task": "data.name", "short": "data.short_question", **_GENERATED}, _GENERATED_HELDOUT
  ),
  "file": Source(sources.file, _FILE, {"path": "eval.path"}, is_file=True),
  "jsonl": Source(sources.jsonl, _FILE, {"path": "eval.path"}, is_file=True),
  "parquet": Source(sources.parquet, _FILE, {"path": "eval.path"}, is_file=True),
  "tfds": Source(sources.tfds, {"name": "data.name", "split": "data.split", **_COLUMNS}, {"split": "eval.split"}),
  "chain_sum_solutions": Source(chain_sum.chain_sum_solutions, _GENERATED, _GENERATED_HELDOUT),
  "countdown_solutions": Source(countdown.countdown_solutions, _GENERATED, _GENERATED_HELDOUT),
}
