"""The curves of sweeps: what each run measured step by step, kept small, drawn by arm, and a page of what they show.

A run becomes one JSON file with a list per metric. The page is made of such files alone, so it can be written again
wherever they are, without the runs.
"""

from __future__ import annotations

import json
import math
import pathlib
import statistics
from typing import Any

from fipo_jax.sweeps import figures
from fipo_jax.sweeps.plan import Job, Sweep
from fipo_jax.sweeps.runs import finished, result_of

# Of metrics.jsonl, a value a step; those of evaluations are kept where there are some.
KEPT = (
  "accuracy", "reward", "response_length", "response_length_p25", "response_length_median", "response_length_p75",
  "response_length_max", "truncated", "no_answer", "overlong_penalty", "advantage_length_weighted", "entropy",
  "policy_kl", "grad_norm", "clip_fraction", "dual_clip_fraction", "weight_mean", "weight_std", "future_kl_abs_mean",
  "rejected_sequence_fraction", "keep_rate", "tokens_generated", "seconds/step", "alarms",
)  # fmt: skip
EVALUATED = ("eval/accuracy", "eval/response_tokens", "eval/truncated")
LAST = 20  # steps that "at the end" means: single steps and evaluations are noisy

# Title, unit of the y axis, what is drawn, over how many steps it is averaged for the eye.
PANELS = (
  ("Held-out accuracy", "fraction", "eval/accuracy", 1),
  ("Accuracy of what is sampled", "fraction", "accuracy", 5),
  ("Response length", "tokens", "response_length", 5),
  ("Longest of a step", "tokens", "response_length_max", 5),
  ("Truncated responses", "fraction", "truncated", 5),
  ("Length-weighted mean advantage", "deviations", "advantage_length_weighted", 9),
  ("Entropy", "nats per token", "entropy", 5),
  ("Policy KL", "nats per token", "policy_kl", 9),
  ("Mean weight f", "factor", "weight_mean", 5),
  ("Standard deviation of f", "factor", "weight_std", 5),
  ("Mean |Future-KL|", "nats", "future_kl_abs_mean", 5),
)


# ---- from runs to files ----


def record(job: Job) -> dict[str, Any] | None:
  """What is kept of a run, finished or under way; None if it has no step yet."""
  rows = read_rows(job.workdir / "metrics.jsonl")
  if not any(row["step"] for row in rows):
    return None
  done = finished(job)
  rows = [row for row in rows if row["step"] <= job.cfg.steps]
  steps = [row for row in rows if row["step"]]
  evaluated = [row for row in rows if "eval/accuracy" in row]
  column = lambda some, key: [rounded(row.get(key)) for row in some]
  result = result_of(job) if done else {}
  return {
    "arm": job.arm, "seed": job.seed, "steps": job.cfg.steps, "finished": done,
    "versions": figures.versions_of(job),
    "result": {key: rounded(value) for key, value in result.items() if isinstance(value, int | float | str)},
    "step": [row["step"] for row in steps],
    "columns": {key: column(steps, key) for key in KEPT if any(row.get(key) is not None for row in steps)},
    "eval/step": [row["step"] for row in evaluated],
    "eval": {key: column(evaluated, key) for key in EVALUATED},
  }  # fmt: skip


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a metrics.jsonl, of a repeated step the last; a line that is cut off, as the last may be, is left."""
  rows: dict[int, dict[str, Any]] = {}
  if path.is_file():
    for line in path.read_text().splitlines():
      try:
        row = json.loads(line)
      except ValueError:
        continue
      rows[row["step"]] = row
  return [rows[step] for step in sorted(rows)]


def rounded(value: Any) -> Any:
  """Five digits of a number: more would say nothing and fill the repository. What is not finite is None."""
  if isinstance(value, bool) or not isinstance(value, float):
    return value
  return float(f"{value:.5g}") if math.isfinite(value) else None


def path_of(out: pathlib.Path, job: Job) -> pathlib.Path:
  return out / f"{job.arm}_seed{job.seed}.json"


def collect(sweeps: list[tuple[Sweep, list[Job]]], out: pathlib.Path) -> list[dict[str, Any]]:
  """Writes a file for each run that is here, and returns what there is of all runs, those of files alone included.

  The file of a finished run is not replaced by one of a run that is under way.
  Raises: ValueError naming a file that is of another number of steps than its job.
  """
  out.mkdir(parents=True, exist_ok=True)
  found = []
  for _, jobs in sweeps:
    for job in jobs:
      path, run = path_of(out, job), record(job)
      kept = json.loads(path.read_text()) if path.is_file() else None
      if kept and kept["steps"] != job.cfg.steps:
        raise ValueError(f"{path}: of a run of {kept['steps']} steps, the sweep asks for {job.cfg.steps}; remove it.")
      if run and not (kept and kept["finished"] and not run["finished"]):
        path.write_text(dumped(run))
      else:
        run = kept
      if run:
        found.append(run)
  return found


def dumped(run: dict[str, Any]) -> str:
  """A line a list."""
  lines = json.dumps(run, indent=1).splitlines()
  text, depth = "", 0
  for line in lines:
    inside = depth > 0
    depth += line.rstrip(",").endswith("[") - line.strip().startswith("]")
    text += line.strip() + " " * line.endswith(",") if inside else line
    text += "" if depth else "\n"
  return text


# ---- from files to figures ----


def smoothed(values: list[float | None], width: int) -> list[float | None]:
  """The mean over up to `width` values around each; missing ones are left out."""
  means = []
  for i in range(len(values)):
    near = [v for v in values[max(0, i - width // 2) : i + width // 2 + 1] if v is not None]
    means.append(statistics.fmean(near) if near else None)
  return means


def at_end(run: dict[str, Any], key: str) -> float | None:
  """The mean over the last steps; of an evaluation over those in the last steps."""
  steps, values = series(run, key)
  near = [v for s, v in zip(steps, values, strict=True) if v is not None and s > run["step"][-1] - LAST]
  return statistics.fmean(near) if near else None


def series(run: dict[str, Any], key: str) -> tuple[list[int], list[float | None]]:
  """Steps and values of a metric; empty where the run has none of it."""
  if key in EVALUATED:
    return run["eval/step"], run["eval"][key]
  return (run["step"], run["columns"][key]) if key in run["columns"] else ([], [])


def at_start(run: dict[str, Any], key: str) -> float | None:
  """The mean over the first five steps."""
  values = [v for v in series(run, key)[1][:5] if v is not None]
  return statistics.fmean(values) if values else None


def doubled(run: dict[str, Any]) -> int | None:
  """The first step from which on the smoothed length is twice that of the first steps."""
  steps, values = series(run, "response_length")
  start = at_start(run, "response_length")
  return next((s for s, v in zip(steps, smoothed(values, 5), strict=True) if v and start and v >= 2 * start), None)


def halved(run: dict[str, Any]) -> int | None:
  """The first step at which the smoothed length is half of what it has been: a collapse."""
  steps, values = series(run, "response_length")
  most = 0.0
  for step, value in zip(steps, smoothed(values, 5), strict=True):
    most = max(most, value or 0.0)
    if value is not None and value <= most / 2:
      return step
  return None


# Title of a column -> the figure of one run, how it is written.
FIGURES = {
  "accuracy at the end": (lambda r: at_end(r, "accuracy"), ".3f"),
  "held-out, at the end": (lambda r: at_end(r, "eval/accuracy"), ".3f"),
  "length at the end": (lambda r: at_end(r, "response_length"), ".0f"),
  "length, times the start": (lambda r: at_end(r, "response_length") / at_start(r, "response_length"), ".2f"),
  "entropy at the end": (lambda r: at_end(r, "entropy"), ".3f"),
  "tokens sampled, millions": (lambda r: sum(v or 0 for v in r["columns"]["tokens_generated"]) / 1e6, ".2f"),
}
COMPARED = ("accuracy at the end", "length at the end", "entropy at the end")


def draw(runs: list[dict[str, Any]], path: pathlib.Path) -> None:
  """The panels: a thin line a run (dotted where it is under way), a thick one the mean of an arm's finished runs.

  Bands of quantiles and Student's interval over seeds, from three seeds on.
  """
  import matplotlib.figure
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  arms = list(dict.fromkeys(run["arm"] for run in runs))
  colour = {arm: f"C{i}" for i, arm in enumerate(arms)}
  panels = [p for p in PANELS if any(any(v is not None for v in series(run, p[2])[1]) for run in runs)]
  columns, number = 3, len(panels) + 2
  figure = matplotlib.figure.Figure(figsize=(5.2 * columns, 3.5 * -(-number // columns)), layout="constrained")
  FigureCanvasAgg(figure)  # no display and no global state
  for i, (title, unit, key, width) in enumerate(panels):
    axes = figure.add_subplot(-(-number // columns), columns, i + 1)
    for arm in arms:
      curves = []
      for run in (r for r in runs if r["arm"] == arm):
        x, y = series(run, key)
        y = smoothed(y, width)
        if any(v is not None for v in y):
          style = "-" if run["finished"] else ":"
          axes.plot(x, number_or_nan(y), style, color=colour[arm], linewidth=0.7, alpha=0.6)
          if run["finished"]:
            curves.append((x, y))
      _mean_line(axes, curves, arm, colour[arm])
    axes.set(title=title, xlabel="step", ylabel=unit)
    axes.grid(alpha=0.3)
    if i == 0:
      handles = [axes.plot([], [], color=colour[arm], linewidth=2, label=arm)[0] for arm in arms]
      axes.legend(handles=handles, fontsize=8)
  _against_length(figure.add_subplot(-(-number // columns), columns, len(panels) + 1), runs, colour)
  _quantiles(figure.add_subplot(-(-number // columns), columns, len(panels) + 2), runs, arms, colour)
  figure.savefig(path, format="png", dpi=80)


def number_or_nan(values: list[float | None]) -> list[float]:
  return [math.nan if v is None else v for v in values]


def _mean_line(axes, curves: list[tuple[list, list]], label: str, colour: str) -> None:
  if len(curves) < 2:
    return
  x = curves[0][0]
  columns = [[c[1][i] for c in curves if i < len(c[1]) and c[1][i] is not None] for i in range(len(x))]
  means = [figures.interval(column) for column in columns]
  axes.plot(x, number_or_nan([m["mean"] for m in means]), color=colour, linewidth=2)
  if len(curves) >= 3:
    low, high = (number_or_nan([m[k] for m in means]) for k in ("low", "high"))
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _against_length(axes, runs: list[dict[str, Any]], colour: dict[str, str]) -> None:
  for run in runs:
    lengths, accuracy = series(run, "eval/response_tokens")[1], series(run, "eval/accuracy")[1]
    style = "-" if run["finished"] else ":"
    how = {"color": colour[run["arm"]], "linewidth": 0.9, "marker": "o", "markersize": 2.5}
    axes.plot(number_or_nan(lengths), number_or_nan(accuracy), style, **how)
  axes.set(title="Held-out accuracy against length", xlabel="mean tokens", ylabel="fraction")
  axes.grid(alpha=0.3)


def _quantiles(axes, runs: list[dict[str, Any]], arms: list[str], colour: dict[str, str]) -> None:
  """Of the first two arms: medians, and the range from the lower to the upper quartile, means over runs."""
  for arm in arms[:2]:
    some = [run for run in runs if run["arm"] == arm]
    longest = max(some, key=lambda run: len(run["step"]))["step"]
    lines = []
    for q in ("p25", "median", "p75"):
      every = [smoothed(series(run, f"response_length_{q}")[1], 9) for run in some]
      columns = [[y[i] for y in every if i < len(y) and y[i] is not None] for i in range(len(longest))]
      lines.append([figures.interval(column)["mean"] for column in columns])
    low, middle, high = map(number_or_nan, lines)
    axes.plot(longest, middle, color=colour[arm], linewidth=1.5, label=f"{arm}: median")
    axes.fill_between(longest, low, high, color=colour[arm], alpha=0.15, linewidth=0, label=f"{arm}: quartiles")
  axes.set(title="Quantiles of length within a step", xlabel="step", ylabel="tokens")
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8)


# ---- the page ----


def write_page(sweeps: list[tuple[Sweep, list[Job]]], out: pathlib.Path) -> list[pathlib.Path]:
  """Collects, draws, and writes OUT.md beside the folder OUT of the runs' files; returns the paths.

  Raises: ValueError when there is no run yet, or as `collect`.
  """
  runs = collect(sweeps, out)
  if not runs:
    named = ", ".join(sweep.name for sweep, _ in sweeps)
    raise ValueError(f"no run of {named} has made a step yet, and {out} has none.")
  picture, page = out.with_suffix(".png"), out.with_suffix(".md")
  draw(runs, picture)
  page.write_text(markdown(sweeps, runs, out.name))
  return [page, picture, out]


def markdown(sweeps: list[tuple[Sweep, list[Job]]], runs: list[dict[str, Any]], name: str) -> str:
  """The page: what was run, figures by arm, differences to the baseline, the paper's statements, every run."""
  first, jobs = sweeps[0][0], [job for _, some in sweeps for job in some]
  done = [run for run in runs if run["finished"]]
  lines = [f"# {name}", "", f"{len(done)} of {len(jobs)} runs finished. " + _under_way(runs, jobs), ""]
  lines += [f"`{first.experiment}`, {jobs[0].cfg.steps} steps. Made by", ""]
  lines += [f"    python launch/sweep.py --sweep=experiments/sweeps/{sweep.name}.py" for sweep, _ in sweeps]
  flags = " ".join(f"--sweep=experiments/sweeps/{sweep.name}.py" for sweep, _ in sweeps)
  lines += [f"    python launch/curves.py {flags} --out=experiments/results/{name}", "", f"![curves]({name}.png)", ""]
  lines += [
    "A thin line is a run (dotted: under way), a thick one the mean of an arm, a band Student's 95% interval over "
    f"seeds where there are three or more. At the end: the mean over the last {LAST} steps. Accuracy: of all responses "
    "that were sampled, before they are trained on.", "",
  ]  # fmt: skip
  by_arm = {arm: {run["seed"]: run for run in done if run["arm"] == arm} for sweep, _ in sweeps for arm in sweep.arms}
  overrides = {arm: own for sweep, _ in sweeps for arm, own in sweep.arms.items()}
  rows = []
  for arm, some in by_arm.items():
    own = ", ".join(f"`{k}={v}`" for k, v in overrides[arm].items())
    rows.append([arm, own, len(some), *(_written(_interval(f, some.values()), form) for f, form in FIGURES.values())])
  lines += _table(["arm", "overrides", "n", *FIGURES], rows)
  lines += _differences(by_arm, first.baseline)
  lines += _statements(by_arm, first.baseline)
  rows = []
  for run in runs:
    start, end = at_start(run, "response_length"), at_end(run, "response_length")
    state = "" if run["finished"] else f" (at step {run['step'][-1]} of {run['steps']})"
    held = [v for v in run["eval"]["eval/accuracy"] if v is not None] or [None]
    rows.append([
      f"{run['arm']} seed {run['seed']}{state}", f"{_number(held[0], '.3f')} -> {_number(held[-1], '.3f')}",
      f"{_number(start, '.0f')} -> {_number(end, '.0f')}", _number(doubled(run), "d"), _number(halved(run), "d"),
      _number(at_end(run, "truncated"), ".3f"), _alarms(run),
    ])  # fmt: skip
  lengths = f"length, first 5 -> last {LAST} steps"
  head = ["run", "held-out accuracy", lengths, "doubled at", "halved at", "truncated", "alarms"]
  lines += ["## Every run", "", *_table(head, rows)]
  used = [", ".join(f"{k} {v}" for k, v in run["versions"].items() if v) for run in runs]
  lines += [f"Made with {'; '.join(dict.fromkeys(text for text in used if text)) or 'unknown versions'}."]
  return "\n".join(lines).rstrip() + "\n"


def _under_way(runs: list[dict[str, Any]], jobs: list[Job]) -> str:
  going = [f"{r['arm']} seed {r['seed']} at step {r['step'][-1]}" for r in runs if not r["finished"]]
  begun = {(r["arm"], r["seed"]) for r in runs}
  rest = [job.name for job in jobs if (job.arm, job.seed) not in begun]
  said = [f"Under way: {', '.join(going)}."] if going else []
  return " ".join(said + ([f"Not begun: {', '.join(rest)}."] if rest else []))


def _interval(figure, runs) -> dict[str, Any]:
  return figures.interval([v for run in runs if (v := figure(run)) is not None])


def _number(value: float | None, form: str) -> str:
  return "-" if value is None else f"{value:{form}}"


def _written(i: dict[str, Any], form: str) -> str:
  if i["low"] is None:
    return _number(i["mean"], form)
  return f"{i['mean']:{form}} [{i['low']:{form}}, {i['high']:{form}}]"


def _table(header: list[str], rows: list[list[Any]]) -> list[str]:
  return ["| " + " | ".join(map(str, line)) + " |" for line in [header, ["---"] * len(header), *rows]] + [""]


def _alarms(run: dict[str, Any]) -> str:
  steps = zip(run["step"], run["columns"].get("alarms", []), strict=False)
  return ", ".join(f"{name} at {step}" for step, names in steps for name in names or ()) or "-"


def paired(by_arm: dict[str, dict[int, dict]], arm: str, baseline: str, figure) -> dict[str, Any]:
  """The interval of an arm's differences to the baseline, over the seeds that both have."""
  base = by_arm[baseline]
  pairs = [(figure(run), figure(base[seed])) for seed, run in by_arm[arm].items() if seed in base]
  return figures.interval([a - b for a, b in pairs if a is not None and b is not None])


def _differences(by_arm: dict[str, dict[int, dict]], baseline: str) -> list[str]:
  rows, clear, count = [], [], 0
  for arm in (arm for arm in by_arm if arm != baseline):
    found = {title: paired(by_arm, arm, baseline, FIGURES[title][0]) for title in COMPARED}
    n = found[COMPARED[0]]["n"]
    if not n:
      continue
    rows.append([arm, n, *(_written(i, "+" + FIGURES[title][1]) for title, i in found.items())])
    for title, i in found.items():
      count += i["low"] is not None
      if i["low"] is not None and (i["low"] > 0 or i["high"] < 0):
        clear.append(f"{title} of {arm}")
  if not rows:
    return []
  said = f"Intervals that exclude 0: {'; '.join(clear) or 'none'}. {count} intervals, not corrected for their number."
  return [f"## Differences to {baseline}, paired by seed", "", *_table(["arm", "n", *COMPARED], rows), said, ""]


# What arXiv 2603.19835 says of FIPO beside DAPO, and the figure of one run that would show it, the larger the truer.
STATEMENTS = (
  ("responses become longer", lambda r: at_end(r, "response_length"), ".0f"),
  ("accuracy becomes higher", lambda r: at_end(r, "accuracy"), ".3f"),
  ("length goes on growing in the second half of training",
   lambda r: at_end(r, "response_length") - at_step(r, "response_length", 0.5), ".0f"),
  ("the length-weighted advantage is higher", lambda r: overall(r, "advantage_length_weighted"), ".4f"),
  ("entropy is higher", lambda r: at_end(r, "entropy"), ".3f"),
  ("the policy moves less per update (minus policy KL)", lambda r: -overall(r, "policy_kl"), ".2g"),
  ("the mean reward is lower, by the overlong penalty (minus reward)", lambda r: -at_end(r, "reward"), ".3f"),
)  # fmt: skip


def at_step(run: dict[str, Any], key: str, share: float) -> float:
  """The mean over LAST steps around that share of the run."""
  middle = round(len(run["step"]) * share)
  near = [v for v in run["columns"][key][max(0, middle - LAST // 2) : middle + LAST // 2] if v is not None]
  return statistics.fmean(near)


def overall(run: dict[str, Any], key: str) -> float:
  return statistics.fmean(v for v in run["columns"][key] if v is not None)


def _statements(by_arm: dict[str, dict[int, dict]], baseline: str) -> list[str]:
  """The statements, with what the runs show: a word only where the interval over seeds excludes 0."""
  arms = [arm for arm in by_arm if arm.startswith("fipo") and by_arm[arm]]
  if not by_arm.get(baseline) or not arms:
    return []
  rows = []
  for said, figure, form in STATEMENTS:
    row = [said, _written(_interval(figure, by_arm[baseline].values()), form)]
    for arm in arms:
      i = paired(by_arm, arm, baseline, figure)
      word = "no seed in common" if not i["n"] else "one seed" if i["low"] is None else "not seen"
      if i["low"] is not None and (i["low"] > 0 or i["high"] < 0):
        word = "holds" if i["low"] > 0 else "the contrary"
      row.append(f"{_written(i, '+' + form)}: {word}")
    rows.append(row)
  head = ["the paper, of FIPO beside DAPO", f"{baseline} here", *(f"{arm} minus {baseline}" for arm in arms)]
  return ["## The paper's statements, here", "", *_table(head, rows)]
