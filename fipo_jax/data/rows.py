r"""A row of somebody's table -> a record: which column is the question, which the ground truth.

Published sets name them differently. What `Columns` leaves open is found row by row: the question in `prompt` (text,
or messages), `question` or `problem`; the ground truth in `answer`, `final_answer`, `reward_model.ground_truth`, or the
last \boxed{} of `solution`.
"""

from __future__ import annotations

import dataclasses
import decimal
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fipo_jax.data.records import Record
from fipo_jax.text import last_box, whole

QUESTIONS = ("prompt", "question", "problem")
ANSWERS = ("answer", "final_answer", "reward_model.ground_truth")
SOLUTION = "solution"  # whose last \boxed{} is the ground truth where none of ANSWERS is
READ = (*QUESTIONS, *ANSWERS, SOLUTION, "target", "verifier", "data_source", "extra_info")  # columns that may matter


@dataclasses.dataclass(frozen=True)
class Columns:
  """Names of columns, "a.b" for field b of a record in column a; "" leaves the choice to the row.

  system: text of the system's turn; "" = none. id: what the user knows the row by, kept in extras; "" = none.
  answer_after: of an answer that contains it, only what follows its last occurrence counts ("####" in GSM8K).
  """

  question: str = ""
  answer: str = ""
  system: str = ""
  id: str = ""
  answer_after: str = "####"

  def names(self) -> set[str]:
    """The columns of a table that may be read."""
    own = (self.question, self.answer, self.system, self.id)
    return {name.split(".")[0] for name in (*READ, *own) if name}


def record(row: dict[str, Any], number: int, where: str, columns: Columns) -> tuple[Record, tuple[str, str]]:
  """The record of a row, and which columns its question and its ground truth came from.

  Raises: ValueError naming place and field for what is missing, is no text, or holds half a character.
  """
  asked, prompt = _question(row, where, columns)
  target = row.get("target")
  if target is not None and not isinstance(target, str):
    raise ValueError(f"{where}: field 'target' must be text, got {target!r}.")
  answered, answer = _answer(row, where, columns)
  if answer is None and target is not None:
    answer = ""  # a text to imitate needs no ground truth
  if answer is None:
    missing(row, where, columns)
  data_source, extra = row.get("data_source"), row.get("extra_info")
  extras = {**(extra if isinstance(extra, dict) else {}), "data_source": data_source}
  if columns.id:
    extras["id"] = _at(row, columns.id, where)
  found = {
    "id": number,
    "messages" if isinstance(prompt, list) else "question": prompt,
    "answer": answer,
    "verifier": row.get("verifier") or _verifier_for(data_source),
    "extras": extras,
  }
  if columns.system and (system := _at(row, columns.system, where)) is not None:
    found["system"] = _text(system, where, columns.system)
  if target is not None:
    found["target"] = whole(target, f"{where}: field 'target'")
  return found, (asked, answered)


def _question(row: dict[str, Any], where: str, columns: Columns) -> tuple[str, str | list[dict[str, str]]]:
  """(column, prompt): non-empty text, or a non-empty list of {role, content}."""
  name = columns.question or next((name for name in QUESTIONS if row.get(name) is not None), QUESTIONS[0])
  prompt = _at(row, name, where) if columns.question else row.get(name)
  if prompt is None:
    raise ValueError(f"{where}: field {name!r} is missing{_instead(row, 'question', columns.question)}.")
  if isinstance(prompt, str | bytes) and prompt.strip():
    return name, _text(prompt, where, name)
  if isinstance(prompt, list) and prompt and all(isinstance(m, dict) for m in prompt):
    messages = [{"role": m.get("role"), "content": _content(m.get("content"), where, name)} for m in prompt]
    if all(isinstance(m["role"], str) and isinstance(m["content"], str) for m in messages):
      return name, messages
  raise ValueError(f"{where}: field {name!r} must be text or a list of {{role, content}}, got {str(prompt)[:60]!r}.")


def _content(content: Any, where: str, name: str) -> str | None:
  """Text of a message; parts [{"type": "text", "text": ...}, ...] are joined. None for anything else."""
  if isinstance(content, list) and content:
    parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    content = "".join(parts) if all(isinstance(part, str) for part in parts) else None
  return whole(content, f"{where}: field {name!r}") if isinstance(content, str) else None


def _answer(row: dict[str, Any], where: str, columns: Columns) -> tuple[str, str | tuple[str, ...] | None]:
  """(column, ground truth), None where there is none."""
  if columns.answer:
    given = _at(row, columns.answer, where)
    if columns.answer.split(".")[-1] == SOLUTION and isinstance(given, str) and (box := last_box(given)):
      return _boxed(columns.answer), whole(box.strip(), f"{where}: field {columns.answer!r}")
    return _cut(columns.answer, given, columns), gold(given, where, after=columns.answer_after, field=columns.answer)
  for name in ANSWERS:
    if (answer := gold(given := _at(row, name), where, after=columns.answer_after, field=name)) is not None:
      return _cut(name, given, columns), answer
  box = last_box(row[SOLUTION]) if isinstance(row.get(SOLUTION), str) else None
  return _boxed(SOLUTION), whole(box.strip(), f"{where}: field {SOLUTION!r}") or None if box else None


def _cut(name: str, given: Any, columns: Columns) -> str:
  """What of a column is the answer."""
  after = columns.answer_after
  return f"what follows {after!r} in {name!r}" if after and isinstance(given, str) and after in given else name


def told(found: Mapping[tuple[str, str], int]) -> list[str]:
  """What is to be said of where questions and ground truths were found, and in how many rows; nothing of the usual."""
  if not found.keys() - {("prompt", "answer")}:
    return []
  quoted = lambda origin: origin if " " in origin else repr(origin)
  each = [f"question from {asked!r}, answer from {quoted(answered)} in {n}" for (asked, answered), n in found.items()]
  return [f"{'; '.join(each)} row{'s' * (sum(found.values()) > 1)}"]


def _boxed(name: str) -> str:
  return rf"the last \boxed{{}} of {name!r}"


def missing(row: dict[str, Any], where: str, columns: Columns):
  """Raises ValueError: the row has no ground truth."""
  names = (columns.answer,) if columns.answer else ANSWERS
  given = next((value for name in names if (value := _at(row, name)) is not None), None)
  found = "" if given is None else f", it is {given!r}"
  said = repr(columns.answer) if columns.answer else "'answer' (or reward_model.ground_truth)"
  raise ValueError(f"{where}: field {said} is missing{found}{_instead(row, 'answer', columns.answer)}.")


def _instead(row: dict[str, Any], role: str, named: str) -> str:
  """What to do about a missing column, as the end of a sentence."""
  others = sorted(name for name, value in row.items() if value is not None)
  if named or not others:
    return ""
  return f"; of {', '.join(map(repr, others[:8]))}, name the {role} in data.columns.{role}"


def gold(value: Any, where: str, *, after: str = "", field: str = "answer") -> str | tuple[str, ...] | None:
  """A ground truth as text, None where there is none: null, NaN, an infinity, empty text or list.

  204.0 is 204: tables make whole numbers floats when one of a column is missing, and no response says ".0".
  Args: after: only what follows its last occurrence in a text counts. field: its name, in errors.
  """
  match value:
    case None:
      return None
    case bool() | np.bool_():
      raise ValueError(f"{where}: field {field!r} must be text, a number or a list of them, got {value!r}.")
    case str() | bytes():
      value = _text(value, where, field)
      value = value.rpartition(after)[2].strip() if after and after in value else value
      return value if value.strip() else None
    case int() | np.integer():
      return str(value)
    case float() | decimal.Decimal() | np.floating():
      if not math.isfinite(value):
        return None
      return str(int(value)) if value == int(value) else str(value)
    case list() | tuple() | np.ndarray():
      each = (gold(one, where, after=after, field=field) for one in value)
      found = dict.fromkeys(text for text in each if text is not None)
      if any(isinstance(text, tuple) for text in found):
        raise ValueError(f"{where}: field {field!r} is a list of lists, {str(value)[:60]}; one list of them is read.")
      return (next(iter(found)) if len(found) == 1 else tuple(found)) or None
  raise ValueError(f"{where}: field {field!r} must be text, a number or a list of them, got {value!r}.")


def _verifier_for(data_source: str | None) -> str | None:
  """The routing of the DAPO files: math_dapo, dapo_math and AIME questions go to the DAPO check."""
  if isinstance(data_source, str) and data_source.lower().startswith(("math_dapo", "dapo_math", "aime")):
    return "math_dapo"
  return None


def _at(row: dict[str, Any], name: str, where: str = "") -> Any:
  """The value of a column, or of a field of a record in it; None where there is none.

  where: raise ValueError, naming it, when the row has no such column.
  """
  value = row
  for key in name.split("."):
    if not isinstance(value, dict) or key not in value:
      if where:
        raise ValueError(f"{where}: no field {name!r} among {', '.join(map(repr, sorted(row)))}; see data.columns.")
      return None
    value = value[key]
  return value


def _text(value: Any, where: str, field: str) -> str:
  if isinstance(value, bytes):
    try:
      value = value.decode("utf-8")
    except UnicodeDecodeError as error:
      raise ValueError(f"{where}: field {field!r} is no UTF-8 text ({error}).") from error
  if not isinstance(value, str):
    raise ValueError(f"{where}: field {field!r} must be text, got {value!r}.")
  return whole(value, f"{where}: field {field!r}")
