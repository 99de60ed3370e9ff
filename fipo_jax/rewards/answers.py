r"""Where a response says its answer, and what of that is dress. One rule for every verifier but the DAPO check's own.

The answer is what follows the last "Answer:" (bold or not), else what stands in the last \boxed{}. Linear in the length
of the response, whatever it holds: hostile text costs its length and no more.
"""

from __future__ import annotations

import re

# "Answer:", "ANSWER :", "**Answer:**", "**Answer**:", "__Answer__ :"
_LABEL = re.compile(r"answer(?:\*\*|__|\*|_)?[ \t]*:(?:\*\*|__|\*|_)?", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")

# What may stand around an answer, as often as it does: (opening, closing).
_AROUND = (
  ("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("__", "__"), ("```", "```"), ("`", "`"),
  ("*", "*"), ("_", "_"),
)  # fmt: skip


def after_label(response: str) -> str | None:
  """All text after the last "Answer:", stripped; None without a label or with nothing after it."""
  last = None
  for last in _LABEL.finditer(response):  # noqa: B007 - the last one is what is wanted
    pass
  return response[last.end() :].strip() or None if last else None


def answer_line(response: str) -> str | None:
  r"""The first line after the last "Answer:", else the content of the last \boxed{}; undressed; None without both."""
  text = after_label(response)
  text = last_box(response) if text is None else text.split("\n", 1)[0]
  return (undress(text) or None) if text is not None else None


def last_box(text: str) -> str | None:
  r"""What stands in the last \boxed{...}; None without one, or when its brace is not closed."""
  last = None
  for last in _BOX.finditer(text):  # noqa: B007
    pass
  if last is None:
    return None
  depth = 1
  for brace in re.finditer(r"\\.|[{}]", text[last.end() :]):
    depth += {"{": 1, "}": -1}.get(brace.group(), 0)
    if depth == 0:
      return text[last.end() : last.end() + brace.start()]
  return None


def undress(text: str) -> str:
  r"""The text without what only surrounds it: `$`, `$$`, `\( \)`, `\[ \]`, emphasis, code marks, a closing dot, spaces.

  A pair goes only where it surrounds the whole: "$1$ and $2$" stays.
  """
  while True:
    before = text = text.strip()
    if text.endswith(".") and not text.endswith(("..", r"\.")):
      text = text[:-1].rstrip()
    for opening, closing in _AROUND:
      inner = text[len(opening) : -len(closing)]
      if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
        if opening not in inner and closing not in inner:
          text = inner
          break
    if text == before:
      return text
