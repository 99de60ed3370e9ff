"""Runs that belong together: arms, of runs that differ by their seed alone, and in what the arms differ."""

from __future__ import annotations

import dataclasses
import os.path
import re
from typing import Any

from fipo_jax.report.read import Run

# What makes no other experiment: the seed, and where things lie.
ALIKE = ("seed", "workdir", "compile_cache", "checkpoint.folder", "log")
ABSENT = "absent"  # of a field that the version of a run did not have


@dataclasses.dataclass(frozen=True)
class Arm:
  name: str
  runs: list[Run]


def arms(runs: list[Run]) -> list[Arm]:
  """The arms, in the order of their first runs. A run without a config is one of its own."""
  found: dict[Any, list[Run]] = {}
  for number, run in enumerate(runs):
    key = repr(sorted(kept(run).items())) if run.config else number
    found.setdefault(key, []).append(run)
  names = _distinct([_name([run.name for run in group]) for group in found.values()])
  return [Arm(name, group) for name, group in zip(names, found.values(), strict=True)]


def _name(names: list[str]) -> str:
  """Of several runs what their names begin with, without the word for the seed."""
  if len(names) == 1:
    return names[0]
  common = re.sub(r"[-_. ]*(seed|s)?[-_. ]*\d*$", "", os.path.commonprefix(names))
  return f"{common or names[0]} ({len(names)} seeds)"


def _distinct(names: list[str]) -> list[str]:
  return [f"{name} #{names[:n].count(name) + 1}" if names.count(name) > 1 else name for n, name in enumerate(names)]


def differences(found: list[Arm]) -> list[tuple[str, list[str]]]:
  """(Field, its value in each arm) of the fields in which the arms differ."""
  if len(found) < 2:
    return []
  configs = [kept(arm.runs[0]) for arm in found]
  fields = sorted(set().union(*configs))
  table = [(field, [str(c[field]) if field in c else ABSENT for c in configs]) for field in fields]
  return [(field, values) for field, values in table if len(set(values)) > 1]


def kept(run: Run) -> dict[str, Any]:
  """Dotted name -> value of the fields of its config that make the experiment."""
  inside = lambda field: any(field == name or field.startswith(f"{name}.") for name in ALIKE)
  return {field: value for field, value in flat(run.config).items() if not inside(field)}


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Dotted name -> value; an empty section is a value."""
  found: dict[str, Any] = {}
  for key, value in nested.items():
    if isinstance(value, dict) and value:
      found |= flat(value, f"{prefix}{key}.")
    else:
      found[f"{prefix}{key}"] = value
  return found
