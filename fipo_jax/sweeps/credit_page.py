"""The page of what Future-KL credits: text, tables and a picture of the figures of `credit` and `tries`."""

from __future__ import annotations

import json
import pathlib
import textwrap
from typing import Any

import numpy as np

from fipo_jax.sweeps import credit, tries

COLUMNS = {"F": ".4f", "abs F": ".4f", "f": ".4f", "entropy": ".3f", "abs shift": ".4f",
           "top of F": ".2f", "top of shifts": ".2f"}  # fmt: skip


def write_page(runs: list[str], beside: list[str], out: pathlib.Path) -> list[pathlib.Path]:
  """Writes OUT.md, OUT.png and OUT.json (the figures of each run) and returns the paths.

  beside: runs without Future-KL, for the table of tries alone.
  Raises: ValueError as `credit.read` and `tries.read`.
  """
  found = {run: rounded(credit.summary(credit.read(run))) for run in runs}
  habits = {"/".join(pathlib.Path(run).parts[-2:]): tries.read(run) for run in [*runs, *beside]}
  made = [out.with_suffix(ending) for ending in (".md", ".png", ".json")]
  flags = [f"--run={run}" for run in runs] + [f"--beside={run}" for run in beside]
  made[0].write_text(markdown(list(found.values()), habits, out.name, " ".join(flags)))
  draw(list(found.values()), made[1])
  made[2].write_text(json.dumps({"credit": found, "tries": rounded(habits)}, indent=1) + "\n")
  return made


def rounded(value: Any) -> Any:
  """Plain numbers of five digits."""
  if isinstance(value, dict):
    return {k: rounded(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [rounded(v) for v in value]
  return float(f"{value:.5g}") if isinstance(value, float | np.floating) else value


def mean(runs: list[dict[str, Any]], *path: str) -> float | None:
  """Over the runs that have the figure at this path of keys."""
  values = []
  for run in runs:
    for key in path:
      run = run.get(key) if run else None
    values += [] if run is None else [run]
  return sum(values) / len(values) if values else None


def spread(runs: list[dict[str, Any]], *path: str, form: str = ".3f") -> str:
  """The mean, and the range over runs where there are several."""
  values = [v for run in runs if (v := mean([run], *path)) is not None]
  if not values:
    return "-"
  said = f"{sum(values) / len(values):{form}}"
  return said if len(values) == 1 else f"{said} ({min(values):{form}} to {max(values):{form}})"


def by_weight(runs: list[dict[str, Any]]) -> list[str]:
  """The kinds that a run has enough of, by their mean f, the highest first."""
  f = {k: value for k in credit.KINDS if (value := mean(runs, "kinds", k, "f")) is not None}
  return sorted(f, key=lambda k: -f[k])


def markdown(runs: list[dict[str, Any]], habits: dict[str, Any], name: str, flags: str) -> str:
  tokens, responses = sum(r["tokens"] for r in runs), sum(r["responses"] for r in runs)
  text = [
    "# What does FIPO credit?", "", "For whoever wonders which tokens Future-KL makes heavier.", "",
    f"The countdown miniature (`experiments/long_chain.py`), runs: {len(runs)}, steps: "
    f"{' and '.join(dict.fromkeys(str(r['steps']) for r in runs))}. {tokens:,} sampled tokens of {responses:,} "
    "responses, each with the Future-KL F and the weight f of the last update of its step. Made by",
    "", "    python launch/credit.py " + flags + " --out=docs/credit", "",
    "A number in front of brackets is the mean over runs, in them the range over runs. F[t] is the discounted sum of "
    "the log-probability shifts of token t and all that follow; f is exp F, kept within [1, 1.2] by the config; "
    "the shift is how far the log-probability of the token itself has moved since the step began. Each response is in "
    "one update of its step, and these are in the last: what has moved them is what the policy has learned from "
    "responses to other prompts.", "",
    *in_short(runs), "",
    f"![F and f by kind of token, by distance to the end, and what explains f]({name}.png)", "",
    "## By kind of token", "",
  ]  # fmt: skip
  rows = []
  for kind in by_weight(runs):
    share = sum(r["kinds"].get(kind, {}).get("tokens", 0) for r in runs) / tokens
    rows.append([kind, f"{share:.1%}", *(spread(runs, "kinds", kind, c, form=form) for c, form in COLUMNS.items())])
  text += _table(["kind, by f", "share", "mean F", "mean abs F", "mean f", *list(COLUMNS)[3:]], rows)
  text += [
    'A try is a line such as "8-2=6-5=1 no": number, sign, =, result, blank, ok or no. "try again" is the first token '
    'of a try after a "no", "give up" the A of "Answer:" there; "other" are lines that are no well-formed try, check '
    "or answer.", "",
    "Top of F, top of shifts: whose tokens are the hundredth with the highest F, and the hundredth with the largest "
    "shift.", "",
  ]  # fmt: skip
  for figure in ("F", "f", "abs shift"):
    values = credit.stability(runs, figure)
    if values:
      text += [
        f"The order of kinds by {figure} agrees between two runs with a rank correlation of {min(values):.2f} to "
        f"{max(values):.2f}.", "",
      ]  # fmt: skip
  text += ["## What explains f", ""]
  rows = [
    ["the response alone", spread(runs, "alone", "response"), spread(runs, "nested", "response")],
    ["and the position in it", spread(runs, "alone", "position"), spread(runs, "nested", "position")],
    ["and the kind of token", spread(runs, "alone", "kind"), spread(runs, "nested", "kind")],
  ]
  text += _table(["R² of f", "this factor alone", "with those above"], rows)
  text += [
    f"f is {spread(runs, 'f')} on average with a deviation of {spread(runs, 'f std')}. It stands at its lowest, 1, on "
    f"a share of {spread(runs, 'f at 1', form='.2f')} of tokens, at its highest on {spread(runs, 'f at its highest')}.",
    "", "Position: 16 tokens as one, from the start and from the end; a response is one number for all its tokens. "
    "What no row explains is how f differs within a response between tokens of one kind at about the same place.", "",
    "## F beside other figures of a token", "", "Spearman's rank correlation over all tokens of a run:", "",
  ]  # fmt: skip
  key = "rank correlation"
  text += _table(["pair", "correlation"], [[pair, spread(runs, key, pair, form=".2f")] for pair in runs[0][key]])
  header, *rows = tries.table(habits)
  text += [
    "## What became of the tries", "",
    f"The responses that runs have kept, of their first {tries.FIRST} steps and of their last {tries.LAST}. A try is a "
    "line that gives each number a sign, works out the sum and says ok or no.", "", *_table(header, rows),
  ]  # fmt: skip
  return "\n".join(map(wrapped, text)).rstrip() + "\n"


def in_short(runs: list[dict[str, Any]]) -> list[str]:
  """What the tables say, in four sentences."""
  order = by_weight(runs)
  named = lambda some: ", ".join(f"{k} {mean(runs, 'kinds', k, 'f'):.3f}" for k in some)
  moved = max(order, key=lambda k: mean(runs, "kinds", k, "top of shifts"), default="no kind")
  of = lambda figure: mean(runs, "kinds", moved, figure) or 0.0
  share = sum(r["kinds"].get(moved, {}).get("tokens", 0) for r in runs) / sum(r["tokens"] for r in runs)
  response, position, kind = (mean(runs, "nested", name) for name in ("response", "position", "kind"))
  return [
    f"- **Which tokens.** The kinds of highest mean f: {named(order[:3])}; of the lowest: {named(order[-3:])}.",
    f"- **Where it comes from.** The kind '{moved}', {share:.0%} of tokens, is {of('top of shifts'):.0%} of the "
    f"hundredth with the largest shift, but {of('top of F'):.0%} of that with the highest F, which spreads a shift "
    "over the tokens before it.",
    f"- **What decides.** Of the variance of f, {response:.0%} lies between responses; the position in them explains "
    f"{position - response:.0%} more, the kind of token another {kind - position:.0%}; {1 - kind:.0%} is left.",
    f"- **Which way.** Where the advantage is positive mean F is {spread(runs, 'F where good')}, mean f "
    f"{spread(runs, 'f where good')}; where it is negative, {spread(runs, 'F where bad')} and "
    f"{spread(runs, 'f where bad')}. (f is 1 wherever F is below 0, so mean f sees the positive side of F alone.)",
  ]  # fmt: skip


def wrapped(line: str) -> str:
  """Prose in lines of at most 120 characters; tables, commands, headings and pictures as they are."""
  if line.startswith(("|", " ", "#", "!")):
    return line
  indent = "  " * line.startswith("- ")
  return textwrap.fill(line, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
  return ["| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows]] + [""]


def draw(runs: list[dict[str, Any]], path: pathlib.Path) -> None:
  """Four panels: F and f by kind, by distance to the end, R²; a dot or a thin line a run."""
  import matplotlib.figure
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  figure = matplotlib.figure.Figure(figsize=(13, 8), layout="constrained")
  FigureCanvasAgg(figure)  # no display and no global state
  order = by_weight(runs)[::-1]
  for place, key, title, unit in ((1, "f", "Mean weight f", "factor"), (2, "F", "Mean Future-KL", "nats")):
    axes = figure.add_subplot(2, 2, place)
    least = float(key == "f")
    axes.barh(order, [mean(runs, "kinds", k, key) - least for k in order], left=least, color="C0", alpha=0.4)
    for run in runs:
      have = [k for k in order if k in run["kinds"]]
      axes.plot([run["kinds"][k][key] for k in have], have, ".", color="C0", markersize=5)
    axes.set(title=f"{title} by kind of token", xlabel=unit)
  axes = figure.add_subplot(2, 2, 3)
  for run in runs:
    steps, F, f = zip(*run["by distance to the end"], strict=True)
    axes.plot(steps, F, "-", color="C1", linewidth=1, label="F, nats" if run is runs[0] else None)
    axes.plot(steps, np.subtract(f, 1), "-", color="C0", linewidth=1, label="f - 1" if run is runs[0] else None)
  axes.set(title="By distance to the end of the response", xlabel="tokens (the last: all that are farther)")
  axes.legend()
  axes = figure.add_subplot(2, 2, 4)
  names, before = ("response", "position", "kind"), 0.0
  for i, name in enumerate(names):
    value = mean(runs, "nested", name)
    more = value - before
    axes.barh(["variance of f"], [more], left=before, color=f"C{i}", label=f"{name}: {more:.2f} more")
    before = value
  axes.set(title="What explains f", xlabel="R², each with those before", xlim=(0, 1))
  axes.legend()
  for axes in figure.axes:
    axes.grid(alpha=0.3)
  figure.savefig(path, format="png", dpi=80)
