"""Scorers for the gym tasks whose own scorer evaluates text: here an answer is parsed, under limits, and never run.

Each agrees with the library on every answer that the task's question allows, right or wrong. Refused beyond that is
what only a program or a trick needs: names of the scorer's variables, other numbers than the given ones, 49/2 for 24,
NaN. Text that does not parse scores what the library gives for it.
"""

from __future__ import annotations

import ast
import cmath
import dataclasses
import json
import math
import operator
import re
import string
from collections.abc import Callable
from fractions import Fraction
from typing import Any

_TOKENS = 2_000
_NESTING = 50
_BITS = 20_000  # of a number, or of the numbers and exponents of an expression together

_TOKEN = re.compile(r"\s*(\d+\.?\d*|\.\d+|[A-Za-z]\w*|\*\*|[-+*/()])\s*")
# A list of plain strings and numbers, nested or not. No operator, no name, no escape.
_LITERAL = re.compile(r"""(?:[\[\](),\s]|'[^'\\]*'|"[^"\\]*"|-?\d+(?:\.\d+)?)*+""")

# What parsing and arithmetic raise on text that is no answer.
_NO_ANSWER = (ArithmeticError, LookupError, SyntaxError, TypeError, ValueError)


@dataclasses.dataclass(frozen=True)
class Algebra:
  """What the parts of an expression become. Values have + - * / and unary minus of their own.

  number: from its digits.  names, functions: what a name may stand for.
  power: (base, exponent) -> value.
  size: (base's bits, exponent) -> bits of the power, before it is computed.
  """

  number: Callable[[str], Any]
  names: dict[str, Any]
  functions: dict[str, Callable[[Any], Any]]
  power: Callable[[Any, Any], Any]
  size: Callable[[int, int, Any], int]


class _Reader:
  """Recursive descent, with Python's precedence.

      sum = product (("+" | "-") product)*      product = sign (("*" | "/") sign)*      sign = ("+" | "-") sign | power
      power = atom ("**" sign)?                 atom = number | name | name "(" sum ")" | "(" sum ")"

  Every method returns (value, bits): bits bounds the size of the numbers in the value, and is checked before the value
  is computed.
  """

  def __init__(self, text: str, algebra: Algebra):
    self.algebra, self.tokens, self.next, self.depth = algebra, [], 0, 0
    position = 0
    while position < len(text):
      token = _TOKEN.match(text, position)
      if token is None or len(self.tokens) == _TOKENS:
        raise ValueError(f"no expression at character {position}")
      self.tokens.append(token[1])
      position = token.end()

  def take(self, *wanted: str) -> str | None:
    """The next token when it is one of these."""
    if self.next < len(self.tokens) and self.tokens[self.next] in wanted:
      self.next += 1
      return self.tokens[self.next - 1]
    return None

  def all(self):
    value = self.sum()[0]
    if self.next != len(self.tokens):
      raise ValueError(f"not expected: {self.tokens[self.next]}")
    return value

  def sum(self):
    left = self.product()
    while sign := self.take("+", "-"):
      left = _apply(operator.add if sign == "+" else operator.sub, left, self.product())
    return left

  def product(self):
    left = self.sign()
    while sign := self.take("*", "/"):
      left = _apply(operator.mul if sign == "*" else operator.truediv, left, self.sign())
    return left

  def sign(self):
    self.depth += 1
    if self.depth > _NESTING:
      raise ValueError("nested too deep")
    if sign := self.take("+", "-"):
      value, bits = self.sign()
      found = (-value if sign == "-" else value), bits
    else:
      found = self.power()
    self.depth -= 1
    return found

  def power(self):
    base, bits = self.atom()
    if not self.take("**"):
      return base, bits
    exponent, exponent_bits = self.sign()
    bits = _checked(self.algebra.size(bits, exponent_bits, exponent))
    return self.algebra.power(base, exponent), bits

  def atom(self):
    if self.take("("):
      return self.closed(self.sum())
    if self.next == len(self.tokens):
      raise ValueError("ends early")
    token = self.tokens[self.next]
    self.next += 1
    if token[0].isdigit() or token[0] == ".":
      bits = _checked(4 * len(token))
      return self.algebra.number(token), bits
    if self.take("("):
      value, bits = self.closed(self.sum())
      return self.algebra.functions[token](value), bits
    return self.algebra.names[token], 1

  def closed(self, found):
    if not self.take(")"):
      raise ValueError("not closed")
    return found


def _apply(operation: Callable, left: tuple[Any, int], right: tuple[Any, int]) -> tuple[Any, int]:
  bits = _checked(left[1] + right[1] + 1)
  return operation(left[0], right[0]), bits


def _checked(bits: int) -> int:
  if bits > _BITS:
    raise ValueError("numbers too large")
  return bits


# Exact arithmetic.


def _rational_size(bits: int, exponent_bits: int, exponent: Fraction) -> int:
  if exponent.denominator != 1:
    raise ValueError("a root")
  return bits * max(1, abs(exponent.numerator))


_RATIONALS = Algebra(Fraction, {}, {}, lambda base, exponent: base**exponent.numerator, _rational_size)


def _arithmetic(answer: str) -> tuple[Fraction, list[Fraction]]:
  """Value of an arithmetic expression, and the numbers in it, sorted."""
  reader = _Reader(answer.strip(), _RATIONALS)
  return reader.all(), sorted(Fraction(token) for token in reader.tokens if token[0] in ".0123456789")


def _countdown(answer: str, entry: dict) -> float:
  """1 for an expression of all the given numbers with the target as its value, 0.05 for any other, 0.01 for text."""
  try:
    value, used = _arithmetic(answer)
  except _NO_ANSWER:
    return 0.01
  right = used == sorted(entry["metadata"]["numbers"]) and value == entry["metadata"]["target"]
  return 1.0 if right else 0.05


def _puzzle24(answer: str, entry: dict) -> float:
  """1 for an expression of the four given numbers whose value is 24, else 0.01."""
  try:
    value, used = _arithmetic(answer)
  except _NO_ANSWER:
    return 0.01
  return 1.0 if value == 24 and used == sorted(entry["metadata"]["numbers"]) else 0.01


def _bitwise_arithmetic(answer: str, entry: dict) -> float:
  """1 for the number, in hexadecimal or any other notation with its prefix."""
  try:
    return float(int(answer, 0) == int(entry["answer"], 0))
  except ValueError:
    return 0.0


# Lists.


def _literal(text: str) -> Any:
  """A list of strings and numbers, or of such lists. Raises: one of _NO_ANSWER."""
  if not _LITERAL.fullmatch(text) or max(text.count(bracket) for bracket in "[(") > _TOKENS:
    raise ValueError("not a list of strings and numbers")
  depth = 0
  for bracket in re.findall(r"[\[\]()]", text):
    depth += 1 if bracket in "[(" else -1
    if depth > _NESTING:
      raise ValueError("nested too deep")
  return ast.literal_eval(text.strip())


def _listed(part: float, join: Callable[[Any], str], right: Callable[[dict], Any]) -> Callable[[str, dict], float]:
  """1 for the text of a right answer, `part` for a list that says it, else 0. right: entry -> the right texts."""

  def score(answer: str, entry: dict) -> float:
    texts, answer = right(entry), answer.strip()
    if answer in texts:
      return 1.0
    try:
      return part if join(_literal(answer)) in texts else 0.0
    except _NO_ANSWER:
      return 0.0

  return score


def _rows(board: Any) -> str:
  return "\n".join(" ".join(str(cell) for cell in row) for row in board)


def _number_sorting(answer: str, entry: dict) -> float:
  """1 for a sorted list of as many numbers, each within 1 of the right one, as the library allows for rounding."""
  try:
    found = json.loads(answer.replace("'", '"'))
    found = [float(number) for number in found] if isinstance(found, list) else []
  except (*_NO_ANSWER, RecursionError):
    return 0.0
  right = [float(number) for number in _literal(entry["answer"])]
  down = entry["metadata"]["direction"] != "ascending"
  if len(found) != len(right) or found != sorted(found, reverse=down):
    return 0.0
  return float(all(abs(a - b) <= 1 for a, b in zip(found, right, strict=True)))  # NaN is near nothing


# Symbolic expressions.


@dataclasses.dataclass(frozen=True)
class _Slope:
  """A complex number with its derivative: a function and its slope at one point, carried through an expression."""

  value: complex
  slope: complex = 0j

  def __neg__(self):
    return _Slope(-self.value, -self.slope)

  def __add__(self, other):
    return _Slope(self.value + other.value, self.slope + other.slope)

  def __sub__(self, other):
    return _Slope(self.value - other.value, self.slope - other.slope)

  def __mul__(self, other):
    return _Slope(self.value * other.value, self.slope * other.value + self.value * other.slope)

  def __truediv__(self, other):
    value = self.value / other.value
    return _Slope(value, (self.slope - value * other.slope) / other.value)

  def __pow__(self, other):
    if other.slope == 0:
      return _Slope(self.value**other.value, other.value * self.value ** (other.value - 1) * self.slope)
    value = self.value**other.value
    return _Slope(value, value * (other.slope * cmath.log(self.value) + other.value * self.slope / self.value))


# Function and derivative, with SymPy's branches.
_FUNCTIONS: dict[str, tuple[Callable[[complex], complex], Callable[[complex], complex]]] = {
  "exp": (cmath.exp, cmath.exp),
  "log": (cmath.log, lambda z: 1 / z),
  "ln": (cmath.log, lambda z: 1 / z),
  "sqrt": (cmath.sqrt, lambda z: 0.5 / cmath.sqrt(z)),
  "sin": (cmath.sin, cmath.cos),
  "cos": (cmath.cos, lambda z: -cmath.sin(z)),
  "tan": (cmath.tan, lambda z: 1 + cmath.tan(z) ** 2),
  "cot": (lambda z: 1 / cmath.tan(z), lambda z: -1 / cmath.sin(z) ** 2),
  "sec": (lambda z: 1 / cmath.cos(z), lambda z: cmath.sin(z) / cmath.cos(z) ** 2),
  "csc": (lambda z: 1 / cmath.sin(z), lambda z: -cmath.cos(z) / cmath.sin(z) ** 2),
  "asin": (cmath.asin, lambda z: 1 / cmath.sqrt(1 - z * z)),
  "acos": (cmath.acos, lambda z: -1 / cmath.sqrt(1 - z * z)),
  "atan": (cmath.atan, lambda z: 1 / (1 + z * z)),
  "sinh": (cmath.sinh, cmath.cosh),
  "cosh": (cmath.cosh, cmath.sinh),
  "tanh": (cmath.tanh, lambda z: 1 - cmath.tanh(z) ** 2),
  "asinh": (cmath.asinh, lambda z: 1 / cmath.sqrt(1 + z * z)),
  "acosh": (cmath.acosh, lambda z: 1 / (cmath.sqrt(z - 1) * cmath.sqrt(z + 1))),
  "atanh": (cmath.atanh, lambda z: 1 / (1 - z * z)),
}
_POINTS = (0.37 + 0.21j, -0.58 + 0.43j, 1.31 - 0.77j)  # of no symmetry
# A letter that is not the variable is a constant, C before all; not those that mean something to SymPy.
_CONSTANTS = tuple(letter for letter in string.ascii_letters if letter not in "EINOQS")


def _slopes(variable: str, point: complex) -> Algebra:
  names = {letter: _Slope(cmath.rect(0.8, ord(letter))) for letter in _CONSTANTS}
  names |= {"E": _Slope(cmath.e), "pi": _Slope(cmath.pi), variable: _Slope(point, 1)}
  functions = {
    name: lambda z, f=f, slope=slope: _Slope(f(z.value), slope(z.value) * z.slope)
    for name, (f, slope) in _FUNCTIONS.items()
  }
  return Algebra(lambda digits: _Slope(complex(float(digits))), names, functions, operator.pow, lambda *bits: 1)


def _sympy(names: tuple[str, ...], functions: tuple[str, ...] = ()) -> Algebra:
  """SymPy's objects, each made here. Raises: ValueError for expressions of unbounded size, before they are made."""
  import sympy

  def number(digits: str):
    return sympy.Integer(digits) if digits.isdigit() else sympy.Float(digits)

  def size(bits: int, exponent_bits: int, exponent) -> int:
    if exponent.is_number:
      return bits * max(1, math.ceil(abs(complex(exponent))))
    return bits + exponent_bits

  known = {name: sympy.Symbol(name) for name in names} | ({"E": sympy.E, "pi": sympy.pi} if functions else {})
  return Algebra(number, known, {name: getattr(sympy, name) for name in functions}, operator.pow, size)


def _integration(answer: str, entry: dict) -> float:
  """1 when the derivative of the answer is the integrand, else 0.

  Numerically first: what differs at a point is wrong, and SymPy, which can take long, sees only what is right or all
  but right. It decides as the library has it decide. Some ground truths are an integral that SymPy could not find, such
  as "-Integral(x**2*cos(x), x) + C"; they are right as text, but no answer may ask for the integral back.
  """
  import sympy

  if answer.split() == entry["answer"].split():
    return 1.0
  variable, integrand = entry["metadata"]["variable"], entry["metadata"]["integrand"]
  for point in _POINTS:
    algebra = _slopes(variable, point)
    right = _Reader(integrand, algebra).all().value
    try:
      found = _Reader(answer, algebra).all().slope
    except _NO_ANSWER:
      return 0.0
    if not abs(found - right) <= 1e-6 * (abs(right) + 1):
      return 0.0
  algebra = _sympy((*_CONSTANTS, variable), tuple(_FUNCTIONS))
  try:
    antiderivative = _Reader(answer, algebra).all()
  except _NO_ANSWER:
    return 0.0
  difference = sympy.diff(antiderivative, sympy.Symbol(variable)) - _Reader(integrand, algebra).all()
  return float(sympy.simplify(difference) == 0)


def _polynomial_multiplication(answer: str, entry: dict) -> float:
  """1 for the same sum of terms, in any order, else 0: a product that is not multiplied out is not the answer."""
  names = tuple(set(re.findall(r"[A-Za-z]\w*", entry["answer"])))
  algebra = _sympy(names)
  try:
    found = _Reader(answer, algebra).all()
  except _NO_ANSWER:
    return 0.0
  return float(found == _Reader(entry["answer"], algebra).all())


SCORERS: dict[str, Callable[[str, dict], float]] = {
  "binary_matrix": _listed(0.1, _rows, lambda entry: (entry["answer"],)),
  "bitwise_arithmetic": _bitwise_arithmetic,
  "countdown": _countdown,
  "intermediate_integration": _integration,
  "n_queens": _listed(0.5, _rows, lambda entry: entry["metadata"]["valid_answers"]),
  "number_sorting": _number_sorting,
  "polynomial_multiplication": _polynomial_multiplication,
  "puzzle24": _puzzle24,
  "simple_integration": _integration,
  "spiral_matrix": _listed(0.1, lambda row: " ".join(map(str, row)), lambda entry: (entry["answer"].strip(),)),
  "string_insertion": _listed(0.1, "".join, lambda entry: (entry["answer"],)),
}
