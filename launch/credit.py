"""What FIPO credits: the tokens that runs of the countdown miniature kept, by place; a page with a picture.

    python launch/credit.py --run=DIR [--run=DIR ...] --out=docs/credit

writes docs/credit.md, .png and .json. Runs must have log.samples > 0 and algorithm.name=fipo.
Exit codes: 0, 2 (a mistake, in one line).
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import interpreter  # noqa: F401, I001 - first: it may end the program

from fipo_jax.sweeps import credit


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(description="Writes what Future-KL credits, by kind of token.", allow_abbrev=False)
  parser.add_argument("--run", action="append", required=True, help="a run's folder; several are drawn together")
  parser.add_argument("--out", required=True, help="the page without its ending")
  options = parser.parse_args(argv)
  try:
    for path in credit.write_page(options.run, pathlib.Path(options.out)):
      print(path)
  except (ValueError, OSError) as e:
    if os.environ.get("FIPO_TRACEBACK"):
      raise
    print("error: " + " ".join(str(e).split()), file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
