"""Verifiers that read text as text, by hand."""

import pytest

from fipo_jax.rewards import texts


@pytest.mark.parametrize(
  ("response", "answer", "right", "pred"),
  [
    ("Answer: two  words", "two words", True, "two words"),
    ("Answer: **two words**.", " two   words ", True, "two words"),
    ("so \\boxed{x}", "x", True, "x"),
    ("Answer: x\nand more", "x", True, "x"),
    ("Answer: X", "x", False, "X"),
    ("x", "x", False, None),
  ],
)
def test_exact(response, answer, right, pred):
  found = texts.exact(response, answer)
  assert (found.score, found.accuracy, found.pred) == (1.0 if right else -1.0, float(right), pred)


@pytest.mark.parametrize(
  ("response", "pattern", "right"),
  [("Answer: 12 cm", r"\d+ ?cm", True), ("Answer: about 12 cm", r"\d+ ?cm", False), ("12 cm", r"\d+ ?cm", False)],
)
def test_regex(response, pattern, right):
  assert texts.regex(response, pattern).accuracy == float(right)


def test_a_pattern_that_is_none_is_the_golds_fault():
  with pytest.raises(ValueError, match=r"answer='\(' is not a regular expression"):
    texts.regex("Answer: (", "(")


@pytest.mark.parametrize(
  ("response", "right", "pred"),
  [
    ("<think>a\nb</think>\n<answer> 7 </answer>\n", True, "7"),
    ("<think></think><answer></answer>", True, ""),
    ("<think>a</think><answer>7</answer> bye", False, None),
    ("hm <think>a</think><answer>7</answer>", False, None),
    ("<think>a</think>", False, None),
    ("<answer>7</answer><think>a</think>", False, None),
    ("<think>a</think><answer>7</answer><answer>8</answer>", False, None),
    ("<think><think>a</think><answer>7</answer>", False, None),
    ("", False, None),
  ],
)
def test_form_of_thought_and_answer(response, right, pred):
  found = texts.thought_form(response, "anything")
  assert (found.score, found.accuracy, found.pred) == (float(right), float(right), pred)
