"""What Future-KL credits: the sampled tokens of FIPO runs of the countdown miniature, sorted by their place.

A run keeps some responses of each step token by token (samples.jsonl), with the Future-KL and the weight f that its
last update used. Here each token gets a kind, by where in the solution it stands; then F, f, entropy and the shift of
its own log-probability are averaged by kind, and the variance of f is split: what of it is the response, what the
position in it, what the kind.
"""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import numpy as np
from scipy import stats

from fipo_jax import lines, paths

# "8-2=6-5=1 no\n": number sign number = result ...; "answer ..." after "Answer: ". What stands first after a "no" is a
# choice: "try again" where it is the number that begins a line, "give up" where it is the A of "Answer: ".
KINDS = (
  "try again", "give up", "number", "sign", "=", "result", "blank", "ok", "no", "newline", "Check:", "Answer:",
  "answer number", "answer sign", "end", "other",
)  # fmt: skip
LEAST = 30  # tokens of a kind in a run, below which its mean says nothing
BIN = 16  # tokens; positions from either end that are counted as one, up to FAR of them
FAR = 12
_WORK = re.compile(r"(?P<label>Check: )?-?\d+(?:[+-]\d+=-?\d+)+ (?:ok|no)")


# ---- from a text to kinds ----


def kinds(tokens: list[str]) -> list[str]:
  """The kind of each token of a response that is written character by character; a longer token is the end."""
  found: list[str] = []
  text, after_no = "".join(t if len(t) == 1 else "" for t in tokens), False
  for line in text.splitlines(keepends=True):
    here = _of_line(line)
    if after_no and here[0] in ("number", "Answer:"):
      here[0] = "try again" if here[0] == "number" else "give up"
    found, after_no = found + here, "no" in here
  each = iter(found)
  return [next(each) if len(t) == 1 else "end" for t in tokens]


def _of_line(line: str) -> list[str]:
  """Of a line that is a try, a check or an answer; "other" elsewhere, as in a try that was written wrongly."""
  body, end = line.removesuffix("\n"), ["newline"] * line.endswith("\n")
  if body.startswith("Answer: "):
    rest = body[len("Answer: ") :]
    kind = lambda c: "answer number" if c.isdigit() else "answer sign" if c in "+-" else "other"
    return ["Answer:"] * 8 + [kind(c) for c in rest] + end
  match = _WORK.fullmatch(body)
  if not match:
    return ["other"] * len(body) + end
  found, after_equals = ["Check:"] * len(match["label"] or ""), False
  for before, c in zip(body[len(found) - 1 :] if found else " " + body, body[len(found) :], strict=False):
    if c == "=":
      after_equals = True
      found.append("=")
    elif c in "+-" and before != "=":
      after_equals = False
      found.append("sign")
    elif c.isdigit() or c == "-":
      found.append("result" if after_equals else "number")
    else:
      found.append("blank" if c == " " else body[-2:])
  return found + end


# ---- from files to columns ----


def read(run: str) -> dict[str, Any]:
  """Columns over all sampled tokens of a run: response, kind, first, last (distance in tokens), F, f, entropy, ...

  shift: log-probability at the last update minus that of sampling, nats.  good: whether the advantage is positive.
  Raises: ValueError when the run has no samples with Future-KL.
  """
  names = ("response", "kind", "first", "last", "F", "f", "entropy", "shift", "good")
  columns: dict[str, list] = {name: [] for name in names}
  number, steps = 0, set()
  for line in lines.read(paths.of(run) / "samples.jsonl"):
    sample = json.loads(line)
    if sample.get("future_kl") is None or not sample["tokens"]:
      continue
    n = len(sample["tokens"])
    columns["response"] += [number] * n
    columns["kind"] += [KINDS.index(k) for k in kinds(sample["tokens"])]
    columns["first"] += range(n)
    columns["last"] += range(n - 1, -1, -1)
    columns["good"] += [sample["advantage"] > 0] * n
    for name, key in (("F", "future_kl"), ("f", "weight"), ("entropy", "entropy")):
      columns[name] += sample[key]
    columns["shift"] += np.subtract(sample["logp"], sample["sampler_logp"]).tolist()
    number += 1
    steps.add(sample["step"])
  if not number:
    raise ValueError(f"--run={run}: samples.jsonl has no response with Future-KL; it needs algorithm.name='fipo'.")
  return {"steps": len(steps), "responses": number, **{k: np.asarray(v) for k, v in columns.items()}}


# ---- from columns to figures ----


def summary(c: dict[str, Any]) -> dict[str, Any]:
  """The figures of one run: by kind, by distance to the end, and how the variance of f is explained."""
  F, f = c["F"], c["f"]
  by_kind = {}
  for i, kind in enumerate(KINDS):
    here = c["kind"] == i
    if here.sum() >= LEAST:
      by_kind[kind] = {
        "tokens": int(here.sum()), "F": F[here].mean(), "abs F": np.abs(F[here]).mean(), "f": f[here].mean(),
        "entropy": c["entropy"][here].mean(), "abs shift": np.abs(c["shift"][here]).mean(),
      }  # fmt: skip
  ends = np.minimum(c["last"] // BIN, FAR)
  factors = {"position": [np.minimum(c["first"] // BIN, FAR), ends], "response": [c["response"]], "kind": [c["kind"]]}
  nested, groups = {}, []
  for name in ("response", "position", "kind"):
    groups = groups + factors[name]
    nested[name] = explained(f, groups)
  good = c["good"].astype(bool)
  return {
    "steps": c["steps"], "responses": c["responses"], "tokens": len(f),
    "f": f.mean(), "f std": f.std(), "f at 1": (f == 1).mean(), "f where good": f[good].mean() if good.any() else None,
    "f where bad": f[~good].mean() if not good.all() else None,
    "kinds": by_kind,
    "by distance to the end": [[int(n) * BIN, F[ends == n].mean(), f[ends == n].mean()] for n in np.unique(ends)],
    "alone": {name: explained(f, some) for name, some in factors.items()},
    "nested": nested,
    "rank correlation of |F|": {
      "entropy": correlation(np.abs(F), c["entropy"]), "|shift|": correlation(np.abs(F), np.abs(c["shift"])),
      "distance to the end": correlation(np.abs(F), c["last"]),
    },
    "rank correlation of |shift| with entropy": correlation(np.abs(c["shift"]), c["entropy"]),
  }  # fmt: skip


def explained(values: np.ndarray, groups: list[np.ndarray], rounds: int = 60) -> float:
  """R² of the best sum of one number per group and factor: least squares by taking group means away in turn.

  It can only grow with more factors. 0 where nothing varies.
  groups: for each factor, the group of each value.
  """
  left = values - values.mean()
  total = float(left @ left)
  if total == 0:
    return 0.0
  coded = [np.unique(g, return_inverse=True)[1] for g in groups]
  counts = [np.bincount(g) for g in coded]
  for _ in range(rounds if len(coded) > 1 else 1):
    for g, n in zip(coded, counts, strict=True):
      left = left - (np.bincount(g, weights=left) / n)[g]
  return 1.0 - float(left @ left) / total


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
  """Spearman's; None where one of them does not vary."""
  if np.ptp(a) == 0 or np.ptp(b) == 0:
    return None
  return float(stats.spearmanr(a, b).statistic)


def stability(runs: list[dict[str, Any]], figure: str) -> list[float]:
  """Spearman's correlation of the means by kind, of each pair of runs, over the kinds that both have."""
  found = []
  for i, a in enumerate(runs):
    for b in runs[i + 1 :]:
      both = [k for k in a["kinds"] if k in b["kinds"]]
      x, y = (np.asarray([r["kinds"][k][figure] for k in both]) for r in (a, b))
      if len(both) > 2 and (value := correlation(x, y)) is not None:
        found.append(value)
  return found


# ---- from figures to a page ----

COLUMNS = ("F", "abs F", "f", "entropy", "abs shift")


def write_page(runs: list[str], out: pathlib.Path) -> list[pathlib.Path]:
  """Writes OUT.md, OUT.png and OUT.json (the figures of each run) and returns the paths.

  Raises: ValueError as `read`.
  """
  found = {run: rounded(summary(read(run))) for run in runs}
  made = [out.with_suffix(ending) for ending in (".md", ".png", ".json")]
  made[0].write_text(markdown(list(found.values()), out.name, runs))
  draw(list(found.values()), made[1])
  made[2].write_text(json.dumps(found, indent=1) + "\n")
  return made


def rounded(value: Any) -> Any:
  """Plain numbers of five digits."""
  if isinstance(value, dict):
    return {k: rounded(v) for k, v in value.items()}
  if isinstance(value, list):
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
  f = {k: value for k in KINDS if (value := mean(runs, "kinds", k, "f")) is not None}
  return sorted(f, key=lambda k: -f[k])


def markdown(runs: list[dict[str, Any]], name: str, folders: list[str]) -> str:
  tokens, responses = sum(r["tokens"] for r in runs), sum(r["responses"] for r in runs)
  text = [
    "# What does FIPO credit?", "",
    f"{tokens:,} sampled tokens of {responses:,} responses of {len(runs)} run(s) of the countdown miniature "
    "(`experiments/long_chain.py`), each with the Future-KL F and the weight f of the last update of its step. Made by",
    "", "    python launch/credit.py " + " ".join(f"--run={f}" for f in folders) + " --out=docs/credit", "",
    "A number in front of brackets is the mean over runs, in them the range over runs. F[t] is the discounted sum of "
    "the log-probability shifts of token t and all that follow; f is exp F, kept within [1, 1.2] by the config; "
    "|shift| is how far the log-probability of the token itself has moved since sampling.", "",
    f"![F and f by kind of token, by distance to the end, and what explains f]({name}.png)", "",
    "## By kind of token", "",
  ]  # fmt: skip
  rows = []
  for kind in by_weight(runs):
    share = sum(r["kinds"].get(kind, {}).get("tokens", 0) for r in runs) / tokens
    rows.append([kind, f"{share:.1%}", *(spread(runs, "kinds", kind, c, form=".4f") for c in COLUMNS)])
  text += _table(["kind, by f", "share", "mean F", "mean abs F", "mean f", "entropy", "abs shift"], rows)
  for figure in ("F", "f", "abs shift"):
    values = stability(runs, figure)
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
    f"f is {spread(runs, 'f')} on average with a deviation of {spread(runs, 'f std')}, and exactly 1 on a share of "
    f"{spread(runs, 'f at 1', form='.2f')} of tokens. In responses of positive advantage its mean is "
    f"{spread(runs, 'f where good')}, in those of negative advantage {spread(runs, 'f where bad')}.",
    "", "Position: 16 tokens as one, from the start and from the end; a response is one number for all its tokens. "
    "What no row explains is how f differs within a response between tokens of one kind at about the same place.", "",
    "## |F| beside other figures of a token", "", "Spearman's rank correlation over all tokens of a run:", "",
  ]  # fmt: skip
  key = "rank correlation of |F|"
  others = ("entropy", "|shift|", "distance to the end")
  rows = [[f"|F| and {what}", spread(runs, key, what, form=".2f")] for what in others]
  rows.append(["|shift| and entropy", spread(runs, "rank correlation of |shift| with entropy", form=".2f")])
  text += _table(["pair", "correlation"], rows)
  return "\n".join(text).rstrip() + "\n"


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
