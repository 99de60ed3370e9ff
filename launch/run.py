"""Trains: python launch/run.py --config=experiments/quickstart.py [--config.FIELD=VALUE ...]

On a workdir that already holds this run, it resumes; --run=DIR goes on with the run in DIR. Whatever the user can mend
ends in one line; nothing already written is lost. Many hosts: the same command on each; see docs/operating.md.

Exit codes: 0 done; 1 an error on the way; 2 a mistake found at the start, nothing was done; 75 told to stop (SIGTERM,
Ctrl-C) and saved: start again to go on; 76 another process was lost, or the run stood still: start all again; 130 a
second Ctrl-C.
"""

from __future__ import annotations

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import interpreter  # noqa: F401, I001 - first: it may end the program

from fipo_jax import processes

if __name__ == "__main__":
  processes.heed_signals()  # before what takes seconds: as the first process of a container it would not get them

from absl import app, flags, logging
from ml_collections import config_flags

from fipo_jax import command_line, commands

_CONFIG = config_flags.DEFINE_config_file("config", None, "An experiment file; --config.FIELD=VALUE overrides a field.")
_RUN = flags.DEFINE_string("run", None, "A run's folder, to go on with it; instead of --config.")
_STEP = flags.DEFINE_string("step", None, "Resume from this checkpoint, a number or 'best'; newer ones are set aside.")
_ALLOW = flags.DEFINE_list("allow", [], "Fields that may differ from the run that is resumed, though they alter it.")
_PROCESSES = commands.define_processes()
NUMBERED = ("TPU_WORKER_ID", "CLOUD_TPU_TASK_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")  # by schedulers


def check() -> None:
  command_line.check_fields("--allow", _ALLOW.value)
  commands.step_of(_STEP.value)


parse = commands.parser(__doc__, check)


def main(argv) -> None:
  commands.no_arguments(argv)
  commands.together(lambda: run(_CONFIG.value))


def run(cfg) -> dict:
  """Joins the other processes, validates, makes the base model if the experiment names how, trains."""
  if _PROCESSES.process_id.value <= 0 and all(os.environ.get(name, "0") == "0" for name in NUMBERED):
    print(f"fipo_jax: {command_line.experiment()}, workdir {cfg.workdir}", flush=True)
  commands.join(_PROCESSES)
  # After flag parsing, so that `--help` and flag mistakes answer at once.
  from fipo_jax import assemble, base_model, config, loop, workdir

  config.validate(cfg)
  assemble.check_tables(cfg, command_line.overrides())
  assemble.check_alike(cfg)
  with workdir.hold(cfg.workdir):
    if cfg.model.base_experiment:
      # Before minutes go into the base model: what would stop the run itself afterwards.
      workdir.check(cfg, _ALLOW.value)
      base_model.make(cfg)
    return loop.train(cfg, allow=_ALLOW.value, step=commands.step_of(_STEP.value))


if __name__ == "__main__":
  logging.set_verbosity(logging.WARNING)
  app.run(main, flags_parser=parse)
