"""A trace of some iterations, for xprof: what host and devices did, under the names of the stages.

    workdir/profile/plugins/profile/TIME/HOST.xplane.pb        xprof --logdir=WORKDIR/profile

Programs carry the names of the stages that they belong to (`jax.named_scope`); phases of the host are those of
`metrics.Timers`, and one step of the trace is one iteration of the run.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence

import jax

from fipo_jax import console, paths, processes


def iterations(steps: Sequence[int], profiled: Collection[int], workdir) -> Iterator[int]:
  """The steps, those of `profiled` within a trace, neighbours in one. Process 0 writes it: all devices do the same."""
  never = sorted(set(profiled) - set(steps))
  if never and steps:
    console.say(f"log.profile_steps: no trace of {_listed(never)}; this start goes from {steps[0]} to {steps[-1]}")
  session = None
  try:
    for step in steps:
      if step in profiled and session is None and processes.is_first():
        session = _Session(paths.of(workdir) / "profile", step)
      with jax.profiler.StepTraceAnnotation("iteration", step_num=step):
        yield step
      if session and step + 1 not in profiled:
        session, done = None, session
        done.stop(step)
  finally:
    if session:  # what ended the run within an iteration
      session.stop(step)


class _Session:
  """One trace, from the making of this object to `stop`."""

  def __init__(self, folder, step: int):
    self.folder, self.step, self.on = folder, step, False
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # every call of the interpreter would be an event: minutes of them
    self.scratch = tempfile.mkdtemp(prefix="fipo_jax_trace_") if paths.is_remote(folder) else None
    try:
      jax.profiler.start_trace(self.scratch or str(folder), profiler_options=options)
      self.on = True
    except RuntimeError as error:  # somebody else's is under way in this process
      console.say(f"no trace of iteration {step}: {error}")

  def stop(self, last: int) -> None:
    """Ends the trace, and says where it is. One that cannot be written ends no run."""
    if not self.on:
      return
    try:
      jax.profiler.stop_trace()
      if self.scratch:  # XLA writes to local folders
        _copy(paths.of(self.scratch), self.folder)
    except (RuntimeError, OSError, ValueError) as error:
      console.say(f"the trace of iterations {self.step} to {last} cannot be written to {self.folder}: {error}")
      return
    finally:
      if self.scratch:
        shutil.rmtree(self.scratch, ignore_errors=True)
    console.say(
      f"a trace of iteration{'s' if last > self.step else ''} {_listed(range(self.step, last + 1))}: "
      f"`pip install xprof`, then `xprof --logdir={self.folder}`"
    )


def _copy(source, target) -> None:
  for name in paths.names(source):
    (_copy if paths.is_folder(source / name) else paths.copy)(source / name, target / name)


def _listed(steps: Sequence[int]) -> str:
  steps = list(steps)
  return ", ".join(map(str, steps)) if len(steps) < 4 else f"{steps[0]}, {steps[1]}, ... {steps[-1]}"
