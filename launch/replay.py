"""Makes a step of a run again: python launch/replay.py --run=DIR --step=70 [--out=DIR] [--config.FIELD=VALUE ...]

From the newest kept checkpoint before it (checkpoint.keep_every=N keeps some for good), beside the run if it goes on;
nothing is written into it. Says whether all metrics are those that were recorded, and writes every response token by
token, the gradients' norms by layer, and a summary to --out. With fields of algorithm, optimizer, batch, rollout,
reward or dynamic_sampling it also says what the step would have been; --config.mesh and what else is where and how fast
hold for all of it. Of a run that an alarm took back --attempt=1 is the first try, ...; without it the last.

Exit codes: 0 done; 1 an error on the way; 2 a mistake found at the start.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import interpreter  # noqa: F401, I001 - first: it may end the program

from absl import app, flags, logging
from ml_collections import config_flags

from fipo_jax import command_line, commands, saved

_CONFIG = config_flags.DEFINE_config_file("config", None, "Of --run; --config.FIELD=VALUE: what would have been.")
_RUN = flags.DEFINE_string("run", None, "The run's folder.")
_STEP = flags.DEFINE_integer("step", None, "Which step.", lower_bound=1)
_ATTEMPT = flags.DEFINE_integer("attempt", 0, "Of a run that was rolled back: 1 is the first try; 0 is the last.")
_OUT = flags.DEFINE_string("out", "", "The folder to write; replay_RUN_stepN if left out.")

_run = ""  # what --run said; command_line turns it into --config


def parse(argv):
  """absl's parser; the config is that of the run."""
  global _run
  given = command_line.given(argv)
  if not {*command_line.HELP} & {*argv}:
    if not given.get("run"):
      command_line.fail("--run=DIR: name the run whose step is to be made again.")
    if wrong := {"config", "config.workdir"} & {*given}:
      command_line.fail(f"--{min(wrong)}: the run is that of --run, under its own config; name fields of it alone.")
    if "step" not in given:
      command_line.fail("--step=N: name the step to make again.")
  _run = given.get("run", "")
  return commands.parser(__doc__)(argv)


def main(argv) -> None:
  commands.no_arguments(argv)
  commands.alone(replay)


def replay() -> None:
  commands.prepare_devices()
  from fipo_jax.replays import program

  cfg = saved.get_config(f"{_run}/config.json")
  cfg.workdir = _run
  given = {field: value for field, value in command_line.overrides().items() if field != "workdir"}
  program.replay(cfg, _STEP.value, attempt=_ATTEMPT.value, out=_OUT.value, given=given)


if __name__ == "__main__":
  logging.set_verbosity(logging.WARNING)
  app.run(main, flags_parser=parse)
