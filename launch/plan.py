"""What a run would cost on TPUs that are not rented yet: seconds of each phase, memory, chip-hours, money.

    python launch/plan.py --config=experiments/fipo_qwen2_5_32b.py --topology=v5p-128[,v6e-256] [--slices=N] \
      [--lengths=lognormal:3500,16000] [--keep_rate=0.5] [--price=4.2] [--search] [--out=PATH] \
      [--config.FIELD=VALUE ...]

An iteration is simulated with the run's own scheduling of rollouts (slots, pages, prefills, looks of the host, the
tail, rollout.unfinished, dynamic sampling) on a device that only keeps time. Its costs are bounds, of compile reports
where there are any (--reports) and of sizes elsewhere, over efficiencies that public measurements reach; all are said.
Nothing here was measured on a TPU by us; no accelerator and no TPU compiler is needed.

    --lengths    response lengths: lognormal:MEDIAN,P99, or the metrics.jsonl of a run (its last step)
    --efficiency NAME=VALUE[,...] in place of the default; --measured=RUN takes them from a run on that topology
    --search     tries settings of trainer and sampler for the cheapest iteration, and prints the flags
    --check      RUN1,RUN2,...: folders of runs on this machine; fits the first and foretells the others, and ends
    --table      prints the public measurements beside our bounds, and ends
    --plot       a picture of the forecasts
    --results    nothing is forecast: a table of the JSON files that --out has written, and what a split of the chips
                 into samplers and a trainer would gain; --plot and --out take them all
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import interpreter  # noqa: F401, I001 - first: it may end the program

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from fipo_jax import command_line
from fipo_jax.pods import answers, check, compile_report, costs, forecast, measured, public
from fipo_jax.pods.chips import TOPOLOGIES, topology_of
from fipo_jax.pods.iteration import Workload


def define_flags() -> None:
  """The command's flags; here and not at import, as launch/run.py has a --config too."""
  config_flags.DEFINE_config_file("config", None, "An experiment file; --config.FIELD=VALUE overrides a field.")
  flags.DEFINE_list("topology", None, f"Rows of TOPOLOGIES: {', '.join(TOPOLOGIES)}.")
  flags.DEFINE_integer("slices", 1, "Slices of that topology, joined by the data-centre network along mesh.data.", 1)
  flags.DEFINE_string("lengths", "lognormal:3500,16000", "Response lengths: lognormal:MEDIAN,P99 or a metrics.jsonl.")
  flags.DEFINE_float("keep_rate", None, "Share of groups with right and wrong responses; else the file's or 0.5.", 0, 1)
  flags.DEFINE_integer("prompt_tokens", None, "Mean tokens of a prompt; else the file's, or 200.", 1)
  flags.DEFINE_integer("iterations", 1, "Iterations that are simulated, after those that only fill the queues.", 1)
  flags.DEFINE_integer("warm", None, "Iterations before them; else 1, with unfinished responses 2.", 0)
  flags.DEFINE_float("price", 0.0, "USD per chip-hour; 0: money is not said.", 0)
  flags.DEFINE_bool("search", False, "Looks for settings with a cheaper iteration.")
  flags.DEFINE_list("efficiency", [], "NAME=VALUE: shares of bounds, in place of those of public measurements.")
  flags.DEFINE_string("measured", None, "Folder of a run on this topology, whose speeds take the place of the shares.")
  flags.DEFINE_list("reports", ["experiments/results/compile/*.json"], "Compile reports: JSON files or globs.")
  flags.DEFINE_list("check", [], "Folders of runs on this machine: the first is fitted, the others are foretold.")
  flags.DEFINE_bool("table", False, "Prints the public measurements, and ends.")
  flags.DEFINE_string("plot", None, "Where a picture of the forecasts goes, such as plan.png.")
  flags.DEFINE_list("results", [], "JSON files of --out, to be shown together.")
  flags.DEFINE_string("out", None, "Where the figures go as JSON, too.")


def main(argv) -> None:
  if len(argv) > 1:
    command_line.fail(f"unexpected argument {argv[1]!r}: fields are given as --config.FIELD=VALUE.")
  try:
    given = flags.FLAGS
    if given.check and (given.results or given.plot):
      raise ValueError("--check ends after its table: give --results and --plot without it.")
    if given.results:
      results = [f for path in given.results for f in read(pathlib.Path(path))]
      print(answers.table(results), answers.splits(results), sep="\n\n")
    elif given.check:
      found, fitted = check.check(given.check)
      print(check.describe(found, fitted))
      results = [dataclasses.asdict(c) for c in found]
    else:
      results = run(given)
    if given.plot and results:
      answers.draw(results, given.plot)
    if given.out:
      compile_report.write(results, given.out)
  except (ValueError, OSError) as e:
    if os.environ.get("FIPO_TRACEBACK"):
      raise
    command_line.fail(str(e))


def read(path: pathlib.Path) -> list[dict]:
  """Forecasts of a file; one alone is called after it."""
  found = json.loads(path.read_text())
  return [{"name": path.stem} | f for f in found] if len(found) == 1 else found


def run(given) -> list[dict]:
  """Forecasts every topology, prints and returns what there is to say."""
  table = public.measured()
  if given.table:
    print(forecast.table(table))
    return []
  if not given.config or not given.topology:
    raise ValueError("--config=FILE and --topology=NAME are needed.")
  if given.config.rollout.engine != "native":
    raise ValueError(f"rollout.engine={given.config.rollout.engine!r}: only the native engine can be forecast.")
  lengths, said, facts = forecast.read_lengths(given.lengths)
  prompt = given.prompt_tokens or round(facts.get("prompt_length", 200))
  keep = facts.get("keep_rate", 0.5) if given.keep_rate is None else given.keep_rate
  if not 0 < keep <= 1:
    raise ValueError(f"keep_rate={keep} must be above 0 and at most 1.")
  workload = Workload(lengths, prompt, keep)
  print(f"lengths {said}; prompts of {prompt} tokens; {keep:.0%} of groups informative; nothing of this was measured")
  reports = costs.read_reports(sorted(path for pattern in given.reports for path in glob.glob(pattern)))
  results = []
  for topology in given.topology:
    kind, _ = topology_of(topology)
    by, why = public.efficiencies(kind, table)
    if given.measured:
      by, why = measured.efficiencies(given.measured, topology, given.slices, by, why, reports)
    by, why = forecast.read_efficiencies(given.efficiency, by, why)
    make = lambda cfg, by=by, why=why, topology=topology: forecast.forecast(
      cfg, topology, given.slices, workload, by, why, reports, iterations=given.iterations, warm=given.warm
    )
    results.append(make(given.config) | {"lengths": said, "settings": {}})
    print(forecast.describe(results[-1], given.price), flush=True)
    if given.search:
      results += _search(given, topology, workload, by, reports, make, results[-1])
  return results


def _search(given, topology, workload, by, reports, make, now) -> list[dict]:
  """Forecasts of the settings that a search proposes, and the flags of the best that fits."""
  options, (trainers, samplers) = forecast.search(given.config, topology, given.slices, workload, by, reports)
  print(f"search: {trainers} settings of the trainer and {samplers} of the sampler fit by sizes; of the best:")
  found = []
  for fields in options:
    try:
      f = make(forecast.changed(given.config, fields)) | {"settings": fields}
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


if __name__ == "__main__":
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
  logging.set_verbosity(logging.WARNING)
  define_flags()
  app.run(main, flags_parser=command_line.plain)
