"""Forecasts beside runs that were made: costs are fitted on one run on a machine, the others on it are foretold.

    run 1: metrics.jsonl, simulated iterations -> what was done -> seconds of each kind of it
    run n: simulated iterations -> what would be done -> seconds, beside those of its metrics.jsonl

What is done and when (slots, pages, prefills, looks, the tail, what waits, packing) is the simulation's alone; of a run
that is foretold its config and its lengths are taken, step by step, and no second of it.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import pathlib

import jax
import numpy as np
import scipy.optimize

from fipo_jax import paths, saved
from fipo_jax.pods import forecast, iteration
from fipo_jax.pods import measured as measured_lib
from fipo_jax.pods.chips import Chip
from fipo_jax.pods.iteration import Workload
from fipo_jax.pods.programs import forward_flops, make_plan

# Few kinds, which one run can tell apart: its slots and its rows are always as many, so that a cost of each slot, or of
# each micro-batch, could be told from those of a token step or of its arithmetic by other runs only.
ROLLOUT = ("looks", "steps", "page_steps")
LEARNING = ("updates", "flops")
SECONDS = {  # phase -> (metrics, kinds of what it does)
  "rollout": (("seconds/rollout",), ROLLOUT), "update": (("seconds/old_logp", "seconds/update"), LEARNING),
}  # fmt: skip
UNFITTED = 2  # steps at a run's start that compile, and are not compared
COMPILED = 0.03  # nor is a step that compiled for a larger share of its rollout


@dataclasses.dataclass(frozen=True)
class Step:
  """One iteration of a run. done: how much of each kind of ROLLOUT and LEARNING. seconds: of each of SECONDS."""

  number: int
  done: dict[str, float]
  seconds: dict[str, float]
  compares: bool


@dataclasses.dataclass(frozen=True)
class Checked:
  """A run beside its forecast. error: median over its steps of |foretold / measured - 1|, by phase."""

  folder: str
  fitted: bool
  steps: int
  measured: dict[str, float]
  foretold: dict[str, float]
  error: dict[str, float]
  tokens: float


class Counted:
  """`simulated.Costs` that says a second a token step, and counts what is done."""

  decide = 1

  def __init__(self):
    self.done: dict[str, float] = collections.Counter()

  def token_steps(self, steps: int, shape, context_D, growth_D) -> float:
    """XLA's attention computes on every page, in use or not."""
    del context_D, growth_D
    self.done["steps"] += steps
    self.done["page_steps"] += steps * (shape.own + shape.shared)
    return float(steps)

  def prefill(self, rows: int, length: int) -> float:
    return 0.0  # of short prompts: little beside their responses

  def look(self, slots: int) -> float:
    self.done["looks"] += 1
    return 0.0

  def resize(self, tokens: int) -> float:
    return 0.0


def check(folders: list[str]) -> tuple[list[Checked], dict[str, float]]:
  """Of runs on this machine, the first of which is fitted; and the seconds of one of each kind.

  Raises ValueError: a folder without a run, too few steps, or a run with another engine.
  """
  runs = [steps_of(folder) for folder in folders]
  costs = {}
  for phase, (_, kinds) in SECONDS.items():
    costs |= fit(runs[0], phase, kinds, folders[0])
  found = []
  for folder, steps in zip(folders, runs, strict=True):
    steps = [s for s in steps if s.compares]
    if not steps:
      raise ValueError(f"check={folder}: no step after the first {UNFITTED} that did not compile; make a longer run.")
    measured = {p: np.array([s.seconds[p] for s in steps]) for p in SECONDS}
    foretold = {p: np.array([sum(costs[k] * s.done[k] for k in SECONDS[p][1]) for s in steps]) for p in SECONDS}
    error = {p: float(np.median(np.abs(foretold[p] / measured[p] - 1))) for p in SECONDS}
    middle = lambda of: {p: float(np.median(x)) for p, x in of.items()}
    tokens = float(np.median([s.done["tokens"] for s in steps]))
    found.append(Checked(folder, not found, len(steps), middle(measured), middle(foretold), error, tokens))
  return found, costs


def fit(steps: list[Step], phase: str, kinds, folder: str) -> dict[str, float]:
  """Seconds of one of each kind, none below 0, by least squares of the relative error over the steps of a run."""
  steps = [s for s in steps if s.compares]
  if len(steps) < 3:
    raise ValueError(f"check={folder}: {len(steps)} steps to fit on; a run of {UNFITTED + 3} or more is needed.")
  done = np.array([[s.done[kind] / s.seconds[phase] for kind in kinds] for s in steps])
  scale = np.maximum(done.max(0), 1e-30)
  found, _ = scipy.optimize.nnls(done / scale, np.ones(len(steps)))
  return dict(zip(kinds, (found / scale).tolist(), strict=True))


def steps_of(folder: str) -> list[Step]:
  """The iterations of a run, simulated one after the other with the lengths that each had."""
  records = measured_lib.records_of(folder, "check")
  cfg = saved.get_config(str(paths.of(folder) / "config.json"))
  if cfg.rollout.engine != "native" or cfg.rollout.slots == "auto":
    raise ValueError(f"check={folder}: rollout.engine='native' and a number of rollout.slots are needed.")
  device = jax.devices()[:1]
  chip = Chip("", "", 1, math.inf, 1, 1, 1, 1)  # nothing is asked of it
  plan = make_plan(cfg, chip, device, cfg.rollout.slots)
  linear, attention, _ = forward_flops(plan.model, cfg.batch, plan.mesh)
  counted, run, steps = Counted(), None, []
  for record in records:
    work = Workload(forecast.lengths_of(record), round(record["prompt_length"]), max(record["keep_rate"], 1e-3))
    run = run or iteration.open_run(plan, work, counted)
    run.engine.lengths, run.stream.of = work.lengths, work
    counted.done.clear()
    groups, values = iteration.draw(run, record["step"])
    micro, _, updates = iteration.packed(cfg, groups, record["step"])
    # XLA's attention over rows computes both halves of the square.
    done = dict(counted.done) | {
      "tokens": values["tokens_generated"], "updates": updates, "flops": micro * (linear + 2 * attention)
    }  # fmt: skip
    seconds = {p: sum(record[name] for name in names) for p, (names, _) in SECONDS.items()}
    compiled = record.get("rollout/compile_s", 0.0) > COMPILED * seconds["rollout"]
    compares = len(steps) >= UNFITTED and not compiled
    steps.append(Step(record["step"], collections.defaultdict(float, done), seconds, compares))
  return steps


def describe(found: list[Checked], costs: dict[str, float]) -> str:
  """The runs in Markdown, the medians of those that were foretold, and what was fitted."""
  lines = [
    "| run | steps | tokens | rollout s, measured | foretold | error | update s, measured | foretold | error |",
    "|---" * 9 + "|",
  ]  # fmt: skip
  for c in found:
    cells = [f"{c.measured[p]:.3g} | {c.foretold[p]:.3g} | {c.error[p]:.1%}" for p in SECONDS]
    name = pathlib.Path(c.folder).name + (" (fitted)" if c.fitted else "")
    lines.append(f"| {name} | {c.steps} | {c.tokens:,.0f} | {' | '.join(cells)} |")
  told = [c for c in found if not c.fitted]
  if told:
    middle = ", ".join(f"{p} {np.median([c.error[p] for c in told]):.1%}" for p in SECONDS)
    lines += ["", f"Median error of the {len(told)} runs that were foretold: {middle}."]
  fitted = ", ".join(f"{kind} {1e6 * s:.3g}" for kind, s in costs.items() if s > 0)
  return "\n".join([*lines, f"Fitted, in microseconds of one: {fitted}."])
