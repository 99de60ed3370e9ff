"""Records: random access to what a source has, and the shelf on which rows of files wait, each question once.

A record holds
    id        int, stable in its source
    question  str, or messages: [{"role", "content"}, ...]
    answer    str, the ground truth; or a tuple of several, of which any is right
    verifier  str, a row of VERIFIERS, or None for the run's default
    extras    dict, picklable: what the verifier or a reader may need
    system    str, only where the row has one: what the system's turn says
    target    str, only in supervised sources: the response to imitate
"""

from __future__ import annotations

import array
import hashlib
import json
import pickle
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Record = dict[str, Any]

MEMORY_BYTES = 64_000_000  # of records; beyond it they wait in a temporary file
RECENT = 200_000  # hashes in a dict, which takes ten times the memory of an array


class Records:
  """A fixed number of records, each read (or made) when asked for.

  notes: what was found on reading and is to be said. span: one more than the largest id.
  """

  def __init__(
    self, count: int, read: Callable[[int], Record], *, notes: Sequence[str] = (), span: int | None = None
  ):
    self._count, self._read, self.notes = count, read, list(notes)
    self.span = count if span is None else span

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> Record:
    if not 0 <= index < self._count:
      raise IndexError(f"record {index} of {self._count}")
    return self._read(index)

  def __iter__(self) -> Iterator[Record]:
    return (self._read(i) for i in range(self._count))


class Part(Records):
  """The records at some places of others, in that order."""

  def __init__(self, records: Records, places: Sequence[int] | np.ndarray):
    self._records, self._places = records, np.asarray(places, np.int64)
    super().__init__(len(self._places), lambda i: records[int(self._places[i])], span=getattr(records, "span", None))


class Mixture(Records):
  """Several sources as one: all records in the order of the sources, ids made unique, drawn by weight.

  weights: share of each in what is drawn, summing to 1. bounds: places at which sources begin, and the end.
  """

  def __init__(self, sources: Mapping[str, tuple[Records, float]]):
    """Args: sources: name -> (records, weight > 0)."""
    self.names, total = list(sources), sum(weight for _, weight in sources.values())
    parts = [records for records, _ in sources.values()]
    self.weights = [weight / total for _, weight in sources.values()]
    self.bounds = np.cumsum([0, *map(len, parts)])
    first_ids = np.cumsum([0, *(part.span for part in parts)])

    def read(index: int) -> Record:
      k = int(np.searchsorted(self.bounds, index, side="right")) - 1
      record = parts[k][index - int(self.bounds[k])]
      return record | {"id": record["id"] + int(first_ids[k])}

    notes = [f"{name}: {note}" for name, part in zip(self.names, parts, strict=True) for note in part.notes]
    super().__init__(int(self.bounds[-1]), read, notes=notes, span=int(first_ids[-1]))


class Shelf:
  """Takes records one after the other and keeps each question once; `records` gives them back.

  rows: how many it was given. span: one more than the largest id so far.

  Memory holds 40 bytes a record, whatever its length: places, and hashes of question and ground truth (of 64 bits: two
  of ten million questions have the same one with a probability of 3·10⁻⁶).
  """

  def __init__(self):
    self._file = tempfile.SpooledTemporaryFile(MEMORY_BYTES)
    self._starts, self._keys = array.array("Q", [0]), array.array("Q")
    self._seen = _Seen()
    self._conflicts: set[int] = set()
    self.rows = self.span = self._repeated = 0

  def add(self, record: Record) -> None:
    """Takes a record."""
    self.rows, self.span = self.rows + 1, max(self.span, record["id"] + 1)
    asked = record["messages"] if "messages" in record else record["question"]
    key = _hash(asked, record.get("system"), record.get("target"))
    first = self._seen.setdefault(key, _hash(record["answer"]))
    if first is not None:
      self._repeated += 1
      if first != _hash(record["answer"]):
        self._conflicts.add(key)
      return
    self._file.write(pickle.dumps(record, pickle.HIGHEST_PROTOCOL))
    self._starts.append(self._file.tell())
    self._keys.append(key)

  def records(self, notes: Sequence[str] = ()) -> Records:
    """What was taken, without questions that had different ground truths."""
    starts, kept = np.asarray(self._starts, np.int64), np.arange(len(self._keys))
    said = list(notes)
    if self._conflicts:
      bad = np.isin(np.asarray(self._keys, np.uint64), np.fromiter(self._conflicts, np.uint64))
      kept = kept[~bad]
      said.append(f"{len(self._conflicts)} questions have different answers in different rows, and are left out")
    if self._repeated:
      said.append(f"{self._repeated} of {self.rows} rows repeat a question; each is kept once")
    self._keys = self._seen = None
    lock, file = threading.Lock(), self._file

    def read(index: int) -> Record:
      start, end = starts[kept[index]], starts[kept[index] + 1]
      with lock:
        file.seek(start)
        data = file.read(end - start)
      return pickle.loads(data)  # of our own making

    return Records(len(kept), read, notes=said, span=self.span)


class _Seen:
  """A map of 64-bit numbers that grows to tens of millions: new ones in a dict, the others in sorted arrays."""

  def __init__(self):
    self._recent: dict[int, int] = {}
    self._keys, self._values = np.empty(0, np.uint64), np.empty(0, np.uint64)

  def setdefault(self, key: int, value: int) -> int | None:
    """The value of a key that is there; else None, and it is there from now on."""
    if (found := self._recent.get(key)) is not None:
      return found
    if len(self._keys):
      at = int(np.searchsorted(self._keys, np.uint64(key)))
      if at < len(self._keys) and int(self._keys[at]) == key:
        return int(self._values[at])
    self._recent[key] = value
    if len(self._recent) >= RECENT:
      keys = np.concatenate([self._keys, np.fromiter(self._recent.keys(), np.uint64)])
      values = np.concatenate([self._values, np.fromiter(self._recent.values(), np.uint64)])
      order = np.argsort(keys, kind="stable")
      self._keys, self._values = keys[order], values[order]
      self._recent = {}
    return None


def _hash(*parts: Any) -> int:
  # A question alone is a plain text, mostly. A text is no list of one text: no JSON begins with "=".
  plain = isinstance(parts[0], str) and parts[1:] in ((), (None, None))
  text = f"={parts[0]}" if plain else json.dumps(parts, sort_keys=True)
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
