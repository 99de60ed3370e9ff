"""Every test sees eight CPU devices, so that sharded programs run anywhere.

JAX_PLATFORMS=cuda or tpu in the environment runs the same tests on an accelerator instead.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA's concurrent CPU schedule lets devices enter independent collectives of one program in
# different orders: a deadlock, which ends in an abort.
os.environ["XLA_FLAGS"] = " ".join(
  [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_enable_concurrency_optimized_scheduler=false"]
).strip()

import jax

jax.config.update("jax_num_cpu_devices", 8)
