"""What the kernel holds a verification process to, tried from within; where a system cannot, tests say so and skip."""

import contextlib
import os
import pathlib
import platform
import sys
import time

import pytest

from fipo_jax.rewards import sandbox
from fipo_jax.rewards.score import Job, Scorer

# Each line runs as Python inside of a verification; what comes of it is the pred.
VERIFIER = """
from fipo_jax.rewards import Score
def verify(response, answer, extras):
  try:
    found = eval(response)
  except BaseException as error:
    found = f"{type(error).__name__}: {error}"
  return Score(0.0, 0.0, str(found))
"""
linux = pytest.mark.skipif(
  sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="Landlock and seccomp are Linux's"
)


def run(folder, *lines, **options):
  (folder / "own").mkdir(exist_ok=True)
  path = folder / "own" / "mine.py"
  path.write_text(VERIFIER)
  heard = []
  options = {"workers": 1, "timeout_s": 10.0, "on_error": "score_wrong", "wrong_score": 0.0} | options
  with Scorer(verifier_file=str(path), say=heard.append, **options) as scorer:
    found = scorer.score([Job("file", line, "") for line in lines])
  if heard and "not held back" in heard[0]:
    pytest.skip(heard[0])
  return [s.pred or s.message for s in found]


@linux
def test_nothing_of_the_run_can_be_read_or_harmed(tmp_path, monkeypatch):
  """Environment (its own and the parent's), files outside, network, programs, signals."""
  monkeypatch.setenv("SECRET_TOKEN", "abc")
  canary = tmp_path / "canary"
  canary.write_text("whole")
  parent = os.getpid()
  found = run(
    tmp_path,
    "sorted(__import__('os').environ)",
    f"open('/proc/{parent}/environ').read()",
    f"open({str(canary)!r}, 'w')",
    f"__import__('os').unlink({str(canary)!r})",
    f"__import__('os').truncate({str(canary)!r}, 0)",
    "__import__('socket').socket()",
    "__import__('socket').socket(__import__('socket').AF_UNIX)",
    "__import__('os').fork()",
    "__import__('subprocess').run(['true'])",
    f"__import__('os').kill({parent}, 0)",
    f"__import__('os').killpg(__import__('os').getpgid({parent}), 0)",
    "__import__('resource').setrlimit(__import__('resource').RLIMIT_CPU, (1, 1))",
    "__import__('os').nice(-1)",
    "__import__('ctypes').CDLL(None, use_errno=True).ptrace(0)",
  )
  assert "SECRET_TOKEN" not in found[0] and "PATH" in found[0]
  for line in found[1:-1]:
    assert "Error" in line and ("denied" in line or "not permitted" in line or "not allowed" in line), (line, found)
  assert found[-1] == "-1"
  assert canary.read_text() == "whole"


def test_it_works_in_its_own_folder_and_imports_its_neighbour(tmp_path):
  (tmp_path / "own").mkdir()
  (tmp_path / "own" / "sibling.py").write_text("VALUE = 42\n")
  found = run(
    tmp_path, "__import__('sibling').VALUE", "__import__('os').getcwd()", "open('note', 'w').write('abc')",
    "__import__('tempfile').NamedTemporaryFile().name.startswith(__import__('os').environ['TMPDIR'])",
  )  # fmt: skip
  assert found == ["42", str(tmp_path / "own"), "3", "True"]


def test_a_file_is_bounded_and_the_log_is_not_one(tmp_path, capfd):
  found = run(tmp_path, "open('big', 'wb').write(bytes(3_000_000))", "print('hello', flush=True)", write_mb=1)
  assert found[0].startswith("OSError") and "large" in found[0] and found[1] == "None"
  assert os.path.getsize(tmp_path / "own" / "big") <= 1_000_000
  assert "hello" in capfd.readouterr().err


def test_fields_give_what_a_verifier_needs(tmp_path, monkeypatch):
  monkeypatch.setenv("SECRET_TOKEN", "abc")
  lines = (
    "__import__('os').environ['SECRET_TOKEN']", "__import__('subprocess').run(['true']).returncode",
    "__import__('socket').socket().family.name",
  )  # fmt: skip
  assert run(tmp_path, *lines, env=["SECRET_TOKEN"], processes=True, network=True) == ["abc", "0", "AF_INET"]
  with pytest.raises(ValueError, match="reward.env: 'NOT_THERE' is not in the environment"):
    run(tmp_path, "1", env=["NOT_THERE"])


def test_what_it_starts_ends_with_it(tmp_path):
  """At the deadline the worker's whole session is killed."""
  line = "[open('pid', 'w').write(str(__import__('subprocess').Popen(['sleep', '600']).pid)), 1 / 0 if 0 else [0 for _ in iter(int, 1)]]"  # noqa: E501
  (said,) = run(tmp_path, line, processes=True, timeout_s=1.0)
  assert "reward.timeout_s=1" in said
  stat = pathlib.Path(f"/proc/{(tmp_path / 'own' / 'pid').read_text()}/stat")

  def ended():
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
      return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    return True

  deadline = time.monotonic() + 60  # it was told; on a busy machine it takes its time
  while not ended() and time.monotonic() < deadline:
    time.sleep(0.05)
  assert ended()


def test_the_environment_has_what_is_named(monkeypatch):
  monkeypatch.setenv("SECRET_TOKEN", "abc")
  monkeypatch.setenv("WANTED", "yes")
  found = sandbox.environment(["WANTED", "NOT_THERE"], "/home/of/nobody")
  assert found["WANTED"] == "yes" and found["HOME"] == "/home/of/nobody" and found["JAX_PLATFORMS"] == "cpu"
  assert not {"SECRET_TOKEN", "NOT_THERE"} & set(found)
