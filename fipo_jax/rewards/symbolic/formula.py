r"""The grammar of answers: tokens to a tree. Nothing is evaluated but arithmetic on numbers of bounded size.

    sum      = [sign] product {sign product}                sign: + - \pm \mp
    product  = factor {("*" | "/" | ":" | "mod" | nothing) factor}
    factor   = [sign] power {power} ["%" | "°"]             2\pi r; "2\frac{1}{2}" and "2 1/2" are mixed numbers
    power    = primary {"!" | "^" exponent}
    primary  = number | name | function | group | fraction, root, binomial, matrix, absolute value

Nodes are tuples with their kind first:
  ("number", value, relative error)   ("name", text)   ("infinity", sign)   ("domain", "R")   ("sum", a, b, ...)
  ("product", a, b, ...)   ("power", a, b)   ("call", function, a, ...)   ("percent", a)   ("degree", a)
  ("pair", open, a, b, close): an interval, or two coordinates   ("tuple", a, ...)   ("set", a, ...)
  ("union", a, ...)   ("without", a, b)   ("matrix", kind, row, ...)
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction

from fipo_jax.rewards.symbolic.dress import Unreadable
from fipo_jax.rewards.symbolic.latex import (
  CLOSE,
  COMMAND,
  EXPONENT,
  FUNCTION,
  NAME,
  NUMBER,
  OPEN,
  SEPARATOR,
  SIGN,
  Token,
)

Node = tuple

NESTING = 60  # of anything in anything
POSTFIXES = 3  # on one primary
BITS = 14_000  # of a numerator or denominator: 4,200 digits
FACTORIAL = 1500  # its largest argument
DIGITS = 6  # a decimal of so many significant digits, or more, may be a rounded value; shorter ones are exact

EXACT = Fraction(0)
ONE, MINUS_ONE = ("number", Fraction(1), EXACT), ("number", Fraction(-1), EXACT)
_LITERAL = re.compile(r"([0-9]*)(?:\.([0-9]*))?(?:[eE]([-+]?[0-9]+))?")
_STARTS = {OPEN, NAME, FUNCTION}
_GROUPS = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "\\langle": "\\rangle"}
_ROUNDED = {"\\lfloor": ("\\rfloor", "floor"), "\\lceil": ("\\rceil", "ceil")}
_MATRICES = {"matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array"}
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}


class Parser:
  """formula(): the tree of all tokens. Raises: Unreadable where they are none.

  signs: what each `\\pm`, from left to right, stands for, +1 or -1; `\\mp` is the other sign of the one before.
  """

  def __init__(self, tokens: Sequence[Token], signs: Sequence[int] = ()):
    self.tokens, self.at = tokens, 0
    self.signs, self.sign = list(signs), 1
    self.bars = 0  # absolute values that are open
    self.nesting = 0

  def formula(self) -> Node:
    node = self.union()
    if self.at < len(self.tokens):
      raise Unreadable
    return node

  def union(self) -> Node:
    node = self.sum()
    while True:
      if self.take("cup"):
        node = (*node, self.sum()) if node[0] == "union" else ("union", node, self.sum())
      elif node[0] != "without" and self.take("setminus"):
        node = ("without", node, self.sum())
      else:
        return node

  def sum(self) -> Node:
    sign = self.leading_sign()
    terms = [negated(self.product()) if sign == -1 else self.product()]
    while (sign := self.leading_sign()) is not None:
      terms.append(negated(self.product()) if sign == -1 else self.product())
    return added(terms)

  def leading_sign(self) -> int | None:
    if self.take("+"):
      return 1
    if self.take("-"):
      return -1
    if self.take("pm"):
      self.sign = self.signs.pop(0) if self.signs else 1
      return self.sign
    if self.take("mp"):
      return -self.sign
    return None

  def product(self) -> Node:
    node = self.factor()
    while True:
      if self.take("*"):
        node = multiplied(node, self.factor())
      elif self.text() in ("/", ":"):
        # 1/2x is half of x, but a/2x is a over 2x.
        numbers = self.tokens[self.at - 1].kind == NUMBER and self.kind(1) == NUMBER
        self.at += 1
        node = multiplied(node, raised(self.power() if numbers else self.factor(), MINUS_ONE))
      elif node[:2] != ("call", "mod") and self.take("mod"):
        node = ("call", "mod", node, self.factor())
      elif self.starts():
        node = multiplied(node, self.factor())
      elif node[0] == "number" and self.text() in ("%", "°"):  # 1/2 %
        node = self.marked(node)
      else:
        return node

  def factor(self) -> Node:
    sign = self.leading_sign()
    first = self.at
    node = self.power()
    if self.at == first + 1 and node[0] == "number" and self.tokens[first].text.isdecimal():
      node = self.mixed(node)
    while self.starts():
      node = multiplied(node, self.power())
    node = self.marked(node)
    return negated(node) if sign == -1 else node

  def marked(self, node: Node) -> Node:
    if self.take("%"):
      return ("percent", node)
    return ("degree", node) if self.take("°") else node

  def mixed(self, whole: Node) -> Node:
    """The whole number with the proper fraction that follows at once, if one does."""
    texts = [token.text for token in self.tokens[self.at : self.at + 7]]
    numerals = ()
    if len(texts) == 7 and texts[:2] == ["frac", "{"] and texts[3:5] == ["}", "{"] and texts[6] == "}":
      numerals, length = (texts[2], texts[5]), 7
    elif len(texts) >= 3 and self.kind() == NUMBER and texts[1] == "/":
      numerals, length = (texts[0], texts[2]), 3
    if not (numerals and all(numeral.isdecimal() for numeral in numerals)):
      return whole
    above, below = (int(numeral) for numeral in numerals)
    if not 0 < above < below:
      return whole
    self.at += length
    return number(whole[1] + Fraction(above, below))

  def power(self) -> Node:
    node = self.primary()
    for _ in range(POSTFIXES):
      if self.take("!"):
        if self.text() == "!":  # 5!! is no factorial of a factorial
          raise Unreadable
        node = called("factorial", node)
      elif self.take("^"):
        node = raised(node, self.exponent())
      else:
        break
    return node

  def exponent(self) -> Node:
    if self.text() == "{":
      return self.group()
    self.nesting += 1
    sign = self.leading_sign()
    node = self.primary()
    if self.take("^"):  # 2^3^2
      node = raised(node, self.exponent())
    self.nesting -= 1
    return negated(node) if sign == -1 else node

  def primary(self) -> Node:
    self.nesting += 1
    if self.nesting > NESTING or self.at >= len(self.tokens):
      raise Unreadable
    node = self.one(*self.tokens[self.at][:2])
    self.nesting -= 1
    return node

  def one(self, kind: int, text: str) -> Node:
    if kind == OPEN:
      return self.group()
    self.at += 1
    if kind == NUMBER:
      return literal(text)
    if kind == NAME:
      return self.name(text)
    if kind == FUNCTION:
      return self.function(text)
    if text == "|":
      self.bars += 1
      node = called("abs", self.sum())
      self.bars -= 1
      self.expect("|")
      return node
    if kind == COMMAND and text == "infty":
      return ("infinity", 1)
    if kind == COMMAND and text == "emptyset":
      return ("set",)
    if kind == COMMAND and text == "frac":
      above = self.argument()
      return multiplied(above, raised(self.argument(), MINUS_ONE))
    if kind == COMMAND and text == "binom":
      return called("binomial", self.argument(), self.argument())
    if kind == COMMAND and text == "sqrt":
      index = self.group() if self.text() == "[" else number(Fraction(2))
      return called("root", self.argument(), index)
    raise Unreadable

  def argument(self) -> Node:
    r"""What belongs to \frac or \sqrt: a group, or the one thing that follows."""
    return self.group() if self.kind() == OPEN else self.primary()

  def name(self, text: str) -> Node:
    if text.startswith("mathbb("):
      return ("domain", text[7:-1])
    if self.take("_"):
      text += "_" + self.subscript()
    while self.take("'"):
      text += "'"
    return ("name", text)

  def subscript(self) -> str:
    if self.text() != "{":
      self.at += 1
      return self.tokens[self.at - 1].text if self.at <= len(self.tokens) else ""
    start = self.at + 1
    while self.at < len(self.tokens) and self.tokens[self.at].text != "}":
      self.at += 1
    self.expect("}")
    return "".join(token.text for token in self.tokens[start : self.at - 1])

  def function(self, name: str) -> Node:
    r"""\sin^2 x, \log_2(8), \ln 2x: the argument is a group, or the factors that follow up to a sign or function."""
    base = number(Fraction(10)) if name in ("log", "lg") else None
    exponent = None
    while self.text() in ("^", "_"):
      if self.take("^"):
        exponent = self.exponent()
      elif name == "log":
        self.at += 1
        base = self.argument()
      else:
        raise Unreadable
    if name in ("gcd", "lcm", "max", "min"):
      group = self.group()
      items = group[1:] if group[0] in ("set", "tuple") else group[2:4] if group[0] == "pair" else (group,)
      node = called(name, *items)
    else:
      if self.text() in ("(", "{", "["):
        of = self.group()
      else:
        sign = self.leading_sign()
        of = self.power()
        while self.starts() and self.kind() != FUNCTION:
          of = multiplied(of, self.power())
        of = self.marked(negated(of) if sign == -1 else of)
      if exponent == MINUS_ONE and name in _INVERSE:
        name, exponent = _INVERSE[name], None
      if name == "exp":
        node = raised(("name", "e"), of)
      else:
        node = called("log", of, base) if base else called(name, of)
    return raised(node, exponent) if exponent else node

  def group(self) -> Node:
    """What stands in brackets: one formula, or several, which are coordinates, an interval, or a set."""
    start = self.tokens[self.at].text if self.kind() == OPEN else ""
    self.at += 1
    if start in _ROUNDED:
      end, name = _ROUNDED[start]
      node = called(name, self.sum())
      self.expect(end)
      return node
    if start not in _GROUPS:
      return self.matrix(start)
    bars, self.bars = self.bars, 0
    items = [] if self.kind() == CLOSE else [self.union()]
    if start == "{" and self.take("choose"):
      items = [called("binomial", items[0], self.union())]
    while self.kind() == SEPARATOR and self.text() in (",", ";"):
      self.at += 1
      items.append(self.union())
    self.bars = bars
    if self.kind() != CLOSE:
      raise Unreadable
    end = self.tokens[self.at].text
    self.at += 1
    return self.grouped(start, end, items)

  def grouped(self, start: str, end: str, items: list[Node]) -> Node:
    if start == "\\{" and end == "\\}":
      return ("set", *items)
    closed = end == _GROUPS[start]
    if closed and len(items) == 1:
      return based(items[0], self)
    if closed and start == "{" and items:
      return ("set", *items)
    if len(items) == 2 and start in "([" and end in ")]":
      return ("pair", start, *items, end)
    if closed and len(items) == 2 and start == "\\langle":
      return ("pair", "(", *items, ")")
    if closed and len(items) > 2:
      return ("tuple", *items)
    raise Unreadable

  def matrix(self, kind: str) -> Node:
    if kind not in _MATRICES and kind != "vmatrix":
      raise Unreadable
    rows: list[list[Node]] = [[]]
    while self.kind() != CLOSE:
      rows[-1].append(self.sum())
      if self.take("row"):
        rows.append([])
      elif not self.take("&") and self.kind() != CLOSE:
        raise Unreadable
    self.expect(kind)
    if not rows[-1]:
      rows.pop()  # a \\ after the last row
    if not rows or len({len(row) for row in rows}) != 1:
      raise Unreadable
    return ("matrix", "determinant" if kind == "vmatrix" else "entries", *map(tuple, rows))

  def starts(self) -> bool:
    """Whether the next token begins a factor, so that it multiplies. A number does so in "3!5!"; "2 3" is nothing."""
    kind, text = self.kind(), self.text()
    if kind == NUMBER:
      return self.at > 0 and self.tokens[self.at - 1].text == "!"
    return kind in _STARTS or (text == "|" and not self.bars) or (kind == COMMAND and text in ("frac", "sqrt", "binom"))

  def kind(self, ahead: int = 0) -> int | None:
    at = self.at + ahead
    return self.tokens[at].kind if at < len(self.tokens) else None

  def text(self) -> str | None:
    return self.tokens[self.at].text if self.at < len(self.tokens) else None

  def take(self, text: str) -> bool:
    if self.text() != text or self.kind() not in (SIGN, COMMAND):
      return False
    self.at += 1
    return True

  def expect(self, text: str) -> None:
    if self.text() != text:
      raise Unreadable
    self.at += 1


def based(node: Node, parser: Parser) -> Node:
  """(1011)_2: the group's digits read in the base that follows it."""
  if parser.text() != "_":
    return node
  digits = parser.tokens[parser.at - 2].text
  alone = parser.tokens[parser.at - 3].kind == OPEN
  parser.take("_")
  base = parser.subscript()
  if not (alone and digits.isdecimal() and base.isdecimal() and 2 <= int(base[:3]) <= 36):
    raise Unreadable
  return literal(f"{digits}_{base}")


def number(value: Fraction, error: Fraction = EXACT) -> Node:
  """A number's node. Raises: Unreadable when it is too large to be written out."""
  if max(value.numerator.bit_length(), value.denominator.bit_length()) > BITS:
    raise Unreadable
  return ("number", value, error)


def literal(text: str) -> Node:
  """1000, 0.5, 1.5e3, 1011_2, 0.1(6). A decimal of DIGITS or more figures carries half a unit of its last as error."""
  if "_" in text:
    digits, base = text.split("_")
    try:
      return number(Fraction(int(digits, int(base))))
    except ValueError as error:  # a digit that the base has not
      raise Unreadable from error
  if "(" in text:
    start, period = text[:-1].split("(")
    whole, tail = start.split(".")
    long, short = int(whole + tail + period), int(whole + tail or "0")
    return number(Fraction(long - short, 10 ** len(tail) * (10 ** len(period) - 1)))
  whole, tail, exponent = _LITERAL.fullmatch(text).groups(default="")
  if len(exponent) > 8 or abs(int(exponent or "0")) > EXPONENT:
    raise Unreadable
  mantissa, power = int(whole + tail), int(exponent or "0") - len(tail)
  value = Fraction(mantissa) * Fraction(10) ** power
  rounded = tail and len(str(mantissa)) >= DIGITS
  return number(value, Fraction(1, 2 * mantissa) if rounded else EXACT)


def negated(node: Node) -> Node:
  if node[0] == "infinity":
    return ("infinity", -node[1])
  if node[0] in ("percent", "degree"):
    return (node[0], negated(node[1]))
  return multiplied(MINUS_ONE, node)


def added(terms: list[Node]) -> Node:
  if len(terms) == 1:
    return terms[0]
  if all(term[0] == "number" for term in terms):
    return number(sum(term[1] for term in terms), max(term[2] for term in terms))
  return ("sum", *terms)


def multiplied(a: Node, b: Node) -> Node:
  if a[0] == b[0] == "number":
    return number(a[1] * b[1], max(a[2], b[2]))
  if a == ONE:
    return b
  factors = (*(a[1:] if a[0] == "product" else (a,)), *(b[1:] if b[0] == "product" else (b,)))
  if factors[0][0] == factors[1][0] == "number":
    factors = (multiplied(factors[0], factors[1]), *factors[2:])
  return ("product", *factors)


def raised(a: Node, b: Node) -> Node:
  """a to the power b; carried out for a number and a small whole exponent."""
  if a[0] == b[0] == "number" and b[1].denominator == 1 and (a[1] or b[1] > 0):
    size = max(a[1].numerator.bit_length(), a[1].denominator.bit_length())
    if a[1] in (0, 1, -1) or size * abs(b[1]) <= BITS:
      power = int(b[1])
      return number(a[1] ** (power if abs(a[1]) != 1 else power % 2), max(a[2], b[2]))
  return ("power", a, b)


def called(name: str, *of: Node) -> Node:
  """A function's node; carried out for factorials and binomials of small whole numbers."""
  whole = [int(node[1]) for node in of if node[0] == "number" and node[1].denominator == 1]
  if name == "factorial" and whole and 0 <= whole[0] <= FACTORIAL:
    return number(Fraction(math.factorial(whole[0])))
  if name == "binomial" and len(whole) == 2 and 0 <= min(whole) and max(whole) <= FACTORIAL:
    return number(Fraction(math.comb(*whole)))
  return ("call", name, *of)
