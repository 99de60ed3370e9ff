"""Imported first by every program: whether this Python has what the project needs, told in one line if not."""

import importlib.util
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
NEEDED = ("jax", "flax", "optax", "orbax", "grain", "ml_collections", "absl")

if sys.version_info < (3, 12) or (missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]):
  said = "is older than 3.12" if sys.version_info < (3, 12) else f"has no {', '.join(missing)}"
  own = ROOT / ".venv/bin/python"
  use = f"use {own}" if own.exists() else f"`make setup` in {ROOT} makes one that has: {own}"
  print(f"error: this Python ({sys.executable}) {said}; {use}", file=sys.stderr)
  sys.exit(2)
