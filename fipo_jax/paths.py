"""Paths of the user, wherever they lead: local ones, and gs://bucket/folder.

Whatever a run reads or writes by a path that its user names goes through here (a test finds what does not). Local paths
behave as ever. A bucket holds objects and no folders: none is appended to, renamed or half there; an object is whole or
absent, and what was written is seen at once by everybody.

What a bucket does not do now and then (5xx, 429, a lost connection) is tried again for RETRY_S, and said. What it
refuses is a `BucketError`: one line with the path, the reason and what would do.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import pathlib
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

from etils import epath

RETRY_S = 300.0  # seconds that a bucket may fail to answer; gcsfs itself repeats a request for half a minute
PAUSE_S = 2.0  # before the next try
SLOW_S = 30.0  # until it is said what is waited for
PIECE = 16 << 20  # bytes of one request of many for a large range: some at a time fill a network
ACCOUNT = (
  "give the account that this runs as the roles Storage Object User and Storage Legacy Bucket Reader on the bucket"
)
CREDENTIALS = "gcloud auth application-default login, or run as a service account with access to the bucket"

# One client with plain objects: no TensorFlow even where it is installed, and no gRPC client that asks what kind of
# bucket it is, and waits where it may not know.
os.environ.setdefault("EPATH_USE_TF", "false")
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

# What says before a write that it must not be: see `lease`.
before_writing: list[Callable[[], None]] = []
# Says a line; `console` puts its own here, which lies above this file.
say: Callable[[str], None] = functools.partial(print, flush=True)


class BucketError(OSError):
  """A bucket refuses, or has not answered for long. reason, remedy: of one line. again: whether time may mend it."""

  def __init__(self, where: str, reason: str, remedy: str, again: bool):
    super().__init__(f"{where}: {reason}; {remedy}.")
    self.reason, self.remedy, self.again = reason, remedy, again
    self.errno = errno.EIO if again else None  # as of a disk: no mistake of the user's

  def about(self, where: str) -> BucketError:
    """The same, said of something else: of a field of the config."""
    return BucketError(where, self.reason, self.remedy, self.again)


def of(path: str | os.PathLike) -> epath.Path:
  """The path that a user names. Raises: ValueError for what is neither local nor gs://; BucketError without gcsfs."""
  text = os.fspath(path)
  scheme, found, rest = text.partition("://")
  if found and (scheme != "gs" or not rest.strip("/")):
    raise ValueError(f"{text}: expected a local path, or gs://bucket/folder.")
  if found:
    _client()
  return epath.Path(text)


def is_remote(path: str | os.PathLike) -> bool:
  """Whether it is an object of a bucket, or a folder of them."""
  return os.fspath(path).startswith("gs://")


def absolute(path: str | os.PathLike) -> epath.Path:
  """The same path from the root of the file system, or of the bucket."""
  return of(path) if is_remote(path) else epath.Path(os.path.abspath(path))


@contextlib.contextmanager
def field(name: str, path) -> Iterator[None]:
  """What a bucket refuses meanwhile is said of a field of the config."""
  try:
    yield
  except BucketError as error:
    raise error.about(f"{name}={path}") from error


# ---- whole files ----


def read(path) -> bytes:
  """The content of a file. Raises: FileNotFoundError."""
  if not is_remote(path):
    return pathlib.Path(path).read_bytes()
  return _ask(path, lambda fs: fs.cat_file(str(path)))


def read_text(path) -> str:
  """The same, as UTF-8."""
  return read(path).decode("utf-8")


def read_range(path, start: int, stop: int) -> bytes:
  """Bytes start to stop of a file; long ranges of a bucket in pieces, some at a time."""
  if start >= stop:
    return b""
  if not is_remote(path):
    with open(path, "rb") as file:
      file.seek(start)
      return file.read(stop - start)
  starts = list(range(start, stop, PIECE))
  stops = [*starts[1:], stop]
  return b"".join(_ask(path, lambda fs: fs.cat_ranges([str(path)] * len(starts), starts, stops, on_error="raise")))


def write(path, content: bytes | str, *, patient: bool = True) -> None:
  """Writes a file, making its folder: whoever looks, or comes after a kill, finds the old content or the new one.

  patient: False where the next one will do, too: a bucket is asked once.
  """
  content = content.encode("utf-8") if isinstance(content, str) else content
  if is_remote(path):
    _may_write()
    client = _client()
    (repeated if patient else once)(path, lambda: client.pipe_file(str(path), content))
    return
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}-{os.getpid()}")
  try:
    with open(temporary, "wb") as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def copy(source, target) -> None:
  """Copies one file; from local to local, or within and between buckets and the disk."""
  if is_remote(source) and is_remote(target):
    _may_write()
    _ask(target, lambda fs: fs.cp_file(str(source), str(target)))
  elif is_remote(source) or is_remote(target):
    write(target, read(source))
  else:
    shutil.copyfile(source, target)


def delete(path) -> None:
  """Removes a file, if it is there."""
  if not is_remote(path):
    return pathlib.Path(path).unlink(missing_ok=True)
  _may_write()
  with contextlib.suppress(FileNotFoundError):
    _ask(path, lambda fs: fs.rm_file(str(path)))


def open_to_read(path) -> BinaryIO:
  """A file that can be read at any place; of a bucket, in blocks as they are asked for."""
  if not is_remote(path):
    return open(path, "rb")
  return _ask(path, lambda fs: fs.open(str(path), "rb"))


@contextlib.contextmanager
def open_to_write(path) -> Iterator[BinaryIO]:
  """A large file that is written from its begin to its end; in a bucket it is there once it is complete."""
  if not is_remote(path):
    with open(path, "wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    return
  _may_write()
  file = _ask(path, lambda fs: fs.open(str(path), "wb"))
  try:
    yield file
    _may_write()
    file.close()
  except BaseException as error:
    file.closed = True  # gcsfs would upload the half when the file is forgotten
    if isinstance(error, Exception) and not isinstance(error, BucketError):
      raise explained(path, error) from error
    raise


# ---- what there is ----


def is_file(path) -> bool:
  """Whether there is such a file."""
  return os.path.isfile(path) if not is_remote(path) else _type(path) == "file"


def is_folder(path) -> bool:
  """Whether there is such a folder; of a bucket: whether anything lies in it."""
  return os.path.isdir(path) if not is_remote(path) else _type(path) == "directory"


def exists(path) -> bool:
  """Whether it is one of them."""
  return os.path.exists(path) if not is_remote(path) else bool(_type(path))


def size(path) -> int:
  """Bytes of a file. Raises: FileNotFoundError."""
  if not is_remote(path):
    return os.path.getsize(path)
  return int(_ask(path, lambda fs: fs.info(str(path)))["size"])


def names(folder) -> list[str]:
  """Names of what lies in a folder, sorted; [] where there is none."""
  return [name for name, _ in entries(folder)]


def entries(folder) -> list[tuple[str, int]]:
  """The same with bytes; 0 for folders."""
  if not is_remote(folder):
    try:
      with os.scandir(folder) as found:
        return sorted((e.name, e.stat().st_size if e.is_file() else 0) for e in found)
    except FileNotFoundError:
      return []
  try:
    found = _ask(folder, lambda fs: fs.ls(str(folder), detail=True))
  except FileNotFoundError:
    return []
  own = str(folder).removeprefix("gs://").rstrip("/")
  inside = [(f["name"].rstrip("/"), f) for f in found]
  return sorted((n.rpartition("/")[2], int(f.get("size") or 0)) for n, f in inside if n != own)


def glob(pattern: str) -> list[str]:
  """Paths of files that a pattern means, sorted; of a bucket * and ? within a name."""
  return sorted(f"gs://{name}" for name in _ask(pattern, lambda fs: fs.glob(pattern)))


# ---- folders ----


def make_folder(path) -> None:
  """Makes a folder, and those above it; a bucket has none."""
  if not is_remote(path):
    pathlib.Path(path).mkdir(parents=True, exist_ok=True)


def delete_folder(path, *, first: str = "") -> None:
  """Removes a folder with all that is in it, if it is there. first: name of the file that goes before the others."""
  if not is_remote(path):
    with contextlib.suppress(FileNotFoundError):
      shutil.rmtree(path)
    return
  _may_write()
  if first:
    delete(path / first)
  with contextlib.suppress(FileNotFoundError):
    _ask(path, lambda fs: fs.rm(str(path), recursive=True))


def move_folder(source, target, *, last: str) -> None:
  """Moves a folder. Within a bucket its objects are copied by the bucket itself; what says that a folder is whole, the
  file `last`, comes last and goes first, so that a kill never leaves a half one that looks whole."""
  if not is_remote(source):
    os.rename(source, target)
    return
  own = str(source).removeprefix("gs://").rstrip("/") + "/"
  inside = [name.removeprefix(own) for name in _ask(source, lambda fs: fs.find(str(source)))]
  inside = [name for name in inside if name and name != last]
  if inside:
    _may_write()
    _ask(source, lambda fs: fs.copy([f"{own}{name}" for name in inside], [f"{target}/{name}" for name in inside]))
  copy(source / last, target / last)
  delete_folder(source, first=last)


# ---- a bucket ----


@functools.cache
def _client():
  """gcsfs, asking anew each time: a listing that is kept would hide what TensorStore and other processes write."""
  try:
    import fsspec
    import gcsfs  # noqa: F401
    import google.cloud.storage  # noqa: F401
  except ImportError as error:
    raise BucketError(
      "gs://", f"the package {error.name or 'gcsfs'} is missing",
      "pip install -r requirements.txt (gcsfs, google-cloud-storage)", False,
    ) from error  # fmt: skip
  fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
  logger = logging.getLogger("gcsfs")
  logger.setLevel(logging.DEBUG)  # repeated requests are said there, at this level
  logger.addFilter(_said_once)
  logging.getLogger("gcsfs.credentials").setLevel(logging.WARNING)
  return fsspec.filesystem("gcs", finalize_on_close=True)  # the arguments of epath, so that all have one


_repeated: set[str] = set()


def _said_once(record: logging.LogRecord) -> bool:
  """Of what gcsfs logs, that a request is repeated is said, once; errors are raised, and need no stack here."""
  if "retrying after exception" in str(record.msg) and not _repeated:
    _repeated.add("said")
    reason = " ".join(str(record.msg).partition("exception: ")[2].split())[:200]
    say(f"gs://: a request failed ({reason}) and is repeated; from now on that is not said")
  return record.levelno >= logging.WARNING and not record.exc_info and "moveTo" not in str(record.msg)


def _may_write() -> None:
  for check in before_writing:
    check()


def _type(path) -> str:
  try:
    return _ask(path, lambda fs: fs.info(str(path)))["type"]
  except FileNotFoundError:
    return ""


def _ask[T](path, act: Callable[..., T]) -> T:
  client = _client()
  return repeated(path, lambda: act(client))


def repeated[T](path, act: Callable[[], T], passing: type[Exception] | tuple = ()) -> T:
  """act(), again while the bucket does not answer. Raises: FileNotFoundError, BucketError, and what is passing."""
  begun, said = time.monotonic(), False
  while True:
    try:
      with _said_if_slow(path):
        found = once(path, act, passing)
      if said:
        say(f"{path}: the bucket answers again, after {time.monotonic() - begun:.0f} s")
      return found
    except BucketError as error:
      if not error.again or time.monotonic() - begun >= RETRY_S:
        raise
      if not said:
        said = True
        say(f"{path}: {error.reason}; tried again for up to {RETRY_S:g} s")
      time.sleep(PAUSE_S)


@contextlib.contextmanager
def _said_if_slow(path) -> Iterator[None]:
  timer = threading.Timer(SLOW_S, lambda: say(f"waiting for {path}, {SLOW_S:g} s so far"))
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def once[T](path, act: Callable[[], T], passing: type[Exception] | tuple = ()) -> T:
  """act(). Raises: FileNotFoundError, BucketError, and what is passing."""
  try:
    return act()
  except passing:
    raise
  except FileNotFoundError as error:
    raise FileNotFoundError(f"{path}: no such file or bucket.") from error
  except Exception as error:  # gcsfs, aiohttp, requests and Google's libraries have errors of their own
    raise explained(path, error) from error


def explained(path, error: BaseException) -> BucketError:
  """The line for an error of any of the clients: gcsfs, google-cloud-storage, TensorStore and what they stand on."""
  if isinstance(error, BucketError):
    return error
  code, said = status_of(error), " ".join(str(error).split())
  if found := re.search(r'"message": ?"([^"]+)"', said):  # a whole answer of the server
    said = found[1]
  said = said[:160] or type(error).__name__
  if code == 403:
    return BucketError(str(path), f"the bucket refuses it (403: {said})", ACCOUNT, False)
  if code == 401:
    return BucketError(str(path), f"no credentials for the bucket ({said})", CREDENTIALS, False)
  if code == 404:
    return BucketError(str(path), "no such bucket", "make it, or name another one", False)
  if code == 429 or code >= 500 or code == 408:
    return BucketError(str(path), f"the bucket does not answer ({said})", "the same command goes on later", True)
  reason = f"{type(error).__name__}: {said}"
  return BucketError(str(path), reason, "look at the bucket, and name another if need be", False)


# Of errors that carry no number: a part of their text, or the name of a class.
_WORDS = {
  "Forbidden": 403, "PERMISSION_DENIED": 403, "UNAUTHENTICATED": 401, "NOT_FOUND": 404, "UNAVAILABLE": 503,
  "DEADLINE_EXCEEDED": 504, "RESOURCE_EXHAUSTED": 429,
}  # fmt: skip
_CLASSES = {
  "DefaultCredentialsError": 401, "RefreshError": 401, "FileNotFoundError": 404, "TransportError": 503,
  "ClientError": 503, "RequestException": 503, "TimeoutError": 504, "ConnectionError": 503, "ChecksumError": 503,
}  # fmt: skip


def status_of(error: BaseException) -> int:
  """What HTTP calls it; 0 for what is none of a bucket."""
  with contextlib.suppress(TypeError, ValueError):
    if code := int(getattr(error, "code", None) or getattr(error, "status", None) or 0):
      return code
  for word, code in _WORDS.items():
    if word in str(error):
      return code
  found = [_CLASSES[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _CLASSES]
  return found[0] if found else 0
