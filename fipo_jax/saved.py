"""The config that a run has left in its workdir, as an experiment: `--config=runs/x/config.json` is that run again."""

from __future__ import annotations

import json

import ml_collections

from fipo_jax import changes, config, paths


def get_config(path: str) -> ml_collections.ConfigDict:
  """The config in a config.json; fields that it lacks have their defaults.

  Raises: OSError or ValueError for a file that is none, naming the field.
  """
  try:
    saved = json.loads(paths.read_text(path))
  except ValueError as error:
    raise ValueError(f"--config={path}: not valid JSON ({error}); expected the config.json of a run.") from error
  c = config.default()
  if not isinstance(saved, dict) or not saved.keys() & c.keys():
    raise ValueError(f"--config={path}: no config of a run; a workdir's config.json is one.")
  _fill(c, saved, path, "")
  return c


def _fill(section: ml_collections.ConfigDict, saved: dict, path: str, prefix: str) -> None:
  for name, value in saved.items():
    field = f"{prefix}{name}"
    if name not in section:
      if field in changes.GONE and value == changes.GONE[field]:
        continue
      known = changes.flat(config.default().to_dict())
      raise ValueError(f"--config={path}: {field}={value!r}: no such field{changes.nearest(field, known)}")
    here = section[name]
    if isinstance(here, ml_collections.ConfigDict) and here:
      _fill(here, value, path, f"{field}.")
      continue
    try:
      section[name] = tuple(value) if isinstance(value, list) else value
    except TypeError as error:
      raise ValueError(f"--config={path}: {field}={value!r}: {error}") from error
