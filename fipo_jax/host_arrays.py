"""Nested dicts of JSON with NumPy arrays among them, taken apart for a file of each; and joined."""

from __future__ import annotations

from typing import Any

import numpy as np


def split(tree: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """(What JSON can say, the arrays by their path of keys: {"outer.inner": array})."""
  rest, arrays = {}, {}
  for name, value in tree.items():
    if isinstance(value, np.ndarray):
      arrays[name] = value
    elif isinstance(value, dict):
      rest[name], inside = split(value)
      arrays |= {f"{name}.{path}": array for path, array in inside.items()}
    else:
      rest[name] = value
  return rest, arrays


def join(rest: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
  """The inverse of `split`, in place."""
  for path, array in arrays.items():
    *outer, name = path.split(".")
    inside = rest
    for key in outer:
      inside = inside[key]
    inside[name] = array
  return rest
