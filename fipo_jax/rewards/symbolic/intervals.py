"""Sets of real numbers: intervals, points, their unions, and what inequalities in one variable say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fipo_jax.rewards.symbolic import numeric
from fipo_jax.rewards.symbolic.formula import Node

_REVERSED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_MINUS_INFINITY, _INFINITY = ("infinity", -1), ("infinity", 1)
PIECES = 40  # intervals and points of a set
Equal = Callable[[Node, Node], bool]


class Piece(NamedTuple):
  """From low to high; low_in, high_in: whether they belong to it."""

  low: Node
  low_in: bool
  high: Node
  high_in: bool


def same(a: Node, b: Node, equal: Equal) -> bool:
  """Whether two sets hold the same numbers: [1, 2] U [2, 3] is [1, 3]. False where that cannot be told."""
  if a[0] == b[0] == "domain":
    return a == b
  try:
    first, second = _joined(pieces(a, equal), equal), _joined(pieces(b, equal), equal)
  except ArithmeticError:
    return False
  return len(first) == len(second) and all(
    (x.low_in, x.high_in) == (y.low_in, y.high_in) and equal(x.low, y.low) and equal(x.high, y.high)
    for x, y in zip(first, second, strict=True)
  )


def pieces(a: Node, equal: Equal) -> list[Piece]:
  """The intervals that make up a set, in any order. Raises: numeric.NoValue for other sets, and for too many."""
  kind = a[0]
  if max(len(a), len(a[2]) if kind == "without" else 0) > PIECES:
    raise numeric.NoValue
  if kind == "pair":
    return [Piece(a[2], a[1] == "[", a[3], a[4] == "]")]
  if kind == "set":
    return [Piece(point, True, point, True) for point in a[1:]]
  if kind == "union":
    return [piece for part in a[1:] for piece in pieces(part, equal)]
  if a == ("domain", "R"):
    return [Piece(_MINUS_INFINITY, False, _INFINITY, False)]
  if kind == "without" and a[2][0] == "set":
    found = pieces(a[1], equal)
    for point in a[2][1:]:
      found = [part for piece in found for part in _without(piece, point, equal)]
    return found
  if kind == "inequality":
    return _solved(a)
  raise numeric.NoValue


def ascending(a: Node) -> tuple[tuple[str, ...], Sequence[Node]]:
  """(relations, sides) of an inequality, from the smaller side where it has one."""
  relations, sides = a[1], a[2:]
  if relations[0] in (">", ">="):
    return tuple(_REVERSED.get(relation, relation) for relation in reversed(relations)), sides[::-1]
  return relations, sides


def _solved(a: Node) -> list[Piece]:
  """x < 2, 1 < x <= 2, x != 2, from either end."""
  relations, sides = ascending(a)
  places = [i for i, side in enumerate(sides) if side[0] in ("name", "label")]
  known = [side for i, side in enumerate(sides) if [i] != places]
  if len(places) != 1 or not set(relations) <= {"<", "<=", "!="} or any(numeric.names(side) for side in known):
    raise numeric.NoValue
  place, closed = places[0], [relation == "<=" for relation in relations]
  if relations == ("!=",):
    return [Piece(_MINUS_INFINITY, False, known[0], False), Piece(known[0], False, _INFINITY, False)]
  if len(sides) == 3 and place == 1:
    return [Piece(sides[0], closed[0], sides[2], closed[1])]
  if len(sides) != 2:
    raise numeric.NoValue
  if place == 0:
    return [Piece(_MINUS_INFINITY, False, sides[1], closed[0])]
  return [Piece(sides[0], closed[0], _INFINITY, False)]


def _without(piece: Piece, point: Node, equal: Equal) -> list[Piece]:
  if equal(point, piece.low):
    return [piece._replace(low_in=False)]
  if equal(point, piece.high):
    return [piece._replace(high_in=False)]
  if _place(piece.low) < _place(point) < _place(piece.high):
    return [piece._replace(high=point, high_in=False), piece._replace(low=point, low_in=False)]
  return [piece]


def _place(node: Node) -> tuple[int, Any]:
  """Where on the line: sorts infinities and numbers."""
  return (node[1], 0) if node[0] == "infinity" else (0, numeric.lifted(numeric.order(node)))


def _joined(found: list[Piece], equal: Equal) -> list[Piece]:
  """Pieces from left to right, those that touch made one."""
  joined: list[Piece] = []
  for piece in sorted(found, key=lambda piece: (_place(piece.low), not piece.low_in)):
    last = joined[-1] if joined else None
    touching = last is not None and (
      equal(piece.low, last.high) and (piece.low_in or last.high_in) or _place(piece.low) < _place(last.high)
    )
    if not touching:
      joined.append(piece)
    elif equal(piece.high, last.high):
      joined[-1] = last._replace(high_in=last.high_in or piece.high_in)
    elif _place(piece.high) > _place(last.high):
      joined[-1] = last._replace(high=piece.high, high_in=piece.high_in)
  return joined
