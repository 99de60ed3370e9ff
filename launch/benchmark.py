"""Speed of one part of the project on this machine: `python launch/benchmark.py --what=NAME`.

The last line is one JSON object. Times are medians of five runs after one that compiles.

    sampler     tok_s: tokens sampled per second; every response has the same length
    longtail    useful_tok_s: the same for responses of very different lengths; occupancy: share of slot steps used
    real_sampler  tok_s: a Hugging Face checkpoint (--model=DIR), or random weights of a published size
                (--model=Qwen2.5-0.5B), in bfloat16, --slots of it at once; of_bound: share of what a known GPU's memory
                allows
    phases      of the last step of a run on this machine (--run=DIR): seconds of rollout, scoring and update, and
                those that the plan foretells for this GPU
    gap         bfloat16, bfloat16_int8, float32, float32_int8: by compute dtype and cache, log-probs of the trainer
                against those of the sampler on what a checkpoint (--model=DIR) writes, and the weights that correct
                for it; no times
    step        tok_s: tokens of one optimizer step of DAPO on 16 rows of 512 tokens; peak_rss_mb is of interest, too
    train       tok_s, mfu, peak_gib: an experiment's own optimizer step (--config=FILE --config.FIELD=VALUE) on the
                devices there are, random weights and --micro_batches of full rows: what compile.py foretells
    sums        by number of devices, way of adding and kind of parameter: how far the sum of their gradients is from
                the exact one, on what an experiment (--config=FILE) samples first; no times
    future_kl   seconds, baseline_seconds, ratio: Future-KL by scan against the published form, a chunked matmul;
                through the loss and its gradient: loss_seconds
    rewards     math_dapo_s, math_symbolic_s: verdicts per second through the pool, on two processes;
                long_ratio: seconds of 32 responses of 80,000 characters per character, over those of 800
"""

from __future__ import annotations

import json
import pathlib
import resource
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from launch import interpreter  # noqa: F401, I001 - first: it may end the program

import jax
from absl import app, flags
from ml_collections import config_flags

from fipo_jax import command_line, commands
from fipo_jax.benchmarks import BENCHMARKS


def define_flags() -> None:
  flags.DEFINE_enum("what", None, sorted(BENCHMARKS), "Which part.", required=True)
  flags.DEFINE_string("model", "", "Hugging Face directory, for gap and real_sampler; there a published size, too.")
  flags.DEFINE_integer("slots", 32, "Prompts that decode at once, for real_sampler.", lower_bound=1)
  flags.DEFINE_string("run", "", "Folder of a run, for phases.")
  flags.DEFINE_integer("tokens", 128, "Of a response, for gap.", lower_bound=1)
  help_ = "An experiment file, for train and sums; --config.FIELD=VALUE overrides."
  config_flags.DEFINE_config_file("config", None, help_)
  flags.DEFINE_integer("micro_batches", 4, "Of a step, for train.", lower_bound=1)
  flags.DEFINE_integer("updates", 1, "Of Adam, for sums.", lower_bound=1)


def main(argv) -> None:
  commands.no_arguments(argv)
  commands.alone(lambda: run(flags.FLAGS))


def run(given) -> None:
  measure, *reads = BENCHMARKS[given.what]
  result = measure(*(getattr(given, name) for name in reads))
  peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
  rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in result.items()}
  print(json.dumps({"what": given.what, **rounded, "peak_rss_mb": peak_rss_mb, "jax": jax.__version__}))


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command_line.plain)
