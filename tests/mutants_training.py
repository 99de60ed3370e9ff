"""The rows of `mutants` for training: (name, file, old text, new text, tests that should notice, why)."""

ROWS = (
  (
    "xla_update_without_options", "fipo_jax/train/step.py",
    "out_shardings=(states, everywhere),\n      compiler_options=compiler_options,",
    "out_shardings=(states, everywhere),",
    "compiler_options_test.py::test_a_run_compiles_with_the_options_of_its_chip",
    "on a pod collectives wait, though the report says that they do not",
  ),
  (
    "xla_options_are_tried_too_late", "fipo_jax/train/compiler_options.py",
    "if options := options_of(mesh, choice):", "if None:",
    "compiler_options_test.py::test_a_compiler_that_refuses_them_is_found_at_the_start",
    "another libtpu ends a run after its first rollout",
  ),
  # ---- packing and the step ----
  (
    "positions_of_the_row", "fipo_jax/train/batching.py",
    'a["positions"][whole] = np.arange(stop - at)', 'a["positions"][whole] = np.arange(at, stop)',
    "batching_test.py", "the second response of a row begins at a wrong angle",
  ),
  (
    "one_segment", "fipo_jax/train/batching.py",
    'a["segments"][whole] = segment', 'a["segments"][whole] = 1',
    "batching_test.py", "responses of a row see each other",
  ),
  (
    "mask_of_the_prompt", "fipo_jax/train/batching.py",
    'a["mask"][response] = 1.0', 'a["mask"][whole] = 1.0',
    "batching_test.py", "the prompt is trained on",
  ),
  (
    "uneven_micro_batches", "fipo_jax/train/batching.py",
    "micro, row, at = number % used, number // used, 0",
    "micro, row, at = number // micro_rows, number % micro_rows, 0",
    "batching_test.py::test_rows_are_dealt_round_the_micro_batches", "the last micro-batch is nearly empty",
  ),
  (
    "group_tokens_of_one", "fipo_jax/train/batching.py",
    'a["group_tokens"][whole] = group_tokens[i]', 'a["group_tokens"][whole] = len(r.tokens)',
    "batching_test.py", "group_token is sequence_mean",
  ),
  (
    "age_lost", "fipo_jax/train/batching.py",
    'a["age"][whole] = r.age', 'a["age"][whole] = 0',
    "batching_test.py", "waiting groups count in the sampler's mismatch",
  ),
  (
    "micro_batch_division", "fipo_jax/train/step.py",
    "g / jnp.maximum(count, 1e-8).astype(g.dtype)", "g / jnp.maximum(count / used, 1e-8).astype(g.dtype)",
    "step_test.py::test_gradient_is_the_global_token_mean", "the gradient grows with the number of micro-batches",
  ),
  (
    "last_micro_batch_alone", "fipo_jax/train/step.py",
    "lambda a, b: a + b.astype(a.dtype), grads, g)", "lambda a, b: b.astype(a.dtype), grads, g)",
    "step_test.py::test_gradient_is_the_global_token_mean", "one micro-batch is learnt from",
  ),
  (
    "skipped_update_moves_parameters", "fipo_jax/train/step.py",
    "params=keep(params, state.params),", "params=params,",
    "step_test.py::test_a_non_finite_update_is_skipped_and_counted", "one NaN ends the run",
  ),
  (
    "skipped_update_moves_moments", "fipo_jax/train/step.py",
    "opt_state=keep(opt_state, old),", "opt_state=opt_state,",
    "step_test.py::test_a_non_finite_update_is_skipped_and_counted",
    "one NaN poisons Adam's moments: every later update",
  ),
  (
    "skipped_never_reset", "fipo_jax/train/step.py",
    "skipped=jnp.where(ok, 0, state.skipped + 1)", "skipped=jnp.where(ok, state.skipped, state.skipped + 1)",
    "step_test.py::test_a_non_finite_update_is_skipped_and_counted", "eight bad updates in a year end a run",
  ),
  (
    "empty_mini_batch", "fipo_jax/train/step.py",
    "ok = finite & (count > 0)", "ok = finite",
    "step_test.py::test_a_mini_batch_without_a_token_changes_nothing",
    "a mini-batch of rejected responses decays the weights",
  ),
  (
    "temperature_in_logp", "fipo_jax/train/step.py",
    "temperature=temperature, logits_mib=logits_mib,", "temperature=1.0, logits_mib=logits_mib,",
    "step_test.py::test_scores_are_at_the_temperature_of_the_sampler",
    "ratios compare two distributions as soon as rollout.temperature is not 1",
  ),
  (
    "score_of_one_micro_batch", "fipo_jax/train/step.py",
    "lambda x: x[m], batch), with_entropy=False)", "lambda x: x[0], batch), with_entropy=False)",
    "step_test.py::test_score_equals_inspect_and_makes_the_first_update_on_policy",
    "old log-probabilities are another micro-batch's",
  ),
  # ---- optimizer ----
  (
    "warmup_from_zero", "fipo_jax/train/optimizer.py",
    "ramp = optax.linear_schedule(learning_rate / warm, learning_rate, warm - 1)",
    "ramp = optax.linear_schedule(0.0, learning_rate, warm)",
    "optimizer_test.py::test_warmup_counts_every_update", "the first update is thrown away",
  ),
  (
    "cosine_ends_late", "fipo_jax/train/optimizer.py",
    "max(total_updates - warm, 1)", "max(total_updates, 1)",
    "optimizer_test.py::test_cosine_falls_to_zero_at_the_last_update", "the rate does not reach 0",
  ),
  (
    "no_weight_decay", "fipo_jax/train/optimizer.py",
    "kept = dict(eps=eps, weight_decay=weight_decay,", "kept = dict(eps=eps, weight_decay=0.0,",
    "optimizer_test.py::test_one_step_is_clipped_adamw", "weights are not decayed",
  ),
  (
    "no_clip_norm", "fipo_jax/train/optimizer.py",
    "parts = [optax.clip_by_global_norm(clip_norm), chain]", "parts = [optax.clip_by_global_norm(1e9), chain]",
    "optimizer_test.py::test_the_second_step_remembers_the_clipped_first_by_b1_and_b2",
    "Adam's moments see unclipped gradients",
  ),
  (
    "betas_swapped", "fipo_jax/train/optimizer.py",
    "optax.adamw(learning_rate, b1=b1, b2=b2, **kept)", "optax.adamw(learning_rate, b1=b2, b2=b1, **kept)",
    "optimizer_test.py::test_the_second_step_remembers_the_clipped_first_by_b1_and_b2",
    "the first moment remembers for a thousand updates",
  ),
  # ---- checkpoints ----
  (
    "oldest_checkpoints_kept", "fipo_jax/train/checkpoint.py",
    "checkpoints[-self.newest :]", "checkpoints[: self.newest]",
    "checkpoint_test.py::test_only_the_newest_are_kept", "a run goes back to its beginning",
  ),
  (
    "worst_checkpoint_kept", "fipo_jax/train/checkpoint.py",
    "key=lambda c: (accuracy(c), c.step))", "key=lambda c: (-accuracy(c), c.step))",
    "checkpoint_test.py::test_of_equally_good_steps_the_later_is_kept", "the best checkpoint is deleted",
  ),
  (
    "earlier_of_equals_kept", "fipo_jax/train/checkpoint.py",
    "key=lambda c: (accuracy(c), c.step))", "key=lambda c: (accuracy(c), -c.step))",
    "checkpoint_test.py::test_of_equally_good_steps_the_later_is_kept",
    "of two equally good states the younger is lost",
  ),
  (
    "torn_saves_stay", "fipo_jax/train/checkpoint.py",
    "self._clear(torn=True)", "self._clear()",
    "checkpoint_test.py::test_a_torn_step_is_not_seen", "kills fill the disk",
  ),
  # ---- collecting groups ----
  (
    "judged_by_reward", "fipo_jax/collect.py",
    "len({r.accuracy for r in group}) > 1", "len({r.reward for r in group}) > 1",
    "collect_test.py::test_a_group_is_judged_by_accuracy_and_not_by_reward",
    "the overlong penalty makes groups of wrong responses informative",
  ),
  (
    "keep_rate_of_the_last_step", "fipo_jax/collect.py",
    "KEEP_RATE_MEMORY * old + (1 - KEEP_RATE_MEMORY) * measured", "measured",
    "collect_test.py", "one lucky step orders too few prompts",
  ),
  (
    "draw_without_a_bound", "fipo_jax/collect.py",
    "min(need, largest * want)", "need",
    "collect_test.py::test_surplus_waits_and_is_used_first", "one unlucky draw orders an ocean",
  ),
  (
    "a_draw_that_ends_early_is_small", "fipo_jax/collect.py",
    'if run.cfg.rollout.unfinished != "finish":', "if False:",
    "collect_test.py::test_where_sampling_ends_early_a_draw_has_enough_for_slots_that_stay_full",
    "with unfinished=continue a second small draw runs at empty slots",
  ),
  (
    "max_age_border", "fipo_jax/collect.py",
    "if step - s <= c.max_age or", "if step - s < c.max_age or",
    "collect_test.py::test_surplus_of_just_the_largest_age_is_used", "surplus of the last step is thrown away",
  ),
  (
    "age_of_waiting_groups", "fipo_jax/collect.py",
    "      r.age = step - s\n", "      r.age = 0\n",
    "collect_test.py::test_surplus_waits_and_is_used_first", "old groups count as fresh",
  ),
  (
    "waiting_prompt_drawn_again", "fipo_jax/collect.py",
    "drawn = {g[0].prompt.id for _, g in waiting + pending}", "drawn = {g[0].prompt.id for _, g in pending}",
    "collect_test.py::test_a_waiting_prompt_is_not_drawn_again", "a prompt is twice in a batch",
  ),
  (
    "pending_lost", "fipo_jax/collect.py",
    "  run.pending += pending  # there were enough without them\n", "",
    "collect_test.py", "begun responses are thrown away where enough groups wait",
  ),
  (
    "begun_lost_when_the_engine_fails", "fipo_jax/collect.py",
    "run.begun += [(draw, g) for g in groups]\n", "run.begun = [(draw, g) for g in groups]\n",
    "collect_test.py::test_a_failed_step_goes_the_same_way_again", "what was sampled before it is lost",
  ),
  (
    "begun_lost_when_it_fails_again", "fipo_jax/collect.py",
    "return error.groups or have, error", "return error.groups, error",
    "collect_test.py::test_a_failed_step_goes_the_same_way_again", "what an earlier process sampled is lost",
  ),
  (
    "later_draws_lost_when_it_fails_again", "fipo_jax/collect.py",
    "for n, g in begun if n > draw]", "for n, g in begun if n < draw]",
    "collect_test.py::test_a_failed_step_goes_the_same_way_again", "what an earlier process sampled is lost",
  ),
  (
    "begun_groups_out_of_order", "fipo_jax/collect.py",
    "g) for g in [*pending, *fresh]]", "g) for g in [*fresh, *pending][::-1]]",
    "collect_test.py::test_a_failed_step_goes_the_same_way_again", "another batch than without the stop",
  ),
  (
    "overlong_penalty_sign", "fipo_jax/collect.py",
    "r.reward = s.score + overlong_penalty(", "r.reward = s.score - overlong_penalty(",
    "collect_test.py", "rambling is rewarded",
  ),
  (
    "demonstration_without_its_end", "fipo_jax/collect.py",
    "np.array([*run.tokenizer.encode(text), run.tokenizer.stop_ids[0]], np.int32)",
    "np.array([*run.tokenizer.encode(text)], np.int32)",
    "collect_test.py", "a supervised model never learns to stop",
  ),
  (
    "share_of_the_jobs", "fipo_jax/collect.py",
    "scored[k::n] = [Scored(*s) for s in json.loads(text)]",
    "scored[k * number // n : (k + 1) * number // n] = [Scored(*s) for s in json.loads(text)]",
    "collect_test.py::test_many_processes_score_their_share", "responses get the scores of others",
  ),
  (
    "age_of_stored_groups", "fipo_jax/rollout/stored.py",
    '"text", "advantage")  # fields', '"text", "advantage", "age")  # fields',
    "collect_test.py::test_waiting_groups_survive", "a waiting group comes back with another age",
  ),
  (
    "rescued_by_another", "fipo_jax/rollout/stored.py",
    'if record["after"] != after:', 'if not record["after"]:',
    "collect_test.py", "a run goes on with groups of another checkpoint",
  ),
  (
    "old_logp_of_another", "fipo_jax/loop.py",
    '{"old_logp": scored["logp"]}', '{"old_logp": batch.sampler_logp - 0.1}',
    "loop_test.py::test_future_kl_acts_from_the_second_mini_batch_on",
    "ratios are taken against what the sampler thought",
  ),
  (
    "minibatches_in_order", "fipo_jax/train/batching.py",
    'np.random.default_rng([seed, step]).permutation(len(groups))', 'np.arange(len(groups))',
    "batching_test.py::test_mini_batches_hold_each_group_once_in_an_order_of_the_step",
    "groups that waited are always in the first mini-batch, whose f is 1",
  ),
  (
    "same_order_every_step", "fipo_jax/train/batching.py",
    'default_rng([seed, step])', 'default_rng([seed])',
    "batching_test.py::test_mini_batches_hold_each_group_once_in_an_order_of_the_step",
    "the same places make the first mini-batch of every step",
  ),
  (
    "begins_again", "fipo_jax/assemble.py",
    'step = checkpointer.latest() or 0', 'step = 0',
    "loop_test.py::test_more_steps_go_on_from_the_last_one",
    "a second start trains from the beginning, over the old checkpoints",
  ),
)  # fmt: skip
