"""Faults in what says the bill: see mutants.py."""

ROWS = (
  (
    "plan_admits_without_keeping_pages", "fipo_jax/pods/simulated.py",
    "      fits = np.cumsum(takes) + keep * np.arange(most) <= spare\n",
    "      fits = np.cumsum(takes) <= spare\n",
    "simulated_test.py::test_logs_are_those_of_the_real_device", "samples start that the engine would let wait",
  ),
  (
    "plan_forgets_reserved_pages", "fipo_jax/pods/simulated.py",
    "    return self.pages_DS.sum(1) + [sum(r.values()) for r in self.reserved]\n",
    "    return self.pages_DS.sum(1)\n",
    "simulated_test.py::test_logs_are_those_of_the_real_device", "a cache that is too small looks large enough",
  ),
  (
    "plan_is_never_starved", "fipo_jax/pods/simulated.py",
    "starved = empty and more and int((S - active_D).sum()) * 8 >= self.D * S",
    "starved = empty and more and int((S - active_D).sum()) >= self.D * S",
    "simulated_test.py::test_logs_are_those_of_the_real_device", "slots idle longer than they would",
  ),
  (
    "plan_decides_without_pages", "fipo_jax/pods/simulated.py",
    "      while size and not np.all(takes(size) <= free_D):\n        size //= 2\n", "",
    "simulated_test.py::test_decisions_come_once_in_a_block_that_the_pages_can_hold", "a full cache costs nothing",
  ),
  (
    "plan_goes_by_the_first_shard", "fipo_jax/pods/costs.py",
    "    context = float(np.max(context_D + growth_D * (steps - 1) / 2))\n",
    "    context = float((context_D + growth_D * (steps - 1) / 2)[0])\n",
    "costs_test.py::test_steps_are_those_of_the_fullest_shard_in_their_middle_and_shards_decide_together",
    "an uneven pod looks even",
  ),
  (
    "plan_hides_sums_over_the_network", "fipo_jax/pods/costs.py",
    'return inside + self.seconds.get("network", 0.0) / by.links', "return inside",
    "costs_test.py::test_a_micro_batch_takes_what_takes_longest_at_its_own_share", "slices are joined for nothing",
  ),
  (
    "plan_takes_a_report_of_other_settings", "fipo_jax/pods/costs.py",
    '"settings": other(report.get("settings")), "chip"', '"settings": other(settings(plan.cfg)), "chip"',
    "costs_test.py::test_the_report_that_fits_is_found_and_no_other", "remat costs nothing, as another report is read",
  ),
  (
    "plan_believes_the_old_engine", "fipo_jax/pods/public.py",
    "found = [m for m in table if m.part == part and not m.superseded]", "found = [m for m in table if m.part == part]",
    "costs_test.py::test_efficiencies_are_the_least_of_a_chip_and_say_whose", "the default is of an engine of the past",
  ),
  (
    "plan_counts_slots_by_their_number", "fipo_jax/pods/forecast.py",
    "float(np.mean(n * n) / (2 * np.mean(n)))", "float(np.mean(n) / 2)",
    "plan_test.py::test_long_responses_are_in_their_slots_for_longer", "the cache is read for less than it holds",
  ),
  (
    "plan_scores_one_micro_batch", "fipo_jax/pods/iteration.py",
    'seconds["score"] = micro * trained["score"]', 'seconds["score"] = trained["score"]',
    "plan_test.py::test_unfinished_responses_go_on_and_the_tail_is_not_waited_for", "scoring looks free",
  ),
  (
    "plan_counts_offloaded_moments", "fipo_jax/pods/programs.py",
    "if not (cfg.optimizer.offload and state_lib.is_offloaded(path, x.sharding))]", "]",
    "costs_test.py::test_what_waits_on_the_host_is_not_counted_on_a_described_chip", "fewer slots than there are",
  ),
  (
    "plan_searches_what_does_not_fit", "fipo_jax/pods/forecast.py",
    "  if tokens < context:\n    return None\n", "",
    "plan_test.py::test_a_search_tries_trainer_and_sampler_and_keeps_what_fits", "flags that end in a crash",
  ),
  (
    "plan_decides_by_four_gathers", "fipo_jax/pods/public.py", "decisions=1.0), said", "decisions=4.0), said",
    "costs_test.py::test_efficiencies_are_the_least_of_a_chip_and_say_whose", "decisions cost four times too much",
  ),
  (
    "plan_decides_after_every_token", "fipo_jax/pods/iteration.py",
    "SamplingCosts(costs_lib.sampled(plan), by, e.shards, e.decide)",
    "SamplingCosts(costs_lib.sampled(plan), by, e.shards)",
    "plan_test.py::test_decisions_are_as_rare_as_the_engine_makes_them", "the forecast is of an older decode loop",
  ),
  (
    "plan_takes_any_report", "fipo_jax/pods/costs.py",
    "for report in sorted(reports, key=differs):", "for report in reports:",
    "costs_test.py::test_the_report_that_fits_is_found_and_no_other", "figures are of another number of chips",
  ),
  (
    "plan_adds_samplers_and_trainer", "fipo_jax/pods/answers.py",
    "split = np.maximum(of(n, 0), of(N - n, 1))", "split = of(n, 0) + of(N - n, 1)",
    "plan_test.py::test_a_split_takes_as_long_as_the_longer_of_its_parts", "a split never gains",
  ),
  (
    "plan_trusts_sizes", "fipo_jax/pods/forecast.py",
    'plan.chip.hbm_gib - (0 if m["train_from"] == "the compiler" else RESERVE)', "plan.chip.hbm_gib",
    "plan_test.py::test_a_search_leaves_room_where_sizes_alone_speak", "a search proposes what is too large by a hair",
  ),
  (
    "plan_hides_what_does_not_fit", "fipo_jax/pods/answers.py",
    "{'' if f['fits'] else ', DOES NOT FIT'}", "",
    "plan_test.py::test_forecasts_are_shown_together", "a table recommends what cannot run",
  ),
  (
    "plan_lengths_are_straight", "fipo_jax/pods/forecast.py",
    "(4 * at[last] - 3) ** max(bend, 1 / STEEPEST)", "(4 * at[last] - 3)",
    "plan_test.py::test_the_longest_quarter_of_lengths_has_the_mean_that_was_measured",
    "a run's longest responses are taken for more than they were",
  ),
  (
    "plan_fits_what_it_foretells", "fipo_jax/pods/check.py",
    "fit(runs[0], phase, kinds, folders[0])", "fit(runs[-1], phase, kinds, folders[-1])",
    "check_test.py::test_other_runs_are_foretold_by_the_first", "a forecast has seen what it foretells",
  ),
  (
    "plan_counts_own_pages_alone", "fipo_jax/pods/check.py",
    "steps * (shape.own + shape.shared)", "steps * shape.own",
    "check_test.py::test_what_is_done_is_counted", "prompts that are shared are read for nothing",
  ),
  (
    "plan_compares_steps_that_compiled", "fipo_jax/pods/check.py",
    "compares = len(steps) >= UNFITTED and not compiled", "compares = len(steps) >= UNFITTED",
    "check_test.py::test_other_runs_are_foretold_by_the_first", "a compile is taken for the work of a step",
  ),
  (
    "xla_rows_are_cut_unevenly", "fipo_jax/config.py",
    'if c.batch.row_tokens % (ways := mesh_shape["context"]):',
    'if c.batch.row_tokens < (ways := mesh_shape["context"]):',
    "compile_test.py::test_what_does_not_fit_the_chips_is_one_line", "JAX's own words for a mistake in a field",
  ),
  (
    "xla_ppo_has_no_value_head", "fipo_jax/pods/programs.py", ' | {"value_head": cfg.algorithm.name == "ppo"}', "",
    "compile_test.py::test_a_value_head_is_compiled_with_its_objective", "a report of ppo ends in a TypeError",
  ),
  (
    "xla_counts_what_is_no_estimate", "fipo_jax/pods/hlo.py", " and float(said[1]) < _NO_ESTIMATE:", ":",
    "compile_test.py::test_a_peeled_loop_turns_from_where_its_counter_begins", "v7x seems to take centuries",
  ),
  (
    "xla_wide_sums_cost_nothing", "fipo_jax/pods/costs.py",
    '      seconds["links"] *= 1 + (here / there - 1) * sums / facts["wire_bytes"]\n', "",
    "costs_test.py::test_sums_of_another_width_change_what_is_sent_and_nothing_else", "links look faster than they are",
  ),
  (
    "xla_a_report_of_other_sums_goes_first", "fipo_jax/pods/costs.py",
    'bool(r.get("settings")) and _sum_bytes(r["settings"]) != width, r["mesh"]', 'r["mesh"]',
    "costs_test.py::test_sums_of_another_width_change_what_is_sent_and_nothing_else", "what was compiled is not used",
  ),
  (
    "compile_gives_slots_all_pages", "fipo_jax/pods/programs.py",
    "  elif not slots or bounded and not engine.cache_tokens:\n", "  elif not slots:\n",
    "compile_test.py::test_slots_that_are_given_have_the_pages_that_the_memory_holds",
    "a decode program that a run would make smaller does not fit",
  ),
  (
    "compile_takes_rows_that_do_not_divide", "fipo_jax/pods/compile_report.py",
    "  config_lib.check_mesh(cfg, plan.mesh.shape, plan.engine.mesh.shape)\n", "",
    "compile_test.py::test_a_report_is_of_what_the_run_would_do", "JAX's own words for a mistake in a field",
  ),
  (
    "compile_counts_a_collective_by_its_stages", "fipo_jax/pods/hlo.py",
    '      if kind in _KINDS and stage in ("", "start"):\n', "      if kind in _KINDS:\n",
    "compile_test.py::test_a_collective_beside_the_turns_of_a_loop_is_one",
    "v5e seems to send nine times what it does",
  ),
  (
    "compile_calls_such_a_collective_waiting", "fipo_jax/pods/hlo.py", '    asynchronous |= stage == "start"\n', "",
    "compile_test.py::test_a_collective_beside_the_turns_of_a_loop_is_one", "v5e seems to wait for what it does not",
  ),
  (
    "compile_ignores_slots", "fipo_jax/pods/compile_report.py",
    '  slots = 0 if cfg.rollout.slots == "auto" else cfg.rollout.slots\n', "",
    "compile_test.py::test_a_report_is_of_what_the_run_would_do", "a report of other slots than the run has",
  ),
  (
    "xla_a_ring_rounds_once", "fipo_jax/benchmarks/gradient_sums.py",
    "functools.reduce(lambda a, b: narrow(_sum([a, b])), sent)", "narrow(_sum(sent))",
    "benchmark_test.py::test_sums_round_where_their_names_say", "bfloat16 sums look harmless",
  ),
  (
    "xla_errors_of_another_kind", "fipo_jax/benchmarks/gradient_sums.py",
    "for i in of))\n  less", "for i in range(len(arrays))))\n  less",
    "benchmark_test.py::test_errors_are_by_kind_of_parameter", "all parameters look alike",
  ),
  (
    "gap_adds_sizes_of_a_response", "fipo_jax/benchmarks/gap.py", "np.mean([abs(sum(a)) for a in apart])",
    "np.mean([sum(abs(a)) for a in apart])",
    "benchmark_test.py::test_a_gap_is_in_nats_of_the_trainer_over_the_sampler", "ratios of responses look worse",
  ),
  (
    "gap_weighs_the_other_way", "fipo_jax/benchmarks/gap.py",
    "sampler_weight(np.concatenate(scored), np.concatenate(sampled), True",
    "sampler_weight(np.concatenate(sampled), np.concatenate(scored), True",
    "benchmark_test.py::test_a_gap_is_in_nats_of_the_trainer_over_the_sampler", "a correction that is none",
  ),
  (
    "pod_starts_a_mistake_again", "fipo_jax/pods/jobs/jobset.py",
    "return [codes(_fatal(on_error)), codes([STOPPED]), disrupted]", "return [codes([STOPPED]), disrupted]",
    "pod_test.py::test_the_page_says_what_each_exit_code_does", "a misspelt field is tried fifty times on a pod",
  ),
  (
    "pod_counts_what_was_saved", "fipo_jax/pods/jobs/jobset.py",
    '"action": "RestartJobSetAndIgnoreMaxRestarts"', '"action": "RestartJobSet"',
    "pod_test.py::test_the_page_says_what_each_exit_code_does jobset_controller_test.py::test_three_faults",
    "a job that is often preempted ends for good",
  ),
  (
    "pod_forgets_disruptions", "fipo_jax/pods/jobs/jobset.py",
    "codes([STOPPED]), disrupted]", "codes([STOPPED])]",
    "pod_test.py::test_a_pod_that_is_taken_away_does_not_count", "a drained node counts as a failure of the run",
  ),
  (
    "pod_restarts_containers_by_itself", "fipo_jax/pods/jobs/jobset.py",
    '"restartPolicy": "Never"', '"restartPolicy": "OnFailure"',
    "pod_test.py::test_a_manifest_is_valid_and_asks_for_every_chip", "a host comes back alone",
  ),
  (
    "pod_begins_before_the_last_is_gone", "fipo_jax/pods/jobs/jobset.py",
    '"restartStrategy": "BlockingRecreate"', '"restartStrategy": "Recreate"',
    "pod_test.py::test_files_are_as_they_were", "two attempts work in one folder",
  ),
  (
    "pod_shell_stays_before_python", "fipo_jax/pods/jobs/jobset.py",
    'f"exec {shlex.join(job.command)}"', 'f"{shlex.join(job.command)}; true"',
    "pod_test.py::test_code_in_a_bucket_is_fetched_and_becomes_the_program", "no signal and no exit code arrives",
  ),
  (
    "pod_asks_for_half_of_the_hosts", "fipo_jax/pods/jobs/job.py",
    "math.prod(shape) // CHIPS[kind].vm_chips", "math.prod(shape) // (2 * CHIPS[kind].vm_chips)",
    "pod_test.py::test_a_manifest_is_valid_and_asks_for_every_chip", "half of the pod waits for the other",
  ),
  (
    "pod_takes_a_workdir_on_its_disk", "fipo_jax/pods/jobs/job.py",
    'for field in ("workdir", "checkpoint.folder", "compile_cache"):', 'for field in ("compile_cache",):',
    "pod_test.py::test_what_cannot_work_is_refused", "a restart begins from nothing",
  ),
  (
    "pod_saves_rarely_on_spot", "fipo_jax/pods/jobs/job.py",
    "if options.spot and cfg.checkpoint.every > 1", "if options.spot and cfg.checkpoint.every > 10",
    "pod_test.py::test_what_cannot_work_is_refused", "a preemption costs hours",
  ),
  (
    "pod_grace_is_the_shortest", "fipo_jax/pods/jobs/job.py", "math.ceil(2 * max(needs))", "math.ceil(2 * min(needs))",
    "pod_test.py::test_grace_is_that_of_a_run", "a run is killed before it has saved",
  ),
  (
    "pod_ignores_what_is_not_read", "fipo_jax/pods/jobs/job.py",
    "and field.name not in target.reads:", "and field.name not in Options.__dataclass_fields__:",
    "pod_test.py::test_what_cannot_work_is_refused", "a flag that is given does nothing",
  ),
  (
    "pod_compiles_at_every_start", "fipo_jax/pods/jobs/job.py",
    'command += (f"--config.compile_cache={_beside(cfg.workdir)}",)', "pass",
    "pod_test.py::test_a_folder_on_a_claim_outlives_pods_and_what_only_the_image_has_is_said",
    "the cache of compiled programs goes with the pod",
  ),
  (
    "pod_slurm_has_one_gpu_of_a_node", "fipo_jax/pods/jobs/scripts.py",
    'export JAX_LOCAL_DEVICE_IDS={",".join(map(str, range(o.gpus)))}', "export JAX_LOCAL_DEVICE_IDS=0",
    "pod_test.py::test_every_gpu_of_a_node_is_named_to_jax", "seven of eight GPUs idle",
  ),
  (
    "pod_slurm_ends_after_a_stop", "fipo_jax/pods/jobs/scripts.py",
    'scontrol requeue "$SLURM_JOB_ID"\n', "",
    "pod_test.py::test_the_page_says_what_each_exit_code_does", "a time limit ends the run for good",
  ),
  (
    "pod_vm_starts_what_was_stopped", "fipo_jax/pods/jobs/scripts.py",
    'while [ -z "$ending" ] && [ ! -e "$stop" ]; do', 'while [ -z "$ending" ]; do',
    "pod_test.py::test_scripts_end_when_they_are_told_to_and_give_up_after_enough_failures",
    "a run cannot be stopped but by deleting its slice",
  ),
  (
    "pod_vm_never_gives_up", "fipo_jax/pods/jobs/scripts.py",
    "if [ $failures -gt {o.restarts} ]; then", "if [ $failures -gt 1000 ]; then",
    "pod_test.py::test_the_page_says_what_each_exit_code_does", "an error on every start is paid for all night",
  ),
  (
    "pod_of_another_generation", "fipo_jax/pods/chips.py", 'gke="tpu-v6e-slice"', 'gke="tpu-v5p-slice"',
    "pod_test.py::test_files_are_as_they_were", "no node ever fits",
  ),
  (
    "pod_blames_the_disk_for_a_lost_process", "fipo_jax/train/checkpoint.py",
    "        raise\n      _await_reason(error)\n", "        raise\n",
    "checkpoint_test.py::test_a_lost_process_is_not_blamed_on_a_disk_or_a_checkpoint",
    "the others end with 1 where one was lost, or with 2, after which nobody starts them again",
  ),
  (
    "pod_hangs_when_its_log_is_full", "fipo_jax/processes.py",
    "with contextlib.suppress(OSError, ValueError):\n    print(text", "with contextlib.suppress():\n    print(text",
    "run_test.py::test_an_end_does_not_depend_on_the_disk_of_its_log",
    "no process ends, none is started again, and the pod is paid for",
  ),
  # ---- what is evaluated, the recipe ----
  (
    "plan_takes_a_number_for_what_a_file_has", "fipo_jax/pods/iteration.py",
    "    problems = known or cfg.eval.prompts\n", "    problems = cfg.eval.prompts\n",
    "plan_test.py::test_what_is_evaluated_is_counted_where_it_is_here", "MATH-500 costs as much as AIME",
  ),
  (
    "plan_evaluates_with_the_limit_of_training", "fipo_jax/pods/iteration.py",
    "max_tokens=s.cfg.rollout.max_response_tokens)", "max_tokens=run.cfg.rollout.max_response_tokens)",
    "plan_test.py::test_what_is_evaluated_is_counted_where_it_is_here", "a set's own limit is not seen",
  ),
  (
    "pod_sets_are_checked_on_the_pod", "fipo_jax/pods/programs.py",
    "  if cfg.eval.every:\n    sets_lib.check_limits(cfg)", "  if False:\n    sets_lib.check_limits(cfg)",
    "pod_test.py::test_what_cannot_work_is_refused", "a wrong name costs a start of all hosts",
  ),
  (
    "pod_files_of_sets_are_not_said", "fipo_jax/pods/jobs/job.py",
    "for s in sets_lib.of(cfg) if s.name}", "for s in ()}",
    "pod_test.py::test_a_folder_on_a_claim_outlives_pods_and_what_only_the_image_has_is_said",
    "a file that no pod has is met there",
  ),
  (
    "recipe_trains_with_another_rate", "experiments/fipo_qwen2_5_32b.py",
    "c.optimizer.learning_rate = 1e-6", "c.optimizer.learning_rate = 2e-6",
    "recipe_test.py::test_the_page_says_what_is_published_and_what_we_set", "the published run is another",
  ),
)
