"""Faults in evaluation and export: see mutants.py."""

ROWS = (
  # ---- statistics ----
  (
    "eval_pass_at_k_with_replacement", "fipo_jax/evaluation/statistics.py",
    "  return 1.0 - math.comb(n - right, k) / math.comb(n, k)\n", "  return 1.0 - (1 - right / n) ** k\n",
    "statistics_test.py::test_pass_at_k_is_the_share_of_subsets_with_a_right_one", "pass@k is biased low",
  ),
  (
    "eval_ties_count_whole", "fipo_jax/evaluation/statistics.py",
    "(worth[:, 1:] / np.arange(1, tied_most + 1)).sum(axis=1)", "worth[:, 1:].sum(axis=1)",
    "statistics_test.py::test_cons_at_k_is_the_mean_over_subsets_with_ties_shared", "a tied answer has the whole vote",
  ),
  (
    "eval_an_answer_is_worth_its_best_sample", "fipo_jax/evaluation/statistics.py",
    "answers = [(len(v), float(np.mean(v))) for v in own.values()]",
    "answers = [(len(v), float(np.max(v))) for v in own.values()]",
    "statistics_test.py::test_cons_at_k_is_the_mean_over_subsets_with_ties_shared", "cons@k above what voting gives",
  ),
  (
    "eval_problems_without_a_value_count_as_zero", "fipo_jax/evaluation/statistics.py",
    "(times_NP @ value_PM) / (times_NP @ known_PM)", "(times_NP @ value_PM) / problems",
    "statistics_test.py::test_problems_that_a_metric_does_not_cover_are_left_out", "an interval beside its value",
  ),
  (
    "eval_intervals_of_90_percent", "fipo_jax/evaluation/statistics.py", "LEVEL = 0.95", "LEVEL = 0.9",
    "statistics_test.py::test_the_interval_over_problems_has_the_width_of_its_standard_error", "narrower than is said",
  ),
  (
    "eval_samples_are_not_drawn_anew", "fipo_jax/evaluation/statistics.py",
    "means[i] = value_Pn[row_P[:, None], rng.integers(n, size=(problems, n))].mean()",
    "means[i] = value_Pn[row_P].mean()",
    "statistics_test.py::test_drawing_samples_anew_widens_the_interval_by_their_own_spread",
    "what sampling itself may change is left out",
  ),
  (
    "eval_permutation_is_one_sided", "fipo_jax/evaluation/statistics.py",
    "    return float((np.abs(sums) >= observed).mean())\n", "    return float((sums >= observed).mean())\n",
    "statistics_test.py::test_permutation_by_hand", "p half of what it is",
  ),
  (
    "eval_the_observed_order_is_not_counted", "fipo_jax/evaluation/statistics.py",
    "  return float((1 + (np.abs(sums) >= observed).sum()) / (1 + DRAWS))\n",
    "  return float((np.abs(sums) >= observed).sum() / DRAWS)\n",
    "statistics_test.py::test_many_differences_are_tried_by_chance", "p = 0",
  ),
  (
    "eval_sign_test_is_one_sided", "fipo_jax/evaluation/statistics.py",
    "  return up, down, min(1.0, 2 * tail)\n", "  return up, down, tail\n",
    "statistics_test.py::test_signs_by_hand", "p half of what it is",
  ),
  # ---- sets ----
  (
    "eval_sets_share_random_numbers", "fipo_jax/evaluation/sets.py",
    "return jax.random.fold_in(key, zlib.crc32(self.name.encode())) if self.name else key", "return key",
    "sets_test.py::test_a_set_is_the_config_with_what_it_changes", "sets draw alike",
  ),
  (
    "eval_main_is_the_first_by_name", "fipo_jax/evaluation/sets.py",
    "sorted(names, key=lambda name: name != main)", "names",
    "sets_test.py::test_the_main_set_comes_first_and_the_others_by_name", "alarms read another set than was named",
  ),
  (
    "eval_a_sets_file_is_read_in_part", "fipo_jax/evaluation/sets.py",
    'one.eval.prompts = 0 if fields.get("path") or fields.get("source") == "tfds" else cfg.eval.prompts\n', "pass\n",
    "sets_test.py::test_a_set_is_the_config_with_what_it_changes", "30 of 500 problems are evaluated",
  ),
  (
    "eval_a_set_reads_the_training_files_columns", "fipo_jax/evaluation/sets.py",
    "        one.data[field] = default.data[field]\n", "        pass\n",
    "sets_test.py::test_a_set_is_the_config_with_what_it_changes", "a published set is refused for its columns",
  ),
  (
    "eval_the_reward_file_judges_all_sets", "fipo_jax/evaluation/sets.py",
    'one.reward.file = one.reward.file if value == "file" else ""\n', "pass\n",
    "sets_test.py::test_who_judges_is_the_sets_own_choice", "a set's verifier is not used",
  ),
  (
    "eval_held_out_by_the_last_set", "fipo_jax/prompts.py",
    "n = max((own.eval.prompts for own in wanted.values()), default=0)",
    "n = min((own.eval.prompts for own in wanted.values()), default=0)",
    "sets_test.py::test_sets_of_files_beside_those_held_out", "evaluated prompts are trained on",
  ),
  (
    "eval_left_out_prompts_are_not_said", "fipo_jax/prompts.py",
    "if count is None and (left_out := len(records) - len(prompts)):", "if count and (left_out := 0):",
    "sets_test.py::test_prompts_of_a_whole_file_that_are_too_long_are_counted", "a set shrinks in silence",
  ),
  (
    "eval_overlap_of_twelve_words", "fipo_jax/evaluation/overlap.py", "WORDS = 13", "WORDS = 12",
    "overlap_test.py::test_thirteen_words_in_a_row_are_shared_and_twelve_are_not", "not the passage that is said",
  ),
  (
    "eval_overlap_of_wording", "fipo_jax/evaluation/overlap.py", "      if len(where) <= most:\n", "      if where:\n",
    "overlap_test.py::test_how_a_set_is_worded_is_no_passage", "an instruction is taken for contamination",
  ),
  (
    "eval_overlap_minds_blanks", "fipo_jax/evaluation/overlap.py",
    'return " ".join(question.casefold().split())', "return question.casefold()",
    "overlap_test.py::test_the_same_but_for_case_and_blanks", "the same question is not found",
  ),
  # ---- figures and comparisons ----
  (
    "eval_verl_core_at_any_k", "fipo_jax/evaluation/measure.py",
    '"best")) and at(metric) == largest', '"best"))',
    "measure_test.py::test_verls_numbers_have_verls_names", "curves cannot be laid beside verl's",
  ),
  (
    "eval_lengths_of_the_wrong_are_of_all", "fipo_jax/evaluation/measure.py",
    '"wrong_mean": mean(lengths[~is_right])', '"wrong_mean": mean(lengths)',
    "measure_test.py::test_a_set_by_hand", "what wrong answers cost is not seen",
  ),
  (
    "eval_pairs_by_place", "fipo_jax/evaluation/compare.py",
    'pairs = [(one, of_b[one["id"]]) for one in a["problems"] if one["id"] in of_b]',
    'pairs = list(zip(a["problems"], b["problems"], strict=True))',
    "measure_test.py::test_problems_are_paired_by_their_ids", "one problem is compared with another",
  ),
  (
    "eval_unlike_is_compared", "fipo_jax/evaluation/compare.py", "  if unlike:\n", "  if False:\n",
    "measure_test.py::test_what_was_not_measured_alike_is_refused_by_name", "greedy beside sampling",
  ),
  # ---- the program ----
  (
    "eval_fingerprint_without_places", "fipo_jax/evaluation/fingerprint.py", "_mix(bits + _mix(place))", "_mix(bits)",
    "program_test.py::test_weights_are_told_apart_whatever_the_mesh", "weights in another order look the same",
  ),
  (
    "eval_fingerprint_without_mixing", "fipo_jax/evaluation/fingerprint.py",
    "  mixed = _mix(bits + _mix(place))\n  return jnp.stack([mixed.sum(dtype=jnp.uint32), _mix(mixed + 1)",
    "  mixed = bits * place\n  return jnp.stack([mixed.sum(dtype=jnp.uint32), (mixed + 1)",
    "program_test.py::test_weights_are_told_apart_whatever_the_mesh", "weights of the other sign look the same",
  ),
  (
    "eval_samples_begin_again", "fipo_jax/evaluation/program.py",
    "  rest = [p for p in s.prompts if p.id not in done]\n", "  rest = list(s.prompts)\n",
    "program_test.py::test_it_finds_what_training_found_and_goes_on_where_it_was_cut", "hours are sampled twice",
  ),
  (
    "eval_goes_on_with_another_evaluation", "fipo_jax/evaluation/samples.py", "      if unlike:\n", "      if False:\n",
    "program_test.py::test_it_finds_what_training_found_and_goes_on_where_it_was_cut", "two evaluations in one figure",
  ),
  (
    "eval_responses_end_lines", "fipo_jax/evaluation/samples.py",
    'whole.split("\\n") if whole else ()', "whole.splitlines()",
    "program_test.py::test_texts_are_kept_up_to_a_bound", "an evaluation with some character cannot be gone on with",
  ),
  (
    "eval_draws_as_in_training", "fipo_jax/evaluation/program.py",
    "key=s.key(), sampling=parts.sampling_of(s.cfg, who.tokenizer, evaluation=True)",
    "key=s.key(), sampling=parts.sampling_of(s.cfg, who.tokenizer, evaluation=False)",
    "program_test.py::test_greedy_is_the_published_implementations", "greedy figures are sampled",
  ),
  (
    "eval_eta_counts_what_was_there", "fipo_jax/evaluation/program.py",
    "left = (now - self._start) / done", "left = (now - self._start) / have",
    "program_test.py::test_progress_is_told_rarely_with_an_eta_of_what_is_left", "resumed, it promises too much",
  ),
  (
    "eval_first_set_is_not_the_one_without_a_name", "fipo_jax/loop.py",
    "      result = result or dict(own)\n", "      result = dict(own) | result\n",
    "program_test.py::test_sets_are_measured_in_training_by_name_and_the_first_one_without",
    "alarms and report read another set",
  ),
  (
    "eval_best_by_the_first_metric", "fipo_jax/loop.py",
    'run.host["after"].get(run.cfg.checkpoint.best_by) if measured', 'run.host["after"]["accuracy"] if measured',
    "program_test.py::test_the_best_are_those_of_the_metric_that_is_named", "the best by another metric is kept",
  ),
  # ---- export ----
  (
    "export_of_the_newest", "fipo_jax/train/checkpoint.py",
    "default=None)\n  if found not in steps:", "default=None)\n    found = max(steps)\n  if found not in steps:",
    "export_test.py::test_an_export_has_the_bytes_of_the_model_in_memory", "the best is asked for, the newest comes",
  ),
  (
    "export_reads_ahead_by_number", "fipo_jax/train/stored_arrays.py",
    "layers = self._order[at : at + self._ahead]", "layers = [*range(layer, len(self._order))][: self._ahead]",
    "export_test.py::test_layers_are_read_ahead_in_the_order_in_which_they_are_asked_for",
    "pieces are read again and again",
  ),
  (
    "export_knows_no_shape", "fipo_jax/train/stored_arrays.py",
    "    if tuple(array.shape) != tuple(x.shape):\n", "    if False:\n",
    "export_test.py::test_a_preset_brings_its_tokenizer_and_dtype_is_a_choice", "another model's sizes are written",
  ),
  (
    "export_pieces_hold_all_layers", "fipo_jax/train/checkpoint.py",
    "return ocp.SaveArgs(shard_axes=(0,)) if large else ocp.SaveArgs()", "return ocp.SaveArgs()",
    "export_test.py::test_an_export_has_the_bytes_of_the_model_in_memory", "an export reads a checkpoint many times",
  ),
  # ---- published figures ----
  (
    "published_beside_other_sample_counts", "fipo_jax/evaluation/published.py",
    'p.figure in {f"{kind}@{samples}" for kind in EACH}', "p.figure",
    "recipe_test.py::test_published_figures_stand_beside_their_like_alone", "cons@16 is laid beside cons@32",
  ),
  (
    "published_beside_half_a_set", "fipo_jax/evaluation/published.py", " or problems != PROBLEMS[name]", "",
    "recipe_test.py::test_published_figures_stand_beside_their_like_alone", "15 problems are compared with 30",
  ),
  (
    "published_changed_by_hand", "fipo_jax/evaluation/published.py",
    '"aime24", FIPO, avg=47)', '"aime24", FIPO, avg=41)',
    "recipe_test.py::test_published_results_are_the_copy_and_the_page", "a baseline that nobody has reported",
  ),
  (
    "published_is_not_said", "fipo_jax/evaluation/program.py",
    "for line in published.lines(s.name, found[s.name]):", "for line in ():",
    "program_test.py::test_it_finds_what_training_found_and_goes_on_where_it_was_cut",
    "figures without their reference",
  ),
)
