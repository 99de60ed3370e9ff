"""The rows of `mutants` for replays: (name, file, old text, new text, tests that should notice, why)."""

BRIEF = "replays_test.py::test_a_step_is_made_again_bit_for_bit"
TOKENS = "replays_test.py::test_tokens_are_those_of_samples_and_all_of_them"
GRADIENTS = "replays_test.py::test_gradients_by_layer_are_those_of_the_update"
CHANGED = "replays_test.py::test_what_the_step_would_have_been_stands_beside_it"
ATTEMPTS = "replays_test.py::test_the_attempts_of_a_run_that_was_rolled_back"
UNDONE = "replays_test.py::test_what_was_changed_later_is_undone"
VERDICTS = "replays_test.py::test_verdicts_that_were_none_are_taken_from_the_record"

ROWS = (
  # ---- the step itself ----
  (
    "replay_of_another_step", "fipo_jax/replays/program.py",
    "assemble.open_run(cfg, first - 1,", "assemble.open_run(cfg, max(first - 2, 0),",
    BRIEF, "the state is a step older than the one that is made again",
  ),
  (
    "replay_says_equal", "fipo_jax/replays/compare.py",
    "if recorded[name] != replayed[name]:", "if recorded[name] != recorded[name]:",
    "replays_test.py::test_what_differs_is_named_with_how_much", "whatever came out is called equal",
  ),
  (
    "replay_compares_times", "fipo_jax/replays/compare.py",
    '"tokens_per_second", "update_tflops",', '"tokens_per_second",',
    BRIEF, "no replay is ever equal, for no step takes as long again",
  ),
  (
    "replay_without_alarms", "fipo_jax/replays/program.py",
    '    values["alarms"] = [alarm.name', '    values["alarm"] = [alarm.name',
    BRIEF, "that the alarm speaks again is not compared",
  ),
  (
    "replay_makes_the_run_its_own", "fipo_jax/assemble.py",
    "open_checkpointer(cfg, read_only=read_only)", "open_checkpointer(cfg)",
    "replays_test.py::test_the_run_is_left_alone", "a replay tidies in the folder of a run that goes on",
  ),
  # ---- its dump ----
  (
    "replay_first_micro_batch_alone", "fipo_jax/replays/dump.py",
    "for micro in range(m.packed.used):", "for micro in range(1 - m.number % 2):",
    TOKENS, "responses of some micro-batches are missing",
  ),
  (
    "weighted_advantage_without_weight", "fipo_jax/tokens.py",
    'a["advantages"] * a.get("weight", 1.0)', 'a["advantages"] * 1.0',
    TOKENS, "the weighted advantage is the advantage",
  ),
  (
    "replay_top_is_the_smallest", "fipo_jax/replays/dump.py",
    "sorted(self._top, reverse=True)", "sorted(self._top)",
    TOKENS, "the token of the largest |F| is named last",
  ),
  (
    "squares_over_layers", "fipo_jax/train/step.py",
    "axis=tuple(range(int(layered(path)), g.ndim))", "axis=None",
    GRADIENTS, "norms by layer are one norm of all layers",
  ),
  (
    "norms_are_squares", "fipo_jax/replays/dump.py",
    '"norm": math.sqrt(total)', '"norm": total',
    GRADIENTS, "a gradient's norm is its square",
  ),
  # ---- what would have been ----
  (
    "replay_changed_goes_on", "fipo_jax/replays/program.py",
    "    self.run.state = None  # for room\n    run = before.back(assemble.under(self.run, self._placed(cfg)))",
    "    run = dataclasses.replace(before.back(assemble.under(self.run, self._placed(cfg))), state=self.run.state)",
    CHANGED, "the changed step begins with the weights that the step has left",
  ),
  (
    "replay_changed_is_not", "fipo_jax/replays/program.py",
    "before.back(assemble.under(self.run, self._placed(cfg)))", "before.back(assemble.under(self.run, self.run.cfg))",
    CHANGED, "the changed step is the step",
  ),
  # ---- which past ----
  (
    "replay_of_a_later_attempt", "fipo_jax/replays/past.py",
    'all(s <= r["to"] for r in later)', 'all(s <= r["step"] for r in later)',
    ATTEMPTS, "an attempt is replayed from a checkpoint that the one after it has made",
  ),
  (
    "replay_with_other_random_numbers", "fipo_jax/replays/past.py",
    'if r["to"] < step), default=0)', 'if r["step"] < step), default=0)',
    ATTEMPTS, "steps after a rollback are sampled with the numbers of before",
  ),
  (
    "replay_under_the_newest_config", "fipo_jax/replays/past.py",
    "for start in reversed(self.starts[made + 1 :]):", "for start in self.starts[len(self.starts) :]:",
    UNDONE, "a step is made again with a learning rate that was set later",
  ),
  (
    "replay_overrides_others_files", "fipo_jax/replays/dump.py",
    "if there and RECORD not in there:", "if there and RECORD in there:",
    "replays_test.py::test_refusals", "the files of a folder that was named by mistake are replaced",
  ),
  (
    "replay_of_servers", "fipo_jax/replays/program.py",
    'cfg.rollout.engine == "http"', 'cfg.rollout.engine == "vllm"',
    "replays_test.py::test_refusals", "other responses are called a replay",
  ),
  (
    "replay_changes_the_seed", "fipo_jax/replays/fields.py",
    "elif not changes.within(field, (*UPDATE, *RESPONSES)):", 'elif field.startswith("model"):',
    "replays_test.py::test_fields_that_cannot_be_changed", "a changed seed is accepted, and does nothing to the data",
  ),
  # ---- what it needs of a run ----
  (
    "replay_asks_again", "fipo_jax/rewards/score.py",
    "if flag := self.known.get(job.key):", "if flag := self.known.get(None):",
    VERDICTS, "a verification that had timed out finds the time",
  ),
  (
    "known_verdicts_are_waited_for", "fipo_jax/rewards/score.py",
    "for i, found in enumerate(batch.results) if found is None)", "for i, found in enumerate(batch.results))",
    VERDICTS, "the verdict of the record is replaced, and the batch settled too early",
  ),
  (
    "kept_for_good_is_not", "fipo_jax/train/checkpoint.py",
    "if self.every and c.step % self.every == 0", "if self.every and c.step % self.every == 1",
    "checkpoint_test.py::test_some_are_kept_for_good", "checkpoints to replay from are deleted",
  ),
  (
    "read_only_tidies", "fipo_jax/train/checkpoint.py",
    "if self._read_only or not processes.is_first():", "if not processes.is_first():",
    "checkpoint_test.py::test_looking_changes_nothing", "a replay deletes the save that a run is at",
  ),
)  # fmt: skip
