"""What stands around an answer and says nothing: labels, units, remarks. On tokens; numbers in it never count.

Only words that cannot change a value are taken off. "18 dollars per day" is 18, "73 (there are 12 of them)" is 73; but
"not 5", "5 (if x > 0)", "5 or more" and "5 feet 3 inches" stay as they are, and are then no number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fipo_jax.rewards.symbolic.latex import (
  CLOSE,
  COMMAND,
  NAME,
  NUMBER,
  OPEN,
  OTHER,
  RELATION,
  SEPARATOR,
  SIGN,
  UNIT_LETTERS,
  WORD,
  Token,
)  # fmt: skip

DEPTH = 40  # of brackets

# A word that makes another value of a number before it, or before or after it.
_DENYING = set(
  "not never no none neither nor plus minus over divided multiplied than least most mod modulo half halves third thirds"
  " quarter quarters fourth fourths fifth fifths squared cubed point through between factorial choose root base if when"
  " unless except wrong incorrect false impossible am pm negative twice double triple remainder two three four five six"
  " seven eight nine ten eleven twelve twenty thirty hundred thousand million billion trillion dozen".split()
)
_DENYING_BEFORE = _DENYING | set("more less fewer greater larger smaller above below under exceeds up".split())
_ABOUT = set("approximately about roughly around exactly only just equal to is".split())
_REASON = set("because since which where due".split())  # what follows explains
_IS = set("is are was were equals".split())
_TIMES = {
  **dict.fromkeys(("hundred", "hundreds"), 10**2),
  **dict.fromkeys(("thousand", "thousands"), 10**3),
  **dict.fromkeys(("million", "millions"), 10**6),
  **dict.fromkeys(("billion", "billions"), 10**9),
  **dict.fromkeys(("trillion", "trillions"), 10**12),
  **dict.fromkeys(("dozen", "dozens"), 12),
}


class Unreadable(ValueError):
  """The text is no formula of the grammar, or not one value."""


def outside(tokens: Sequence[Token]) -> Iterator[tuple[int, Token]]:
  """(index, token) of what stands in no bracket. Raises: Unreadable where brackets do not close, or nest too deep."""
  depth = 0
  for i, token in enumerate(tokens):
    if token.kind == OPEN:
      depth += 1
      if depth > DEPTH:
        raise Unreadable
    elif token.kind == CLOSE:
      depth -= 1
      if depth < 0:
        raise Unreadable
    elif not depth:
      yield i, token
  if depth:
    raise Unreadable


def split(tokens: Sequence[Token], kind: int) -> list[tuple[str, list[Token]]]:
  """(text of the token before it, tokens) of each part between tokens of a kind, those in brackets left alone."""
  parts, start, before = [], 0, ""
  for i, token in outside(tokens):
    if token.kind == kind:
      parts.append((before, list(tokens[start:i])))
      start, before = i + 1, token.text
  return [*parts, (before, list(tokens[start:]))]


def elements(tokens: Sequence[Token]) -> tuple[str, list[list[Token]]]:
  """("or" where one joins them, else ",", the parts of a list). What explains the answer is cut off."""
  for i, token in outside(tokens):
    if i and token.kind == WORD and token.text.lower() in _REASON:
      tokens = tokens[:i]
      break
  parts = split(tokens, SEPARATOR)
  return "or" if any(before == "or" for before, _ in parts) else ",", [part for _, part in parts if part]


def members(tokens: Sequence[Token]) -> list[tuple[str, list[Token]]]:
  """(relation before it, tokens) of each side of an equation or inequality; "the area is 5" is an equation."""
  tokens = list(tokens)
  for i, token in outside(tokens):
    if token.kind in (NUMBER, RELATION, COMMAND):
      break
    if i and token.kind == WORD and token.text.lower() in _IS:
      tokens[i] = Token(RELATION, "=", token.spaced)
      break
  return split(tokens, RELATION)


def says_words(tokens: Sequence[Token]) -> str | None:
  """The text of tokens that are prose alone, in small letters, articles left out; None for others."""
  if not any(token.kind == WORD for token in tokens):
    return None
  for token in tokens:
    if token.kind not in (WORD, NAME) and token.text not in (".", "'", "-", "!", '"'):
      return None
  words = [token.text.lower() for token in tokens if token.kind in (WORD, NAME)]
  return " ".join(word for word in words if word not in ("a", "an", "the")) or None


def label(tokens: Sequence[Token]) -> str:
  """The text of a label, such as "area of the triangle". Raises: Unreadable where a word in it turns the sense."""
  if any(token.kind == WORD and token.text.lower() in _DENYING_BEFORE for token in tokens):
    raise Unreadable
  return " ".join(token.text for token in tokens)


def bare(tokens: Sequence[Token]) -> list[Token]:
  """The formula without remarks in parentheses, words like "about" before it and units or prose after it.

  Raises: Unreadable where the words may belong to the value.
  """
  tokens = without_remarks(unwrapped(tokens))
  while tokens and tokens[0].kind == WORD and tokens[0].text.lower() in _ABOUT:
    tokens = tokens[1:]
  for i, token in outside(tokens):
    if not i or token.kind != WORD:
      continue
    head, tail, word = tokens[:i], tokens[i:], token.text.lower()
    if not _ends_value(head[-1]):
      raise Unreadable
    if word in _TIMES:
      head += [Token(SIGN, "*", False), Token(NUMBER, str(_TIMES[word]), False)]
      tail = tail[1:]
    if not _says_nothing(tail):
      raise Unreadable
    return head
  if len(tokens) > 2 and tokens[-1].text in ("C", "F") and tokens[-2].text == "°":
    return tokens[:-1]
  return tokens


def unwrapped(tokens: Sequence[Token]) -> list[Token]:
  """The tokens without braces around the whole, unless they hold a set or a binomial."""
  tokens = list(tokens)
  while len(tokens) > 2 and tokens[0].text == "{" and closing(tokens, 0) == len(tokens) - 1:
    inner = tokens[1:-1]
    if any(token.kind == SEPARATOR or token.text == "choose" for _, token in outside(inner)):
      break
    tokens = inner
  return tokens


def without_remarks(tokens: Sequence[Token]) -> list[Token]:
  """Without each group "(... words ...)" that follows a value. One that begins with "or", "if", "mod" stays."""
  kept, i = [], 0
  while i < len(tokens):
    end = closing(tokens, i) if tokens[i].text == "(" and kept else None
    if end is not None and (kept[-1].kind == WORD or _ends_value(kept[-1])):
      inside = tokens[i + 1 : end]
      words = [token.text.lower() for token in inside if token.kind == WORD]
      first = inside[0] if inside else None
      called = kept[-1].kind == NAME and not tokens[i].spaced  # P(heads)
      turned = first is not None and (first.kind == SEPARATOR or first.text.lower() in _DENYING - {"not"})
      if words and not called and not turned:
        i = end + 1
        continue
    kept.append(tokens[i])
    i += 1
  return kept


def closing(tokens: Sequence[Token], start: int) -> int | None:
  """Where the bracket that opens at `start` closes; `start` itself for another token."""
  depth = 0
  for i in range(start, len(tokens)):
    depth += {OPEN: 1, CLOSE: -1}.get(tokens[i].kind, 0)
    if not depth:
      return i
  return None


def _ends_value(token: Token) -> bool:
  if token.kind == SIGN:
    return token.text in ("%", "°", "!", "|", "'")
  return token.kind in (NUMBER, NAME, CLOSE) or token.text in ("infty", "emptyset")


def _says_nothing(tail: Sequence[Token]) -> bool:
  """Whether units or prose: words that turn no sense, powers of units, letters only as units in "m/s", or "a day"."""
  for i, token in enumerate(tail):
    before = tail[i - 1] if i else Token(OTHER, "", False)
    after = tail[i + 1] if i + 1 < len(tail) else Token(OTHER, "", False)
    powered = before.text == "^" or (before.text in ("{", "-") and i > 1 and tail[i - 2].text in ("^", "{"))
    if token.kind == WORD:
      said = token.text.lower() not in _DENYING
    elif token.kind == NAME:
      said = before.text in ("/", "per", "*") and token.text in UNIT_LETTERS
      said = said or (token.text == "a" and after.kind == WORD)
    elif token.kind == NUMBER:
      said = powered and len(token.text) == 1
    elif token.text == "-":
      said = powered or (before.kind == WORD and after.kind == WORD)
    else:
      said = token.text in ("/", "*", "^", "'", "{", "}", ".")
    if not said:
      return False
  return True
