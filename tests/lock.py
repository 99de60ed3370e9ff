"""Writes requirements_lock.txt: each package of requirements*.txt, and those they need, at one version, with hashes.

    make lock

For Linux on x86-64 and CPython 3.12, whatever machine this is. Versions are those of the Python that runs this, hence
what the tests have run with; `make clean lock` takes the newest that requirements*.txt allow. Bazel reads the file
(MODULE.bazel), `make setup` does not.
"""

import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAME = "requirements_lock.txt"
UV = "uv>=0.9"  # resolves for a machine that is not this one
HEAD = "# Made by `make lock` from {}, for Linux on x86-64 and CPython 3.12.\n"


class Entry(NamedTuple):
  version: str
  extras: set[str]
  hashes: list[str]


def requirements(root: pathlib.Path = ROOT) -> list[str]:
  """The files that the lock is made from."""
  return sorted(path.name for path in root.glob("requirements*.txt") if path.name != NAME)


def read(text: str) -> dict[str, Entry]:
  """Package -> entry. Where uv writes several entries with different extras they are one here: Bazel's rules keep the
  longest line of a package and drop the others, and with them what their extras need."""
  found = {}
  for line in text.splitlines():
    if match := re.match(r"([a-z0-9-]+)(?:\[(.*)\])?==([^ ]+)", line):
      name, extras, version = match.groups()
      entry = found.setdefault(name, Entry(version, set(), []))
      if entry.version != version:
        raise ValueError(f"{name} has two versions, {entry.version} and {version}")
      entry.extras.update(re.findall(r"[^, ]+", extras or ""))
    elif match := re.match(r" +--hash=(\S+)", line):
      entry.hashes.append(match[1])
  return found


def write(found: dict[str, Entry], files: list[str]) -> str:
  """The text of the lock."""
  lines = []
  for name, (version, extras, hashes) in sorted(found.items()):
    joined = f"[{','.join(sorted(extras))}]" if extras else ""
    lines.append(" \\\n    ".join([f"{name}{joined}=={version}", *(f"--hash={h}" for h in sorted(set(hashes)))]))
  return HEAD.format(", ".join(files)) + "\n".join(lines) + "\n"


def main() -> None:
  files = requirements()
  with tempfile.TemporaryDirectory(prefix="lock-") as folder:
    versions = pathlib.Path(folder, "versions.txt")
    installed = {dist.name: dist.version for dist in importlib.metadata.distributions()}
    # "+" marks a build that no index has under this name
    versions.write_text("".join(f"{name}=={v}\n" for name, v in sorted(installed.items()) if "+" not in v))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", f"--target={folder}/uv", UV], check=True)
    made = subprocess.run(
      [
        f"{folder}/uv/bin/uv", "pip", "compile", "--quiet", "--no-config", "--generate-hashes", "--no-strip-extras",
        "--no-annotate", "--no-header", "--python-version=3.12", "--python-platform=x86_64-manylinux_2_28",
        f"--constraints={versions}", *files,
      ],
      check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
  (ROOT / NAME).write_text(write(read(made.stdout), files))


if __name__ == "__main__":
  main()
