"""TARGETS: who starts a job, how it is written down for them, and what they read of the options."""

from collections.abc import Callable
from typing import NamedTuple

from fipo_jax.pods.jobs import jobset, scripts
from fipo_jax.pods.jobs.job import Job

_TPU = ("topology", "slices", "name", "image", "code", "restarts", "on_error", "grace_s", "measured")
_PLACE = ("project", "location")
_CLUSTER = (*_TPU, *_PLACE, "cluster", "spot", "priority", "reservation")


class Target(NamedTuple):
  """render: to the text of a file. reads: names of `Options`; others are refused. submit: the command that takes the
  file. needs_image: no run without one."""

  render: Callable[[Job], str]
  reads: tuple[str, ...]
  submit: tuple[str, ...] = ()
  on_pod: bool = True
  needs_image: bool = True


TARGETS: dict[str, Target] = {
  "jobset": Target(
    jobset.render,
    (*_CLUSTER, "namespace", "queue", "service_account", "mounts", "privileged", "host_network"),
    ("kubectl", "apply", "-f"),
  ),
  "kueue": Target(
    jobset.kueue, ("topology", "slices", "queue", "namespace", "name"), ("kubectl", "apply", "-f"), needs_image=False
  ),
  "gcluster": Target(scripts.gcluster, (*_CLUSTER, "queue", "service_account", "mounts"), ("bash",)),
  "xpk": Target(scripts.xpk, _CLUSTER, ("bash",)),
  "tpu-vm": Target(scripts.tpu_vm, (*_TPU, *_PLACE, "spot", "reservation", "service_account")),
  "slurm": Target(
    scripts.slurm,
    ("nodes", "gpus", "name", "image", "queue", "time", "restarts", "on_error", "grace_s", "measured"), ("sbatch",),
    on_pod=False, needs_image=False,
  ),
}  # fmt: skip
