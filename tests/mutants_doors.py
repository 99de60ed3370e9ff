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
  # ---- groups that wait, in checkpoints ----
  (
    "doors_parts_from_the_front", "fipo_jax/rollout/stored.py",
    "    at += number\n", "    at = number\n",
    "collect_test.py::test_waiting_groups_survive", "responses come back with the tokens of others",
  ),
  (
    "doors_views_of_all", "fipo_jax/rollout/stored.py",
    "np.array(array[at - number : at], dtype)", "np.asarray(array[at - number : at], dtype)",
    "collect_test.py::test_waiting_groups_survive", "one group keeps the memory of all that waited",
  ),
  (
    "doors_arrays_of_nothing", "fipo_jax/rollout/stored.py",
    "in arrays.items() if array.size}", "in arrays.items()}",
    "collect_test.py::test_groups_without_a_token_survive", "a checkpoint of groups that begin again cannot be saved",
  ),
  (
    "doors_older_groups", "fipo_jax/rollout/stored.py",
    'record.get(name, record["tokens"])', 'record["tokens"]',
    "collect_test.py::test_groups_of_earlier_versions_are_read", "an older run resumes with wrong log-probs",
  ),
  (
    "doors_older_rescue", "fipo_jax/rollout/stored.py",
    "  paths.delete(folder / EARLIER)\n", "",
    "collect_test.py::test_what_was_rescued_belongs_to_one_checkpoint", "two files say what was rescued",
  ),
  (
    "doors_arrays_not_joined", "fipo_jax/train/checkpoint.py",
    'got["waiting"] if waiting else {}', "{}",
    "checkpoint_test.py::test_arrays_of_the_host", "a resumed run cannot read the groups that waited",
  ),
  (
    "doors_arrays_always", "fipo_jax/train/checkpoint.py",
    'waiting = paths.exists(self.folder / str(step) / "waiting")', "waiting = True",
    "checkpoint_test.py::test_arrays_of_the_host", "checkpoints of older versions cannot be read",
  ),
  # ---- what a device and a host hold and do ----
  (
    "doors_one_part", "fipo_jax/sharding.py",
    "self.parts.__getitem__)", "lambda _: next(iter(self.parts.values())))",
    "sharding_test.py::test_what_is_taken_off_the_mesh_comes_back", "each device gets another's old log-probs",
  ),
  (
    "doors_views_of_the_device", "fipo_jax/sharding.py",
    "parts[shard.index] = np.array(shard.data)", "parts[shard.index] = shard.data",
    "sharding_test.py::test_what_is_taken_off_the_mesh_comes_back", "what waits on the host is on the device",
  ),
  (
    "doors_batches_stay", "fipo_jax/loop.py",
    "    batch = run.place(p.batch)\n    scored",
    '    batch = run.place(p.batch)\n    vars(run).setdefault("all", []).append(batch)\n    scored',
    "loop_test.py::test_one_mini_batch_at_a_time_is_on_the_mesh", "all mini-batches of a step stay on the device",
  ),
  (
    "doors_empty_is_not_finite", "fipo_jax/train/step.py",
    "(finite & ~ok).astype", "(~finite).astype",
    "step_test.py::test_a_mini_batch_without_a_token_changes_nothing", "rejected responses pass for bad numerics",
  ),
  (
    "doors_empty_never_forgotten", "fipo_jax/loop.py",
    '      run.host["empty_updates"] = 0\n', "      pass\n",
    "loop_test.py::test_skipped_updates_say_why", "the reason of an earlier streak is given",
  ),
  (
    "doors_empty_of_all", "fipo_jax/loop.py",
    "if bad := skipped - empty:", "if bad := skipped:",
    "loop_test.py::test_skipped_updates_say_why", "rejected responses count as not finite",
  ),
  (
    "doors_age_from_the_end", "fipo_jax/collect.py",
    "fresh = [(since.get(g[0].prompt.id, step), g)", "fresh = [(step, g)",
    "collect_test.py::test_ages_count_from_the_first_token", "a response of old weights passes for a fresh one",
  ),
  (
    "doors_age_without_a_token", "fipo_jax/collect.py",
    "for s, g in pending if any(len(r.tokens) for r in g)}", "for s, g in pending}",
    "collect_test.py::test_ages_count_from_the_first_token", "what began again passes for old",
  ),
  (
    "doors_late_is_lost", "fipo_jax/collect.py",
    "<= c.max_age or finished(s, g) == step - 1]", "<= c.max_age]",
    "collect_test.py::test_ages_count_from_the_first_token", "long responses are dropped for their length",
  ),
  (
    "doors_passed_over_for_ever", "fipo_jax/collect.py",
    "or finished(s, g) == step - 1]", "or g[0].age]",
    "collect_test.py::test_a_continued_group_that_was_passed_over_ages", "continued groups wait without a limit",
  ),
  (
    "doors_all_decoded", "fipo_jax/collect.py",
    "[job(i) for i in range(processes.index(), number, n)]", "[job(i) for i in range(number)][processes.index() :: n]",
    "collect_test.py::test_only_what_is_verified_here_is_decoded", "every host decodes every response",
  ),
)  # fmt: skip
