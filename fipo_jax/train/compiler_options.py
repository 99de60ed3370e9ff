"""What the trainer's programs ask of a TPU's compiler."""

from __future__ import annotations

import jax
from jax.sharding import Mesh

# Collectives beside the arithmetic instead of between it. The last is of sums over mesh.data: 100% of a loop of layers
# is asynchronous with it, and 97.8% without.
_SPARSE_CORE = {
  f"xla_tpu_enable_sparse_core_collective_offload_{kind}": "true"
  for kind in ("all_gather", "2d_all_gather", "3d_all_gather", "reduce_scatter", "nd_reduce_scatter", "all_reduce")
}
# By kind of device, as JAX calls it: those options of public recipes that change the program for the better by the
# compiler's own measures (experiments/results/compile/options.md has the others, and what they do). v4 and v5e have
# none. None was tried on a chip.
OPTIONS: dict[str, dict[str, str]] = {
  "TPU v5": {  # v5p
    "xla_tpu_scoped_vmem_limit_kib": "65536",  # all of a core's: products in 12.3 s instead of 14.0 by the estimate
    **_SPARSE_CORE,  # 99.8% of what is sent is asynchronous, and gradients are reduce-scatters; without, neither
  },
  "TPU v6 lite": {
    "xla_tpu_scoped_vmem_limit_kib": "98304",  # of 131,072: as MaxText's for dense models
    **_SPARSE_CORE,  # as v5p
  },
  # Collectives are on the SparseCores without being asked: all of _SPARSE_CORE leaves the program as it is.
  "TPU7x": {"xla_tpu_scoped_vmem_limit_kib": "65536"},  # all of a core's: 13% fewer cycles in a forward pass's products
}
CHOICES = ("chip", "none")


def options_of(mesh: Mesh, choice: str) -> dict[str, str] | None:
  """The options of programs on a mesh; None where there are none. choice: config.compiler_options."""
  return OPTIONS.get(mesh.devices.flat[0].device_kind) if choice == "chip" else None


def check(mesh: Mesh, choice: str) -> None:
  """Raises ValueError where the compiler refuses them; found in a moment, and not after the first rollout."""
  if options := options_of(mesh, choice):
    try:
      jax.jit(lambda x: x + 1, compiler_options=options).lower(jax.ShapeDtypeStruct((), "float32")).compile()
    except jax.errors.JaxRuntimeError as error:
      reason = " ".join(str(error).split())[:200]
      raise ValueError(
        f"compiler_options={choice!r}: this compiler refuses what it stands for here ({reason}); use 'none', or the "
        "libtpu that comes with this version of JAX."
      ) from error
