"""The rows of `mutants` for what one sees of a run: boards, goodput, traces."""

ROWS = (
  (
    "sight_dropped_steps_stay", "fipo_jax/dashboards.py",
    "status=event_pb2.SessionLog.START)", "status=event_pb2.SessionLog.STOP)",
    "dashboards_test.py::test_a_resumed_run_takes_back_the_steps_that_it_makes_again",
    "curves go back and forth after each resume",
  ),
  (
    "sight_one_step_too_many_stays", "fipo_jax/dashboards.py",
    "step + 1 if step else 0))", "step + 2 if step else 0))",
    "dashboards_test.py::test_boards_begin_after_the_step_that_is_resumed", "the first step after a resume is shown twice",
  ),
  (
    "sight_events_in_memory", "fipo_jax/dashboards.py",
    "if not self._remote or time.monotonic() - self._flushed >= FLUSH_S:",
    "if time.monotonic() - self._flushed >= FLUSH_S:",
    "dashboards_test.py::test_each_step_is_on_the_disk_before_the_next", "a kill leaves gaps of two minutes in the curves",
  ),
  (
    "sight_files_of_one_name", "fipo_jax/dashboards.py",
    'own = f".{os.getpid()}.{next(_files)}"', 'own = ""',
    "dashboards_test.py::test_a_resumed_run_takes_back_the_steps_that_it_makes_again",
    "a start within the same second writes over the events before it",
  ),
  (
    "sight_board_ends_the_run", "fipo_jax/dashboards.py",
    "        self._boards.remove(board)\n", "        raise\n",
    "dashboards_test.py::test_a_board_that_fails_is_said_once_and_ends_nothing", "a full disk of a board ends the run",
  ),
  (
    "sight_board_fails_again_and_again", "fipo_jax/dashboards.py",
    "        self._boards.remove(board)\n", "",
    "dashboards_test.py::test_a_board_that_fails_is_said_once_and_ends_nothing", "a line a step of the same failure",
  ),
  (
    "sight_bucket_given_up", "fipo_jax/dashboards.py",
    "      if not self._remote:\n        raise\n", "      raise\n",
    "dashboards_test.py::test_a_bucket_that_does_not_answer_is_tried_again_and_nothing_is_lost",
    "one 503 of the bucket, and TensorBoard has nothing more until the next start",
  ),
  (
    "sight_not_finite_on_a_board", "fipo_jax/dashboards.py",
    "for name, value in scalars.items() if math.isfinite(value)}, texts", "for name, value in scalars.items()}, texts",
    "dashboards_test.py::test_names_have_a_group_and_lists_their_first_and_last", "what was not measured is drawn as NaN",
  ),
  (
    "sight_wandb_new_run_each_start", "fipo_jax/dashboards.py",
    'if not known or known["rollbacks"] != rollbacks or back:', "if True:",
    "dashboards_test.py::test_wandb_goes_on_with_its_run_and_begins_another_when_numbers_will_differ",
    "each restart is another run in W&B",
  ),
  (
    "sight_wandb_keeps_what_was_rolled_back", "fipo_jax/dashboards.py",
    'if not known or known["rollbacks"] != rollbacks or back:', "if not known:",
    "dashboards_test.py::test_wandb_goes_on_with_its_run_and_begins_another_when_numbers_will_differ",
    "after a rollback W&B shows the collapse, and then the other run",
  ),
  (
    "sight_wandb_sent_twice", "fipo_jax/dashboards.py",
    "    if step < self._first:\n      return\n", "",
    "dashboards_test.py::test_steps_that_wandb_has_are_not_sent_again", "W&B warns of each step that it has",
  ),
  (
    "sight_wandb_missing_late", "fipo_jax/assemble.py",
    "  dashboards.check(cfg.log)\n", "",
    "dashboards_test.py::test_wandb_that_is_missing_is_found_before_anything_is_done",
    "that wandb is not installed is found after the model was loaded",
  ),
  (
    "sight_name_without_a_group", "fipo_jax/dashboards.py",
    '"keep_rate", "token*"', '"keep_rate"',
    "dashboards_test.py::test_the_table_of_names_is_what_a_run_writes", "a metric stands under 'other'",
  ),
  (
    "sight_first_process_alone", "fipo_jax/tracing.py",
    "and session is None and processes.is_first():", "and session is None:",
    "tracing_test.py::test_what_ends_a_run_ends_its_trace_and_only_one_is_made_at_a_time",
    "every host of a pod writes a trace into one folder",
  ),
  (
    "sight_trace_goes_on", "fipo_jax/tracing.py",
    "if session and step + 1 not in profiled:", "if session and step - 1 in profiled:",
    "tracing_test.py::test_a_trace_has_the_iterations_the_phases_and_the_stages",
    "a trace of one iteration goes on until the disk is full",
  ),
  (
    "sight_trace_left_open", "fipo_jax/tracing.py",
    "    if session:  # what ended the run within an iteration\n", "    if False:\n",
    "tracing_test.py::test_what_ends_a_run_ends_its_trace_and_only_one_is_made_at_a_time",
    "the trace of an iteration that fails is lost",
  ),
  (
    "sight_no_iterations_in_a_trace", "fipo_jax/tracing.py",
    'StepTraceAnnotation("iteration", step_num=step)', 'TraceAnnotation("step")',
    "tracing_test.py::test_a_trace_has_the_iterations_the_phases_and_the_stages", "xprof knows no steps",
  ),
  (
    "sight_no_phases_in_a_trace", "fipo_jax/metrics.py",
    "with console.phase(phase), jax.profiler.TraceAnnotation(phase):", "with console.phase(phase):",
    "tracing_test.py::test_a_trace_has_the_iterations_the_phases_and_the_stages", "a trace does not say what the host did",
  ),
  (
    "sight_loss_without_a_name", "fipo_jax/train/step.py",
    'with jax.named_scope("loss"):', 'with jax.named_scope("x"):',
    "tracing_test.py::test_operations_carry_the_names_of_their_stages_and_nothing_else_of_them_is_in_a_program",
    "a trace does not tell the loss from the model",
  ),
  (
    "sight_decode_without_a_name", "fipo_jax/rollout/decode.py",
    '  @jax.named_scope("decode")\n', "",
    "decode_test.py::test_operations_carry_the_names_of_their_stages", "a trace does not tell decoding from upkeep",
  ),
  (
    "sight_stale_names", "fipo_jax/assemble.py",
    'jax.config.update("jax_compilation_cache_include_metadata_in_key", True)', "pass",
    "assemble_test.py::test_a_trace_has_the_names_of_this_version",
    "a trace has the names of the version that filled the compile cache",
  ),
  (
    "sight_profile_step_beyond_the_end", "fipo_jax/config.py",
    "if not (isinstance(step, int) and 0 < step <= c.steps):", "if not (isinstance(step, int) and 0 < step):",
    "config_test.py::test_refused", "a trace that is never made",
  ),
  (
    "sight_waiting_is_running", "fipo_jax/goodput.py",
    'end = start.get("ended") or (now if after is None else start.get("seen", begin))',
    'end = start.get("ended") or (now if after is None else after)',
    "goodput_test.py::test_killed_stopped_with_a_pause_and_failed_before_training",
    "days without a process count as if it had run",
  ),
  (
    "sight_lost_step_kept", "fipo_jax/goodput.py",
    'if row["step"] > max(step, 0)]', 'if row["step"] > max(step, 0) + 1]',
    "goodput_test.py::test_what_a_start_drops", "lost work is told too small",
  ),
  (
    "sight_rolled_back_process_began_twice", "fipo_jax/workdir.py",
    "first, _first_claim = _first_claim, False", "first = _first_claim",
    "goodput_test.py::test_the_first_start_of_a_process_began_with_it",
    "after a rollback the time before it counts as starting once more",
  ),
  (
    "sight_end_of_another", "fipo_jax/workdir.py",
    'mine = starts and (starts[-1].get("pid"), starts[-1].get("host")) == (os.getpid(), socket.gethostname())',
    "mine = starts",
    "goodput_test.py::test_the_end_of_another_process_is_not_written_down",
    "a refused start writes into the run that refused it",
  ),
  (
    "sight_heartbeat_ignored", "fipo_jax/workdir.py",
    'said.append(float(json.loads((pathlib.Path(cfg.workdir) / HEARTBEAT).read_text())["time"]))', "pass",
    "goodput_test.py::test_a_heartbeat_is_a_later_sign_of_life", "an hour in an iteration that was killed was nobody's",
  ),
)  # fmt: skip
