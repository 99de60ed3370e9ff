"""Runs pytest on the files named: the entry point of BUILD's test targets."""

import sys

import pytest

if __name__ == "__main__":
  sys.exit(pytest.main(["-q", *sys.argv[1:]]))
