"""What FIPO credits: the tokens that runs of the countdown miniature kept, by place; a page with a picture.

    python launch/credit.py --run=DIR [--run=DIR ...] [--beside=DIR ...] --out=docs/credit

writes docs/credit.md, .png and .json. Runs must have log.samples > 0, and those of --run algorithm.name=fipo; those of
--beside are in the table of what became of the tries alone.
Exit codes: 0, 2 (a mistake, in one line).
"""

from __future__ import annotations

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import interpreter  # noqa: F401, I001 - first: it may end the program

from fipo_jax import commands
from fipo_jax.sweeps import credit_page


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(description="Writes what Future-KL credits, by kind of token.", allow_abbrev=False)
  parser.add_argument("--run", action="append", required=True, help="a run's folder; several are drawn together")
  parser.add_argument("--beside", action="append", default=[], help="a run of another objective, for the last table")
  parser.add_argument("--out", required=True, help="the page without its ending")
  options = parser.parse_args(argv)
  commands.alone(lambda: write(options))


def write(options) -> None:
  for path in credit_page.write_page(options.run, options.beside, pathlib.Path(options.out)):
    print(path)


if __name__ == "__main__":
  main(sys.argv[1:])
