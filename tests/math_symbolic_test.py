"""The symbolic check: equal values are equal, whatever they look like, and a part of an answer is not the answer."""

import builtins
import json
import pathlib
import random
import sys
import time
from fractions import Fraction

import hostile
import pytest

from fipo_jax.rewards import math_symbolic
from fipo_jax.rewards.symbolic import latex, numeric, reading

TABLE = [
  json.loads(line)
  for line in (pathlib.Path(__file__).parent / "golden" / "symbolic_lines.jsonl").read_text().splitlines()
]

# Answers in mathematics that would be long in coming, or that no reader should be lost in. None is right for a number.
HOSTILE = [
  # brackets, depth, length
  "(" * 1_000_000, ")" * 1_000_000, "(" * 500_000 + "5" + ")" * 500_000, "{" * 300_000 + "5" + "}" * 300_000,
  "[(" * 900, "(" * 39 + "5" + ")" * 38, "((" * 900 + "5", "|" * 1999, "|(" * 400 + "x" + ")|" * 400,
  "\\{" * 900,
  "\\left(" * 200 + "5" + "\\right)" * 200, "\\frac{" * 10_000, "\\frac{1}{" * 10_000 + "5" + "}" * 10_000,
  "\\frac" * 390, "\\sqrt" * 390 + "2", "\\sqrt{" * 300 + "2" + "}" * 300, "\\sin" * 490 + "x",
  "\\text{" * 300 + "5" + "}" * 300,
  "\\boxed{" * 250 + "5" + "}" * 250, "\\begin{pmatrix}" * 120,
  "\\begin{pmatrix}" + "1 & " * 10_000 + "1\\end{pmatrix}",
  "\\begin{pmatrix}" + "x! & " * 350 + "1\\end{pmatrix}", "\\end{pmatrix}", "5" * 10_000_000,
  "0." + "3" * 1_000_000,
  "5 " * 2_500_000, "$" * 1_000_000, "a" * 50_000 + "!", "-" * 1999 + "5", "+-" * 990 + "5", "!" * 1000,
  "5" + "!" * 1000,
  "5" + "^2" * 900, "2^" * 990 + "2", "x^{" * 400 + "x" + "}" * 400, "x_{" * 400 + "1" + "}" * 400,
  "x" + "'" * 1900,
  # sizes
  "9^{9^{9}}", "9**9**9**9", "10^{10^{10}}", "x^{x^{x^{x}}}", "2^{-2^{100}}", "(1/3)^{10^9}", "100000!",
  "1499!^{1499!}", "((5!)!)!",
  "10^{10^9}!", "\\binom{10^9}{5 \\cdot 10^8}", "\\binom{1500}{750}^{1500}", "1e999999999",
  "1e4000 \\cdot 1e4000", "1e-4000^{3000}",
  "e^{e^{e^{e^{e}}}}", "e^{10^{6}}", "e^{-10^{5}}", "\\sin 10^{3000}", "\\ln 10^{4000}",
  "\\tan \\frac{\\pi}{2}",
  "\\sqrt{" + "7" * 1900 + "}", "\\sqrt[999]{" + "7" * 1900 + "}", "(1 + 10^{-3000})^{10^{6}}",
  "(\\sqrt{2}+1)^{100000}",
  "2^{1/997}^{1/991}", "x^{999999}", "(x+1)^{999999}", "(x+y+z+w)^{1000}", "(x+1)^{" + "9" * 100 + "}",
  "x! " * 600,
  "\\ln x " * 400, "\\binom{x}{y}" * 120, "\\sin(" * 39 + "x" + ")" * 39,
  "\\gcd(" + "9" * 900 + "," + "8" * 900 + ")",
  "\\operatorname{lcm}(" + ",".join(map(str, range(900, 1250))) + ")", "z".join("xy" * 300), "(x+1)" * 350,
  "(a+b)(c+d)" * 180,
  "((x+1)^{12}+1)^{12}+((y+1)^{12}+1)^{12}", "+".join(f"\\sqrt{{{n}}}" for n in range(2, 190)),
  "+".join(f"\\frac{{1}}{{x+{n}}}" for n in range(100)), "1/" * 990 + "3", "5 \\bmod " * 200 + "3",
  "1,\\!" * 480 + "000",
  # lists and sets
  "1," * 900 + "1", ",".join(map(str, range(400))),
  "\\{" + ",".join(f"\\sqrt{{{n}}}" for n in range(95)) + "\\}",
  "\\pm " * 300 + "5", "\\pm 1 \\pm 2 \\pm 3 \\pm 4", "\\cup ".join(["(1, 2)"] * 200),
  "\\cup".join(f"[{n}, {n}.5]" for n in range(160)),
  "\\mathbb{R}" + " \\setminus \\{1\\}" * 100,
  "\\mathbb{R} \\setminus \\{" + ",".join(map(str, range(450))) + "\\}",
  "1<" * 900 + "2", "x=" * 900 + "5", "1=" * 900 + "1", "1:" * 900 + "2", "or " * 600 + "5", "=" * 1900,
  "<" * 1900,
  # what is not evaluated, and what is no mathematics
  "\\sum_{i=1}^{10^9} i", "\\prod_{i=1}^{10^9} i", "\\int_0^{10^9} x^x dx", "\\lim_{x\\to 0} x^x", "\\int",
  "\\lim", "\\input{/etc/passwd}",
  "\\write18{touch x}", "\\def\\a{\\a\\a}\\a", "__import__('os')", "{0.__class__}", "%n%s%n", "\0", "5\x005",
  "\ud800", "5\udfff",
  "٥", "５", "\u202e5", "Ⅴ", "\\" * 1999, "\\\\" * 999, "&" * 1999, "~" * 1999, "^" * 1999, "_" * 1999,
  "\\circ" * 390, "%" * 1999, "° " * 900,
  "because " * 200 + "5", "a" * 5_000_000, " " * 5_000_000 + "x", "1e" * 900, "0x" * 900, "1_2" * 600,
  "1_{" * 600, "Z" * 1900 + "_{36}",
  "0.\\overline{" + "3" * 1900 + "}", "0." + "3" * 900 + "\\overline{" + "7" * 900 + "}", "1 000" * 390,
  "(1,2)" * 390,
]  # fmt: skip


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
  "forms",
  [
    ("1/2", r"\frac{1}{2}", "0.5"),
    ("3, 1", "1 or 3", r"\{1, 3\}"),
    ("x = 7", "7", "7.", r"7 \text{ cm}"),
    (r"\sqrt{8}", r"2\sqrt{2}", r"\frac{4}{\sqrt{2}}"),
    ("(x+1)^2", "x^2 + 2x + 1", "1 + 2x + x^2"),
    (r"\frac{ab + a}{2}", r"\frac{a}{2}(b + 1)"),
    ("x + 2y = 3", "2x + 4y - 6 = 0"),
    ("x > 3", "3 < x"),
  ],
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


@pytest.mark.parametrize(
  "answer", ["271828", "271828x + 1", r"\sqrt{x} + x", "x = y^2", "x > 2", r"(-\infty, 5) \cup (7, 8]", "1, 2, 3"]
)
def test_hostile_mathematics(answer):
  """Wrong, without an error, and soon, whatever the ground truth makes of it."""
  slow = []
  for text in HOSTILE:
    if len(text) > latex.CHARACTERS and answer != "271828":  # not read at all: once is enough
      continue
    begin = time.process_time()
    assert not judged(f"Answer: {text}", answer), text[:60]
    if (seconds := time.process_time() - begin) > 1.0:
      slow.append((text[:60], seconds))
  assert slow == []


@pytest.mark.parametrize("factor", [r"\frac{(1/3)!}{(1/3)!}", r"\frac{\sin 3}{\sin 3}", r"\frac{3^\pi}{3^\pi}"])
def test_a_value_in_disguise_costs_little(factor):
  """What equals the ground truth to the last bit is computed to many; the precision and the functions are bounded."""
  begin = time.process_time()
  for digits in (10, 90, 140, 200, 400, 3000):
    judged(f"Answer: 2{factor * 75}\\frac{{10^{{{digits}}}\\pi}}{{10^{{{digits}}}\\pi}}", "2")
  assert time.process_time() - begin < 3.0
  assert judged(f"Answer: 2{factor * 2}", "2")


def test_a_hostile_ground_truth_is_one_line():
  for text in HOSTILE:
    try:
      assert judged(f"Answer: {text}", text), text[:60]
    except ValueError as error:
      assert len(str(error)) < 2000 and "\n" not in str(error)


@pytest.mark.parametrize("seed", [0, 1])
def test_values_are_those_of_sympy(seed):
  """Random formulas, with variables and without, as SymPy writes them in LaTeX and in Python."""
  import sympy

  draw = random.Random(seed)
  x, y = sympy.symbols("x y")
  leaves = [
    lambda: sympy.Integer(draw.randint(-9, 20)), lambda: sympy.Rational(draw.randint(1, 9), draw.randint(2, 9)),
    *([lambda: x, lambda: y] if seed else [lambda: sympy.pi, lambda: sympy.sqrt(draw.randint(2, 12))]),
  ]  # fmt: skip
  rules = [
    lambda a, b: a + b, lambda a, b: a * b, lambda a, b: a - b, lambda a, b: a / (b**2 + 1), lambda a, b: a**3,
    lambda a, b: sympy.sqrt(a**2 + 3), lambda a, b: sympy.cos(a), lambda a, b: sympy.log(a**2 + 1),
  ]  # fmt: skip

  def grow(depth):
    if not depth:
      return draw.choice(leaves)()
    return draw.choice(rules)(grow(depth - 1), grow(depth - draw.randint(1, depth)))

  for _ in range(60):
    tree = grow(3)
    plain = str(tree).replace("log(", "ln(")
    for text in (sympy.latex(tree, ln_notation=True), sympy.latex(tree, ln_notation=True, mul_symbol="dot"), plain):
      value = numeric.lifted(
        numeric.Evaluation({"x": Fraction(17, 11), "y": Fraction(5, 13)}).value(reading.read(text))
      )
      expected = sympy.N(tree.subs({x: sympy.Rational(17, 11), y: sympy.Rational(5, 13)}), 40)
      expected = numeric.load().mpf(expected.p) / expected.q if expected.is_Rational else numeric.load().mpf(expected)
      assert abs(value - expected) <= 1e-30 * max(1, abs(expected)), text
    assert judged(f"Answer: {sympy.latex(tree, ln_notation=True)}", plain), plain
    assert tree == 0 or not judged(f"Answer: 2({plain})", plain), plain


def test_missing_package(monkeypatch):
  monkeypatch.setitem(sys.modules, "mpmath", None)
  numeric.load.cache_clear()
  with pytest.raises(ValueError, match="needs the package mpmath"):
    math_symbolic.verify("Answer: 1", "1")
  monkeypatch.undo()
  numeric.load.cache_clear()
