"""The rows of `mutants` for the miniature in which answers can grow, and the curves of sweeps; see mutants_runs.py."""

ROWS = (
  (
    "chain_verdict_of_the_truth", "fipo_jax/data/countdown.py",
    "    lines.append(f\"{line} {'ok' if found else 'no'}\")\n",
    "    found = numbers[0] + sum(s * n for s, n in zip(signs, numbers[1:])) == target\n"
    "    lines.append(f\"{line} {'ok' if found else 'no'}\")\n",
    "countdown_test.py::test_every_line_is_what_it_says", "demonstrations say ok to sums that do not say so",
  ),
  (
    "chain_step_noise_halved", "fipo_jax/data/countdown.py",
    "    if rng.random() < error:\n", "    if rng.random() < error / 2:\n",
    "countdown_test.py::test_steps_are_wrong_as_often_as_asked", "steps are more reliable than the config says",
  ),
  (
    "chain_gives_up_alike", "fipo_jax/data/countdown.py",
    'leave = give_up if style == "tried" else give_up / 2', "leave = give_up",
    "countdown_test.py::test_how_often_a_solution_gives_up", "no demonstration is longer than the usual one",
  ),
  (
    "chain_no_luck", "fipo_jax/data/countdown.py",
    "signs = rng.choice(known) if rng.random() < luck else _signs(numbers, rng)", "signs = _signs(numbers, rng)",
    "countdown_test.py::test_luck_knows_a_solution_as_often_as_asked", "ok is too rare to be learnt from",
  ),
  (
    "chain_check_forgets", "fipo_jax/data/countdown.py",
    "      found = value == 0\n", "",
    "countdown_test.py::test_every_line_is_what_it_says", "a check that fails is said to be ok",
  ),
  (
    "chain_ok_goes_on", "fipo_jax/data/countdown.py",
    "    if found or rng.random() < give_up:\n", "    if rng.random() < give_up:\n",
    "countdown_test.py::test_every_line_is_what_it_says", "what was found is thrown away",
  ),
  (
    "chain_noise_of_all_seeds", "fipo_jax/data/countdown.py",
    'random.Random(f"countdown_solutions {seed} {index}")', 'random.Random(f"countdown_solutions {index}")',
    "countdown_test.py::test_noise_depends_on_seed_and_index_alone", "every seed has the same mistakes",
  ),
  (
    "chain_solution_in_the_question", "fipo_jax/data/sources.py",
    '  if metadata["source_dataset"] == "countdown":', '  if metadata["source_dataset"] == "none":',
    "sources_test.py::test_a_short_question_never_says_the_solution", "countdown is asked by its solution",
  ),
  (
    "chain_under_way_counts", "fipo_jax/sweeps/curves.py",
    '  done = [run for run in runs if run["finished"]]\n', "  done = list(runs)\n",
    "curves_test.py::test_a_page_of_finished_runs_and_one_under_way", "means are of runs at different steps",
  ),
  (
    "chain_finished_file_lost", "fipo_jax/sweeps/curves.py",
    'if run and not (kept and kept["finished"] and not run["finished"]):', "if run:",
    "curves_test.py::test_files_stand_for_runs_that_are_elsewhere", "a run begun anew takes the place of evidence",
  ),
  (
    "chain_other_steps_compared", "fipo_jax/sweeps/curves.py",
    'if kept and kept["steps"] != job.cfg.steps:', "if False:",
    "curves_test.py::test_files_stand_for_runs_that_are_elsewhere", "runs of other lengths are averaged",
  ),
  (
    "chain_contrary_holds", "fipo_jax/sweeps/curves.py",
    'if i["low"] is not None and (i["low"] > 0 or i["high"] < 0):\n        word',
    'if i["low"] is not None:\n        word',
    "curves_test.py::test_a_statement_holds_where_the_interval_says_so", "noise is said to confirm the paper",
  ),
  (
    "chain_curves_lag", "fipo_jax/sweeps/curves.py",
    '    near = [v for v in values[max(0, i - width // 2) : i + width // 2 + 1] if v is not None]\n',
    "    near = [v for v in values[max(0, i - width) : i + 1] if v is not None]\n",
    "curves_test.py::test_figures_by_hand", "curves lag behind the steps they are drawn at",
  ),
  (
    "credit_reads_on_after_equals", "fipo_jax/sweeps/credit.py",
    "      after_equals = False\n", "", "credit_test.py::test_the_kind_of_every_token", "copied numbers count as results",
  ),
  (
    "credit_no_choice_after_no", "fipo_jax/sweeps/credit.py",
    'found, after_no = found + here, "no" in here', "found += here",
    "credit_test.py::test_the_kind_of_every_token", "going on and giving up, the choice itself, are not told apart",
  ),
  (
    "credit_shift_turned", "fipo_jax/sweeps/credit.py",
    'np.subtract(sample["logp"], sample["sampler_logp"])', 'np.subtract(sample["sampler_logp"], sample["logp"])',
    "credit_test.py::test_figures_of_samples_made_by_hand", "what is reinforced is said to be weakened",
  ),
  (
    "credit_from_the_start", "fipo_jax/sweeps/credit.py",
    'columns["last"] += range(n - 1, -1, -1)', 'columns["last"] += range(n)',
    "credit_test.py::test_figures_of_samples_made_by_hand", "the distance to the end is that from the start",
  ),
  (
    "credit_one_round", "fipo_jax/sweeps/credit.py",
    "for _ in range(rounds if len(coded) > 1 else 1):", "for _ in range(1):",
    "credit_test.py::test_variance_explained_is_that_of_least_squares", "factors that go together explain too little",
  ),
  (
    "credit_order_of_the_figures", "fipo_jax/sweeps/credit.py",
    "  return float(stats.spearmanr(a, b).statistic)", "  return float(stats.pearsonr(a, b).statistic)",
    "credit_test.py::test_stability_over_runs", "one outlying kind decides how stable the order is",
  ),
)  # fmt: skip
