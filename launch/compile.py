"""What a run would need of a TPU, before one is paid for: compiles its programs with libtpu, without a TPU.

    python launch/compile.py --config=experiments/fipo_qwen2_5_32b.py --topology=v5p-128[,v6e-256] [--slices=N] \
      [--programs=train,score,decode] [--out=PATH] [--config.FIELD=VALUE ...]

Programs are those of the run itself, on abstract arguments: no weight is read and none is made. Memory is what the
compiler says, and a program that does not fit is refused by it just as on the chips. Speeds are bounds from the
chip's published figures: nothing runs here. With several topologies each is compiled for in turn. Sizes are those of
model.path (a folder, or a published name such as Qwen3-8B-Base), or of --config.model.preset=qwen3_32b in its place.

    train     one optimizer step on a mini-batch; figures of one micro-batch of batch.micro_rows rows
    score     log-probabilities of the same rows
    decode    the loop over tokens, with the slots and pages that the run would take on such chips (or --slots)
    prefill   prompts of the longest bucket into pages
    update    the policy's parameters, cast and moved to where decoding wants them
"""

from __future__ import annotations

import pathlib
import shlex
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import interpreter  # noqa: F401, I001 - first: it may end the program

from absl import app, flags
from ml_collections import config_flags

from fipo_jax import command_line, commands
from fipo_jax.pods import compile_report
from fipo_jax.pods.chips import TOPOLOGIES
from fipo_jax.pods.programs import PROGRAMS


def define_flags() -> None:
  """The command's flags; here and not at import, as launch/run.py has a --config too."""
  config_flags.DEFINE_config_file("config", None, "An experiment file; --config.FIELD=VALUE overrides a field.")
  flags.DEFINE_list("topology", None, f"Rows of TOPOLOGIES: {', '.join(TOPOLOGIES)}.")
  flags.DEFINE_integer("slices", 1, "Slices of that topology, joined by the data-centre network along mesh.data.")
  flags.DEFINE_list("programs", list(PROGRAMS), "Rows of PROGRAMS.")
  flags.DEFINE_integer("slots", 0, "Slots over the mesh, in place of rollout.slots; 0: as that says.")
  flags.DEFINE_string("out", None, "Where the figures go as JSON, too.")


def main(argv) -> None:
  commands.no_arguments(argv)
  commands.alone(lambda: run(flags.FLAGS))


def run(given) -> None:
  if not given.config or not given.topology:
    raise ValueError("--config=FILE and --topology=NAME are needed.")
  options = (given.programs, given.slots, given.slices)
  command = shlex.join(["python", *(a for a in sys.argv if not a.startswith(("--out=", "-out=")))])
  results = [{"command": command} | compile_report.run(given.config, name, *options) for name in given.topology]
  if given.out:
    compile_report.write(results if len(results) > 1 else results[0], given.out)


if __name__ == "__main__":
  commands.on_cpu()
  define_flags()
  app.run(main, flags_parser=command_line.plain)
