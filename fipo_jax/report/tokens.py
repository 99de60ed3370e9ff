"""Responses token by token, as the page gets them: some of all that were written, their numbers rounded.

What is small beside its parts is made before they are rounded: the shift logp − old_logp and the sampler's gap
old_logp − sampler_logp stand for the two. Where a run has not written the weighted advantage, the page makes it.
"""

from __future__ import annotations

import collections
import json
import math
from typing import Any

from fipo_jax.report.read import Run

MOST_MB = 2.0  # 10⁶ bytes of all responses of a page
COLUMNS = ("sampler_logp", "old_logp", "logp", "shift", "gap", "entropy", "future_kl", "weight", "weighted_advantage",
           "mask")  # fmt: skip
DIFFERENCES = (("shift", "logp", "old_logp", "logp"), ("gap", "old_logp", "sampler_logp", "sampler_logp"))
NUMBERS = ("reward", "accuracy", "advantage")
TEXTS = ("prompt", "answer", "stop_reason", "set")
FLAGS = ("truncated", "rejected")


def tokens(runs: list[Run], most_mb: float = MOST_MB) -> dict[str, Any]:
  """{"samples": records in order of run and step, "total": how many were written, "steps": of how many steps}."""
  found, share = [], most_mb * 1e6 / max(sum(bool(run.samples) for run in runs), 1)
  for number, run in enumerate(runs):
    found += [{"run": number, **record} for record in _some(run, share)]
  steps = {(number, step) for number, run in enumerate(runs) for step, _ in run.samples}
  return {"samples": found, "total": sum(len(run.samples) for run in runs), "steps": len(steps)}


def _some(run: Run, most_bytes: float) -> list[dict[str, Any]]:
  """All responses of as many steps as there is room for: the newest, the first, then ever finer between them.

  Where not even those of the newest step fit, the first of them.
  """
  lines = collections.defaultdict(list)
  for step, line in run.samples:
    lines[step].append(line)
  steps, found, size = sorted(lines), {}, 0
  for place in halving(len(steps)):
    records = [record for line in lines[steps[place]] if (record := compact(line))]
    costs = [len(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace")) for record in records]
    if size + sum(costs) > most_bytes:
      if found:
        break
      while len(records) > 1 and sum(costs) > most_bytes:
        records.pop(), costs.pop()
    found[steps[place]], size = records, size + sum(costs)
  return [record for step in sorted(found) for record in found[step]]


def halving(count: int) -> list[int]:
  """The numbers below count: the last, the first, then middles of the widest gaps."""
  found, gaps = ([count - 1] if count else []) + ([0] if count > 1 else []), collections.deque([(0, count - 1)])
  while gaps:
    low, high = gaps.popleft()
    if high - low > 1:
      middle = (low + high) // 2
      found.append(middle)
      gaps += [(low, middle), (middle, high)]
  return found


def compact(line: bytes) -> dict[str, Any] | None:
  """A record of samples.jsonl as the page reads it: without what is absent, columns as long as its tokens.

  A response without its tokens, as a run of a very old version wrote it, is one token without numbers.
  """
  try:
    record = json.loads(line.decode("utf-8", errors="replace"))
  except ValueError:
    return None
  texts = record.get("tokens")
  if not isinstance(texts, list) or not texts:
    texts = [record.get("response") or ""]
  for name, left, right, gone in DIFFERENCES:
    if isinstance(record.get(left), list) and isinstance(record.get(right), list):
      record[name] = [_minus(a, b) for a, b in zip(record[left], record[right], strict=False)]
      record[gone] = None
  found: dict[str, Any] = {"step": record["step"], "tokens": [str(text) for text in texts]}
  found |= {name: str(record[name]) for name in TEXTS if record.get(name) is not None}
  found |= {name: value for name in NUMBERS if (value := number(record.get(name))) is not None}
  found |= {name: record[name] for name in FLAGS if isinstance(record.get(name), bool)}
  for name in COLUMNS:
    values = record.get(name)
    if isinstance(values, list) and any(number(value) is not None for value in values):
      values = [number(value) for value in values[: len(texts)]]
      found[name] = values + [None] * (len(texts) - len(values))
  return found


def _minus(a, b) -> float | None:
  numbers = isinstance(a, int | float) and isinstance(b, int | float)
  return a - b if numbers else None


def number(value) -> float | int | None:
  """With four digits, and none below a millionth; None for what is no number."""
  if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
    return None
  short = float(f"{round(value, 6):.4g}")
  return int(short) if short == int(short) else short
