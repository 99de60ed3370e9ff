"""A verifier tried on lines of a file, by the processes that score a run."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from fipo_jax.rewards.score import Job, Scored, Scorer
from fipo_jax.rewards.verifiers import VERIFIERS

BATCH = 512  # lines that are scored at a time


def read(path: str, default: str, gold: Callable[[Any, str], str | None]) -> Iterator[tuple[int, Job, bool | None]]:
  """(Line number, job, what is right or None). gold: reads an answer as the data's files do.

  Raises ValueError naming path and line.
  """
  with sys.stdin.buffer if path == "-" else open(path, "rb") as lines:
    for number, line in enumerate(lines, start=1):
      if not line.strip():
        continue
      where = f"{path} line {number}"
      try:
        row = json.loads(line)
      except ValueError as error:
        raise ValueError(f"{where}: not valid JSON ({error}).") from error
      yield number, *_asked(row, default, where, gold)


def _asked(row: Any, default: str, where: str, gold) -> tuple[Job, bool | None]:
  """What a line asks. Raises ValueError for one that lacks something."""
  if not isinstance(row, dict) or not isinstance(row.get("response"), str):
    raise ValueError(f"{where}: expected an object with the text 'response'.")
  answer, right = gold(row.get("answer"), where) or "", row.get("right")
  if right not in (True, False, None):
    raise ValueError(f"{where}: field 'right' must be true, false or null, got {right!r}.")
  verifier = row.get("verifier") or default
  if not verifier:
    raise ValueError(f"{where}: no field 'verifier'; give --verifier=NAME or --file=PATH.")
  if verifier not in (*VERIFIERS, "file"):
    raise ValueError(f"{where}: field 'verifier' is {verifier!r}, expected one of {', '.join(VERIFIERS)}.")
  return Job(verifier, row["response"], answer, row.get("extras") or {}, prompt=where), right


def score(lines: Iterator[tuple[int, Job, bool | None]], scorer: Scorer, out, counts: dict[str, int]) -> None:
  """Writes a JSON line for each, and counts what they say; `counts` holds what is done when an error ends it."""
  counts |= dict.fromkeys(("lines", "right", "unread", "error", "timeout", "no answer", "judged", "disagree"), 0)
  while batch := list(itertools.islice(lines, BATCH)):
    found = scorer.score([job for _, job, _ in batch])
    for (number, _, right), scored in zip(batch, found, strict=True):
      line = _said(number, scored, right)
      print(json.dumps(line), file=out, flush=True)
      counts["lines"] += 1
      counts["right"] += scored.accuracy >= 1
      counts["no answer"] += scored.pred is None and not scored.flags
      counts["judged"] += right is not None
      counts["disagree"] += not line.get("agrees", True)
      for flag in scored.flags:
        counts[flag] += 1


def _said(number: int, scored: Scored, right: bool | None) -> dict[str, Any]:
  """The JSON line of a verdict."""
  line = {
    "line": number, "score": scored.score, "accuracy": scored.accuracy, "pred": scored.pred,
    "flags": list(scored.flags), "message": scored.message, "seconds": round(scored.seconds, 6),
  }  # fmt: skip
  return line if right is None else line | {"right": right, "agrees": (scored.accuracy >= 1) == right}


def summary(counts: dict[str, int], begin: float) -> str:
  """begin: time.perf_counter() when it began."""
  return (
    f"{counts['lines']} lines in {time.perf_counter() - begin:.1f} s: {counts['right']} right, "
    f"{counts['no answer']} without an answer, {counts['error']} errors, {counts['timeout']} time-outs; of "
    f"{counts['judged']} that say what is right {counts['disagree']} disagree"
  )
