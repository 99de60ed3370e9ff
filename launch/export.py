"""Writes a Hugging Face directory: python launch/export.py --run=DIR --out=FOLDER [--step=N|best] [--dtype=bfloat16]

Of any checkpoint that the run has kept; without --step the newest. It needs no accelerator and little memory: weights
go from the checkpoint to the files a layer at a time, while the run may go on.

Exit codes: 0 done; 1 an error on the way, such as a full disk; 2 a mistake.
"""

from __future__ import annotations

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import interpreter  # noqa: F401, I001 - first: it may end the program

from absl import app, flags, logging

from fipo_jax import command_line, commands, paths, saved

_RUN = flags.DEFINE_string("run", None, "The run's folder.", required=True)
_OUT = flags.DEFINE_string("out", None, "The folder to write.", required=True)
_STEP = flags.DEFINE_string("step", None, "Which checkpoint, a number or 'best'; the newest if left out.")
_DTYPE = flags.DEFINE_string("dtype", None, "float32 | bfloat16 | float16; as the model that the run began with.")


def main(argv) -> None:
  commands.no_arguments(argv)
  commands.alone(run)


def run() -> None:
  os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no device is of use here
  from fipo_jax import export

  step = commands.step_of(_STEP.value)
  config = paths.of(_RUN.value) / "config.json"
  if not paths.is_file(config):
    raise ValueError(f"--run={_RUN.value}: no run there; expected a folder with config.json.")
  cfg = saved.get_config(str(config))
  cfg.workdir = _RUN.value
  print(f"step {export.export(cfg, _OUT.value, step=step, dtype=_DTYPE.value)}: {_OUT.value}")


if __name__ == "__main__":
  logging.set_verbosity(logging.WARNING)
  app.run(main, flags_parser=command_line.plain)
