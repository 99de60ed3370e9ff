"""The rows of `mutants` for bounds of memory and of the host's work: (name, file, old text, new text, tests that should
notice, why)."""

ROWS = (
  # ---- attention over rows of any length ----
  (
    "doors_padding_joins_the_row", "fipo_jax/models/attention_splash.py",
    "PADDED = -1  #", "PADDED = 0  #",
    "attention_splash_test.py::test_padding_is_a_segment_of_its_own", "a row's padding looks at what is not there",
  ),
  (
    "doors_small_blocks", "fipo_jax/models/attention_splash.py",
    "2 * found[name] * LANES >= most for name", "2 * found[name] * LANES >= 0 for name",
    "attention_splash_test.py::test_blocks_of_rows", "rows of 22,656 tokens write 10 GB of partial gradients",
  ),
  (
    "doors_context_padded_as_one", "fipo_jax/models/attention_splash.py",
    "itertools.count(-(-tokens // (LANES * context)))", "itertools.count(-(-tokens // LANES))",
    "attention_splash_test.py::test_blocks_of_rows", "each device computes the padding of all",
  ),
  (
    "doors_always_fused", "fipo_jax/models/attention_splash.py",
    "* q_RTHh.dtype.itemsize <= PARTIAL_DQ", "* q_RTHh.dtype.itemsize > 0",
    "attention_splash_test.py::test_long_rows_write_no_partial_gradients", "131,072 tokens take 21 GB in passing",
  ),
  (
    "doors_falls_back_in_silence", "fipo_jax/models/attention.py",
    "tokens >= attention_splash.LANES * context:", "tokens % (attention_splash.LANES * context) == 0:",
    "attention_splash_test.py::test_automatic_on_a_tpu", "a row of 22,600 tokens holds scores of all pairs",
  ),
  (
    "doors_length_not_said", "fipo_jax/describe.py",
    "and T > tiles.TILE * context and cfg", "and T < tiles.TILE * context and cfg",
    "attention_splash_test.py::test_what_a_length_costs_is_said", "memory grows by a row's rest, and nobody knows why",
  ),
  (
    "doors_factor_rounded", "fipo_jax/models/scale.py",
    "(q.astype(jnp.float32) * q.shape[-1] ** -0.5)", "(q * q.shape[-1] ** -0.5)",
    "scale_test.py::test_queries_of_rows", "in bfloat16 all scores are off by the same factor",
  ),
  (
    "doors_scaled_by_cudnn_too", "fipo_jax/models/attention_cudnn.py",
    "scale=1.0, mask_type", "scale=q_RTHh.shape[-1] ** -0.5, mask_type",
    "scale_test.py::test_queries_of_rows", "scores on GPUs are divided by √h twice",
  ),
  (
    "doors_cache_scales_alone", "fipo_jax/models/cache.py",
    "scaled(q_SHh).reshape", "(q_SHh * h**-0.5).reshape",
    "scale_test.py::test_queries_of_pages", "the sampler's scores are not the trainer's",
  ),
  (
    "doors_kernel_scales_alone", "fipo_jax/models/cache_pallas.py",
    "scaled(q_SHh).astype(jnp.float32)", "(q_SHh.astype(jnp.float32) * q_SHh.shape[-1] ** -0.5)",
    "scale_test.py::test_queries_of_pages", "on TPUs the sampler's scores are not the trainer's",
  ),
)  # fmt: skip
