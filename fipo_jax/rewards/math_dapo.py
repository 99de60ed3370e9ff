r"""The DAPO answer check: the last "Answer:" line, normalised by Minerva's rules, must equal the ground truth.

Source: arXiv 2503.14476 (DAPO); normalisation of arXiv 2206.14858 (Minerva), appendix D.1. Kept to the letter of the
released check, quirks included, so that scores compare with published ones: "10,11" equals "1011", "12." does not
equal "12", `\dfrac` is not `\frac`, "**Answer:** 12" is wrong because of its stars.
"""

from __future__ import annotations

import dataclasses
import re

from fipo_jax.rewards.outcome import Score

NO_ANSWER = "[INVALID]"
TAIL_CHARACTERS = 300  # an answer is looked for at the end only
BOX_TAIL_CHARACTERS = 100  # and a box nearer still, in strict mode

_ANSWER = re.compile(r"answer\s*:\s*([^\n]+)", re.IGNORECASE)

# In this order, everywhere in the text: (what, by what).
_REPLACED = (
  ("an ", ""),
  ("a ", ""),
  (".$", "$"),
  ("\\$", ""),
  ("\\ ", ""),
  (" ", ""),
  ("mbox", "text"),
  (",\\text{and}", ","),
  ("\\text{and}", ","),
  ("\\text{m}", "\\text{}"),
)

# In this order, everywhere, inside words too.
_DELETED = (
  *("square", "ways", "integers", "dollars", "mph", "inches", "hours", "km", "units", "\\ldots"),
  *("sue", "points", "feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds"),
  *("meters", "meals", "edges", "students", "childrentickets", "multiples"),
  *("\\text{s}", "\\text{.}", "\\text{\ns}", "\\text{}^2", "\\text{}^3", "\\text{\n}", "\\text{}"),
  *("\\mathrm{th}", "^\\circ", "^{\\circ}", "\\;", ",\\!", "{,}", '"', "\\dots"),
)

# In this order, one pass each. A dot stops at the end of a line.
_REWRITTEN = (
  (re.compile(r".*?\$(.*?)\$.*"), r"$\1$"),  # only the first formula of a line counts
  (re.compile(r"\\text\{(.*?)\}"), r"\1"),
  (re.compile(r"\\textbf\{(.*?)\}"), r"\1"),
  (re.compile(r"\\overline\{(.*?)\}"), r"\1"),
  (re.compile(r"\\boxed\{(.*)\}"), r"\1"),
  (re.compile(r"frac([^{])(.)"), r"frac{\1}{\2}"),
  (re.compile(r"sqrt([^{])"), r"sqrt{\1}"),
)


def verify(response: str, answer: str, extras: dict | None = None) -> Score:
  """Row of VERIFIERS: +1 when the last "Answer:" line equals the ground truth, else -1. No answer is None here."""
  score = verify_dapo(response, answer)
  return dataclasses.replace(score, pred=None) if score.pred == NO_ANSWER else score


def verify_strict_box(response: str, answer: str, extras: dict | None = None) -> Score:
  r"""Row of VERIFIERS: +1 when the last \boxed{} equals the ground truth character by character, else -1."""
  return verify_dapo(response, answer, strict_box=True)


def verify_dapo(response: str, answer: str, *, strict_box: bool = False) -> Score:
  r"""Scores a response +1 (right) or -1 (wrong).

  Args:
    response: what the model wrote; only its last 300 characters are read.
    answer: ground truth, normalised like the response's answer, not cut.
    strict_box: read the last \boxed{} of the last 100 characters, and normalise nothing.
  Raises: TypeError or AttributeError when an argument is not text, as the released check does.
  """
  tail = response[-TAIL_CHARACTERS:]
  if strict_box:
    pred = last_box(tail[-BOX_TAIL_CHARACTERS:])
    right = pred == answer
  else:
    found = _ANSWER.findall(tail)
    pred = normalize(found[-1] if found else NO_ANSWER)
    right = pred == normalize(answer)
  return Score(score=1.0 if right else -1.0, accuracy=float(right), pred=pred)


def normalize(text: str) -> str:
  """The text with units, articles, spaces and LaTeX dress removed, in the released check's order.

  What follows the last "=" counts; fractions and roots get their braces; commas leave numbers.
  """
  text = text.split("=")[-1]
  for old, new in _REPLACED:
    text = text.replace(old, new)
  for word in _DELETED:
    text = text.replace(word, "")
  for pattern, rewritten in _REWRITTEN:
    text = pattern.sub(rewritten, text)
  text = text.replace("$", "")
  without_commas = text.replace(",", "")
  if without_commas.isdigit():
    text = without_commas
  return text.strip()


def last_box(text: str) -> str | None:
  r"""What stands in the last \boxed{...}; None without one, or when its brace is not closed."""
  start = text.rfind("\\boxed{")
  if start < 0:
    return None
  start += len("\\boxed{")
  depth = 1
  for i in range(start, len(text)):
    depth += {"{": 1, "}": -1}.get(text[i], 0)
    if depth == 0:
      return text[start:i]
  return None
