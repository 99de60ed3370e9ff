"""Files of questions: JSON lines (plain or gzipped), Parquet, ArrayRecord; one, a folder, a glob or a list of them,
local or gs://."""

from __future__ import annotations

import collections
import glob
import gzip
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fipo_jax import paths
from fipo_jax.data import rows
from fipo_jax.data.records import Records, Shelf

Row = tuple[int, str, dict[str, Any]]  # its number in the file, where it stands, and what it holds

_SPLIT = re.compile(r"(train|test|validation|valid|dev|eval)(?![a-z])", re.IGNORECASE)
_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "gzip", b"PAR1": "Parquet"}
_NUL_BOM = b"\xef\xbb\xbf"


def read(path: str | Sequence[str], columns: rows.Columns, kind: str = "") -> Records:
  """Records of all files that `path` names, in the order of their names, identical questions once.

  A question with different ground truths in different rows is left out; `.notes` counts both, and says where questions
  and ground truths were found where that is not `prompt` and `answer`.

  Args:
    path: a file, a folder, a glob, or several of them. columns: see `rows.Columns`.
    kind: a row of KINDS; "" goes by each file's ending.
  Raises:
    OSError: no such file. ValueError: naming file and line (or row) of what cannot be used.
  """
  files = expand(path, kind)
  shelf, found = Shelf(), collections.Counter()
  for file in files:
    first = shelf.span  # an id is the number of a row over all files
    for number, where, row in KINDS[kind or kind_of(file)](file, columns):
      record, origin = rows.record(row, first + number, where, columns)
      found[origin] += 1
      shelf.add(record)
  if not shelf.rows:
    raise ValueError(f"{_named(path)}: no records; one JSON object or row per question is needed.")
  notes = []
  if len(files) > 1:
    notes.append(f"{len(files)} files, from {os.path.basename(files[0])} to {os.path.basename(files[-1])}")
  records = shelf.records(notes + rows.told(found))
  if not len(records):
    raise ValueError(f"{_named(path)}: no records; {'; '.join(records.notes)}.")
  return records


def expand(path: str | Sequence[str], kind: str = "") -> list[str]:
  """The files that a path names, in the order of their names.

  Raises: FileNotFoundError when one names none. ValueError for a folder in which files of several splits lie.
  """
  files: set[str] = set()
  for one in [path] if isinstance(path, str) else path:
    if paths.is_folder(paths.of(one)):
      inside = [os.path.join(one, name) for name in paths.names(one) if _is_kind(name, kind)]
      inside = [file for file in inside if paths.is_file(file)]
      if not inside:
        raise FileNotFoundError(f"{one}: a folder without files that end in {', '.join(_endings(kind))}.")
      splits = {m[1].lower() for file in inside if (m := _SPLIT.match(os.path.basename(file)))}
      if len(splits) > 1:
        raise ValueError(
          f"{one}: holds files of several splits ({', '.join(sorted(splits))}); name one, as "
          f"{os.path.join(one, sorted(splits)[-1])}*."
        )
      files.update(inside)
    elif paths.exists(one):
      files.add(one)
    elif inside := _meant(one):
      files.update(inside)
    else:
      raise FileNotFoundError(f"{one}: no such file.")
  if not files:
    raise ValueError(f"{_named(path)}: names no file.")
  return sorted(files)


def _meant(pattern: str) -> list[str]:
  if not paths.is_remote(pattern):
    return [file for file in glob.glob(pattern, recursive=True) if paths.is_file(file)]
  if "**" in pattern:
    raise ValueError(f"{pattern}: ** is not searched for in a bucket; name the folder, or a glob of its files.")
  return paths.glob(pattern) if glob.has_magic(pattern) else []


def kind_of(file: str) -> str:
  """The row of KINDS that a file's ending names. Raises: ValueError when it names none."""
  name = os.path.basename(file).lower()
  for kind, endings in ENDINGS.items():
    if name.endswith(endings):
      return kind
  raise ValueError(
    f"{file}: the ending says no kind of file; expected one of {', '.join(_endings())}, or data.source='jsonl' or "
    "'parquet', which do not look at it."
  )


def _is_kind(name: str, kind: str) -> bool:
  return not name.startswith(".") and name.lower().endswith(tuple(_endings(kind)))


def _endings(kind: str = "") -> list[str]:
  return [ending for name, endings in ENDINGS.items() if kind in ("", name) for ending in endings]


def _named(path: str | Sequence[str]) -> str:
  return path if isinstance(path, str) else ", ".join(path)


# ---- kinds ----


def json_lines(path: str, columns: rows.Columns) -> Iterator[Row]:
  """One JSON object a line, UTF-8, with or without gzip."""
  del columns  # a line is read whole
  with paths.open_to_read(path) as plain:
    mark = plain.read(4)
    kind = next((kind for begin, kind in _MARKS.items() if mark.startswith(begin)), "")
    if kind == "UTF-16" or mark[1:2] == b"\0" or mark[:1] == b"\0":
      raise ValueError(f"{path} line 1: the file is UTF-16, not UTF-8; iconv -f UTF-16 -t UTF-8 {path} > NEW.jsonl")
    if kind == "Parquet":
      raise ValueError(f"{path} line 1: this is a Parquet file; use data.source='parquet', or 'file' and its ending.")
    plain.seek(0)
    lines = gzip.open(plain) if kind == "gzip" else plain
    number = 0
    try:
      for number, line in enumerate(lines, start=1):
        line = line.removeprefix(_NUL_BOM) if number == 1 else line
        if line.strip():
          yield number - 1, f"{path} line {number}", _object(line, f"{path} line {number}")
    except (EOFError, gzip.BadGzipFile) as error:
      raise ValueError(f"{path} line {number + 1}: the gzip file is damaged or cut short ({error}).") from error


def _object(line: bytes, where: str) -> dict[str, Any]:
  array = "a JSON array, it seems; one object per line is needed: jq -c '.[]' FILE > NEW.jsonl"
  try:
    row = json.loads(line)
  except (ValueError, RecursionError) as error:  # bad JSON and bad UTF-8 alike
    if line.lstrip().startswith(b"["):
      raise ValueError(f"{where}: {array}") from error
    raise ValueError(f"{where}: not valid JSON ({error}).") from error
  if not isinstance(row, dict):
    raise ValueError(f"{where}: expected an object, got {type(row).__name__}{f': {array}' * isinstance(row, list)}.")
  return row


def parquet(path: str, columns: rows.Columns) -> Iterator[Row]:
  """The rows of a Parquet file; only columns that may matter are read."""
  if not paths.is_file(path):
    raise FileNotFoundError(f"{path}: no such file.")
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise ValueError(f"source 'parquet' needs the package pyarrow ({error}).") from error
  number = 0
  try:
    file = pyarrow.parquet.ParquetFile(paths.open_to_read(path) if paths.is_remote(path) else path)
    there = file.schema_arrow.names
    known = [name for name in there if name in columns.names()]
    for role in ("question", "answer", "system", "id"):
      if (name := getattr(columns, role)) and name.split(".")[0] not in there:
        raise ValueError(f"{path}: no column {name!r} (data.columns.{role}) among {there}.")
    if not columns.question and not set(known) & set(rows.QUESTIONS):
      raise ValueError(
        f"{path}: no column {', '.join(map(repr, rows.QUESTIONS))} among {there}; name it in data.columns.question."
      )
    for batch in file.iter_batches(batch_size=4096, columns=known):
      for row in batch.to_pylist():
        yield number, f"{path} row {number}", row
        number += 1
  except pyarrow.ArrowException as error:
    raise ValueError(f"{path}: not a readable Parquet file ({_first_line(error)}).") from error


def array_record(path: str, columns: rows.Columns) -> Iterator[Row]:
  """The records of an ArrayRecord file, each a JSON object."""
  del columns
  if paths.is_remote(path):
    raise ValueError(f"{path}: ArrayRecord files are read from a disk; copy it there, or use Parquet or JSON lines.")
  try:
    from array_record.python import array_record_module
  except ImportError as error:
    raise ValueError(f"ArrayRecord files need the package array_record ({error}).") from error
  reader = array_record_module.ArrayRecordReader(path)
  count = reader.num_records()
  try:
    for number in range(count):
      data = reader.read([number])[0]
      yield number, f"{path} record {number}", _object(data, f"{path} record {number}")
  except RuntimeError as error:
    raise ValueError(f"{path}: the ArrayRecord file is damaged ({_first_line(error)}).") from error
  try:
    reader.close()  # only now it says what it met on opening
  except RuntimeError as error:
    raise ValueError(f"{path}: not a readable ArrayRecord file ({_first_line(error)}).") from error


def _first_line(error: BaseException) -> str:
  return str(error).strip().split("\n")[0][:200]


KINDS: dict[str, Callable[[str, rows.Columns], Iterator[Row]]] = {
  "jsonl": json_lines,
  "parquet": parquet,
  "array_record": array_record,
}
ENDINGS = {
  "jsonl": (".jsonl", ".json", ".ndjson", ".jsonl.gz", ".json.gz", ".ndjson.gz"),
  "parquet": (".parquet",),
  "array_record": (".array_record", ".arrayrecord"),
}
