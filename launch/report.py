"""A run as one page: python launch/report.py --run=RUN [--run=RUN ...] [--out=PATH] [--watch]

Writes report.html into the run's folder, or to PATH (a folder, or a file that ends in .html). Several runs are laid
over each other, those that differ by their seed alone as one band; a replay's folder shows its tokens. --watch writes
the page again as the runs go on; it then loads itself. It reads disks and buckets, changes no run and needs no device.

Exit codes: 0 done; 1 an error on the way, such as a full disk; 2 a mistake.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import interpreter  # noqa: F401, I001 - first: it may end the program

from absl import app, flags

from fipo_jax import command_line, commands
from fipo_jax.report import tokens, write

_RUN = flags.DEFINE_multi_string("run", [], "A run's folder; again for another.")
_OUT = flags.DEFINE_string("out", None, "Where the page is written: a folder, or a file that ends in .html.")
_WATCH = flags.DEFINE_bool("watch", False, "Write the page again as the runs go on.")
_SAMPLES_MB = flags.DEFINE_float("samples_mb", tokens.MOST_MB, "10^6 bytes of responses in the page at most.")


def main(argv) -> None:
  if len(argv) > 1:
    command_line.fail(f"unexpected argument {argv[1]!r}: a run is named by --run={argv[1]}.")
  commands.alone(run)


def run() -> None:
  make = write.watch if _WATCH.value else write.report
  print(make(_RUN.value, _OUT.value, samples_mb=_SAMPLES_MB.value))


if __name__ == "__main__":
  app.run(main, flags_parser=command_line.plain)
