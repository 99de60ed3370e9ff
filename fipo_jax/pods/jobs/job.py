"""A run as a scheduler is to start it: its processes and their command. What cannot work is refused before it costs.

Nothing here runs a cluster. What is rendered is given to JobSet, gcluster, xpk, the Cloud TPU API or SLURM, which obey
the exit codes that `processes` says; see docs/pods.md.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re

from fipo_jax import config as config_lib
from fipo_jax import lines, paths, processes, sharding
from fipo_jax.evaluation import sets as sets_lib
from fipo_jax.pods import programs
from fipo_jax.pods.chips import CHIPS, Chip, Described, describe_topology, topology_of

# What an end of a process means for the whole run: all its processes end with the code of the one that ended first.
FATAL = (processes.EXIT_MISTAKE, processes.EXIT_INTERRUPTED)  # starting it again ends the same way, or was not wanted
STOPPED = processes.EXIT_STOPPED  # saved: starting it again costs nothing, however often
# Aborted, killed (out of memory too), segmentation fault, ended by SIGTERM before anything heeded it: 128 + signal.
SIGNALLED = (134, 137, 139, 143)
# Where no run says better: the updates of an iteration of 32B with responses of 10,000 tokens take half an hour
# (experiments/results/plan.md), and GKE's maintenance waits for an hour at most.
GRACE_S = 3600
NAME_MAX = 28  # what gcluster takes; and Kubernetes takes 63 for a pod's, which has 17 to 25 more
COMMAND = ("python", "launch/run.py")  # in the image's folder


@dataclasses.dataclass(frozen=True)
class Options:
  """What the user says of the job; "" and 0: not said. launch/pod.py has a flag for each, and explains it."""

  topology: str = ""
  slices: int = 1
  nodes: int = 0
  gpus: int = 0
  image: str = ""
  code: str = ""
  name: str = ""
  namespace: str = ""
  queue: str = ""
  priority: str = ""
  service_account: str = ""
  reservation: str = ""
  spot: bool = False
  mounts: tuple[str, ...] = ()
  restarts: int = 50
  on_error: str = "restart"
  grace_s: int = 0
  measured: str = ""
  privileged: bool = True
  host_network: bool = True
  project: str = "PROJECT"
  location: str = "ZONE"
  cluster: str = "CLUSTER"
  time: str = ""


@dataclasses.dataclass(frozen=True)
class Mount:
  """gs://bucket[/folder] (read-only, by GCSFuse) or pvc:CLAIM (a PersistentVolumeClaim), seen at a path."""

  source: str
  path: str

  @property
  def claim(self) -> str:
    return self.source.removeprefix("pvc:") if self.source.startswith("pvc:") else ""


@dataclasses.dataclass(frozen=True)
class Job:
  """hosts: of a slice (of SLURM: nodes), each of which runs one process. command: all of it. notes: to be said.

  chip, shape: kind and size of a slice; None and () for SLURM.
  """

  name: str
  command: tuple[str, ...]
  hosts: int
  slices: int
  chip: Chip | None
  shape: tuple[int, ...]
  mounts: tuple[Mount, ...]
  workdir: str
  grace_s: int
  grace_why: str
  notes: tuple[str, ...]
  options: Options

  @property
  def accelerator_type(self) -> str:
    """As Google's commands call a slice, such as v5litepod-16."""
    return f"{self.chip.cloud}-{math.prod(self.shape) * self.chip.cores}"

  @property
  def size(self) -> str:
    return "x".join(map(str, self.shape))


def check_read(options: Options, name: str, target) -> None:
  """Raises ValueError for an option that the target, a row of TARGETS, does not read, or for an image that it lacks."""
  default = Options()
  for field in dataclasses.fields(Options):
    value = getattr(options, field.name)
    if value != getattr(default, field.name) and field.name not in target.reads:
      raise ValueError(f"--{field.name}={value}: --target={name} does not read it; leave it out.")
  if target.needs_image and not options.image:
    raise ValueError(f"--image='': --target={name} needs the container image, such as --image=REGISTRY/fipo_jax:1.")


def make_job(cfg, experiment: str, overrides: tuple[str, ...], options: Options, *, on_pod: bool) -> Job:
  """Checks and assembles.

  Args:
    experiment: the file, relative to the repository. overrides: --config.FIELD=VALUE as given. on_pod: whether the
      disks of hosts go when they go, and hosts are those of a TPU topology.
  Raises: ValueError for what the run would refuse at its start, and for what cannot work there.
  """
  programs.validate(cfg)
  if on_pod:
    if not options.topology:
      raise ValueError("--topology='': name one, such as v5p-128.")
    kind, shape = topology_of(options.topology)
    chip, hosts = CHIPS[kind], math.prod(shape) // CHIPS[kind].vm_chips
    devices = describe_topology(options.topology, options.slices)
  else:
    if options.nodes < 1 or options.gpus < 1:
      raise ValueError(f"--nodes={options.nodes} --gpus={options.gpus}: say how many nodes, and GPUs of each.")
    chip, shape, hosts = None, (), options.nodes
    devices = [Described(i, (i, 0, 0), 0, "GPU", 0, "gpu") for i in range(options.nodes * options.gpus)]
  mesh = sharding.make_mesh(cfg.mesh, devices)
  if cfg.rollout.engine == "native":
    config_lib.check_mesh(cfg, mesh.shape, sharding.for_rollout(mesh, cfg.rollout.tensor).shape)
  config_lib.one_of("--on_error", options.on_error, ("restart", "fail"))
  mounts = tuple(_mount(text) for text in options.mounts)
  notes = []
  if on_pod:
    _check_folders(cfg, mounts)
    notes += _local_files(cfg, mounts)
  if options.spot and cfg.checkpoint.every > 1 and not cfg.checkpoint.every_s:
    raise ValueError(
      f"checkpoint.every={cfg.checkpoint.every}: a Spot slice has 15 s when it is taken away, and what came after the "
      "last checkpoint is lost; use --config.checkpoint.every=1 or --config.checkpoint.every_s=600."
    )
  if options.spot:
    notes.append("Spot: 15 s from notice to kill, whatever the grace; what counts there is the last checkpoint")
  grace_s, why = grace(options)
  if grace_s > GRACE_S:
    notes.append(f"grace of {grace_s} s: GKE's maintenance waits for {GRACE_S} s at most")
  command = (*COMMAND, f"--config={experiment}", *overrides)
  if on_pod and not any(o.startswith("--config.compile_cache=") for o in overrides):
    # Else every restart compiles again, which takes longer than to read a checkpoint.
    command += (f"--config.compile_cache={_beside(cfg.workdir)}",)
  return Job(
    _name(cfg, options), command, hosts, options.slices, chip, shape, mounts, cfg.workdir, grace_s, why, tuple(notes),
    options,
  )  # fmt: skip


def grace(options: Options) -> tuple[int, str]:
  """Seconds from SIGTERM to SIGKILL, and where they come from: twice what a run would have needed at its worst.

  Raises ValueError: --measured names no run.
  """
  if options.grace_s and options.measured:
    raise ValueError(f"--grace_s={options.grace_s} and --measured={options.measured}: give one of them.")
  if options.grace_s:
    return options.grace_s, "--grace_s"
  if not options.measured:
    return GRACE_S, "the default; --measured=RUN takes it from a run on such a slice"
  path = paths.of(options.measured) / "metrics.jsonl"
  if not lines.exists(path):
    raise ValueError(f"--measured={options.measured}: no run there; expected a folder with metrics.jsonl.")
  needs = [r["grace_s"] for line in lines.read(path) if (r := json.loads(line)).get("grace_s")]
  if not needs:
    raise ValueError(f"--measured={options.measured}: no step says grace_s, which the first saved one does.")
  return math.ceil(2 * max(needs)), f"2 x the longest of {len(needs)} iterations of {options.measured}"


def _name(cfg, options: Options) -> str:
  """Of the job: as given, or after the workdir's last folder."""
  name = options.name or re.sub(r"[^a-z0-9]+", "-", cfg.workdir.rstrip("/").rsplit("/", 1)[-1].lower()).strip("-")
  if not re.fullmatch(rf"[a-z]([a-z0-9-]{{0,{NAME_MAX - 2}}}[a-z0-9])?", name):
    raise ValueError(
      f"--name={name}: {len(name)} characters; use at most {NAME_MAX} of a-z, 0-9 and -, a letter first: pods are "
      "called after it."
    )
  return name


def _mount(text: str) -> Mount:
  source, separator, path = text.rpartition("=")
  if not (separator and path.startswith("/") and re.match(r"gs://[^/]|pvc:[a-z0-9]", source)):
    raise ValueError(f"--mounts={text}: expected gs://BUCKET[/FOLDER]=/PATH or pvc:CLAIM=/PATH.")
  return Mount(source.rstrip("/"), path.rstrip("/"))


def _check_folders(cfg, mounts: tuple[Mount, ...]) -> None:
  """What the run writes must outlive its pods."""
  for field in ("workdir", "checkpoint.folder", "compile_cache"):
    value = config_lib.at(cfg, field)
    default = field == "compile_cache" and value == config_lib.default().compile_cache  # is put on the bucket
    if not value or default or value.startswith("gs://"):
      continue
    mount = _mount_of(value, mounts)
    if mount is None:
      raise ValueError(
        f"{field}={value!r}: a pod's disk dies with the pod, and each host has its own; use "
        f"--config.{field}=gs://BUCKET/{pathlib.PurePosixPath(value).name}."
      )
    if not mount.claim:
      raise ValueError(
        f"{field}={value!r}: {mount.source} is mounted read-only, for what a killed pod had not closed is not in the "
        f"bucket; use --config.{field}=gs://... itself."
      )


def _local_files(cfg, mounts: tuple[Mount, ...]) -> list[str]:
  """What only the image can have, as nothing here can know."""
  found = {}
  values = {field: config_lib.at(cfg, field) for field in ("model.path", "data.path", "eval.path", "reward.file")}
  if cfg.eval.every:
    values |= {f"eval.sets.{s.name}.path": s.cfg.eval.path for s in sets_lib.of(cfg) if s.name}
  for field, value in values.items():
    given = (value,) if isinstance(value, str) else tuple(value)
    found[field] = [p for p in given if p and not p.startswith("gs://") and _mount_of(p, mounts) is None]
  if cfg.model.preset:
    found["model.path"] = []
  said = [f"{field}={', '.join(local)}" for field, local in found.items() if local]
  return [f"{'; '.join(said)}: read from the image in each pod, where nothing here has looked"] if said else []


def _mount_of(path: str, mounts: tuple[Mount, ...]) -> Mount | None:
  return next((m for m in mounts if path == m.path or path.startswith(f"{m.path}/")), None)


def _beside(workdir: str) -> str:
  return f"{workdir.rstrip('/').rsplit('/', 1)[0]}/compile_cache"
