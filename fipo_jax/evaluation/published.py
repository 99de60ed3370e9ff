"""What others have published of evaluation sets, to lay beside figures of ours: the paper, its baselines.

    for line in lines("aime24", measured): print(line)

A figure is compared with its like alone: the same set, the same kind (avg@32, cons@32, pass@32), all problems. Prompts,
token limits and verifiers may differ all the same, as most sources do not say theirs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

FIPO = "arXiv 2603.19835"
DAPO = "verl's documentation of its DAPO recipe"
PROBLEMS = {"aime24": 30, "aime25": 30}  # of a whole set
EACH = ("avg", "cons", "pass")


@dataclasses.dataclass(frozen=True)
class Published:
  """A figure of others. value: a share, rounded as in the source. figure: avg@32, cons@32 or pass@32."""

  model: str
  set_name: str
  figure: str
  value: float
  source: str


def _row(model: str, set_name: str, source: str, **percent: float) -> list[Published]:
  return [Published(model, set_name, f"{kind}@32", p / 100, source) for kind, p in percent.items()]


# In the order in which they are said. "about" is the paper's: it draws these as lines beside its own avg@32.
PUBLISHED: tuple[Published, ...] = (
  *_row("FIPO, Qwen2.5-32B", "aime24", FIPO, avg=56, cons=73, **{"pass": 83}),
  *_row("FIPO, Qwen2.5-32B, at its peak", "aime24", FIPO, avg=58),
  *_row("DAPO, Qwen2.5-32B, by FIPO's authors", "aime24", FIPO, avg=50, cons=60, **{"pass": 80}),
  *_row("DeepSeek-R1-Zero on Qwen2.5-32B, about", "aime24", FIPO, avg=47),
  *_row("o1-mini, about", "aime24", FIPO, avg=56),
  *_row("DAPO, Qwen2.5-32B, by verl", "aime24", DAPO, avg=52),
  *_row("FIPO, Qwen2.5-Math-7B, at its peak", "aime24", FIPO, avg=40),
  *_row("DAPO, Qwen2.5-Math-7B, at its peak", "aime24", FIPO, avg=36),
  *_row("GRPO, Qwen2.5-Math-7B, at its peak", "aime24", FIPO, avg=22),
  *_row("FIPO, Qwen2.5-32B", "aime25", FIPO, avg=43, cons=50, **{"pass": 67}),
  *_row("DAPO, Qwen2.5-32B, by FIPO's authors", "aime25", FIPO, avg=38, cons=47, **{"pass": 63}),
  *_row("FIPO, Qwen2.5-Math-7B, at its peak", "aime25", FIPO, avg=19),
  *_row("DAPO, Qwen2.5-Math-7B, at its peak", "aime25", FIPO, avg=18),
  *_row("GRPO, Qwen2.5-Math-7B, at its peak", "aime25", FIPO, avg=18),
)


def key(set_name: str) -> str:
  """The set that a name means, a key of PROBLEMS, or "": aime24, AIME-2024 and aime_2024 are one."""
  name = re.sub(r"[^a-z0-9]", "", set_name.lower())
  name = re.sub(r"^aime20(\d\d)$", r"aime\1", name)
  return name if name in PROBLEMS else ""


def find(set_name: str, *, samples: int, problems: int) -> list[Published]:
  """What may stand beside figures of `problems` problems with `samples` samples each."""
  name = key(set_name)
  if not name or problems != PROBLEMS[name]:
    return []
  return [p for p in PUBLISHED if p.set_name == name and p.figure in {f"{kind}@{samples}" for kind in EACH}]


def lines(set_name: str, found: Mapping[str, Any]) -> list[str]:
  """What people read beside an evaluation's own figures: a line for each figure. found: of `measure.measure`."""
  n, problems = len(found["problems"][0]["accuracies"]), len(found["problems"])
  beside = find(set_name, samples=n, problems=problems)
  curves = found["curves"]
  own = {f"avg@{n}": found["metrics"]["accuracy"]}
  own |= {figure: curves[figure]["value"] for figure in (f"cons@{n}", f"pass@{n}") if figure in curves}
  said = []
  for figure, value in own.items():
    if others := [f"{p.value:.2f} {p.model} ({p.source})" for p in beside if p.figure == figure]:
      said.append(f"{set_name} {figure} {value:.3f}; published: {'; '.join(others)}")
  return said
