"""Every test sees eight CPU devices, so that sharded programs run anywhere.

JAX_PLATFORMS=cuda or tpu runs the same tests on an accelerator; those that need eight devices skip there.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_num_cpu_devices", 8)
