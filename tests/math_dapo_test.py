"""The DAPO check against every recorded line of the released one."""

import json
import pathlib

import pytest

from fipo_jax.rewards import math_dapo

GOLDEN = pathlib.Path(__file__).parent / "golden"


def lines(name):
  return [json.loads(line) for line in (GOLDEN / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("case", lines("math_dapo_verifier.jsonl"), ids=lambda case: case["id"])
def test_verifier_golden(case):
  solution, truth, strict = case["solution_str"], case["ground_truth"], case["strict_box_verify"]
  if "raises" in case:
    expected = {"TypeError": TypeError, "AttributeError": AttributeError}[case["raises"]]
    with pytest.raises(expected):
      math_dapo.verify_dapo(solution, truth, strict_box=strict)
    return
  found = math_dapo.verify_dapo(solution, truth, strict_box=strict)
  assert (found.score, bool(found.accuracy), found.pred) == (
    case["score"], case["acc"], case["pred"]
  )  # fmt: skip


def test_normalize_golden():
  cases = lines("math_dapo_normalize.jsonl")
  assert len(cases) > 30
  assert [math_dapo.normalize(c["text"]) for c in cases] == [c["normalized"] for c in cases]


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("x = \\frac34", "\\frac{3}{4}"),
    ("so $a$ and $b$\nthen $c$ or $d$", "a\nc"),  # line by line
    ("\\text{a}\\text{b}", "ab"),
    ("\\boxed{1}+\\boxed{2}", "1}+\\boxed{2"),  # a box reaches to the last brace
    ("\u0661,\u0662", "\u0661\u0662"),  # digits of other scripts
    (",", ","),
  ],
)
def test_normalize_by_hand(text, expected):
  assert math_dapo.normalize(text) == expected


def test_only_the_last_300_characters_count():
  assert math_dapo.verify("Answer: 4" + "\n" + "z" * 290, "4").accuracy == 1.0
  assert math_dapo.verify("Answer: 4" + "\n" + "z" * 292, "4").accuracy == 0.0


def test_long_s_counts_as_s():
  assert math_dapo.verify("an\u017fwer: 4", "4").accuracy == 1.0


@pytest.mark.parametrize(
  ("text", "expected"),
  [("\\boxed{a{b}c} d", "a{b}c"), ("\\boxed{}", ""), ("\\boxed{a{b}", None), ("\\boxed", None)],
)
def test_last_box(text, expected):
  assert math_dapo.last_box(text) == expected


def test_rows_of_the_table():
  assert math_dapo.verify("Answer: 4", "4", {}).score == 1.0
  assert math_dapo.verify_strict_box("Answer: 4", "4", {}).score == -1.0
  assert math_dapo.verify_strict_box("\\boxed{4}", "4", {}).score == 1.0


def test_a_missing_answer_is_none_outside_and_invalid_inside():
  assert math_dapo.verify_dapo("nothing", "4").pred == math_dapo.NO_ANSWER
  for verify in (math_dapo.verify, math_dapo.verify_strict_box):
    assert verify("nothing", "4").pred is None
  assert math_dapo.verify("nothing", math_dapo.NO_ANSWER).accuracy == 1.0  # the released check's quirk
