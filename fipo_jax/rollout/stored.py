"""Groups as records and arrays, for checkpoints: those that wait for a batch, or for their last tokens, must survive.

    workdir/rescued.npz    what a step that could not be finished had sampled, until the next checkpoint
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from fipo_jax import host_arrays, paths
from fipo_jax.types import Prompt, Rollout

RESCUED, EARLIER = "rescued.npz", "rescued.json"  # the second by versions that wrote JSON alone
Waiting = list[tuple[int, list[Rollout]]]  # (step of its first token, group)
APART = ("prompt", "tokens", "logp", "raw_logp", "text", "advantage")  # fields of a rollout that its record has not


def encode(waiting: Waiting) -> dict[str, Any]:
  """(Step, group) pairs as JSON, and three arrays of what their tokens have, one after the other.

      groups    [{step, prompt, tokens of it, rollouts: [{tokens, raw_logp: how many; the other fields}]}]
      tokens    int32 of the prompt, then of each response      logp, raw_logp    float32 of each response

  Prompts are without extras, see `with_prompts`; texts are those of the tokens, and not kept; an array of nothing is
  left out, for Orbax takes none. {} for no groups.
  """
  if not waiting:
    return {}

  def of_rollout(r: Rollout) -> dict[str, Any]:
    record = {f.name: getattr(r, f.name) for f in dataclasses.fields(Rollout) if f.name not in APART}
    return record | {"tokens": len(r.tokens), "raw_logp": len(r.raw_logp), "flags": list(r.flags), "key": list(r.key)}

  rollouts = [r for _, group in waiting for r in group]
  tokens = [part for _, group in waiting for part in (group[0].prompt.tokens, *(r.tokens for r in group))]
  arrays = {
    "tokens": np.concatenate(tokens).astype(np.int32),
    **{name: np.concatenate([getattr(r, name) for r in rollouts]).astype(np.float32) for name in ("logp", "raw_logp")},
  }
  return {
    "groups": [
      {"step": step, "prompt": vars(g[0].prompt) | {"tokens": len(g[0].prompt.tokens), "extras": {}},
       "rollouts": [of_rollout(r) for r in g]}
      for step, g in waiting
    ],
    **{name: array for name, array in arrays.items() if array.size},
  }  # fmt: skip


def decode(stored: dict[str, Any] | list[dict[str, Any]]) -> Waiting:
  """The inverse of `encode`; a list is what versions wrote that had arrays as base64 inside their records."""
  if not stored:
    return []
  records = stored["groups"] if isinstance(stored, dict) else stored
  take = {
    name: _parts(stored.get(name, ()), dtype) if isinstance(stored, dict) else _base64(dtype)
    for name, dtype in (("tokens", np.int32), ("logp", np.float32), ("raw_logp", np.float32))
  }

  def of_record(prompt: Prompt, record) -> Rollout:
    parts = {name: take[name](record.get(name, record["tokens"])) for name in ("tokens", "logp", "raw_logp")}
    return Rollout(prompt, **record | parts | {"flags": tuple(record["flags"]), "key": tuple(record["key"])})

  waiting: Waiting = []
  for record in records:
    prompt = Prompt(**record["prompt"] | {"tokens": take["tokens"](record["prompt"]["tokens"])})
    waiting.append((record["step"], [of_record(prompt, r) for r in record["rollouts"]]))
  return waiting


def _parts(array, dtype) -> Callable[[int], np.ndarray]:
  """Takes so many numbers from the front, and so on: copies, so that one group does not hold on to all."""
  at = 0

  def take(number: int) -> np.ndarray:
    nonlocal at
    at += number
    return np.array(array[at - number : at], dtype)

  return take


def _base64(dtype) -> Callable[[str], np.ndarray]:
  return lambda text: np.frombuffer(base64.b64decode(text), dtype).copy()


def with_prompts(waiting: Waiting, find: Callable[[set[int]], dict[int, Prompt]]) -> Waiting:
  """The same groups with the prompts that `find` has for their ids: extras, which scoring reads, stay in the source."""
  found = find({group[0].prompt.id for _, group in waiting})
  whole = lambda r: dataclasses.replace(r, prompt=found.get(r.prompt.id, r.prompt))
  return [(step, [whole(r) for r in group]) for step, group in waiting]


def rescue(workdir, after: list[int], host: dict[str, Any]) -> None:
  """Keeps what was sampled after a checkpoint, which may hold for as long as that is the newest one.

  after: what tells that checkpoint from others. host: JSON and arrays; replaces those entries of its own.
  """
  folder = paths.of(workdir)
  rest, arrays = host_arrays.split(host)
  said = np.frombuffer(json.dumps({"after": after, "host": rest}).encode(), np.uint8)
  file = io.BytesIO()
  np.savez(file, json=said, **arrays)
  paths.write(folder / RESCUED, file.getvalue())
  paths.delete(folder / EARLIER)


def rescued(workdir, after: list[int]) -> dict[str, Any]:
  """What was kept after this checkpoint; {} if nothing was."""
  path, earlier = paths.of(workdir) / RESCUED, paths.of(workdir) / EARLIER
  if paths.is_file(path):
    with np.load(io.BytesIO(paths.read(path))) as file:
      record = json.loads(file["json"].tobytes())
      if record["after"] != after:
        return {}
      return host_arrays.join(record["host"], {name: file[name] for name in file.files if name != "json"})
  record = json.loads(paths.read(earlier)) if paths.is_file(earlier) else {"after": None}
  return record["host"] if record["after"] == after else {}
