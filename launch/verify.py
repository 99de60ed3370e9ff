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

import contextlib
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import interpreter  # noqa: F401, I001 - first: it may end the program

from absl import app, flags

from fipo_jax import command_line, processes
from fipo_jax.data import rows
from fipo_jax.rewards import VERIFIERS, trial
from fipo_jax.rewards.score import Scorer


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


def main(argv) -> None:
  given = flags.FLAGS
  if len(argv) != 2:
    usage = "launch/verify.py --verifier=NAME LINES.jsonl (- is standard input)"
    command_line.fail(f"give one file of lines: {usage}.")
  if given.verifier and given.file:
    command_line.fail("--verifier and --file: give one of them.")
  if given.verifier and given.verifier not in VERIFIERS:
    command_line.fail(f"--verifier={given.verifier!r}: expected one of {', '.join(VERIFIERS)}.")
  counts: dict[str, int] = {}
  try:
    verify(given, argv[1], counts)
  except (ValueError, OSError) as error:
    command_line.fail(str(error), code=processes.EXIT_ERROR if counts.get("lines") else processes.EXIT_MISTAKE)
  sys.exit(processes.EXIT_ERROR if counts["disagree"] else processes.EXIT_DONE)


def verify(given, path: str, counts: dict[str, int]) -> None:
  """Scores the file; writes its lines and a summary."""
  lines = trial.read(path, "file" if given.file else given.verifier, rows.gold)
  begin = time.perf_counter()
  with (
    open(given.out, "w") if given.out else contextlib.nullcontext(sys.stdout) as out,
    Scorer(
      workers=given.workers, timeout_s=given.timeout_s, verifier_file=given.file or None, on_error="score_wrong",
      wrong_score=-1.0, env=given.env, network=given.network, processes=given.processes, memory_mb=given.memory_mb,
    ) as scorer,
  ):  # fmt: skip
    trial.score(lines, scorer, out, counts)
  print(trial.summary(counts, begin), file=sys.stderr)


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command_line.plain)
