"""Meshes and the one table that says where each logical axis lives.

The mesh has four axes: `data` (pure data parallel, across slices), `fsdp` (data parallel with parameters and
optimizer state sharded), `context` (tokens of a row) and `tensor` (heads, MLP width, vocabulary). Any may be 1.
Arrays are named by logical axes; RULES maps those to mesh axes; nothing else in the project names a mesh axis.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

HOST = "pinned_host"  # JAX's name of the host's memory that a device reads and writes
MESH_AXES = ("data", "fsdp", "context", "tensor")

# Logical axis -> mesh axes. Parameters: embed, mlp, heads, kv_heads, head, vocab, layers. Activations: rows, tokens,
# width (residual stream), and the parameter names for their inner axes. slices: copies of the parameters. An axis that
# is not listed is replicated.
RULES: dict[str, tuple[str, ...]] = {
  "rows": ("data", "fsdp"),
  "slices": ("data",),
  "tokens": ("context",),
  "embed": ("fsdp",),
  "mlp": ("tensor",),
  "heads": ("tensor",),
  "kv_heads": ("tensor",),
  "vocab": ("tensor",),
}


def live_devices() -> list[jax.Device]:
  """All devices of the run. Raises: ValueError when JAX finds none of the kind it was told to use."""
  try:
    return jax.devices()
  except (RuntimeError, AssertionError) as error:  # the latter where no plugin is installed
    wanted = os.environ.get("JAX_PLATFORMS", "")
    reason = " ".join(str(error).split())[:200]
    raise ValueError(
      f"JAX_PLATFORMS={wanted!r}: JAX finds no such device here ({reason or 'no plugin for it'}); unset it, or install "
      'JAX for it: make setup JAX="jax[tpu]" or "jax[cuda12]".'
    ) from error


def make_mesh(shape: Mapping[str, int], devices=None) -> Mesh:
  """Builds the mesh of a run.

  Args:
    shape: size per mesh axis; one of them may be -1, meaning "all devices that are left".
    devices: defaults to all live devices; a TPU topology's devices serve ahead-of-time compiles.
  Raises:
    ValueError: an axis is 0 or below -1, more than one is -1, the product is not the number of devices, or `data` is
      no multiple of the slices: only that axis may cross the network between them.
  """
  devices = live_devices() if devices is None else devices
  sizes = [int(shape[axis]) for axis in MESH_AXES]
  said = ", ".join(f"mesh.{a}={s}" for a, s in zip(MESH_AXES, sizes, strict=True))
  if any(s == 0 or s < -1 for s in sizes) or sizes.count(-1) > 1:
    raise ValueError(f"{said}: sizes must be positive, and at most one may be -1 (all devices left).")
  known = int(np.prod([s for s in sizes if s != -1]))
  if -1 in sizes:
    if len(devices) % known:
      raise ValueError(f"{said}: {len(devices)} devices cannot be divided by {known}.")
    sizes[sizes.index(-1)] = len(devices) // known
  elif known != len(devices):
    raise ValueError(f"{said}: needs {known} devices, but there are {len(devices)}; one axis may be -1.")
  slices = len({getattr(d, "slice_index", 0) for d in devices if d.platform == "tpu"})
  if slices > 1:
    if sizes[0] % slices:
      raise ValueError(
        f"mesh.data={sizes[0]} must be a multiple of the {slices} slices; use mesh.data={slices}, and for the "
        "other axes the devices of one slice."
      )
    within, across = [sizes[0] // slices, *sizes[1:]], [slices, 1, 1, 1]
    grid = mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
  else:
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def check_host(mesh: Mesh, field: str) -> None:
  """Raises ValueError where devices have no such memory of the host as the field needs."""
  devices = list(mesh.devices.flat)
  own = next((d for d in devices if d.process_index == jax.process_index()), devices[0])  # others' are not seen
  kinds = {memory.kind for memory in own.addressable_memories()}
  if HOST not in kinds:
    raise ValueError(f"{field}=True: this backend has no {HOST} memory, only {', '.join(sorted(kinds))}; use False.")


def for_rollout(mesh: Mesh, tensor: int) -> Mesh:
  """The same devices in the same order for sampling, of which `tensor` share a copy of the policy; 0: the same mesh.

  Training wants parameters cut over `fsdp`, sampling wants them whole or cut over few: a token needs all of them.
  Raises ValueError: the devices of a slice cannot be divided so.
  """
  if not tensor:
    return mesh
  data, rest = mesh.shape["data"], mesh.size // mesh.shape["data"]
  if rest % tensor:
    raise ValueError(f"rollout.tensor={tensor} must divide fsdp*context*tensor={rest} of the mesh; 0 is mesh.tensor.")
  return Mesh(mesh.devices.reshape(data, rest // tensor, 1, tensor), MESH_AXES, axis_types=mesh.axis_types)


def spec(*logical: str | None) -> PartitionSpec:
  """Logical axis names -> PartitionSpec under RULES; None is replicated.

  Raises ValueError when two axes of one array would use the same mesh axis.
  """
  parts, used = [], set()
  for name in logical:
    axes = RULES.get(name, ()) if name is not None else ()
    if used & set(axes):
      raise ValueError(f"axes {logical}: mesh axis {sorted(used & set(axes))} would be used twice.")
    used |= set(axes)
    parts.append(axes if len(axes) > 1 else axes[0] if axes else None)
  return PartitionSpec(*parts)


def named(mesh: Mesh, *logical: str | None) -> NamedSharding:
  """The sharding of an array with these logical axes on this mesh."""
  return NamedSharding(mesh, spec(*logical))


def named_tree(mesh: Mesh, axes):
  """`named` of every tuple of logical axis names in a tree."""
  return jax.tree.map(lambda a: named(mesh, *a), axes, is_leaf=_is_axes)


def constrain(x, *logical: str | None):
  """Inside jit under `jax.set_mesh`: pins x to its logical axes. Without a mesh, and inside `local`, returns x."""
  if jax.sharding.get_abstract_mesh().empty or _inside():
    return x
  return jax.lax.with_sharding_constraint(x, spec(*logical))


def to_mesh(mesh: Mesh, tree, *logical: str | None):
  """Places a tree of equally laid out host arrays on the mesh (each host gives the global value)."""
  sharding = named(mesh, *logical)
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(np.shape(x), sharding, lambda index, x=x: np.asarray(x)[index]), tree
  )


@dataclasses.dataclass(frozen=True)
class OnHost:
  """An array that was taken off the mesh: this process's parts of it, by their place in the whole."""

  shape: tuple[int, ...]
  sharding: jax.sharding.Sharding
  parts: dict[tuple[slice, ...], np.ndarray]

  @classmethod
  def of(cls, x: jax.Array) -> OnHost:
    """Waits for the array, and copies it."""
    parts: dict[tuple[slice, ...], np.ndarray] = {}
    for shard in x.addressable_shards:
      if shard.index not in parts:  # else another device's copy
        parts[shard.index] = np.array(shard.data)
    return cls(x.shape, x.sharding, parts)

  def back(self) -> jax.Array:
    """The same array, bit for bit."""
    return jax.make_array_from_callback(self.shape, self.sharding, self.parts.__getitem__)


def local(function, in_axes, out_axes):
  """Inside jit under `jax.set_mesh`: `function` on each device's part, by `jax.shard_map`; on one device, itself.

  Args:
    in_axes: one entry per argument, out_axes: for the result: tuples of logical axis names, or trees of such tuples
      (or of PartitionSpecs, where a library says how its own arrays are cut).
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return function
  one = lambda a: a if isinstance(a, PartitionSpec) else spec(*a)
  specs = lambda axes: jax.tree.map(one, axes, is_leaf=lambda x: _is_axes(x) or isinstance(x, PartitionSpec))
  return jax.shard_map(function, in_specs=specs(in_axes), out_specs=specs(out_axes), check_vma=False)


def devices_along(logical: str) -> int:
  """Devices that a logical axis is cut over, on the mesh of `jax.set_mesh`; 1 without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in RULES[logical])


# ---- inside `local`: what devices do together, named by the logical axis they differ in; elsewhere nothing ----


def gather(x, axis: int, logical: str):
  """The whole of an array whose `axis` is cut by the logical axis. Its transpose is `scatter_sum`."""
  return jax.lax.all_gather(x, RULES[logical], axis=axis, tiled=True) if _inside() else x


def scatter_sum(x, axis: int, logical: str):
  """The sum over devices, of which each keeps its part of `axis`."""
  return jax.lax.psum_scatter(x, RULES[logical], scatter_dimension=axis, tiled=True) if _inside() else x


def exchange(x, split: int, join: int, logical: str):
  """Cuts axis `split` and sends each device its part; what arrives is joined along `join`."""
  return jax.lax.all_to_all(x, RULES[logical], split, join, tiled=True) if _inside() else x


def sum_over(x, *logical: str):
  """The sum over the devices that differ in any of the logical axes."""
  return jax.lax.psum(x, tuple(a for name in logical for a in RULES[name])) if _inside() else x


def max_over(x, logical: str):
  """The maximum over devices."""
  return jax.lax.pmax(x, RULES[logical]) if _inside() else x


def index_along(logical: str):
  """This device's number along the logical axis."""
  return jax.lax.axis_index(RULES[logical]) if _inside() else 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def enter(x, logical: str):
  """x, which all devices along the axis have, where each begins to use it for its own part: sums the gradient."""
  return x


enter.defvjp(lambda x, logical: (x, None), lambda logical, _, d: (sum_over(d, logical),))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def leave(x, logical: str):
  """The sum over devices of what each computed from its part; all go on with it, so its gradient is that of each."""
  return sum_over(x, logical)


leave.defvjp(lambda x, logical: (sum_over(x, logical), None), lambda logical, _, d: (d,))


def _is_axes(x) -> bool:
  return isinstance(x, tuple) and all(a is None or isinstance(a, str) for a in x)


def _inside() -> bool:
  """Whether this is traced for one device's part, by `local`; on a single device arrays are whole anyway."""
  return jax.sharding.get_abstract_mesh().are_all_axes_manual
