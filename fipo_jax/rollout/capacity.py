"""How large the engine's programs are: slots, pages of the cache and rows of a prefill.

Shapes follow limits that a run knows at its start and never the data, so that a run compiles few programs, whatever
lengths do: at most MOST_DECODE of decoding and MOST_PREFILL of prefill for each way of sampling.
"""

from __future__ import annotations

import dataclasses

PREFILL_TOKENS = 8_192  # padded tokens of one shard in one prefill, or one prompt
MOST_DECODE, MOST_PREFILL = 6, 4  # programs of one way of sampling
SMALLEST_POOL = 4_096  # tokens of a shard: to compile for a smaller cache would take longer than it could save
SMALLEST_ROW, LANES = 16, 128  # rows of a prefill are multiples of the one, from 128 tokens on of the other


@dataclasses.dataclass(frozen=True)
class Shape:
  """Of one decode program, per shard: its slots, and the pages of each kind."""

  slots: int
  own: int
  shared: int
  tail: int

  @property
  def pages(self) -> dict[str, int]:
    """The number of each kind."""
    return {"own": self.own, "shared": self.shared, "tail": self.tail}


@dataclasses.dataclass(frozen=True)
class Capacity:
  """What an engine may hold; all but `shards` is per shard.

  slots: sequences side by side. prompt, response: longest ones, in tokens. page: tokens of a page. budget: pages of
  all kinds together, and either what one prefill makes or what a resizing holds twice; 0: as many as the slots can
  ever need. layers: of the model. resizes: whether pools may change their size (a layout that computes on all pages
  wants few; one that reads those in use alone takes them all at once).
  """

  slots: int
  shards: int
  prompt: int
  response: int
  page: int
  budget: int
  layers: int
  resizes: bool

  @property
  def ahead(self) -> int:
    """Samples that wait in the queue of a shard, prefilled."""
    return max(1, self.slots // 4)

  @property
  def longest(self) -> int:
    """Own pages of the longest sequence that shares none."""
    return -(-(self.prompt - 1 + self.response) // self.page)

  def smallest_budget(self, width: int) -> int:
    """The pages without which the longest sequence could not be decoded."""
    least = self.longest + self._full(width)
    return max(least + -(-(self.prompt + self.response) // self.page), -(-least * self._twice // 1000)) + 1

  @property
  def _twice(self) -> int:
    """Thousandths of the pages at the worst moment of a resizing: keys or values of one layer are there twice."""
    return 1000 + (-(-500 // self.layers) if self.resizes else 0)

  def _full(self, width: int) -> int:
    """Pages of the longest prompt that its samples share."""
    return (self.prompt - 1) // self.page if width > 1 else 0

  def shapes(self, width: int) -> tuple[Shape, ...]:
    """Of the programs for `width` samples per prompt: with all slots, pages ascending; then with fewer, descending.

    Need is what every slot at its longest takes. Prompts share pages while two or more of their samples are open;
    with lengths like those of answers, some 3 times as many prompts as would fill the slots are.
    """
    S, full = self.slots, self._full(width)
    need = S * self.longest
    tail = max(2, self.ahead) if width > 1 else 1
    shared = full * min(S + self.ahead, 4 * -(-S // width) + -(-self.ahead // width))
    own = need
    if self.budget:
      spare = self.budget - self.smallest_budget(width)
      tail = 1 + min(tail - 1, spare // 4)
      spare -= tail - 1
      share = max(self.budget // 8, self.budget * shared // (need + shared))
      shared = full + min(shared - full, spare // 2, share)
      room = self.budget - tail
      own = min(need, min(room - self.prefill_pages(width), 1000 * room // self._twice) - shared)
    fewer = [S // n for n in (2, 4) if S % n == 0]
    if not self.resizes:
      return (Shape(S, own, shared, tail), *(Shape(n, own, shared, tail) for n in fewer))
    found = {}  # by own pages
    for n in (16, 8, 4, 2, 1):
      if n == 1 or need // n < own and need // n >= max(2 * S, SMALLEST_POOL // self.page):
        pages = min(own, need // n)
        found[pages] = Shape(S, pages, max(min(full, shared), shared * 4 // max(n, 4)), tail)
    found = list(found.values())
    fewer = fewer[len(fewer) - min(len(fewer), MOST_DECODE - len(found)) :]
    return (*found, *(Shape(n, min(own, n * self.longest), min(shared, n * full), tail) for n in fewer))

  @property
  def prefill_lengths(self) -> tuple[int, ...]:
    """Padded lengths of prompts, and of responses that go on: few, so that few programs are compiled."""
    most = self.prompt + self.response
    middle = round((self.prompt * most) ** 0.5)
    lengths = [-(-self.prompt // 4), self.prompt, middle, most]
    return tuple(sorted({min(most, _whole(n, LANES if n > LANES else SMALLEST_ROW)) for n in lengths}))

  def prefill_length(self, tokens: int) -> int:
    """The padded length of a row of so many tokens."""
    return next(n for n in self.prefill_lengths if n >= tokens)

  def rows(self, length: int, width: int) -> int:
    """Rows of one prefill of a shard at this padded length."""
    most = min(PREFILL_TOKENS, self.budget * self.page // 16) if self.budget else PREFILL_TOKENS
    return max(1, min(self.ahead // width, most // length))

  def prefill_pages(self, width: int) -> int:
    """As many as hold the keys and values that the largest prefill of a shard makes."""
    return max(self.rows(n, width) * -(-n // self.page) for n in self.prefill_lengths)


def _whole(n: int, unit: int) -> int:
  return -(-n // unit) * unit
