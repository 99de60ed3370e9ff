"""The one module of the user's paths: what it does on a disk, and that nothing goes past it."""

import ast
import os

import pytest
import source_imports

from fipo_jax import config, paths

# Files that touch files by themselves, with what they use and why that is no path of a run's user, or cannot be gs://.
ALLOWED = {
  "fipo_jax/paths": ("*", "this is the module"),
  "fipo_jax/lines": ("open os.replace shutil unlink", "the one file of a disk, which is appended to"),
  "fipo_jax/workdir": ("pathlib mkdir os.open os.path.realpath", "the lock of a disk, and where our own code lies"),
  "fipo_jax/lease": ("pathlib", "/proc"),
  "fipo_jax/metrics": ("pathlib", "/proc"),
  "fipo_jax/report/page": ("read_text", "our own scripts and styles"),
  "fipo_jax/rollout/native": ("open", "/proc"),
  "fipo_jax/models/hf": ("rename", "a model of a disk replaces another"),
  "fipo_jax/command_line": ("pathlib is_file read_text os.path.isfile os.path.exists glob", "experiments: programs"),
  "fipo_jax/assemble": ("pathlib rglob read_text", "our own code, whose hash all processes compare"),
  "fipo_jax/config": ("os.path.isfile", "reward.file: a program"),
  "fipo_jax/processes": ("glob.glob", "/dev"),
  "fipo_jax/stalls": ("tempfile", "stacks on their way"),
  "fipo_jax/tracing": ("shutil tempfile", "XLA writes traces to a disk"),
  "fipo_jax/data/files": ("glob.glob", "globs of a disk"),
  "fipo_jax/data/records": ("tempfile", "prompts that wait on the disk of this machine"),
  "fipo_jax/rewards/process": ("pathlib shutil tempfile", "homes of the verifiers' processes"),
  "fipo_jax/rewards/sandbox": ("os.open os.scandir os.path.isdir os.path.realpath", "what verifiers may touch"),
  "fipo_jax/rewards/score": ("pathlib", "reward.file: a program"),
  "fipo_jax/rewards/trial": ("open", "lines that a program for a workstation tries a verifier on"),
  "fipo_jax/benchmarks/": ("*", "a workstation's own folders"),
  "fipo_jax/rewards/worker": ("open os.path.exists", "/proc"),
  "fipo_jax/rollout/http": ("pathlib is_file glob shutil", "weights for servers, which read folders of a disk"),
  "fipo_jax/rollout/servers": ("rename", "of weights, in what a server answers"),
  "fipo_jax/sweeps/": ("*", "many runs that are started on this machine, and what they print"),
  "fipo_jax/pods/": ("*", "compile reports and tables of a workstation"),
  "launch/": ("*", "the project's own folder, and files that a program for a workstation reads and writes"),
}
MODULES = ("shutil", "tempfile")
FUNCTIONS = {
  "os.open", "os.replace", "os.rename", "os.remove", "os.unlink", "os.makedirs", "os.mkdir", "os.listdir",
  "os.scandir", "os.path.exists", "os.path.isfile", "os.path.isdir", "os.path.realpath", "os.path.getsize",
  "glob.glob",
}  # fmt: skip
METHODS = {
  "read_text", "read_bytes", "write_text", "write_bytes", "iterdir", "glob", "rglob", "is_file", "is_dir", "mkdir",
  "unlink", "rmtree", "rename", "rmdir", "touch", "stat",
}  # fmt: skip
OURS = {"paths", "pathlib", "glob", "re"}  # names whose functions are not methods of a path


def uses(source: str) -> set[str]:
  """What of Python's ways to files a source uses."""
  found = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Call):
      name = ast.unparse(node.func)
      if name == "open" or name in FUNCTIONS:
        found.add(name)
      elif name in ("pathlib.Path", "epath.Path"):
        found.add(name.split(".")[0])
      elif name.split(".")[0] in MODULES:
        found.add(name.split(".")[0])
      elif isinstance(node.func, ast.Attribute) and node.func.attr in METHODS and name.split(".")[0] not in OURS:
        found.add(node.func.attr)
  return found


def strays(sources: dict[str, str]) -> list[str]:
  """A line for each file that goes past `paths` and is not allowed to, and each that is and does not."""
  found = []
  for path, source in sources.items():
    if not path.startswith(("fipo_jax/", "launch/")):
      continue
    entries = [name for name in ALLOWED if path == name or (name.endswith("/") and path.startswith(name))]
    allowed = set(ALLOWED[max(entries, key=len)][0].split()) if entries else set()
    if "*" in allowed:
      continue
    if more := uses(source) - allowed:
      found.append(f"{path}: {', '.join(sorted(more))}; use fipo_jax/paths.py, or say in ALLOWED why not")
    if gone := allowed - uses(source):
      found.append(f"{path}: no longer uses {', '.join(sorted(gone))}")
  return found


def test_paths_of_users_go_through_one_module():
  assert strays(source_imports.read_sources()) == []


@pytest.mark.parametrize(
  "line",
  ["open(x)", "os.replace(a, b)", "(folder / 'x').write_text('')", "pathlib.Path(cfg.workdir)", "shutil.copyfile(a, b)",
   "os.path.exists(x)", "epath.Path(x)", "path.is_file()"],
)  # fmt: skip
def test_a_stray_is_found(line):
  (found,) = strays({"fipo_jax/loop": line})
  assert found.startswith("fipo_jax/loop: ")
  assert strays({"fipo_jax/loop": "paths.read(x), text.replace('a', 'b'), paths.is_file(x)"}) == []


def test_a_reason_that_is_gone_is_found():
  assert strays({"fipo_jax/config": "x = 1"}) == ["fipo_jax/config: no longer uses os.path.isfile"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / "a/b.json"
  paths.write(path, "one")
  monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
  with pytest.raises(OSError, match="No space left"):
    paths.write(path, "two")
  assert paths.read_text(path) == "one" and paths.names(tmp_path / "a") == ["b.json"]


def test_what_a_disk_has(tmp_path):
  assert paths.names(tmp_path / "none") == [] and not paths.exists(tmp_path / "none")
  paths.write(tmp_path / "x.txt", b"0123456789")
  assert paths.entries(tmp_path) == [("x.txt", 10)] and paths.read_range(tmp_path / "x.txt", 2, 5) == b"234"
  with pytest.raises(NotADirectoryError):
    paths.names(tmp_path / "x.txt")
  paths.delete(tmp_path / "x.txt")
  paths.delete(tmp_path / "x.txt")
  assert paths.names(tmp_path) == []


@pytest.mark.parametrize("path", ["s3://bucket/x", "gs://", "gs:///", "file:///x"])
def test_what_is_neither_local_nor_gs_is_refused(path):
  with pytest.raises(ValueError, match=r"expected a local path, or gs://bucket/folder\.$"):
    paths.of(path)
  c = config.default()
  c.workdir = path
  with pytest.raises(ValueError, match=f"workdir='{path}': expected a local path, or gs://bucket/folder"):
    config.validate(c)


def test_what_cannot_be_in_a_bucket_is_refused_by_name():
  c = config.default()
  c.model.preset, c.reward.file = "tiny", "gs://bucket/verifier.py"
  with pytest.raises(ValueError, match=r"reward.file='gs://bucket/verifier.py': a program is run from a disk"):
    config.validate(c)
  c.reward.file, c.workdir, c.rollout.engine = "", "gs://bucket/run", "http"
  with pytest.raises(ValueError, match=r"workdir='gs://bucket/run': rollout.engine='http' puts weights there"):
    config.validate(c)
