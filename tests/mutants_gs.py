"""The rows of `mutants` for runs in buckets: (name, file, old text, new text, tests that should notice, why)."""

ROWS = (
  # ---- files of a bucket ----
  (
    "gs_listings_are_kept", "fipo_jax/paths.py",
    '["use_listings_cache"] = False', '["use_listings_cache"] = True',
    "gcs_test.py::test_files_of_a_bucket", "what TensorStore or another process has written is not seen",
  ),
  (
    "gs_refused_is_absent", "fipo_jax/paths.py",
    '["type"]\n  except FileNotFoundError:', '["type"]\n  except OSError:',
    "gcs_test.py::test_a_bucket_that_refuses_is_one_line", "a bucket that refuses to answer looks empty: a new run",
  ),
  (
    "gs_refused_is_empty", "fipo_jax/paths.py",
    "detail=True))\n  except FileNotFoundError:", "detail=True))\n  except OSError:",
    "gcs_test.py::test_a_bucket_that_refuses_is_one_line", "a bucket that refuses to answer has no checkpoints",
  ),
  (
    "gs_steps_of_a_refusal", "fipo_jax/train/checkpoint.py",
    "  if not paths.names(folder):  #", "  if not folder.is_dir():  #",
    "gcs_test.py::test_a_bucket_that_refuses_is_one_line", "gcsfs takes 403 for no folder: the run begins again",
  ),
  (
    "gs_half_a_file", "fipo_jax/paths.py",
    "    file.closed = True  #", "    pass  #",
    "gcs_test.py::test_what_is_written_piece_by_piece_is_there_at_its_end_or_not_at_all", "half a file looks whole",
  ),
  (
    "gs_never_again", "fipo_jax/paths.py",
    "if not error.again or time.monotonic()", "if error.again or time.monotonic()",
    "gcs_test.py::test_a_bucket_that_is_away_for_longer", "a minute without the bucket ends a run of days",
  ),
  (
    "gs_refusal_is_repeated", "fipo_jax/paths.py",
    "    return BucketError(str(path), f\"the bucket refuses it (403: {said})\", ACCOUNT, False)",
    "    return BucketError(str(path), f\"the bucket refuses it (403: {said})\", ACCOUNT, said == \"Forbidden: b/x\")",
    "gcs_test.py::test_a_bucket_that_is_away_for_longer", "five minutes until a missing permission is said",
  ),
  (
    "gs_away_is_a_mistake", "fipo_jax/paths.py",
    "self.errno = errno.EIO if again else None", "self.errno = None",
    "gcs_test.py::test_a_bucket_that_is_away_for_longer", "exit code 2 tells a scheduler never to start it again",
  ),
  (
    "gs_repeated_in_silence", "fipo_jax/paths.py",
    'if "retrying after exception" in', 'if "retrying for ever" in',
    "gcs_test.py::test_what_a_bucket_does_not_do_now_and_then_is_repeated_and_said_once", "requests repeat in silence",
  ),
  (
    "gs_pieces_overlap", "fipo_jax/paths.py",
    "range(start, stop, PIECE)", "range(start, stop, PIECE - 1)",
    "gcs_test.py::test_long_ranges_are_asked_for_in_pieces", "more requests than said",
  ),
  (
    "gs_reward_file_in_a_bucket", "fipo_jax/config.py",
    'if "://" in c.reward.file:', "if False:",
    "paths_test.py::test_what_cannot_be_in_a_bucket_is_refused_by_name", "a program of a bucket is 'no such file'",
  ),
  (
    "gs_servers_read_buckets", "fipo_jax/config.py",
    'if c.rollout.engine == "http" and paths.is_remote(c.workdir):', "if False:",
    "paths_test.py::test_what_cannot_be_in_a_bucket_is_refused_by_name", "servers are told to load gs:// folders",
  ),
  (
    "gs_stray", "fipo_jax/rollback.py",
    "if processes.is_first() and paths.is_file(path) else", "if processes.is_first() and path.is_file() else",
    "paths_test.py::test_paths_of_users_go_through_one_module", "one file of a run does not wait for the bucket",
  ),
  # ---- lines in parts ----
  (
    "gs_part_not_cut", "fipo_jax/lines.py",
    "        if kept != content:\n", "        if not content:\n",
    "gcs_test.py::test_parts_are_what_a_file_is", "a resumed run has lines of a step twice",
  ),
  (
    "gs_later_parts_stay", "fipo_jax/lines.py",
    "      paths.delete(_part(self.path, number))\n      del self._sizes[number]\n", "      del self._sizes[number]\n",
    "gcs_test.py::test_parts_are_what_a_file_is", "a resumed run keeps lines of steps that it does again",
  ),
  (
    "gs_parts_cut_from_the_front", "fipo_jax/lines.py",
    "for number in sorted(self._sizes, reverse=True):", "for number in sorted(self._sizes):",
    "gcs_test.py::test_parts_are_what_a_file_is", "later lines stay",
  ),
  (
    "gs_samples_after_the_step", "fipo_jax/metrics.py",
    "    self.samples.flush()\n", "",
    "gcs_test.py::test_samples_are_there_when_the_line_of_their_step_is", "a kill loses samples of saved steps",
  ),
  (
    "gs_one_object_too_often", "fipo_jax/lines.py",
    "self._sent < SAME_PART_S)", "self._sent < 0)",
    "gcs_test.py::test_a_part_is_written_whole_and_the_next_one_begins_when_it_is_full_or_too_young",
    "Google answers 429: an object may be written once a second",
  ),
  (
    "gs_a_part_without_end", "fipo_jax/lines.py",
    "full = self._content and len(self._content) + len(line) > self._part_bytes", "full = False",
    "gcs_test.py::test_a_part_is_written_whole_and_the_next_one_begins_when_it_is_full_or_too_young",
    "each step uploads all lines so far",
  ),
  (
    "gs_unbounded", "fipo_jax/lines.py",
    "if 0 < self._most_bytes < total + len(line):", "if 0 < self._most_bytes < 0:",
    "gcs_test.py::test_a_bound_in_a_bucket_drops_the_oldest", "samples grow for ever",
  ),
  (
    "gs_moved_run_has_no_past", "fipo_jax/lines.py",
    "    if not self._sizes and _has(path):\n", "    if not self._sizes and not path:\n",
    "gcs_test.py::test_a_run_that_is_moved_goes_on_with_its_lines", "a run that was copied to a bucket loses its curve",
  ),
  # ---- the lease ----
  (
    "gs_a_lease_for_all", "fipo_jax/lease.py",
    "if_generation_match=generation, timeout=REQUEST_S, retry=None", "timeout=REQUEST_S, retry=None",
    "gcs_test.py::test_a_lease_is_refused_while_its_holder_lives_and_taken_over_when_it_was_killed",
    "two processes work in one folder",
  ),
  (
    "gs_a_living_lease_is_taken", "fipo_jax/lease.py",
    "age >= LEASE_S", "age >= 0",
    "gcs_test.py::test_a_lease_is_refused_while_its_holder_lives_and_taken_over_when_it_was_killed",
    "a second start throws the first one out",
  ),
  (
    "gs_outlives_its_lease", "fipo_jax/lease.py",
    "if _now() > self._until and", "if _now() < 0 and",
    "gcs_test.py::test_a_lease_that_cannot_be_renewed_ends_its_holder_before_another_may_have_it",
    "a process without network writes into the run of its successor",
  ),
  (
    "gs_lost_in_silence", "fipo_jax/lease.py",
    "    os._exit(processes.EXIT_LOST)", "    os._exit(processes.EXIT_ERROR)",
    "gcs_test.py::test_a_process_that_was_frozen_writes_nothing_into_the_run_of_another",
    "a scheduler takes a lost lease for a failure of the run",
  ),
  (
    "gs_lease_is_kept", "fipo_jax/workdir.py",
    "return lease.Lease(paths.of(workdir)).release", "return lease.Lease(paths.of(workdir))._check",
    "gcs_test.py::test_a_held_workdir_is_held_once", "the next start waits for a lease that nobody needs",
  ),
  # ---- models, checkpoints ----
  (
    "gs_rows_of_another_tensor", "fipo_jax/models/tensor_files.py",
    "if key not in self._last:", "if not self._last:",
    "gcs_test.py::test_weights_are_ranges_and_exports_are_the_same_bytes", "all weights are those read first",
  ),
  (
    "gs_tensors_from_their_begin", "fipo_jax/models/tensor_files.py",
    "self.start + first * width, self", "self.start, self",
    "gcs_test.py::test_weights_are_ranges_and_exports_are_the_same_bytes", "a shard reads the rows of others",
  ),
  (
    "gs_export_replaced_under_its_name", "fipo_jax/models/hf.py",
    'paths.delete_folder(directory, first="config.json")', 'paths.is_folder(directory)',
    "gcs_test.py::test_an_export_that_is_cut_off_is_no_model_and_is_made_again",
    "old and new weights in one folder that looks whole",
  ),
  (
    "gs_cut_off_export_is_in_the_way", "fipo_jax/models/hf.py",
    "if foreign and not (paths.is_remote(partial) and", "if foreign and not (not partial and",
    "gcs_test.py::test_an_export_that_is_cut_off_is_no_model_and_is_made_again", "the run cannot end any more",
  ),
  (
    "gs_commit_file_outlives_its_step", "fipo_jax/train/checkpoint.py",
    "      paths.delete(self._folder / str(step) / COMMIT)\n", "      pass\n",
    "gcs_test.py::test_a_deletion_that_is_cut_off_leaves_no_torn_step", "a step that is half deleted looks whole",
  ),
  (
    "gs_torn_steps_stay", "fipo_jax/train/checkpoint.py",
    "left += [path for path in steps if not paths.is_file(path / COMMIT)]", "left += []",
    "gcs_test.py::test_a_save_that_is_cut_off_is_not_seen_and_is_made_again", "torn saves fill the bucket",
  ),
  (
    "gs_moved_before_it_is_there", "fipo_jax/paths.py",
    "  copy(source / last, target / last)\n  delete_folder(source, first=last)\n",
    "  delete_folder(source, first=last)\n  copy(source / last, target / last)\n",
    "gcs_test.py::test_setting_aside_that_is_cut_off_loses_no_step", "a kill while a step is set aside loses it",
  ),
)  # fmt: skip
