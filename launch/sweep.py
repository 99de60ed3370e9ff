"""Compares settings over seeds, each run a process of its own. What is compared comes from one of three places:

    python launch/sweep.py --sweep=experiments/sweeps/quickstart_objectives.py
    python launch/sweep.py --config=experiments/quickstart.py --axis="algorithm.half_life_tokens=8|32|128" --seeds=5
    python launch/sweep.py --config=experiments/quickstart_half_life.py    where that file defines get_hyper(hyper)

A sweep file names an experiment, its arms (each a few overrides of the config), the seeds and the arm that the others
are compared with; see experiments/sweeps/. Several --axis make every combination of their values, with --zip the first
ones, the second ones, and so on. A run writes to runs/sweeps/<sweep>/<arm>/seed<seed>, what it says to output.txt
there. Started again, the same command goes on, also with a value or a seed more: what is finished is skipped, what was
interrupted resumes. <out>/<sweep>.json and .md hold the figures.

--emit=commands runs nothing and prints a shell line for each run that is not finished; when those have ended, the same
command without it writes the figures. Exit codes: 0, 1 (a run failed, or it was stopped), 2 (a mistake that was found
before anything ran).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import interpreter  # noqa: F401, I001 - first: it may end the program

from fipo_jax.sweeps import plan, program

OF_A_CONFIG = ("axis", "zip", "seeds", "baseline", "name")


class Parser(argparse.ArgumentParser):
  def error(self, message: str):
    raise ValueError(message)


def parser() -> Parser:
  found = Parser(
    description="Runs the arms of a sweep over its seeds. --config.FIELD=VALUE sets a field of every run.",
    allow_abbrev=False,
  )
  where = found.add_mutually_exclusive_group()
  where.add_argument("--sweep", help="a sweep file")
  where.add_argument("--config", help="an experiment file, with --axis or a get_hyper(hyper) of its own")
  axis = '"FIELD=VALUE|VALUE", once for each field to vary; a value with | in it needs a sweep file'
  found.add_argument("--axis", action="append", default=[], help=axis)
  found.add_argument("--zip", action="store_true", help="pair the values of all --axis instead of combining them")
  found.add_argument("--seeds", help='how many, from 0 on, or which: "3|5|7"; default 1')
  found.add_argument("--baseline", help="the arm that the others are compared with; default the first")
  found.add_argument("--name", help="of the sweep's folder and figures; default from the file's and the fields' names")
  found.add_argument("--jobs", type=int, default=1, help="runs at a time, sharing the CPUs; 1 on an accelerator")
  found.add_argument("--out", default="experiments/results", help="folder of the figures")
  instead = found.add_mutually_exclusive_group()
  instead.add_argument("--list", action="store_true", help="only say which runs there are, and which are finished")
  instead.add_argument("--report_only", action="store_true", help="only write the figures of what is finished")
  instead.add_argument("--emit", choices=["commands"], help="only print a shell line for each run to do")
  return found


def read(options: argparse.Namespace, more: list[str]) -> plan.Sweep:
  """The sweep that the flags describe. Raises ValueError for a mistake in them or in what they name."""
  extra = plan.overrides_of(more)
  if options.jobs < 1:
    raise ValueError(f"--jobs={options.jobs}: must be at least 1.")
  if options.config:
    return plan.from_config(
      options.config, options.axis, extra, zipped=options.zip,
      seeds="1" if options.seeds is None else options.seeds, baseline=options.baseline,
      name=options.name,
    )  # fmt: skip
  if given := [name for name in OF_A_CONFIG if getattr(options, name) not in (None, False, [])]:
    raise ValueError(f"--{given[0]}: goes with --config=FILE; a sweep file has rows of its own for that.")
  if not options.sweep:
    raise ValueError("give --sweep=FILE, or --config=FILE with --axis.")
  return plan.read_sweep(options.sweep, extra)


def main(argv: list[str]) -> int:
  started = False
  try:
    options, more = parser().parse_known_args(argv)
    with contextlib.redirect_stdout(sys.stderr):  # a config is a program, and may print
      sweep = read(options, more)
      jobs = plan.make_jobs(sweep)
    if options.emit or options.list:
      program.emit(sweep, jobs) if options.emit else program.show(jobs)
      return 0
    started = True
    failed = 0 if options.report_only else program.execute(sweep, jobs, slots=options.jobs)
    program.write_figures(sweep, jobs, pathlib.Path(options.out))
    return 1 if failed else 0
  except (ValueError, OSError) as e:
    if os.environ.get("FIPO_TRACEBACK"):
      raise
    print("error: " + " ".join(str(e).split()), file=sys.stderr)
    return 1 if started else 2


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
