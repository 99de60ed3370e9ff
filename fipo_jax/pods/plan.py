"""What a run would cost on topologies that are asked for: forecasts, and a search for cheaper settings."""

from __future__ import annotations

import dataclasses
import glob
import json
import pathlib
from collections.abc import Sequence

from fipo_jax.pods import answers, check, costs, forecast, measured, public
from fipo_jax.pods.chips import topology_of
from fipo_jax.pods.iteration import Workload


@dataclasses.dataclass(frozen=True)
class Asked:
  """What the user asks; launch/plan.py has a flag for each, and explains it."""

  topology: Sequence[str] | None = None
  slices: int = 1
  lengths: str = "lognormal:3500,16000"
  keep_rate: float | None = None
  prompt_tokens: int | None = None
  iterations: int = 1
  warm: int | None = None
  price: float = 0.0
  search: bool = False
  efficiency: Sequence[str] = ()
  measured: str | None = None
  reports: Sequence[str] = ("experiments/results/compile/*.json",)


def public_table() -> str:
  """The public measurements beside our bounds."""
  return forecast.table(public.measured())


def checked(runs: Sequence[str]) -> list[dict]:
  """Fits the first of these runs of this machine, foretells the others, and prints how far off that is."""
  found, fitted = check.check(runs)
  print(check.describe(found, fitted))
  return [dataclasses.asdict(c) for c in found]


def read_results(files: Sequence[str]) -> list[dict]:
  """Forecasts of JSON files, printed together; one that is alone in its file is called after it."""
  results = []
  for path in map(pathlib.Path, files):
    found = json.loads(path.read_text())
    results += [{"name": path.stem} | f for f in found] if len(found) == 1 else found
  print(answers.table(results), answers.splits(results), sep="\n\n")
  return results


def plan(cfg, asked: Asked) -> list[dict]:
  """Forecasts every topology; prints and returns what there is to say.

  Raises: ValueError.
  """
  if not cfg or not asked.topology:
    raise ValueError("--config=FILE and --topology=NAME are needed.")
  if cfg.rollout.engine != "native":
    raise ValueError(f"rollout.engine={cfg.rollout.engine!r}: only the native engine can be forecast.")
  workload, said = _workload(asked)
  reports = costs.read_reports(sorted(path for pattern in asked.reports for path in glob.glob(pattern)))
  table, results = public.measured(), []
  for topology in asked.topology:
    kind, _ = topology_of(topology)
    by, why = public.efficiencies(kind, table)
    if asked.measured:
      by, why = measured.efficiencies(asked.measured, topology, asked.slices, by, why, reports)
    by, why = forecast.read_efficiencies(asked.efficiency, by, why)
    make = lambda c, by=by, why=why, topology=topology: forecast.forecast(
      c, topology, asked.slices, workload, by, why, reports, iterations=asked.iterations, warm=asked.warm
    )
    results.append(make(cfg) | {"lengths": said, "settings": {}})
    print(forecast.describe(results[-1], asked.price), flush=True)
    if asked.search:
      options = forecast.search(cfg, topology, asked.slices, workload, by, reports)
      results += _search(cfg, options, make, results[-1])
  return results


def _workload(asked: Asked) -> tuple[Workload, str]:
  """Lengths, prompts and keep rate, and the lengths in words."""
  lengths, said, facts = forecast.read_lengths(asked.lengths)
  prompt = asked.prompt_tokens or round(facts.get("prompt_length", 200))
  keep = facts.get("keep_rate", 0.5) if asked.keep_rate is None else asked.keep_rate
  if not 0 < keep <= 1:
    raise ValueError(f"keep_rate={keep} must be above 0 and at most 1.")
  print(f"lengths {said}; prompts of {prompt} tokens; {keep:.0%} of groups informative; nothing of this was measured")
  return Workload(lengths, prompt, keep), said


def _search(cfg, proposed, make, now: dict) -> list[dict]:
  """Forecasts of the settings that a search proposes, and the flags of the best that fits."""
  options, (trainers, samplers) = proposed
  print(f"search: {trainers} settings of the trainer and {samplers} of the sampler fit by sizes; of the best:")
  found = []
  for fields in options:
    try:
      f = make(forecast.changed(cfg, fields)) | {"settings": fields}
    except ValueError as e:
      print(f"  {_flags(fields)}: {e}")
      continue
    found.append(f)
    print(f"  {f['iteration_s']:,.0f} s{'' if f['fits'] else ', does not fit'}: {_flags(fields)}", flush=True)
  best = min((f for f in [now, *found] if f["fits"]), key=lambda f: f["iteration_s"], default=None)
  if best is None:
    print("search: nothing fits")
  else:
    flags_of = _flags(best["settings"]) or "as it is"
    print(f"cheapest: {best['iteration_s']:,.0f} s of {now['iteration_s']:,.0f} s; {flags_of}")
    print("compile it before you rent: launch/compile.py with the same flags says whether it fits")
  return found


def _flags(fields) -> str:
  return " ".join(f"--config.{name}={value}" for name, value in fields.items())
