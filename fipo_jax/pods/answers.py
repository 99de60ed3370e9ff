"""What several forecasts say together: a table, a picture, and what samplers and a trainer of their own would gain."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fipo_jax.pods.iteration import PHASES

ROLLOUT, LEARNING = ("prefill", "decode", "look", "resize"), ("score", "update")


def seconds_of(f: dict[str, Any], names) -> float:
  """Seconds of some phases of a forecast."""
  return sum(f["seconds"][name] for name in names)


def table(results: list[dict[str, Any]]) -> str:
  """A forecast a line, in Markdown."""
  lines = [
    "| | chips | slots | rollout s | score + update s | evaluation s | iteration s | idle | rows full | tokens/s/chip "
    "| chip-hours per 100 steps | GiB | decode, update bound by |", "|---" * 13 + "|",
  ]  # fmt: skip
  for f in results:
    m, bounds = f["memory_gib"], f["bounds"]
    rollout, learning = seconds_of(f, ROLLOUT), seconds_of(f, LEARNING)
    lines.append(
      f"| {name_of(f)} | {f['chips']} | {f['slots']:,} | {rollout:,.0f} | {learning:,.0f} | "
      f"{f['seconds']['evaluate']:,.0f} | **{f['iteration_s']:,.0f}** | {f['idle_share']:.0%} | {f['row_fill']:.0%} | "
      f"{f['tokens_per_second_per_chip']:,.0f} | {f['chip_hours_100']:,.0f} | {max(m['train'], m['rollout']):.0f} of "
      f"{f['limit_gib']:.0f}{'' if f['fits'] else ', DOES NOT FIT'} | {bounds['decode']}, {bounds['update']} |"
    )
  return "\n".join(lines)


def name_of(f: dict[str, Any]) -> str:
  """What a forecast is called, or its topology."""
  return f.get("name") or f["topology"] + (f" x {f['slices']}" if f["slices"] > 1 else "")


def splits(results: list[dict[str, Any]]) -> str:
  """One program beside chips that are split into samplers and a trainer one step behind, of forecasts by chips.

      one program = R(N) + L(N);   split = max(R(n), L(N - n))

  R: rollout and evaluation, L: scoring and update, on so many chips; between those of the forecasts by straight lines
  in logarithms, and not beyond them. A table in Markdown for each workload that three sizes or more were forecast of.
  """
  series = collections.defaultdict(dict)
  for f in results:
    alike = f["topology"].split("-")[0], *map(f.get, ("model", "lengths", "unfinished", "prompts", "cache_dtype"))
    series[alike][f["chips"]] = seconds_of(f, ROLLOUT) + f["seconds"]["evaluate"], seconds_of(f, LEARNING)
  lines = []
  for (kind, model, lengths, unfinished, *_), points in series.items():
    if len(points) < 3:
      continue
    lines += [
      f"{model} on {kind}, {lengths}, {unfinished}:", "",
      "| chips | one program | in halves | best split | gain | in halves |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    sizes = np.array(sorted(points))
    of = lambda n, i, sizes=sizes, points=points: np.exp(
      np.interp(np.log(n), np.log(sizes), np.log([points[s][i] for s in sizes]))
    )
    for N in sizes[sizes >= 2 * sizes[0]]:
      one, n = sum(points[N]), np.arange(sizes[0], N - sizes[0] + 1)
      split = np.maximum(of(n, 0), of(N - n, 1))
      half, best = split[N // 2 - sizes[0]], int(np.argmin(split))
      lines.append(
        f"| {N:,} | {one:,.0f} s | {half:,.0f} s | {split[best]:,.0f} s at {n[best]} + {N - n[best]} | "
        f"{1 - split[best] / one:+.0%} | {1 - half / one:+.0%} |"
      )
    lines.append("")
  return "\n".join(lines)


def draw(results: list[dict[str, Any]], path: str) -> None:
  """Seconds of an iteration by phase, one bar a forecast, as a picture."""
  figure = Figure(figsize=(8.0, 1.2 + 0.28 * len(results)))
  axes = figure.subplots()
  places, left = range(len(results)), np.zeros(len(results))
  for phase in (p for p in PHASES if any(f["seconds"][p] > 0.005 * f["iteration_s"] for f in results)):
    seconds = np.array([f["seconds"][phase] for f in results])
    axes.barh(places, seconds, left=left, label=phase)
    left += seconds
  axes.set_yticks(places, [f"{name_of(f)}, {f['chips']} chips" for f in results], fontsize=8)
  axes.invert_yaxis()
  axes.set_xlabel("seconds of an iteration, forecast")
  axes.legend(fontsize=8, frameon=False)
  axes.spines[["top", "right"]].set_visible(False)
  figure.tight_layout()
  figure.savefig(path, dpi=90)
