r"""Where a response says its answer, and what of that is dress. One rule for every verifier but the DAPO check's own.

The answer is what follows the last "Answer:" (bold or not), else what stands in the last \boxed{}. Linear in the length
of the response, whatever it holds: hostile text costs its length and no more.
"""

from __future__ import annotations

import re

from fipo_jax.text import BOX, last_box

# "Answer:", "ANSWER :", "**Answer:**", "**Answer**:", "__Answer__ :"
_LABEL = re.compile(r"answer(?:\*\*|__|\*|_)?[ \t]*:(?:\*\*|__|\*|_)?", re.IGNORECASE)

# What may stand around an answer, as often as it does: (opening, closing).
_AROUND = (
  ("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("__", "__"), ("```", "```"), ("`", "`"),
  ("*", "*"), ("_", "_"),
)  # fmt: skip

# What goes on over several lines: (opening, closing). A formula's own must begin the line.
_ENVIRONMENT = r"\begin{"
_BLOCKS = (("$$", "$$"), (r"\[", r"\]"), ("```", "```"), (_ENVIRONMENT, r"\end{"))
BLOCK_CHARACTERS = 4000  # where the end of a block is looked for


def after_label(response: str) -> str | None:
  """All text after the last "Answer:", stripped; None without a label or with nothing after it."""
  last = None
  for last in _LABEL.finditer(response):  # noqa: B007 - the last one is what is wanted
    pass
  return response[last.end() :].strip() or None if last else None


def answer_line(response: str) -> str | None:
  r"""The first line after the last "Answer:", else the content of the last \boxed{}; undressed; None without both.

  A formula that this line opens and does not close (`$$`, `\[`, a fence, a matrix) is read to its end; emphasis that
  began before the label ends with the line; a box around the whole is dress.
  """
  text = after_label(response)
  if text is None:
    text = last_box(response)
    return (undress(text) or None) if text is not None else None
  text = undress(_unmarked(_first_line(text).split("</answer>", 1)[0].strip()))
  box = BOX.match(text)
  if box and text.endswith("}") and last_box(text) == text[box.end() : -1]:
    text = undress(text[box.end() : -1])
  return text or None


def _first_line(text: str) -> str:
  """The first line, and those up to the end of a formula that it opens and does not close."""
  line = text.split("\n", 1)[0]
  for opening, closing in _BLOCKS:
    start = line.find(opening)
    if start == 0 or (start > 0 and opening == _ENVIRONMENT):
      end = text.find(closing, start + len(opening), start + BLOCK_CHARACTERS)
      if end > len(line):
        return text[:end].replace("\n", " ") + text[end:].split("\n", 1)[0]
  return line


def _unmarked(line: str) -> str:
  for mark in ("**", "__"):
    if line.endswith(mark) and line.count(mark) == 1:
      return line[: -len(mark)]
  return line


def undress(text: str) -> str:
  r"""The text without what only surrounds it: `$`, `$$`, `\( \)`, `\[ \]`, emphasis, code marks, a closing dot, spaces.

  A pair goes only where it surrounds the whole: "$1$ and $2$" stays.
  """
  for _ in range(2 * len(_AROUND)):
    before = text = text.strip()
    if text.endswith(".") and not text.endswith(("..", r"\.")):
      text = text[:-1].rstrip()
    for opening, closing in _AROUND:
      if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
        inner = text[len(opening) : -len(closing)]
        if opening not in inner and closing not in inner:
          text = inner
          break
    if text == before:
      break
  return text
