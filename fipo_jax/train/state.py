"""The trainer's state: parameters, optimizer state and two counters, laid out on the mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fipo_jax.models.transformer import Model
from fipo_jax.sharding import HOST, RULES, check_host

OPT_STATE = jax.tree_util.GetAttrKey("opt_state")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """updates: int32, optimizer steps applied. skipped: int32, consecutive non-finite ones. params, opt_state: trees."""

  updates: jax.Array
  skipped: jax.Array
  params: Any
  opt_state: Any


def create(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
  """A fresh state around parameters; jit it with `shardings` so that moments are born sharded."""
  return TrainState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), params, optimizer.init(params))


def abstract(
  model: Model, optimizer: optax.GradientTransformation, mesh: Mesh, *, offload: bool = False
) -> TrainState:
  """The state as ShapeDtypeStructs with shardings, no arrays: what restore and ahead-of-time compiles start from.

  A leaf of the optimizer state that lies at a parameter's path inside some tree of its own and has its shape (a moment)
  takes that parameter's sharding; the rest (counters) are replicated. offload: moments of what is cut along `embed`,
  the matrices, stay in the host's memory. Those of norms and biases are small, and libtpu cannot slice them there.

  Raises:
    ValueError: offload on a backend without such memory.
  """
  if offload:
    check_host(mesh, "optimizer.offload")
  shapes = jax.eval_shape(lambda p: create(p, optimizer), model.abstract())
  replicated = NamedSharding(mesh, PartitionSpec())
  shardings = jax.tree_util.tree_leaves_with_path(model.shardings(mesh))
  sizes = [x.shape for x in jax.tree.leaves(model.abstract())]
  of_parameter = {(path, shape): sharding for (path, sharding), shape in zip(shardings, sizes, strict=True)}

  def place(path, leaf):
    tails = ((path[i:], leaf.shape) for i in range(len(path)))
    sharding = next((of_parameter[tail] for tail in tails if tail in of_parameter), replicated)
    if offload and is_offloaded(path, sharding):
      sharding = sharding.with_memory_kind(HOST)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  return jax.tree_util.tree_map_with_path(place, shapes)


def is_offloaded(path, sharding: NamedSharding) -> bool:
  """Whether optimizer.offload leaves this leaf of a TrainState in the host's memory; see `abstract`."""
  return path[0] == OPT_STATE and bool(set(RULES["embed"]) & set(sharding.spec))


def layout(abstract_state: TrainState) -> TrainState:
  """The shardings of an abstract state, as a tree for `jax.jit`."""
  return jax.tree.map(lambda x: x.sharding, abstract_state)


def on_device(shardings):
  """The same shardings, in the device's memory."""
  return jax.tree.map(lambda s: s.with_memory_kind("device"), shardings)
