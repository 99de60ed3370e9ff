"""A run's files -> one picture and one page.

    python fipo_jax/report.py runs/quickstart        writes report.png and report.html there

Reads metrics.jsonl, and samples.jsonl and result.json where they exist, or their parts in a bucket; draws what it
finds. The page holds its picture and styles in itself: it can be mailed, or opened years later. Of the project it
imports what reads files alone, so it also reads runs of other versions.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
  # As a script this folder comes first on the path, and our types.py would hide Python's own.
  sys.path[0] = sys.path[0].rpartition("/")[0] or "."

import argparse
import base64
import fnmatch
import html
import io
import json
import math
import re
from collections.abc import Sequence

import matplotlib.figure
from matplotlib.backends.backend_agg import FigureCanvasAgg

from fipo_jax import lines as line_files
from fipo_jax import paths

# Title, unit of the y axis, and the keys drawn in it; a * in a key stands for anything.
PANELS = (
  ("Reward and accuracy", "fraction or score", ("reward", "accuracy", "eval/accuracy")),
  ("Response length", "tokens", ("response_length", "eval/response_tokens")),
  ("Evaluation sets: accuracy", "fraction", ("eval/*/accuracy",)),
  ("Evaluation sets: response length", "tokens", ("eval/*/response_tokens",)),
  ("Truncated responses", "fraction", ("truncated", "truncated_correct", "truncated_wrong")),
  ("Length-weighted mean advantage", "deviations", ("advantage_length_weighted",)),
  ("Entropy", "nats per token", ("entropy",)),
  ("Policy KL", "nats per token", ("policy_kl",)),
  ("Future-KL weight: mean, and one standard deviation", "factor", ("weight_mean",)),
  ("Mean |Future-KL|", "nats", ("future_kl_abs_mean",)),
  ("Loss", "", ("loss",)),
  ("Gradient norm", "", ("grad_norm",)),
  ("Dual-clipped tokens", "fraction", ("dual_clip_fraction",)),
  ("Dynamic sampling", "fraction", ("keep_rate", "token_efficiency")),
  ("Sampler against trainer", "nats per token", ("sampler_gap_mean", "sampler_gap_k3")),
  ("Slots and cache in use", "fraction", ("rollout/occupancy", "rollout/cache_in_use")),
  ("Tail of the rollout: longest / median", "", ("rollout/tail_ratio",)),
  ("Time", "seconds per step", ("seconds/*",)),
  ("Speed", "tokens per second", ("tokens_per_second/*",)),
)
BAND = {"weight_mean": "weight_std"}
SAMPLES = 60  # shown on the page; a thousand coloured responses would make it too heavy to open
WEIGHT_SPAN, KL_SPAN = 0.2, 1.0  # |f - 1| and |F| (nats) that get the full colour


def write_report(workdir, out=None):
  """Writes report.png and report.html into `out` (default: workdir); gives the page's path.

  Raises FileNotFoundError when the run has no metrics.jsonl, ValueError when no line of it can be
  read.
  """
  workdir = paths.of(workdir)
  out = paths.of(out) if out is not None else workdir
  path = workdir / "metrics.jsonl"
  if not (line_files.exists(path) or paths.is_file(path)):
    raise FileNotFoundError(f"workdir={workdir} has no metrics.jsonl; name the folder of a run.")
  rows, bad = read_lines(path)
  if not rows:
    raise ValueError(f"{path} holds no line that can be read; the run has not finished a step yet.")
  samples_path, result_path = workdir / "samples.jsonl", workdir / "result.json"
  samples, bad_samples = read_lines(samples_path)
  result = _read_result(result_path) if paths.is_file(result_path) else {}
  earlier = [read_lines(workdir / name)[0] for name in paths.names(workdir) if ROLLED_BACK.fullmatch(name)]
  marks = [(row["step"], name) for r in (*earlier, rows) for row in r for name in row.get("alarms") or ()]
  marks += [(row["step"], f"{CHANGED}{line}") for row in rows for line in row.get("changed") or ()]
  picture = draw(found_panels(rows), earlier=[found_panels(r) for r in earlier], marks=marks)
  paths.write(out / "report.png", picture)
  page = render(paths.absolute(workdir).name, result, rows, picture, samples, bad + bad_samples)
  paths.write(out / "report.html", page)
  return out / "report.html"


CHANGED = "changed: "  # begins a mark that is no alarm
ROLLED_BACK = re.compile(r"metrics\.rollback\d*\.jsonl")


def read_lines(path) -> tuple[list[dict], int]:
  """The JSON records of a file, or of its parts, and how many lines were not one (the last may be half written)."""
  records, bad = [], 0
  for line in line_files.read(path):
    try:
      record = json.loads(line.decode("utf-8", errors="replace"))
    except ValueError:
      record = None
    if isinstance(record, dict) and isinstance(record.get("step"), int):
      records.append(record)
    else:
      bad += 1
  return records, bad


def _read_result(path) -> dict:
  try:
    result = json.loads(paths.read_text(path))
  except ValueError as error:
    raise ValueError(
      f"{path} is not JSON ({error}); the next end of the run writes it anew."
    ) from error
  return result if isinstance(result, dict) else {"result": result}


def series(rows: list[dict], key: str, index: int | None = None) -> tuple[list[int], list[float]]:
  """Steps and values of one key where it is a number; with `index`, of that entry of a list."""
  x, y = [], []
  for row in rows:
    value = row.get(key)
    if index is not None:
      value = value[index] if isinstance(value, list) and index < len(value) else None
    if isinstance(value, (int, float)) and math.isfinite(value):
      x.append(row["step"])
      y.append(float(value))
  return x, y


def found_panels(rows: list[dict]) -> list[tuple[str, str, dict]]:
  """PANELS that have data: (title, unit, {label: (steps, values, band or None)})."""
  keys = sorted({key for row in rows for key in row})
  panels = []
  for title, unit, wanted in PANELS:
    lines = {}
    for name in wanted:
      for key in fnmatch.filter(keys, name) if "*" in name else [name]:
        x, y = series(rows, key)
        band = None
        if key in BAND:
          spread = dict(zip(*series(rows, BAND[key]), strict=True))
          band = [spread.get(step, 0.0) for step in x] if spread else None
        if x:
          lines[key] = (x, y, band)
    if lines:
      panels.append((title, unit, lines))
  if timeline := next((row["rollout/timeline"] for row in reversed(rows) if row.get("rollout/timeline")), None):
    at, busy, rate, cache = (list(column) for column in zip(*timeline, strict=True))
    fastest = max(rate) or 1.0
    lines = {"slots busy": busy, "cache in use": cache}
    lines[f"speed / {fastest:.0f} tokens per s"] = [r / fastest for r in rate]
    panels.append(("The last rollout, over its seconds", "fraction", {k: (at, v, None) for k, v in lines.items()}))
  return panels + minibatch_panels(rows, [key for key in keys if key.startswith("minibatch/")])


def minibatch_panels(rows: list[dict], keys: list[str]) -> list[tuple[str, str, dict]]:
  """A panel per key, a line per mini-batch of a step: how far the policy moves while it is used."""
  panels = []
  for key in keys:
    count = max((len(row[key]) for row in rows if isinstance(row.get(key), list)), default=0)
    lines = {f"mini-batch {i + 1}": (*series(rows, key, i), None) for i in pick(range(count), 6)}
    lines = {label: line for label, line in lines.items() if line[0]}
    if lines:
      panels.append((f"{key.removeprefix('minibatch/')}, by mini-batch", "", lines))
  return panels


def draw(panels: list[tuple[str, str, dict]], columns: int = 3, *, earlier=(), marks=()) -> bytes:
  """The panels as one PNG.

  earlier: the panels of attempts that were rolled back, drawn dotted. marks: (step, name) of alarms, and of changes
  of the config where the run was resumed, vertical lines.
  """
  columns = max(1, min(columns, len(panels)))
  height = max(1, -(-len(panels) // columns))
  figure = matplotlib.figure.Figure(figsize=(5.2 * columns, 3.4 * height), layout="constrained")
  FigureCanvasAgg(figure)  # no display and no global state
  for i, (title, unit, lines) in enumerate(panels):
    axes = figure.add_subplot(height, columns, i + 1)
    for key, (x, y, band) in lines.items():
      sparse = key.startswith("eval/") or len(x) < 20
      (line,) = axes.plot(
        x, y, marker="o" if sparse else None, markersize=3, linewidth=1.3, label=key
      )
      if band:
        low, high = (
          [v - b for v, b in zip(y, band, strict=True)],
          [v + b for v, b in zip(y, band, strict=True)],
        )
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    for attempt in earlier:
      for key, (x, y, _) in next((lines for t, _, lines in attempt if t == title), {}).items():
        axes.plot(x, y, linestyle=":", linewidth=1.3, color="grey", label=f"{key}, rolled back")
    for n, (step, name) in enumerate(marks):
      said = name if name.startswith(CHANGED) else f"alarm: {name}"
      label = None if name in [other for _, other in marks[:n]] else said[:60]
      axes.axvline(step, color="tab:blue" if said == name else "red", linewidth=0.9, linestyle="--", label=label)
    axes.set(title=title, xlabel="step", ylabel=unit)
    axes.grid(alpha=0.3)
    if len(axes.get_legend_handles_labels()[1]) > 1:
      axes.legend(fontsize=8)
  png = io.BytesIO()
  figure.savefig(png, format="png", dpi=90)
  return png.getvalue()


def render(name, result: dict, rows, picture: bytes, samples, bad: int) -> str:
  """The page."""
  parts = [f"<h1>{html.escape(name)}</h1>", f"<p>{_counted(rows, samples, bad)}</p>"]
  if result:
    shown = {key: value for key, value in result.items() if key != "goodput"}
    cells = "".join(
      f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in _flat(shown)
    )
    parts.append(f"<h2>Result</h2><table>{cells}</table>")
  if isinstance(result.get("goodput"), dict):
    parts.append(_time_html(result["goodput"]))
  data = base64.b64encode(picture).decode()
  parts.append(f'<h2>Curves</h2><img alt="curves" src="data:image/png;base64,{data}">')
  if samples:
    parts.append(_samples_html(samples))
  title = html.escape(name)
  return (
    f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
    + "\n".join(parts)
  )


# Where the time of a run went: key of result.json's goodput, and what it is called.
TIMES = (
  ("productive_s", "iterations that were kept"), ("lost_s", "iterations that were made again"),
  ("starting_s", "starting, until training began"), ("waiting_s", "without a process"),
  ("other_s", "evaluation before training, iterations cut off, the end"),
)  # fmt: skip


def _time_html(found: dict) -> str:
  """Shares of the wall time since the first start, as a table with bars."""
  wall = found.get("wall_s") or 1.0
  cells = ""
  for key, said in TIMES:
    share = found.get(key, 0.0) / wall
    bar = f'<div class=bar style="width:{120 * min(share, 1.0):.0f}px"></div>'
    cells += f"<tr><th>{said}</th><td>{found.get(key, 0.0):,.0f} s</td><td>{share:.1%}</td><td>{bar}</td></tr>"
  said = f"{wall:,.0f} s since the first of {found.get('starts', 1)} start(s)"
  return f"<h2>Time</h2><p>{said}; {found.get('lost_steps', 0)} iterations were made again.</p><table>{cells}</table>"


def _counted(rows, samples, bad: int) -> str:
  steps = [row["step"] for row in rows]
  said = (
    f"{len(rows)} lines of metrics, steps {min(steps)} to {max(steps)}; {len(samples)} samples."
  )
  return said + (f" {bad} unreadable lines were left out." if bad else "")


def _flat(value, prefix: str = ""):
  """(name, text) of the leaves of a nested record."""
  if isinstance(value, dict):
    for key, inner in value.items():
      yield from _flat(inner, f"{prefix}{key}.")
  else:
    text = f"{value:.6g}" if isinstance(value, float) else value
    yield prefix.removesuffix("."), text if isinstance(text, str) else json.dumps(text)


def pick(samples: Sequence, limit: int = SAMPLES) -> Sequence:
  """At most `limit` of them, evenly spread, the first and the last included."""
  if len(samples) <= limit:
    return samples
  return [samples[round(i * (len(samples) - 1) / (limit - 1))] for i in range(limit)]


def _samples_html(samples: list[dict]) -> str:
  shown = "".join(_sample_html(sample) for sample in pick(samples))
  red, blue = _colour(1.0), _colour(-1.0)
  return (
    "<h2>Samples</h2>"
    "<input type=radio name=by id=by-w checked><label for=by-w>colour: weight f</label>"
    "<input type=radio name=by id=by-f><label for=by-f>colour: Future-KL</label>"
    f"<p class=legend><span style='--w:{red};--f:{red}'>f &gt; 1, F &gt; 0</span> "
    f"<span style='--w:{blue};--f:{blue}'>f &lt; 1, F &lt; 0</span> "
    f"full colour at |f &minus; 1| = {WEIGHT_SPAN:g} and |F| = {KL_SPAN:g} nats; "
    "point at a token for its numbers. "
    f"{min(len(samples), SAMPLES)} of {len(samples)} are shown.</p><div class=samples>{shown}</div>"
  )


def _sample_html(sample: dict) -> str:
  numbers = [
    f"{key} {sample[key]:.3g}"
    for key in ("reward", "accuracy", "advantage")
    if isinstance(sample.get(key), (int, float))
  ]
  answer = [f"answer {sample['answer']}"] if "answer" in sample else []
  head = ", ".join([f"step {sample['step']}", *numbers, *answer])
  tokens = sample.get("tokens")
  if isinstance(tokens, list) and tokens:
    columns = [
      _column(sample, key, len(tokens)) for key in ("logp", "entropy", "future_kl", "weight")
    ]
    body = "".join(_token_html(str(t), *row) for t, *row in zip(tokens, *columns, strict=True))
  else:
    body = html.escape(str(sample.get("response", "")))
  prompt = html.escape(str(sample.get("prompt", "")))
  texts = f"<pre class=prompt>{prompt}</pre><pre>{body}</pre>"
  return f"<details><summary>{html.escape(head)}</summary>{texts}</details>"


def _column(sample: dict, key: str, length: int) -> list[float | None]:
  values = sample.get(key)
  values = values if isinstance(values, list) else []
  numbers = [
    v if isinstance(v, (int, float)) and math.isfinite(v) else None for v in values[:length]
  ]
  return numbers + [None] * (length - len(numbers))


def _token_html(token: str, logp, entropy, future_kl, weight) -> str:
  said = [("log p", logp), ("entropy", entropy), ("F", future_kl), ("f", weight)]
  title = ", ".join(f"{name} {value:.4g}" for name, value in said if value is not None)
  by_weight = _colour(None if weight is None else (weight - 1) / WEIGHT_SPAN)
  by_kl = _colour(None if future_kl is None else future_kl / KL_SPAN)
  return f'<span title="{title}" style="--w:{by_weight};--f:{by_kl}">{html.escape(token)}</span>'


def _colour(strength: float | None) -> str:
  """Red above 0, blue below, full at 1; transparent where there is nothing to say."""
  if strength is None or abs(strength) < 0.005:
    return "transparent"
  red_green_blue = "214,69,65" if strength > 0 else "44,110,203"
  return f"rgba({red_green_blue},{0.7 * min(abs(strength), 1.0):.2f})"


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; }
body { max-width: 1200px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .15em .8em .15em 0; font-weight: normal; }
td { font-family: ui-monospace, monospace; }
img { width: 100%; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .4em 0; } .prompt { color: #666; }
details { border-top: 1px solid #ddd; padding: .3em 0; } label { margin-right: 1.2em; }
.bar { background: #2c6ecb; height: .8em; }
.samples span, .legend span { background: var(--w); border-radius: 2px; }
#by-f:checked ~ .samples span, #by-f:checked ~ .legend span { background: var(--f); }
"""


def main(arguments=None) -> int:
  parser = argparse.ArgumentParser(description="Draws a run: report.png and report.html.")
  parser.add_argument("workdir", help="folder of the run")
  parser.add_argument("--out", help="folder to write to; default: the run's own")
  options = parser.parse_args(arguments)
  try:
    print(write_report(options.workdir, options.out))
  except (OSError, ValueError) as error:
    print(error, file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
