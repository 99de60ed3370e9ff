"""What countdown policies do with their tries: how often they give up, add wrongly, and see 0 where there is none.

Read from the responses that runs keep (samples.jsonl), at the beginning and at the end of each; data/countdown.py says
how they are written.
"""

from __future__ import annotations

import json
import re
from typing import Any

from fipo_jax import lines, paths

FIRST, LAST = 10, 30  # steps that "at first" and "at the end" mean
EARLY, LATE = 3, 9  # up to which try of a response, and from which on
# Title of a column -> (what is counted, of what).
FIGURES = {
  "answers at once": ("at once", "responses"),
  "gives up after a no": ("given up", "no"),
  f"wrong sums, tries 1 to {EARLY}": ("wrong early", "early"),
  f"wrong sums from try {LATE} on": ("wrong late", "late"),
  "ok though the signs are wrong": ("false ok", "ok"),
  "right after ok": ("right after ok", "ended by ok"),
  "right": ("right", "responses"),
}
_TRY = re.compile(r"(\d+)((?:[+-]\d+=-?\d+)+) (ok|no)")
_SUM = re.compile(r"([+-]\d+)=(-?\d+)")


def counts(prompt: str, response: str, accuracy: float) -> dict[str, int]:
  """What FIGURES counts, of one response. Lines that are no try, such as a check, are left out.

  prompt: "6 2 3 1 -> 2:".  accuracy: 1 where the answer is right.
  """
  target = int(prompt.partition("->")[2].strip(" :\n"))
  found = dict.fromkeys([name for pair in FIGURES.values() for name in pair] + ["between", "wrong between"], 0)
  body, label, _ = response.partition("Answer:")
  verdicts = []
  for line in body.splitlines():
    if not (match := _TRY.fullmatch(line)):
      continue
    first, steps, verdict = int(match[1]), _SUM.findall(match[2]), match[3]
    value = first
    number = len(verdicts) + 1
    when = "early" if number <= EARLY else "late" if number >= LATE else "between"
    for term, result in steps:
      found[when] += 1
      found[f"wrong {when}"] += value + int(term) != int(result)
      value = int(result)
    reached = first + sum(int(term) for term, _ in steps[:-1])  # the last one takes the target away
    found["false ok"] += verdict == "ok" and (reached != target or int(steps[-1][0]) != -target)
    verdicts.append(verdict)
  found["responses"], found["right"] = 1, int(accuracy == 1)
  found["ok"], found["no"] = verdicts.count("ok"), verdicts.count("no")
  if label:
    found["at once"] = int(not body.strip())
    found["given up"] = int(verdicts[-1:] == ["no"])
    found["ended by ok"] = int(verdicts[-1:] == ["ok"])
    found["right after ok"] = found["ended by ok"] * found["right"]
  return found


def read(run: str) -> tuple[dict[str, float], dict[str, float]]:
  """FIGURES of a run's kept responses, of its first steps and of its last; what has nothing to count is left out.

  Raises: ValueError when it has kept none.
  """
  by_step: dict[int, dict[str, int]] = {}
  for line in lines.read(paths.of(run) / "samples.jsonl"):
    s = json.loads(line)
    total = by_step.setdefault(s["step"], {})
    for name, n in counts(s["prompt"], s["response"], s["accuracy"]).items():
      total[name] = total.get(name, 0) + n
  if not by_step:
    raise ValueError(f"--run={run}: samples.jsonl has no response; it needs log.samples above 0.")
  last = max(by_step)
  return shares(by_step, range(FIRST + 1)), shares(by_step, range(last - LAST + 1, last + 1))


def shares(by_step: dict[int, dict[str, int]], steps: range) -> dict[str, float]:
  total = lambda name: sum(c[name] for step, c in by_step.items() if step in steps)
  return {title: total(n) / total(of) for title, (n, of) in FIGURES.items() if total(of)}


def table(runs: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> list[list[str]]:
  """A header, and a row a run: each figure at first and at the end."""
  said = lambda pair, title: " to ".join(f"{part[title]:.2f}" if title in part else "-" for part in pair)
  return [["run", *FIGURES], *([name, *(said(pair, title) for title in FIGURES)] for name, pair in runs.items())]
