"""Faults in experiments/gpu: see mutants.py."""

ROWS = (
  (
    "gpu_pieces_are_not_checked", "experiments/gpu/machine.py",
    '    if hash_of(path) != piece["sha256"]:\n', "    if False:\n",
    "gpu_test.py::test_a_torn_piece_and_another_package_are_refused", "a torn transfer is found at the end, or never",
  ),
  (
    "gpu_the_whole_is_not_checked", "experiments/gpu/machine.py",
    '  if hash_of(whole) != manifest["sha256"]:\n', "  if False:\n",
    "gpu_test.py::test_a_torn_piece_and_another_package_are_refused", "a damaged disk becomes a damaged model",
  ),
  (
    "gpu_pieces_of_two_packages", "experiments/gpu/machine.py",
    "  if kept.exists() and kept.read_text() != text:\n", "  if False:\n",
    "gpu_test.py::test_a_torn_piece_and_another_package_are_refused", "two models become one file",
  ),
  (
    "gpu_evaluates_again", "experiments/gpu/machine.py", "  if not before.exists():\n", "  if True:\n",
    "gpu_test.py::test_a_run_goes_on_where_the_minutes_ended", "the minutes go into what is known",
  ),
  (
    "gpu_training_takes_all_minutes", "experiments/gpu/machine.py",
    "stages.left() - float(seconds.read_text()) - given.grace_s", "stages.left() - given.grace_s",
    "gpu_test.py::test_a_run_goes_on_where_the_minutes_ended", "nothing is left to evaluate in",
  ),
  (
    "gpu_kills_at_the_limit", "experiments/gpu/machine.py", "child.send_signal(signal.SIGTERM)", "child.kill()",
    "gpu_test.py::test_a_stage_is_told_to_stop_at_its_limit_and_killed_after_the_grace", "what was learnt is not saved",
  ),
  (
    "gpu_failed_stage_brings_nothing", "experiments/gpu/machine.py",
    "        bring(given.store, given.out)\n", "        pass\n",
    "gpu_test.py::test_what_failed_ends_it_and_what_there_is_is_brought", "nobody learns why",
  ),
  (
    "gpu_int8_of_twice_the_range", "experiments/gpu/pack.py", "axis=-1) / 127)", "axis=-1) / 254)",
    "gpu_test.py::test_pieces_come_one_by_one_and_are_the_model_again", "large weights are cut",
  ),
  (
    "gpu_wheels_of_what_is_there", "experiments/gpu/pack.py",
    "    if name in there or name in found:\n", "    if name in found:\n",
    "gpu_test.py::test_only_what_the_machine_lacks_is_needed", "gigabytes of what the machine has go over",
  ),
  (
    "gpu_measures_again", "experiments/gpu/measure.py",
    '    if stage.name in found and not (again and found[stage.name]["exit_code"]):\n', "    if False:\n",
    "gpu_measure_test.py::test_what_fails_or_lacks_something_ends_nothing_and_nothing_is_done_twice",
    "the minutes go into what is known",
  ),
  (
    "gpu_a_failure_ends_all", "experiments/gpu/measure.py",
    "    result = (not code and result_of(said)) or {}\n",
    "    if code:\n      return left\n    result = result_of(said)\n",
    "gpu_measure_test.py::test_what_fails_or_lacks_something_ends_nothing_and_nothing_is_done_twice",
    "what does not fit hides what would",
  ),
  (
    "gpu_a_cut_off_stage_counts_as_failed", "experiments/gpu/measure.py",
    "    if code and runner.left() <= 0:\n", "    if False:\n",
    "gpu_measure_test.py::test_what_the_minutes_cut_off_is_left_for_the_next_command", "it is never measured",
  ),
  (
    "gpu_stages_begin_that_cannot_end", "experiments/gpu/measure.py",
    "    if runner.left() < stage.limit_s / 2:\n", "    if False:\n",
    "gpu_measure_test.py::test_what_the_minutes_cut_off_is_left_for_the_next_command", "minutes go into compiling",
  ),
  (
    "gpu_stages_without_their_flags", "experiments/gpu/measure.py", ", **stage.env}", "}",
    "gpu_measure_test.py::test_what_fails_or_lacks_something_ends_nothing_and_nothing_is_done_twice",
    "all settings of the compiler are the same",
  ),
  (
    "gpu_bound_reads_the_cache_once", "fipo_jax/benchmarks/sampler.py",
    "  context = new * prompt + new * (new + 1) / 2\n", "  context = prompt + new\n",
    "gpu_measure_test.py::test_memory_bounds_a_sampler_by_weights_and_cache_of_every_token_step",
    "the limit is further away than it is",
  ),
  (
    "gpu_dots_forgets_attention", "fipo_jax/models/transformer.py",
    '"dots": _with_context(jax.checkpoint_policies.dots_with_no_batch_dims_saveable)',
    '"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable',
    "gpu_measure_test.py::test_dots_keeps_what_attention_made_too", "attention of a long row runs twice",
  ),
  (
    "gpu_phases_of_the_first_step", "fipo_jax/pods/phases.py",
    'records_of(folder, "run")[-1]', 'records_of(folder, "run")[0]',
    "gpu_measure_test.py::test_a_step_is_foretold_by_phase", "the step that compiles is compared",
  ),
  (
    "gpu_phases_swap_score_and_update", "fipo_jax/pods/phases.py",
    '"old_logp": ("score",), "update": ("update",)', '"old_logp": ("update",), "update": ("score",)',
    "gpu_measure_test.py::test_a_step_is_foretold_by_phase", "scoring looks three times as dear",
  ),
  (
    "gpu_wheels_need_a_model", "experiments/gpu/machine.py",
    '  if (store / "weights.json").exists():  # else the package is of wheels alone\n', "  if True:\n",
    "gpu_test.py::test_a_package_may_be_what_the_machine_lacks_alone", "minutes go into weights nobody needs",
  ),
  (
    "gpu_dots_keeps_nothing_in_a_plan", "fipo_jax/pods/programs.py",
    'if c.remat == "dots" else 0', "if False else 0",
    "gpu_measure_test.py::test_what_dots_keeps_is_in_the_memory_that_a_plan_foretells", "it is said to fit",
  ),
)
