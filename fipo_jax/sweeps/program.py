"""What is done with the jobs of a sweep: listed, printed for a scheduler, run; and the figures of what is finished."""

from __future__ import annotations

import pathlib
import sys

from fipo_jax.sweeps import plan, runs


def show(jobs: list[plan.Job]) -> None:
  """A line for each run, and whether it is finished."""
  for job in jobs:
    print(f"{job.name}: {'finished' if runs.finished(job) else 'to run'}, {job.workdir}")


def emit(sweep: plan.Sweep, jobs: list[plan.Job]) -> None:
  """Prints the lines that a scheduler runs, and to standard error what whoever starts them must know."""
  bases, rest = plan.base_jobs(jobs), [job for job in jobs if not runs.finished(job)]
  for line in runs.commands(bases + rest):
    print(line)
  said = f"{sweep.name}: {len(rest)} of {len(jobs)} runs to do, {len(jobs) - len(rest)} finished and left out"
  if bases:
    lines = "first line makes a base model" if len(bases) == 1 else f"first {len(bases)} lines make base models"
    said += f"; the {lines}, to be there before the others start"
  print(f"{said}. Run them from this folder; then the same command without --emit writes the figures.", file=sys.stderr)


def execute(sweep: plan.Sweep, jobs: list[plan.Job], *, slots: int) -> int:
  """Runs what is not finished; returns how many failed."""
  print(f"{sweep.name}: {len(sweep.arms)} arms x {len(sweep.seeds)} seeds, {slots} at a time", flush=True)
  # A base model first, alone: two runs that both find it missing would both make it.
  return runs.execute(plan.base_jobs(jobs), slots=1) or runs.execute(jobs, slots=slots)


def write_figures(sweep: plan.Sweep, jobs: list[plan.Job], folder: pathlib.Path) -> None:
  """Writes the figures of what is finished, and says where."""
  from fipo_jax.sweeps import figures  # scipy is slow to import: mistakes in flags are told before

  for path in figures.write_report(sweep, jobs, folder):
    print(path)
