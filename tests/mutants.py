"""Does the suite notice a fault? Small mutations of the source, one at a time, and the tests that should fail.

    python tests/mutants.py [--only=SUBSTRING] [--list] [--out=TABLE.md] [--jobs=1]

A copy of the project is made once, in a temporary folder. The tests that rows name must pass there as it is. Then each
row replaces one piece of one file, runs its tests until the first failure, and puts the file back. A mutant is noticed
when a test fails: not when tests cannot be collected, a fixture raises, the process dies or time runs out; those are
told apart. Exit code 1 when a mutant is not noticed, the tests fail without one, or a row's text is not found exactly
once: rows rot loudly. The rows are in the files mutants_*.py.

Tests run in forks of this process, which has imported what they import from others, and share one cache of compiled
programs: imports and compiling are most of their time. A program is found by its text, so a mutated one is compiled.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import importlib
import itertools
import json
import math
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time
import warnings
from typing import NamedTuple

import mutants_algorithms
import mutants_bazel
import mutants_doors
import mutants_evaluation
import mutants_gpu
import mutants_gs
import mutants_long_chain
import mutants_models
import mutants_pods
import mutants_replays
import mutants_report
import mutants_rewards
import mutants_runs
import mutants_sight
import mutants_training
import mutants_words
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "runs", "bazel-*")  # of the copy
LIMIT_S = 600.0  # of one mutant's tests
PRELOADED = (
  "flax.nnx", "grain", "jax.experimental.pallas", "jinja2", "matplotlib.figure", "ml_collections", "optax",
  "orbax.checkpoint", "rich.progress", "safetensors.numpy", "tokenizers",
)  # fmt: skip


class Mutant(NamedTuple):
  """A small fault.

  name: unique. old: occurs once in file, and `new` takes its place. tests: those that should notice, files or
  files::functions of the tests folder, separated by blanks. why: what would go wrong in a run.
  """

  name: str
  file: str
  old: str
  new: str
  tests: str
  why: str


def rotten(mutant: Mutant, root: pathlib.Path = ROOT) -> str:
  """What is wrong with a row, "" if nothing: its text must occur once, and be replaced by another that compiles
  (of Python, and of BUILD, which reads as Python)."""
  path = root / mutant.file
  count = path.read_text().count(mutant.old) if path.is_file() else 0
  if count != 1:
    return f"{mutant.file} has its text {count} times"
  if mutant.old == mutant.new:
    return "it changes nothing"
  if mutant.file.endswith(".md") or mutant.file == "Makefile":
    return ""  # no Python
  try:
    if path.suffix == ".py":  # scripts and styles of the report are tried by a browser alone
      compile(mutated(mutant, root), mutant.file, "exec")
  except SyntaxError as error:
    return f"it does not compile: {error}"
  return ""


def mutated(mutant: Mutant, root: pathlib.Path = ROOT) -> str:
  """The file with the mutation."""
  return (root / mutant.file).read_text().replace(mutant.old, mutant.new)


class Result(NamedTuple):
  """code: of pytest, None if it was cut off or died. failed, broken: tests, and fixtures or files. cpu_s: user and
  system, of the tests and of the processes that they started."""

  code: int | None
  failed: list[str]
  broken: list[str]
  cpu_s: float
  said: str

  def verdict(self) -> str:
    if self.code == 1 and self.failed:
      return "noticed"
    if self.code == 0:
      return "SURVIVED"
    if self.code is None:
      return f"NO VERDICT: {self.said}"
    return f"NO VERDICT: pytest ended with {self.code}" + (f", {self.broken[0]} is broken" if self.broken else "")


class Workshop:
  """A copy of the project in which one process at a time runs tests."""

  _seconds = itertools.count(1)

  def __init__(self, folder: pathlib.Path):
    self.folder, self.scratch, self.kept = (folder / name for name in ("project", "scratch", "kept"))
    shutil.copytree(ROOT, self.folder, ignore=LEFT_OUT)
    compileall.compile_dir(self.folder, quiet=1)
    self.pid = None

  def start(self, row: Mutant | None, tests: list[str]) -> None:
    """Mutates, and starts the tests, until the first failure; without a mutant all of them, however long it takes."""
    self.row, self.limit_s = row, LIMIT_S if row else math.inf
    if row:
      path, second = self.folder / row.file, next(self._seconds)
      shutil.copy2(path, self.kept)
      path.write_text(mutated(row, self.folder))
      os.utime(path, (second, second))  # compiled code is taken for that of a file of the same second and size
    shutil.rmtree(self.scratch, ignore_errors=True)
    self.scratch.mkdir()
    self.began = time.monotonic()
    options = ["-q", "--tb=short", "-p", "no:cacheprovider", f"--basetemp={self.scratch}/files"]
    options += ["-x"] if row else []
    sys.stdout.flush()
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # JAX is imported, but has no device yet and no threads of its own
      self.pid = os.fork()
    if not self.pid:
      self._run([*options, *(f"tests/{test}" for test in tests)])

  def _run(self, arguments: list[str]):
    """The child."""
    code = 70
    try:
      os.setsid()
      signal.signal(signal.SIGTERM, signal.SIG_DFL)
      log = os.open(self.scratch / "log", os.O_CREAT | os.O_WRONLY)
      os.dup2(log, 1), os.dup2(log, 2)
      os.chdir(self.folder)
      sys.path.pop(0)  # of this script
      sys.dont_write_bytecode = True
      os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
      record = _Record()
      code = int(pytest.main(arguments, plugins=[record]))
      (self.scratch / "result").write_text(json.dumps([code, record.failed, record.broken]))
    finally:
      sys.stdout.flush(), sys.stderr.flush()
      os._exit(code)

  def done(self) -> Result | None:
    """The result and the file put back, if the tests have ended or their time has."""
    pid, _, used = os.wait4(self.pid, os.WNOHANG)
    late = time.monotonic() - self.began > self.limit_s
    if not pid and not late:
      return None
    self._kill()
    if not pid:
      _, _, used = os.wait4(self.pid, 0)
    self.pid = None
    if self.row:
      shutil.copy2(self.kept, self.folder / self.row.file)
    found = self.scratch / "result"
    code, failed, broken = json.loads(found.read_text()) if found.exists() else (None, [], [])
    said = f"not done in {LIMIT_S:g} s" if late else "the process died"
    return Result(code, failed, broken, used.ru_utime + used.ru_stime, said)


  def _kill(self) -> None:
    """Ends the tests, and what they have left running."""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self.pid, signal.SIGKILL)

  def close(self) -> None:
    """To be called at the end, whatever it is: the tests are in a session of their own."""
    if self.pid:
      self._kill()


class _Record:
  """A pytest plugin that keeps what failed."""

  def __init__(self):
    self.failed, self.broken = [], []

  def pytest_runtest_logreport(self, report):
    if report.failed:
      (self.failed if report.when == "call" else self.broken).append(report.nodeid.removeprefix("tests/"))

  def pytest_collectreport(self, report):
    if report.failed:
      self.broken.append(report.nodeid)


def union(mutants) -> list[str]:
  """All tests that the rows name, each once."""
  named = dict.fromkeys(test for mutant in mutants for test in mutant.tests.split())
  return [test for test in named if test == test.split("::")[0] or test.split("::")[0] not in named]


def run_all(mutants, jobs: int, folder: pathlib.Path) -> tuple[Result, list[tuple[Mutant, Result]]]:
  """The result of the tests without a mutant, and if they pass those of all mutants."""
  with contextlib.ExitStack() as stack:
    shops = [stack.enter_context(contextlib.closing(Workshop(folder / str(i)))) for i in range(jobs)]
    return _run_in(shops, mutants)


def _run_in(shops: list[Workshop], mutants) -> tuple[Result, list[tuple[Mutant, Result]]]:
  shops[0].start(None, union(mutants))
  while (green := shops[0].done()) is None:
    time.sleep(0.1)
  if green.code != 0:
    print((shops[0].scratch / "log").read_text()[-5000:])
    return green, []
  print(f"without a mutant all pass, {green.cpu_s:.0f} CPU seconds", flush=True)
  results, waiting, busy = {}, list(mutants), []
  while waiting or busy:
    while waiting and (free := [shop for shop in shops if shop not in busy]):
      row = waiting.pop(0)
      free[0].start(row, row.tests.split())
      busy.append(free[0])
    for shop in list(busy):
      if (result := shop.done()) is not None:
        busy.remove(shop)
        results[shop.row.name] = result
        print(*cells(shop.row, result)[:3], sep="  ", flush=True)
    time.sleep(0.02)
  return green, [(mutant, results[mutant.name]) for mutant in mutants]


def cells(mutant: Mutant, result: Result) -> list[str]:
  by = result.failed[0] if result.failed else ""
  return [mutant.name, result.verdict(), f"{result.cpu_s:.1f}", by, mutant.why]


def table(rows: list[tuple[Mutant, Result]], green: Result) -> str:
  """As Markdown."""
  missed = [mutant.name for mutant, result in rows if result.verdict() != "noticed"]
  total = green.cpu_s + sum(result.cpu_s for _, result in rows)
  lines = [
    f"{len(rows)} mutants, {len(missed)} not noticed{': ' + ', '.join(missed) if missed else ''}. {total / 60:.1f} CPU "
    f"minutes, {green.cpu_s / 60:.1f} of them without a mutant.", "",
    "| mutant | verdict | CPU s | noticed by | what would go wrong |", "|---|---|---|---|---|",
  ]  # fmt: skip
  lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells(*row)) + " |" for row in rows]
  return "\n".join(lines) + "\n"


def main(arguments=None) -> int:
  parser = argparse.ArgumentParser(description="Applies small mutations of the source; says which the tests notice.")
  parser.add_argument("--only", default="", help="rows with this in their name or file")
  parser.add_argument("--list", action="store_true", help="name the rows and run nothing")
  parser.add_argument("--out", help="file to write the table to, in Markdown")
  parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
  options = parser.parse_args(arguments)
  mutants = [m for m in MUTANTS if options.only in m.name or options.only in m.file]
  if options.list:
    print(*(f"{m.name}  {m.file}  {m.tests}" for m in mutants), sep="\n")
    return 0
  if not mutants:
    print(f"--only={options.only}: no row has this in its name or file")
    return 1
  if bad := [f"{m.name}: {reason}" for m in mutants if (reason := rotten(m))]:
    print(*bad, sep="\n")
    return 1
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # tidies up, as Ctrl-C does
  with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as folder:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # JAX reads these when it is imported
    os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/programs"
    os.environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    for name in PRELOADED:
      importlib.import_module(name)
    green, rows = run_all(mutants, options.jobs, pathlib.Path(folder))
  if green.code != 0:
    print(f"the tests do not pass without a mutant: {', '.join(green.failed + green.broken) or green.verdict()}")
    return 1
  text = table(rows, green)
  print(f"\n{text}")
  if options.out:
    pathlib.Path(options.out).write_text(text)
  return int(any(result.verdict() != "noticed" for _, result in rows))


MUTANTS = tuple(
  Mutant(*row)
  for table in (
    mutants_algorithms, mutants_bazel, mutants_doors, mutants_evaluation, mutants_gpu, mutants_gs, mutants_long_chain,
    mutants_training, mutants_models,
    mutants_pods, mutants_replays, mutants_report, mutants_rewards, mutants_runs, mutants_sight, mutants_words,
  )
  for row in table.ROWS
)


if __name__ == "__main__":
  sys.exit(main())
