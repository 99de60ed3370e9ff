"""What a replay leaves: a folder with all that a step has learnt from, token by token, and its gradients.

    replay.json             what was replayed, whether it is equal, metrics, norms of gradients, tokens of largest |F|
    tokens.jsonl            every response of the step, a line each, in the form of samples.jsonl
    tokens_changed.jsonl    the same with the fields that were changed, where any were
"""

from __future__ import annotations

import contextlib
import heapq
import json
import math
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import jax
import numpy as np

from fipo_jax import metrics, paths, tokens
from fipo_jax.assemble import Run

FORMAT = 1  # of replay.json
RECORD, TOKENS, CHANGED = "replay.json", "tokens.jsonl", "tokens_changed.jsonl"
TOP = 20  # responses whose token of largest |F| is named
BEFORE = 40  # characters of the response that are shown before it


def claim(folder, record: dict[str, Any]) -> None:
  """Makes the folder a replay's own, with what is known at its start. Raises: ValueError where others have files."""
  folder = paths.of(folder)
  there = paths.names(folder)
  if there and RECORD not in there:
    raise ValueError(f"--out={folder}: holds other files ({there[0]}, ...); name a new folder, or one of a replay.")
  for name in (TOKENS, CHANGED):
    paths.delete(folder / name)
  write(folder, record)


def write(folder, record: dict[str, Any]) -> None:
  """Writes replay.json."""
  record = json.loads(metrics.as_line({"format": FORMAT, **record}))
  paths.write(paths.of(folder) / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def recorder(folder, name: str) -> Iterator[Recorder]:
  """A `Recorder` into a file of the folder, which is whole when this ends."""
  with paths.open_to_write(paths.of(folder) / name) as file:
    yield Recorder(file)


class Recorder:
  """Looks at each mini-batch before its update; see `loop.learn`.

  gradients: one record per mini-batch, see `norms`. responses: how many were written.
  """

  def __init__(self, file: BinaryIO):
    self._file, self._top = file, []
    self.gradients: list[dict[str, Any]] = []
    self.responses = 0

  def __call__(self, run: Run, m: tokens.Minibatch) -> None:
    for micro in range(m.packed.used):
      wanted = [i for i, place in enumerate(m.packed.places) if place.micro == micro]
      for record in tokens.records(run, m, micro, wanted):
        self._file.write(metrics.as_line({"step": m.step, **record}))
        self._rank(record)
        self.responses += 1
    squares = jax.device_get(run.steps.squares(run.state.params, m.batch, m.packed.used))
    self.gradients.append({"minibatch": m.number, **norms(squares)})

  def _rank(self, record: dict[str, Any]) -> None:
    if record["future_kl"] is None or not len(record["future_kl"]):
      return
    found = largest(record)
    if any(found == {**known, "sample": found["sample"]} for _, _, known in self._top):
      return  # samples of a prompt may be alike
    heapq.heappush(self._top, (abs(found["future_kl"]), -self.responses, found))
    if len(self._top) > TOP:
      heapq.heappop(self._top)

  def top(self) -> list[dict[str, Any]]:
    """Of the responses with the largest |F| the token that has it, the largest first."""
    return [found for _, _, found in sorted(self._top, reverse=True)]


def largest(record: dict[str, Any]) -> dict[str, Any]:
  """The token of a response with the largest |F|; and, at or after it, the one whose log-probability moved most.

  F is the discounted sum of those moves.
  """
  F, moves = np.asarray(record["future_kl"]), np.asarray(record["logp"]) - np.asarray(record["old_logp"])
  t = int(np.argmax(np.abs(F)))
  k = t + int(np.argmax(np.abs(moves[t:])))
  number = lambda name: float(np.asarray(record[name])[t])
  return {
    "prompt_id": record["prompt_id"], "sample": record["sample"], "minibatch": record["minibatch"], "prompt":
    record["prompt"], "before": "".join(record["tokens"][:t])[-BEFORE:], "token": record["tokens"][t], "position": t,
    "length": len(F), "accuracy": record["accuracy"], "advantage": record["advantage"],
    "future_kl": float(F[t]), **{name: number(name) for name in ("weight", "mask", "logp", "old_logp", "entropy")},
    "moved": {"position": k, "token": record["tokens"][k], "nats": float(moves[k])},
  }  # fmt: skip


def norms(squares: Any) -> dict[str, Any]:
  """Norms of a gradient from the sums of its squares, a tree as the parameters.

  norm: of all of it. layers: of each layer. kinds: of each kind of parameter; of those of layers, by layer.
  """
  total, layers, kinds = 0.0, 0.0, {}
  for path, value in jax.tree_util.tree_leaves_with_path(squares):
    value = np.asarray(value, np.float64)
    names = [str(getattr(key, "key", key)) for key in path]
    total += value.sum()
    if value.ndim:
      layers, names = layers + value, names[1:]
    kinds["/".join(re.sub(r"_[A-Z]\w*$", "", name) for name in names)] = np.sqrt(value).tolist()
  return {"norm": math.sqrt(total), "layers": np.sqrt(layers).tolist(), "kinds": kinds}


def named(folder, changed) -> list[str]:
  """Lines that name the files."""
  folder = paths.of(folder)
  names = [RECORD, TOKENS, *([CHANGED] if changed is not None else [])]
  return [
    f"replay: {', '.join(str(folder / name) for name in names)}",
    f"its responses token by token, as a page: python launch/report.py --run={folder}",
  ]
