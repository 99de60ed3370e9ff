"""The figures of a sweep: intervals over seeds, differences paired by seed; written as JSON and as Markdown."""

from __future__ import annotations

import json
import math
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

from scipy import special

from fipo_jax.sweeps.plan import Job, Sweep
from fipo_jax.sweeps.runs import finished, result_of


def t_975(df: int) -> float:
  """The value that 2.5% of Student's t distribution with `df` degrees of freedom exceed."""
  return float(special.stdtrit(df, 0.975))


def interval(values: list[float]) -> dict[str, Any]:
  """Mean of independent values with Student's 95% interval: mean ± t(n - 1) · s / √n; no interval for fewer than 2."""
  n = len(values)
  if not n:
    return {"n": 0, "mean": None, "low": None, "high": None}
  mean = statistics.fmean(values)
  if n == 1:
    return {"n": 1, "mean": mean, "low": None, "high": None}
  half = t_975(n - 1) * statistics.stdev(values) / math.sqrt(n)
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
  if known := [text for text in used if text]:
    lines += [f"Made with {'; '.join(dict.fromkeys(known))}."]
  if unknown := len(used) - len(known):
    lines += [f"With what {unknown} of {len(used)} runs were made is not known: something else started them."]
  return "\n".join(lines).rstrip() + "\n"
