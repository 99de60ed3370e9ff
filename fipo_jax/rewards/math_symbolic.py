r"""Symbolic answer check: 1/2, 0.5 and \frac{1}{2} are the same number, 2\pi and 2 are not.

A verdict is about the whole answer. The answer and the ground truth are read by one function, `reading.read`, and their
trees compared:
  numbers and formulas   by value (`numeric`): rational ones exactly; a decimal of six figures or more is what rounds to
                         it (0.333333 is 1/3), a shorter one is exact. Units, currency and prose are dress (`dress`):
                         5 cm is 5, and 5 m. \log is to base 10. 1/2x is half of x, a/2x is a over 2x; 1011_2 is 11
  percentages, degrees   50% is 50 and 1/2, as graders of MATH have it; 90° is 90 and pi/2. 50% is not 5000%
  lists "1, 2", "1 or 2" in any order, and equal to the set {1, 2}; in this order equal to the tuple (1, 2)
  tuples, matrices       entry by entry; sets in any order, each element once
  intervals, unions      (a, b) is an interval or a pair; unions by what they contain; 1 < x < 2 is (1, 2)
  equations              x = 5 is 5; two equations are equal up to a factor, y = 2x + 1 and 2x - y + 1 = 0
  inequalities           up to a positive factor, and read from either end
  choices                (A), A, "A) 5"
  words                  letter by letter, small and capital letters alike
What the grammar does not know (sums, integrals, cases) is right when it is the same text. Answers are no programs:
nothing here evaluates text, and sizes are bounded before anything is computed.
"""

from __future__ import annotations

from fipo_jax.rewards.answers import answer_line, undress
from fipo_jax.rewards.outcome import Score
from fipo_jax.rewards.symbolic import canonical, numeric, reading
from fipo_jax.rewards.symbolic.equality import equal

load = numeric.load
SHOWN = 200  # characters of a ground truth in an error


def verify(response: str, answer: str, extras: dict | None = None) -> Score:
  """+1 when the response's answer (see `answers.answer_line`) is mathematically equal to the ground truth, else -1.

  pred: the answer in a form that equal values share, as far as possible; the answer's text where it is no mathematics.
  Raises: ValueError when the ground truth itself cannot be read.
  """
  load()
  gold_text = undress(answer)
  gold = reading.read(gold_text)
  if gold is None:
    shown = answer if len(answer) <= SHOWN else answer[:SHOWN] + "..."
    raise ValueError(f"answer={shown!r} cannot be read as mathematics; use verifier 'math_dapo'.")
  text = answer_line(response)
  if text is None:
    return Score(score=-1.0, accuracy=0.0, pred=None)
  found = reading.read(text)
  if found is None:
    return Score(score=-1.0, accuracy=0.0, pred=text)
  right = equal(gold, found) or reading.compact(gold_text) == reading.compact(text)
  return Score(score=1.0 if right else -1.0, accuracy=float(right), pred=canonical.text(found))
