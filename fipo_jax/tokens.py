"""Responses token by token, as an update is about to see them: for samples.jsonl, and for replays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from fipo_jax import processes
from fipo_jax.assemble import Run
from fipo_jax.train.batching import Packed
from fipo_jax.types import Batch, Rollout


@dataclasses.dataclass(frozen=True)
class Minibatch:
  """What an update is about to be made of. number: within its step, from 1 to `of`.

  groups: its rollouts. packed: where they lie. batch: the same on the mesh, [M, R, T], with old log-probs.
  """

  step: int
  number: int
  of: int
  groups: list[Sequence[Rollout]]
  packed: Packed
  batch: Batch


Look = Callable[[Run, Minibatch], None]
BY_TOKEN = ("old_logp", "logp", "entropy", "future_kl", "weight", "weighted_advantage")


def write_samples(run: Run, m: Minibatch, *, log) -> None:
  """A few responses of the last mini-batch, with the Future-KL and f that its update will use."""
  if m.number < m.of or not run.cfg.log.samples or run.cfg.algorithm.name == "sft":
    return
  wanted = [i for i, place in enumerate(m.packed.places) if place.micro == 0][: run.cfg.log.samples]
  for record in records(run, m, 0, wanted):
    log.sample(m.step, record)


def records(run: Run, m: Minibatch, micro: int, wanted: Sequence[int]) -> Iterator[dict[str, Any]]:
  """One record per wanted rollout, all of which lie in this micro-batch; numbers by token are those of the objective.

      sampler_logp    of the sampler         old_logp    before the first update of the step     logp    before this one
      weighted_advantage    advantage · f    mask        whether a token is in the loss          rejected    none is

  All processes compute them, and process 0 gets them. Under algorithm.control f is 1: its weights are in the
  advantages.
  """
  a = jax.device_get(run.steps.inspect(run.state.params, jax.tree.map(lambda x: x[micro], m.batch)))
  if not processes.is_first():  # who writes
    return
  rollouts = [r for group in m.groups for r in group]
  a["weighted_advantage"] = a["advantages"] * a.get("weight", 1.0)
  for i in wanted:
    r, place = rollouts[i], m.packed.places[i]
    at = (place.row, slice(place.start, place.stop))
    found = {name: a[name][at] if name in a else None for name in BY_TOKEN}
    yield {
      "minibatch": m.number, **said(run, r), "advantage": r.advantage, "rejected": not a["keep"][at].any(),
      **found, "mask": a["keep"][at].astype(int),
    }  # fmt: skip


def said(run: Run, r: Rollout) -> dict[str, Any]:
  """What is known of a response wherever it was sampled."""
  return {
    "prompt_id": r.prompt.id, "sample": r.sample, "prompt": r.prompt.text, "response": run.tokenizer.decode(r.tokens),
    "answer": r.prompt.answer, "reward": r.reward, "accuracy": r.accuracy, "stop_reason": r.stop_reason,
    "truncated": r.truncated, "tokens": [run.tokenizer.decode([t], skip_special=False) for t in r.tokens],
    "sampler_logp": r.logp,
  }  # fmt: skip


def write_evaluated(run: Run, name: str, groups: Sequence[Sequence[Rollout]], *, log) -> None:
  """One response to each of the first prompts of an evaluation set, the same ones after every evaluation.

  name: of the set. Laid beside each other they show what the policy has become.
  """
  for group in groups[: run.cfg.log.samples] if processes.is_first() else ():
    log.sample(run.step, {"set": name or "eval", **said(run, group[0])})
