"""Whether two formulas have the same value: exactly where they are rational, else to many digits at some points.

A value is a Fraction as long as it can be, then a number of mpmath. Two irrational values are taken for equal when they
agree to `BITS` bits and a bit more for each bit that is written in them, so that sqrt(2) + 10^-200 is not sqrt(2).
Formulas with variables are equal when they are at several fixed points, with negative values among them: sqrt(x^2) is
|x|, not x. A decimal of six figures or more is equal to what rounds to it; 0.333333 is 1/3, 0.333 is not.

Nothing here can take long: sizes are bounded before anything is computed, and what is too large equals nothing.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from fipo_jax.rewards.symbolic import formula
from fipo_jax.rewards.symbolic.formula import Node

BITS = 400  # of precision at least
MOST_BITS = 4_000  # no more, or there is no verdict
MAGNITUDE = 10**6  # of a power, in bits
CALLS = 200  # of functions in a formula; a gamma function counts for many
GAMMA = 40

CONSTANTS = {"pi", "e", "i"}


class NoValue(ArithmeticError):
  """There is no such number, or it is too large."""


@functools.cache
def load() -> Any:
  """mpmath's numbers, in a context of our own; imported when first needed."""
  try:
    import mpmath
  except ImportError as error:
    raise ValueError(f"verifier 'math_symbolic' needs the package mpmath ({error}).") from error
  context = mpmath.mp.clone()
  context.prec = BITS
  return context


def names(node: Node) -> set[str]:
  """The variables of a formula: names but pi, e and i."""
  if node[0] == "name":
    return set() if node[1] in CONSTANTS else {node[1]}
  return set().union(*(names(part) for part in node if isinstance(part, tuple)))


def same(a: Node, b: Node) -> bool:
  """Whether two formulas are one: the same variables, and the same value at every point tried."""
  variables = names(a)
  if variables != names(b):
    return False
  error = max(_error(a), _error(b))
  try:
    return all(_same_at(a, b, point, error) for point in points(variables))
  except (ArithmeticError, ValueError):  # division by zero, a logarithm of zero, a size beyond the bounds
    return False


def proportional(a: Node, b: Node, *, positive: bool) -> bool:
  """Whether a = c * b with a number c != 0 (c > 0), at every point tried."""
  variables = names(a)
  if variables != names(b):
    return False
  try:
    ratios = [lifted(_value(a, point)) / lifted(_value(b, point)) for point in points(variables)]
    first = ratios[0]
    bound = abs(first) * load().ldexp(1, -BITS // 2)
    return first != 0 and all(abs(r - first) <= bound for r in ratios) and (not positive or _real(first) > 0)
  except (ArithmeticError, ValueError):
    return False


def text(node: Node) -> str | None:
  """A constant's value as text, the same for equal values: "5/2", "1.4142135623731"; None for others."""
  if names(node):
    return None
  try:
    value = _value(node, {})
    if isinstance(value, Fraction):
      return str(value)
    context = load()
    parts = [_short(part) for part in (context.re(value), context.im(value))]
  except (ArithmeticError, ValueError):
    return None
  return parts[0] if parts[1] == "0" else f"{parts[0]}+{parts[1]}i"


def order(a: Node) -> Any:
  """A real constant's value, to sort by; raises NoValue for others."""
  if names(a):
    raise NoValue
  return _real(_value(a, {}))


def points(variables: set[str]) -> Iterator[dict[str, Fraction]]:
  """Where to compare: two points with positive values, then one per variable where that one is negative."""
  listed = sorted(variables)
  if not listed:
    yield {}
    return
  draw = random.Random(" ".join(listed))
  positive = [{name: Fraction(draw.randint(100, 999), draw.randint(100, 999)) for name in listed} for _ in range(2)]
  yield from positive
  for name in listed[:4]:
    yield {**positive[0], name: -positive[1][name]}


def _error(node: Node) -> Fraction:
  """The largest relative error among the decimals of a formula."""
  if node[0] == "number":
    return node[2]
  return max((_error(part) for part in node if isinstance(part, tuple)), default=formula.EXACT)


def _same_at(a: Node, b: Node, point: Mapping[str, Fraction], error: Fraction) -> bool:
  context = load()
  evaluation = Evaluation(point)
  x, y = evaluation.value(a), evaluation.value(b)
  if isinstance(x, Fraction) and isinstance(y, Fraction):
    return abs(x - y) <= error * max(abs(x), abs(y))
  x, y = lifted(x), lifted(y)
  difference, size = abs(x - y), max(abs(x), abs(y))
  if error and difference <= lifted(error) * size:
    return True
  if difference > context.ldexp(1, evaluation.high - BITS // 4):
    return False
  bits = 2 * (100 + evaluation.written + evaluation.high - evaluation.low)
  if bits <= BITS:
    return difference <= context.ldexp(1, evaluation.high - BITS // 2)
  if bits > MOST_BITS:
    raise NoValue
  with context.workprec(bits):
    x, y = Evaluation(point).value(a), Evaluation(point).value(b)
    return abs(lifted(x) - lifted(y)) <= context.ldexp(1, evaluation.high - bits // 2)


def _value(node: Node, point: Mapping[str, Fraction]) -> Any:
  return Evaluation(point).value(node)


def _real(value: Any) -> Any:
  context = load()
  if abs(context.im(value)) > abs(value) * context.ldexp(1, -BITS // 2):
    raise NoValue
  return context.re(value) if not isinstance(value, Fraction) else value


def _short(value: Any) -> str:
  """15 figures, or the fraction that it is as far as can be told."""
  context = load()
  if abs(value) < context.ldexp(1, -BITS // 2):
    return "0"
  if abs(value) < 10**9:
    near = Fraction(int(context.nint(context.ldexp(value, 200))), 2**200).limit_denominator(10**6)
    if abs(value - lifted(near)) < context.ldexp(1, -150):
      return str(near)
  return context.nstr(value, 15)


def lifted(value: Any) -> Any:
  """A Fraction as a number of mpmath."""
  return load().mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


class Evaluation:
  """value(node): its value at a point.

  high, low: the largest and smallest magnitude that came up, in bits. written: bits of all numbers in it.
  Raises: ArithmeticError or ValueError where there is none, NoValue where it is too large.
  """

  def __init__(self, point: Mapping[str, Fraction]):
    self.point, self.context = point, load()
    self.high = self.low = self.written = self.calls = 0

  def value(self, node: Node) -> Any:
    found = self._of(node)
    if found:
      size = _magnitude(found)
      if abs(size) > MAGNITUDE:
        raise NoValue
      self.high, self.low = max(self.high, size), min(self.low, size)
    return found

  def _of(self, node: Node) -> Any:
    kind = node[0]
    if kind == "number":
      self.written += node[1].numerator.bit_length() + node[1].denominator.bit_length()
      return node[1]
    if kind == "name":
      return self._name(node[1])
    if kind == "sum":
      return functools.reduce(_plus, map(self.value, node[1:]))
    if kind == "product":
      return functools.reduce(_times, map(self.value, node[1:]))
    if kind == "power":
      return self._power(self.value(node[1]), self.value(node[2]))
    if kind == "percent":
      return _times(self.value(node[1]), Fraction(1, 100))
    if kind == "degree":
      return self.value(node[1]) * self.context.pi / 180
    if kind == "call":
      return self._call(node[1], [self.value(part) for part in node[2:]])
    raise NoValue

  def _name(self, name: str) -> Any:
    if name in CONSTANTS:
      return {"pi": self.context.pi, "e": self.context.e, "i": self.context.j}[name] * 1
    return self.point[name]

  def _power(self, base: Any, exponent: Any) -> Any:
    if not base:
      if exponent == 0:
        return Fraction(1)
      if _real(exponent) > 0:
        return Fraction(0)
      raise NoValue
    if abs(_magnitude(base)) * abs(exponent) > MAGNITUDE or abs(exponent) > MAGNITUDE:
      raise NoValue
    if not isinstance(exponent, Fraction):
      self._count(1)
      return self.context.power(lifted(base), lifted(exponent))
    if exponent.denominator == 1:
      if isinstance(base, Fraction) and bits(base) * abs(exponent) > 2 * formula.BITS:
        base = lifted(base)
      return base ** int(exponent)
    return self._root(base, exponent.denominator) ** exponent.numerator

  def _root(self, base: Any, degree: int) -> Any:
    """The real root where there is one: of a negative number for odd degrees."""
    if isinstance(base, Fraction) and degree <= 64:
      above, below = _whole_root(abs(base.numerator), degree), _whole_root(base.denominator, degree)
      if above and below and (base > 0 or degree % 2):
        return Fraction(above if base > 0 else -above, below)
    base = lifted(base)
    if degree % 2 and self.context.im(base) == 0 and self.context.re(base) < 0:
      return -self.context.root(-self.context.re(base), degree)
    return self.context.root(base, degree)

  def _call(self, name: str, of: list[Any]) -> Any:
    self._count(GAMMA if name in ("factorial", "binomial") else 1)
    return _CALLS[name](self, *of)

  def _count(self, calls: int) -> None:
    self.calls += calls
    if self.calls > CALLS:
      raise NoValue


def _plus(a: Any, b: Any) -> Any:
  return a + b if isinstance(a, Fraction) == isinstance(b, Fraction) else lifted(a) + lifted(b)


def _times(a: Any, b: Any) -> Any:
  return a * b if isinstance(a, Fraction) == isinstance(b, Fraction) else lifted(a) * lifted(b)


def bits(value: Fraction) -> int:
  return max(value.numerator.bit_length(), value.denominator.bit_length())


def _magnitude(value: Any) -> int:
  """log2 of the absolute value, to a bit or two."""
  if isinstance(value, Fraction):
    return value.numerator.bit_length() - value.denominator.bit_length()
  size = load().mag(value)
  if not isinstance(size, int):  # an infinity, or no number
    raise NoValue
  return size


def _whole_root(value: int, degree: int) -> int | None:
  """The whole number whose power it is, if there is one."""
  root = math.isqrt(value) if degree == 2 else round(value ** (1 / degree)) if value < 2**50 else 0
  return root if root**degree == value else None


def _whole(value: Any) -> int:
  if not isinstance(value, Fraction) or value.denominator != 1:
    raise NoValue
  return int(value)


def _elementary(name: str) -> Any:
  def of(self: Evaluation, x: Any) -> Any:
    if abs(x) > MAGNITUDE:
      raise NoValue
    return getattr(self.context, name)(lifted(x))

  return of


def _logarithm(self: Evaluation, x: Any, base: Any = None) -> Any:
  found = self.context.ln(lifted(x))
  return found if base is None else found / self.context.ln(lifted(base))


def _rooted(self: Evaluation, x: Any, degree: Any) -> Any:
  degree = _whole(degree)
  if not 1 < degree <= 1000:
    raise NoValue
  return self._root(x, degree) if x else x


def _factorial(self: Evaluation, x: Any) -> Any:
  if abs(x) > 1000:
    raise NoValue
  return self.context.factorial(lifted(x))


def _binomial(self: Evaluation, n: Any, k: Any) -> Any:
  if max(abs(n), abs(k)) > 1000:
    raise NoValue
  return self.context.binomial(lifted(n), lifted(k))


def _integral(rounding: Any, name: str) -> Any:
  def of(self: Evaluation, x: Any) -> Any:
    return Fraction(rounding(x)) if isinstance(x, Fraction) else getattr(self.context, name)(x)

  return of


def _extreme(pick: Any) -> Any:
  return lambda self, *of: pick(of, key=lambda x: lifted(_real(x)))


_CALLS = {
  **{name: _elementary(name) for name in ("sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh", "tanh")},
  **{f"arc{name}": _elementary(f"a{name}") for name in ("sin", "cos", "tan")},
  "ln": _logarithm, "log": _logarithm, "root": _rooted, "factorial": _factorial, "binomial": _binomial,
  "abs": lambda self, x: abs(x),
  "floor": _integral(math.floor, "floor"), "ceil": _integral(math.ceil, "ceil"),
  "gcd": lambda self, *of: Fraction(math.gcd(*map(_whole, of))),
  "lcm": lambda self, *of: Fraction(math.lcm(*map(_whole, of))),
  "max": _extreme(max), "min": _extreme(min),
  "mod": lambda self, a, b: Fraction(_whole(a) % _whole(b)),
}  # fmt: skip
