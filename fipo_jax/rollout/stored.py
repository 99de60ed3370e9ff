"""Groups as JSON, for checkpoints: those that wait for a batch, or for their last tokens, must survive the process.

    workdir/rescued.json    groups of a step that the engine could not finish, until the next checkpoint
"""

from __future__ import annotations

import base64
import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from fipo_jax.types import Prompt, Rollout

RESCUED = "rescued.json"
Waiting = list[tuple[int, list[Rollout]]]  # (step that sampled it, group)


def encode(waiting: Waiting) -> list[dict[str, Any]]:
  """(Step, group) pairs as JSON: arrays as base64 of their bytes, prompts without extras; see `with_prompts`."""

  def plain(x):
    return base64.b64encode(np.ascontiguousarray(x).tobytes()).decode()

  def of_rollout(r: Rollout) -> dict[str, Any]:
    record = {f.name: getattr(r, f.name) for f in dataclasses.fields(Rollout) if f.name not in ("prompt", "advantage")}
    arrays = {name: plain(np.asarray(getattr(r, name), np.float32)) for name in ("logp", "raw_logp")}
    return record | arrays | {"tokens": plain(r.tokens), "flags": list(r.flags), "key": list(r.key)}

  return [
    {"step": step, "prompt": vars(g[0].prompt) | {"tokens": plain(g[0].prompt.tokens), "extras": {}},
     "rollouts": [of_rollout(r) for r in g]}
    for step, g in waiting
  ]  # fmt: skip


def decode(records: list[dict[str, Any]]) -> Waiting:
  """The inverse of `encode`."""

  def array(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype).copy()

  def of_record(prompt: Prompt, record) -> Rollout:
    parts = {name: array(record[name], np.float32) for name in ("logp", "raw_logp")}
    parts |= {"tokens": array(record["tokens"], np.int32), "flags": tuple(record["flags"]), "key": tuple(record["key"])}
    return Rollout(prompt, **record | parts)

  waiting: Waiting = []
  for record in records:
    prompt = Prompt(**record["prompt"] | {"tokens": array(record["prompt"]["tokens"], np.int32)})
    waiting.append((record["step"], [of_record(prompt, r) for r in record["rollouts"]]))
  return waiting


def with_prompts(waiting: Waiting, find: Callable[[set[int]], dict[int, Prompt]]) -> Waiting:
  """The same groups with the prompts that `find` has for their ids: extras, which scoring reads, stay in the source."""
  found = find({group[0].prompt.id for _, group in waiting})
  whole = lambda r: dataclasses.replace(r, prompt=found.get(r.prompt.id, r.prompt))
  return [(step, [whole(r) for r in group]) for step, group in waiting]


def rescue(workdir, after: list[int], host: dict[str, Any]) -> None:
  """Keeps what was sampled after a checkpoint, which may hold for as long as that is the newest one.

  after: what tells that checkpoint from others. host: replaces those entries of its own.
  """
  path = pathlib.Path(workdir) / RESCUED
  temporary = path.with_suffix(".tmp")
  temporary.write_text(json.dumps({"after": after, "host": host}))
  temporary.replace(path)


def rescued(workdir, after: list[int]) -> dict[str, Any]:
  """What was kept after this checkpoint; {} if nothing was."""
  path = pathlib.Path(workdir) / RESCUED
  record = json.loads(path.read_text()) if path.is_file() else {"after": None}
  return record["host"] if record["after"] == after else {}
