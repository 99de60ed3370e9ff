"""What a run has written, as one record. Every file but one of metrics or tokens may be missing, torn or of an older
version."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from fipo_jax import lines, paths

Row = dict[str, Any]
STEP = re.compile(rb'\{"step": (\d+)')  # how our lines begin; others are parsed


@dataclasses.dataclass(frozen=True)
class Run:
  """rows: lines of metrics, a step once. attempts: rows of those that were rolled back, from where they went back to.
  samples: (step, line) of responses, not parsed, for there may be many. config, result: {} where there is none.
  starts, rollbacks: records, oldest first. notes: what could not be read, in lines."""

  name: str
  rows: list[Row]
  attempts: list[list[Row]]
  samples: list[tuple[int, bytes]]
  config: dict[str, Any]
  result: dict[str, Any]
  starts: list[Row]
  rollbacks: list[Row]
  notes: list[str]

  @property
  def step(self) -> int:
    """The last one that is in the metrics."""
    return max((row["step"] for row in self.rows), default=0)

  @property
  def ended(self) -> bool:
    """Whether its last start has ended, as far as it could say so."""
    return bool(self.starts and self.starts[-1].get("ended"))

  @property
  def spent(self) -> dict[str, float]:
    """Where its time went, of a run that has ended where its metrics end; else {}."""
    found = self.result.get("goodput") if self.result.get("steps") == self.step else None
    return found if isinstance(found, dict) and found.get("wall_s") else {}


def run(folder) -> Run:
  """Reads a run, or what a replay has dumped.

  Raises:
    FileNotFoundError: there are neither metrics nor tokens.
    ValueError: no line of them can be read.
  """
  folder = paths.of(folder)
  if not any(lines.exists(folder / f"{name}.jsonl") for name in ("metrics", "tokens")):
    raise FileNotFoundError(f"--run={folder}: no metrics.jsonl there; name the folder of a run that has begun.")
  notes: list[str] = []
  rows = metrics(folder / "metrics.jsonl", notes)
  samples = [s for name in ("samples", "tokens") for s in _samples(folder / f"{name}.jsonl", notes)]
  if not rows and not samples:
    raise ValueError(f"--run={folder}: no line of its metrics can be read; the run has not finished a step yet.")
  rollbacks = [r for r in _json(folder / "rollbacks.json", [], notes) if isinstance(r, dict)]
  return Run(
    name=paths.absolute(folder).name or str(folder), rows=rows, samples=samples,
    attempts=_attempts(folder, rollbacks, notes),
    config=_json(folder / "config.json", {}, notes), result=_json(folder / "result.json", {}, notes),
    starts=starts(folder, notes), rollbacks=rollbacks, notes=notes,
  )  # fmt: skip


def starts(folder, notes: list[str]) -> list[Row]:
  """The records of its starts, oldest first; of an old version none."""
  return [s for s in _json(paths.of(folder) / "starts.json", [], notes) if isinstance(s, dict)]


def metrics(path, notes: list[str]) -> list[Row]:
  """The lines of a file or of its parts, in order of steps; of a step that is there twice the later one."""
  rows, bad = {}, 0
  for line in lines.read(path):
    row = _record(line)
    if row is None:
      bad += 1
    else:
      rows[row["step"]] = row
  _note(notes, path, bad)
  return [rows[step] for step in sorted(rows)]


def _samples(path, notes: list[str]) -> list[tuple[int, bytes]]:
  """(Step, line) of responses; a line without its end, as the last may be, is left out."""
  found, bad = [], 0
  for line in lines.read(path):
    if (begin := STEP.match(line)) and line.rstrip().endswith(b"}"):
      found.append((int(begin[1]), line))
    elif record := _record(line):
      found.append((record["step"], line))
    else:
      bad += 1
  _note(notes, path, bad)
  return found


def _record(line: bytes) -> Row | None:
  try:
    record = json.loads(line.decode("utf-8", errors="replace"))
  except ValueError:
    return None
  whole = isinstance(record, dict) and type(record.get("step")) is int
  return record if whole else None


def _note(notes: list[str], path, bad: int) -> None:
  if bad:
    notes.append(f"{bad} unreadable {'lines' if bad > 1 else 'line'} of {path.name} left out")


def _attempts(folder, rollbacks: list[Row], notes: list[str]) -> list[list[Row]]:
  """What metrics.rollbackN.jsonl has beyond the step that the run went back to: before it, it is the run's own."""
  numbers = [re.fullmatch(r"metrics\.rollback(\d*)\.jsonl", name) for name in paths.names(folder)]
  found = []
  for number in sorted(int(n[1] or 1) for n in numbers if n):
    path = folder / f"metrics.rollback{number}.jsonl"
    path = path if paths.is_file(path) else folder / "metrics.rollback.jsonl"
    to = rollbacks[number - 1].get("to", 0) if number <= len(rollbacks) else 0
    found.append([row for row in metrics(path, notes) if row["step"] >= to])
  return found


def _json(path, otherwise, notes: list[str]):
  """The content of a JSON file, if it is of that kind."""
  if not paths.is_file(path):
    return otherwise
  try:
    found = json.loads(paths.read_text(path))
  except ValueError as error:
    notes.append(f"{path.name} is not JSON ({error}): left out")
    return otherwise
  return found if isinstance(found, type(otherwise)) else otherwise
