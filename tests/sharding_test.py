"""Meshes and the table of logical axes, on eight CPU devices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from tolerances import close

from fipo_jax import sharding


def mesh(data=1, fsdp=1, context=1, tensor=1, devices=None):
  return sharding.make_mesh(
    {"data": data, "fsdp": fsdp, "context": context, "tensor": tensor}, devices
  )


@pytest.mark.parametrize(
  ("sizes", "shape"),
  [
    ((1, -1, 1, 1), (1, 8, 1, 1)),
    ((-1, 2, 1, 2), (2, 2, 1, 2)),
    ((2, 1, 2, 2), (2, 1, 2, 2)),
    ((8, -1, 1, 1), (8, 1, 1, 1)),
  ],
)
def test_mesh_has_the_sizes_asked_for(sizes, shape):
  made = mesh(*sizes)
  assert tuple(made.shape.values()) == shape and tuple(made.shape) == sharding.MESH_AXES
  assert sorted(d.id for d in made.devices.flat) == list(range(8))


def test_mesh_of_some_devices():
  assert mesh(fsdp=-1, devices=jax.devices()[:2]).shape["fsdp"] == 2


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ((1, 3, 1, 1), r"mesh\.fsdp=3.*needs 3 devices, but there are 8"),
    ((2, 8, 1, 1), "needs 16 devices"),
    ((-1, -1, 1, 1), r"mesh\.data=-1, mesh\.fsdp=-1.*at most one may be -1"),
    ((1, 0, 1, 1), "must be positive"),
    ((1, -2, 1, 1), "must be positive"),
    ((-1, 3, 1, 1), "8 devices cannot be divided by 3"),
  ],
)
def test_bad_sizes_are_named(sizes, message):
  with pytest.raises(ValueError, match=message):
    mesh(*sizes)


@pytest.mark.parametrize(
  ("logical", "expected"),
  [
    (("rows", "tokens"), P(("data", "fsdp"), "context")),
    (("layers", "embed", "heads", "head"), P(None, "fsdp", "tensor", None)),
    (("vocab", "embed"), P("tensor", "fsdp")),
    ((None, "mlp"), P(None, "tensor")),
    (("rows", "tokens", "width"), P(("data", "fsdp"), "context", None)),
    ((), P()),
  ],
)
def test_spec_reads_the_rules(logical, expected):
  assert sharding.spec(*logical) == expected


@pytest.mark.parametrize("logical", [("heads", "mlp"), ("rows", "embed"), ("embed", "embed")])
def test_one_mesh_axis_cannot_serve_twice(logical):
  with pytest.raises(ValueError, match="used twice"):
    sharding.spec(*logical)


def test_every_rule_names_axes_of_the_mesh():
  for axes in sharding.RULES.values():
    assert axes and set(axes) <= set(sharding.MESH_AXES)


def test_rows_are_spread_over_data_and_fsdp_in_order():
  x_RT = np.arange(8 * 4, dtype=np.float32).reshape(8, 4)
  placed = sharding.to_mesh(mesh(data=2, fsdp=2, context=2), {"x": x_RT}, "rows", "tokens")["x"]
  assert placed.sharding.spec == P(("data", "fsdp"), "context")
  np.testing.assert_array_equal(placed, x_RT)
  for shard in placed.addressable_shards:
    assert shard.data.shape == (2, 2)
    np.testing.assert_array_equal(shard.data, x_RT[shard.index])
  assert len({str(shard.index) for shard in placed.addressable_shards}) == 8


def test_unlisted_axes_are_replicated():
  placed = sharding.to_mesh(mesh(fsdp=8), np.arange(3, dtype=np.int32), "width")
  assert placed.is_fully_replicated and placed.dtype == np.int32


def test_constrain_pins_inside_jit_under_a_mesh():
  made = mesh(fsdp=4, tensor=2)
  x = sharding.to_mesh(made, np.ones((8, 4), np.float32), None, None)

  @jax.jit
  def double(x):
    return sharding.constrain(2 * x, "embed", "mlp")

  with jax.set_mesh(made):
    y = double(x)
  assert y.sharding.is_equivalent_to(sharding.named(made, "embed", "mlp"), 2)
  assert y.addressable_shards[0].data.shape == (2, 2)
  np.testing.assert_array_equal(y, 2 * np.ones((8, 4)))


def test_constrain_without_a_mesh_is_the_identity():
  x = jnp.ones((3, 5))  # sizes no mesh axis divides
  assert sharding.constrain(x, "rows", "tokens") is x
  np.testing.assert_array_equal(jax.jit(lambda x: sharding.constrain(x, "rows", "tokens"))(x), x)


def test_sharded_sum_equals_unsharded():
  x_RT = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
  f = jax.jit(lambda x: jnp.sum(jnp.tanh(x) ** 2, axis=1))
  placed = sharding.to_mesh(mesh(data=2, fsdp=2, context=2), x_RT, "rows", "tokens")
  close(f(placed), f(x_RT), terms=8)


@pytest.mark.parametrize("shape", [{}, dict(data=2, fsdp=2, tensor=2)])
def test_what_is_taken_off_the_mesh_comes_back(shape):
  """Bit for bit, in the same layout; copies on several devices are one on the host; the array itself may go."""
  of = mesh(**shape, devices=jax.devices()[: math.prod(shape.values())])
  host = np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float32)
  host[0, 0, 0] = np.nan
  x = sharding.to_mesh(of, host, None, "rows", "tokens")
  kept = sharding.OnHost.of(x)
  assert all(type(part) is np.ndarray and part.base is None for part in kept.parts.values())  # no view of a device's
  assert sum(part.nbytes for part in kept.parts.values()) == host.nbytes
  layout = x.sharding
  x.delete()
  again = kept.back()
  np.testing.assert_array_equal(again, host)
  assert again.sharding == layout
