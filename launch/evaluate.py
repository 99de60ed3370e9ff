"""Evaluates: python launch/evaluate.py --config=EXPERIMENT | --run=DIR [--step=N|best] [--model=DIR] [--sets=a,b]

With --run it is the run's newest checkpoint, or that of --step, on the sets of the run's own config, or of --config
where both are given; with --config alone the weights that the experiment starts from; with --model a Hugging Face
directory. Fields change by --config.FIELD=VALUE. Started again, it goes on where it was stopped. Results: --out, else
DIR/evaluations/.

Compares: python launch/evaluate.py --compare A.json B.json [--out=X.json]

Exit codes: 0 done; 1 an error on the way; 2 a mistake found at the start; 75 told to stop, start again to go on; 76
another process was lost.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import sys
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import interpreter  # noqa: F401, I001 - first: it may end the program

from absl import app, flags, logging
from ml_collections import config_flags

from fipo_jax import command_line, console, processes

_CONFIG = config_flags.DEFINE_config_file("config", None, "An experiment file; --config.FIELD=VALUE overrides a field.")
_RUN = flags.DEFINE_string("run", None, "A run's folder: its config, and its newest checkpoint.")
_STEP = flags.DEFINE_string("step", None, "Another checkpoint, a number or 'best'.")
_MODEL = flags.DEFINE_string("model", "", "A Hugging Face directory to evaluate instead.")
_SETS = flags.DEFINE_list("sets", [], "Names of eval.sets; all, if none is named.")
_OUT = flags.DEFINE_string("out", "", "The JSON to write.")
_COMPARE = flags.DEFINE_list("compare", [], "Two JSONs to compare, A and B.")
_ALLOW = flags.DEFINE_list("allow", [], "With --compare: fields of the specification that may differ.")
_COORDINATOR = flags.DEFINE_string(
  "coordinator", os.environ.get("JAX_COORDINATOR_ADDRESS", ""), "Of many processes: host:port of process 0."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", os.environ.get("JAX_NUM_PROCESSES", 0), "How many there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", os.environ.get("JAX_PROCESS_ID", -1), "Which one this is, from 0.")

_run = ""  # what --run said; command_line turns it into --config, where there is none

def named(argument: str, flag: str) -> bool:
  return argument.startswith("-") and argument.lstrip("-").partition("=")[0] == flag


def parse(argv):
  """absl's parser, with every mistake in the flags as one line instead of a traceback."""
  global _run
  try:
    if any(named(a, "compare") for a in argv[1:]):
      return command_line.plain(argv)
    _run = next((a.partition("=")[2] for a in argv[1:] if named(a, "run")), "")
    both = _run and any(named(a, "config") for a in argv[1:])
    rest = command_line.parse([a for a in argv if not (both and named(a, "run"))], __doc__)
    if _STEP.value not in (None, "best") and not _STEP.value.isdecimal():
      raise command_line.Mistake(f"--step={_STEP.value}: expected the number of a checkpoint, or 'best'.")
    return rest
  except ValueError as e:
    command_line.fail(str(e))


def main(argv) -> None:
  if not _COMPARE.value and len(argv) > 1:
    command_line.fail(f"unexpected argument {argv[1]!r}: fields are given as --config.FIELD=VALUE.")
  try:
    if _COMPARE.value:
      compare([*_COMPARE.value, *argv[1:]])
    else:
      evaluate(_CONFIG.value)
    processes.finish()
  except processes.Stopped as e:
    console.say(str(e))
    processes.finish()
    sys.exit(processes.EXIT_STOPPED)
  except (ValueError, OSError) as e:
    if os.environ.get("FIPO_TRACEBACK"):
      raise
    lost = isinstance(e, processes.Missing)
    end(str(e), processes.EXIT_LOST if lost else processes.EXIT_ERROR if processes.begun() else processes.EXIT_MISTAKE)
  except Exception as e:
    if processes.count() == 1:
      raise
    processes.await_reason()  # a collective fails when a process is lost; who it was is known a little later
    traceback.print_exc()
    end(f"{type(e).__name__}: {e}"[:500], processes.EXIT_ERROR)


def end(message: str, code: int) -> None:
  message = " ".join(message.split())
  print("error: " + message, file=sys.stderr, flush=True)
  processes.leave(message, code)
  os._exit(code)  # a worker must not keep it; what is finished is on disk


def evaluate(cfg) -> None:
  if int(os.environ.get("JAX_NUM_CPU_DEVICES", 1)) > 1 or _NUM_PROCESSES.value > 1:
    # As launch/run.py: CPU devices must not enter collectives of one program in different orders.
    flag = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
  processes.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  processes.heed_signals()  # after JAX, which takes SIGTERM too
  from fipo_jax import assemble, config
  from fipo_jax.evaluation import program, sets

  step = _STEP.value if _STEP.value in (None, "best") else int(_STEP.value)
  cfg, weights = program.choose(sets.chosen(cfg, _SETS.value), run=_run, step=step, model=_MODEL.value)
  config.validate(cfg)
  assemble.check_tables(cfg)
  assemble.check_alike(cfg)
  program.evaluate(cfg, weights, _OUT.value)


def compare(paths: list[str]) -> None:
  from fipo_jax.evaluation import compare as compare_lib

  if len(paths) != 2:
    raise ValueError(f"--compare: {len(paths)} files named, expected two: --compare A.json B.json.")
  found = compare_lib.compare(*map(compare_lib.read, paths), allow=_ALLOW.value)
  print("\n".join(compare_lib.lines(found)))
  if _OUT.value:
    pathlib.Path(_OUT.value).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
  signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `processes.heed_signals`, Ctrl-C just ends it
  logging.set_verbosity(logging.WARNING)
  app.run(main, flags_parser=parse)
