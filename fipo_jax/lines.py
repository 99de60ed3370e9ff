"""Files of lines that grow, each line a JSON record with a step: one file on a disk, numbered parts in a bucket.

    runs/x/metrics.jsonl                     appended to, line by line
    gs://bucket/x/metrics/000001.jsonl ...   written whole each time; the newest is written again while it is small

Whoever reads a run asks `read`, and need not know which. Both are cut back when a run resumes: lines of later steps are
dropped, which stand at the end; a crash on the way loses none of the others.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterator

from fipo_jax import paths

PART_BYTES = 1 << 18  # of a part; the last one is sent again with each new line
SAME_PART_S = 1.0  # a bucket takes an object once a second; sooner the next part begins


def exists(path) -> bool:
  """Whether something was ever written. path: as on a disk, FOLDER/NAME.jsonl, here and below."""
  return _has(path) or bool(_parts(path))


def read(path) -> Iterator[bytes]:
  """The lines of a file, or of its parts one after the other; none if there is no such file.

  A run that was copied from a bucket to a disk, or the other way, is read as it was written there.
  """
  if parts := _parts(path):
    if paths.is_remote(path) or not _has(path):
      for number, _ in parts:
        yield from paths.read(_part(path, number)).splitlines(keepends=True)
      return
  if _has(path):
    with paths.open_to_read(path) as file:
      yield from file


def add(path, content: bytes) -> None:
  """Appends lines that are whole, with or without steps; in a bucket, as one more part."""
  if paths.is_remote(path):
    paths.write(_part(path, max([0, *(number for number, _ in _parts(path))]) + 1), content)
    return
  with open(path, "ab") as file:
    file.write(content)


def copy(path, target) -> None:
  """Copies what there is into one file."""
  if not paths.is_remote(path) and _has(path):
    paths.copy(path, target)
  elif exists(path):
    paths.write(target, b"".join(read(path)))


def grow(path, resume_step: int, most_bytes: int) -> File | Parts:
  """Opens for appending, keeping the lines of steps <= resume_step (none if that is 0).

  most_bytes: beyond it the oldest half is dropped; 0 = no bound.
  Raises ValueError when one of the lines that were read, but the last, is not a JSON record with a step.
  """
  return (Parts if paths.is_remote(path) else File)(path, resume_step, most_bytes)


class File:
  """One file on a disk. A line is on its way when `append` returns."""

  def __init__(self, path, resume_step: int, most_bytes: int):
    self.path, self._most_bytes, self._said = path, most_bytes, False
    if not _has(path) and _parts(path):
      copy(path, path)
      print(f"{path}: made from the parts in {_folder(path)}", flush=True)
    _cut(path, resume_step)
    self._open()

  def _open(self) -> None:
    self._file = open(self.path, "ab", buffering=0)

  def append(self, line: bytes) -> None:
    """Writes one line. Raises OSError where it cannot; what was written before stays whole."""
    rest, start = memoryview(line), self._file.seek(0, os.SEEK_END)
    try:
      if start and 0 < self._most_bytes < start + len(rest):
        self._drop_oldest(start)
        start = self._file.seek(0, os.SEEK_END)
      while rest:  # a nearly full disk takes a part of the line first and refuses the rest
        rest = rest[self._file.write(rest) :]
    except OSError:
      with contextlib.suppress(OSError):
        self._file.truncate(start)
      raise

  def _drop_oldest(self, size: int) -> None:
    """Replaces the file by the lines that begin in its second half; a crash leaves the one or the other."""
    self._said = self._said or _say_that_it_is_full(self.path, self._most_bytes)
    temporary = self.path.with_name(f".{self.path.name}-{os.getpid()}")
    try:
      with open(self.path, "rb") as old, open(temporary, "wb") as new:
        old.seek(size // 2)
        old.readline()
        shutil.copyfileobj(old, new)
        new.flush()
        os.fsync(new.fileno())
      os.replace(temporary, self.path)
    finally:
      temporary.unlink(missing_ok=True)
    self._file.close()
    self._open()

  def flush(self) -> None:
    """Nothing waits."""

  def close(self) -> None:
    self._file.close()


class Parts:
  """Numbered objects of a bucket. Lines wait until `flush`, or until there are PART_BYTES of them."""

  def __init__(self, path, resume_step: int, most_bytes: int):
    self.path, self._most_bytes, self._said = path, most_bytes, False
    self._part_bytes = min(PART_BYTES, most_bytes // 8) if most_bytes else PART_BYTES
    self._sizes = dict(_parts(path))  # bytes by number, of all but the newest
    if not self._sizes and _has(path):
      paths.copy(path, _part(path, 1))
      self._sizes = {1: paths.size(path)}
      print(f"{path}: goes on in parts, in {_folder(path)}", flush=True)
    content = self._cut(resume_step)
    self._number = max(self._sizes, default=1)
    self._sizes.pop(self._number, None)
    self._content, self._waits, self._sent = content, False, -SAME_PART_S
    if len(content) >= self._part_bytes:
      self._begin_part()

  def _cut(self, resume_step: int) -> bytes:
    """Drops parts from the newest on until one has a line to be kept; what that one is then."""
    for number in sorted(self._sizes, reverse=True):
      content = paths.read(_part(self.path, number)) if resume_step > 0 else b""
      keep, torn = _kept(io.BytesIO(content), len(content), resume_step, _part(self.path, number))
      if keep:
        kept = content[:keep] + b"\n" * torn
        if kept != content:
          paths.write(_part(self.path, number), kept)
        self._sizes[number] = len(kept)
        return kept
      paths.delete(_part(self.path, number))
      del self._sizes[number]
    return b""

  def append(self, line: bytes) -> None:
    """Takes one line."""
    sent = not self._waits and self._content
    full = self._content and len(self._content) + len(line) > self._part_bytes
    if full or (sent and time.monotonic() - self._sent < SAME_PART_S):
      self.flush()
      self._begin_part()
    total = sum(self._sizes.values()) + len(self._content)
    if 0 < self._most_bytes < total + len(line):
      self._drop_oldest(total)
    self._content, self._waits = self._content + line, True

  def flush(self) -> None:
    """Sends what waits."""
    if self._waits:
      paths.write(_part(self.path, self._number), self._content)
      self._waits, self._sent = False, time.monotonic()

  def _begin_part(self) -> None:
    self._sizes[self._number] = len(self._content)
    self._number, self._content, self._sent = self._number + 1, b"", -SAME_PART_S

  def _drop_oldest(self, total: int) -> None:
    """Deletes the oldest parts until half of the bound is left."""
    self._said = self._said or _say_that_it_is_full(self.path, self._most_bytes)
    if self._content:
      self.flush()
      self._begin_part()
    for number in sorted(self._sizes):
      if total <= self._most_bytes // 2:
        break
      paths.delete(_part(self.path, number))
      total -= self._sizes.pop(number)

  def close(self) -> None:
    self.flush()


def _say_that_it_is_full(path, most_bytes: int) -> bool:
  print(f"{path} has reached {most_bytes} bytes; its oldest lines are dropped", flush=True)
  return True


def _has(path) -> bool:
  return paths.is_file(path) and paths.size(path) > 0


def _folder(path):
  return path.with_suffix("")


def _part(path, number: int):
  return _folder(path) / f"{number:06d}.jsonl"


def _parts(path) -> list[tuple[int, int]]:
  """(Number, bytes) of the parts there are, in their order."""
  entries = paths.entries(_folder(path)) if paths.is_remote(path) or paths.is_folder(_folder(path)) else []
  found = [(name.partition("."), size) for name, size in entries]
  return sorted((int(stem), size) for (stem, _, ending), size in found if ending == "jsonl" and stem.isdecimal())


# ---- cutting ----


def _cut(path, resume_step: int) -> None:
  """Shortens the file to its lines of steps <= resume_step (none if that is 0), which stand at its beginning.

  It is read from its end and no further than needed; one truncation drops the others, and a torn last line.
  """
  if not paths.exists(path):
    return
  with open(path, "r+b") as file:
    end = file.seek(0, os.SEEK_END)
    keep, torn = _kept(file, end, resume_step, path)
    if keep < end:
      file.truncate(keep)
    if torn:
      file.seek(0, os.SEEK_END)
      file.write(b"\n")
    os.fsync(file.fileno())


def _kept(file, end: int, resume_step: int, path) -> tuple[int, bool]:
  """How many bytes are kept, and whether the last line of them lacks its end."""
  keep = end
  for start, line in _backwards(file, end) if resume_step > 0 else ():
    step = _step(line)
    if step is None and keep < end:
      raise ValueError(f"{path}: the line at byte {start} is not a JSON record with a step; repair or move the file.")
    if step is not None and step <= resume_step:
      return keep, not line.endswith(b"\n")
    keep = start
  return 0, False


def _backwards(file, end: int, block: int = 1 << 16) -> Iterator[tuple[int, bytes]]:
  """(Offset, line) of the lines before `end`, the last one first; reads a block at a time."""
  rest, start = b"", end
  while start:
    size = min(block, start)
    start -= size
    file.seek(start)
    rest = file.read(size) + rest
    while (at := rest.rfind(b"\n", 0, len(rest) - 1)) >= 0:
      yield start + at + 1, rest[at + 1 :]
      rest = rest[: at + 1]
    block = 2 * block if len(rest) >= block else block  # a line longer than a block is not copied for each of its own
  if rest:
    yield 0, rest


def _step(line: bytes) -> int | None:
  try:
    record = json.loads(line)
  except ValueError:
    return None
  step = record.get("step") if isinstance(record, dict) else None
  return step if isinstance(step, int) else None
