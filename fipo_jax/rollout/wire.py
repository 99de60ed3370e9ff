"""Requests to servers that may be away for a while: asked again, one after another, and ended all at once."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any

from fipo_jax.types import Rollout

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0  # before a request is tried again; doubles from one to the other
QUOTED = 300  # characters of a server's own words in an error


class EngineError(OSError):
  """The servers failed.

  groups: all groups of the call as `generate` would have returned them: what was finished is, the rest is marked
  "unfinished". Empty when weights could not be loaded.
  """

  def __init__(self, message: str, groups: Sequence[list[Rollout]] = ()):
    super().__init__(message)
    self.groups = list(groups)


class TryAgain(Exception):
  """An answer that another try may better."""


class Cut(Exception):
  """The call is over."""


LOST = (OSError, http.client.HTTPException)  # no answer; EngineError, which is one, is told apart first


class Wire:
  """The requests of one call. `cut` ends all of them at once, whatever their threads are waiting for.

  Args:
    timeout_s: seconds to wait for an answer. retry_s: seconds for which what failed is tried again.
    say: takes a line about servers that do not answer.
  """

  def __init__(self, timeout_s: float, retry_s: float, headers: dict[str, str], say: Callable[[str], None]):
    self.timeout_s, self.retry_s, self.headers, self.say = timeout_s, retry_s, headers, say
    self._lock, self._sockets, self._over = threading.Lock(), set(), threading.Event()
    self._told: set[str] = set()  # servers of which a line has said that they fail
    self._failing: float | None = None  # since when, as long as no line has said that it went on

  def somewhere(self, urls: tuple[str, ...], work: Callable[[str], Any], what: str) -> Any:
    """work(url) for one server after another until it comes back, for retry_s seconds after the first failure.

    Args:
      work: asks a server by `get` and `post`. what: names it in errors.
    Raises:
      EngineError: no server answered in time, and the first cause; or one refused, for good.
    """
    causes, began, tries = [], None, 0
    while True:
      url = urls[tries % len(urls)]
      tries += 1
      try:
        done = work(url)
      except EngineError:
        raise
      except TimeoutError:
        causes.append(f"{url}: no answer within rollout.timeout_s={self.timeout_s:g}")
      except (*LOST, TryAgain) as error:
        causes.append(f"{url}: {getattr(error, 'strerror', None) or str(error) or type(error).__name__}")
      else:
        if began is not None:
          self._goes_on(url)
        return done
      causes = [causes[0], causes[-1]]
      now = time.monotonic()
      began = now if began is None else began
      wait = min(FIRST_WAIT_S * 2 ** min(tries - 1, 16), LONGEST_WAIT_S)
      if now + wait > began + self.retry_s:
        break
      self._fails(url, causes[-1])
      if self._over.wait(wait):
        raise Cut
    first, last = causes
    seen = first if first == last else f"first {first}; at last {last}"
    raise EngineError(
      f"no answer to {what} in {tries} {'try' if tries == 1 else 'tries'} ({seen}); see that the servers run and can "
      f"be reached, or raise rollout.timeout_s or rollout.retry_s={self.retry_s:g}."
    )

  def post(
    self, url: str, path: str, body: dict[str, Any], *, advice: Callable[[str], str], final: tuple[int, ...] = ()
  ) -> Any:
    """The JSON that a server answers, None for nothing.

    Args:
      advice: a refusal in the server's words -> what the error ends in.
      final: statuses that another try will not better, beside those below 500 that are not 429.
    Raises:
      EngineError: the server refused, or answered something else.
      TryAgain: it is busy or broken, which may pass. One of LOST: it did not answer.
    """
    status, said = self._request("POST", url, path, json.dumps(body))
    if status not in final and (status == 429 or status >= 500):
      raise TryAgain(f"HTTP {status} {quote(said)}")
    if status != 200:
      raise EngineError(f"{url}{path} refused with HTTP {status}: {quote(said)}{advice(said)}.")
    try:
      return json.loads(said) if said.strip() else None
    except json.JSONDecodeError:
      raise EngineError(f"{url}{path} answered no JSON: {quote(said)}; is it the server's root?") from None

  def get(self, url: str, path: str) -> Any:
    """The JSON at this path, None where the server has none. Raises TryAgain or one of LOST, as `post`."""
    status, said = self._request("GET", url, path)
    if status == 429 or status >= 500:
      raise TryAgain(f"HTTP {status} {quote(said)}")
    with contextlib.suppress(json.JSONDecodeError):
      return json.loads(said) if status == 200 else None
    return None

  def offer(self, url: str, path: str, body: dict[str, Any]) -> None:
    """Posts what a server may not understand. Raises TryAgain or one of LOST, as `post`."""
    status, said = self._request("POST", url, path, json.dumps(body))
    if status == 429 or status >= 500:
      raise TryAgain(f"HTTP {status} {quote(said)}")

  def cut(self) -> None:
    """Ends every request, now and later."""
    self._over.set()
    with self._lock:
      for sock in self._sockets:
        with contextlib.suppress(OSError):
          socket.socket.shutdown(sock, socket.SHUT_RDWR)  # wakes its reader; past TLS, which would wait for the peer

  def _request(self, method: str, url: str, path: str, body: str | None = None) -> tuple[int, str]:
    """(status, text) of one request."""
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=self.timeout_s)
    try:
      connection.connect()
      sock = connection.sock
      with self._lock:
        if self._over.is_set():
          raise Cut
        self._sockets.add(sock)
      try:
        connection.request(method, parts.path + path, body, self.headers)
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8", "replace")
      finally:
        with self._lock:
          self._sockets.discard(sock)
    finally:
      connection.close()

  def _fails(self, url: str, cause: str) -> None:
    """Says once of each server that it is asked again."""
    with self._lock:
      if url in self._told:
        return
      self._told.add(url)
      self._failing = self._failing or time.monotonic()
    self.say(f"{cause}; trying again for rollout.retry_s={self.retry_s:g} s")

  def _goes_on(self, url: str) -> None:
    """Says once that something which failed was done after all."""
    with self._lock:
      since, self._failing = self._failing, None
    if since is not None:
      self.say(f"{url} answers, after {time.monotonic() - since:.1f} s; sampling goes on")


def start(jobs: Sequence, count: int, work: Callable) -> queue.SimpleQueue:
  """Runs work(job) for all jobs in order, `count` at a time; the queue gets (job, what it returned or raised).

  Daemon threads: those of concurrent.futures are waited for at the end of the process, a silent server with them.
  """
  waiting, outcomes = queue.SimpleQueue(), queue.SimpleQueue()
  for job in jobs:
    waiting.put(job)

  def run():
    for job in arrived(waiting):
      try:
        outcome = work(job)
      except Cut:
        return
      except BaseException as error:  # noqa: BLE001 - raised again by the thread that reads the queue
        outcome = error
      outcomes.put((job, outcome))

  for _ in range(min(count, len(jobs))):
    threading.Thread(target=run, name="rollout-http", daemon=True).start()
  return outcomes


def arrived(waiting: queue.SimpleQueue):
  """What is in the queue, without waiting for more."""
  with contextlib.suppress(queue.Empty):
    while True:
      yield waiting.get_nowait()


def quote(text: str) -> str:
  """A server's words on one line, not too many of them."""
  return repr(" ".join(text.split())[:QUOTED])
