"""Programs up to the point where they would begin: python tests/dry_run.py < COMMANDS.json > RESULTS.json

COMMANDS is a list of command lines, [program, argument, ...] each. Of each comes back {"error": "" or what was wrong,
"flags": the program's flags, without those of libraries}. A command line is read by the program's own parser, and its
experiment is loaded with the overrides; what launch/run.py would train is checked as it does. Each is a fork of this
process, which has imported what all of them import.
"""

import argparse
import json
import os
import pathlib
import runpy
import sys
import tempfile
import traceback

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from absl import app, flags  # noqa: E402

from fipo_jax import assemble, command_line, commands, config, loop, report  # noqa: E402, F401
from fipo_jax.evaluation import program as evaluation  # noqa: E402, F401
from fipo_jax.pods import jobs, plan  # noqa: E402, F401
from fipo_jax.sweeps import program as sweeps  # noqa: E402

OF_LIBRARIES = set(flags.FLAGS)


class Read(BaseException):
  """The command line has been read."""


def read_flags(main, argv=None, flags_parser=None):
  """In place of absl's app.run."""
  flags_parser(sys.argv)
  if "config" in flags.FLAGS and flags.FLAGS["config"].present:
    _ = flags.FLAGS.config.workdir  # a config is loaded when a field of it is asked for
    if sys.argv[0].endswith("launch/run.py"):
      config.validate(flags.FLAGS.config)
      assemble.check_tables(flags.FLAGS.config, command_line.overrides())
  raise Read


def read_arguments(parser, args=None, namespace=None):
  """In place of argparse's parse_args, whose programs allow no other arguments."""
  _, more = parser.parse_known_args(args, namespace)
  if more:
    raise ValueError(f"unrecognized arguments: {' '.join(more)}")
  raise Read


def read_sweep(*args, **kwargs):
  """In place of what a sweep does with the runs that it has found."""
  raise Read


def dry(words: list[str], said) -> dict:
  """Runs the program until it has read its flags. said: the file that it prints to."""
  parsers, error, make = [], "", argparse.ArgumentParser.__init__

  def noted(parser, *args, **kwargs):
    parsers.append(parser)
    make(parser, *args, **kwargs)

  argparse.ArgumentParser.__init__ = noted
  argparse.ArgumentParser.parse_args = read_arguments
  app.run = read_flags
  sweeps.execute = sweeps.emit = sweeps.show = sweeps.write_figures = read_sweep
  sys.argv = words
  try:
    runpy.run_path(str(ROOT / words[0]), run_name="__main__")
  except Read:
    pass
  except SystemExit as end:
    error = f"exit code {end.code}" if end.code else ""
  except Exception as e:  # noqa: BLE001 - whatever a program raises is told to the test
    error = f"{type(e).__name__}: {e} ({traceback.extract_tb(e.__traceback__)[-1]})"
  sys.stdout.flush()
  sys.stderr.flush()
  said.seek(0)
  names = [f"--{name}" for name in flags.FLAGS if name not in OF_LIBRARIES]
  names += [name for parser in parsers for action in parser._actions for name in action.option_strings]
  return {"error": error and f"{error}: {said.read().strip()}", "flags": sorted(names)}


def in_a_fork(words: list[str]) -> dict:
  back, there = os.pipe()
  if not (child := os.fork()):
    with tempfile.TemporaryFile("w+") as said, open(there, "w") as pipe:
      os.dup2(said.fileno(), 1)
      os.dup2(said.fileno(), 2)
      json.dump(dry(words, said), pipe)
    os._exit(0)
  os.close(there)
  with open(back) as pipe:
    answer = pipe.read()
  os.waitpid(child, 0)
  return json.loads(answer or '{"error": "it ended without a word", "flags": []}')


if __name__ == "__main__":
  json.dump([in_a_fork(words) for words in json.load(sys.stdin)], sys.stdout)
