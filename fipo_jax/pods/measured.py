"""Shares of bounds that a run of ours reached, from its metrics.jsonl: in place of what others have published."""

from __future__ import annotations

import dataclasses
import json
import math

import ml_collections

from fipo_jax import lines, paths, saved
from fipo_jax.pods import answers, forecast
from fipo_jax.pods.costs import Efficiencies
from fipo_jax.pods.iteration import Workload


def efficiencies(
  folder: str, topology: str, slices: int, by: Efficiencies, said: dict[str, str], reports: list[dict]
) -> tuple[Efficiencies, dict[str, str]]:
  """`decode` and `train` so that a forecast of the run's own last step takes as long as that step took.

      share = share of the forecast · forecast seconds / measured seconds

  of rollout, and of scoring and update together. Raises ValueError: no such run, or a step that does not say them.
  """
  records = records_of(folder, "measured")
  last = records[-1]
  cfg: ml_collections.ConfigDict = saved.get_config(str(paths.of(folder) / "config.json"))
  workload = Workload(forecast.lengths_of(last), round(last["prompt_length"]), last["keep_rate"] or 1e-3)
  f = forecast.forecast(cfg, topology, slices, workload, by, said, reports)
  scale = f["tokens"] / last["tokens_generated"]
  rollout = answers.seconds_of(f, answers.ROLLOUT) / scale
  learning = answers.seconds_of(f, answers.LEARNING)
  where = f"step {last['step']} of {folder}"
  decode = by.decode * rollout / last["seconds/rollout"]
  train = by.train * learning / (last["seconds/old_logp"] + last["seconds/update"])
  return dataclasses.replace(by, decode=decode, train=train), said | {"decode": where, "train": where}


def records_of(folder: str, flag: str) -> list[dict]:
  """The steps of a run that say what they sampled and how long it took.

  Raises ValueError, which names the flag: there are none.
  """
  path = paths.of(folder) / "metrics.jsonl"
  if not lines.exists(path) or not paths.is_file(path.with_name("config.json")):
    raise ValueError(f"{flag}={folder}: no run there; expected a folder with config.json and metrics.jsonl.")
  names = ("seconds/rollout", "seconds/old_logp", "seconds/update", "tokens_generated", "prompt_length", "keep_rate",
           "response_length", *forecast.LENGTHS)  # fmt: skip
  records = [json.loads(line) for line in lines.read(path)]
  records = [r for r in records if all(math.isfinite(r.get(name, math.nan)) for name in names)]
  if not records:
    raise ValueError(f"{flag}={folder}: no step in metrics.jsonl says {', '.join(names)}.")
  return records
