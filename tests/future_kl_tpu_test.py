"""What the chips of a TPU v5p 4x4x4 say to each other for a discounted sum: compiled by libtpu, without a TPU."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from segments_test import collectives

from fipo_jax import sharding
from fipo_jax.algorithms import diagnostics, losses
from fipo_jax.algorithms import future_kl as fkl
from fipo_jax.types import Batch

pytestmark = pytest.mark.slow

R, T = 64, 22528


@pytest.fixture(scope="module")
def mesh():
  """64 chips, rows over 8 and tokens over 8."""
  pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install libtpu")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TPU_SKIP_MDS_QUERY", "1")  # libtpu would ask a cloud's metadata server, and wait
    patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is held, and tests may run in several processes
    topology = topologies.get_topology_desc(
      "v5:4x4x4", "tpu", chip_config_name="megacore", chips_per_host_bounds=(2, 2, 1), wrap=(True, True, True)
    )
  return sharding.make_mesh({"data": 1, "fsdp": 8, "context": 8, "tensor": 1}, topology.devices)


def compiled(function, mesh):
  arrays = [
    jax.ShapeDtypeStruct((R, T), dtype, sharding=sharding.named(mesh, "rows", "tokens"))
    for dtype in (jnp.float32, jnp.bool_, jnp.int32)
  ]
  with jax.set_mesh(mesh):
    return collectives(jax.jit(function).lower(*arrays).compile().as_text())


@pytest.mark.parametrize("function", [fkl.future_kl, fkl.past_kl])
def test_one_small_all_gather(mesh, function):
  found = compiled(functools.partial(function, half_life_tokens=32.0), mesh)
  assert found == [("all-gather", [f"f32[8,4,{R // 8}]"])]  # shards, numbers, rows of a shard


def test_the_gradient_adds_one_of_that_size(mesh):
  loss = lambda *arrays: jnp.sum(jnp.tanh(fkl.future_kl(*arrays, half_life_tokens=32.0)))
  found = compiled(jax.grad(loss), mesh)
  assert [name for name, _ in found][0] == "all-gather" and len(found) == 2
  assert all(shapes == [f"f32[8,4,{R // 8}]"] for _, shapes in found)


def test_the_whole_loss_exchanges_edges_and_numbers_but_no_row(mesh):
  """Objective, gradient and all metrics, rejection and exact quantiles included."""
  cut = sharding.named(mesh, "rows", "tokens")
  f, i = (jax.ShapeDtypeStruct((R, T), dtype, sharding=cut) for dtype in (jnp.float32, jnp.int32))

  def loss(logp, batch):
    out = losses.fipo(logp, batch)
    return out.loss.total, (out.loss.count, diagnostics.summarise(out.metrics))

  with jax.set_mesh(mesh):
    program = jax.jit(jax.value_and_grad(loss, has_aux=True))
    found = collectives(program.lower(f, Batch(i, i, i, f, f, f, f, f)).compile().as_text())
  numbers = [
    math.prod(int(n) for n in re.findall(r"\d+", shape.split("[")[1])) for _, shapes in found for shape in shapes
  ]
  assert len(found) >= 8 and max(numbers) <= 8 * 4 * R // 8
