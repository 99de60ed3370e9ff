"""The TPUs that programs are compiled for: chips, and topologies with their links."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.metadata
import math
import os
import types

import numpy as np
from jax.experimental import topologies


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of chip; per device, of which `devices` make a chip.

  libtpu: its name there. config: how its cores are presented ("megacore": two as one device). cores: counted in a
  topology's name, per chip. hbm_gib: usable, as the compiler says when a program is too large. tb_s: of its memory.
  tflop_s: bfloat16. ici_gb_s: what it sends to all neighbours together, one way. ring: the length of an axis from
  which on it closes to a ring. host_gb_s: to the host's memory, one way.

  Where it is rented: gke, machine: GKE's label of the accelerator and the type of its machines, which have vm_chips
  chips. cloud: how accelerator types begin, as in v5litepod-16. runtime: version of a TPU VM's software, "": there are
  no such VMs.
  """

  libtpu: str
  config: str
  cores: int
  hbm_gib: float
  tb_s: float
  tflop_s: float
  ici_gb_s: float
  ring: int
  devices: int = 1
  host_gb_s: float = 16  # PCIe, its slower figure
  gke: str = ""
  machine: str = ""
  vm_chips: int = 4
  cloud: str = ""
  runtime: str = ""


# Source of speeds: cloud.google.com/tpu/docs, v5p's bandwidth as in JAX's tables; of links:
# jax-ml.github.io/scaling-book (v7x: public specification). Memory: libtpu 0.0.50. Labels and machines: xpk's
# src/xpk/core/system_characteristics.py; runtimes: cloud.google.com/tpu/docs/runtimes.
CHIPS: dict[str, Chip] = {
  "v4": Chip("v4", "megacore", 2, 30.75, 1.23, 275, 6 * 45, 4,
             gke="tpu-v4-podslice", machine="ct4p-hightpu-4t", cloud="v4", runtime="tpu-ubuntu2204-base"),
  "v5e": Chip("v5e", "default", 1, 15.75, 0.82, 197, 4 * 45, 16,
              gke="tpu-v5-lite-podslice", machine="ct5lp-hightpu-4t", cloud="v5litepod", runtime="v2-alpha-tpuv5-lite"),
  "v5p": Chip("v5", "megacore", 2, 95.73, 2.46, 459, 6 * 90, 4,
              gke="tpu-v5p-slice", machine="ct5p-hightpu-4t", cloud="v5p", runtime="v2-alpha-tpuv5"),
  "v6e": Chip("v6e", "default", 1, 31.24, 1.64, 918, 4 * 90, 16,
              gke="tpu-v6e-slice", machine="ct6e-standard-4t", cloud="v6e", runtime="v2-alpha-tpuv6e"),
  "v7x": Chip("tpu7x", "default", 2, 94.74, 7.4 / 2, 2310 / 2, 1200 / 2, 4, devices=2,
              gke="tpu7x", machine="tpu7x-standard-4t", cloud="tpu7x"),
}  # fmt: skip
# What jax.Device.device_kind says, or begins with -> bfloat16 TFLOP/s. GPUs: dense, of the SXM modules' data sheets.
PEAK_TFLOP_S: dict[str, float] = {
  "TPU v4": 275, "TPU v5 lite": 197, "TPU v5e": 197, "TPU v5": 459, "TPU v6": 918, "TPU7x": 2310 / 2,
  "NVIDIA A100-SXM4": 312, "NVIDIA H100 80GB HBM3": 989, "NVIDIA H200": 989,
}  # fmt: skip
# One GPU, of which no topology is described, by what jax.Device.device_kind begins with. Source: NVIDIA's data sheets
# of H100 and H200, SXM: memory's speed, NVLink's and PCIe's one way. Memory: as nvidia-smi says it.
GPUS: dict[str, Chip] = {
  kind: Chip("", "", 1, hbm_gib, tb_s, PEAK_TFLOP_S[kind], 450, 1, host_gb_s=64)
  for kind, hbm_gib, tb_s in (("NVIDIA H100 80GB HBM3", 79.6, 3.35), ("NVIDIA H200", 140.4, 4.8))
}
# What a device of each kind is called by libtpu, and so by jax.Device.device_kind.
_DEVICE_KINDS = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite", "v7x": "TPU7x"}
_3D = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8))
_2D = ((2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
# Google's name -> (kind of chip, chips along each axis).
TOPOLOGIES: dict[str, tuple[str, tuple[int, ...]]] = {
  f"{kind}-{math.prod(shape) * CHIPS[kind].cores}": (kind, shape)
  for kinds, shapes in ((("v4", "v5p", "v7x"), _3D), (("v5e", "v6e"), _2D))
  for kind in kinds
  for shape in shapes
}


def gpu_of(device_kind: str) -> Chip | None:
  """The row of GPUS that a device is, if any."""
  return next((chip for kind, chip in GPUS.items() if device_kind.startswith(kind)), None)


def topology_of(name: str) -> tuple[str, tuple[int, ...]]:
  """A row of TOPOLOGIES: (kind of chip, chips along each axis). Raises ValueError with the names that come near."""
  if name not in TOPOLOGIES:
    near = difflib.get_close_matches(name, TOPOLOGIES, 5, 0.5) or list(TOPOLOGIES)
    raise ValueError(f"topology={name!r} is unknown; did you mean one of {', '.join(near)}?")
  return TOPOLOGIES[name]


def wrap(chip: Chip, shape: tuple[int, ...]) -> tuple[bool, ...]:
  """Along which axes the chips form a ring: multiples of 4 in three dimensions, 16 in two."""
  return tuple(n % chip.ring == 0 for n in shape)


def open_topology(name: str, slices: int = 1) -> list:
  """The devices of so many slices of a topology, which can be compiled for and nothing else.

  Raises ValueError: libtpu is not installed.
  """
  kind, shape = topology_of(name)
  chip = CHIPS[kind]
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu would ask a cloud's metadata server, and wait
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is held
  # Of the machine itself, of which it then asks nothing; the topology is given below. Without: five lines of complaint.
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v6e-8")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  try:
    importlib.metadata.version("libtpu")
  except importlib.metadata.PackageNotFoundError:
    raise ValueError("the TPU compiler is missing: pip install libtpu (no TPU is needed).") from None
  size = "x".join(map(str, shape))
  rings = wrap(chip, shape) + (False,) * (3 - len(shape))
  options = dict(chip_config_name=chip.config, chips_per_host_bounds=(2, 2, 1), wrap=rings)
  if slices > 1:
    options["num_slices"] = slices
  return topologies.get_topology_desc(f"{chip.libtpu}:{size}", "tpu", **options).devices


@dataclasses.dataclass(frozen=True)
class Described:
  """A device by its place alone: enough for meshes, sizes and the engine's choices; nothing can be compiled for it."""

  id: int
  coords: tuple[int, int, int]
  core_on_chip: int
  device_kind: str
  slice_index: int
  platform: str = "tpu"
  process_index: int = 0

  @property
  def client(self):
    """As much of one as a sharding asks for."""
    return types.SimpleNamespace(process_index=lambda: 0, platform="tpu")


def describe_topology(name: str, slices: int = 1) -> list[Described]:
  """The devices of so many slices of a topology, for arithmetic without libtpu. Raises ValueError as `topology_of`."""
  kind, shape = topology_of(name)
  places = [(x, y, z) for z, y, x in np.ndindex(*(shape + (1,) * (3 - len(shape)))[::-1])]
  every = [(s, place, core) for s in range(slices) for place in places for core in range(CHIPS[kind].devices)]
  return [Described(i, place, core, _DEVICE_KINDS[kind], s) for i, (s, place, core) in enumerate(every)]
