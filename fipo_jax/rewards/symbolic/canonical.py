"""A text that equal answers share, as far as that can be had cheaply: what majority votes count.

Constants are written by value ("5/2", "1.4142135623731"), polynomials multiplied out, elements of lists sorted.
"""

from __future__ import annotations

from fractions import Fraction

from fipo_jax.rewards.symbolic import intervals, numeric
from fipo_jax.rewards.symbolic.formula import EXACT, Node, added, negated

TERMS = 60  # of a polynomial that is multiplied out
DEGREE = 12  # of a power that is multiplied out
COEFFICIENT_BITS = 4000

# A product of powers of names, ((name, exponent), ...) sorted, -> its coefficient.
Polynomial = dict[tuple[tuple[str, int], ...], Fraction]


def text(a: Node) -> str:
  kind = a[0]
  if kind in ("word", "text", "choice", "domain", "label"):
    return a[1]
  if kind in ("number", "name", "sum", "product", "power", "call"):
    return numeric.text(a) or _formula(a)
  if kind == "infinity":
    return "infinity" if a[1] > 0 else "-infinity"
  if kind in ("percent", "degree"):
    return text(a[1]) + ("%" if kind == "percent" else "°")
  if kind == "equation":
    return text(a[3]) if a[1] else _formula(difference(a[2], a[3]), monic=True) + " = 0"
  if kind == "inequality":
    relations, sides = intervals.ascending(a)
    texts = [text(side) for side in sides]
    return texts[0] + "".join(f" {r} {t}" for r, t in zip(relations, texts[1:], strict=True))
  if kind in ("list", "set"):
    return ", ".join(sorted({text(x) for x in a[1:]} if kind == "set" else map(text, a[2:]))) or "{}"
  if kind == "pair":
    return f"{a[1]}{text(a[2])}, {text(a[3])}{a[4]}"
  if kind == "matrix":
    return "[" + ", ".join("[" + ", ".join(map(text, row)) + "]" for row in a[2:]) + "]"
  joint = {"tuple": ", ", "ratio": ":", "union": " U ", "without": " without "}[kind]
  joined = joint.join(sorted(map(text, a[1:])) if kind == "union" else map(text, a[1:]))
  return f"({joined})" if kind == "tuple" else joined


def difference(a: Node, b: Node) -> Node:
  return added([a, negated(b)])


def _formula(a: Node, *, monic: bool = False) -> str:
  """A formula multiplied out, its terms sorted; monic: divided by its first coefficient."""
  try:
    terms = {names: factor for names, factor in _expanded(a).items() if factor}
  except ArithmeticError:
    terms = {((_written(a), 1),): Fraction(1)}
  listed = sorted(terms, key=lambda names: (-sum(exponent for _, exponent in names), names))
  first = terms[listed[0]] if monic and listed else 1
  return " + ".join(_term(names, terms[names] / first) for names in listed) or "0"


def _term(names: tuple[tuple[str, int], ...], factor: Fraction) -> str:
  powers = [name if exponent == 1 else f"{name}^{exponent}" for name, exponent in names]
  return "*".join(powers if powers and factor == 1 else [str(factor), *powers])


def _expanded(a: Node) -> Polynomial:
  """The polynomial in its names, and in what is no polynomial as names. Raises: ArithmeticError when it is too long."""
  if a[0] == "number":
    return {(): a[1]}
  if a[0] == "sum":
    total: Polynomial = {}
    for part in a[1:]:
      for names, factor in _expanded(part).items():
        total[names] = total.get(names, Fraction(0)) + factor
    return _bounded(total)
  if a[0] == "product":
    product: Polynomial = {(): Fraction(1)}
    for part in a[1:]:
      product = _multiplied(product, _expanded(part))
    return product
  if a[0] == "power" and a[2][0] == "number" and a[2][1].denominator == 1 and abs(a[2][1]) <= DEGREE:
    base, exponent = _expanded(a[1]), int(a[2][1])
    if len(base) == 1 and (exponent > 0 or all(base.values())):  # a single term, whose inverse is one, too
      ((names, factor),) = base.items()
      return {tuple((name, power * exponent) for name, power in names): factor**exponent}
    if exponent > 0:
      return _multiplied(base, _expanded(("power", a[1], ("number", Fraction(exponent - 1), EXACT))))
    if exponent == 0:
      return {(): Fraction(1)}
  return {((_written(a), 1),): Fraction(1)}


def _multiplied(a: Polynomial, b: Polynomial) -> Polynomial:
  product: Polynomial = {}
  for names, factor in a.items():
    for others, other in b.items():
      powers = dict(names)
      for name, exponent in others:
        powers[name] = powers.get(name, 0) + exponent
      key = tuple(sorted((name, exponent) for name, exponent in powers.items() if exponent))
      product[key] = product.get(key, Fraction(0)) + factor * other
  return _bounded(product)


def _bounded(terms: Polynomial) -> Polynomial:
  if len(terms) > TERMS or any(numeric.bits(factor) > COEFFICIENT_BITS for factor in terms.values()):
    raise numeric.NoValue
  return terms


def _written(a: Node) -> str:
  """What is no polynomial: a name, a function of something, a power."""
  if a[0] == "name":
    return a[1]
  if a[0] not in ("sum", "product", "power", "call"):
    return text(a)
  parts = [part[1] if part[0] == "name" else text(part) for part in a[1:] if isinstance(part, tuple)]
  if a[0] == "call":
    return f"{a[1]}({', '.join(parts)})"
  joint = {"sum": " + ", "product": "*", "power": "^"}[a[0]]
  return numeric.text(a) or joint.join(f"({part})" if " " in part or "*" in part else part for part in parts)
