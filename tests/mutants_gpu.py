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
)
