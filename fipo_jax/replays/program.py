"""A step of a run that is over, or goes on, made again: by the loop's own iteration, from a checkpoint before it.

A step is a function of checkpoint, config, data and numbers derived from (seed, step). Nothing is written into the run,
its lock is not taken, and it may go on meanwhile.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections

from fipo_jax import (
  assemble,
  changes,
  collect,
  config,
  console,
  describe,
  loop,
  metrics,
  parts,
  paths,
  processes,
  sharding,
  workdir,
)
from fipo_jax.assemble import Run
from fipo_jax.replays import compare, dump, fields, told
from fipo_jax.replays import past as past_lib
from fipo_jax.replays.past import Past
from fipo_jax.rollout import stored
from fipo_jax.types import Rollout


def replay(
  cfg: ml_collections.ConfigDict, step: int, *, attempt: int = 0, out: str = "", given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """Makes a step again, says whether it is the one that was recorded, and what it would have been; writes it all.

  Args:
    cfg: of the run in cfg.workdir, as it is there. step: from 1. attempt: from 1, of a run that was rolled back; 0 is
      the last. out: folder; "" for replay_RUN_stepN here. given: fields that differ, see `fields`.
  Returns: what replay.json holds.
  Raises: ValueError, OSError, in one line, for what the user can mend.
  """
  past = past_lib.read(cfg, attempt)
  check(past, step)
  asked = fields.sort(past.config(step), given or {})
  under = lambda t: with_fields(past.config(t), asked.where)
  changed = with_fields(under(step), asked.changed()) if asked.changed() else None
  for each in filter(None, (under(step), changed)):
    config.validate(each)
  folder = paths.of(out or f"replay_{paths.absolute(cfg.workdir).name}_step{step}")
  first = past.checkpoint_before(step) + 1
  for line in (notes := [*told.beginning(past, first, step, asked), *whereabouts(past, first, step, under(first))]):
    console.say(line)
  record = {
    "run": str(cfg.workdir), "step": step, "attempt": past.attempt, "attempts": past.of(), "checkpoint": first - 1,
    "changed": {f: [config.at(past.config(step), f), v] for f, v in asked.changed().items()},
    "same_responses": not asked.responses, "where": asked.where, "made_by": workdir.provenance(), "notes": notes,
    "done": False,
  }  # fmt: skip
  dump.claim(folder, record)
  with contextlib.ExitStack() as stack:
    machine = Machine(past, under, first, step, stack)
    for t in range(first, step):
      machine.make(t, lambda *_: None)
    before = Before.of(machine.run) if changed is not None else None
    with dump.recorder(folder, dump.TOKENS) as seen:
      groups, values = machine.make(step, seen)
    record |= machine.result(step) | {"gradients": seen.gradients, "top": seen.top(), "responses": seen.responses}
    if before is not None:
      with dump.recorder(folder, dump.CHANGED) as seen:
        other = machine.instead(step, changed, before, groups if not asked.responses else None, seen)
      record["metrics"] = beside(record["metrics"], other)
      record |= {"gradients_changed": seen.gradients, "top_changed": seen.top()}
  dump.write(folder, record | {"done": True})
  for line in (*told.compared(machine.compared, machine.reasons), *told.result(record), *dump.named(folder, changed)):
    console.say(line)
  return record


def check(past: Past, step: int) -> None:
  """Raises ValueError for a step that cannot be made again."""
  cfg = past.cfg
  if cfg.rollout.engine == "http":
    raise ValueError(
      "rollout.engine='http': what servers have sampled is no function of the seed, and checkpoints do not hold it; "
      "runs of the native engine can be replayed."
    )
  if step not in past.rows or step < 1:
    made = [s for s in past.rows if s]
    there = f"has those of {min(made)} to {max(made)}" if made else "has none"
    which = f"attempt {past.attempt} of {past.of()}" if past.rollbacks else "it"
    others = [n for n, r in enumerate(past.rollbacks, start=1) if n != past.attempt and 0 < step <= r["step"]]
    more = f", and --attempt={others[-1]} has it" if others else ""
    raise ValueError(f"--step={step}: no metrics of it in {cfg.workdir}: {which} {there}{more}.")


def with_fields(cfg: ml_collections.ConfigDict, values: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """A copy with these fields."""
  cfg = cfg.copy_and_resolve_references()
  cfg.update_from_flattened_dict(dict(values))
  return cfg


def whereabouts(past: Past, first: int, step: int, cfg) -> list[str]:
  """What there is to say of files that have changed since.

  Raises: ValueError where it would begin with other weights.
  """
  lines, then, now = [], past.start(step).get("facts", {}), workdir.facts_of(cfg)
  if first == 1 and "model.path" in then and then["model.path"] != now.get("model.path"):
    raise ValueError(
      f"model.path={cfg.model.path!r}: other weights than the run began with, and no checkpoint before step {step}: it "
      "cannot be made again from the beginning."
    )
  if "reward.file" in then and then["reward.file"] != now.get("reward.file"):
    lines.append(f"reward.file={cfg.reward.file}: its contents are others than then; so may be its verdicts")
  return lines


def beside(found: dict[str, dict[str, Any]], other: dict[str, Any]) -> dict[str, dict[str, Any]]:
  """Metrics of the step as it was, and as it would have been."""
  names = dict.fromkeys((*found, *(k for k in other if not k.startswith(compare.NOT_COMPARED))))
  return {name: found.get(name, {}) | ({"changed": other[name]} if name in other else {}) for name in names}


@dataclasses.dataclass
class Before:
  """A run before a step, for a second go: its state on the host, and what sampling goes on from."""

  state: Any
  data: dict[str, Any]
  surplus: dict[str, Any]
  pending: dict[str, Any]
  host: dict[str, Any]

  @classmethod
  def of(cls, run: Run) -> Before:
    data, surplus, pending = loop.drawn(run)
    host = copy.deepcopy(run.host)
    return cls(
      jax.tree.map(sharding.OnHost.of, run.state), data, stored.encode(surplus), stored.encode(pending), host
    )

  def back(self, run: Run) -> Run:
    """The same run there."""
    run.stream.restore(self.data)
    surplus, pending = (
      stored.with_prompts(stored.decode(w), run.stream.find) for w in (self.surplus, self.pending)
    )
    state = jax.tree.map(lambda x: x.back(), self.state, is_leaf=lambda x: isinstance(x, sharding.OnHost))
    host = copy.deepcopy(self.host)
    return dataclasses.replace(run, state=state, surplus=surplus, pending=pending, host=host)


class Machine:
  """The run from a checkpoint on, step after step, each compared with its line.

  run: as it stands. compared: by step. reasons: why numbers may differ.
  """

  def __init__(self, past: Past, under, first: int, last: int, stack: contextlib.ExitStack):
    self._past, self._under, self._stack = past, under, stack
    self.compared: list[compare.Compared] = []
    self._rows: dict[int, dict[str, Any]] = {}
    self._here, line = fitted(parts.with_model(under(first)) if first > 1 else under(first))
    if line:
      console.say(line)
    cfg = self._placed(under(first))
    assemble.check_tables(cfg)
    self.run = assemble.open_run(cfg, first - 1, rollbacks=past.rolled_back(first), read_only=True)
    stack.callback(self.run.checkpointer.close)
    stack.enter_context(self.run.scorer)
    stack.enter_context(jax.set_mesh(self.run.mesh))
    self.reasons = told.reasons(past, first, last, describe.mesh(self.run.mesh))
    processes.begin()
    self._progress = stack.enter_context(metrics.Progress(cfg.workdir, last, first - 1))

  def _placed(self, cfg: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The same on the devices, and with the tokenizer, that are here."""
    if cfg.algorithm.reference_kl_coef and cfg.model.path != self._here.model.path:
      raise ValueError(f"model.path={cfg.model.path!r}: not there, and its weights are the reference of the KL.")
    cfg = cfg.copy_and_resolve_references()
    cfg.mesh, cfg.model, cfg.rollout.tensor = self._here.mesh, self._here.model, self._here.rollout.tensor
    return cfg

  def make(self, step: int, look: loop.Look) -> tuple[list[list[Rollout]], dict[str, Any]]:
    """Makes a step, and compares it."""
    run, row = self._go_over(step), self._past.rows.get(step, {})
    known = run.scorer.known = {(prompt, sample): flag for prompt, sample, flag in row.get("unverified", ())}
    failed = row.get("reward_timeouts", 0) + row.get("reward_errors", 0)
    if failed and not known:
      console.say(f"step {step}: {failed:.0f} verifications had no verdict, and it is not noted which: made again")
    groups, values = iterated(run, step, self._progress, look)
    measured = {name: value for name, value in row.items() if name.startswith("eval/")}
    values["alarms"] = [alarm.name for alarm in run.watch.check(step, values | measured)]
    if new := [m for m in values.get("unverified", ()) if m[:2] not in known]:
      self.reasons.append(f"step {step}: {len(new)} verifications have no verdict now, and none is noted for then")
    self._rows[step] = json.loads(metrics.as_line(values))
    self.compared.append(compare.compare(step, row, self._rows[step]))
    self._progress.step(step, values)
    run.timers.pop()
    return groups, values

  def _go_over(self, step: int) -> Run:
    """The run under what this step was made under: a rollback, or the user, may have changed it."""
    run, cfg = self.run, self._placed(self._under(step))
    run.rollbacks = self._past.rolled_back(step)
    changed = fields.different(run.cfg, cfg)
    if not changed:
      return run
    said = "; ".join(f"{field}: {a!r} -> {b!r}" for field, (a, b) in changed.items())
    for field in changed:
      if field in fields.REFUSED or not changes.within(field, (*fields.UPDATE, *fields.RESPONSES)):
        raise ValueError(f"step {step} was made after {said}: not to be gone over; no checkpoint is left in between.")
    console.say(f"from step {step} on, as the run did: {said}")
    self.run = assemble.under(run, cfg)
    if self.run.scorer is not run.scorer:
      self._stack.enter_context(self.run.scorer)
    return self.run

  def instead(self, step: int, cfg, before: Before, groups, look: loop.Look) -> dict[str, Any]:
    """The step from where it began, under another config. groups: its responses, if it has the same ones.

    Returns its metrics.
    """
    self.run.state = None  # for room
    run = before.back(assemble.under(self.run, self._placed(cfg)))
    if run.scorer is not self.run.scorer:
      self._stack.enter_context(run.scorer)
    run.scorer.known, run.step = {}, step - 1
    with console.phase("the step as it would have been"):
      if groups is not None:
        values = collect.give_advantages(run, groups) | loop.learn(run, groups, step, self._progress, look)
      else:
        _, values = iterated(run, step, self._progress, look)
    return json.loads(metrics.as_line(values))

  def result(self, step: int) -> dict[str, Any]:
    """What replay.json says of the comparison."""
    then, now = self._past.rows[step], self._rows[step]
    names = [n for n in dict.fromkeys((*then, *now)) if not n.startswith(compare.NOT_COMPARED)]
    pick = lambda name: {k: row[name] for k, row in (("recorded", then), ("replayed", now)) if name in row}
    return {
      "equal": not any(c.different for c in self.compared),
      "compared": [dataclasses.asdict(c) for c in self.compared], "reasons": self.reasons,
      "metrics": {name: pick(name) for name in names},
    }  # fmt: skip


def iterated(run: Run, step: int, progress, look: loop.Look) -> tuple[list[list[Rollout]], dict[str, Any]]:
  """`loop.iterate`. Raises: ValueError where the prompts do not give a step."""
  try:
    return loop.iterate(run, step, progress, look)
  except collect.DataExhausted as error:
    raise ValueError(f"step {step} cannot be made: {error}") from error


def fitted(cfg: ml_collections.ConfigDict) -> tuple[ml_collections.ConfigDict, str]:
  """The config with a mesh of the devices that are here, and a line if that is another one than its own."""
  try:
    sharding.for_rollout(sharding.make_mesh(cfg.mesh), cfg.rollout.tensor)
    return cfg, ""
  except ValueError as error:
    here = len(sharding.live_devices())
    own = with_fields(cfg, {"mesh.data": 1, "mesh.fsdp": -1, "mesh.context": 1, "mesh.tensor": 1, "rollout.tensor": 0})
    return own, f"the mesh of the run does not fit the {here} device(s) here, where it is fsdp={here}: {error}"
