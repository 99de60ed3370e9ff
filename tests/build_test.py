"""BUILD names every source file, and each target's deps are the file's imports.

python tests/build_test.py --write       writes BUILD anew, from the imports
"""

import re
import sys

import pytest
import source_imports

ROOT = source_imports.ROOT
# Import -> package, where they differ by more than - for _.
DISTRIBUTIONS = {
  "absl": "absl-py", "google": "google-cloud-storage", "orbax": "orbax-checkpoint", "tensorboardX": "tensorboardx",
  "yaml": "pyyaml",
}  # fmt: skip
HEADER = '''"""One target per source file; `make` does not need this file.

Written from the imports by `python tests/build_test.py --write`; a test keeps the two equal.
"""

load("@rules_python//python:defs.bzl", "py_binary", "py_library", "py_test")

package(default_visibility = ["//visibility:public"])

filegroup(
    name = "data",
    srcs = glob(
        [
            "experiments/**",
            "fipo_jax/**/*.py",
            "launch/**",
            "tests/**",
        ],
        exclude = ["**/__pycache__/**"],
    ) + [
        "BUILD",
        "Makefile",
        "pyproject.toml",
        "requirements.txt",
        "requirements-test.txt",
    ],
)
'''


def distribution(package: str) -> str:
  return DISTRIBUTIONS.get(package, package.replace("_", "-"))


def wanted(path: str, sources: dict[str, str]) -> dict:
  """The target of one file, as BUILD should have it."""
  ours, theirs = source_imports.imports(path, sources)
  target = {"rule": "py_library", "name": path, "srcs": [f"{path}.py"]}
  if path.startswith("tests/") and path.endswith("_test"):
    target |= {
      "rule": "py_test",
      "srcs": [f"{path}.py", "tests/bazel_main.py"],
      "main": "tests/bazel_main.py",
    }
    target |= {"args": [f"{path}.py"], "data": [":data"]}
    ours |= {"tests/conftest"} & set(sources)
    theirs |= {"pytest"}
  elif path.startswith("launch/") and "__main__" in sources[path]:
    target |= {"rule": "py_binary", "main": f"{path}.py", "data": [":data"]}
  packages = sorted({distribution(package).replace("-", "_") for package in theirs})
  return target | {
    "deps": [f":{p}" for p in sorted(ours)] + [f"@pypi//{package}" for package in packages]
  }


def text(target: dict) -> str:
  """A target in buildifier's layout."""
  lines = []
  for key in ("name", "srcs", "args", "data", "main", "deps"):
    value = target.get(key)
    if isinstance(value, list) and len(value) > 1:
      lines += [f"    {key} = [", *(f'        "{v}",' for v in value), "    ],"]
    elif value:
      lines.append(
        f'    {key} = ["{value[0]}"],' if isinstance(value, list) else f'    {key} = "{value}",'
      )
  return "\n".join([f"{target['rule']}(", *lines, ")"]) + "\n"


def generate() -> str:
  sources = source_imports.read_sources()
  return "\n".join([HEADER, *(text(wanted(path, sources)) for path in sources)])


def parse(build: str) -> dict[str, dict]:
  """Targets by name. BUILD is Python by syntax, so Python reads it, a recorder behind each rule."""
  targets = {}

  def recorder(rule):
    def record(name, **fields):
      assert name not in targets, f"two targets named {name}"
      targets[name] = {"rule": rule, "name": name, "deps": [], **fields}

    return record

  rules = {rule: recorder(rule) for rule in ("py_library", "py_binary", "py_test", "filegroup")}
  ignored = {name: lambda *a, **k: [] for name in ("load", "package", "glob")}
  exec(compile(build, "BUILD", "exec"), {"__builtins__": {}, **rules, **ignored})
  return targets


def pinned(name: str) -> set[str]:
  lines = (ROOT / name).read_text().splitlines()
  return {re.split(r"[~=<>\[ ]", line)[0] for line in lines if line and not line.startswith("#")}


def test_every_file_has_a_target_and_every_target_a_file():
  sources, targets = source_imports.read_sources(), parse((ROOT / "BUILD").read_text())
  assert set(targets) - {"data"} == set(sources), "run: python tests/build_test.py --write"


def test_deps_are_the_imports():
  sources, targets = source_imports.read_sources(), parse((ROOT / "BUILD").read_text())
  for path in sources:
    assert targets[path] == wanted(path, sources), "run: python tests/build_test.py --write"


def test_requirements_are_what_is_imported():
  sources = source_imports.read_sources()
  runs, tests = set(), set()
  for path in sources:
    used = tests if path.startswith("tests/") else runs
    used |= {distribution(package) for package in source_imports.imports(path, sources)[1]}
  assert pinned("requirements.txt") == runs
  assert pinned("requirements-test.txt") == tests - runs | {"pytest-xdist", "ruff"}


def test_pins_are_compatible_releases():
  for name in ("requirements.txt", "requirements-test.txt"):
    for line in (ROOT / name).read_text().splitlines():
      assert line.startswith("#") or re.match(r"[a-z0-9-]+~=\d+(\.\d+)+ +# \S", line), line


def test_a_target_is_read_as_it_is_written():
  sources = {
    "fipo_jax/types": "import jax",
    "launch/run": "from fipo_jax import types\nif __name__ == '__main__': pass",
  }
  target = wanted("launch/run", sources)
  assert target["rule"] == "py_binary" and target["deps"] == [":fipo_jax/types"]
  assert parse(text(target)) == {"launch/run": target}
  assert wanted("fipo_jax/types", sources)["deps"] == ["@pypi//jax"]
  with pytest.raises(AssertionError, match="two targets"):
    parse(text(target) * 2)


if __name__ == "__main__":
  if sys.argv[1:] != ["--write"]:
    sys.exit("usage: python tests/build_test.py --write")
  (ROOT / "BUILD").write_text(generate())
