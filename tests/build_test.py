"""BUILD, MODULE.bazel and requirements_lock.txt, held against the files and their imports, and by a real Bazel."""

import graphlib
import itertools
import pathlib
import re
import shutil
import subprocess
import sys

import bazel_main
import lock
import pytest
import source_imports

ROOT = source_imports.ROOT
# Import -> package, where they differ by more than - for _.
DISTRIBUTIONS = {
  "absl": "absl-py", "google": "google-cloud-storage", "orbax": "orbax-checkpoint", "tensorboardX": "tensorboardx",
  "yaml": "pyyaml",
}  # fmt: skip
Imports = dict[str, tuple[set[str], set[str]]]  # file without ".py" -> (files, packages of others) that it imports
BUILDIFIER = shutil.which("buildifier")
BAZEL = shutil.which("bazel-4")  # Debian's bazel-bootstrap


def distribution(package: str) -> str:
  return DISTRIBUTIONS.get(package, package.replace("_", "-"))


def glob(include: list[str], exclude: list[str] = (), root: pathlib.Path = ROOT) -> list[str]:
  """Bazel's, which wants something for each pattern."""

  def files(pattern):
    paths = root.glob(re.sub(r"\*\*$", "**/*", pattern))  # to pathlib, ** at an end is folders
    return {path.relative_to(root).as_posix() for path in paths if path.is_file()}

  matches = [files(pattern) for pattern in include]
  assert all(matches), f"nothing matches one of {include}"
  return sorted(set().union(*matches).difference(*map(files, exclude)))


def parse(text: str, root: pathlib.Path = ROOT) -> dict[str, dict]:
  """Targets by name. BUILD is Python by syntax, so Python reads it, a recorder behind each rule."""
  targets = {}

  def recorder(rule):
    def record(name, **fields):
      assert name not in targets, f"two targets named {name}"
      targets[name] = {"rule": rule, "deps": [], **fields}

    return record

  rules = {rule: recorder(rule) for rule in ("py_library", "py_binary", "py_test", "filegroup")}
  others = {"load": lambda *a: None, "package": lambda **k: None, "glob": lambda *a, **k: glob(*a, **k, root=root)}
  exec(compile(text, "BUILD", "exec"), {"__builtins__": {}, **rules, **others})
  return targets


def libraries(targets: dict[str, dict]) -> dict[str, list[str]]:
  """Library -> its files, without ".py". The tests count to `testing`, whose deps they have."""
  found = {name: target["srcs"] for name, target in targets.items() if target["rule"] == "py_library"}
  found["testing"] = [*found["testing"], *(f"{name}.py" for name in of_rule(targets, "py_test"))]
  return {name: [src.removesuffix(".py") for src in srcs] for name, srcs in found.items()}


def of_rule(targets: dict[str, dict], rule: str) -> dict[str, dict]:
  return {name: target for name, target in targets.items() if target["rule"] == rule}


def imports_of(sources: dict[str, str]) -> Imports:
  return {path: source_imports.imports(path, sources) for path in sources}


@pytest.fixture(scope="module")
def imports() -> Imports:
  return imports_of(source_imports.read_sources())


def complaints(targets: dict[str, dict], imports: Imports) -> list[str]:
  """One line per file that is not in one library, and per dependency that a library lacks or does not use."""
  owners, found = {}, []
  for name, files in libraries(targets).items():
    for path in files:
      owners.setdefault(path, []).append(name)
  for path in sorted(owners.keys() | imports):
    if len(owners.get(path, [])) != 1 or path not in imports:
      found.append(f"{path}.py is in {' and '.join(owners.get(path, ['no library']))}")
  if found:
    return found
  for name, files in libraries(targets).items():
    wanted = set()
    for path in files:
      ours, theirs = imports[path]
      wanted |= {f":{owners[other][0]}" for other in ours} - {f":{name}"}
      wanted |= {f"@pypi//{distribution(package).replace('-', '_')}" for package in theirs}
    has = set(targets[name]["deps"])
    found += [f"{name} lacks {dep}" for dep in sorted(wanted - has)]
    found += [f"{name} does not use {dep}" for dep in sorted(has - wanted)]
  return found


def test_each_file_is_in_one_library_and_deps_are_the_imports(imports):
  targets = parse((ROOT / "BUILD").read_text())
  assert complaints(targets, imports) == []
  # bazel would say so: dependencies in a circle
  names = of_rule(targets, "py_library")
  order = graphlib.TopologicalSorter({name: [d[1:] for d in t["deps"] if d[0] == ":"] for name, t in names.items()})
  assert set(order.static_order()) == set(names)


def test_programs_and_tests_have_targets():
  targets, sources = parse((ROOT / "BUILD").read_text()), source_imports.read_sources()
  programs, tests = of_rule(targets, "py_binary"), of_rule(targets, "py_test")
  assert set(programs) == {path for path in sources if path.startswith("launch/") and "__main__" in sources[path]}
  assert set(tests) == {path for path in sources if path.startswith("tests/") and path.endswith("_test")}
  for name, target in (programs | tests).items():
    assert target["main"] in target["srcs"] and f"{name}.py" in target["srcs"]
    # else Bazel adds an __init__.py to folders that have none here, such as tests/
    assert target["legacy_create_init"] == 0
  files = set(targets["files"]["srcs"])
  assert {f"{path}.py" for path in sources} | {"pyproject.toml", "tests/golden/index.json", "README.md"} <= files


def test_complaints(tmp_path):
  build = """
py_library(name = "core", srcs = glob(["fipo_jax/*.py"], exclude = ["fipo_jax/loop.py"]), deps = ["@pypi//jax"])
py_library(name = "data", srcs = glob(["fipo_jax/data/**/*.py"]), deps = [":core"])
py_library(name = "testing", srcs = glob(["tests/*.py"], exclude = ["tests/*_test.py"]))
[py_test(name = t[:-3], srcs = [t], args = [t], deps = [":testing"]) for t in glob(["tests/*_test.py"])]
"""
  sources = {
    "fipo_jax/types": "import jax", "fipo_jax/data/a/rows": "from fipo_jax import types\nimport os",
    "tests/conftest": "", "tests/rows_test": "import conftest",
  }  # fmt: skip

  def said(**changes):
    shutil.rmtree(tmp_path / "at", ignore_errors=True)
    for path, text in (now := sources | changes).items():
      (tmp_path / "at" / path).parent.mkdir(parents=True, exist_ok=True)
      (tmp_path / "at" / f"{path}.py").write_text(text)
    return complaints(parse(build, tmp_path / "at"), imports_of(now))

  assert said() == []
  assert said(**{"fipo_jax/loop": ""}) == ["fipo_jax/loop.py is in no library"]
  assert said(**{"fipo_jax/types": "import numpy"}) == ["core lacks @pypi//numpy", "core does not use @pypi//jax"]
  assert said(**{"fipo_jax/data/a/rows": "import absl"}) == ["data lacks @pypi//absl_py", "data does not use :core"]
  assert said(**{"tests/rows_test": "from fipo_jax.data.a import rows"}) == ["testing lacks :data"]
  twice = build.replace('exclude = ["fipo_jax/loop.py"]', "").replace("data/**/*.py", "**/*.py")
  assert complaints(parse(twice, tmp_path / "at"), imports_of(sources))[-1] == "fipo_jax/types.py is in core and data"
  with pytest.raises(AssertionError, match="nothing matches"):
    parse('glob(["gone/*.py"])', tmp_path / "at")
  with pytest.raises(AssertionError, match="two targets"):
    parse('py_library(name = "a")\npy_library(name = "a")')


def module() -> dict[str, dict]:
  """What MODULE.bazel says, by call."""
  calls = {}

  class Extension:
    def __getattr__(self, name):
      return lambda **fields: calls.__setitem__(name, fields)

  globals_ = {"module": lambda **f: calls.__setitem__("module", f), "use_extension": lambda *a: Extension()}
  globals_ |= {"use_repo": lambda _, *names: calls.__setitem__("use_repo", names)}
  globals_ |= {"bazel_dep": lambda name, **f: calls.__setitem__(name, f)}
  exec(compile((ROOT / "MODULE.bazel").read_text(), "MODULE.bazel", "exec"), {"__builtins__": {}, **globals_})
  return calls


def test_what_build_loads_is_defined():
  said = module()
  assert set(re.findall(r'load\("@(\w+)//', (ROOT / "BUILD").read_text())) <= said.keys()
  python = "3." + re.search(r'target-version = "py3(\d+)"', (ROOT / "pyproject.toml").read_text())[1]
  assert said["toolchain"] == {"is_default": True, "python_version": python}
  parsed = {"hub_name": "pypi", "python_version": python, "requirements_lock": f"//:{lock.NAME}"}
  assert said["parse"] == parsed and said["use_repo"] == ("pypi",)


# ---- requirements ----


def pins(name: str) -> dict[str, tuple[set[str], tuple[int, ...]]]:
  """Package -> (extras, version), of a file of requirements."""
  found = {}
  for line in (ROOT / name).read_text().splitlines():
    if not line.startswith("#"):
      package, extras, version = re.match(r"([A-Za-z0-9-]+)(?:\[(.*)\])?~=(\d+(?:\.\d+)+) +# \S", line).groups()
      found[package.lower()] = (set((extras or "").split(",")) - {""}, numbers(version))
  return found


def numbers(version: str) -> tuple[int, ...]:
  return tuple(int(n) for n in re.findall(r"\d+", version))


def unlocked(wanted: dict[str, tuple[set[str], tuple[int, ...]]], locked: dict[str, lock.Entry]) -> list[str]:
  """One line per requirement that the lock does not meet."""
  found = []
  for package, (extras, least) in wanted.items():
    entry = locked.get(package)
    has = numbers(entry.version) if entry else ()
    if not (entry and has[: len(least) - 1] == least[:-1] and has >= least and extras <= entry.extras):
      found.append(f"{package} {'.'.join(map(str, least))} is locked as {entry and entry.version}; run: make lock")
  return found


def test_requirements_are_what_is_imported(imports):
  runs, tests = set(), set()
  for path, (_, theirs) in imports.items():
    used = tests if path.startswith("tests/") else runs
    used |= {distribution(package) for package in theirs}
  assert set(pins("requirements.txt")) == runs
  assert set(pins("requirements-test.txt")) == tests - runs | {"pytest-xdist", "ruff"}


def test_the_lock_meets_the_requirements():
  locked = lock.read((ROOT / lock.NAME).read_text())
  wanted = {package: pin for name in lock.requirements() for package, pin in pins(name).items()}
  assert unlocked(wanted, locked) == []
  labels = itertools.chain(*(target["deps"] for target in parse((ROOT / "BUILD").read_text()).values()))
  packages = {name.replace("-", "_") for name in locked}
  assert {label.removeprefix("@pypi//") for label in labels if label[0] == "@"} <= packages
  for name, entry in locked.items():
    assert entry.hashes and all(re.fullmatch("sha256:[0-9a-f]{64}", h) for h in entry.hashes), name
  assert (ROOT / lock.NAME).read_text() == lock.write(locked, lock.requirements())


def test_what_a_lock_does_not_meet():
  def said(version, package="jax", extras=()):
    return bool(unlocked({"jax": ({"cpu"}, (0, 12, 1))}, {package: lock.Entry(version, {"cpu", *extras}, [])}))

  assert not said("0.12.1") and not said("0.12.1.2") and not said("0.12.4rc1") and not said("0.12.2", extras=["x"])
  assert said("0.12.0.1") and said("0.13.0") and said("1.12.1") and said("0.12.1", package="jaxlib")
  assert unlocked({"jax": ({"cpu"}, (0, 12))}, {"jax": lock.Entry("0.13", set(), [])})
  assert unlocked({"jax": (set(), (0, 12))}, {}) == ["jax 0.12 is locked as None; run: make lock"]


def test_entries_of_one_package_become_one():
  text = "a[y, x]==1.0 \\\n    --hash=sha256:2 \\\n    --hash=sha256:1\na[z]==1.0 \\\n    --hash=sha256:1\nb-c==2\n"
  read = lock.read(text)
  assert read["a"] == ("1.0", {"x", "y", "z"}, ["sha256:2", "sha256:1", "sha256:1"]) and read["b-c"].version == "2"
  written = lock.write(read, ["r.txt"])
  entry = "a[x,y,z]==1.0 \\\n    --hash=sha256:1 \\\n    --hash=sha256:2\nb-c==2\n"
  assert written.endswith(entry) and "from r.txt" in written
  with pytest.raises(ValueError, match="a has two versions, 1 and 2"):
    lock.read("a==1\na[x]==2\n")


# ---- Bazel ----


def test_pytest_is_told_what_bazel_says():
  bazel = {"TESTBRIDGE_TEST_ONLY": "ratio", "XML_OUTPUT_FILE": "out.xml"}
  assert bazel_main.arguments(["tests/a_test.py"], {})[-1] == "tests/a_test.py"
  assert {"-kratio", "--junitxml=out.xml"} <= set(bazel_main.arguments([], bazel))
  given = bazel_main.arguments(["-mslow"], {})
  assert given.index("-mnot slow") < given.index("-mslow")  # the last one counts


@pytest.mark.skipif(not BUILDIFIER, reason="buildifier is not on PATH (npm has it: @bazel/buildifier)")
def test_files_are_as_buildifier_formats_them():
  done = subprocess.run(
    [BUILDIFIER, "--mode=check", "--lint=warn", "BUILD", "MODULE.bazel"], cwd=ROOT, capture_output=True, text=True
  )
  assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_files_are_near_what_buildifier_wants():
  for name in ("BUILD", "MODULE.bazel"):
    text = (ROOT / name).read_text()
    assert text.startswith('"""') and text.endswith(")\n")
    assert not re.search(r"[ \t]+$|\t|\n\n\n", text, re.M), f"{name}: blanks at an end, tabs, empty lines"
    assert max(map(len, text.splitlines())) <= 120


# What BUILD and Bazel 4's own files load, and a Bazel with a network would fetch. Rules are those of Bazel 4 itself, a
# package is an empty library: Python is the one of this process, which has them all.
RULES = {
  "rules_python": ("python/defs.bzl", "py_binary py_library py_test"),
  "rules_cc": ("cc/defs.bzl", "cc_binary cc_library cc_test cc_toolchain cc_toolchain_suite"),
  "rules_java": ("java/defs.bzl", "java_binary java_import java_library java_runtime java_toolchain"),
}
EMPTY = 'filegroup(name = "{}", visibility = ["//visibility:public"])\n'
INTERPRETER = f"""load("@bazel_tools//tools/python:toolchain.bzl", "py_runtime_pair")
py_runtime(name = "runtime", interpreter_path = "{sys.executable}", python_version = "PY3")
py_runtime_pair(name = "pair", py3_runtime = ":runtime")
toolchain(name = "toolchain", toolchain = ":pair", toolchain_type = "@bazel_tools//tools/python:toolchain_type")
"""


def stand_ins() -> dict[str, str]:
  """Repository/path -> text."""
  files = {"interpreter/BUILD": INTERPRETER}
  files["remote_coverage_tools/BUILD"] = EMPTY.format("coverage_report_generator") + EMPTY.format("lcov_merger")
  for repository, (path, rules) in RULES.items():
    files[f"{repository}/{path}"] = "".join(f"{rule} = native.{rule}\n" for rule in rules.split())
    files[f"{repository}/{pathlib.Path(path).parent}/BUILD"] = ""
  for name in lock.read((ROOT / lock.NAME).read_text()):
    name = name.replace("-", "_")
    files[f"pypi/{name}/BUILD"] = f'py_library(name = "{name}", visibility = ["//visibility:public"])\n'
  return files


@pytest.mark.slow
@pytest.mark.skipif(not BAZEL, reason="bazel-4 is not on PATH (Debian has it: bazel-bootstrap)")
def test_bazel_builds_everything_and_runs_tests(tmp_path):
  project = tmp_path / "project"
  shutil.copytree(ROOT, project, ignore=shutil.ignore_patterns(".*", "__pycache__", "runs", "bazel-*"))
  (project / "WORKSPACE").write_text('workspace(name = "fipo_jax")\n')
  overrides = []
  for path, text in (files := stand_ins()).items():
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text)
  for repository in sorted({path.split("/")[0] for path in files}):
    (tmp_path / repository / "WORKSPACE").touch()
    if repository in ("interpreter", "pypi", "rules_python"):  # the others are known to Bazel
      with (project / "WORKSPACE").open("a") as file:
        file.write(f'local_repository(name = "{repository}", path = "{tmp_path / repository}")\n')
    else:
      overrides.append(f"--override_repository={repository}={tmp_path / repository}")
  start = [BAZEL, "--batch", f"--output_user_root={tmp_path}/out"]
  options = [*overrides, "--extra_toolchains=@interpreter//:toolchain", "--incompatible_disallow_empty_glob"]

  def bazel(command, *rest):
    done = subprocess.run([*start, command, *options, *rest], cwd=project, capture_output=True, text=True)
    print(done.stdout + done.stderr)
    return done.returncode, done.stdout + done.stderr

  targets = parse((ROOT / "BUILD").read_text())
  code, said = bazel("build", "//...")
  assert code == 0 and f"Found {len(targets)} targets" in said
  code, said = bazel("test", "//:tests/types_test", "//:tests/layering_test", "--test_output=all")
  assert code == 0 and "2 tests pass" in said and " passed" in said
  code, said = bazel("run", "//:launch/run", "--", "--config=experiments/quickstart.py", "--config.steps=none")
  assert code == 2 and "steps" in said
