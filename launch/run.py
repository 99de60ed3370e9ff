"""Trains: python launch/run.py --config=experiments/quickstart.py [--config.FIELD=VALUE ...]

On a workdir that already holds this run, it resumes. Whatever the user can mend ends in one line and exit code 1
(2 for a mistake in the flags); nothing already written is lost. SIGTERM finishes the iteration, saves, and ends with
exit code 75: start again to go on. Many hosts: the same command on each; see "Many hosts" in the README.
"""

from __future__ import annotations

import copy
import os
import pathlib
import sys
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from absl import app, flags, logging
from ml_collections import config_flags

from fipo_jax import processes

_CONFIG = config_flags.DEFINE_config_file("config", None, "An experiment file; --config.FIELD=VALUE overrides a field.")
flags.mark_flag_as_required("config")
_COORDINATOR = flags.DEFINE_string(
  "coordinator", os.environ.get("JAX_COORDINATOR_ADDRESS", ""), "Of many processes: host:port of process 0."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", os.environ.get("JAX_NUM_PROCESSES", 0), "How many there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", os.environ.get("JAX_PROCESS_ID", -1), "Which one this is, from 0.")


def parse(argv):
  """absl's parser, with every mistake in the flags as one line instead of a traceback."""
  try:
    app.define_help_flags()
    rest = flags.FLAGS(argv)
    # A file that cannot be loaded only says so when a field of it is asked for.
    if not _CONFIG.value.workdir:
      raise ValueError("workdir='': name the folder that the run writes to.")
    return rest
  except (AttributeError, KeyError, TypeError, ValueError, OSError, flags.Error) as e:
    fail(str(e.args[0] if e.args else e), code=2)


def fail(message: str, *, code: int) -> None:
  message = " ".join(message.split())
  print("error: " + message, file=sys.stderr, flush=True)
  processes.leave(message)
  # A background save or a worker must not keep a failed run alive; everything written so far is on disk.
  os._exit(code)


def main(argv) -> None:
  if len(argv) > 1:
    fail(f"unexpected argument {argv[1]!r}: fields are given as --config.FIELD=VALUE.", code=2)
  try:
    run(_CONFIG.value)
    processes.finish()
  except processes.Stopped as e:
    if processes.is_first():
      print(e, flush=True)
    processes.finish()
    sys.exit(processes.EXIT_STOPPED)
  except (ValueError, OSError) as e:
    if os.environ.get("FIPO_TRACEBACK"):
      raise
    fail(str(e), code=1)
  except KeyboardInterrupt:
    if processes.count() == 1:
      raise
    fail("interrupted", code=130)
  except Exception as e:
    if processes.count() == 1:
      raise
    # Whatever it is, the others must not wait for this process.
    processes.await_reason()  # a collective fails when a process is lost; who it was is known a little later
    traceback.print_exc()
    fail(f"{type(e).__name__}: {e}"[:500], code=1)


def run(cfg) -> dict:
  """Joins the other processes, validates, makes the base model if the experiment names how, trains."""
  if int(os.environ.get("JAX_NUM_CPU_DEVICES", 1)) > 1 or _NUM_PROCESSES.value > 1:
    # XLA's concurrent CPU schedule lets devices enter collectives of one program in different orders: a deadlock.
    flag = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
  processes.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  processes.heed_sigterm()  # after JAX, which takes it too
  # After flag parsing, so that `--help` and flag mistakes answer at once.
  from fipo_jax import assemble, config, loop

  config.validate(cfg)
  assemble.check_tables(cfg, config_flags.get_override_values(flags.FLAGS["config"]))
  if cfg.model.base_experiment:
    # Before minutes go into the base model: what would stop the run itself afterwards.
    assemble.check_alike(cfg)
    assemble.claim_workdir(cfg)
    make_base(cfg)
  return loop.train(cfg)


def make_base(cfg) -> None:
  """Runs model.base_experiment, whose export is model.path; one that is finished is only checked to be the same."""
  from fipo_jax import assemble, config, loop

  folder = pathlib.Path(cfg.model.path)
  if folder.name != "export":
    raise ValueError(f"model.path={cfg.model.path!r}: with model.base_experiment it must end in /export.")
  base = load_experiment(cfg.model.base_experiment)
  base.workdir = str(folder.parent)
  config.validate(base)
  there = (folder / "config.json").exists()
  processes.agree("the base model", {str(folder): "is there" if there else "is missing"})
  if there:
    assemble.claim_workdir(base)
    return
  if processes.is_first():
    print(f"making the base model {cfg.model.path} with {cfg.model.base_experiment}", flush=True)
  loop.train(base)


def load_experiment(path: str):
  """The config of an experiment file."""
  if not os.path.isfile(path):
    raise ValueError(f"model.base_experiment={path!r}: no such file.")
  module = {"__file__": path, "__name__": "experiment"}
  exec(compile(pathlib.Path(path).read_text(), path, "exec"), module)  # a config is a program
  return copy.deepcopy(module["get_config"]())


if __name__ == "__main__":
  logging.set_verbosity(logging.WARNING)
  app.run(main, flags_parser=parse)
