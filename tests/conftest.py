"""Every test sees eight CPU devices, so that sharded programs run anywhere; programs compile cheaply, and only once.

JAX_PLATFORMS=cuda or tpu in the environment runs the same tests on an accelerator instead. A flag that XLA_FLAGS names
keeps its value: XLA_FLAGS=--xla_backend_optimization_level=3 runs the tests on programs optimised as in use.
"""

import gc
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
FLAGS = [
  # XLA's concurrent CPU schedule lets devices enter independent collectives of one program in different orders: a
  # deadlock, which ends in an abort.
  "--xla_cpu_enable_concurrency_optimized_scheduler=false",
]
if os.environ["JAX_PLATFORMS"] == "cpu":
  # Most of the tests' time is spent by XLA on machine code that runs for a moment: it may be plain, and in one piece.
  FLAGS += ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([given, *(f for f in FLAGS if f.partition("=")[0] not in given)]).strip()

# One cache of compiled programs for the workers of a session and the processes that tests start. A program is found by
# its own text, so no fault hides there. The cache starts empty, unless JAX_COMPILATION_CACHE_DIR names one to be kept.
OWN_CACHE = None if "JAX_COMPILATION_CACHE_DIR" in os.environ else tempfile.mkdtemp(prefix="fipo_jax_tests_")
if OWN_CACHE:
  os.environ["JAX_COMPILATION_CACHE_DIR"] = OWN_CACHE
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def pytest_configure():
  import jax  # reads the environment

  jax.config.update("jax_num_cpu_devices", 8)


def pytest_runtest_setup():
  from fipo_jax import processes

  processes.begin(False)  # whether a test before has trained in this process decides no exit code


def pytest_collection_finish():
  # Programs are traced as many small objects, few of them in cycles: rarer searches for those save a fifteenth.
  gc.freeze()
  gc.set_threshold(50_000)


def pytest_unconfigure():
  if OWN_CACHE:
    shutil.rmtree(OWN_CACHE, ignore_errors=True)
