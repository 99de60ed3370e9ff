"""The rows of `mutants` for all that is around it: (name, file, old text, new text, tests that should notice, why)."""

ROWS = (
  # ---- assembling a run ----
  (
    "heldout_seed", "fipo_jax/assemble.py",
    "seed=e.data_seed if heldout else d.seed", "seed=d.seed",
    "assemble_test.py", "held-out problems are the training problems",
  ),
  (
    "repeated_heldout_trained_on", "fipo_jax/assemble.py",
    "records = [r for r in records if pipeline.render(r, tokenizer, **how) not in texts]", "records = list(records)",
    "assemble_test.py", "a problem that is generated twice is trained on and evaluated",
  ),
  (
    "streams_share_numbers", "fipo_jax/assemble.py",
    "jax.random.fold_in(jax.random.fold_in(jax.random.key(self.cfg.seed), step), stream)",
    "jax.random.fold_in(jax.random.key(self.cfg.seed), step + stream)",
    "assemble_test.py", "one step's rollout draws the numbers of another's control",
  ),
  (
    "same_numbers_after_a_rollback", "fipo_jax/assemble.py",
    "return jax.random.fold_in(key, self.rollbacks) if self.rollbacks and stream != STREAM_EVAL else key",
    "return key",
    "assemble_test.py", "a rolled back run walks into the same collapse",
  ),
  (
    "no_dual_clip_is_ten", "fipo_jax/assemble.py",
    "dual_clip=a.dual_clip or None,", "dual_clip=a.dual_clip or 10.0,",
    "assemble_test.py", "dual_clip=0 does not switch it off",
  ),
  (
    "never_reject_is_always", "fipo_jax/assemble.py",
    "sequence_reject_count=None if a.sequence_reject_count < 0 else",
    "sequence_reject_count=0 if a.sequence_reject_count < 0 else",
    "assemble_test.py", "-1 drops every dual-clipped response",
  ),
  (
    "total_updates", "fipo_jax/assemble.py",
    "total_updates=cfg.steps * (cfg.batch.prompts // cfg.batch.minibatch_prompts),", "total_updates=cfg.steps,",
    "assemble_test.py", "the cosine schedule ends after an eighth of the run",
  ),
  (
    "evaluated_as_trained", "fipo_jax/assemble.py",
    "c = self.cfg.eval if evaluation else self.cfg.rollout", "c = self.cfg.rollout",
    "assemble_test.py", "held-out accuracy is that of another temperature and top_p",
  ),
  (
    "other_config_resumed", "fipo_jax/assemble.py",
    "if lines := config_lib.differences(old, now):", "if lines := []:",
    "assemble_test.py", "a run goes on with another learning rate",
  ),
  # ---- the loop ----
  (
    "deviation_of_weights", "fipo_jax/loop.py",
    '- (values["weight_mean"] - 1) ** 2', '- values["weight_mean"] ** 2',
    "loop_test.py::test_the_deviation_of_weights_by_hand", "weight_std is always 0",
  ),
  (
    "stopped_without_saving", "fipo_jax/loop.py",
    "  save(run)\n  run.checkpointer.close()\n  raise processes.Stopped(",
    "  run.checkpointer.close()\n  raise processes.Stopped(",
    "loop_test.py::test_a_run_that_is_stopped_has_saved", "SIGTERM loses what was done since the last checkpoint",
  ),
  (
    "accuracy_of_an_earlier_step", "fipo_jax/loop.py",
    "evaluated = run.cfg.eval.every and (run.step % run.cfg.eval.every == 0 or run.step == run.cfg.steps)",
    'evaluated = "after" in run.host',
    "loop_test.py::test_a_run_that_is_stopped_has_saved", "steps that were not evaluated are kept as the best",
  ),
  (
    "alarms_forgotten", "fipo_jax/loop.py",
    '{**run.host, **sampled(run), "watch": run.watch.state()}', "{**run.host, **sampled(run)}",
    "loop_test.py::test_a_run_that_is_stopped_has_saved", "a resumed run has no usual values to alarm by",
  ),
  (
    "begun_groups_not_saved", "fipo_jax/loop.py",
    '"surplus": stored.encode(run.surplus), "pending": stored.encode(run.pending)}',
    '"surplus": stored.encode(run.surplus)}',
    "loop_test.py::test_a_run_that_is_stopped_has_saved", "a resumed run loses begun responses",
  ),
  # ---- config ----
  (
    "row_tokens_border", "fipo_jax/config.py",
    "if b.row_tokens < need:", "if b.row_tokens < need - 1:",
    "config_test.py", "the longest response does not fit, at hour ten",
  ),
  (
    "minibatch_remainder", "fipo_jax/config.py",
    "if b.prompts % b.minibatch_prompts:", "if b.minibatch_prompts > b.prompts:",
    "config_test.py::test_refused", "the last mini-batch is small and weighs as much",
  ),
  (
    "resumable_steps", "fipo_jax/config.py",
    '  "steps", "workdir", "compile_cache",', '  "workdir", "compile_cache",',
    "config_test.py::test_differences_name_fields_and_leave_resumable_ones_out", "a run cannot be made longer",
  ),
  (
    "resumable_too_much", "fipo_jax/config.py",
    '"reward.workers", "reward.env"', '"reward", "reward.env"',
    "config_test.py::test_what_a_run_computes_may_not_change_when_it_is_resumed",
    "a resumed run is rewarded by another rule",
  ),
  (
    "rollback_without_a_checkpoint", "fipo_jax/config.py",
    "(c.checkpoint.keep - 1) * c.checkpoint.every < a.rollback_steps",
    "c.checkpoint.keep * c.checkpoint.every < a.rollback_steps",
    "config_test.py::test_combinations_that_would_do_nothing_or_fail_late_are_refused",
    "the good checkpoint is gone when the alarm comes",
  ),
  (
    "slots_on_the_mesh", "fipo_jax/config.py",
    'ways = shape["data"] * shape["fsdp"]', 'ways = shape["fsdp"]',
    "config_test.py", "slots that do not divide are found by XLA",
  ),
  # ---- data ----
  (
    "position_not_restored", "fipo_jax/data/pipeline.py",
    'self._iterator.set_state(state["position"])', 'state["position"]',
    "pipeline_test.py::test_resume_is_exact", "a resumed run sees its first prompts again",
  ),
  (
    "other_data_accepted", "fipo_jax/data/pipeline.py",
    "if key not in state or state[key] != mine:", "if key not in state:",
    "pipeline_test.py::test_resume_refuses_other_data", "a run goes on with other data",
  ),
  (
    "answers_not_in_the_fingerprint", "fipo_jax/data/pipeline.py",
    'f"{prompt.text}\\0{prompt.answer}\\0"', 'f"{prompt.text}\\0"',
    "pipeline_test.py::test_resume_refuses_other_data", "corrected answers are not seen as other data",
  ),
  (
    "prompt_limit_border", "fipo_jax/data/pipeline.py",
    "if length <= max_prompt_tokens:", "if length < max_prompt_tokens:",
    "pipeline_test.py::test_long_prompts_are_dropped_and_counted", "prompts of the very limit are dropped",
  ),
  (
    "duplicates_kept", "fipo_jax/data/sources.py",
    "    if key in self._seen:\n", "    if key in self._rows:\n",
    "sources_test.py::test_jsonl_drops_and_counts_duplicates", "each DAPO question is there a hundred times",
  ),
  (
    "neighbouring_seeds", "fipo_jax/data/sources.py",
    "spread = int(np.random.SeedSequence(seed).generate_state(1)[0]) >> 1", "spread = seed",
    "sources_test.py::test_neighbouring_seeds_share_no_items", "held-out problems are training problems, one off",
  ),
  (
    "first_stop_id_alone", "fipo_jax/data/tokenizer.py",
    "listed = tuple(ids) if isinstance(ids, list) else (ids,)",
    "listed = tuple(ids[:1]) if isinstance(ids, list) else (ids,)",
    "tokenizer_test.py::test_stop_ids", "responses run on after the second end token",
  ),
  (
    "template_file_ignored", "fipo_jax/data/tokenizer.py",
    "    if template.is_file():\n", '    if template.is_file() and "chat_template" not in config:\n',
    "tokenizer_test.py::test_template_file_wins_and_tojson_keeps_unicode", "prompts are rendered by an older template",
  ),
  # ---- evaluation ----
  (
    "tie_to_the_last", "fipo_jax/evaluate.py",
    '"cons_first": float(value[tied[0]])', '"cons_first": float(value[tied[-1]])',
    "evaluate_test.py", "cons@n takes the answer seen last",
  ),
  (
    "value_of_the_last_sample", "fipo_jax/evaluate.py",
    "zip(reversed(votes), reversed(accs), strict=True)", "zip(votes, accs, strict=True)",
    "evaluate_test.py", "an answer's value is that of another sample",
  ),
  (
    "pass_at_all", "fipo_jax/evaluate.py",
    '"pass_any": float(np.max(accs))', '"pass_any": float(np.min(accs))',
    "evaluate_test.py::test_exact_per_prompt_equals_golden", "pass@n asks all samples to be right",
  ),
  (
    "standard_error", "fipo_jax/evaluate.py",
    "np.std(accuracy, ddof=1) / np.sqrt(len(groups))", "np.std(accuracy) / np.sqrt(len(groups))",
    "evaluate_test.py::test_evaluate_by_hand", "the error of an evaluation is too small",
  ),
  # ---- the log ----
  (
    "resumed_line_lost", "fipo_jax/metrics.py",
    "if step is not None and step <= resume_step:", "if step is not None and step < resume_step:",
    "metrics_test.py::test_resume_drops_later_steps_and_goes_on", "each resume loses a line",
  ),
  (
    "torn_line_kept", "fipo_jax/metrics.py",
    "      keep = start\n", "      keep = keep if step is None else start\n",
    "metrics_test.py::test_torn_last_line_is_dropped", "half a line stays in the middle of the log",
  ),
  (
    "samples_without_a_bound", "fipo_jax/metrics.py",
    "old.seek(size // 2)", "old.seek(0)",
    "metrics_test.py::test_a_bounded_file_drops_its_oldest_lines_and_says_so_once", "samples.jsonl fills the disk",
  ),
  (
    "infinity_in_json", "fipo_jax/metrics.py",
    "isinstance(value, float) and not math.isfinite(value)", "isinstance(value, float) and math.isnan(value)",
    "metrics_test.py::test_numbers_that_are_not_finite_are_null_and_named", "an infinite metric ends the run",
  ),
  (
    "half_a_line_on_a_full_disk", "fipo_jax/metrics.py",
    "        self._file.truncate(start)\n", "        self._file.flush()\n",
    "metrics_test.py::test_full_disk_is_one_line_and_leaves_whole_lines", "a full disk breaks the log",
  ),
  (
    "float32_division", "fipo_jax/metrics.py",
    "total, count = np.asarray(total, np.float64), np.asarray(count, np.float64)",
    "total, count = np.asarray(total, np.float32), np.asarray(count, np.float32)",
    "metrics_test.py::test_finish_divides_exactly_above_two_to_the_24", "counts above 16 million are rounded",
  ),
  (
    "other_processes_write", "fipo_jax/metrics.py",
    "    if jax.process_index() != 0:\n      return\n    check_writable", "    check_writable",
    "metrics_test.py::test_only_process_zero_writes_or_prints", "every host writes the log",
  ),
  # ---- alarms and rollbacks ----
  (
    "alarm_a_step_late", "fipo_jax/alarms.py",
    "if contrary >= (self._limits.clear_steps if on else times):",
    "if contrary > (self._limits.clear_steps if on else times):",
    "alarms_test.py::test_alarm_fires_once_at_its_step", "alarms come a step late",
  ),
  (
    "one_gap_for_all_dtypes", "fipo_jax/alarms.py",
    'f"sampler_gap_{self._dtype}"', '"sampler_gap_bfloat16"',
    "alarms_test.py::test_the_gap_to_the_sampler_is_judged_by_the_compute_dtype",
    "a server in bfloat16 beside a float32 trainer goes unnoticed",
  ),
  (
    "alarm_cleared_at_once", "fipo_jax/alarms.py",
    "(self._limits.clear_steps if on else times)", "(1 if on else times)",
    "alarms_test.py::test_an_episode_is_one_alarm", "a flickering alarm is many",
  ),
  (
    "collapse_becomes_usual", "fipo_jax/alarms.py",
    "if len(shown) < limits.collapse_signs:\n      for", "if True:\n      for",
    "alarms_test.py::test_a_long_collapse_does_not_become_usual", "a slow collapse is taken for health",
  ),
  (
    "one_bad_batch_is_a_collapse", "fipo_jax/alarms.py",
    "SIGN_SHOWN, SIGN_STEPS = 2, 3", "SIGN_SHOWN, SIGN_STEPS = 1, 3",
    "alarms_test.py::test_less_than_a_collapse_is_quiet", "one bad batch takes the run back",
  ),
  (
    "entropy_floor", "fipo_jax/alarms.py",
    "low = max(self._limits.entropy_min, self._limits.entropy_fraction * early)",
    "low = self._limits.entropy_fraction * early",
    "alarms_test.py::test_alarm_fires_once_at_its_step", "a policy that begins deterministic is not noticed",
  ),
  (
    "accuracy_stuck_high", "fipo_jax/alarms.py",
    "accuracy >= 1 - margin", "accuracy > 1",
    "alarms_test.py::test_alarm_fires_once_at_its_step", "prompts that are too easy are not noticed",
  ),
  (
    "alarm_of_supervised_training", "fipo_jax/alarms.py",
    'return _number(values, "entropy") if _number(values, "accuracy") is not None else None',
    'return _number(values, "entropy")',
    "alarms_test.py::test_supervised_training_may_lose_its_entropy", "learning a text is an alarm",
  ),
  (
    "rollback_to_a_young_checkpoint", "fipo_jax/rollback.py",
    "if s <= alarm_step - rollback_steps]", "if s <= alarm_step]",
    "rollback_test.py::test_target", "the run goes back into the collapse",
  ),
  (
    "rollback_deletes_its_target", "fipo_jax/rollback.py",
    "    if step > to:\n", "    if step >= to:\n",
    "rollback_test.py::test_two_rollbacks_in_a_row", "the good checkpoint is deleted",
  ),
  (
    "rollback_to_the_start", "fipo_jax/rollback.py",
    "return 0 if not steps or min(steps) <= every else min(steps)", "return 0",
    "rollback_test.py::test_target", "a long run starts over",
  ),
  (
    "rollback_record_first", "fipo_jax/rollback.py",
    "  for step in reversed(steps):\n", "  for step in steps:\n",
    "rollback_test.py::test_a_kill_before_the_record_spends_no_rollback", "a kill leaves the collapsed checkpoint",
  ),
  # ---- processes and the end of a run ----
  (
    "exit_code_stopped", "fipo_jax/processes.py",
    "EXIT_STOPPED = 75", "EXIT_STOPPED = 1",
    "run_test.py::test_a_run_that_was_told_to_stop_has_a_code_of_its_own",
    "a scheduler takes a preempted run for a failed one",
  ),
  (
    "sigterm_ignored", "fipo_jax/processes.py",
    "    _told_to_stop.set()\n", "    pass\n",
    "processes_test.py::test_sigterm_only_asks_to_stop", "a preempted run is killed and loses its iteration",
  ),
  (
    "exchange_order", "fipo_jax/processes.py",
    "return [found[k][1:] for k in range(self.count)]", "return [found[k][1:] for k in reversed(range(self.count))]",
    "processes_test.py::test_processes_exchange_values", "processes get each other's scores",
  ),
  (
    "disagreement_of_two", "fipo_jax/processes.py",
    "if len(holders) > 1:", "if len(holders) > 2:",
    "processes_test.py::test_processes_exchange_values", "two hosts with two configs train on",
  ),
  (
    "failure_kept_to_itself", "fipo_jax/processes.py",
    '_job.leave(f"{_names([_job.me])} ended: {message}")', "_job.over.set()",
    "processes_test.py::test_who_fails_tells_the_others_why", "the others wait for a process that has failed",
  ),
  # ---- the page ----
  (
    "token_not_escaped", "fipo_jax/report.py",
    "{html.escape(token)}</span>", "{token}</span>",
    "report_test.py::test_tokens_carry_their_numbers_and_colours", "a sampled tag breaks the page",
  ),
  (
    "prompt_not_escaped", "fipo_jax/report.py",
    'prompt = html.escape(str(sample.get("prompt", "")))', 'prompt = str(sample.get("prompt", ""))',
    "report_test.py::test_report_of_a_whole_run", "a prompt's script runs in the page",
  ),
  (
    "last_sample_not_shown", "fipo_jax/report.py",
    "samples[round(i * (len(samples) - 1) / (limit - 1))]", "samples[round(i * (len(samples) - 1) / limit)]",
    "report_test.py::test_many_samples_are_thinned_evenly", "the newest samples are not shown",
  ),
)  # fmt: skip
