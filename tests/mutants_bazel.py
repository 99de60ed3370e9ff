"""The rows of `mutants` for Bazel's files and the lock: (name, file, old text, new text, tests that should notice,
why)."""

ROWS = (
  (
    "bazel_dep_missing", "BUILD",
    '"rollout": ":core :models @pypi//jax', '"rollout": ":core @pypi//jax',
    "build_test.py::test_each_file_is_in_one_library_and_deps_are_the_imports", "a test of the sampler finds no models",
  ),
  (
    "bazel_package_unused", "BUILD",
    '"algorithms": ":core @pypi//jax', '"algorithms": ":core @pypi//flax @pypi//jax',
    "build_test.py::test_each_file_is_in_one_library_and_deps_are_the_imports", "what needs what is no longer true",
  ),
  (
    "bazel_glob_of_one_level", "BUILD",
    '["fipo_jax/%s/**/*.py" % name]', '["fipo_jax/%s/*.py" % name]',
    "build_test.py::test_each_file_is_in_one_library_and_deps_are_the_imports", "rewards/symbolic/ is nobody's",
  ),
  (
    "bazel_file_of_two_libraries", "BUILD",
    '    "fipo_jax/collect.py",\n', "",
    "build_test.py::test_each_file_is_in_one_library_and_deps_are_the_imports", "the lowest library needs the highest",
  ),
  (
    "bazel_makes_packages_of_folders", "BUILD",
    "        legacy_create_init = 0,\n        main = \"tests/bazel_main.py\"", "        main = \"tests/bazel_main.py\"",
    "build_test.py::test_programs_and_tests_have_targets", "Bazel adds files to folders",
  ),
  (
    "bazel_program_forgotten", "BUILD",
    'exclude = ["launch/interpreter.py"]', 'exclude = ["launch/interpreter.py", "launch/plan.py"]',
    "build_test.py::test_programs_and_tests_have_targets", "a program has no target",
  ),
  (
    "bazel_golden_files_left_out", "BUILD",
    '            "tests/**",\n', '            "tests/**/*.py",\n',
    "build_test.py::test_programs_and_tests_have_targets", "tests find no golden files in a sandbox",
  ),
  (
    "bazel_hub_of_another_name", "MODULE.bazel",
    'hub_name = "pypi"', 'hub_name = "pip"',
    "build_test.py::test_what_build_loads_is_defined", "no label of a package is found",
  ),
  (
    "bazel_rules_not_named", "MODULE.bazel",
    'bazel_dep(name = "rules_python"', 'bazel_dep(name = "rules_cc"',
    "build_test.py::test_what_build_loads_is_defined", "BUILD loads what nothing defines",
  ),
  (
    "bazel_slow_tests_always", "tests/bazel_main.py",
    'said = ["-q", "-mnot slow", ', 'said = ["-q", ',
    "build_test.py::test_pytest_is_told_what_bazel_says", "bazel test runs into its time limit",
  ),
  (
    "bazel_filter_ignored", "tests/bazel_main.py",
    'said.append(f"-k{word}")', "pass",
    "build_test.py::test_pytest_is_told_what_bazel_says", "--test_filter runs everything",
  ),
  (
    "bazel_lock_without_extras", "tests/build_test.py",
    " and extras <= entry.extras)", ")",
    "build_test.py::test_what_a_lock_does_not_meet", "a lock without what an extra needs passes",
  ),
  (
    "bazel_lock_of_another_minor", "tests/build_test.py",
    "has[: len(least) - 1] == least[:-1] and ", "",
    "build_test.py::test_what_a_lock_does_not_meet", "a lock of the next release passes",
  ),
  (
    "bazel_lock_drops_extras", "tests/lock.py",
    '      entry.extras.update(re.findall(r"[^, ]+", extras or ""))\n', "",
    "build_test.py::test_entries_of_one_package_become_one", "packages that an extra needs are missing in Bazel",
  ),
  (
    "bazel_lock_keeps_the_first", "tests/lock.py",
    "      if entry.version != version:\n", "      if False:\n",
    "build_test.py::test_entries_of_one_package_become_one", "one of two versions is dropped in silence",
  ),
)  # fmt: skip
