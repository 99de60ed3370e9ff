"""Reasoning-gym's own scorers: each task knows which answers it accepts. Where its scorer is no judge, ours is."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable

from fipo_jax.rewards import answers, gym_parse
from fipo_jax.rewards.outcome import Score

# An answer longer than this, and than 20 times the ground truth, is not read: no task asks for one.
ANSWER_CHARACTERS = 10_000
LINE_CHARACTERS = 2_000  # what a line is judged by, when it is decided whether it still belongs to the answer

_FENCE = re.compile(r"(?:[^\n]*:[ \t]*\n\s*)?```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_RULE = re.compile(r"([-*_=#~`])\1{2,}")  # a line drawn across the page
_WORD = re.compile(r"[^\W\d_]{2,}")  # single letters are names of things in many tasks
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_BRACKETS = dict.fromkeys("([{", 1) | dict.fromkeys(")]}", -1)

# Answers that are not handed to the library, by task: they cost it minutes, or deceive it.
_REFUSED = {
  "coin_flip": re.compile(r"e[-+]?\d{4}", re.IGNORECASE),  # a fraction with so many digits
  "complex_arithmetic": re.compile(r"nan", re.IGNORECASE),  # min(1, nan) is 1
  "rubiks_cube": re.compile(r"\d\d"),  # so many turns
  "rush_hour": re.compile(r"\d\d"),  # so many steps
}

# How scorers of the library fail on text that is no answer.
_NO_ANSWER = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def verify(response: str, answer: str, extras: dict) -> Score:
  """The task's score in [0, 1] of the answer (see `extract_answer`); accuracy is 1 only at full score.

  The library's `score_answer` decides, except for tasks where that would run the answer as a program or is deceived by
  it (see `scorer`). Text that it cannot read scores 0, as does a response without an answer.

  Args:
    answer: the ground truth as text, "" where the task has none.
    extras: {"task": name, "entry": the problem as the task made it}, from the source `reasoning_gym`.
  Raises: ValueError when the extras lack them or the task is unknown; what the library raises for a broken entry.
  """
  if "task" not in extras or "entry" not in extras:
    raise ValueError("verifier 'gym' needs extras['task'] and extras['entry']; use source 'reasoning_gym'.")
  task, entry = extras["task"], extras["entry"]
  judge = scorer(entry["metadata"]["source_dataset"] if task == "composite" else task)
  pred = extract_answer(response, answer)
  if pred is None or len(pred) > _longest(answer):
    return Score(0.0, 0.0, pred)
  try:
    score = float(judge(pred, entry))
  except _NO_ANSWER:
    judge(entry["answer"], entry)  # raises where the entry is at fault, not the answer
    score = 0.0
  if not 0.0 <= score <= 1.0:  # sums of fractions and exponentials that only wrong answers reach, and NaN
    score = 0.0
  return Score(score, float(score == 1.0), pred)


def write(answer: str, extras: dict) -> str | None:
  """A response that says this ground truth; None for a task whose problems have none (rush_hour, graph_color, ...)."""
  return f"Answer:\n{answer}" if answer.strip() else None


def extract_answer(response: str, answer: str = "") -> str | None:
  """The one text that is judged: what follows the last "Answer:", without what is not part of it; None without it.

  Of a fenced block that comes first, its content; else the lines that belong together (`_lines`). Around it emphasis,
  code marks, `$`, a box and a closing dot go, unless the ground truth has them. Only the form decides, and nothing is
  tried twice: of several answers in several lines the first counts, or all of them, which is right nowhere.

  Args:
    answer: the ground truth. It tells words of an answer from prose, and whether a dot belongs to it.
  """
  text = answers.after_label(response)
  if text is None:
    return None
  text = text[: _longest(answer) + 1].split("</answer>", 1)[0].replace("\r\n", "\n").strip()
  fenced = _FENCE.match(text)
  text = fenced[1].strip() if fenced else _lines(text, answer)
  if len(text) > _longest(answer):
    return text
  plain = _undressed(text)
  if answer.strip() and answer.strip() in text and plain.rstrip(". ") == _undressed(answer).rstrip(". "):
    return answer
  return plain or None


def _lines(text: str, answer: str) -> str:
  """The first line, and those after it that go on with it.

  A line goes on while a bracket with which the answer began is open. Else it does when all its words are words of the
  ground truth (numbers and single letters are no words), or when it is one word like the word above it. A line with "="
  (unless the ground truth has one), or one drawn across the page, does not. An empty line ends an answer unless the
  ground truth has several lines.
  """
  words = set(_WORD.findall(answer.lower()))
  several = "\n" in answer
  first, *rest = text.split("\n")
  kept, depth = [first], _opened(first) if first[:1] in ("[", "{", "(") else 0
  for number, line in enumerate(rest):
    if depth > 0:
      depth += _opened(line)
    elif not line.strip():
      if not several:
        break
    elif not _goes_on(line[:LINE_CHARACTERS], rest[number - 1] if number else first, words, answer):
      break
    kept.append(line)
  return "\n".join(kept).strip()


def _goes_on(line: str, above: str, words: set[str], answer: str) -> bool:
  if _RULE.fullmatch(line.strip()) or ("=" in line and "=" not in answer):
    return False
  if all(word in words for word in _WORD.findall(line.lower())):
    return True
  kind = _kind(line)
  return kind is not None and kind == _kind(above) and (kind == "UPPER" or len(words) != 1)


def _kind(line: str) -> str | None:
  """How the only word of a line is written; None when there is more."""
  word = line.strip().rstrip(",;")
  if not _WORD.fullmatch(word):
    return None
  return "UPPER" if word.isupper() else "lower" if word.islower() else "Title"


def _opened(line: str) -> int:
  return sum(_BRACKETS.get(character, 0) for character in _STRING.sub("", line))


def _undressed(text: str) -> str:
  r"""`answers.undress`, and without a \boxed{} around it and marks at one end alone.

  Emphasis may have begun before the label, and may surround powers: "**Answer: 2*x**2**".
  """
  while True:
    before = text
    text = answers.undress(text)
    for mark in ("**", "__", "`"):
      text = text.removeprefix(mark).removesuffix(mark)
    if text.startswith(r"\boxed{") and text.endswith("}"):
      text = answers.last_box(text) or ""
    if text == before:
      return text


def _longest(answer: str) -> int:
  return max(ANSWER_CHARACTERS, 20 * len(answer))


@functools.cache
def load():
  """The library, imported when first needed; takes a second."""
  logging.getLogger("matplotlib").setLevel(logging.ERROR)  # comes along; that it may write no cache is no news
  try:
    import reasoning_gym
  except ImportError as error:
    raise ValueError(f"verifier 'gym' needs the package reasoning-gym ({error}).") from error
  return reasoning_gym


@functools.cache
def scorer(task: str) -> Callable[[str, dict], float]:
  """(answer, entry) -> score of a task: `gym_parse.SCORERS`, else the library's; built once, some read word lists.

  Raises: ValueError for a task that the library does not have.
  """
  library = load()
  if task in gym_parse.SCORERS:
    return gym_parse.SCORERS[task]
  if task == "game_of_life_halting":
    return _halting
  try:
    judge = library.get_score_answer_fn(task)
  except ValueError as error:
    raise ValueError(f"extras['task']={task!r}: reasoning-gym has no such task ({error}).") from error
  refused = _REFUSED.get(task)
  if refused is None:
    return judge
  return lambda answer, entry: 0.0 if answer and refused.search(answer) else judge(answer, entry)


def _halting(answer: str, entry: dict) -> float:
  """True or False. The library takes both sides' truth as Python objects: any text would be right."""
  return float(answer.strip().lower() == str(entry["answer"]).lower())
