"""Rows of published sets become records: which column is the question, which the ground truth."""

import decimal

import numpy as np
import pytest

from fipo_jax.data import rows
from fipo_jax.data.rows import Columns

USER = [{"role": "user", "content": "q"}]


def read(row, **columns):
  found, origin = rows.record(row, 0, "here", Columns(**columns))
  return found.get("question", found.get("messages")), found["answer"], origin[1]


# One row in the layout of each set, as its card shows it, with made-up contents.
LAYOUTS = {
  "GSM8K": ({"question": "q", "answer": "3 * 400 = <<3*400=1200>>1,200\nIn all.\n#### 1,200"}, "q", "1,200"),
  "MATH-500": (
    {"problem": "q", "solution": r"so \boxed{9}", "answer": r"\frac{1}{2}", "subject": "Algebra", "level": 2,
     "unique_id": "test/algebra/1.json"}, "q", r"\frac{1}{2}",
  ),
  "MATH": ({"problem": "q", "level": "Level 5", "type": "Algebra",
            "solution": r"First \boxed{1}, then \boxed{\frac{a}{b^{2}}}."}, "q", r"\frac{a}{b^{2}}"),
  "DAPO-Math-17k": (
    {"data_source": "math_dapo", "prompt": USER, "ability": "MATH",
     "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"}, "extra_info": {"index": "9a9b6eb4"}},
    USER, "34",
  ),
  "AIME-2024": ({"id": 60, "problem": "q", "solution": "s", "answer": "033", "url": "u", "year": "2024"}, "q", "033"),
  "AIME-2025": ({"problem": "q", "answer": 70, "id": "0"}, "q", "70"),
  "OlympiadBench": ({"question": "q", "final_answer": ["$2$", "$3$"]}, "q", ("$2$", "$3$")),
  "Open-R1-Math-220k": (
    {"problem": "q", "solution": "s", "answer": "D", "problem_type": "Algebra", "source": "amc", "uuid": "u",
     "generations": ["g"], "correctness_math_verify": [True],
     "messages": [*USER, {"role": "assistant", "content": "g"}]},
    "q", "D",
  ),
  "NuminaMath-CoT": (
    {"source": "orca", "problem": "q", "solution": r"so $\boxed{5}$.",
     "messages": [*USER, {"role": "assistant", "content": "g"}]}, "q", "5",
  ),
  "Big-Math": ({"problem": "q", "answer": "7", "source": "s", "domain": ["d"], "llama8b_solve_rate": 0.5}, "q", "7"),
  "DeepScaleR": ({"problem": "q", "answer": "8", "solution": ""}, "q", "8"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_layouts_load_as_they_are(name):
  row, question, answer = LAYOUTS[name]
  assert read(row)[:2] == (question, answer)


def test_columns_are_named_where_they_are_called_otherwise():
  row = {"text": "q", "extra_info": {"gold": 5.0}, "persona": "be brief", "uid": "x/7", "answer": "no"}
  columns = Columns(question="text", answer="extra_info.gold", system="persona", id="uid")
  found, origin = rows.record(row, 4, "here", columns)
  assert (found["question"], found["answer"], found["system"], found["extras"]["id"]) == ("q", "5", "be brief", "x/7")
  assert found["id"] == 4 and origin == ("text", "extra_info.gold")
  for role in ("question", "answer", "system", "id"):
    with pytest.raises(ValueError, match="here: no field 'gone' among 'answer', .*; see data.columns"):
      rows.record(row, 0, "here", Columns(question="text", **{role: "gone"} if role != "question" else {})
                  if role != "question" else Columns(question="gone"))  # fmt: skip


def test_a_named_solution_is_read_by_its_last_box_and_others_after_their_mark():
  row = {"problem": "q", "answer": "not this", "solution": r"\boxed{1} \boxed{2}", "out": "x -> y -> 3 "}
  assert read(row, answer="solution")[1:] == ("2", r"the last \boxed{} of 'solution'")
  assert read(row, answer="out", answer_after="->")[1] == "3"
  assert read(row, answer="out", answer_after="#")[1] == "x -> y -> 3 "
  assert read({"problem": "q", "answer": None, "solution": r"\boxed{ 4 }"})[1] == "4"


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ({"text": "q", "answer": "1"}, "field 'prompt' is missing; of 'answer', 'text', name the question in data.columns"),
    ({"problem": "q", "reply": "1"}, "is missing; of 'problem', 'reply', name the answer in data.columns.answer"),
    ({"problem": "q", "solution": r"no box \boxed{"}, "is missing"),
    ({"prompt": "q\ud83d", "answer": "1"}, r"here: field 'prompt' holds half a character \(\\ud83d\) after 'q'"),
    ({"prompt": [{"role": "user", "content": "q\udc00"}], "answer": "1"}, "field 'prompt' holds half a character"),
    ({"prompt": "q", "answer": "\ud83d"}, "field 'answer' holds half a character"),
    ({"prompt": "q", "answer": ["1", "\ud83d"]}, "field 'answer' holds half a character"),
    ({"prompt": "q", "target": "\ud83d"}, "field 'target' holds half a character"),
    ({"prompt": "q", "solution": "\\boxed{\ud83d}"}, "field 'solution' holds half a character"),
    ({"prompt": b"\xff", "answer": "1"}, "field 'prompt' is no UTF-8 text"),
    ({"prompt": "q", "answer": b"\xff"}, "field 'answer' is no UTF-8 text"),
    ({"prompt": [{"role": "user", "content": [{"type": "image_url"}]}], "answer": "1"}, "field 'prompt' must be text"),
    ({"prompt": [{"role": "user", "content": []}], "answer": "1"}, "field 'prompt' must be text"),
    ({"prompt": 3, "answer": "1"}, "field 'prompt' must be text or a list of {role, content}, got '3'"),
  ],
)
def test_what_cannot_be_a_prompt_or_an_answer_is_one_line(row, message):
  with pytest.raises(ValueError, match=message) as error:
    read(row)
  assert "\n" not in str(error.value) and str(error.value).startswith("here: ")


def test_types_of_tables():
  assert read({"prompt": b"caf\xc3\xa9", "answer": decimal.Decimal("2.50")})[:2] == ("café", "2.50")
  assert read({"prompt": "q", "answer": np.array([3.0, np.float32(4.5)])})[1] == ("3", "4.5")
  assert read({"prompt": "q", "answer": np.int64(3)})[1] == "3"
  parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
  assert read({"prompt": parts, "answer": "1"})[0] == [{"role": "user", "content": "ab"}]
