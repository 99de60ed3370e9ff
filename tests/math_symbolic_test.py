"""The symbolic check: equal values are equal, whatever they look like, and a part of an answer is not the answer."""

import builtins
import json
import pathlib
import sys
import time

import hostile
import pytest

from fipo_jax.rewards import math_symbolic
from fipo_jax.rewards.symbolic import numeric

TABLE = [
  json.loads(line)
  for line in (pathlib.Path(__file__).parent / "golden" / "symbolic_lines.jsonl").read_text().splitlines()
]


def judged(response, answer):
  return math_symbolic.verify(response, answer).accuracy == 1.0


def test_the_table_of_lines():
  """Forms that answers of GSM8K, MATH, AIME, AMC and Olympiads take, right and wrong ones."""
  assert len(TABLE) >= 150 and len({(row["response"], row["answer"]) for row in TABLE}) == len(TABLE)
  kinds = {row["kind"] for row in TABLE}
  assert len(kinds) >= 14
  assert 50 < sum(row["right"] for row in TABLE) < len(TABLE) - 50
  wrong = [row for row in TABLE if judged(row["response"], row["answer"]) != row["right"]]
  assert wrong == []


def test_equality_has_no_sides():
  """Both sides are read by one rule: a ground truth written as an answer, and an answer as ground truth, agree too."""
  rows = [row for row in TABLE if row["response"].startswith("Answer: ") and "\n" not in row["response"]]
  differ = []
  for row in rows:
    answer = row["response"].removeprefix("Answer: ")
    if not answer or "(there are" in answer or "(since" in answer:
      continue
    try:
      if judged(f"Answer: {row['answer']}", answer) != row["right"]:
        differ.append(row)
    except ValueError:  # what is no mathematics cannot be a ground truth
      assert not row["right"]
  assert differ == []


def test_the_dapo_form_of_verdicts():
  found = math_symbolic.verify("Answer: 12", "12")
  assert (found.score, found.accuracy, found.pred) == (1.0, 1.0, "12")
  found = math_symbolic.verify("Answer: 13", "12")
  assert (found.score, found.accuracy, found.pred) == (-1.0, 0.0, "13")
  assert math_symbolic.verify("no", "12").pred is None


@pytest.mark.parametrize(
  "forms", [("1/2", r"\frac{1}{2}", "0.5"), ("3, 1", "1 or 3", r"\{1, 3\}"), ("x = 7", "7", "7.")]
)
def test_equal_answers_vote_together(forms):
  assert len({math_symbolic.verify(f"Answer: {form}", "1").pred for form in forms}) == 1


def test_an_unreadable_ground_truth_is_an_error():
  with pytest.raises(ValueError, match="cannot be read as mathematics; use verifier 'math_dapo'"):
    math_symbolic.verify("Answer: 1", "")


def test_no_answer_is_a_program(monkeypatch):
  """Nothing that evaluates text is reached, whatever the answer; and no signal is set, which would fail in threads."""
  import signal

  import sympy
  import sympy.parsing.sympy_parser

  reached = []

  def refuse(name):
    return lambda *_, **__: reached.append(name) or 0

  math_symbolic.load()
  answers = [f"Answer: {text}" for text in hostile.corpus("/nowhere/canary") if len(text) < 2000]
  for module, name in (
    (builtins, "eval"), (builtins, "exec"), (builtins, "compile"), (sympy, "sympify"), (sympy, "parse_expr"),
    (sympy.parsing.sympy_parser, "parse_expr"), (signal, "signal"), (signal, "alarm"), (builtins, "open"),
  ):  # fmt: skip
    monkeypatch.setattr(module, name, refuse(name))
  right = [text for text in answers if math_symbolic.verify(text, "271828").accuracy]
  monkeypatch.undo()
  assert reached == [] and right == [] and len(answers) > 150


def test_the_cost_of_an_answer_is_its_length():
  """In CPU time, against reading the same number of characters: no brackets, digits or powers cost more."""
  math_symbolic.verify("Answer: 1", "1")
  slow = []
  for text in hostile.corpus("/nowhere/canary"):
    text = text[:200_000]
    for response in (f"Answer: {text}", f"\\boxed{{{text}}}"):
      begin = time.process_time()
      assert math_symbolic.verify(response, "271828").accuracy == 0.0
      if (seconds := time.process_time() - begin) > 2.0:
        slow.append((response[:60], seconds))
  assert slow == []


def test_missing_package(monkeypatch):
  monkeypatch.setitem(sys.modules, "mpmath", None)
  numeric.load.cache_clear()
  with pytest.raises(ValueError, match="needs the package mpmath"):
    math_symbolic.verify("Answer: 1", "1")
  monkeypatch.undo()
  numeric.load.cache_clear()
