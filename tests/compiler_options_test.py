"""What the trainer's programs ask of a compiler reaches it, and is refused at the start."""

import dataclasses

import jax
import pytest

from fipo_jax import config as config_lib
from fipo_jax.models import PRESETS
from fipo_jax.pods import chips, programs
from fipo_jax.sharding import make_mesh
from fipo_jax.train import compiler_options
from tests.compile_test import tiny

NO_SUCH = {"xla_tpu_enable_wishful_thinking": "true"}
ONE = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}


def test_options_are_by_the_kinds_that_jax_names():
  assert set(compiler_options.OPTIONS) <= {d.device_kind for d in map(of_kind, chips.CHIPS)}
  for choice in compiler_options.CHOICES:
    c = tiny(config_lib.default())
    c.compiler_options = choice
    programs.validate(c)
  c.compiler_options = "auto"
  with pytest.raises(ValueError, match="compiler_options='auto': expected one of 'chip', 'none'"):
    programs.validate(c)


def of_kind(kind):
  return chips.describe_topology(next(name for name, row in chips.TOPOLOGIES.items() if row[0] == kind))[0]


def test_a_run_compiles_with_the_options_of_its_chip(monkeypatch):
  """Update and score ask for them, whoever compiles; here a CPU's compiler says that it has no such option."""
  monkeypatch.setitem(compiler_options.OPTIONS, "cpu", NO_SUCH)
  cfg = tiny(config_lib.default())
  cfg.batch.row_tokens, cfg.batch.micro_rows = 128, 1
  monkeypatch.setitem(PRESETS, "tiny", dataclasses.replace(PRESETS["tiny"], num_layers=1))
  for choice in compiler_options.CHOICES:
    cfg.compiler_options = choice
    plan = programs.make_plan(cfg, chips.CHIPS["v5e"], jax.devices()[:1], 8, rollout=False)
    for program in (programs.train_program(plan), programs.score_program(plan)):
      with jax.set_mesh(plan.mesh):
        lowered = program.lower()
        if choice == "chip":
          with pytest.raises(jax.errors.JaxRuntimeError, match="wishful_thinking"):
            lowered.compile()
    if choice == "none":
      lowered.compile()


def test_a_compiler_that_refuses_them_is_found_at_the_start(monkeypatch):
  mesh = make_mesh(ONE, jax.devices()[:1])
  compiler_options.check(mesh, "chip")  # a CPU has none
  monkeypatch.setitem(compiler_options.OPTIONS, "cpu", NO_SUCH)
  compiler_options.check(mesh, "none")
  with pytest.raises(ValueError, match="compiler_options='chip': .*wishful_thinking.*use 'none'") as error:
    compiler_options.check(mesh, "chip")
  assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(chips.CHIPS))
def test_libtpu_takes_them(kind):
  pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install libtpu")
  smallest = next(name for name, row in chips.TOPOLOGIES.items() if row[0] == kind)
  mesh = make_mesh({**ONE, "fsdp": -1}, chips.open_topology(smallest))
  assert mesh.devices.flat[0].device_kind == of_kind(kind).device_kind
  x = jax.ShapeDtypeStruct((8,), "float32", sharding=jax.NamedSharding(mesh, jax.P()))
  jax.jit(lambda x: x + 1, compiler_options=compiler_options.options_of(mesh, "chip")).lower(x).compile()
