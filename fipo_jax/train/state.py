"""The trainer's state: parameters, optimizer state and two counters, laid out on the mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fipo_jax.models.transformer import Model


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


def abstract(model: Model, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
  """The state as ShapeDtypeStructs with shardings, no arrays: what restore and ahead-of-time compiles start from.

  Optimizer leaves shaped like a parameter tree take that tree's shardings; counters are replicated.
  """
  shapes = jax.eval_shape(lambda p: create(p, optimizer), model.abstract())
  shardings = model.shardings(mesh)
  replicated = NamedSharding(mesh, PartitionSpec())
  opt_shardings = optax.tree.map_params(
    optimizer,
    lambda _, sharding: sharding,
    shapes.opt_state,
    shardings,
    transform_non_params=lambda _: replicated,
  )
  layout = TrainState(replicated, replicated, shardings, opt_shardings)
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, layout)


def layout(abstract_state: TrainState) -> TrainState:
  """The shardings of an abstract state, as a tree for `jax.jit`."""
  return jax.tree.map(lambda x: x.sharding, abstract_state)
