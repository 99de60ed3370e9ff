r"""What data and verdicts ask of a text: is it whole, and what stands in its last \boxed{}."""

from __future__ import annotations

import re

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACES = re.compile(r"\\.|[{}]")


def whole(text: str, what: str) -> str:
  """The text itself. Raises: ValueError when it holds half a character, which no tokenizer and no file can take."""
  try:
    text.encode("utf-8")
  except UnicodeEncodeError as error:
    half = text[error.start]
    raise ValueError(
      f"{what} holds half a character (\\u{ord(half):04x}) after {text[: error.start][-30:]!r}; it was cut in the "
      "middle of an emoji or the like: take the half out, or make the file again from its source."
    ) from error
  return text


def last_box(text: str) -> str | None:
  r"""What stands in the last \boxed{...}, braces nested; None without one, or when its brace is not closed."""
  last = None
  for last in BOX.finditer(text):  # noqa: B007 - the last one is what is wanted
    pass
  if last is None:
    return None
  depth = 1
  for brace in _BRACES.finditer(text, last.end()):
    depth += {"{": 1, "}": -1}.get(brace.group(), 0)
    if depth == 0:
      return text[last.end() : brace.start()]
  return None
