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
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import interpreter  # noqa: F401, I001 - first: it may end the program

from absl import app, flags
from ml_collections import config_flags

from fipo_jax import assemble, command_line, commands, processes
from fipo_jax.pods.chips import TOPOLOGIES
from fipo_jax.pods.jobs import TARGETS, job, written

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


def main(argv) -> None:
  commands.no_arguments(argv)
  commands.alone(lambda: run(flags.FLAGS))


def run(given) -> None:
  values = {field.name: type(field.default)(getattr(given, field.name)) for field in dataclasses.fields(job.Options)}
  assemble.check_tables(given.config)
  done = written.write(
    given.config, command_line.in_repository(), command_line.as_given(), job.Options(**values),
    name=given.target, target=TARGETS[given.target], out=given.out, submit=given.submit,
  )  # fmt: skip
  sys.exit(processes.EXIT_DONE if done else processes.EXIT_ERROR)


if __name__ == "__main__":
  commands.on_cpu()
  define_flags()
  app.run(main, flags_parser=commands.parser(__doc__))
