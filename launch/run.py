"""Trains: python launch/run.py --config=experiments/quickstart.py [--config.FIELD=VALUE ...]

On a workdir that already holds this run, it resumes; --run=DIR goes on with the run in DIR. Whatever the user can mend
ends in one line; nothing already written is lost. Many hosts: the same command on each; see "Many hosts" in the README.

Exit codes: 0 done; 1 an error on the way; 2 a mistake found at the start, nothing was done; 75 told to stop (SIGTERM,
Ctrl-C) and saved: start again to go on; 76 another process was lost, or the run stood still: start all again; 130 a
second Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import pathlib
import sys
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import interpreter  # noqa: F401, I001 - first: it may end the program

from fipo_jax import processes

if __name__ == "__main__":
  processes.heed_signals()  # before what takes seconds: as the first process of a container it would not get them

from absl import app, flags, logging
from ml_collections import config_flags

from fipo_jax import command_line, console

_CONFIG = config_flags.DEFINE_config_file("config", None, "An experiment file; --config.FIELD=VALUE overrides a field.")
_RUN = flags.DEFINE_string("run", None, "A run's folder, to go on with it; instead of --config.")
_STEP = flags.DEFINE_string("step", None, "Resume from this checkpoint, a number or 'best'; newer ones are set aside.")
_ALLOW = flags.DEFINE_list("allow", [], "Fields that may differ from the run that is resumed, though they alter it.")
_COORDINATOR = flags.DEFINE_string(
  "coordinator", os.environ.get("JAX_COORDINATOR_ADDRESS", ""), "Of many processes: host:port of process 0."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", os.environ.get("JAX_NUM_PROCESSES", 0), "How many there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", os.environ.get("JAX_PROCESS_ID", -1), "Which one this is, from 0.")
NUMBERED = ("TPU_WORKER_ID", "CLOUD_TPU_TASK_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")  # by schedulers


def parse(argv):
  """absl's parser, with every mistake in the flags as one line instead of a traceback."""
  try:
    rest = command_line.parse(argv, __doc__)
    command_line.check_fields("--allow", _ALLOW.value)
    if _STEP.value not in (None, "best") and not _STEP.value.isdecimal():
      raise command_line.Mistake(f"--step={_STEP.value}: expected the number of a checkpoint, or 'best'.")
    return rest
  except ValueError as e:
    fail(str(e), code=processes.EXIT_MISTAKE)


def fail(message: str, *, code: int) -> None:
  message = " ".join(message.split())
  processes.say("error: " + message)
  processes.leave(message, code)
  # A background save or a worker must not keep a failed run alive; everything written so far is on disk.
  os._exit(code)


def main(argv) -> None:
  if len(argv) > 1:
    fail(f"unexpected argument {argv[1]!r}: fields are given as --config.FIELD=VALUE.", code=processes.EXIT_MISTAKE)
  try:
    run(_CONFIG.value)
    processes.finish()
    processes.heed_no_more()
  except processes.Stopped as e:
    console.say(str(e))
    processes.finish()
    processes.heed_no_more()
    sys.exit(processes.EXIT_STOPPED)
  except (ValueError, OSError) as e:
    if os.environ.get("FIPO_TRACEBACK"):
      raise
    fail(str(e), code=code_of(e))
  except Exception as e:
    if processes.count() == 1:
      raise
    # Whatever it is, the others must not wait for this process.
    processes.await_reason()  # a collective fails when a process is lost; who it was is known a little later
    traceback.print_exc()
    fail(f"{type(e).__name__}: {e}"[:500], code=processes.EXIT_ERROR)


def code_of(error: Exception) -> int:
  """How the program ends by an error that has a line of its own."""
  if isinstance(error, processes.Missing):
    return processes.EXIT_LOST
  full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)
  return processes.EXIT_ERROR if full or processes.begun() else processes.EXIT_MISTAKE


def run(cfg) -> dict:
  """Joins the other processes, validates, makes the base model if the experiment names how, trains."""
  if int(os.environ.get("JAX_NUM_CPU_DEVICES", 1)) > 1 or _NUM_PROCESSES.value > 1:
    # XLA's concurrent CPU schedule lets devices enter collectives of one program in different orders: a deadlock.
    flag = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
  if _PROCESS_ID.value <= 0 and all(os.environ.get(name, "0") == "0" for name in NUMBERED):
    print(f"fipo_jax: {command_line.experiment()}, workdir {cfg.workdir}", flush=True)
  processes.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  # After flag parsing, so that `--help` and flag mistakes answer at once.
  from fipo_jax import assemble, config, loop, workdir

  config.validate(cfg)
  assemble.check_tables(cfg, command_line.overrides())
  assemble.check_alike(cfg)
  with workdir.hold(cfg.workdir):
    if cfg.model.base_experiment:
      # Before minutes go into the base model: what would stop the run itself afterwards.
      workdir.check(cfg, _ALLOW.value)
      make_base(cfg)
    step = _STEP.value if _STEP.value in (None, "best") else int(_STEP.value)
    return loop.train(cfg, allow=_ALLOW.value, step=step)


def make_base(cfg) -> None:
  """Runs model.base_experiment, whose export is model.path; one that is finished is only checked to be the same."""
  from fipo_jax import config, loop, paths, workdir

  folder = paths.of(cfg.model.path)
  if folder.name != "export":
    raise ValueError(f"model.path={cfg.model.path!r}: with model.base_experiment it must end in /export.")
  base = command_line.load_experiment(cfg.model.base_experiment)
  base.workdir = str(folder.parent)
  config.validate(base)
  there = paths.is_file(folder / "config.json")
  processes.agree("the base model", {str(folder): "is there" if there else "is missing"})
  if there:
    workdir.check(base)
    return
  console.say(f"making the base model {cfg.model.path} with {cfg.model.base_experiment}")
  loop.train(base)


if __name__ == "__main__":
  logging.set_verbosity(logging.WARNING)
  app.run(main, flags_parser=parse)
