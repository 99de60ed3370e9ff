"""Writes down a run for a scheduler: a JobSet for GKE, a command for gcluster or xpk, a script for TPU VMs or SLURM.

    python launch/pod.py --config=experiments/fipo_qwen2_5_32b.py --topology=v5p-128 [--slices=N] --target=jobset \
      --image=REGISTRY/fipo_jax:1 --config.workdir=gs://BUCKET/runs/32b [--spot] [--queue=NAME] [--measured=RUN] \
      [--out=FILE] [--config.FIELD=VALUE ...]

Nothing is started: --submit alone does that, and says with which command. What cannot work there is refused: a mesh
that does not divide the chips, a workdir on a disk that goes with its pod, checkpoints too rare for Spot, long names.
What each exit code makes of the job, and everything from the bucket to a resumed run: docs/pods.md.

    --target   jobset | kueue (the queue itself) | gcluster | xpk | tpu-vm | slurm
    --nodes, --gpus   of SLURM, in place of --topology
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import interpreter  # noqa: F401, I001 - first: it may end the program

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from fipo_jax import assemble, command_line, processes
from fipo_jax.pods.chips import TOPOLOGIES
from fipo_jax.pods.jobs import TARGETS, job

# A flag for each field of job.Options.
SAID = {
  "topology": f"A row of TOPOLOGIES: {', '.join(TOPOLOGIES)}.",
  "slices": "Slices of that topology, joined along mesh.data.",
  "nodes": "SLURM: machines.",
  "gpus": "SLURM: GPUs of each.",
  "image": "Container image, with its registry; see Dockerfile.",
  "code": "gs://...tar.gz of the repository, unpacked at each start, in place of the image's code.",
  "name": "Of the job; else after the workdir.",
  "namespace": "Kubernetes namespace; else kubectl's.",
  "queue": "Kueue's LocalQueue; SLURM's partition.",
  "priority": "A PriorityClass.",
  "service_account": "That may read and write the bucket.",
  "reservation": "Name of a reservation of chips.",
  "spot": "Chips that may be taken away at 15 s notice.",
  "mounts": "gs://BUCKET[/FOLDER]=/PATH, read-only, or pvc:CLAIM=/PATH; several by comma.",
  "restarts": "After failures; those after a stop that was saved do not count.",
  "on_error": "restart | fail: what exit code 1 does; disks and servers heal, a bug does not.",
  "grace_s": "Seconds from SIGTERM to SIGKILL; else of --measured, or a default that is said.",
  "measured": "Folder of a run on such a slice, which says how long an iteration takes.",
  "privileged": "Containers are privileged and run as root, for the TPU's device files.",
  "host_network": "Pods use their machine's network; --nohost_network for Workload Identity.",
  "project": "Google Cloud project, in commands.",
  "location": "Zone, in commands.",
  "cluster": "GKE cluster, in commands.",
  "time": "SLURM: the time limit.",
}


def define_flags() -> None:
  """The command's flags; here and not at import, as launch/run.py has a --config too."""
  config_flags.DEFINE_config_file("config", None, "An experiment file; --config.FIELD=VALUE overrides a field.")
  flags.DEFINE_enum("target", "jobset", tuple(TARGETS), "Who starts it.")
  flags.DEFINE_string("out", None, "The file to write; else it is printed.")
  flags.DEFINE_bool("submit", False, "Hand the file of --out to the scheduler.")
  kinds = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, str: flags.DEFINE_string, tuple: flags.DEFINE_list}
  for field in dataclasses.fields(job.Options):
    kinds[type(field.default)](field.name, field.default, SAID[field.name])


def parse(argv):
  """absl's parser, with every mistake in the flags as one line instead of a traceback."""
  try:
    return command_line.parse(argv, __doc__)
  except ValueError as e:
    command_line.fail(str(e))


def main(argv) -> None:
  if len(argv) > 1:
    command_line.fail(f"unexpected argument {argv[1]!r}: fields are given as --config.FIELD=VALUE.")
  try:
    run(flags.FLAGS)
  except (ValueError, OSError) as e:
    if os.environ.get("FIPO_TRACEBACK"):
      raise
    command_line.fail(str(e))


def run(given) -> None:
  """Checks, renders, writes, and on --submit submits."""
  target = TARGETS[given.target]
  if given.submit and not (given.out and target.submit):
    raise ValueError(f"--submit: needs --out=FILE and a target that takes files, not {given.target}.")
  options = job.Options(**{
    field.name: type(field.default)(getattr(given, field.name)) for field in dataclasses.fields(job.Options)
  })  # fmt: skip
  job.check_read(options, given.target, target)
  assemble.check_tables(given.config)
  made = job.make_job(given.config, _experiment(), _overrides(), options, on_pod=target.on_pod)
  text = target.render(made)
  if not given.out:
    print(text, end="")
    return
  pathlib.Path(given.out).write_text(text)
  for note in made.notes:
    print(f"note: {note}")
  print(f"{given.out}: {made.name}, {made.hosts * made.slices} processes; grace {made.grace_s} s ({made.grace_why})")
  command = [*target.submit, given.out]
  if not given.submit:
    print(f"nothing was started; with --submit: {' '.join(command)}" if target.submit else "nothing was started")
    return
  print(f"submitting: {' '.join(command)}", flush=True)
  sys.exit(processes.EXIT_ERROR if subprocess.run(command).returncode else processes.EXIT_DONE)


def _experiment() -> str:
  """The experiment as the image has it: relative to the repository."""
  path = command_line.experiment()
  file, colon, rest = path.partition(":")
  try:
    inside = pathlib.Path(file).resolve().relative_to(command_line.ROOT)
  except ValueError:
    raise ValueError(
      f"--config={path}: not in the repository, so the image does not have it; put it into experiments/."
    ) from None
  if rest.endswith(".json"):
    raise ValueError(f"--config={rest}: name the experiment; the pod has no copy of that file.")
  return f"{inside}{colon}{rest}"


def _overrides() -> tuple[str, ...]:
  """Fields of the config as they were given."""
  found = [a for a in sys.argv[1:] if a.lstrip("-").startswith("config.")]
  if short := [a for a in found if "=" not in a]:
    raise ValueError(f"{short[0]}: write it as {short[0]}=VALUE.")
  return tuple("--" + a.lstrip("-") for a in found)


if __name__ == "__main__":
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
  logging.set_verbosity(logging.WARNING)
  define_flags()
  app.run(main, flags_parser=parse)
