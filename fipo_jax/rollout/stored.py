"""Scored groups as JSON, for checkpoints: those that wait for a batch must survive the end of the process."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import numpy as np

from fipo_jax.types import Prompt, Rollout

Waiting = list[tuple[int, list[Rollout]]]  # (step that sampled it, group)


def encode(waiting: Waiting) -> list[dict[str, Any]]:
  """(Step, group) pairs as JSON: arrays as base64 of their bytes, prompts without extras, which only scoring reads."""

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
