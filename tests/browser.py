"""A headless Chromium that tests look through, over its DevTools protocol; none is needed where `find` gives None."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import pathlib
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import aiohttp

START_S, ANSWER_S = 120.0, 60.0  # a busy machine takes its time


def find() -> str | None:
  """The program, if there is one."""
  return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
  """One page at a time. `errors`: what its console said of errors, warnings of blocked content included."""

  def __init__(self, port: int):
    self._loop, self._numbers, self._answers = asyncio.new_event_loop(), itertools.count(1), {}
    self.errors: list[str] = []
    self._run(self._connect(port))

  def _run(self, wanted) -> Any:
    return self._loop.run_until_complete(asyncio.wait_for(wanted, ANSWER_S))

  async def _connect(self, port: int) -> None:
    self._session = aiohttp.ClientSession()
    async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
      (page, *_) = [target for target in await answer.json() if target["type"] == "page"]
    self._socket = await self._session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
    self._reader = asyncio.ensure_future(self._read())
    for domain in ("Page", "Runtime", "Log"):
      await self._ask(f"{domain}.enable")

  async def _read(self) -> None:
    async for message in self._socket:
      said = message.json()
      if "id" in said:
        self._answers.pop(said["id"]).set_result(said)
      elif said["method"] == "Runtime.exceptionThrown":
        details = said["params"]["exceptionDetails"]
        self.errors.append(details.get("exception", {}).get("description") or details["text"])
      elif said["method"] == "Runtime.consoleAPICalled" and said["params"]["type"] in ("error", "assert"):
        self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in said["params"]["args"]))
      elif said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] in ("error", "warning"):
        self.errors.append(said["params"]["entry"]["text"])

  async def _ask(self, method: str, **params) -> dict:
    number = next(self._numbers)
    self._answers[number] = asyncio.get_running_loop().create_future()
    await self._socket.send_json({"id": number, "method": method, "params": params})
    said = await self._answers[number]
    if "error" in said:
      raise RuntimeError(f"{method}: {said['error']['message']}")
    return said["result"]

  def ask(self, method: str, **params) -> dict:
    """One command of the protocol."""
    return self._run(self._ask(method, **params))

  def open(self, path: pathlib.Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
    """Loads a file, and waits until its scripts have run."""
    self.errors.clear()
    self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    self.ask("Emulation.setEmulatedMedia", features=features)
    self.ask("Page.navigate", url=pathlib.Path(path).resolve().as_uri())
    self.wait("document.readyState === 'complete' && location.href.startsWith('file:')")

  def run(self, script: str) -> Any:
    """The value of an expression in the page."""
    said = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
    if "exceptionDetails" in said:
      raise RuntimeError(said["exceptionDetails"].get("exception", {}).get("description", "an error in the script"))
    return said["result"].get("value")

  def wait(self, script: str) -> Any:
    """The value of an expression once it is true; what fails meanwhile, as in a page that is left, is tried again."""
    end, value = time.monotonic() + ANSWER_S, None
    while not value:
      assert time.monotonic() < end, f"never came true: {script}"
      with contextlib.suppress(RuntimeError):
        value = self.run(script)
      time.sleep(0.05)
    return value

  def key(self, key: str, code: int = 0) -> None:
    """Presses a key on what has the focus."""
    for kind in ("keyDown", "keyUp"):
      self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

  def mouse(self, kind: str, x: float, y: float) -> None:
    """mouseMoved, mousePressed or mouseReleased at a place of the window."""
    pressed = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
    self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **pressed)

  def screenshot(self, path) -> None:
    """What the window shows, as PNG."""
    pathlib.Path(path).write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

  def close(self) -> None:
    self._reader.cancel()
    self._run(self._session.close())
    self._loop.close()


@contextlib.contextmanager
def started(program: str, profile: pathlib.Path) -> Iterator[Browser]:
  """A Chromium of its own, which ends with the context. profile: an empty folder."""
  command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-background-networking", "--remote-debugging-port=0", f"--user-data-dir={profile}",
             "about:blank"]  # fmt: skip
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
  try:
    port, end = profile / "DevToolsActivePort", time.monotonic() + START_S
    while not (port.is_file() and port.read_text().count("\n")):
      assert process.poll() is None and time.monotonic() < end, f"{program} did not start"
      time.sleep(0.1)
    browser = Browser(int(port.read_text().split()[0]))
    try:
      yield browser
    finally:
      browser.close()
  finally:
    os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(10)
    if process.poll() is None:
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()
