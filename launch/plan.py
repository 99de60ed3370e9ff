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
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import interpreter  # noqa: F401, I001 - first: it may end the program

from absl import app, flags
from ml_collections import config_flags

from fipo_jax import command_line, commands
from fipo_jax.pods import answers, compile_report, plan
from fipo_jax.pods.chips import TOPOLOGIES


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
  commands.no_arguments(argv)
  commands.alone(lambda: run(flags.FLAGS))


def run(given) -> None:
  """One of four answers, then its picture and its file."""
  if given.check and (given.results or given.plot):
    raise ValueError("--check ends after its table: give --results and --plot without it.")
  if given.results:
    results = plan.read_results(given.results)
  elif given.check:
    results = plan.checked(given.check)
  elif given.table:
    print(plan.public_table())
    results = []
  else:
    fields = [field.name for field in dataclasses.fields(plan.Asked)]
    results = plan.plan(given.config, plan.Asked(**{name: getattr(given, name) for name in fields}))
  if given.plot and results:
    answers.draw(results, given.plot)
  if given.out:
    compile_report.write(results, given.out)


if __name__ == "__main__":
  commands.on_cpu()
  define_flags()
  app.run(main, flags_parser=command_line.plain)
