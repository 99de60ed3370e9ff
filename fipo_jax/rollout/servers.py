"""What the servers have: room for a response, and the newest weights, also after one was started anew."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from fipo_jax.rollout.dialects import Dialect, dig
from fipo_jax.rollout.wire import EngineError, TryAgain, Wire, quote, start

SURE_S = 5.0  # after a server showed which weights it has: it cannot be started anew in less


class Servers:
  """The servers of an engine.

  A push of weights has a name, its directory's, that a server keeps with them and is asked for. One that was started
  anew has another name, and gets the weights again before it samples. Of a server that keeps no name only a connection
  that broke can show it.

  Args:
    need: tokens of prompt and response that a server must have room for. say: takes a line about what one does not do.
  """

  def __init__(self, urls: tuple[str, ...], dialect: Dialect, need: int, say: Callable[[str], None]):
    self.urls, self.dialect, self.need, self.say = urls, dialect, need, say
    self.name = ""  # of the newest weights: their directory
    self._met = False
    self._sure: dict[str, float] = {}  # when a server last showed that it has them
    self._nameless: set[str] = set()
    self._locks = {url: threading.Lock() for url in urls}

  def meet(self, wire: Wire) -> None:
    """Asks the servers for their limits, once.

    Raises:
      EngineError: one has less room than is needed, or does not answer.
    """
    if not self._met:
      self._at_each(wire, lambda url: self._ask_room(wire, url), "/v1/models")
    self._met = True

  def push(self, wire: Wire, name: str, *, new: bool) -> None:
    """Has every server take the weights of this name; unless they are new, only those that do not have them.

    Raises:
      EngineError: a server did not.
    """
    self.name = name
    if new:
      self._sure.clear()
    have = lambda url: not new and url not in self._nameless
    work = lambda url: self.ready(wire, url) if have(url) else self._load(wire, url)
    self._at_each(wire, work, self.dialect.load(name)[0][0])

  def ready(self, wire: Wire, url: str) -> None:
    """Sees that a server has the newest weights before it samples. Raises EngineError, or what `Wire.post` does."""
    with self._locks[url]:
      quiet = time.monotonic() - self._sure.get(url, -math.inf)
      if quiet < SURE_S or url in self._nameless and quiet < math.inf:
        return
      if url in self._nameless:
        self.say(f"{url} was lost for a while, and keeps no name of its weights: {self.name} is loaded again")
      elif (name := self._name_at(wire, url)) == self.name:
        self._sure[url] = time.monotonic()
        return
      else:
        self.say(f"{url} was started anew, its weights are {name!r}: {self.name} is loaded again")
      self._load(wire, url)

  def doubt(self, url: str) -> None:
    """A connection to this server broke."""
    self._sure.pop(url, None)

  def advice(self, refusal: str) -> str:
    """What helps when a server refuses a request for samples in these words."""
    too_long = "context length" in refusal or "maximum allowed length" in refusal
    return f"; {self.room_needed()}" if too_long else ""

  def room_needed(self) -> str:
    """What helps when a response is too long for a server."""
    d, spare = self.dialect, f" + {self.dialect.spare}" if self.dialect.spare else ""
    return (
      f"start it with {d.length_needs} of at least {self.need + d.spare} = data.max_prompt_tokens + "
      f"rollout.max_response_tokens{spare}, or lower these"
    )

  def _at_each(self, wire: Wire, work: Callable[[str], None], what: str) -> None:
    """work(url) at every server, side by side; raises the first error."""
    outcomes = start(self.urls, len(self.urls), lambda url: wire.somewhere((url,), work, what))
    for _ in self.urls:
      _, outcome = outcomes.get()
      if isinstance(outcome, BaseException):
        raise outcome

  def _ask_room(self, wire: Wire, url: str) -> None:
    room = dig(wire.get(url, "/v1/models"), "data", 0, "max_model_len")
    if not isinstance(room, int):
      self.say(f"{url} does not say in /v1/models how long its context is; {self.room_needed()}")
    elif room < self.need + self.dialect.spare:
      raise EngineError(f"{url} has a context of {room} tokens; {self.room_needed()}.")

  def _load(self, wire: Wire, url: str) -> None:
    """Has a server take the newest weights, and keep their name."""
    self._sure.pop(url, None)
    for path, body in self.dialect.load(self.name):
      # A server that has failed to load weights fails again, or serves half of them.
      said = wire.post(url, path, body, advice=lambda _: f"; {self.dialect.load_needs}", final=(500,))
      if dig(said, "success") is False:
        raise TryAgain(f"{path} answered {quote(str(said))}")  # keys and values that are still in use, says vLLM
    if self.dialect.rename and url not in self._nameless:
      path, body = self.dialect.rename(self.name)
      wire.offer(url, path, body)
    if url not in self._nameless and self._name_at(wire, url) != self.name:
      self._nameless.add(url)
      self.say(
        f"{url} keeps no name of its weights (in {self.dialect.name_path}): if it is started anew while nothing is "
        "asked of it, sampler_gap_mean alone shows it"
      )
    self._sure[url] = time.monotonic()

  def _name_at(self, wire: Wire, url: str) -> str | None:
    return dig(wire.get(url, self.dialect.name_path), "weight_version")
