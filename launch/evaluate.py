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
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import interpreter  # noqa: F401, I001 - first: it may end the program

from absl import app, flags, logging
from ml_collections import config_flags

from fipo_jax import command_line, commands, paths, processes

_CONFIG = config_flags.DEFINE_config_file("config", None, "An experiment file; --config.FIELD=VALUE overrides a field.")
_RUN = flags.DEFINE_string("run", None, "A run's folder: its config, and its newest checkpoint.")
_STEP = flags.DEFINE_string("step", None, "Another checkpoint, a number or 'best'.")
_MODEL = flags.DEFINE_string("model", "", "A Hugging Face directory to evaluate instead.")
_SETS = flags.DEFINE_list("sets", [], "Names of eval.sets; all, if none is named.")
_OUT = flags.DEFINE_string("out", "", "The JSON to write.")
_COMPARE = flags.DEFINE_list("compare", [], "Two JSONs to compare, A and B.")
_ALLOW = flags.DEFINE_list("allow", [], "With --compare: fields of the specification that may differ.")
_PROCESSES = commands.define_processes()

_run = ""  # what --run said; command_line turns it into --config, where there is none


def parse(argv):
  """absl's parser; a comparison has no config, and --run may stand beside one."""
  global _run
  given = command_line.given(argv)
  if "compare" in given:
    return command_line.plain(argv)
  _run = given.get("run", "")
  if _run and "config" in given:
    argv = [a for a in argv if not a.startswith(("--run=", "-run="))]
  return commands.parser(__doc__, lambda: commands.step_of(_STEP.value))(argv)


def main(argv) -> None:
  if _COMPARE.value:
    commands.alone(lambda: compare([*_COMPARE.value, *argv[1:]]))
  else:
    commands.no_arguments(argv)
    commands.together(lambda: evaluate(_CONFIG.value))


def evaluate(cfg) -> None:
  commands.join(_PROCESSES)
  processes.heed_signals()  # after JAX, which takes SIGTERM too
  from fipo_jax import assemble, config
  from fipo_jax.evaluation import program, sets

  chosen, step = sets.chosen(cfg, _SETS.value), commands.step_of(_STEP.value)
  cfg, weights = program.choose(chosen, run=_run, step=step, model=_MODEL.value)
  config.validate(cfg)
  assemble.check_tables(cfg)
  assemble.check_alike(cfg)
  program.evaluate(cfg, weights, _OUT.value)


def compare(files: list[str]) -> None:
  from fipo_jax.evaluation import compare as compare_lib

  if len(files) != 2:
    raise ValueError(f"--compare: {len(files)} files named, expected two: --compare A.json B.json.")
  found = compare_lib.compare(*map(compare_lib.read, files), allow=_ALLOW.value)
  print("\n".join(compare_lib.lines(found)))
  if _OUT.value:
    paths.write(_OUT.value, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
  signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `processes.heed_signals`, Ctrl-C just ends it
  logging.set_verbosity(logging.WARNING)
  app.run(main, flags_parser=parse)
