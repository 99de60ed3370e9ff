"""Whether questions of an evaluation are among those that are trained on: the same ones, and those sharing a passage.

A question is what a record asks, before any template. *The same* is equal but for case and blanks. *Shared* is a
passage of 13 words (letters and digits; case and punctuation do not count) that stands in both. A passage that several
questions of a set have is how the set is worded and tells nothing.
Source of the 13 words: arXiv 2005.14165 appendix C.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Iterator
from typing import Any

WORDS = 13
WORDING = 0.05  # share of a set's questions, and more than two of them, that have a passage which is wording
_WORD = re.compile(r"\w+")


def asked(record: dict[str, Any]) -> str:
  """What a record asks: its question, or what the user says last in its messages."""
  if "messages" in record:
    return next((m["content"] for m in reversed(record["messages"]) if m["role"] == "user"), "")
  return record["question"]


class Overlap:
  """Questions of evaluation sets, then each record that is trained on, then what they share."""

  def __init__(self):
    self._whole: dict[str, set[tuple[str, int]]] = collections.defaultdict(set)
    self._passages: dict[str, set[tuple[str, int]]] = collections.defaultdict(set)
    self._ends: set[tuple[str, str]] = set()  # first and last word of each passage: most places are told by these
    self._number: dict[str, int] = {}
    self._same: dict[str, set[int]] = collections.defaultdict(set)
    self._shared: dict[str, set[int]] = collections.defaultdict(set)
    self._seen = 0

  def add(self, name: str, questions: Iterable[str]) -> None:
    """The questions of a set."""
    found = collections.defaultdict(set)
    self._number[name] = 0
    for k, question in enumerate(questions):
      self._number[name] += 1
      self._whole[_plain(question)].add((name, k))
      for passage in _passages(_words(question)):
        found[passage].add((name, k))
    most = max(2, WORDING * self._number[name])
    for passage, where in found.items():
      if len(where) <= most:
        self._passages[" ".join(passage)] |= where
        self._ends.add((passage[0], passage[-1]))

  def see(self, record: dict[str, Any]) -> None:
    """A record that is trained on."""
    self._seen += 1
    question = asked(record)
    for name, k in self._whole.get(_plain(question), ()):
      self._same[name].add(k)
    if self._ends:
      words = _words(question)
      for i in range(len(words) - WORDS + 1):
        if (words[i], words[i + WORDS - 1]) in self._ends:
          for name, k in self._passages.get(" ".join(words[i : i + WORDS]), ()):
            self._shared[name].add(k)

  def found(self) -> dict[str, dict[str, Any]]:
    """Name of a set -> prompts: how many; same, shared: places of questions (from 0) that are, or share 13 words."""
    return {
      name: {"prompts": n, "same": sorted(self._same[name]), "shared": sorted(self._shared[name] - self._same[name])}
      for name, n in self._number.items()
    }

  def notes(self) -> list[str]:
    """What is to be said of it, in a line for each set that shares something and one for the others."""
    lines, clean = [], []
    for name, found in self.found().items():
      label = f"the evaluation set {name!r}" if name else "the evaluation"
      if not found["same"] and not found["shared"]:
        clean.append(label)
        continue
      first = (found["same"] or found["shared"])[0]
      lines.append(
        f"overlap: of {found['prompts']} questions of {label} {len(found['same'])} are among those trained on, and "
        f"{len(found['shared'])} more share {WORDS} words with one (the first: question {first}, from 0)"
      )
    if clean:
      said = f"overlap: no question of {', '.join(clean)} is among the {self._seen:,} trained on"
      lines.append(f"{said}, nor shares {WORDS} words with one")
    return lines


def _plain(question: str) -> str:
  return " ".join(question.casefold().split())


def _words(question: str) -> list[str]:
  return _WORD.findall(question.casefold())


def _passages(words: list[str]) -> Iterator[tuple[str, ...]]:
  for i in range(len(words) - WORDS + 1):
    yield tuple(words[i : i + WORDS])
