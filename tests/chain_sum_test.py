"""Noisy worked solutions: correct where no error was asked for, wrong as often as asked."""

import re

import pytest

from fipo_jax.data import chain_sum
from fipo_jax.data.chain_sum import chain_sum_solutions
from fipo_jax.data.tokenizer import characters

THREE = {"min_terms": 3, "max_terms": 3, "min_digits": 2, "max_digits": 2}
ONLY = {style: {style: 1.0} for style in chain_sum.STYLES}


def answer(record):
  return record["target"].rpartition("Answer: ")[2]


def accuracy(records):
  return sum(answer(r) == r["answer"] for r in records) / len(records)


def test_parse():
  assert chain_sum.parse("34 + 7 - -12") == (34, [("+", 7), ("-", -12)])


@pytest.mark.parametrize("style", chain_sum.STYLES)
def test_without_noise_everything_is_right(style):
  records = chain_sum_solutions(50, 3, mix=ONLY[style], direct_error=0, step_error=0)
  assert accuracy(records) == 1.0
  for record in records:
    assert record["extras"]["style"] == style
    assert "\nno\n" not in record["target"]
    for left, op, right, result in re.findall(r"(-?\d+)([+-])(-?\d+)=(-?\d+)", record["target"]):
      assert int(left) + int(op + "1") * int(right) == int(result)


def test_forms():
  worked = chain_sum_solutions(1, 0, THREE, ONLY["worked"], step_error=0)[0]
  first, ((op1, b), (op2, c)) = chain_sum.parse(worked["question"].removesuffix(" ="))
  middle = first + int(op1 + str(b))
  end = middle + int(op2 + str(c))
  assert worked["target"] == f"{first}{op1}{b}={middle}\n{middle}{op2}{c}={end}\nAnswer: {end}"
  checked = chain_sum_solutions(1, 0, THREE, ONLY["checked"], step_error=0)[0]
  undo1, undo2 = ("-" if op == "+" else "+" for op in (op2, op1))
  assert checked["target"] == (
    f"{first}{op1}{b}={middle}\n{middle}{op2}{c}={end}\nCheck:\n{end}{undo1}{c}={middle}\n"
    f"{middle}{undo2}{b}={first}\nok\nAnswer: {end}"
  )


def test_certain_errors():
  assert accuracy(chain_sum_solutions(50, 0, THREE, ONLY["direct"], direct_error=1)) == 0.0
  # A wrong line is carried on: the answer is that of the last line, not of the question.
  for record in chain_sum_solutions(20, 0, THREE, ONLY["worked"], step_error=1):
    lines = record["target"].splitlines()
    assert lines[1].startswith(lines[0].rpartition("=")[2])
    assert lines[1].rpartition("=")[2] == answer(record)


def test_the_default_mix_leaves_much_to_gain():
  records = chain_sum_solutions(1500, 1, THREE)
  by_style = {s: [r for r in records if r["extras"]["style"] == s] for s in chain_sum.STYLES}
  assert 0.4 < accuracy(records) < 0.6
  assert accuracy(by_style["direct"]) < 0.2
  assert 0.75 < accuracy(by_style["worked"]) < accuracy(by_style["checked"])
  assert 0.51 < len(by_style["direct"]) / len(records) < 0.59


def test_a_failed_check_without_a_second_attempt_keeps_its_answer():
  records = chain_sum_solutions(200, 0, THREE, ONLY["checked"], step_error=0.3, fix=0.0)
  failed = [r for r in records if "\nno\n" in r["target"]]
  assert failed
  for record in failed:
    before = record["target"].partition("\nCheck:")[0]
    assert before.rpartition("=")[2] == answer(record)
  fixed = chain_sum_solutions(200, 0, THREE, ONLY["checked"], step_error=0.3, fix=1.0)
  assert accuracy(fixed) > accuracy(records) + 0.1


def test_noise_depends_on_seed_and_index_alone():
  one, two = chain_sum_solutions(30, 5, THREE), chain_sum_solutions(60, 5, THREE)
  assert [one[i] for i in reversed(range(30))] == [two[i] for i in reversed(range(30))]
  other = chain_sum_solutions(30, 6, THREE)
  assert [r["target"] for r in one] != [r["target"] for r in other]


def test_the_alphabet_is_enough_and_not_too_much():
  tokenizer = characters(chain_sum.ALPHABET)
  options = {"max_terms": 4, "allow_negation": True}
  texts = [
    r["question"] + r["target"] for r in chain_sum_solutions(300, 0, options, step_error=0.3)
  ]
  for text in texts:
    assert tokenizer.decode(tokenizer.encode(text)) == text
  assert set("".join(texts)) == set(chain_sum.ALPHABET)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"mix": {"direct": 0.5}}, "sum to 1"),
    ({"mix": {}}, "sum to 1"),
    ({"mix": {"guess": 1.0}}, "shares of direct, worked, checked"),
    ({"mix": {"direct": 1.5, "worked": -0.5}}, "sum to 1"),
    ({"direct_error": 1.1}, "data.direct_error=1.1"),
    ({"spread": 0}, "data.spread=0"),
    ({"options": {"x": 1}}, "chain_sum"),
  ],
)
def test_mistakes(options, message):
  with pytest.raises(ValueError, match=message):
    chain_sum_solutions(10, 0, **options)
