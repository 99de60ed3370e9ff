"""The rows of `mutants` for verdicts: (name, file, old text, new text, tests that should notice, why)."""

G, P, S, X, W = (f"fipo_jax/rewards/{name}.py" for name in ("gym", "gym_parse", "score", "sandbox", "process"))
GYM = "gym_test.py::test_"

ROWS = (
  # ---- gym ----
  (
    "gym_accuracy", G,
    "float(score == 1.0)", "float(score >= 0.5)",
    f"{GYM}a_longer_solution_is_judged_as_a_whole", "partial credit counts as right",
  ),
  (
    "gym_first_line_alone", G,
    "enumerate(rest):", "enumerate(rest[:0]):",
    f"{GYM}the_text_that_is_judged", "JSON over several lines is cut",
  ),
  (
    "gym_everything_is_answer", G,
    "    elif not _goes_on(", "    elif False and not _goes_on(",
    f"{GYM}the_text_that_is_judged", "prose after an answer makes it wrong",
  ),
  (
    "gym_fence", G,
    "if fenced else _lines(text, answer)", "if False else _lines(text, answer)",
    f"{GYM}the_text_that_is_judged", "an answer in a fenced block is wrong",
  ),
  (
    "gym_refused", G,
    "0.0 if answer and refused.search(answer) else judge(answer, entry)", "judge(answer, entry)",
    f"{GYM}what_deceives_the_library_is_wrong", "'nan' is paid in full",
  ),
  (
    "gym_own_scorers", G,
    "  if task in gym_parse.SCORERS:\n    return gym_parse.SCORERS[task]\n", "",
    f"{GYM}hostile_answers_are_wrong_and_do_nothing", "answers run as programs",
  ),
  (
    "gym_scorer_missing", P,
    '  "bitwise_arithmetic": _bitwise_arithmetic,\n', "",
    f"{GYM}the_library_evaluates_answers_of_these_tasks_and_no_others",
    "a task that evaluates is handed to the library",
  ),
  (
    "gym_target", P,
    ' and value == entry["metadata"]["target"]', "",
    f"{GYM}arithmetic_scores_as_in_the_library", "any value is the target",
  ),
  (
    "gym_nesting", P,
    "    if self.depth > _NESTING:", "    if self.depth > 10**6:",
    f"{GYM}arithmetic_scores_as_in_the_library", "brackets end the interpreter",
  ),
  (
    "gym_literal", P,
    "  if not _LITERAL.fullmatch(text) or", "  if",
    f"{GYM}hostile_answers_are_wrong_and_do_nothing", "a literal of any size is built",
  ),
  # ---- symbolic ----
  (
    "symbolic_near_zero", "fipo_jax/rewards/symbolic/numeric.py",
    "return abs(x - y) <= error * max(abs(x), abs(y))", "return abs(x - y) <= Fraction(1, 10**6)",
    "math_symbolic_test.py::test_the_table_of_lines", "near zero everything is equal",
  ),
  (
    "symbolic_signs", "fipo_jax/rewards/symbolic/numeric.py",
    "  for name in listed[:4]:\n", "  for name in listed[:0]:\n",
    "math_symbolic_test.py::test_the_table_of_lines", "|x| is x",
  ),
  (
    "symbolic_ordered_lists", "fipo_jax/rewards/symbolic/equality.py",
    "    found = next((i for i, y in enumerate(left) if equal(x, y)), None)",
    "    found = next((i for i, y in enumerate(left[:1]) if equal(x, y)), None)",
    "math_symbolic_test.py::test_the_table_of_lines", "solutions in another order are wrong",
  ),
  (
    "first_label", "fipo_jax/rewards/answers.py",
    "response[last.end() :]", "response[_LABEL.search(response).end() :]",
    "answers_test.py", "the first of two answers counts",
  ),
  (
    "symbolic_prose_numbers", "fipo_jax/rewards/symbolic/dress.py",
    'said = powered and len(token.text) == 1', 'said = True',
    "math_symbolic_test.py::test_the_table_of_lines", "numbers in the words after an answer do not count",
  ),
  (
    "symbolic_denying", "fipo_jax/rewards/symbolic/dress.py",
    'said = token.text.lower() not in _DENYING', 'said = True',
    "math_symbolic_test.py::test_the_table_of_lines", "'5 or more' is 5",
  ),
  (
    "symbolic_remarks", "fipo_jax/rewards/symbolic/dress.py",
    '      if words and not called and not turned:\n', '      if False:\n',
    "math_symbolic_test.py::test_the_table_of_lines", "'73 (there are 12 of them)' is no number",
  ),
  (
    "symbolic_remark_turned", "fipo_jax/rewards/symbolic/dress.py",
    '      if words and not called and not turned:\n', '      if words and not called:\n',
    "math_symbolic_test.py::test_the_table_of_lines", "'5 (or 6)' is 5",
  ),
  (
    "symbolic_times", "fipo_jax/rewards/symbolic/dress.py",
    'str(_TIMES[word])', '"1"',
    "math_symbolic_test.py::test_the_table_of_lines", "'5 million' is 5",
  ),
  (
    "symbolic_labels", "fipo_jax/rewards/symbolic/dress.py",
    '    if i and token.kind == WORD and token.text.lower() in _IS:\n', '    if False:\n',
    "math_symbolic_test.py::test_the_table_of_lines", "'the area is 5' is no answer",
  ),
  (
    "symbolic_mixed", "fipo_jax/rewards/symbolic/formula.py",
    '      node = self.mixed(node)\n', '      pass\n',
    "math_symbolic_test.py::test_the_table_of_lines", "2 1/2 is 1",
  ),
  (
    "symbolic_half_of_x", "fipo_jax/rewards/symbolic/formula.py",
    'self.power() if numbers else self.factor()', 'self.factor()',
    "math_symbolic_test.py::test_the_table_of_lines", "1/2x is 1 over 2x",
  ),
  (
    "symbolic_union_of_pieces", "fipo_jax/rewards/symbolic/intervals.py",
    '    if not touching:\n', '    if True:\n',
    "math_symbolic_test.py::test_the_table_of_lines", "[1,2] U [2,3] is not [1,3]",
  ),
  (
    "symbolic_border", "fipo_jax/rewards/symbolic/intervals.py",
    '(piece.low_in or last.high_in)', 'True',
    "math_symbolic_test.py::test_the_table_of_lines", "[1,2) U (2,3] is [1,3]",
  ),
  (
    "symbolic_thousands", "fipo_jax/rewards/symbolic/latex.py",
    '(not self.depth and _GROUPED.match(self.text, self.at)) or', '',
    "math_symbolic_test.py::test_the_table_of_lines", "12,345 is two numbers",
  ),
  (
    "symbolic_tuple_thousands", "fipo_jax/rewards/symbolic/latex.py",
    'not self.depth and _GROUPED', '_GROUPED',
    "math_symbolic_test.py::test_the_table_of_lines", "(1,234) is one number",
  ),
  (
    "symbolic_powers", "fipo_jax/rewards/symbolic/numeric.py",
    '    if abs(_magnitude(base)) * abs(exponent) > MAGNITUDE or abs(exponent) > MAGNITUDE:\n      raise NoValue\n', '',
    "math_symbolic_test.py", "9^9^9^9 is computed",
  ),
  (
    "symbolic_calls", "fipo_jax/rewards/symbolic/numeric.py",
    '    if self.calls > CALLS:\n', '    if False:\n',
    "math_symbolic_test.py", "a formula of a thousand functions takes seconds",
  ),
  (
    "symbolic_terms", "fipo_jax/rewards/symbolic/canonical.py",
    'len(terms) > TERMS or', '',
    "math_symbolic_test.py", "(a+b+c+d)^12 is multiplied out",
  ),
  (
    "symbolic_votes", "fipo_jax/rewards/symbolic/canonical.py",
    '    return numeric.text(a) or _formula(a)\n', '    return _formula(a)\n',
    "math_symbolic_test.py::test_equal_answers_vote_together", "equal answers vote apart",
  ),
  (
    "symbolic_degree", "fipo_jax/rewards/symbolic/numeric.py",
    'self.value(node[1]) * self.context.pi / 180', 'self.value(node[1])',
    "math_symbolic_test.py::test_the_table_of_lines", "90 degrees is 90",
  ),
  (
    "symbolic_percent", "fipo_jax/rewards/symbolic/numeric.py",
    '_times(self.value(node[1]), Fraction(1, 100))', 'self.value(node[1])',
    "math_symbolic_test.py::test_the_table_of_lines", "5% is 5 per cent of nothing",
  ),
  (
    "symbolic_root_sign", "fipo_jax/rewards/symbolic/numeric.py",
    'above and below and (base > 0 or degree % 2)', 'above and below',
    "math_symbolic_test.py::test_the_table_of_lines", "the square root of -4 is 2 or -2",
  ),
  (
    "after_the_answer_tag", "fipo_jax/rewards/answers.py",
    '.split("</answer>", 1)[0]', '',
    "answers_test.py", "a closing tag is part of the answer",
  ),
  (
    "box_near_the_end", "fipo_jax/rewards/answers.py",
    'last_box(text) == text[box.end() : -1]', 'True',
    "answers_test.py", "two boxes on a line are one",
  ),
  (
    "block_of_lines", "fipo_jax/rewards/answers.py",
    '      if end > len(line):\n', '      if False:\n',
    "answers_test.py", "a matrix over several lines is cut",
  ),
  (
    "one_pair_around", "fipo_jax/rewards/answers.py",
    'if opening not in inner and closing not in inner:', 'if True:',
    "answers_test.py", "$1$ and $2$ loses its signs",
  ),
  (
    "lines_lost_between_batches", "fipo_jax/rewards/trial.py",
    'list(itertools.islice(lines, BATCH))', 'list(itertools.islice(lines, BATCH))[: BATCH - 1]',
    "verify_test.py::test_every_line_has_a_verdict_whatever_their_number", "a line of each batch has no verdict",
  ),
  (
    "gym_numbers", P,
    'used == sorted(entry["metadata"]["numbers"]) and value', 'value',
    f"{GYM}arithmetic_scores_as_in_the_library", "the target itself is a solution",
  ),
  (
    "gym_sorted", P,
    ' or found != sorted(found, reverse=down)', '',
    f"{GYM}numbers_near_the_right_ones_must_be_sorted", "an unsorted list is sorted",
  ),
  (
    "gym_part", P,
    'return part if join(_literal(answer)) in texts else 0.0', 'return 1.0 if join(_literal(answer)) in texts else 0.0',
    f"{GYM}lists_score_as_in_the_library", "a list in another form is paid in full",
  ),
  (
    "gym_integral_back", P,
    '  if answer.split() == entry["answer"].split():\n    return 1.0\n  variable', '  variable',
    f"{GYM}an_integral_that_was_not_found_is_right_as_text_alone", "what the library cannot integrate is never right",
  ),
  # ---- the pool ----
  (
    "deadline_kills", S,
    '        self._conclude(worker, outcome)\n        self._drop(worker)\n',
    '        self._conclude(worker, outcome)\n',
    "score_test.py::test_a_hanging_verifier_is_killed_in_time", "a hanging process gets the next job",
  ),
  (
    "error_said_once", S,
    "    if not self.first_error:\n", "    if True:\n",
    "score_test.py::test_the_first_error_is_said_at_once_and_only_once", "a line per error buries the log",
  ),
  (
    "error_not_said", S,
    '        self._say(f"the first verification that failed: {message}")\n', "        pass\n",
    "score_test.py::test_the_first_error_is_said_at_once_and_only_once", "an error leaves no trace",
  ),
  (
    "trial_counts", S,
    "    if not trial:\n", "    if True:\n",
    "golds_test.py", "a check before the run stops it, or is counted",
  ),
  (
    "spent_worker_stays", S,
    "        if spent:\n", "        if False:\n",
    "score_test.py::test_a_worker_is_replaced_after_its_jobs", "what leaks grows for a fortnight",
  ),
  (
    "as_large_as_the_trainer", "fipo_jax/rewards/worker.py",
    '        if line.startswith(b"VmHWM:"):\n', "        if False:\n",
    "score_test.py::test_a_worker_is_not_as_large_as_the_process_that_started_it",
    "under a trainer of gigabytes every verdict costs a new process",
  ),
  (
    "closing_forgets", S,
    '      self._fail(ValueError("the scorer was closed."), starting)\n      for worker', "      for worker",
    "score_test.py::test_closing_ends_what_waits", "who waits, waits for ever",
  ),
  (
    "sees_the_end_alone", W,
    "job.response[-characters:]", "job.response[-20_000:]",
    "score_test.py::test_a_verifier_sees_the_whole_response_or_as_much_of_its_end_as_the_config_says",
    "a response is cut in silence",
  ),
  (
    "folders_stay", S,
    "        process.remove_left_behind()\n", "        pass\n",
    "score_test.py::test_folders_of_killed_runs_are_removed", "each killed run leaves folders",
  ),
  (
    "memory_is_an_error", "fipo_jax/rewards/worker.py",
    "  except (MemoryError, RecursionError) as error:", "  except RecursionError as error:",
    "score_test.py::test_out_of_memory_costs_one_sample", "a response ends the run by its size",
  ),
  (
    "first_gold_alone", "fipo_jax/rewards/worker.py",
    "for one in answer]", "for one in answer[:1]]",
    "score_test.py::test_several_golds", "of several right answers one is right",
  ),
  (
    "neighbours", "fipo_jax/rewards/worker.py",
    "  sys.path.insert(0, os.path.dirname(os.path.abspath(path)))\n", "",
    "sandbox_test.py::test_it_works_in_its_own_folder_and_imports_its_neighbour",
    "a reward file cannot import its neighbour",
  ),
  # ---- what a verdict may do ----
  (
    "environment_whole", X,
    "{name: os.environ[name] for name in (*PASSED_ON, *names) if name in os.environ}", "dict(os.environ)",
    "sandbox_test.py::test_nothing_of_the_run_can_be_read_or_harmed", "keys of the run lie open",
  ),
  (
    "no_landlock", X,
    "  if reason := _landlock(libc, limits):", "  if reason := '':",
    "sandbox_test.py::test_nothing_of_the_run_can_be_read_or_harmed", "a verdict writes where it likes",
  ),
  (
    "no_seccomp", X,
    "  if reason := _seccomp(libc, limits):", "  if reason := '':",
    "sandbox_test.py::test_nothing_of_the_run_can_be_read_or_harmed",
    "a verdict has network, programs and signals",
  ),
  (
    "sockets", X,
    '_NETWORK = {"socket": (41, 198),', '_NETWORK = {"socket": (9999, 9999),',
    "sandbox_test.py::test_nothing_of_the_run_can_be_read_or_harmed", "connections are open",
  ),
  (
    "other_processes", X,
    'for entry in os.scandir("/") if entry.name != "proc"]', 'for entry in os.scandir("/")]',
    "sandbox_test.py::test_nothing_of_the_run_can_be_read_or_harmed", "the parent's environment can be read",
  ),
  (
    "clone", X,
    "    refuse_unless(_CLONE[column], 0, 0x45, _CLONE_THREAD)\n", "",
    "sandbox_test.py::test_nothing_of_the_run_can_be_read_or_harmed", "a verdict forks",
  ),
  (
    "file_size", X,
    '"FSIZE": limits.write_mb * 1_000_000', '"FSIZE": limits.write_mb * 10_000_000',
    "sandbox_test.py::test_a_file_is_bounded_and_the_log_is_not_one", "a verdict fills the disk",
  ),
  (
    "group_stays", W,
    "      os.killpg(self.process.pid, signal.SIGKILL)\n", "      self.process.kill()\n",
    "sandbox_test.py::test_what_it_starts_ends_with_it", "what a verdict starts outlives it",
  ),
  # ---- other verifiers ----
  (
    "unread_is_none", "fipo_jax/rewards/outcome.py",
    "  if value.pred is ...:\n    return score, accuracy, None, (UNREAD,)\n", "",
    "worker_test.py::test_as_score", "a float verifier has answers to vote with",
  ),
  (
    "numpy_bool", "fipo_jax/rewards/outcome.py",
    '  if getattr(value, "shape", None) == ()', '  if getattr(value, "shape", None) == (1,)',
    "worker_test.py::test_as_score", "numpy's True is an error",
  ),
  (
    "acc_of_verl", "fipo_jax/rewards/outcome.py",
    'value.get("acc", value.get("accuracy"))', 'value.get("accuracy")',
    "worker_test.py::test_as_score", "verl's acc is ignored",
  ),
  (
    "weights_ignored", "fipo_jax/rewards/verifiers.py",
    "sum(weight * s[0]", "sum(s[0]",
    "score_test.py::test_weights_make_one_verdict_of_several", "all parts weigh alike",
  ),
  (
    "missing_is_invalid", "fipo_jax/rewards/math_dapo.py",
    "dataclasses.replace(score, pred=None) if score.pred == NO_ANSWER else score", "score",
    "math_dapo_test.py::test_a_missing_answer_is_none_outside_and_invalid_inside", "no answer is an answer",
  ),
  (
    "format_twice", "fipo_jax/rewards/texts.py",
    "all(response.count(tag) == 1 for tag in _TAGS)", "True",
    "texts_test.py", "tags may be repeated",
  ),
  (
    "regex_part", "fipo_jax/rewards/texts.py",
    ".fullmatch(pred) is not None", ".search(pred) is not None",
    "texts_test.py", "a part of an answer matches",
  ),
  (
    "exact_spaces", "fipo_jax/rewards/texts.py",
    'pred == " ".join(answer.split())', "pred == answer",
    "texts_test.py", "two spaces make it wrong",
  ),
  # ---- golds ----
  (
    "all_failing_goes_on", "fipo_jax/rewards/golds.py",
    "    if len(wrong) == len(found):\n", "    if False:\n",
    "golds_test.py::test_all_failing_is_an_error", "a run learns from nothing",
  ),
  (
    "leading_zeros", "fipo_jax/rewards/golds.py",
    'r"[+-]?0\\d+"', 'r"[+-]?00\\d+"',
    "golds_test.py::test_what_verifies_itself_and_is_hardly_met", "'033' is never met and nothing is said",
  ),
  (
    "raising_function", "fipo_jax/rewards/golds.py",
    '  if "error" in scored.flags:\n', "  if False:\n",
    "golds_test.py::test_a_users_function_is_called_once_and_only_its_exceptions_are_fatal",
    "it raises after the first rollout",
  ),
  (
    "whole_float", "fipo_jax/data/rows.py",
    "return str(int(value)) if value == int(value) else str(value)", "return str(value)",
    "sources_test.py::test_a_ground_truth_is_what_a_response_could_say", "16.0 is never met",
  ),
  (
    "nan_is_an_answer", "fipo_jax/data/rows.py",
    "      if not math.isfinite(value):\n        return None\n", "",
    "sources_test.py::test_bad_lines_are_named", "NaN is a ground truth",
  ),
  (
    "names_of_dapo", "fipo_jax/data/rows.py",
    '"math_dapo", "dapo_math", "aime"', '"math_dapo", "aime"',
    "sources_test.py::test_published_names_of_the_dapo_check", "a published file has no verifier",
  ),
  (
    "unknown_name_in_a_record", "fipo_jax/judges.py",
    "      if name not in VERIFIERS:\n", "      if False:\n",
    "golds_test.py::test_a_verifier_that_a_record_misnames_is_refused_with_file_and_record",
    "it is refused after the first rollout",
  ),
  # ---- what is heard, and when ----
  (
    "failed_counts_as_no_answer", "fipo_jax/evaluate.py",
    "  verified = [r for r in rollouts if not r.failed]\n", "  verified = list(rollouts)\n",
    "evaluate_test.py::test_training_and_evaluation_mean_the_same_by_no_answer",
    "time-outs look like missing answers",
  ),
  (
    "votes_of_unread", "fipo_jax/evaluate.py",
    'or any("unread" in r.flags for r in verified)', "",
    "evaluate_test.py::test_training_and_evaluation_mean_the_same_by_no_answer",
    "README's own example raises an alarm",
  ),
  (
    "silence", "fipo_jax/collect.py",
    "  if all(r.failed for r in rollouts):\n", "  if False:\n",
    "collect_test.py::test_a_first_batch_without_a_verdict_stops_and_says_why",
    "a run ends with 'use harder prompts'",
  ),
  (
    "sampling_waits", "fipo_jax/collect.py",
    "      while under_way and enough < math.inf:\n", "      while under_way:\n",
    "collect_test.py::test_sampling_waits_only_for_verdicts_that_decide_when_it_ends",
    "a slow verifier idles the pod",
  ),
  (
    "sampling_does_not_wait", "fipo_jax/collect.py",
    "      while under_way and enough < math.inf:\n", "      while False:\n",
    "collect_test.py::test_sampling_waits_only_for_verdicts_that_decide_when_it_ends",
    "sampling never stops early",
  ),
  (
    "phases_count_twice", "fipo_jax/metrics.py",
    "      if self._inner:\n        self._inner[-1] += whole\n", "",
    "metrics_test.py::test_a_phase_within_another_counts_once", "a step is longer than it was",
  ),
  (
    "samples_unbounded", "fipo_jax/lines.py",
    "0 < self._most_bytes < start + len(rest)", "0 < self._most_bytes < 0",
    "metrics_test.py::test_a_bounded_file_drops_its_oldest_lines_and_says_so_once", "samples fill the disk",
  ),
  (
    "file_read_whole", "fipo_jax/lines.py",
    "    if step is not None and step <= resume_step:\n", "    if False:\n",
    "metrics_test.py::test_only_the_end_is_read", "a start reads gigabytes",
  ),
  (
    "errors_not_in_step_line", "fipo_jax/metrics.py",
    ' if metrics.get(name) else []\n', ' if False else []\n',
    "metrics_test.py::test_verifier_troubles_stand_in_the_step_line", "the operator does not see errors",
  ),
  (
    "disagreement_is_0", "launch/verify.py",
    'sys.exit(processes.EXIT_ERROR if counts["disagree"] else processes.EXIT_DONE)', "sys.exit(processes.EXIT_DONE)",
    "verify_test.py::test_lines_are_scored_and_disagreements_end_in_1",
    "a script takes a wrong verifier for right",
  ),
  (
    "spread_beginning", "fipo_jax/data/pipeline.py",
    "self._records[i * self.len_epoch // count]", "self._records[i]",
    "pipeline_test.py::test_spread_takes_evenly_and_draws_nothing", "only the first golds are looked at",
  ),
)  # fmt: skip
