"""Runs pytest on the files named: the entry point of BUILD's test targets.

The tests that are not slow; `--test_arg=-mslow` runs the others, `--test_filter=WORD` those with WORD in their names.
"""

import os
import sys

import pytest


def arguments(given: list[str], environ: dict[str, str]) -> list[str]:
  """Of pytest: what Bazel says by environment variables, then what the target and the command line name."""
  said = ["-q", "-mnot slow", "-pno:cacheprovider"]  # the sources may not be writable
  if word := environ.get("TESTBRIDGE_TEST_ONLY"):
    said.append(f"-k{word}")
  if report := environ.get("XML_OUTPUT_FILE"):
    said.append(f"--junitxml={report}")
  return [*said, *given]


if __name__ == "__main__":
  code = pytest.main(arguments(sys.argv[1:], os.environ))
  if code == pytest.ExitCode.NO_TESTS_COLLECTED:
    print("No test of this file is meant; --test_arg=-mslow runs the slow ones.")
    code = 0
  sys.exit(code)
