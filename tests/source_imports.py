"""Which files of the project a file imports, and which packages; read from the source.

`layering_test.py` holds the answer to the ranks, `build_test.py` to the libraries of BUILD.
"""

import ast
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("fipo_jax", "launch", "experiments", "tests")


def read_sources() -> dict[str, str]:
  """Path without ".py" -> source, for every Python file of the project."""
  paths = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
  return {path.relative_to(ROOT).with_suffix("").as_posix(): path.read_text() for path in paths}


def imports(path: str, sources: dict[str, str]) -> tuple[set[str], set[str]]:
  """(files of the project, packages of others) that sources[path] imports, at any depth.

  `from fipo_jax.models import attention` is the file attention.py if there is one, else a name in
  models/__init__.py. Python's own modules are left out.
  Raises ValueError for a relative import and for a module of the project that does not exist.
  """
  ours, theirs = set(), set()
  for node in ast.walk(ast.parse(sources[path])):
    if isinstance(node, ast.Import):
      names = [(alias.name, None) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      if node.level:
        raise ValueError(f"{path}.py line {node.lineno}: relative import; write the full name.")
      names = [(node.module, alias.name) for alias in node.names]
    else:
      continue
    for module, name in names:
      top = module.split(".")[0]
      if path.startswith("tests/") and f"tests/{module}" in sources:
        ours.add(f"tests/{module}")  # a script's own folder is on Python's path
      elif top in FOLDERS:
        ours.add(_resolve(path, module, name, sources))
      elif top not in sys.stdlib_module_names:
        theirs.add(top)
  return ours, theirs


def _resolve(path: str, module: str, name: str | None, sources: dict[str, str]) -> str:
  stem = module.replace(".", "/")
  for candidate in ([f"{stem}/{name}"] if name else []) + [stem, f"{stem}/__init__"]:
    if candidate in sources:
      return candidate
  raise ValueError(f"{path}.py imports {module}, which is no file of the project.")
