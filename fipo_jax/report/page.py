"""What was read of some runs -> one self-contained HTML page: it can be mailed, and opened years later, from a disk.

Scripts are inline, and the page forbids any other, and every connection. What comes from runs (names, configs, what a
model has said) is data: escaped where it stands in HTML, else JSON in scripts that are no programs, which ours put into
the page as text alone.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import importlib.resources
import json
import string
import time
from typing import Any

from fipo_jax.report import compare, events, figures, summary, tokens
from fipo_jax.report.compare import Arm
from fipo_jax.report.read import Run

RELOAD_S = 15  # a page that is watched loads itself again so often


def render(runs: list[Run], *, watched: bool = False, samples_mb: float = tokens.MOST_MB) -> str:
  """The page. watched: whether it loads itself again, for somebody who looks at a run under way."""
  arms = compare.arms(runs)
  drawn = figures.figures(arms)
  names = [arm.name for arm in arms]
  found = {
    **drawn, "arms": names,
    "events": [{"run": run.name, "arm": n, **vars(e)} for n, run in _numbered(arms) for e in events.events(run)],
  }  # fmt: skip
  said = tokens.tokens(runs, samples_mb)
  sections = [
    _section("summary", "Summary", _summary(arms)),
    _section("differences", "What differs", _differences(arms)),
    *([_section("curves", "Curves", _asset("curves.html"))] if drawn["groups"] else []),
    _section("time", "Time", "".join(_time(run, several=len(runs) > 1) for run in runs)),
    _section("events", "Events", _events(found["events"], several=len(runs) > 1)),
    *([_section("tokens", "Tokens", _asset("tokens.html"))] if said["samples"] else []),
  ]
  sections = [section for section in sections if section]
  scripts = [*_bokeh(), _asset("curves.js"), _asset("tokens.js")]
  return string.Template(_asset("page.html")).substitute(
    title=html.escape(" and ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")),
    policy=_policy(scripts), style=_asset("page.css"), reload=RELOAD_S if watched else "",
    nav="".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections),
    body="".join(_html(*section) for section in sections),
    foot=_foot(runs, drawn, said),
    data=_json("figures", found) + _json("responses", {**said, "runs": [run.name for run in runs]}),
    scripts="".join(f"<script>{script}</script>" for script in scripts),
  )  # fmt: skip


def _numbered(arms: list[Arm]) -> list[tuple[int, Run]]:
  return [(n, run) for n, arm in enumerate(arms) for run in arm.runs]


# ---- the frame ----


@functools.cache
def _asset(name: str) -> str:
  """One of our own files beside this one."""
  return importlib.resources.files("fipo_jax.report").joinpath(name).read_text("utf-8")


@functools.cache
def _bokeh() -> list[str]:
  """The library that draws, as scripts."""
  from bokeh.resources import Resources  # takes as long to import as a short page to write

  resources = Resources(mode="inline", components=["bokeh", "bokeh-api"])
  scripts = resources.js_raw[:2]  # what follows sets how much it logs
  return [script.replace("</script", r"<\/script").replace("<!--", r"<\!--") for script in scripts]


def _policy(scripts: list[str]) -> str:
  """The Content-Security-Policy: these scripts, and nothing from elsewhere."""
  hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
  allowed = " ".join(f"'sha256-{value}'" for value in hashes)
  return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


def _json(name: str, value: Any) -> str:
  """Data for the scripts. No text can end it: < is written as an escape, and so are the line ends of JavaScript."""
  text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
  for character in "<>&\u2028\u2029":
    text = text.replace(character, f"\\u{ord(character):04x}")
  return f'<script type="application/json" id="{name}">{text}</script>\n'


def _section(name: str, title: str, content: str) -> tuple[str, str, str] | None:
  return (name, title, content) if content else None


def _html(name: str, title: str, content: str) -> str:
  return f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>{content}</section>\n'


def _table(head: list[str], rows: list[list[str]], kind: str = "") -> str:
  """Cells are texts; the first of a row is its heading."""
  top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
  cells = lambda rest: "".join(f"<td>{html.escape(cell)}</td>" for cell in rest)
  body = "".join(f'<tr><th scope="row">{html.escape(first)}</th>{cells(rest)}</tr>' for first, *rest in rows)
  return f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


# ---- sections ----


def _summary(arms: list[Arm]) -> str:
  """Ten lines of a run; of several a table first, and the lines of each in a fold."""
  runs = [run for arm in arms for run in arm.runs]
  if len(runs) == 1:
    return _tiles(runs[0]) + _lines(runs[0])
  rows = [[f"{run.name}", arm.name, *(text for _, text in summary.tiles(run))] for arm in arms for run in arm.runs]
  table = _table(["run", "arm", *(name for name, _ in summary.tiles(runs[0]))], rows, "numbers")
  folds = "".join(f"<details><summary>{html.escape(run.name)}</summary>{_lines(run)}</details>" for run in runs)
  return table + folds


def _tiles(run: Run) -> str:
  cells = "".join(
    f'<div class="tile"><div>{html.escape(name)}</div><strong>{html.escape(text)}</strong></div>'
    for name, text in summary.tiles(run)
  )
  return f'<div class="tiles">{cells}</div>'


def _lines(run: Run) -> str:
  pairs = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(line)}</dd>" for name, line in summary.summary(run))
  return f'<dl class="lines">{pairs}</dl>'


def _differences(arms: list[Arm]) -> str:
  if len(arms) < 2:
    return ""
  if not (table := compare.differences(arms)):
    return "<p>The configs say nothing: a run has none, or they are alike.</p>"
  return _table(["field", *(arm.name for arm in arms)], [[field, *values] for field, values in table], "code")


def _time(run: Run, *, several: bool) -> str:
  """Bars: where the wall time went, and which phases the iterations had."""
  found = []
  if run.spent:
    shares = [(said, run.spent.get(name) or 0.0) for name, said in summary.TIMES]
    found.append(_bars(f"Since the first start: {summary.duration(run.spent['wall_s'])}", shares))
  if phases := summary.phases(run):
    whole = sum(seconds for _, seconds in phases)
    found.append(_bars(f"Iterations by phase: {summary.duration(whole)}", phases))
  name = f"<h3>{html.escape(run.name)}</h3>" if several and found else ""
  return name + (f'<div class="columns">{"".join(found)}</div>' if found else "")


def _bars(title: str, parts: list[tuple[str, float]]) -> str:
  whole = sum(seconds for _, seconds in parts) or 1.0
  rows = "".join(
    f'<tr><th scope="row">{html.escape(name)}</th><td>{summary.duration(seconds)}</td><td>{seconds / whole:.1%}</td>'
    f'<td class="bar"><i style="width:{100 * seconds / whole:.1f}%"></i></td></tr>'
    for name, seconds in parts
  )
  return f'<div><h3>{html.escape(title)}</h3><table class="bars"><tbody>{rows}</tbody></table></div>'


def _events(found: list[dict[str, Any]], *, several: bool) -> str:
  if not found:
    return "<p>No alarms, rollbacks, restarts, changed fields or skipped updates.</p>"
  last: dict[tuple, list] = {}
  rows: list[list] = []
  for e in found:  # an alarm that goes on is a row
    key = (e["run"], e["kind"], e["said"])
    if key in last and e["step"] <= last[key][1] + 1:
      last[key][1] = e["step"]
    else:
      last[key] = [e["step"], e["step"]]
      rows.append([last[key], *([e["run"]] if several else []), e["kind"], e["said"]])
  rows = [[f"{a}" if a == b else f"{a} to {b}", *rest] for (a, b), *rest in rows]
  return _table(["step", *(["run"] if several else []), "what", ""], rows)


def _foot(runs: list[Run], drawn: dict[str, Any], said: dict[str, Any]) -> str:
  notes = [f"{run.name}: {len(run.rows)} lines of metrics" for run in runs]
  if drawn["thinned"] > 1:
    notes.append(f"every {drawn['thinned']}th step is drawn")
  if said["total"] > len(said["samples"]):
    notes.append(f"{len(said['samples'])} of {said['total']} responses are in the page, of steps evenly spread")
  notes.append(time.strftime("written %Y-%m-%d %H:%M:%S UTC", time.gmtime()))
  return html.escape("; ".join(notes))
