r"""An answer read whole: one value, or a list, an equation, an inequality, a choice, a text.

`read` is the one function for both sides of a comparison. To the nodes of `formula` it adds
  ("list", "," or "or", a, ...)   ("equation", name or None, left, right)   ("inequality", relations, a, b, ...)
  ("choice", letter, rest)   ("ratio", a, b, c, ...)   ("label", text, whether prose)   ("word", text)   ("text", text)
"word" is an answer in prose; "text" is what the grammar does not know, and equals the same text only.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from fractions import Fraction

from fipo_jax.rewards.symbolic import latex, numeric
from fipo_jax.rewards.symbolic.dress import (
  Unreadable,
  bare,
  closing,
  elements,
  label,
  members,
  outside,
  says_words,
  unwrapped,
  without_remarks,
)
from fipo_jax.rewards.symbolic.formula import MINUS_ONE, Node, Parser, number
from fipo_jax.rewards.symbolic.latex import COMMAND, NAME, NUMBER, SIGN, WORD, Token

SIGNS = 3  # of \pm in one element; each doubles what it says
ITEMS = 100  # of a list

_NUMBER_WORDS = {
  word: value
  for value, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen twenty".split()
  )
}
_SPACE = re.compile(r"\s+|\\[,;:! ]")
_SIZE = re.compile(r"\\(?:left|right)(?![a-zA-Z])")
_KEPT_SPACE = re.compile(r"(?<=[0-9a-zA-Z]) (?=[0-9a-zA-Z])")


def read(text: str) -> Node | None:
  """The tree of an answer; None where it cannot be one: empty, too long, or with brackets that do not close."""
  return _read(text) if len(text) <= latex.CHARACTERS else None


@functools.lru_cache(maxsize=4096)
def _read(text: str) -> Node | None:
  tokens = latex.Tokenizer(latex.clean(text).strip(" \t\n,;:")).tokens()
  try:
    return answer(tokens)
  except Unreadable:
    return opaque(tokens)


def opaque(tokens: Sequence[Token]) -> Node | None:
  """The tokens as one text; None without any, and with brackets that do not close."""
  try:
    list(outside(tokens))
  except Unreadable:
    return None
  texts = [token.text.lower() if token.kind == WORD else token.text for token in tokens]
  return ("text", compact(" ".join(texts))) if tokens else None


def compact(text: str) -> str:
  """The text without spaces, but for one between letters or figures: "2 1/2" is not "21/2"."""
  spaced = _SPACE.sub(" ", text).strip()
  kept = _KEPT_SPACE.sub("\0", spaced).replace(" ", "").replace("\0", " ")
  return _SIZE.sub("", kept).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")


def answer(tokens: list[Token]) -> Node:
  """The tree of all tokens. Raises: Unreadable."""
  tokens = unwrapped(tokens)
  chosen = choice(tokens)
  if chosen:
    return chosen
  joined, parts = elements(tokens)
  if not 0 < len(parts) <= ITEMS:
    raise Unreadable
  items = tuple(itertools.chain.from_iterable(element(part) for part in parts))
  if len(items) == 1:
    return items[0]
  return listed(joined, items)


def listed(joined: str, items: tuple[Node, ...]) -> Node:
  """A list; of one variable's values, "x = 1, x = 2" or "x = 1, 2", the equation of that variable with the list."""
  first = items[0]
  if first[0] == "equation" and first[1]:
    values = [item[3] if item[0] == "equation" and item[1] == first[1] else item for item in items]
    if not any(value[0] in ("equation", "inequality") for value in values):
      return ("equation", first[1], first[2], ("list", joined, *values))
  return ("list", joined, *items)


def choice(tokens: Sequence[Token]) -> Node | None:
  r"""(A) 5, "B. yes", \textbf{(C)}\ 12: the letter, and what stands behind it."""
  texts = [token.text for token in tokens[:4]]
  if len(texts) > 3 and texts[0] == "(" and texts[2] == ")":
    letter, rest = texts[1], tokens[3:]
  elif len(texts) > 2 and (texts[1] in (".", ")") or (texts[1] == ":" and tokens[2].spaced)):
    letter, rest = texts[0], tokens[2:]
  else:
    return None
  if letter not in tuple("ABCDEFGHIJ") or not rest[0].spaced or rest[0].kind not in (NUMBER, NAME, COMMAND, WORD):
    return None
  try:
    return ("choice", letter, answer(list(rest)))
  except Unreadable:
    return ("choice", letter, ("text", " ".join(token.text for token in rest)))


def element(tokens: list[Token]) -> list[Node]:
  r"""An element of a list: as many nodes as its \pm give."""
  both = sum(token.kind == SIGN and token.text == "pm" for token in tokens)
  if both > SIGNS:
    raise Unreadable
  together = any(token.kind == SIGN and token.text == "mp" for token in tokens)
  signs = [(s,) * both for s in (1, -1)] if together and both else itertools.product((1, -1), repeat=both)
  return [statement(tokens, sign) for sign in signs]


def statement(tokens: list[Token], signs: Sequence[int]) -> Node:
  """One side alone, or sides joined by relations."""
  relations, sides = [], []
  for relation, part in members(tokens):
    if sides:
      relations.append(relation)
      sides.append(part)
    elif part and relation in ("", "=", "~"):  # "= 5" says 5
      sides.append(part)
    elif part:
      raise Unreadable
  if not sides:
    raise Unreadable
  if not relations:
    return expression(sides[0], signs)
  if all(relation in ("=", "~", "in") for relation in relations):
    return equation(relations, sides, signs)
  if any(relation in ("~", "in") for relation in relations):
    raise Unreadable
  return ("inequality", tuple(relations), *(named(side) or expression(side, signs) for side in sides))


def equation(relations: list[str], sides: list[list[Token]], signs: Sequence[int]) -> Node:
  """x = 6/2 = 3 and "area = 5" name a value; a chain of equal numbers is that number; else two sides."""
  nodes: list[Node] = []
  for side in sides:
    may_name = len(nodes) < len(sides) - 1 and all(node[0] == "label" for node in nodes)
    nodes.append((named(side) if may_name else None) or expression(side, signs))
  while len(nodes) > 2 and nodes[0][0] == "label":  # "the answer is x = 5"
    nodes, relations = nodes[1:], relations[1:]
  if len(nodes) == 2 and is_name(nodes[1]) and not is_name(nodes[0]):  # 5 = x
    nodes.reverse()
  if not is_name(nodes[0]):
    return number_of(nodes, relations)
  if len(nodes) == 2:
    value = nodes[1]
  else:
    value = number_of(nodes[1:], relations[1:])
    if value[0] == "equation":
      raise Unreadable
  name = nodes[0][1] if nodes[0][0] in ("name", "label") else str(nodes[0])
  return ("equation", name, nodes[0], value)


def number_of(nodes: list[Node], relations: list[str]) -> Node:
  """The value of sides that are all equal; the last one, but an approximation after "≈" is not taken."""
  if any(node[0] == "label" for node in nodes) or "in" in relations:
    raise Unreadable
  exact = [nodes[0], *(node for node, relation in zip(nodes[1:], relations, strict=True) if relation == "=")]
  if all(numeric.same(exact[0], node) for node in exact[1:]):
    return exact[-1]
  if len(nodes) > 2:
    raise Unreadable
  return ("equation", None, *nodes)


def is_name(node: Node) -> bool:
  """Whether it can only be named: x, a label, or AB over CD."""
  if node[0] == "product" and len(node) == 3 and node[2][0] == "power":
    return is_name(node[1]) and is_name(node[2][1]) and node[2][2] == MINUS_ONE
  return node[0] == "label" or (node[0] == "name" and node[1] not in numeric.CONSTANTS)


def named(tokens: list[Token]) -> Node | None:
  """The label of a side that only names: prose, f(x), P(X > 2), (x, y), [ABC], |AB|; None for a formula."""
  if any(token.kind == WORD for token in tokens) and not any(token.kind == NUMBER for _, token in outside(tokens)):
    return ("label", label(tokens), True)
  texts = [token.text for token in tokens]
  inner = tokens[1:-1]
  if texts[:1] == ["("] and texts[-1] == ")":
    names = len(inner) > 2 and all(t.kind == NAME if i % 2 == 0 else t.text == "," for i, t in enumerate(inner))
    return ("label", "".join(texts), False) if names else None
  if len(inner) == 1 and texts[0] in ("[", "|") and texts[1].isupper():
    return ("label", "".join(texts), False)
  if len(tokens) < 4 or tokens[0].kind != NAME:
    return None
  start = 1
  while texts[start] == "'" and start < len(tokens) - 1:
    start += 1
  if texts[start] in ("^", "_"):  # f^{-1}(x), f_1(x)
    start = 1 + (closing(tokens, start + 1) or start + 1)
  called = start < len(tokens) and texts[start] == "(" and closing(tokens, start) == len(tokens) - 1
  return ("label", "".join(texts), False) if called else None


def expression(tokens: list[Token], signs: Sequence[int]) -> Node:
  """A formula without its dress, or a text in words."""
  said = says_words(without_remarks(tokens))
  if said in _NUMBER_WORDS:
    return number(Fraction(_NUMBER_WORDS[said]))
  if said:
    return ("word", said)
  tokens = bare(tokens)
  colons = [i for i, token in outside(tokens) if token.kind == SIGN and token.text == ":"]
  if len(colons) > 1:
    borders = itertools.pairwise([-1, *colons, len(tokens)])
    return ("ratio", *(Parser(tokens[i + 1 : j]).formula() for i, j in borders))
  return Parser(tokens, signs).formula()
