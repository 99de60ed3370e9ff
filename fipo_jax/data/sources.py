"""Where questions come from: each source returns `Records`, random access to plain dicts.

A record holds
    id        int, stable in its source
    question  str, or messages: [{"role", "content"}, ...]
    answer    str, the ground truth; or a tuple of several, of which any is right
    verifier  str, a row of VERIFIERS, or None for the run's default
    extras    dict, picklable: what the verifier or a reader may need
    target    str, only in supervised sources: the response to imitate
"""

from __future__ import annotations

import decimal
import json
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Record = dict[str, Any]


class Records:
  """A fixed number of records, each read (or made) when asked for.

  duplicates: how many rows were dropped since their prompt had been seen before.
  """

  def __init__(self, count: int, read: Callable[[int], Record], *, duplicates: int = 0):
    self._count, self._read, self.duplicates = count, read, duplicates

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> Record:
    if not 0 <= index < self._count:
      raise IndexError(f"record {index} of {self._count}")
    return self._read(index)

  def __iter__(self) -> Iterator[Record]:
    return (self._read(i) for i in range(self._count))


def reasoning_gym(
  task: str, size: int, seed: int, options: dict[str, Any] | None = None, short: bool = False
) -> Records:
  """Procedural problems of one reasoning-gym task, made on demand, scored by the task's own scorer.

  Item i is made by the library from seed + i alone, so neighbouring seeds would share nearly all items; the seed is
  spread out first, and a training and a test source with seeds 0 and 1 are disjoint streams.

  Args:
    task: a reasoning-gym dataset, such as "chain_sum".  size: items.  seed: any non-negative int.
    options: fields of the task's config, such as {"max_terms": 3}.
    short: ask "34 + 7 - 12 =" in place of the English sentence, for tasks that keep an expression.
  Raises: ValueError for an unknown task, option or size.
  """
  dataset = gym_dataset(task, size, seed, options)
  if short and "expression" not in dataset[0]["metadata"]:
    raise ValueError(
      f"data.short=True needs a task with an expression, {task!r} has none; use short=False."
    )

  def read(index: int) -> Record:
    entry = dataset[index]
    question = f"{entry['metadata']['expression']} =" if short else entry["question"]
    return {
      "id": index,
      "question": question,
      "answer": "" if entry["answer"] is None else str(entry["answer"]),
      "verifier": "gym",
      "extras": {"task": task, "entry": entry},
    }

  return Records(size, read)


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


def jsonl(path: str) -> Records:
  """Records of a JSON-lines file, identical prompts once.

  Fields: `prompt` (text, or messages), `answer` (or reward_model.ground_truth), and optionally `verifier`,
  `data_source`, `extra_info`, `target`.
  Raises: OSError for an unreadable file; ValueError naming path and line for a bad or incomplete line.
  """
  unique = _Unique(path)
  with open(path, "rb") as lines:
    for number, line in enumerate(lines, start=1):
      if not line.strip():
        continue
      try:
        row = json.loads(line)
      except ValueError as error:  # bad JSON and bad UTF-8 alike
        raise ValueError(f"{path} line {number}: not valid JSON ({error}).") from error
      if not isinstance(row, dict):
        raise ValueError(f"{path} line {number}: expected an object, got {type(row).__name__}.")
      if unique.new(_prompt(row, f"{path} line {number}")):
        unique.add(_record(row, number - 1, f"{path} line {number}"))
  return unique.records()


def parquet(path: str) -> Records:
  """Records of a Parquet file with the same fields as `jsonl` (the layout of DAPO-Math-17k and its kin).

  The published DAPO file repeats each of its questions about 100 times: `.duplicates` says how many were dropped.
  Raises: OSError for a missing file; ValueError naming path and row.
  """
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f"{path}: no such file.")
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise ValueError(f"source 'parquet' needs the package pyarrow ({error}).") from error

  unique, row_number = _Unique(path), 0
  try:
    file = pyarrow.parquet.ParquetFile(path)
    if "prompt" not in file.schema_arrow.names:
      raise ValueError(f"{path}: no column 'prompt' among {file.schema_arrow.names}.")
    known = [name for name in file.schema_arrow.names if name in _FIELDS]
    for batch in file.iter_batches(columns=known):
      # Rows are turned into Python only where their prompt is new: 99 of 100 are not, in the file above.
      for i, prompt in enumerate(batch.column("prompt").to_pylist()):
        where = f"{path} row {row_number + i}"
        if unique.new(_prompt({"prompt": prompt}, where)):
          unique.add(_record(batch.slice(i, 1).to_pylist()[0], row_number + i, where))
      row_number += batch.num_rows
  except pyarrow.ArrowException as error:
    raise ValueError(f"{path}: not a readable Parquet file ({error}).") from error
  return unique.records()


def tfds(
  name: str,
  split: str,
  question_field: str,
  answer_field: str,
  answer_after: str = "",
  data_dir: str | None = None,
) -> Records:
  """Records of a TensorFlow Datasets dataset, read through its random-access files; no TensorFlow needed.

  Args:
    name, split: as in `tfds.load`.  data_dir: where datasets are kept; the library's default when None.
    question_field, answer_field: names of text features.
    answer_after: keep what follows its last occurrence in the answer ("####" for GSM8K); "" keeps all.
  Raises: ValueError when the package, the dataset, the split or a field is missing.
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
  for field in (question_field, answer_field):
    if field not in data[0]:
      raise ValueError(f"tfds name={name!r}: no field {field!r} among {sorted(data[0])}.")

  def read(index: int) -> Record:
    row = data[index]
    answer = _text(row[answer_field])
    if answer_after:
      answer = answer.rpartition(answer_after)[2].strip()
    if not answer.strip():
      raise ValueError(f"tfds name={name!r} split={split!r} record {index}: field {answer_field!r} is empty.")
    return {
      "id": index,
      "question": _text(row[question_field]),
      "answer": answer,
      "verifier": None,
      "extras": {},
    }

  return Records(len(data), read)


_FIELDS = (
  "prompt", "answer", "reward_model", "verifier", "data_source", "extra_info", "target",
)  # fmt: skip


class _Unique:
  """Collects records whose prompt has not been seen before."""

  def __init__(self, path: str):
    self._path, self._seen, self._rows, self._duplicates = path, set(), [], 0

  def new(self, prompt: str | list[dict[str, str]]) -> bool:
    key = json.dumps(prompt, sort_keys=True)
    if key in self._seen:
      self._duplicates += 1
      return False
    self._seen.add(key)
    return True

  def add(self, record: Record) -> None:
    self._rows.append(record)

  def records(self) -> Records:
    if not self._rows:
      raise ValueError(f"{self._path}: no records; one JSON object or row per question is needed.")
    return Records(len(self._rows), self._rows.__getitem__, duplicates=self._duplicates)


def _prompt(row: dict[str, Any], where: str) -> str | list[dict[str, str]]:
  """The prompt of a row: non-empty text, or a non-empty list of {role, content}."""
  prompt = row.get("prompt")
  if isinstance(prompt, str) and prompt.strip():
    return prompt
  if isinstance(prompt, list) and prompt:
    if all(isinstance(m, dict) and _is_text(m, "role") and _is_text(m, "content") for m in prompt):
      return [{"role": m["role"], "content": m["content"]} for m in prompt]
  if prompt is None:
    raise ValueError(f"{where}: field 'prompt' is missing.")
  raise ValueError(
    f"{where}: field 'prompt' must be text or a list of {{role, content}}, got {str(prompt)[:60]!r}."
  )


def _record(row: dict[str, Any], index: int, where: str) -> Record:
  prompt = _prompt(row, where)
  target = row.get("target")
  if target is not None and not isinstance(target, str):
    raise ValueError(f"{where}: field 'target' must be text, got {target!r}.")
  given = row.get("answer")
  if given is None and isinstance(row.get("reward_model"), dict):
    given = row["reward_model"].get("ground_truth")
  answer = gold(given, where)
  if answer is None and target is not None:
    answer = ""  # a text to imitate needs no ground truth
  if answer is None:
    found = "" if given is None else f", it is {given!r}"
    raise ValueError(f"{where}: field 'answer' (or reward_model.ground_truth) is missing{found}.")
  data_source, extra = row.get("data_source"), row.get("extra_info")
  record = {
    "id": index,
    "messages" if isinstance(prompt, list) else "question": prompt,
    "answer": answer,
    "verifier": row.get("verifier") or _verifier_for(data_source),
    "extras": {**(extra if isinstance(extra, dict) else {}), "data_source": data_source},
  }
  return record if target is None else {**record, "target": target}


def gold(value: Any, where: str) -> str | tuple[str, ...] | None:
  """A ground truth as text, None where there is none: null, NaN, an infinity, empty text or list.

  204.0 is 204: tables make whole numbers floats when one of a column is missing, and no response says ".0".
  """
  match value:
    case None:
      return None
    case bool():
      raise ValueError(f"{where}: field 'answer' must be text, a number or a list of them, got {value!r}.")
    case str():
      return value if value.strip() else None
    case int():
      return str(value)
    case float() | decimal.Decimal():
      if not math.isfinite(value):
        return None
      return str(int(value)) if value == int(value) else str(value)
    case list() | tuple() | np.ndarray():
      found = dict.fromkeys(text for one in value if (text := gold(one, where)) is not None)
      if any(isinstance(text, tuple) for text in found):
        raise ValueError(f"{where}: field 'answer' is a list of lists, {str(value)[:60]}; one list of them is read.")
      return (next(iter(found)) if len(found) == 1 else tuple(found)) or None
  raise ValueError(f"{where}: field 'answer' must be text, a number or a list of them, got {value!r}.")


def _verifier_for(data_source: str | None) -> str | None:
  """The routing of the DAPO files: math_dapo, dapo_math and AIME questions go to the DAPO check."""
  if isinstance(data_source, str) and data_source.lower().startswith(("math_dapo", "dapo_math", "aime")):
    return "math_dapo"
  return None


def _is_text(mapping: dict[str, Any], key: str) -> bool:
  return isinstance(mapping.get(key), str)


def _text(value: Any) -> str:
  return value.decode("utf-8") if isinstance(value, bytes) else str(value)
