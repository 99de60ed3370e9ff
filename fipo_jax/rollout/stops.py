"""Looking for stop strings in a response that grows, at a cost that grows with it and no faster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

UNREADABLE = "\ufffd"  # how a decoder writes bytes that are no character yet
PIECE = 64  # tokens looked at together
WIDEST = 16  # tokens per character of a stop string that are looked back over: some tokens have no text


class StopSearch:
  """Finds the first token that completes a stop string.

      has(n) = some stop string ends in text(tokens[:n]) beyond the end of text(tokens[:min_tokens])
      the response ends with the smallest n > min_tokens for which has(n)

  Only what is new is decoded, behind the few tokens before it in which a stop string may begin; `begun` are those of a
  response that goes on. Before min_tokens a stop string does not count, but one may begin there: as in vLLM.

  Args:
    text: token ids -> text, special tokens included.
    strings: the stop strings, at least one.
    min_tokens: of the whole response.
    begun: [n] int, tokens of the response that were looked at before.
  Source: vllm/v1/engine/detokenizer.py (which tokens are looked at, and that one string may begin before them).
  """

  def __init__(
    self, text: Callable[[Sequence[int]], str], strings: Sequence[str], min_tokens: int = 0, begun: Iterable[int] = ()
  ):
    self._text, self._strings, self._min_tokens = text, tuple(strings), min_tokens
    self._longest = max(len(s) for s in strings)
    begun = [int(t) for t in begun]
    self._count = len(begun)
    self._before = self._end_of(begun)

  def feed(self, tokens: Iterable[int]) -> int | None:
    """How many of these next tokens belong to the response when a stop string ends it here; None when it goes on."""
    new = [int(t) for t in tokens]
    for first in range(0, len(new), PIECE):
      keep = self._look(new[first : first + PIECE])
      if keep is not None:
        return first + keep
    return None

  def _look(self, new: list[int]) -> int | None:
    """The same for at most PIECE tokens."""
    mute = min(max(self._min_tokens - self._count, 0), len(new))
    window, low = self._before + new, len(self._before) + mute
    high = len(window)
    if low < high:
      known = len(self._text(window[:low]).rstrip(UNREADABLE))  # what is not readable yet will read otherwise
      has = lambda n: self._ends_in(self._text(window[:n]), known)
      if has(high):
        while high - low > 1:  # has(high), and not has(low)
          middle = (low + high) // 2
          low, high = (low, middle) if has(middle) else (middle, high)
        return high - len(self._before)
    self._count += len(new)
    self._before = self._end_of(window)
    return None

  def _ends_in(self, text: str, known: int) -> bool:
    """Whether a stop string ends beyond the first `known` characters."""
    return any(text.find(s, max(0, known - len(s) + 1)) >= 0 for s in self._strings)

  def _end_of(self, tokens: list[int]) -> list[int]:
    """The last tokens: so many that a stop string may begin in them."""
    n = self._longest
    while n < min(len(tokens), WIDEST * self._longest):
      # One character more than may belong to a stop string: a decoder may leave out a blank at the very beginning.
      if len(self._text(tokens[-n:]).strip(UNREADABLE)) >= self._longest:
        break
      n *= 2
    return tokens[-n:]
