"""Where questions come from: each source returns `Records`, random access to plain dicts; see `records`."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from fipo_jax.data import files, rows
from fipo_jax.data.records import Record, Records, Shelf
from fipo_jax.data.rows import Columns


def reasoning_gym(
  task: str, size: int, seed: int, options: dict[str, Any] | None = None, short: bool = False
) -> Records:
  """Procedural problems of one reasoning-gym task, made on demand, scored by the task's own scorer.

  Item i is made by the library from seed + i alone, so neighbouring seeds would share nearly all items; the seed is
  spread out first, and a training and a test source with seeds 0 and 1 are disjoint streams.

  Args:
    task: a reasoning-gym dataset, such as "chain_sum".  size: items.  seed: any non-negative int.
    options: fields of the task's config, such as {"max_terms": 3}.
    short: a short question in place of the English sentence, for tasks that have one; see `short_question`.
  Raises: ValueError for an unknown task, option or size.
  """
  dataset = gym_dataset(task, size, seed, options)
  if short:
    short_question(dataset[0])  # raises where there is none

  def read(index: int) -> Record:
    entry = dataset[index]
    return {
      "id": index,
      "question": short_question(entry) if short else entry["question"],
      "answer": "" if entry["answer"] is None else str(entry["answer"]),
      "verifier": "gym",
      "extras": {"task": task, "entry": entry},
    }

  return Records(size, read)


def short_question(entry: dict[str, Any]) -> str:
  """A reasoning-gym problem without words: "34 + 7 - 12 =" where it is an expression, "8 2 5 -> 11:" for countdown.

  Raises: ValueError for a task that has no such form.
  """
  metadata = entry["metadata"]
  if metadata["source_dataset"] == "countdown":  # whose expression is the solution
    return f"{' '.join(map(str, metadata['numbers']))} -> {metadata['target']}:"
  if "expression" not in metadata:
    raise ValueError(
      f"data.short=True needs a task with an expression, {metadata['source_dataset']!r} has none; use short=False."
    )
  return f"{metadata['expression']} ="


def gym_dataset(task: str, size: int, seed: int, options: dict[str, Any] | None):
  """The library's dataset object, with user mistakes turned into one line."""
  if size < 1:
    raise ValueError(f"data.size={size} must be at least 1.")
  if seed < 0:
    raise ValueError(f"data.seed={seed} must not be negative.")
  try:
    import reasoning_gym as library
  except ImportError as error:
    raise ValueError(
      f"source 'reasoning_gym' needs the package reasoning-gym ({error})."
    ) from error

  # 31 bits, so that seed + index stays valid for generators that take 32-bit seeds.
  spread = int(np.random.SeedSequence(seed).generate_state(1)[0]) >> 1
  try:
    return library.create_dataset(task, **{**(options or {}), "size": size, "seed": spread})
  except (AssertionError, TypeError, ValueError) as error:  # how the library refuses its arguments
    raise ValueError(f"reasoning_gym task={task!r} options={options}: {error}") from error


def file(path: str | Sequence[str], **columns: str) -> Records:
  """Records of files: JSON lines, Parquet and ArrayRecord by their ending; see `files.read`, and `rows.Columns`."""
  return files.read(path, Columns(**columns))


def jsonl(path: str | Sequence[str], **columns: str) -> Records:
  """The same, all of them JSON lines whatever their ending."""
  return files.read(path, Columns(**columns), "jsonl")


def parquet(path: str | Sequence[str], **columns: str) -> Records:
  """The same, all of them Parquet. (DAPO-Math-17k has each question about 100 times.)"""
  return files.read(path, Columns(**columns), "parquet")


def tfds(name: str, split: str, data_dir: str | None = None, **columns: str) -> Records:
  """Records of a TensorFlow Datasets dataset, read through its random-access files; no TensorFlow needed.

  Args:
    name, split: as in `tfds.load`.  data_dir: where datasets are kept; the library's default when None.
    columns: of `rows.Columns`, names of features.
  Raises: ValueError when the package, the dataset, the split or a field is missing, or a record cannot be used.
  """
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise ValueError(f"source 'tfds' needs the package tensorflow-datasets ({error}).") from error
  try:
    data = tensorflow_datasets.data_source(
      name,
      split=split,
      data_dir=data_dir,
      builder_kwargs={"file_format": "array_record"},
    )
  except (tensorflow_datasets.core.DatasetNotFoundError, ValueError, AssertionError) as error:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise ValueError(f"tfds name={name!r} split={split!r}: {reason}") from error
  if not len(data):
    raise ValueError(f"tfds name={name!r} split={split!r}: no records.")
  shelf, found = Shelf(), collections.Counter()
  for index in range(len(data)):
    where = f"tfds name={name!r} split={split!r} record {index}"
    record, origin = rows.record(data[index], index, where, Columns(**columns))
    found[origin] += 1
    shelf.add(record)
  return shelf.records(rows.told(found))
