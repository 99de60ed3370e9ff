"""The algorithm on one page: prompts, rollout, rewards, advantages, Future-KL, loss, update, checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import time
from collections.abc import Collection, Iterable
from typing import Any

import jax

from fipo_jax import (
  console,
  dashboards,
  describe,
  goodput,
  metrics,
  parts,
  paths,
  processes,
  stalls,
  tracing,
  workdir,
)
from fipo_jax import evaluate as evaluate_lib
from fipo_jax.alarms import Alarm
from fipo_jax.assemble import Run, build
from fipo_jax.collect import DataExhausted, collect, score
from fipo_jax.models import hf
from fipo_jax.report import write
from fipo_jax.rollback import Rollback, roll_back
from fipo_jax.rollout import stored
from fipo_jax.rollout.http import EngineError
from fipo_jax.sharding import OnHost
from fipo_jax.tokens import Look, Minibatch, write_evaluated, write_samples
from fipo_jax.train import batching
from fipo_jax.types import Batch, Rollout

# Metrics worth a value per mini-batch: the first one has Future-KL 0 by construction, and averages hide it.
PER_MINIBATCH = (
  "loss", "grad_norm", "policy_kl", "clip_fraction", "dual_clip_fraction", "entropy", "future_kl_abs_mean",
  "weight_mean", "weight_std",
)  # fmt: skip
CREDITED = ("advantages", "mask", "segments")  # what a value head's advantages are made of, beside its values


def train(cfg, *, allow: Collection[str] = (), step: int | str | None = None) -> dict[str, Any]:
  """Runs a config to its last step, resuming whatever its workdir holds; returns the contents of result.json.

  Args: allow, step: see `assemble.build`.
  Raises:
    ValueError: another process works in the workdir; or as `assemble.build`.
    Stopped: the process was told to stop, and has saved.
  """
  processes.begin(False)
  with workdir.hold(cfg.workdir):
    return train_through_alarms(cfg, allow=allow, step=step)


def train_through_alarms(cfg, **how) -> dict[str, Any]:
  """The same, in a workdir that is held."""
  while True:
    try:
      return train_until_alarm(cfg, **how)
    except Rollback as asked:
      how["step"] = None
      to = roll_back(cfg, asked.alarm)
      console.say(f"alarm {asked.alarm.name} at step {asked.alarm.step}: going back to step {to}")
    finally:
      workdir.end(cfg)


def train_until_alarm(cfg, **how) -> dict[str, Any]:
  """The same, unless an alarm raises `Rollback`."""
  with stalls.watch(cfg.workdir, stall_s=cfg.log.stall_s, factor=cfg.log.stall_factor, first_s=cfg.log.stall_first_s):
    return train_watched(cfg, **how)


def train_watched(cfg, **how) -> dict[str, Any]:
  """The same, while `stalls` watches whether it moves."""
  run = build(cfg, **how)
  cfg = run.cfg
  boards = dashboards.open_boards(cfg, step=run.step, rollbacks=run.rollbacks, back=how.get("step") is not None)
  processes.begin()
  run.host.pop("ended", None)  # of an earlier process; this one tries again
  console.say(describe.grace(run.host.get("grace_s")))
  logged, samples_bytes = workdir.logged(cfg), round(cfg.log.samples_mb * 1e6)
  log = metrics.Log(cfg.workdir, resume_step=run.step or -1, samples_bytes=samples_bytes, boards=boards)
  devices = describe.mesh(run.mesh)
  run.spent, so_far = workdir.begin_training(cfg, run.step, logged, devices=devices, rollbacks=run.rollbacks)
  if so_far:
    console.say(so_far)
  with (
    jax.set_mesh(run.mesh), run.scorer, contextlib.closing(log),
    metrics.Progress(cfg.workdir, cfg.steps, run.step) as progress,
  ):  # fmt: skip
    try:
      if run.step == 0 and cfg.eval.every:
        if "before" not in run.host:
          run.host["before"] = evaluate(run, progress)
        log.write(0, {f"eval/{k}": v for k, v in run.host["before"].items()})
        progress.note(f"before training: {describe.evaluation(run.host['before'])}")
      run.host["seconds"] += run.timers.pop()["seconds/step"]  # not part of the first step
      if owed := run.host.get("owed"):
        conclude(run, owed, log, progress)
      for step in tracing.iterations(range(run.step + 1, cfg.steps + 1), cfg.log.profile_steps, cfg.workdir):
        if processes.stop_asked():
          raise processes.Stopping
        stalls.moved(step)
        before = drawn(run)
        try:
          _, run.host["owed"] = iterate(run, step, progress, functools.partial(write_samples, log=log))
        except DataExhausted as reason:
          end_early(run, progress, str(reason))
          break
        except (EngineError, processes.Stopping):
          keep_begun(run, before)
          raise
        conclude(run, run.host["owed"], log, progress)
    except processes.Stopping:
      stop(run)
    return finish(run)


def iterate(run: Run, step: int, progress, look: Look) -> tuple[list[list[Rollout]], dict[str, Any]]:
  """One iteration: groups are collected and learnt from. Returns them, and the metrics.

  Nothing but `run` is changed: a replay makes the same iteration by it. look: see `learn`.
  """
  groups, values = collect(run, step, progress)
  values |= learn(run, groups, step, progress, look)
  run.step = step
  return groups, values


def conclude(run: Run, values: dict[str, Any], log, progress) -> None:
  """What comes after the updates of a step: evaluation, alarms, its line, a checkpoint.

  values: of the step, saved as run.host["owed"] until its line is written: a run that is stopped meanwhile writes it
  when it goes on.
  """
  cfg, step = run.cfg, run.step
  try:
    if evaluates(cfg, step):
      run.host["after"] = evaluate(run, progress, log)
      values |= {f"eval/{k}": v for k, v in run.host["after"].items()}
  finally:
    for name, seconds in run.timers.pop().items():
      values[name] = values.get(name, 0.0) + seconds
  run.host.pop("owed")
  run.host["seconds"] += values["seconds/step"]
  values |= speeds(run, values) | grace(run, values)
  if run.spent:
    values["goodput"] = run.spent.share(values["seconds/step"])
  alarms = run.watch.check(step, values)
  changed = {"changed": run.changes} if run.changes else {}
  log.write(step, values | {"alarms": [a.name for a in alarms]} | changed)
  run.changes = []
  progress.step(step, values)
  if "eval/accuracy" in values:
    progress.note(f"after step {step}: {describe.evaluation(run.host['after'])}")
  heed(run, alarms, progress)
  if step % cfg.checkpoint.every == 0 or step == cfg.steps or save_is_due(run):
    log.flush()
    save(run)
  check_alive(run)


def evaluates(cfg, step: int) -> bool:
  """Whether a step ends with an evaluation."""
  return bool(cfg.eval.every) and (step % cfg.eval.every == 0 or step == cfg.steps)


def learn(run: Run, groups: list[list[Rollout]], step: int, progress, look: Look) -> dict[str, Any]:
  """One optimizer step per mini-batch; old log-probs of all of them are taken first, by the trainer's own program.

  Of the mini-batches one is on the mesh, and the next on its way. Packing them twice is cheaper than room for all.
  look: called with each of them before its update.
  """
  c = run.cfg.batch
  minibatches = batching.minibatches(groups, c.prompts // c.minibatch_prompts, seed=run.cfg.seed, step=step)
  pack = functools.partial(
    batching.pack, row_tokens=c.row_tokens, micro_rows=c.micro_rows,
    num_micro=math.ceil(c.minibatch_prompts * len(groups[0]) / c.micro_rows),
    segments=run.model.most_segments(c.row_tokens),
  )  # fmt: skip
  before: list[dict[str, OnHost]] = [{}] * len(minibatches)
  if run.cfg.algorithm.name != "sft":
    with run.timers("old_logp"):
      before = prepare(run, map(pack, minibatches))
  records, tokens, used, bar = [], 0, 0, progress.task("update")
  with run.timers("update"):
    for n, (minibatch, known) in enumerate(zip(minibatches, before, strict=True), start=1):
      p = pack(minibatch)
      jax.block_until_ready(records[-2:-1])  # so that no more than this mini-batch waits beside the one at work
      batch = dataclasses.replace(run.place(p.batch), **{name: x.back() for name, x in known.items()})
      tokens, used = tokens + int((p.batch.segments > 0).sum()), used + p.used
      instead = {}
      if run.control:
        logp = run.steps.score(run.state.params, batch, p.used)["logp"]
        batch, instead = run.control(batch, logp, jax.random.fold_in(run.key(step, parts.STREAM_CONTROL), n))
      look(run, Minibatch(step, n, len(minibatches), minibatch, p, batch))
      run.state, record = run.steps.update(run.state, batch, p.used)
      if instead:
        record = {k: v for k, v in record.items() if not k.startswith("weight_")} | instead
      records.append(record)
      bar(n, len(minibatches))
    merged = records[0]
    for record in records[1:]:
      merged = {k: merged[k].merge(record[k]) for k in merged}
    values, each = numbers(merged), [numbers(r) for r in records]  # waits for the device
  values |= {f"minibatch/{k}": [e[k] for e in each] for k in PER_MINIBATCH if k in each[0]}
  values["rows_used"] = used * c.micro_rows
  values["row_fill"] = tokens / (values["rows_used"] * c.row_tokens)
  count_empty(run, each)
  return values


def prepare(run: Run, packed: Iterable[batching.Packed]) -> list[dict[str, OnHost]]:
  """What the policy (and reference, and value head) thought of each token before any update of this step.

  By mini-batch: fields of `Batch`, on the host. A value head's advantages need all mini-batches at once, of which then
  those fields are on the mesh that `credit` reads.
  """
  found, at_work = [], None
  off = lambda arrays: {name: OnHost.of(x) for name, x in arrays.items()}
  for p in packed:
    batch = run.place(p.batch)
    scored = run.steps.score(run.state.params, batch, p.used)
    arrays = {"old_logp": scored["logp"]}
    if run.reference is not None:
      arrays["ref_logp"] = run.steps.score(run.reference, batch, p.used)["logp"]
    if run.credit:
      arrays |= {"old_values": scored["values"]} | {name: getattr(batch, name) for name in CREDITED}
    if at_work:
      found.append(off(at_work))  # waits for it, beside the one that has just begun
    at_work = arrays
  found.append(off(at_work))
  if run.credit:
    nothing = dict.fromkeys(f.name for f in dataclasses.fields(Batch))
    some = lambda arrays: {name: arrays[name].back() for name in (*CREDITED, "old_values")}
    credited = run.credit([Batch(**nothing | some(arrays)) for arrays in found])
    for arrays, batch in zip(found, credited, strict=True):
      arrays |= off({"advantages": batch.advantages, "returns": batch.returns})
  return found


def count_empty(run: Run, each: list[dict[str, float]]) -> None:
  """Of the updates that were skipped since the last one that was made, those in which no token counted."""
  for values in each:
    if not values["skipped_updates"]:
      run.host["empty_updates"] = 0
    elif values["empty_updates"]:
      run.host["empty_updates"] = run.host.get("empty_updates", 0) + 1


def numbers(records: dict[str, Any]) -> dict[str, float]:
  """Divided records; with the standard deviation of the weights f over tokens, std² = E[(f - 1)²] - (E[f] - 1)²."""
  values = metrics.finish(records)
  if "weight_offset_square" in values:
    square = values.pop("weight_offset_square") - (values["weight_mean"] - 1) ** 2
    values["weight_std"] = math.sqrt(max(square, 0.0))
  return values


def evaluate(run: Run, progress, log=None) -> dict[str, float]:
  """Accuracy, length, truncation on the evaluation sets, with the engine's present weights.

  Metrics of a set with a name as NAME/metric; those of the first set without one, too. log: gets some responses; not
  before training, for a run that is stopped in its first step does not make that evaluation again.
  """
  run.engine.update(run.policy_params())
  stop_asked = processes.StopPoll()
  result: dict[str, float] = {}
  with run.timers("evaluate"):
    for s in run.sets:

      def judge(groups, s=s):
        score(run, groups, s.cfg)
        if log is not None:
          write_evaluated(run, s.name, groups, log=log)

      own = evaluate_lib.evaluate(
        run.engine, judge, list(s.prompts),
        samples_per_prompt=s.cfg.eval.samples_per_prompt, key=s.key(),
        sampling=parts.sampling_of(s.cfg, run.tokenizer, evaluation=True),
        progress=progress.task(f"evaluate {s.name}".strip()), watch=lambda _: stop_asked(),
      )  # fmt: skip
      result = result or dict(own)
      result |= {s.label(metric): value for metric, value in own.items()}
  run.engine.release()
  return result


Drawn = tuple[dict[str, Any], stored.Waiting, stored.Waiting]


def drawn(run: Run) -> Drawn:
  """Where sampling stands: prompts drawn, groups that wait for a batch, or for their last tokens."""
  return run.stream.state(), list(run.surplus), list(run.pending)


def save(run: Run, at: Drawn | None = None) -> None:
  """Checkpoints state, data position, waiting groups and counters as one step; one already saved is left alone.

  As it is between iterations: whatever ends the process within one, that iteration is done again from its beginning.

  at: where sampling stood then, if that is not now.
  """
  if not run.step or run.checkpointer.latest() == run.step:
    return
  data, surplus, pending = at or drawn(run)
  waiting = {"data": data, "surplus": stored.encode(surplus), "pending": stored.encode(pending)}
  measured = evaluates(run.cfg, run.step) and "owed" not in run.host
  accuracy = run.host["after"].get(run.cfg.checkpoint.best_by) if measured else None
  with run.timers("checkpoint"):
    run.checkpointer.save(run.step, run.state, {**run.host, **waiting, "watch": run.watch.state()}, accuracy)


def close(run: Run) -> None:
  """Waits until what was saved is durable; nothing more can be."""
  with console.phase("waiting for the checkpoint"):
    run.checkpointer.close()


def save_is_due(run: Run) -> bool:
  """Whether checkpoint.every_s have passed since the last save, by the clock of process 0."""
  every_s = run.cfg.checkpoint.every_s
  return bool(every_s) and processes.from_first("the clock", time.monotonic() - run.checkpointer.since >= every_s)


def keep_begun(run: Run, before: Drawn) -> None:
  """A step could not be finished: what it had sampled is saved beside the state before it, and is not sampled again."""
  save(run, before)
  close(run)
  if processes.is_first() and run.begun:
    before = {"before": run.host["before"]} if "before" in run.host else {}  # no checkpoint has it yet, at step 0
    stored.rescue(run.cfg.workdir, [run.step, run.rollbacks], {"begun": stored.encode(run.begun), **before})


def stop(run: Run) -> None:
  """Saves what there is and raises `Stopped`."""
  save(run)
  close(run)
  done = f"saved after step {run.step} of {run.cfg.steps}" if run.step else "before the first step was done"
  begun = sum(len(r.tokens) for _, group in run.begun for r in group)
  more = f", with {begun} tokens of the next one" if begun else ""
  if "owed" in run.host:
    more = "; its evaluation is made when it goes on"
    if run.cfg.checkpoint.keep_best:
      more += ", too late for checkpoint.keep_best to choose it"
  raise processes.Stopped(f"stopped as asked, {done}{more}; the same command goes on")


def end_early(run: Run, progress, reason: str) -> None:
  """The data cannot supply another step: saves, evaluates what there is, and says why in result.json."""
  run.host["ended"] = reason
  save(run)
  if run.cfg.eval.every:
    run.host["after"] = evaluate(run, progress)
    progress.note(f"at the end: {describe.evaluation(run.host['after'])}")
  progress.note(f"the run ends at step {run.step}, saved: {reason}")


def speeds(run: Run, values: dict[str, Any]) -> dict[str, float]:
  """Tokens per second by phase, from the step's seconds by phase (wall time; they sum to seconds/step), and memory.

  tokens_per_second/rollout counts sampled tokens, /old_logp and /update those of the packed sequences, prompts
  included, and /step sampled tokens over the whole step. update_tflops: model FLOPs of the update (6 · parameters ·
  tokens, attention left out) per device, 10¹² per second.
  """
  found = {}
  packed_tokens = values["row_fill"] * values["rows_used"] * run.cfg.batch.row_tokens
  rates = {"rollout": values.get("tokens_generated", 0), "old_logp": packed_tokens, "update": packed_tokens}
  for phase, tokens in rates.items():
    if tokens and values.get(f"seconds/{phase}"):
      found[f"tokens_per_second/{phase}"] = tokens / values[f"seconds/{phase}"]
  if values.get("tokens_generated"):
    found["tokens_per_second/step"] = values["tokens_generated"] / values["seconds/step"]
  parameters = sum(x.size for x in jax.tree.leaves(run.state.params))
  flops = 6 * parameters * packed_tokens / len(run.mesh.devices.flat)
  found["update_tflops"] = flops / values["seconds/update"] / 1e12
  return found | metrics.memory()


def grace(run: Run, values: dict[str, Any]) -> dict[str, float]:
  """grace_s: seconds from being told to stop until all is saved, as this step and the last save went.

  An update is finished, sampling and evaluation end at the next look; whichever takes longer, and a save. None before
  the first save. It survives in checkpoints, for the next start to say it.
  """
  if not run.checkpointer.seconds:
    return {}
  updates = values.get("seconds/old_logp", 0.0) + values["seconds/update"]
  run.host["grace_s"] = max(updates, values.get("rollout/longest_look_s", 0.0)) + run.checkpointer.seconds
  return {"grace_s": run.host["grace_s"]}


def heed(run: Run, alarms: list[Alarm], progress) -> None:
  """Says what is wrong, and for the alarms of alarms.acting ends the run or takes it back."""
  a = run.cfg.alarms
  for alarm in alarms:
    progress.note(f"alarm {alarm.name} at step {alarm.step}: {alarm.message}")
  for alarm in alarms:
    if a.action == "warn" or alarm.name not in a.acting:
      continue
    run.checkpointer.close()
    if a.action == "rollback" and run.rollbacks < a.max_rollbacks:
      raise Rollback(alarm)
    after = f" after {run.rollbacks} rollbacks" if run.rollbacks else ""
    raise ValueError(
      f"alarms.action={a.action!r}: stopped{after} at step {alarm.step} by the alarm {alarm.name}, checkpoints are "
      f"kept: {alarm.message}"
    )


def check_alive(run: Run) -> None:
  """Ends a run whose updates are all skipped: not finite, or nothing to learn from. Its checkpoints are from before."""
  if (skipped := int(run.state.skipped)) < (most := run.cfg.optimizer.max_skipped_updates):
    return
  run.checkpointer.close()
  empty = min(run.host.get("empty_updates", 0), skipped)
  reasons = []
  if bad := skipped - empty:
    reasons.append(f"{bad} were not finite; lower optimizer.learning_rate, or resume from an earlier checkpoint")
  if empty:
    reasons.append(
      f"{empty} had no token left, for all responses were rejected (more than algorithm.sequence_reject_count="
      f"{run.cfg.algorithm.sequence_reject_count} dual-clipped tokens): the policy has moved too far; lower "
      "optimizer.learning_rate, resume from an earlier checkpoint, or reject nothing (-1)"
    )
  raise ValueError(f"optimizer.max_skipped_updates={most}: of the last {skipped} updates {'. '.join(reasons)}.")


def finish(run: Run) -> dict[str, Any]:
  """Waits for the last checkpoint, exports, writes result.json and the report: process 0 alone, but for the export."""
  cfg, folder = run.cfg, paths.of(run.cfg.workdir)
  close(run)
  made = {name: folder / f"{name}{'' if paths.is_remote(folder) else '.jsonl'}" for name in ("metrics", "samples")}
  made["checkpoints"] = folder / "checkpoints"
  if cfg.checkpoint.export:
    made["export"] = folder / "export"
    with console.phase("exporting"):
      hf.save(made["export"], run.policy_params(), run.model.policy().config, template_dir=cfg.model.path or None)
    if not cfg.model.path and processes.is_first():
      run.tokenizer.save(made["export"])
  before, after = run.host.get("before", {}), run.host.get("after", {})
  result = {
    "algorithm": cfg.algorithm.name, "seed": cfg.seed, "steps": run.step, "updates": int(run.state.updates),
    "accuracy_before": before.get("accuracy"), "accuracy_after": after.get("accuracy"),
    "length_before": before.get("response_tokens"), "length_after": after.get("response_tokens"),
    "seconds": round(run.host["seconds"], 2), "before": before, "after": after, "ended": run.host.get("ended"),
    **{name: run.host["counters"].get(name, 0) for name in ("reward_errors", "reward_timeouts")},
    "first_error": run.scorer.first_error or None,
  }  # fmt: skip
  if processes.is_first():
    result["goodput"] = workdir.account(cfg)
    console.say(goodput.said(result["goodput"]))
    paths.write(folder / "result.json", json.dumps(result, indent=1) + "\n")
    if cfg.log.report and (run.step or before):  # else there is nothing to draw
      made["report"] = write.report([folder])
    made["result"] = folder / "result.json"
    metrics.summary_table(result, made)
  processes.barrier("the files of the finished run", processes.WORK_S)
  return result
