"""README and docs/*.md as tests read them: code blocks, commands, names in backticks, links, anchors."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import unicodedata

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ("README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")))


@dataclasses.dataclass(frozen=True)
class Line:
  """A line of a code block, with its continuations; where: page:number."""

  where: str
  text: str


def text_of(page: str) -> str:
  return (ROOT / page).read_text()


def blocks(page: str) -> list[list[Line]]:
  """Code blocks: lines that are indented by four or more, or stand between fences without a language or of a shell.

  Fenced Python and JSON are programs, and left to who reads them (`extending_test.py`).
  """
  found, block, fence, before = [], [], None, ""
  for number, line in enumerate([*text_of(page).splitlines(), ""], start=1):
    if opening := re.match(r"\s*```(\w*)", line):
      fence, line = (opening[1] if fence is None else None), ""
    inside = fence in ("", "sh", "bash", "console") if fence is not None else line.startswith("    ")
    if inside and line.strip():
      if before.endswith("\\"):
        block[-1] = Line(block[-1].where, f"{block[-1].text[:-1].rstrip()} {line.strip()}")
      else:
        block.append(Line(f"{page}:{number}", line.strip()))
    elif block and not inside:
      found.append(block)
      block = []
    before = line.rstrip() if inside else ""
  return found


def files(page: str) -> dict[str, str]:
  """Name -> content of fenced blocks that begin with "# NAME". JSON has no comments, so that line is not its."""
  named = re.findall(r"^```\w+\n# (\S+)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
  return {name: text if name.endswith(".jsonl") else f"# {name}\n{text}" for name, text in named}


def prose(page: str) -> str:
  """The page without its code blocks."""
  text = re.sub(r"^\s*```.*?^\s*```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
  return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def quoted(page: str) -> list[str]:
  """What stands in backticks; a line break within is a blank."""
  return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def links(page: str) -> list[str]:
  return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def anchors(page: str) -> set[str]:
  """Of the headings, as GitHub makes them."""
  return {anchor(title) for title in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)}


def anchor(title: str) -> str:
  kept = (c for c in title.strip().lower() if c in " -_" or unicodedata.category(c)[0] in "LN")
  return "".join(kept).replace(" ", "-")
