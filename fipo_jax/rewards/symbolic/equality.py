"""Whether two answers as `reading.read` gives them are the same.

One rule for each kind of answer; for two kinds the one that stands first in `_RULES`. Neither side is the ground truth.
"""

from __future__ import annotations

from collections.abc import Sequence

from fipo_jax.rewards.symbolic import intervals, numeric
from fipo_jax.rewards.symbolic.canonical import difference, text
from fipo_jax.rewards.symbolic.formula import Node, multiplied

COMPARED = 20  # elements of a list without order; longer ones must have the same texts
_SETS = ("set", "pair", "union", "without", "domain")


def equal(a: Node, b: Node) -> bool:
  if a == b:
    return True
  if _RANK.get(a[0], len(_RANK)) > _RANK.get(b[0], len(_RANK)):
    a, b = b, a
  return _RULES[a[0]](a, b) if a[0] in _RULES else numeric.same(a, b)


def all_equal(a: Sequence[Node], b: Sequence[Node]) -> bool:
  """Element by element."""
  return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


def any_order(a: Sequence[Node], b: Sequence[Node]) -> bool:
  """The same elements, each as often."""
  if len(a) != len(b):
    return False
  if len(a) > COMPARED:
    return sorted(map(text, a)) == sorted(map(text, b))
  left = list(b)
  for x in a:
    found = next((i for i, y in enumerate(left) if equal(x, y)), None)
    if found is None:
      return False
    del left[found]
  return True


def _never(a: Node, b: Node) -> bool:
  return False


def _word(a: Node, b: Node) -> bool:
  """"Yes" is YES, "ab" is a times b."""
  if b[0] == "name":
    return len(b[1]) > 1 and b[1].lower() == a[1]
  letters = [part[1] for part in b[1:]] if b[0] == "product" and all(part[0] == "name" for part in b[1:]) else []
  return len(letters) == len(a[1]) and "".join(letters) == a[1]


def _choice(a: Node, b: Node) -> bool:
  if b[0] == "choice":
    return a[1] == b[1] and equal(a[2], b[2])
  return b == ("name", a[1])


def _equation(a: Node, b: Node) -> bool:
  """Two equations: the same name and value, or sides that differ by a factor. One: its value."""
  if b[0] != "equation":
    return bool(a[1]) and equal(a[3], b)
  if a[1] and b[1] and (a[1] == b[1] or _prose(a[2]) or _prose(b[2])):
    return equal(a[3], b[3])
  if "label" in (a[2][0], b[2][0]):
    return False
  return numeric.proportional(difference(a[2], a[3]), difference(b[2], b[3]), positive=False)


def _prose(node: Node) -> bool:
  return node[0] == "label" and node[2]


def _inequality(a: Node, b: Node) -> bool:
  if b[0] != "inequality":
    return b[0] in _SETS and intervals.same(a, b, equal)
  relations, left = intervals.ascending(a)
  others, right = intervals.ascending(b)
  if relations != others:
    return False
  if all_equal(left, right):
    return True
  if len(left) > 2:
    return False
  return numeric.proportional(difference(*left), difference(*right), positive=relations != ("!=",))


def _list(a: Node, b: Node) -> bool:
  items = a[2:]
  if b[0] == "list":
    if _variables(a) != _variables(b):  # x = 1, y = 2 with 1, 2
      return all_equal(items, b[2:])
    return any_order(items, b[2:])
  if b[0] in ("tuple", "pair") and (b[0] == "tuple" or b[1] + b[-1] == "()"):
    return all_equal(items, coordinates(b))
  if b[0] == "set":
    return any_order(items, distinct(b[1:]))
  either = a[1] == "or" and all(item[0] == "inequality" for item in items)
  return either and b[0] in _SETS and intervals.same(("union", *items), b, equal)


def _variables(a: Node) -> bool:
  """Whether each element gives another variable its value."""
  given = [item[1] for item in a[2:] if item[0] == "equation" and item[1]]
  return len(given) == len(set(given)) == len(a) - 2


def coordinates(a: Node) -> Sequence[Node]:
  return a[2:4] if a[0] == "pair" else a[1:]


def distinct(items: Sequence[Node]) -> list[Node]:
  """The elements of a set; in a long one the same texts count as the same."""
  if len(items) > COMPARED:
    return list({text(item): item for item in items}.values())
  kept: list[Node] = []
  for item in items:
    if not any(equal(item, other) for other in kept):
      kept.append(item)
  return kept


def _ratio(a: Node, b: Node) -> bool:
  """6:4:2 is 3:2:1."""
  if b[0] != "ratio" or len(a) != len(b):
    return False
  return all(numeric.same(multiplied(x, b[1]), multiplied(y, a[1])) for x, y in zip(a[2:], b[2:], strict=True))


def _marked(a: Node, b: Node) -> bool:
  """A percentage or an angle in degrees: its number, or what it stands for."""
  if b[0] in ("percent", "degree"):
    return a[0] == b[0] and equal(a[1], b[1])
  return numeric.same(a[1], b) or numeric.same(a, b)


def _set(a: Node, b: Node) -> bool:
  if b[0] == "set":
    return any_order(distinct(a[1:]), distinct(b[1:]))
  if b[0] in _SETS:
    return intervals.same(a, b, equal)
  return len(a) == 2 and equal(a[1], b)


def _tuple(a: Node, b: Node) -> bool:
  return b[0] == "tuple" and all_equal(a[1:], b[1:])


def _pair(a: Node, b: Node) -> bool:
  if b[0] == "pair":
    return (a[1], a[-1]) == (b[1], b[-1]) and all_equal(a[2:4], b[2:4])
  return _region(a, b)


def _region(a: Node, b: Node) -> bool:
  return b[0] in _SETS and intervals.same(a, b, equal)


def _matrix(a: Node, b: Node) -> bool:
  same_shape = b[0] == "matrix" and a[1] == b[1] and len(a) == len(b)
  return same_shape and all(all_equal(x, y) for x, y in zip(a[2:], b[2:], strict=True))


_RULES = {
  "text": _never, "word": _word, "choice": _choice, "equation": _equation, "inequality": _inequality, "list": _list,
  "ratio": _ratio, "percent": _marked, "degree": _marked, "set": _set, "tuple": _tuple, "pair": _pair,
  "union": _region, "without": _region, "domain": _region, "matrix": _matrix, "infinity": _never,
}  # fmt: skip
_RANK = {kind: rank for rank, kind in enumerate(_RULES)}
