"""Writes a Hugging Face directory: python launch/export.py --run=DIR --out=FOLDER [--step=N|best] [--dtype=bfloat16]

Of any checkpoint that the run has kept; without --step the newest. It needs no accelerator and little memory: weights
go from the checkpoint to the files a layer at a time, while the run may go on.

Exit codes: 0 done; 1 an error on the way, such as a full disk; 2 a mistake.
"""

from __future__ import annotations

import errno
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import interpreter  # noqa: F401, I001 - first: it may end the program

from absl import app, flags, logging

from fipo_jax import command_line, processes, saved

_RUN = flags.DEFINE_string("run", None, "The run's folder.", required=True)
_OUT = flags.DEFINE_string("out", None, "The folder to write.", required=True)
_STEP = flags.DEFINE_string("step", None, "Which checkpoint, a number or 'best'; the newest if left out.")
_DTYPE = flags.DEFINE_string("dtype", None, "float32 | bfloat16 | float16; as the model that the run began with.")


def main(argv) -> None:
  os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no device is of use here
  from fipo_jax import export

  try:
    if len(argv) > 1:
      raise ValueError(f"unexpected argument {argv[1]!r}.")
    if _STEP.value not in (None, "best") and not _STEP.value.isdecimal():
      raise ValueError(f"--step={_STEP.value}: expected the number of a checkpoint, or 'best'.")
    config = pathlib.Path(_RUN.value) / "config.json"
    if not config.is_file():
      raise ValueError(f"--run={_RUN.value}: no run there; expected a folder with config.json.")
    cfg = saved.get_config(str(config))
    cfg.workdir = _RUN.value
    step = _STEP.value if _STEP.value in (None, "best") else int(_STEP.value)
    found = export.export(cfg, _OUT.value, step=step, dtype=_DTYPE.value)
    print(f"step {found}: {_OUT.value}")
  except (ValueError, OSError) as e:
    if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
      print(f"error: {e}", file=sys.stderr)
      sys.exit(processes.EXIT_ERROR)
    command_line.fail(str(e))


if __name__ == "__main__":
  logging.set_verbosity(logging.WARNING)
  app.run(main, flags_parser=command_line.plain)
