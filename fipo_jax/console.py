"""Lines on the terminal: what the run is, and that a long phase goes on. Only process 0 speaks."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from fipo_jax import paths, processes, stalls

GOES_ON_S = (5.0, 60.0)  # of a phase until it is said that it goes on, the last one again and again, ten times as long

_sink: Callable[[str], None] | None = None  # where lines go while bars are shown
_phases: list[str] = []  # those under way, the innermost last
_quiet = False  # while bars say how far a phase is


def say(text: str) -> None:
  """Prints a line, above the bars if there are any."""
  if processes.is_first():
    (_sink or _print)(text)


def _print(text: str) -> None:
  print(text, flush=True)


paths.say = say


@contextlib.contextmanager
def lines_to(sink: Callable[[str], None], *, quiet: bool) -> Iterator[None]:
  """Meanwhile lines go to `sink`; quiet: phases need not say that they go on."""
  global _sink, _quiet
  before = _sink, _quiet
  _sink, _quiet = sink, quiet
  try:
    yield
  finally:
    _sink, _quiet = before


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
  """Says of what lasts longer than a few seconds that it goes on; of phases within one another the innermost does."""
  with stalls.phase(name), _said(name):
    yield


@contextlib.contextmanager
def _said(name: str) -> Iterator[None]:
  if not processes.is_first():
    yield
    return
  over = threading.Event()
  # A thread per phase: phases are few and long, and a sleeping thread costs nothing.
  watcher = threading.Thread(target=_watch, args=(name, over, time.monotonic()), daemon=True)
  _phases.append(name)
  watcher.start()
  try:
    yield
  finally:
    over.set()
    _phases.remove(name)


def _watch(name: str, over: threading.Event, start: float) -> None:
  moments, last = iter(GOES_ON_S), GOES_ON_S[-1]
  at = next(moments)
  while not over.wait(max(start + at - time.monotonic(), 0)):
    if not _quiet and _phases and _phases[-1] == name:
      say(f"{name}: goes on, {time.monotonic() - start:.0f} s so far")
    at = next(moments, None) or at + 10 * last
