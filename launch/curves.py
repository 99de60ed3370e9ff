"""The curves of sweeps, by arm and seed, finished runs and those under way: a picture, a page, a small file a run.

    python launch/curves.py --sweep=experiments/sweeps/A.py [--sweep=experiments/sweeps/B.py] --out=FOLDER

writes FOLDER/<arm>_seed<seed>.json, FOLDER.png and FOLDER.md. The first sweep's baseline is what the others are
compared with. Runs that are not on this machine are taken from their files in FOLDER, so the page can be written again
wherever those are.
Exit codes: 0, 2 (a mistake, in one line).
"""

from __future__ import annotations

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import interpreter  # noqa: F401, I001 - first: it may end the program

from fipo_jax import commands
from fipo_jax.sweeps import curves, plan


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(description="Draws the curves of sweeps and writes a page.", allow_abbrev=False)
  parser.add_argument("--sweep", action="append", required=True, help="a sweep file; several are drawn together")
  parser.add_argument("--out", required=True, help="folder of the runs' files; .png and .md are written beside it")
  options = parser.parse_args(argv)
  commands.alone(lambda: write(options))


def write(options) -> None:
  sweeps = [plan.read_sweep(path, {}) for path in options.sweep]
  for path in curves.write_page([(sweep, plan.make_jobs(sweep)) for sweep in sweeps], pathlib.Path(options.out)):
    print(path)


if __name__ == "__main__":
  main(sys.argv[1:])
