"""Imports go one way: the ranks of the folders, held against the sources."""

import pytest
import source_imports

# Beginning of a path -> beginnings of what it may import; the longest that fits counts. A folder
# (ending in "/") may also import its own files, its __init__ excepted. A file that fits none has no
# rank yet: give it one here.
LOW = ("fipo_jax/types", "fipo_jax/masked", "fipo_jax/text", "fipo_jax/host_arrays")
FILES = ("fipo_jax/paths", "fipo_jax/lines")  # where whatever a user names is read and written
MIDDLE = (*LOW, *FILES, "fipo_jax/config", "fipo_jax/sharding", "fipo_jax/metrics", "fipo_jax/processes",
          "fipo_jax/console", "fipo_jax/changes", "fipo_jax/stalls")  # fmt: skip
STAGES = tuple(
  f"fipo_jax/{s}/" for s in ("data", "rewards", "algorithms", "models", "rollout", "train")
)
MAY_IMPORT = {
  "fipo_jax/__init__": (),
  "fipo_jax/types": (),
  "fipo_jax/masked": (),
  "fipo_jax/text": (),
  "fipo_jax/host_arrays": (),
  "fipo_jax/paths": (),
  "fipo_jax/stalls": ("fipo_jax/processes", "fipo_jax/paths"),
  "fipo_jax/console": ("fipo_jax/processes", "fipo_jax/stalls", "fipo_jax/paths"),
  "fipo_jax/lines": ("fipo_jax/paths",),
  "fipo_jax/lease": ("fipo_jax/paths", "fipo_jax/console", "fipo_jax/processes"),
  "fipo_jax/changes": ("fipo_jax/config",),
  "fipo_jax/saved": ("fipo_jax/config", "fipo_jax/changes", "fipo_jax/paths"),
  "fipo_jax/command_line": ("fipo_jax/config", "fipo_jax/changes", "fipo_jax/processes", "fipo_jax/paths"),
  "fipo_jax/commands": ("fipo_jax/command_line", "fipo_jax/console", "fipo_jax/processes"),
  "fipo_jax/base_model": (
    "fipo_jax/command_line", "fipo_jax/config", "fipo_jax/console", "fipo_jax/loop", "fipo_jax/paths",
    "fipo_jax/processes", "fipo_jax/workdir",
  ),
  "fipo_jax/benchmarks/": (
    *MIDDLE, *STAGES, "fipo_jax/assemble", "fipo_jax/collect", "fipo_jax/parts", "fipo_jax/pods/chips",
    "fipo_jax/pods/phases", "fipo_jax/pods/programs",
  ),
  "fipo_jax/report/": FILES,
  "fipo_jax/processes": (),
  "fipo_jax/config": (*LOW, "fipo_jax/alarms", "fipo_jax/paths"),
  "fipo_jax/sharding": LOW,
  "fipo_jax/metrics": (*LOW, *FILES, "fipo_jax/console", "fipo_jax/dashboards", "fipo_jax/stalls"),
  "fipo_jax/dashboards": ("fipo_jax/processes", "fipo_jax/console", "fipo_jax/paths"),
  "fipo_jax/tracing": ("fipo_jax/processes", "fipo_jax/console", "fipo_jax/paths"),
  "fipo_jax/goodput": (),
  "fipo_jax/alarms": LOW,
  "fipo_jax/data/": MIDDLE,
  "fipo_jax/rewards/": MIDDLE,
  "fipo_jax/algorithms/": MIDDLE,
  "fipo_jax/models/": MIDDLE,
  "fipo_jax/rollout/": (*MIDDLE, "fipo_jax/models/"),
  "fipo_jax/train/": (*MIDDLE, "fipo_jax/models/", "fipo_jax/algorithms/"),
  "fipo_jax/evaluate": (*MIDDLE, "fipo_jax/data/", "fipo_jax/rewards/", "fipo_jax/rollout/"),
  "fipo_jax/rollback": (*FILES, "fipo_jax/processes", "fipo_jax/alarms", "fipo_jax/train/"),
  "fipo_jax/evaluation/": MIDDLE,
  "fipo_jax/evaluation/published": (),  # for whoever draws figures, the report too
  "fipo_jax/evaluation/measure": (*MIDDLE, "fipo_jax/evaluate", "fipo_jax/evaluation/statistics"),
  "fipo_jax/evaluation/program": (
    *MIDDLE, *STAGES, "fipo_jax/assemble", "fipo_jax/collect", "fipo_jax/describe", "fipo_jax/evaluation/",
    "fipo_jax/judges", "fipo_jax/parts",
    "fipo_jax/prompts", "fipo_jax/saved", "fipo_jax/workdir",
  ),
  "fipo_jax/prompts": (*MIDDLE, "fipo_jax/data/", "fipo_jax/evaluation/sets", "fipo_jax/evaluation/overlap"),
  "fipo_jax/workdir": (*MIDDLE, "fipo_jax/goodput", "fipo_jax/lease", "fipo_jax/models/", "fipo_jax/train/"),
  "fipo_jax/describe": (*MIDDLE, "fipo_jax/data/", "fipo_jax/models/", "fipo_jax/evaluation/sets"),
  "fipo_jax/parts": (*MIDDLE, *STAGES, "fipo_jax/evaluation/sets"),
  "fipo_jax/judges": (*MIDDLE, "fipo_jax/rewards/", "fipo_jax/evaluation/sets"),
  "fipo_jax/assemble": (
    *MIDDLE, *STAGES, "fipo_jax/judges", "fipo_jax/parts", "fipo_jax/alarms", "fipo_jax/dashboards",
    "fipo_jax/describe", "fipo_jax/evaluation/sets",
    "fipo_jax/prompts",
    "fipo_jax/rollback", "fipo_jax/workdir",
  ),
  "fipo_jax/collect": (
    *MIDDLE, *STAGES, "fipo_jax/assemble", "fipo_jax/evaluate", "fipo_jax/judges", "fipo_jax/parts",
  ),
  "fipo_jax/loop": (
    *MIDDLE, *STAGES, "fipo_jax/alarms", "fipo_jax/assemble", "fipo_jax/collect", "fipo_jax/dashboards",
    "fipo_jax/parts",
    "fipo_jax/describe", "fipo_jax/evaluate", "fipo_jax/goodput", "fipo_jax/report/", "fipo_jax/rollback",
    "fipo_jax/tokens", "fipo_jax/tracing", "fipo_jax/workdir",
  ),
  "fipo_jax/tokens": ("fipo_jax/types", "fipo_jax/processes", "fipo_jax/assemble", "fipo_jax/train/"),
  "fipo_jax/export": (*MIDDLE, "fipo_jax/parts", "fipo_jax/models/", "fipo_jax/train/"),
  "fipo_jax/replays/": (
    *MIDDLE, "fipo_jax/assemble", "fipo_jax/collect", "fipo_jax/describe", "fipo_jax/loop", "fipo_jax/parts",
    "fipo_jax/rollback",
    "fipo_jax/rollout/", "fipo_jax/tokens", "fipo_jax/train/", "fipo_jax/workdir",
  ),
  "fipo_jax/replays/compare": (),
  "fipo_jax/sweeps/": (*FILES, "fipo_jax/config", "fipo_jax/changes", "fipo_jax/workdir", "fipo_jax/assemble"),
  "fipo_jax/pods/": (
    *MIDDLE, "fipo_jax/models/", "fipo_jax/rewards/", "fipo_jax/rollout/", "fipo_jax/train/", "fipo_jax/parts",
    "fipo_jax/collect", "fipo_jax/prompts", "fipo_jax/saved", "fipo_jax/evaluation/sets",
  ),
  "launch/": ("fipo_jax/", "launch/interpreter"),
  "experiments/": ("fipo_jax/config", "fipo_jax/algorithms/presets"),
  "experiments/gpu/": ("fipo_jax/models/",),
  "experiments/results/compile/": ("fipo_jax/models/", "fipo_jax/pods/chips"),
  "tests/": ("fipo_jax/", "launch/", "experiments/"),
}


def fits(path: str, beginning: str) -> bool:
  return path == beginning or (beginning.endswith("/") and path.startswith(beginning))


def violations(sources: dict[str, str]) -> list[str]:
  """One line per import that the ranks forbid."""
  found = []
  for path in sources:
    entries = [entry for entry in MAY_IMPORT if fits(path, entry)]
    if not entries:
      found.append(f"{path} has no rank")
      continue
    entry = max(entries, key=len)
    for other in sorted(source_imports.imports(path, sources)[0]):
      own_folder = fits(other, entry) and entry != "launch/" and not other.endswith("/__init__")
      if not own_folder and not any(fits(other, allowed) for allowed in MAY_IMPORT[entry]):
        found.append(f"{path} imports {other}")
  return found


def test_project_keeps_the_ranks():
  sources = source_imports.read_sources()
  assert "fipo_jax/types" in sources and "tests/layering_test" in sources
  assert violations(sources) == []


TREE = dict.fromkeys(
  [
    "fipo_jax/__init__",
    "fipo_jax/types",
    "fipo_jax/metrics",
    "fipo_jax/loop",
    "fipo_jax/report/write",
    "fipo_jax/data/__init__",
    "fipo_jax/data/sources",
    "fipo_jax/data/pipeline",
    "fipo_jax/models/__init__",
    "fipo_jax/models/layers",
    "fipo_jax/rollout/native",
    "fipo_jax/train/step",
    "launch/run",
    "launch/sweep",
  ],
  "",
)


@pytest.mark.parametrize(
  ("path", "line", "other"),
  [
    ("fipo_jax/__init__", "from fipo_jax import types", "fipo_jax/types"),
    ("fipo_jax/types", "import fipo_jax.metrics", "fipo_jax/metrics"),
    ("fipo_jax/report/write", "from fipo_jax.types import Mean", "fipo_jax/types"),
    ("fipo_jax/metrics", "from fipo_jax.report import write", "fipo_jax/report/write"),
    ("fipo_jax/data/pipeline", "from fipo_jax.models import layers", "fipo_jax/models/layers"),
    ("fipo_jax/data/pipeline", "from fipo_jax.data import SOURCES", "fipo_jax/data/__init__"),
    ("fipo_jax/data/pipeline", "import fipo_jax.data", "fipo_jax/data/__init__"),
    ("fipo_jax/rollout/native", "from fipo_jax.data import sources", "fipo_jax/data/sources"),
    (
      "fipo_jax/train/step",
      "def f():\n  from fipo_jax.rollout import native",
      "fipo_jax/rollout/native",
    ),
    ("fipo_jax/loop", "from launch.run import main", "launch/run"),
    ("launch/sweep", "from launch import run", "launch/run"),
  ],
)
def test_forbidden_import_is_found(path, line, other):
  assert violations({**TREE, path: line}) == [f"{path} imports {other}"]


@pytest.mark.parametrize(
  ("path", "line"),
  [
    (
      "fipo_jax/data/pipeline",
      "from fipo_jax.data import sources\nfrom fipo_jax.types import Prompt",
    ),
    ("fipo_jax/data/__init__", "from fipo_jax.data import sources"),
    (
      "fipo_jax/rollout/native",
      "from fipo_jax.models.layers import norm\nfrom fipo_jax.models import PRESETS",
    ),
    (
      "fipo_jax/loop",
      "from fipo_jax import metrics\nfrom fipo_jax.report import write\nfrom fipo_jax.data import SOURCES, pipeline",
    ),
    ("launch/run", "from fipo_jax import loop\nimport jax, os.path"),
  ],
)
def test_allowed_import_passes(path, line):
  assert violations({**TREE, path: line}) == []


def test_a_new_file_needs_a_rank():
  assert violations({**TREE, "fipo_jax/helpers": ""}) == ["fipo_jax/helpers has no rank"]


def test_relative_and_dangling_imports_are_refused():
  with pytest.raises(ValueError, match="relative import"):
    violations({**TREE, "fipo_jax/data/pipeline": "from . import sources"})
  with pytest.raises(ValueError, match="no file of the project"):
    violations({**TREE, "fipo_jax/loop": "import fipo_jax.gone"})


def test_packages_of_others_are_told_from_our_files():
  sources = {
    **TREE,
    "launch/run": "import os, jax.numpy\nimport orbax.checkpoint as x\nfrom fipo_jax import loop",
  }
  assert source_imports.imports("launch/run", sources) == (
    {"fipo_jax/loop"},
    {"orbax", "jax"},
  )
