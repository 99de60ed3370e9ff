"""A job written down for one of TARGETS, and given to its scheduler where that is asked for."""

from __future__ import annotations

import pathlib
import subprocess

from fipo_jax.pods.jobs import job


def write(
  cfg, experiment: str, overrides: tuple[str, ...], options: job.Options, *, name: str, target, out: str | None,
  submit: bool,
) -> bool:  # fmt: skip
  """Checks, renders, prints or writes, and submits if told to; False if the scheduler's command failed.

  experiment, overrides: as the command line of the run has them. target: the row of TARGETS with that name.
  Raises: ValueError for what cannot work there.
  """
  if submit and not (out and target.submit):
    raise ValueError(f"--submit: needs --out=FILE and a target that takes files, not {name}.")
  job.check_read(options, name, target)
  made = job.make_job(cfg, experiment, overrides, options, on_pod=target.on_pod)
  text = target.render(made)
  if not out:
    print(text, end="")
    return True
  pathlib.Path(out).write_text(text)
  for note in made.notes:
    print(f"note: {note}")
  print(f"{out}: {made.name}, {made.hosts * made.slices} processes; grace {made.grace_s} s ({made.grace_why})")
  command = [*target.submit, out]
  if not submit:
    print(f"nothing was started; with --submit: {' '.join(command)}" if target.submit else "nothing was started")
    return True
  print(f"submitting: {' '.join(command)}", flush=True)
  return not subprocess.run(command).returncode
