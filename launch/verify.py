"""Tries a verifier on lines: python launch/verify.py --verifier=NAME|--file=F LINES.jsonl [--out=PATH]

Each line of LINES.jsonl (- is standard input) is {"response", "answer", "extras"}, the last one optional; "answer" may
be a list, of which any is right, and "verifier" may name another row for that line. They are scored by the processes
that score a run. Out comes one JSON line each, on standard output or in --out:

    {"line": 1, "score": 1.0, "accuracy": 1.0, "pred": "42", "flags": [], "message": "", "seconds": 0.0001}

and a summary on standard error. Where a line has "right" (true or false) and the verdict is another, the JSON line says
"agrees": false, and the exit code is 1. Exit codes: 0 done; 1 a disagreement, or an error after verdicts; 2 a mistake
before.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import interpreter  # noqa: F401, I001 - first: it may end the program

from absl import app, flags

from fipo_jax import command_line, processes
from fipo_jax.data import rows
from fipo_jax.rewards import VERIFIERS
from fipo_jax.rewards.score import Job, Scored, Scorer

BATCH = 512  # lines that are scored at a time


def define_flags() -> None:
  flags.DEFINE_string("verifier", "", f"One of {', '.join(VERIFIERS)}; a line's own \"verifier\" goes before it.")
  flags.DEFINE_string("file", "", "A Python file that defines verify(response, answer, extras), as reward.file.")
  flags.DEFINE_string("out", "", "Where the JSON lines go; standard output if empty.")
  flags.DEFINE_float("timeout_s", 10.0, "Seconds a verdict may take, as reward.timeout_s.")
  flags.DEFINE_integer("workers", 0, "Processes; 0 = one per core, as reward.workers.")
  flags.DEFINE_list("env", [], "Names of environment variables that --file gets, as reward.env.")
  flags.DEFINE_bool("network", False, "Whether --file may open connections, as reward.network.")
  flags.DEFINE_bool("processes", False, "Whether --file may start programs, as reward.processes.")
  flags.DEFINE_integer("memory_mb", 4096, "10⁶ bytes of memory of a process, as reward.memory_mb.")


def read(path: str, default: str) -> Iterator[tuple[int, Job, bool | None]]:
  """(Line number, job, what is right or None). Raises ValueError naming path and line."""
  with sys.stdin.buffer if path == "-" else open(path, "rb") as lines:
    for number, line in enumerate(lines, start=1):
      if not line.strip():
        continue
      try:
        row = json.loads(line)
      except ValueError as error:
        raise ValueError(f"{path} line {number}: not valid JSON ({error}).") from error
      yield number, *job(row, default, f"{path} line {number}")


def job(row: Any, default: str, where: str) -> tuple[Job, bool | None]:
  """What a line asks. Raises ValueError for one that lacks something."""
  if not isinstance(row, dict) or not isinstance(row.get("response"), str):
    raise ValueError(f"{where}: expected an object with the text 'response'.")
  answer, right = rows.gold(row.get("answer"), where) or "", row.get("right")
  if right not in (True, False, None):
    raise ValueError(f"{where}: field 'right' must be true, false or null, got {right!r}.")
  verifier = row.get("verifier") or default
  if not verifier:
    raise ValueError(f"{where}: no field 'verifier'; give --verifier=NAME or --file=PATH.")
  if verifier not in (*VERIFIERS, "file"):
    raise ValueError(f"{where}: field 'verifier' is {verifier!r}, expected one of {', '.join(VERIFIERS)}.")
  return Job(verifier, row["response"], answer, row.get("extras") or {}, prompt=where), right


def said(number: int, scored: Scored, right: bool | None) -> dict[str, Any]:
  """The JSON line of a verdict."""
  line = {
    "line": number, "score": scored.score, "accuracy": scored.accuracy, "pred": scored.pred,
    "flags": list(scored.flags), "message": scored.message, "seconds": round(scored.seconds, 6),
  }  # fmt: skip
  return line if right is None else line | {"right": right, "agrees": (scored.accuracy >= 1) == right}


def verify(path: str, out, counts: dict[str, int]) -> int:
  """Scores the file, writes lines and summary; returns how many verdicts are not what the lines say is right."""
  given = flags.FLAGS
  begin = time.perf_counter()
  rows = read(path, "file" if given.file else given.verifier)
  with Scorer(
    workers=given.workers, timeout_s=given.timeout_s, verifier_file=given.file or None, on_error="score_wrong",
    wrong_score=-1.0, env=given.env, network=given.network, processes=given.processes, memory_mb=given.memory_mb,
  ) as scorer:  # fmt: skip
    while batch := list(itertools.islice(rows, BATCH)):
      found = scorer.score([job for _, job, _ in batch])
      for (number, _, right), scored in zip(batch, found, strict=True):
        line = said(number, scored, right)
        print(json.dumps(line), file=out, flush=True)
        counts["lines"] += 1
        counts["right"] += scored.accuracy >= 1
        counts["no answer"] += scored.pred is None and not scored.flags
        counts["judged"] += right is not None
        counts["disagree"] += not line.get("agrees", True)
        for flag in scored.flags:
          counts[flag] += 1
  seconds = time.perf_counter() - begin
  print(
    f"{counts['lines']} lines in {seconds:.1f} s: {counts['right']} right, {counts['no answer']} without an answer, "
    f"{counts['error']} errors, {counts['timeout']} time-outs; of {counts['judged']} that say what is right "
    f"{counts['disagree']} disagree",
    file=sys.stderr,
  )
  return counts["disagree"]


def main(argv) -> None:
  given = flags.FLAGS
  if len(argv) != 2:
    usage = "launch/verify.py --verifier=NAME LINES.jsonl (- is standard input)"
    fail(f"give one file of lines: {usage}.", code=processes.EXIT_MISTAKE)
  if given.verifier and given.file:
    fail("--verifier and --file: give one of them.", code=processes.EXIT_MISTAKE)
  if given.verifier and given.verifier not in VERIFIERS:
    fail(f"--verifier={given.verifier!r}: expected one of {', '.join(VERIFIERS)}.", code=processes.EXIT_MISTAKE)
  counts = dict.fromkeys(("lines", "right", "unread", "error", "timeout", "no answer", "judged", "disagree"), 0)
  try:
    if given.out:
      with open(given.out, "w") as out:
        disagree = verify(argv[1], out, counts)
    else:
      disagree = verify(argv[1], sys.stdout, counts)
  except (ValueError, OSError) as error:
    fail(str(error), code=processes.EXIT_ERROR if counts["lines"] else processes.EXIT_MISTAKE)
  sys.exit(processes.EXIT_ERROR if disagree else processes.EXIT_DONE)


def fail(message: str, *, code: int) -> None:
  print(f"error: {' '.join(message.split())}", file=sys.stderr)
  sys.exit(code)


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command_line.plain)
