"""The symbolic check: equal values are equal, whatever they look like."""

import sys

import pytest

from fipo_jax.rewards import math_symbolic


@pytest.mark.parametrize(
  ("response", "answer", "right"),
  [
    ("so\nAnswer: 1/2", "0.5", True),
    (r"hence \boxed{\frac{1}{2}}", "0.5", True),
    ("Answer: $x^2+1$", "1+x^2", True),
    ("Answer: 1,000", "1000", True),
    ("Answer: 0.51", "0.5", False),
    ("Answer: 3\nAnswer: 4", "3", False),  # the last one counts
    ("Answer: 3\nAnswer: 4", "4", True),
    ("I do not know", "4", False),
    ("", "4", False),
  ],
)
def test_by_hand(response, answer, right):
  found = math_symbolic.verify(response, answer)
  assert (found.score, found.accuracy) == ((1.0, 1.0) if right else (-1.0, 0.0))


def test_pred():
  assert math_symbolic.verify("Answer: 12", "12").pred == "12"
  assert math_symbolic.verify("no", "12").pred is None


def test_an_unreadable_ground_truth_is_an_error():
  with pytest.raises(ValueError, match="answer='' cannot be read as mathematics"):
    math_symbolic.verify("Answer: 1", "")


def test_no_signals(monkeypatch):
  """A time limit by signal would fail off the main thread, and fight with the caller's."""
  import signal

  def refuse(*_):
    raise AssertionError("a signal was set")

  monkeypatch.setattr(signal, "signal", refuse)
  monkeypatch.setattr(signal, "alarm", refuse)
  assert math_symbolic.verify("Answer: 2/4", "1/2").accuracy == 1.0


def test_missing_package(monkeypatch):
  monkeypatch.setitem(sys.modules, "math_verify", None)
  math_symbolic.load.cache_clear()
  with pytest.raises(ValueError, match="needs the package math-verify"):
    math_symbolic.verify("Answer: 1", "1")
  math_symbolic.load.cache_clear()
