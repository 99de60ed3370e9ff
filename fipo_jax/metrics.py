"""What a run says: one JSON line a step, seconds per phase, a live display, and the closing table.

    workdir/metrics.jsonl    {"step": 12, "reward": 0.53, "eval/accuracy": 0.61, ...}
    workdir/samples.jsonl    {"step": 12, "prompt": ..., "response": ..., "weight": [...], ...}

Only process 0 writes or prints; on the others the same calls do nothing.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import json
import math
import numbers
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
import rich.console
import rich.progress
import rich.table

from fipo_jax import console, lines, paths, stalls
from fipo_jax.dashboards import Boards
from fipo_jax.types import Max, Mean, Min


def check_writable(workdir):
  """Makes the directory and writes a probe file into it: a bad one is known before work is done. Returns its path.

  Raises ValueError with the system's reason (not a directory, no permission, ...), OSError for a full disk, and for a
  bucket that does not answer.
  """
  workdir = paths.of(workdir)
  probe = workdir / f".probe-{os.getpid()}"
  try:
    paths.make_folder(workdir)
    paths.write(probe, b"x" * 4096)
    paths.delete(probe)
  except OSError as error:
    with contextlib.suppress(OSError):
      paths.delete(probe)
    raise unwritable(workdir, error) from error
  return workdir


def unwritable(workdir, error: OSError) -> ValueError | OSError:
  """What to raise for a folder that the system refuses: the mistake of a user, a full disk, a bucket that is away."""
  if isinstance(error, FileNotFoundError) and paths.is_remote(workdir):
    error = paths.explained(workdir, error)
  if isinstance(error, paths.BucketError):
    return error.about(f"workdir={workdir} cannot be written")
  reason = error.strerror or str(error)
  full = error.errno in (errno.ENOSPC, errno.EDQUOT)
  kind = OSError if full else ValueError
  remedy = "free space there, then the same command goes on" if full else "name another one, or change its permissions"
  return kind(f"workdir={workdir} cannot be written: {reason}; {remedy}.")


class JsonLines:
  """JSON records, each with its `step`, as lines of a file, or of its parts in a bucket; cut back when a run resumes.

  Opening drops the lines of steps after `resume_step`, which the resumed run will write again, and a torn last line
  left by a crash; see `lines`. With resume_step=0 no step is done yet, and nothing is kept: step 0, the evaluation
  before training, comes again.

  most_bytes: bound on all of it; a record that goes beyond it drops the oldest half of the lines first. 0 = none.

  Raises ValueError when the directory cannot be written or one of the lines that were read, but the last, is not a
  JSON record.
  """

  def __init__(self, path, resume_step: int, most_bytes: int = 0):
    self.path, self._file = paths.of(path), None
    if jax.process_index() != 0:
      return
    check_writable(self.path.parent)
    try:
      self._file = lines.grow(self.path, resume_step, most_bytes)
    except OSError as error:
      raise unwritable(self.path.parent, error) from error

  def write(self, record: Mapping, *, flush: bool = True) -> None:
    """Appends one record. Values that are not finite become null and are named under "nonfinite".

    flush: False lets it wait for the next that is not, where a line is not written by itself.
    Raises ValueError when a record has no integer step, or when the disk is full; what was written
    before stays whole.
    """
    if not isinstance(record.get("step"), numbers.Integral):
      raise ValueError(
        f"step={record.get('step')!r} in a line for {self.path.name}: must be an integer."
      )
    if self._file is None:
      return
    line = as_line(record)
    with self._writing():
      self._file.append(line)
      if flush:
        self._file.flush()

  def flush(self) -> None:
    """Writes what waits."""
    if self._file is not None:
      with self._writing():
        self._file.flush()

  def close(self) -> None:
    if self._file is not None:
      with self._writing():
        self._file.close()
      self._file = None

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      raise unwritable(self.path.parent, error) from error


def as_line(record: Mapping) -> bytes:
  """A record as a line of JSON. Values that are not finite become null and are named under "nonfinite"."""
  nonfinite: list[str] = []
  plain = {name: _plain(value, name, nonfinite) for name, value in record.items()}
  if nonfinite:
    plain["nonfinite"] = list(dict.fromkeys(nonfinite))
  return json.dumps(plain, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _plain(value, name: str, nonfinite: list[str]):
  """value as JSON knows it; a number that is not finite becomes None and its name is noted."""
  if isinstance(value, Mapping):
    return {str(k): _plain(v, f"{name}.{k}", nonfinite) for k, v in value.items()}
  if isinstance(value, (np.ndarray, np.generic, jax.Array)):
    value = np.asarray(value).tolist()
  if isinstance(value, (list, tuple)):
    return [_plain(v, name, nonfinite) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    nonfinite.append(name)
    return None
  return value


class Log:
  """The run's two files: `write` adds a line of metrics, `sample` a line of samples, written by the next `write`.

  boards: get the metrics, too.
  """

  def __init__(self, workdir, *, resume_step: int, samples_bytes: int = 0, boards: Boards | None = None):
    workdir = paths.of(workdir)
    self.boards = boards or Boards()
    self.metrics = JsonLines(workdir / "metrics.jsonl", resume_step)
    self.samples = JsonLines(workdir / "samples.jsonl", resume_step, samples_bytes)

  def write(self, step: int, metrics: Mapping) -> None:
    """time: seconds since 1970, when the line was written."""
    self.samples.flush()
    self.metrics.write({"step": step, "time": round(time.time(), 3), **metrics})
    self.boards.write(step, metrics)

  def sample(self, step: int, record: Mapping) -> None:
    self.samples.write({"step": step, **record}, flush=False)

  def flush(self) -> None:
    """Whatever was written is out of this process."""
    self.boards.flush()

  def close(self) -> None:
    self.boards.close()
    self.metrics.close()
    self.samples.close()


def finish(metrics: Mapping[str, Mean | Max | Min]) -> dict[str, float]:
  """Records -> numbers, in one transfer from the devices; NaN where nothing was counted.

  Records of arrays (one entry per mini-batch, say) give lists. Division is in float64 on the host.
  """
  host = jax.device_get(dict(metrics))
  return {name: _value(record).tolist() for name, record in host.items()}


def _value(record: Mean | Max | Min) -> np.ndarray:
  match record:
    case Mean(total, count):
      total, count = np.asarray(total, np.float64), np.asarray(count, np.float64)
      return np.where(count > 0, total / np.where(count > 0, count, 1.0), np.nan)
    case Max(peak):
      return np.where(np.isneginf(peak), np.nan, np.asarray(peak, np.float64))
    case Min(floor):
      return np.where(np.isposinf(floor), np.nan, np.asarray(floor, np.float64))
  raise TypeError(f"expected Mean, Max or Min, got {type(record).__name__}")


class Timers:
  """Wall-clock seconds by phase: `with timers("rollout"): ...`; phases entered again add up, none counts twice.

  JAX returns before the device is done: a phase must fetch or block on its result to be charged for
  it.
  """

  def __init__(self, clock=time.perf_counter):
    self._clock = clock
    self._seconds: dict[str, float] = {}
    self._since = clock()
    self._inner: list[float] = []  # of each phase that is on: seconds of phases within it, which count for themselves

  @contextlib.contextmanager
  def __call__(self, phase: str) -> Iterator[None]:
    start = self._clock()
    self._inner.append(0.0)
    try:
      with console.phase(phase), jax.profiler.TraceAnnotation(phase):
        yield
    finally:
      whole = self._clock() - start
      self._seconds[phase] = self._seconds.get(phase, 0.0) + whole - self._inner.pop()
      if self._inner:
        self._inner[-1] += whole

  def pop(self) -> dict[str, float]:
    """`seconds/<phase>` since the last call, and starts over; other: what was in no phase, step: the sum of all."""
    now = self._clock()
    whole, self._since = now - self._since, now
    seconds, self._seconds = self._seconds, {}
    seconds |= {"other": max(whole - sum(seconds.values()), 0.0), "step": whole}
    return {f"seconds/{phase}": value for phase, value in seconds.items()}


def memory() -> dict[str, float]:
  """host_memory_gb (Linux) and host_memory_peak_gb of this process; device_memory_peak_gb of its fullest device, where
  devices say. 10⁹ bytes.
  """
  unit = 1 if sys.platform == "darwin" else 1024
  found = {"host_memory_peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
  with contextlib.suppress(OSError):
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    found["host_memory_gb"] = pages * resource.getpagesize() / 1e9
  peaks = [(d.memory_stats() or {}).get("peak_bytes_in_use") for d in jax.local_devices()]
  if peaks and None not in peaks:
    found["device_memory_peak_gb"] = max(peaks) / 1e9
  return found


class Progress:
  """Where the run is: live bars on a terminal, elsewhere one plain line a step.

  with Progress("runs/quickstart", steps=100, done=20) as progress:
    bar = progress.task("rollout")
    bar(8, 64)
    progress.step(21, {"reward": 0.5, "accuracy": 0.6, "response_length": 40.0})
  """

  SHOWN = (
    ("reward", "reward", ".3f"),
    ("accuracy", "accuracy", ".3f"),
    ("length", "response_length", ".1f"),
  )

  def __init__(self, title, steps: int, done: int = 0, *, console=None, clock=time.perf_counter):
    self._title, self._steps, self._done = str(title), steps, done
    self._console = console or rich.console.Console()
    self._loud = jax.process_index() == 0
    self._clock = clock
    self._durations: collections.deque[float] = collections.deque(maxlen=20)
    self._first: float | None = None
    self._live = None
    self._bars: dict[str, rich.progress.TaskID] = {}

  def __enter__(self) -> Progress:
    self._last = self._clock()
    if self._loud and self._console.is_terminal:
      self._live = rich.progress.Progress(
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(bar_width=24),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[said]}", markup=False),
        console=self._console,
      )
      self._main = self._live.add_task(
        self._title, total=self._steps, completed=self._done, said=""
      )
      self._live.start()
    self._lines = console.lines_to(self.note, quiet=self._live is not None)
    self._lines.__enter__()
    return self

  def __exit__(self, *error) -> None:
    self._lines.__exit__(*error)
    if self._live is not None:
      self._live.stop()
      self._live = None

  def task(self, name: str) -> Callable[[int, int], None]:
    """A sub-task's bar, as a function of (done, total); gone once done reaches total."""


    def show(done: int, total: int) -> None:
      stalls.moved()
      self._show(name, done, total)

    return show

  def _show(self, name: str, done: int, total: int) -> None:
    if self._live is None:
      return
    if done >= total:
      if name in self._bars:
        self._live.remove_task(self._bars.pop(name))
      return
    if name not in self._bars:
      self._bars[name] = self._live.add_task(f"  {name}", total=total, said="")
    self._live.update(self._bars[name], completed=done, total=total)

  def step(self, step: int, metrics: Mapping) -> None:
    """Says that `step` steps are done; its time is that since the call before."""
    now = self._clock()
    seconds, self._last = now - self._last, now
    if self._first is None:
      self._first = seconds  # holds the compiles, and forecasts nothing
    else:
      self._durations.append(seconds)
    if not self._loud:
      return
    shown = [(label, metrics.get(key), form) for label, key, form in self.SHOWN]
    said = [f"{label} {value:{form}}" for label, value, form in shown if value is not None]
    for label, name in (("verifier errors", "reward_errors"), ("verifier time-outs", "reward_timeouts")):
      said += [f"{label} {metrics[name]:.0f}"] if metrics.get(name) else []
    said.append(f"{seconds:.1f} s")
    if self._durations and step < self._steps:
      typical = sum(self._durations) / len(self._durations)
      said.append(f"eta {_clock_text(typical * (self._steps - step))}")
    if self._live is not None:
      self._live.update(self._main, completed=step, said="  ".join(said))
    else:
      self.note("  ".join([f"step {step}/{self._steps}", *said]))

  def note(self, text: str) -> None:
    """Prints a line, above the bars if there are any."""
    if self._loud:
      self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _clock_text(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return (
    f"{hours}h{minutes:02d}m"
    if hours
    else f"{minutes}m{seconds:02d}s"
    if minutes
    else f"{seconds}s"
  )


def summary_table(result: Mapping, paths: Mapping[str, object], *, console=None) -> None:
  """Prints a row per `<name>_before` / `<name>_after` in result, then where the files are.

  A value that is None or NaN was not measured: "-".
  """
  if jax.process_index() != 0:
    return
  console = console or rich.console.Console()
  table = rich.table.Table("", "before", "after", "change")
  for column in table.columns[1:]:
    column.justify = "right"
  for name in [key.removesuffix("_before") for key in result if key.endswith("_before")]:
    values = [result[f"{name}_before"], result[f"{name}_after"]]
    values = [math.nan if value is None else value for value in values]
    cells = [f"{values[0]:.3f}", f"{values[1]:.3f}", f"{values[1] - values[0]:+.3f}"]
    table.add_row(name, *("-" if "nan" in cell else cell for cell in cells))
  console.print(table)
  for label, path in paths.items():
    console.print(f"{label}: {path}", markup=False, highlight=False, soft_wrap=True)
