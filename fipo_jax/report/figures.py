"""Runs -> what the page draws: tracks of numbers by key, and the panels that name them. Plain records, for JSON.

A track is what is drawn as one line: a run, the mean of an arm's seeds, or an attempt that was rolled back.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Sequence
from typing import Any

from fipo_jax.report import panels
from fipo_jax.report.compare import Arm
from fipo_jax.report.panels import Group, Panel
from fipo_jax.report.read import Row, Run

MOST_ROWS = 3000  # of all tracks of a page; of more, every n-th is drawn
LINES_OF_A_LIST = 6  # of values per mini-batch
NOT_DRAWN = ("step", "time", "rollout/timeline")


def figures(arms: list[Arm]) -> dict[str, Any]:
  """{"tracks": [...], "groups": [...], "thinned": n if every n-th step is drawn, else 1}."""
  attempts = [(n, a, run) for n, arm in enumerate(arms) for run in arm.runs for a in run.attempts if a]
  count = sum(len(run.rows) for arm in arms for run in arm.runs) + sum(len(a) for _, a, _ in attempts)
  every = max(1, -(-count // MOST_ROWS))
  tracks = [_arm(n, arm, every) for n, arm in enumerate(arms)]
  tracks += [track(n, _thinned(rows, every), run) | {"rolled_back": True} for n, rows, run in attempts]
  keys = sorted({key for t in tracks for key in t["columns"]})
  several = len(arms) > 1
  groups = [_group(group, keys, several) for group in (*panels.GROUPS, _rest(keys))]
  if not several and (last := _last_rollout(arms[0].runs[0].rows)):
    groups = [g | {"panels": [*g["panels"], last]} if g["name"] == "rollout" else g for g in groups]
  return {"tracks": tracks, "groups": [g for g in groups if g["panels"]], "thinned": every}


def _thinned(rows: Sequence[Row], every: int) -> list[Row]:
  """Every n-th row, and those that something happened in."""
  told = lambda row: row.get("alarms") or row.get("changed") or "eval/accuracy" in row
  return [row for n, row in enumerate(rows) if n % every == 0 or n == len(rows) - 1 or told(row)]


# ---- tracks ----


def track(arm: int, rows: Sequence[Row], run: Run) -> dict[str, Any]:
  """Its axes, a value a row (None: there is no such axis), and {"y", "at" (rows, if not all), "bands"} by key."""
  tokens, seconds = _tokens(rows), _seconds(rows, run)
  columns = {key: values for key, values in _columns(rows).items() if any(v is not None for v in values)}
  found = {key: _column(values, _bands(key, columns)) for key, values in columns.items()}
  used = {name for key in columns for ends in panels.bands(key) for name in ends}  # drawn as bands
  return {
    "arm": arm, "seeds": 1, "rolled_back": False, "step": [row["step"] for row in rows], "tokens": tokens,
    "seconds": seconds, "columns": {key: column for key, column in found.items() if key not in used},
  }  # fmt: skip


def _columns(rows: Sequence[Row]) -> dict[str, list[float | None]]:
  """Key -> a number or None per row; of lists of numbers key#1, key#2, .. of some places, the last included."""
  keys = {key: None for row in rows for key in row if key not in NOT_DRAWN}
  found = {}
  for key in keys:
    values = [row.get(key) for row in rows]
    count = max((len(v) for v in values if isinstance(v, list)), default=0)
    if not count:
      found[key] = [_number(v) for v in values]
    for i in _spread(count, LINES_OF_A_LIST):
      at = lambda v, i=i: v[i] if isinstance(v, list) and i < len(v) else None
      found[f"{key}#{i + 1}"] = [_number(at(v)) for v in values]
  return found


def _spread(count: int, most: int) -> list[int]:
  """At most `most` of the numbers below count, evenly, with the first and the last."""
  return list(range(count)) if count <= most else [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _number(value) -> float | None:
  plain = isinstance(value, int | float) and not isinstance(value, bool)
  return value if plain and math.isfinite(value) else None


def _bands(key: str, columns: dict[str, list]) -> list[tuple[list, list]]:
  """(Lower ends, upper ends) of its bands; None where one is missing."""
  found = []
  for first, second in panels.bands(key):
    if second not in columns:
      continue
    if isinstance(first, float):
      pairs = [(None, None) if m is None or s is None else (m - first * s, m + first * s)
               for m, s in zip(columns[key], columns[second], strict=True)]  # fmt: skip
    elif first in columns:
      pairs = list(zip(columns[first], columns[second], strict=True))
    else:
      continue
    found.append(([low for low, _ in pairs], [high for _, high in pairs]))
  return found


def _column(values: list, found: Iterable[tuple[list, list]]) -> dict[str, Any]:
  """A column without the rows that lack it."""
  at = [n for n, v in enumerate(values) if v is not None]
  some = lambda column: [_rounded(column[n]) for n in at]
  column: dict[str, Any] = {"y": some(values)}
  if len(at) < len(values):
    column["at"] = at
  if bands := [[some(low), some(high)] for low, high in found]:
    column["bands"] = bands
  return column


def _rounded(value: float | None) -> float | None:
  return value if value is None or isinstance(value, int) else float(f"{value:.5g}")


def _tokens(rows: Sequence[Row]) -> list[float] | None:
  """Tokens sampled since the beginning, by row; None for runs that did not count them."""
  total, found = 0.0, []
  for row in rows:
    known = _number(row.get("total/tokens_generated"))
    total = known if known is not None else total + (_number(row.get("tokens_generated")) or 0.0)
    found.append(total)
  return found if total else None


def _seconds(rows: Sequence[Row], run: Run) -> list[float] | None:
  """Wall-clock since the first start, by row, waiting included; of older runs the sum of their steps."""
  if rows and all(_number(row.get("time")) for row in rows):
    began = _number((run.starts or [{}])[0].get("began"))
    first = began if began and began <= rows[0]["time"] else rows[0]["time"]
    return [round(row["time"] - first, 1) for row in rows]
  total, found = 0.0, []
  for row in rows:
    total += _number(row.get("seconds/step")) or 0.0
    found.append(round(total, 1))
  return found if total else None


# ---- seeds ----


def _arm(number: int, arm: Arm, every: int) -> dict[str, Any]:
  """A run's track, or the mean over seeds with a band from the lowest to the highest."""
  if len(arm.runs) == 1:
    return track(number, _thinned(arm.runs[0].rows, every), arm.runs[0])
  tracks = [track(number, _thinned(run.rows, every), run) for run in arm.runs]
  steps = sorted(set().union(*(t["step"] for t in tracks)))
  mean = lambda values: _rounded(sum(values) / len(values))
  axes = {}
  for axis in ("tokens", "seconds"):
    known = [dict(zip(t["step"], t[axis], strict=True)) for t in tracks if t[axis]]
    axes[axis] = [mean([k[s] for k in known if s in k] or [0.0]) for s in steps] if len(known) == len(tracks) else None
  columns = {}
  for key in dict.fromkeys(key for t in tracks for key in t["columns"]):
    known = [_by_step(t, key) for t in tracks]
    each = {s: [k[s] for k in known if s in k] for s in steps}
    values = [mean(each[s]) if each[s] else None for s in steps]
    columns[key] = _column(values, [([min(each[s], default=None) for s in steps],
                                     [max(each[s], default=None) for s in steps])])  # fmt: skip
  return {"arm": number, "seeds": len(tracks), "rolled_back": False, "step": steps, **axes, "columns": columns}


def _by_step(t: dict, key: str) -> dict[int, float]:
  column = t["columns"].get(key)
  if column is None:
    return {}
  steps = [t["step"][n] for n in column["at"]] if "at" in column else t["step"]
  return dict(zip(steps, column["y"], strict=True))


# ---- panels ----


def _group(group: Group, keys: list[str], several: bool) -> dict[str, Any]:
  found = [p for panel in group.panels for p in _panel(panel, keys, several)]
  return {"name": group.name, "said": group.said, "panels": found}


def _panel(panel: Panel, keys: list[str], several: bool) -> list[dict[str, Any]]:
  """The panel with the keys that are there; where arms are compared one per key, for colours are the arms'."""
  have = list(dict.fromkeys(k for name in panel.keys for k in matches(name, keys)))
  if panel.kind == "path":
    pairs = [pair for pair in zip(panel.keys[::2], panel.keys[1::2], strict=True) if set(pair) <= set(keys)]
    return [_made(panel, [key for pair in pairs for key in pair])] if pairs else []
  if panel.kind == "stack":
    have = [key for key in have if key not in panels.NOT_STACKED]
  if not have or not several:
    return [_made(panel, have)] if have else []
  have = [key for key in have if "#" not in key] + [key for key in have if "#" in key][-1:]
  plain = panel._replace(kind="lines")
  if len(have) == 1:
    return [_made(plain, have)]
  return [_made(plain._replace(title=f"{panel.title}: {key}", note=""), [key]) for key in have]


def _made(panel: Panel, keys: list[str]) -> dict[str, Any]:
  return {"title": panel.title, "unit": panel.unit, "note": panel.note, "kind": panel.kind, "keys": keys}


def matches(name: str, keys: list[str]) -> list[str]:
  """The keys that a panel's name means, the places of a list in their order."""
  if "*" in name:
    return [key for key in fnmatch.filter(keys, name) if "#" not in key]
  own = [key for key in keys if key == name or key.startswith(f"{name}#")]
  return sorted(own, key=lambda key: int(key.partition("#")[2] or 0))


def _rest(keys: list[str]) -> Group:
  """A panel for each key that no other shows."""
  named = [name for group in panels.GROUPS for panel in group.panels for name in panel.keys]
  shown = {key for name in named for key in matches(name, keys)}
  rest = list(dict.fromkeys(key.partition("#")[0] for key in keys if key not in shown))
  return Group(panels.REST, "What no figure above shows, by its name in metrics.jsonl.",
               tuple(Panel(key, "", (key,)) for key in rest))  # fmt: skip


def _last_rollout(rows: Sequence[Row]) -> dict[str, Any] | None:
  """How busy the engine was over the seconds of the newest rollout."""
  found = next(((row["step"], row["rollout/timeline"]) for row in reversed(rows) if row.get("rollout/timeline")), None)
  whole = lambda point: isinstance(point, list) and len(point) == 4 and None not in map(_number, point)
  if not found or not all(map(whole, found[1])):
    return None
  at, busy, rate, cache = zip(*found[1], strict=True)
  fastest = max(rate) or 1.0
  lines = {"slots busy": busy, "cache in use": cache}
  lines[f"speed / {fastest:,.0f} tokens per s"] = [r / fastest for r in rate]
  return {
    "title": f"The rollout of step {found[0]}", "unit": "fraction", "note": "x is its seconds", "kind": "own",
    "keys": list(lines), "x": list(at), "y": [[_rounded(float(v)) for v in values] for values in lines.values()],
  }  # fmt: skip
