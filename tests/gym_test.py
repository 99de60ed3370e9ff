"""Reasoning-gym scoring: the answer line, partial credit, accuracy."""

import pytest

from fipo_jax.data.sources import reasoning_gym
from fipo_jax.rewards import gym


@pytest.mark.parametrize(
  ("response", "lines", "expected"),
  [
    ("Answer: 4", 1, "4"),
    ("12+3=15\nAnswer: 4\nAnswer:   5  \nthe end", 1, "5"),
    ("Final ANSWER : 5", 1, "5"),
    ("Answer:\n\n 7", 1, "7"),
    ("Answer: 1 2\n3 4\nbye", 2, "1 2\n3 4"),
    ("Answer:", 1, None),
    ("the result is 4", 1, None),
    ("", 1, None),
  ],
)
def test_extract_answer(response, lines, expected):
  assert gym.extract_answer(response, lines) == expected


@pytest.mark.parametrize("task", ["chain_sum", "letter_counting", "spell_backward", "mini_sudoku"])
def test_the_ground_truth_of_a_task_is_right(task):
  for record in reasoning_gym(task, 2, 0):
    found = gym.verify(f"I think\nAnswer: {record['answer']}", record["answer"], record["extras"])
    assert (found.score, found.accuracy, found.pred) == (1.0, 1.0, record["answer"])


def test_wrong_and_missing_answers():
  record = reasoning_gym("chain_sum", 1, 0)[0]
  wrong = gym.verify(f"Answer: {int(record['answer']) + 1}", record["answer"], record["extras"])
  assert wrong.score < 1.0 and wrong.accuracy == 0.0
  none = gym.verify(record["answer"], record["answer"], record["extras"])
  assert (none.score, none.accuracy, none.pred) == (0.0, 0.0, None)


def test_partial_credit_is_not_accuracy(monkeypatch):
  monkeypatch.setattr(gym, "scorer", lambda task: lambda answer, entry: 0.9)
  found = gym.verify("Answer: 4", "5", {"task": "t", "entry": {}})
  assert (found.score, found.accuracy) == (0.9, 0.0)


def test_extras_are_required():
  with pytest.raises(ValueError, match="use source 'reasoning_gym'"):
    gym.verify("Answer: 1", "1", {})
