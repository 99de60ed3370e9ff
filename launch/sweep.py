"""Compares settings over seeds: python launch/sweep.py --sweep=experiments/sweeps/quickstart_objectives.py [--jobs=2]

A sweep file names an experiment, its arms (each a few overrides of the config), the seeds and the arm that the others
are compared with; see experiments/sweeps/. Every arm and seed is a process of its own, in
runs/sweeps/<sweep>/<arm>/seed<seed>, with what it says in output.txt there. Started again, the same command goes on:
what is finished is skipped, what was interrupted resumes. <out>/<sweep>.json and .md hold the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import queue
import re
import runpy
import shlex
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import ml_collections
from absl import flags
from ml_collections import config_flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Rows of a sweep file; COMMON alone may be left out.
FIELDS = ("EXPERIMENT", "SEEDS", "ARMS", "BASELINE", "COMMON")
OWN = ("seed", "workdir")  # fields that the sweep itself sets
USER_ERRORS = (AttributeError, ImportError, KeyError, NameError, SyntaxError, TypeError, ValueError, OSError)
# 97.5% quantiles of Student's t for 1 to 30 degrees of freedom; beyond that the last one, which is a little wide.
T_975 = (
  12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
  2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclasses.dataclass
class Sweep:
  """A checked sweep file. common: overrides of all arms, field -> text of its flag. arms: name -> its own ones."""

  name: str
  experiment: str
  seeds: tuple[int, ...]
  common: dict[str, str]
  arms: dict[str, dict[str, str]]
  baseline: str


@dataclasses.dataclass
class Job:
  """A process to run: its name in messages, its flags, its config. seed: -1 for a base model."""

  arm: str
  seed: int
  flags: list[str]
  cfg: ml_collections.ConfigDict

  @property
  def name(self) -> str:
    return f"{self.arm} seed {self.seed}" if self.seed >= 0 else self.arm

  @property
  def workdir(self) -> pathlib.Path:
    return pathlib.Path(self.cfg.workdir)

  @property
  def command(self) -> list[str]:
    return [sys.executable, str(ROOT / "launch/run.py"), *self.flags]


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    description="Runs the arms of a sweep file over its seeds. --config.FIELD=VALUE sets a field of every run.",
    allow_abbrev=False,
  )
  parser.add_argument("--sweep", required=True, help="a sweep file")
  parser.add_argument("--jobs", type=int, default=1, help="runs at a time, sharing the CPUs; 1 on an accelerator")
  parser.add_argument("--out", default="experiments/results", help="folder of the figures")
  parser.add_argument("--list", action="store_true", help="only say which runs there are, and which are finished")
  parser.add_argument("--report_only", action="store_true", help="only write the figures of what is finished")
  options, more = parser.parse_known_args(argv)
  try:
    if options.jobs < 1:
      raise ValueError(f"--jobs={options.jobs}: must be at least 1.")
    sweep = read_sweep(options.sweep, overrides_of(more))
    jobs = make_jobs(sweep)
    failed = 0
    if options.list:
      for job in jobs:
        print(f"{job.name}: {'finished' if finished(job) else 'to run'}, {job.workdir}")
      return 0
    if not options.report_only:
      print(f"{sweep.name}: {len(sweep.arms)} arms x {len(sweep.seeds)} seeds, {options.jobs} at a time", flush=True)
      # A base model first, alone: two runs that both find it missing would both make it.
      failed = execute(base_jobs(jobs), slots=1) or execute(jobs, slots=options.jobs)
    for path in write_report(sweep, jobs, pathlib.Path(options.out)):
      print(path)
    return 1 if failed else 0
  except (ValueError, OSError) as e:
    if os.environ.get("FIPO_TRACEBACK"):
      raise
    print("error: " + " ".join(str(e).split()), file=sys.stderr)
    return 1


# The sweep file


def overrides_of(arguments: list[str]) -> dict[str, str]:
  """--config.FIELD=VALUE arguments as field -> value."""
  found = {}
  for argument in arguments:
    match = re.fullmatch(r"--config\.([\w.]+)=(.*)", argument, re.DOTALL)
    if not match:
      raise ValueError(f"unexpected argument {argument!r}: fields are given as --config.FIELD=VALUE.")
    found[match[1]] = match[2]
  return found


def read_sweep(path: str, extra: dict[str, str]) -> Sweep:
  """The sweep of a file with overrides for all runs added; everything that can be wrong with its form is refused."""
  if not os.path.isfile(path):
    raise ValueError(f"--sweep={path!r}: no such file.")
  try:
    rows = {k: v for k, v in runpy.run_path(path).items() if k.isupper() and not k.startswith("_")}
  except USER_ERRORS as e:
    raise ValueError(f"{path}: {type(e).__name__}: {e}") from e
  for name in rows:
    if name not in FIELDS:
      raise ValueError(f"{path}: {name}: not a row of a sweep file; expected {', '.join(FIELDS)}.")
  for name in FIELDS[:4]:
    if name not in rows:
      raise ValueError(f"{path}: {name} is missing.")
  experiment, seeds, arms, baseline = (rows[name] for name in FIELDS[:4])
  common = rows.get("COMMON", {})
  if not isinstance(experiment, str) or not os.path.isfile(experiment):
    raise ValueError(f"{path}: EXPERIMENT={experiment!r}: no such file.")
  if not isinstance(seeds, tuple | list | range) or not seeds or len(set(seeds)) < len(seeds):
    raise ValueError(f"{path}: SEEDS={seeds!r}: expected at least one seed, each once, such as (0, 1, 2).")
  for seed in seeds:
    if type(seed) is not int or seed < 0:
      raise ValueError(f"{path}: SEEDS={seeds!r}: {seed!r} is no seed; expected integers from 0 on.")
  if not isinstance(arms, dict) or not arms:
    raise ValueError(f"{path}: ARMS={arms!r}: expected at least one arm, as name: overrides.")
  if baseline not in arms:
    raise ValueError(f"{path}: BASELINE={baseline!r}: expected one of the arms {', '.join(map(repr, arms))}.")
  for arm, overrides in {"COMMON": common, **arms}.items():
    if not isinstance(arm, str) or not re.fullmatch(r"[\w+-][\w.+-]*", arm):
      raise ValueError(f"{path}: ARMS: {arm!r} names a folder; use letters, digits and . _ + -.")
    if not isinstance(overrides, dict):
      raise ValueError(f"{path}: {arm}={overrides!r}: expected overrides as field: value.")
    for field in overrides:
      if field in OWN:
        raise ValueError(f"{path}: {arm}: {field} is set by the sweep; leave it out.")
  for field in extra:
    if field in OWN:
      raise ValueError(f"--config.{field}: set by the sweep; leave it out.")
    if own := [arm for arm, overrides in arms.items() if field in overrides]:
      raise ValueError(f"--config.{field}: arm {own[0]!r} has its own value; change the sweep file instead.")
  return Sweep(
    pathlib.Path(path).stem, experiment, tuple(seeds), {**texts(common), **extra},
    {arm: texts(overrides) for arm, overrides in arms.items()}, baseline,
  )  # fmt: skip


def texts(overrides: dict[str, Any]) -> dict[str, str]:
  """Values as the config's flags read them: strings bare, everything else as Python writes it."""
  return {field: value if isinstance(value, str) else repr(value) for field, value in overrides.items()}


def make_jobs(sweep: Sweep) -> list[Job]:
  """All runs, a whole seed before the next so that a stopped sweep is balanced; every config is validated."""
  known = fields_of(parsed([f"--config={sweep.experiment}"]).to_dict())
  for arm, overrides in sweep.arms.items():
    for field in (sweep.common | overrides).keys() - known:
      near = difflib.get_close_matches(field, known, n=1)
      raise ValueError(f"arm {arm!r}: {field}: no such field of the config" + (f"; {near[0]}?" if near else "."))
  jobs = []
  for seed in sweep.seeds:
    for arm, overrides in sweep.arms.items():
      workdir = pathlib.Path("runs/sweeps") / sweep.name / arm / f"seed{seed}"
      values = {**sweep.common, **overrides, "seed": str(seed), "workdir": str(workdir)}
      arguments = [f"--config={sweep.experiment}", *(f"--config.{k}={v}" for k, v in values.items())]
      try:
        jobs.append(Job(arm, seed, arguments, checked(arguments)))
      except (*USER_ERRORS, flags.Error) as e:
        raise ValueError(f"arm {arm!r}: {e.args[0] if e.args else e}") from e
  return jobs


def fields_of(section: dict[str, Any], prefix: str = "") -> set[str]:
  """Dotted names of all values in nested dicts."""
  names = set()
  for key, value in section.items():
    names |= fields_of(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}"}
  return names


def parsed(arguments: list[str]) -> ml_collections.ConfigDict:
  """The config that launch/run.py makes of these flags, by the same parser."""
  values, argv = flags.FlagValues(), ["run.py", *arguments]
  holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
  values(argv)
  return holder.value


def checked(arguments: list[str]) -> ml_collections.ConfigDict:
  """The config of these flags, validated as far as no model is needed."""
  # jax is slow to import: mistakes in the sweep file are told before.
  from fipo_jax import assemble, config

  cfg = parsed(arguments)
  config.validate(cfg)
  assemble.check_tables(cfg)
  if not cfg.eval.every:
    raise ValueError("eval.every=0: a sweep compares evaluations; use a number of iterations.")
  return cfg


def base_jobs(jobs: list[Job]) -> list[Job]:
  """A run for each base model that an experiment names and that is not there yet.

  Raises ValueError, as the runs themselves would, for one that is there but was made by another config.
  """
  from fipo_jax import assemble

  bases = {(job.cfg.model.base_experiment, pathlib.Path(job.cfg.model.path)) for job in jobs}
  missing = []
  for experiment, folder in sorted(bases):
    if experiment and folder.name == "export":
      arguments = [f"--config={experiment}", f"--config.workdir={folder.parent}"]
      job = Job("base model", -1, arguments, parsed(arguments))
      if (folder / "config.json").exists():
        assemble.claim_workdir(job.cfg)
      else:
        missing.append(job)
  return missing


# Running


def execute(jobs: list[Job], *, slots: int) -> int:
  """Runs the jobs that are not finished, `slots` at a time, with a line for each; returns how many failed."""
  waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
  for job in jobs:
    if job.seed >= 0 and finished(job):
      print(f"{job.name}: {describe(result_of(job))} (was finished)", flush=True)
    else:
      waiting.put(job)
  slots = min(slots, waiting.qsize())
  running: set[subprocess.Popen] = set()
  stopped, failures = threading.Event(), []

  def work(slot: int) -> None:
    limit_cpus(slot, slots)
    while not stopped.is_set():
      try:
        job = waiting.get_nowait()
      except queue.Empty:
        return
      try:
        said = run_one(job, running)
      except OSError as e:
        said = f"failed: {e}"
      if stopped.is_set():
        return
      if said.startswith("failed"):
        failures.append(job)
      print(f"{job.name}: {said}", flush=True)

  with stop_signals(lambda: (stopped.set(), [process.terminate() for process in list(running)])):
    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(slots)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  if stopped.is_set():
    raise ValueError("stopped; the same command goes on from here.")
  return len(failures)


def run_one(job: Job, running: set[subprocess.Popen]) -> str:
  """Runs a job to its end; returns what is to be said of it, beginning with "failed" if it did."""
  job.workdir.mkdir(parents=True, exist_ok=True)
  (job.workdir / "versions.json").write_text(json.dumps(versions()) + "\n")
  path = job.workdir / "output.txt"
  with open(path, "ab") as output:
    output.write(f"$ {shlex.join(job.command)}\n".encode())
    output.flush()
    start = output.tell()
    process = subprocess.Popen(job.command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    running.add(process)
    code = process.wait()
    running.discard(process)
  if code:
    said = path.read_bytes()[start:].decode(errors="replace").strip().splitlines() or ["no output"]
    errors = [line for line in said if line.startswith("error: ")] or said
    why = f"signal {-code}, after: " if code < 0 else ""
    return f"failed: {why}{errors[-1]} (see {path})"
  if job.seed < 0:
    return f"made in {job.workdir}"
  if ended := result_of(job).get("ended"):
    return f"failed: ended early: {ended} (see {path})"
  if not finished(job):
    return f"failed: {job.workdir}/result.json is not of this config and steps={job.cfg.steps}; use another workdir."
  return describe(result_of(job))


def limit_cpus(slot: int, slots: int) -> None:
  """Gives the calling thread, and so the processes it starts, its share of the CPUs.

  Two runs that both spread over all cores are slower than two with half of them each.
  """
  if not hasattr(os, "sched_setaffinity"):
    return
  cpus = sorted(os.sched_getaffinity(0))
  if 1 < slots <= len(cpus):
    os.sched_setaffinity(0, cpus[slot * len(cpus) // slots : (slot + 1) * len(cpus) // slots])


@contextlib.contextmanager
def stop_signals(stop: Callable[[], Any]):
  """Calls `stop` on Ctrl-C and SIGTERM while the block runs, so that no run outlives the sweep."""
  names = (signal.SIGINT, signal.SIGTERM)
  before = [signal.signal(name, lambda *_: stop()) for name in names]
  try:
    yield
  finally:
    for name, handler in zip(names, before, strict=True):
      signal.signal(name, handler)


def finished(job: Job) -> bool:
  """Whether the job's workdir holds the result of exactly its config."""
  from fipo_jax import config

  try:
    result, old = result_of(job), json.loads((job.workdir / "config.json").read_text())
  except (OSError, ValueError):  # none yet, or a write that was cut short
    return False
  now = json.loads(job.cfg.to_json())
  same = not config.differences(old, now) and old.get("alarms") == now["alarms"]  # an alarm may change a run
  return result.get("steps") == job.cfg.steps and same


def result_of(job: Job) -> dict[str, Any]:
  return json.loads((job.workdir / "result.json").read_text())


def describe(result: dict[str, Any]) -> str:
  return (
    f"accuracy {result['accuracy_before']:.3f} -> {result['accuracy_after']:.3f}, "
    f"length {result['length_before']:.1f} -> {result['length_after']:.1f}, {result['seconds']:.0f} s"
  )


def versions() -> dict[str, Any]:
  """What the numbers of a run may depend on beside its config."""
  try:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
  except OSError:  # no git here
    commit = ""
  cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  return {
    "jax": importlib.metadata.version("jax"), "python": platform.python_version(), "cpus": cpus, "commit": commit,
  }  # fmt: skip


# Figures


def interval(values: list[float]) -> dict[str, Any]:
  """Mean of independent values with Student's 95% interval: mean ± t(n - 1) · s / √n; no interval for fewer than 2."""
  n = len(values)
  if not n:
    return {"n": 0, "mean": None, "low": None, "high": None}
  mean = statistics.fmean(values)
  if n == 1:
    return {"n": 1, "mean": mean, "low": None, "high": None}
  half = T_975[min(n - 1, len(T_975)) - 1] * statistics.stdev(values) / math.sqrt(n)
  return {"n": n, "mean": mean, "low": mean - half, "high": mean + half}


# Column title -> the figure of one run, and how it is written.
FIGURES: dict[str, tuple[Callable[[dict], float], str]] = {
  "accuracy after": (lambda r: r["accuracy_after"], ".3f"),
  "accuracy gain": (lambda r: r["accuracy_after"] - r["accuracy_before"], ".3f"),
  "length after": (lambda r: r["length_after"], ".1f"),
}
COMPARED = ("accuracy after", "length after")


def summarize(runs: dict[str, dict[int, dict]], baseline: str) -> dict[str, Any]:
  """Intervals of runs[arm][seed] (contents of result.json) per arm, and of paired differences to the baseline.

  A difference is taken seed by seed, over the seeds that both arms have.
  """
  arms = {
    arm: {title: interval([of(r) for r in by_seed.values()]) for title, (of, _) in FIGURES.items()}
    for arm, by_seed in runs.items()
  }
  differences = {}
  for arm in runs.keys() - {baseline}:
    pairs = [(r, runs[baseline][seed]) for seed, r in runs[arm].items() if seed in runs[baseline]]
    of = {title: FIGURES[title][0] for title in COMPARED}
    differences[arm] = {title: interval([f(r) - f(b) for r, b in pairs]) for title, f in of.items()}
  return {"arms": arms, "differences": {arm: differences[arm] for arm in runs if arm != baseline}}


def write_report(sweep: Sweep, jobs: list[Job], out: pathlib.Path) -> list[pathlib.Path]:
  """Writes the figures of all finished runs as JSON and as Markdown; returns the paths."""
  runs: dict[str, dict[int, dict]] = {arm: {} for arm in sweep.arms}
  missing = []
  for job in jobs:
    if finished(job):
      runs[job.arm][job.seed] = {"arm": job.arm, **result_of(job), "versions": versions_of(job)}
    else:
      missing.append(job.name)
  summary = summarize(runs, sweep.baseline)
  record = {
    "sweep": sweep.name, "experiment": sweep.experiment, "seeds": sweep.seeds, "baseline": sweep.baseline,
    "common": sweep.common, "overrides": sweep.arms, "missing": missing, "summary": summary,
    "runs": [run for by_seed in runs.values() for run in by_seed.values()],
  }  # fmt: skip
  out.mkdir(parents=True, exist_ok=True)
  paths = [out / f"{sweep.name}.json", out / f"{sweep.name}.md"]
  paths[0].write_text(json.dumps(record, indent=1) + "\n")
  paths[1].write_text(markdown(sweep, runs, summary, missing))
  return paths


def versions_of(job: Job) -> dict[str, Any]:
  path = job.workdir / "versions.json"
  return json.loads(path.read_text()) if path.exists() else {}


def markdown(sweep: Sweep, runs: dict[str, dict[int, dict]], summary: dict[str, Any], missing: list[str]) -> str:
  """The report for readers: arms, differences, which of them exclude 0, every seed."""

  def number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"

  def written(title: str, i: dict[str, Any], sign: str = "") -> str:
    form = FIGURES[title][1]
    if i["low"] is None:
      return number(i["mean"], sign + form)
    return f"{i['mean']:{sign}{form}} [{i['low']:{sign}{form}}, {i['high']:{sign}{form}}]"

  def code(overrides: dict[str, str]) -> str:
    return ", ".join(f"`{k}={v}`" for k, v in overrides.items())

  def table(header: list[str], rows: list[list[Any]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines] + [""]

  seeds = ", ".join(map(str, sweep.seeds))
  common = f" with {code(sweep.common)}" if sweep.common else ""
  lines = [f"# {sweep.name}", ""]
  lines += [f"`{sweep.experiment}`{common}; seeds {seeds}. Means with Student's 95% interval.", ""]
  if missing:
    lines += [f"Missing: {', '.join(missing)}.", ""]
  rows = []
  for arm, i in summary["arms"].items():
    rows.append([arm, code(sweep.arms[arm]), len(runs[arm]), *(written(title, i[title]) for title in FIGURES)])
  lines += table(["arm", "overrides", "n", *FIGURES], rows)

  rows, clear, count = [], [], 0
  for arm, i in summary["differences"].items():
    rows.append([arm, i[COMPARED[0]]["n"], *(written(title, i[title], "+") for title in COMPARED)])
    for title in COMPARED:
      low, high = i[title]["low"], i[title]["high"]
      count += low is not None
      if low is not None and (low > 0 or high < 0):
        clear.append(f"{title} of {arm} ({written(title, i[title], '+')})")
  if rows:
    lines += [f"## Differences to {sweep.baseline}, paired by seed", "", *table(["arm", "n", *COMPARED], rows)]
    if count:
      lines += [f"Intervals that exclude 0: {'; '.join(clear) or 'none'}."]
      lines += [f"There are {count} intervals, each of 95% by itself: not corrected for their number.", ""]

  rows = []
  for seed in sweep.seeds:
    rows.append([seed])
    for by_seed in runs.values():
      r = by_seed.get(seed)
      rows[-1].append(
        f"{r['accuracy_before']:.3f} -> {r['accuracy_after']:.3f}, {r['length_after']:.1f}" if r else "missing"
      )
  lines += ["## Every seed: accuracy before -> after, length after", "", *table(["seed", *runs], rows)]

  used = [", ".join(f"{k} {v}" for k, v in r["versions"].items() if v) for rs in runs.values() for r in rs.values()]
  if used:
    lines += [f"Made with {'; '.join(dict.fromkeys(used))}."]
  return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
