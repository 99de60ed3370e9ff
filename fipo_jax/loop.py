"""The algorithm on one page: prompts, rollout, rewards, advantages, Future-KL, loss, update, checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np

from fipo_jax import evaluate as evaluate_lib
from fipo_jax import metrics, report
from fipo_jax.algorithms import advantages
from fipo_jax.assemble import STREAM_EVAL, STREAM_ROLLOUT, Run, build
from fipo_jax.models import hf
from fipo_jax.rewards.score import Job, overlong_penalty
from fipo_jax.train import batching
from fipo_jax.types import Prompt, Rollout

# Metrics worth a value per mini-batch: the first one has Future-KL 0 by construction, and averages hide it.
PER_MINIBATCH = ("loss", "grad_norm", "policy_kl", "future_kl_abs_mean", "weight_mean", "weight_std")


def train(cfg) -> dict[str, Any]:
  """Runs a config to its last step, resuming whatever its workdir holds; returns the contents of result.json."""
  run = build(cfg)
  started = time.monotonic() - run.host["seconds"]
  log = metrics.Log(cfg.workdir, resume_step=run.step or -1)
  with jax.set_mesh(run.mesh), run.scorer, metrics.Progress(cfg.workdir, cfg.steps, run.step) as progress:
    if run.stream.dropped_long:
      progress.note(
        f"{run.stream.dropped_long} prompts are longer than data.max_prompt_tokens={cfg.data.max_prompt_tokens} "
        f"and left out; {run.stream.len_epoch} remain"
      )
    if run.step == 0 and cfg.eval.every:
      run.engine.update(run.state.params)
      run.host["before"] = evaluate(run, progress)
      log.write(0, {f"eval/{k}": v for k, v in run.host["before"].items()})
      progress.note(f"before training: {describe(run.host['before'])}")
    for step in range(run.step + 1, cfg.steps + 1):
      groups, values = collect(run, step, progress)
      run.engine.release()
      with run.timers("update"):
        values |= learn(run, groups, step, log, progress)
      if cfg.eval.every and (step % cfg.eval.every == 0 or step == cfg.steps):
        run.engine.update(run.state.params)
        run.host["after"] = evaluate(run, progress)
        values |= {f"eval/{k}": v for k, v in run.host["after"].items()}
      values |= run.timers.pop()
      log.write(step, values)
      progress.step(step, values)
      run.step, run.host["seconds"] = step, time.monotonic() - started
      if step % cfg.checkpoint.every == 0 or step == cfg.steps:
        save(run)
      check_alive(run)
    return finish(run)


def collect(run: Run, step: int, progress) -> tuple[list[list[Rollout]], dict[str, float]]:
  """Groups to learn from, scored and with advantages; and what was seen on the way."""
  if run.cfg.algorithm.name == "sft":
    return demonstrations(run), {}
  run.engine.update(run.state.params)
  groups, seen = sample_groups(run, step, progress)
  ddof = run.cfg.algorithm.advantage_std_ddof
  rewards_PG = np.array([[r.reward for r in group] for group in groups])
  advantages_PG = advantages.group_relative(rewards_PG, std_ddof=None if ddof < 0 else ddof)
  for group, row in zip(groups, advantages_PG, strict=True):
    for rollout, advantage in zip(group, row, strict=True):
      rollout.advantage = float(advantage)
  return groups, {**seen, "reward": float(rewards_PG.mean()), "groups_trained": len(groups)}


def demonstrations(run: Run) -> list[list[Rollout]]:
  """Supervised records as groups of one: the target, ended by the stop token, with advantage 1."""
  groups = []
  for prompt in run.stream.take(run.cfg.batch.prompts):
    if "target" not in prompt.extras:
      raise ValueError(f"algorithm.name='sft': data.source={run.cfg.data.source!r} has no field 'target' to imitate.")
    text = prompt.extras["target"]
    tokens = np.array([*run.tokenizer.encode(text), run.tokenizer.stop_ids[0]], np.int32)
    tokens = tokens[: run.cfg.rollout.max_response_tokens]
    zeros = np.zeros(len(tokens), np.float32)
    groups.append([Rollout(prompt, 0, tokens, zeros, "stop", text, advantage=1.0)])
  return groups


def sample_groups(run: Run, step: int, progress) -> tuple[list[list[Rollout]], dict[str, float]]:
  """Dynamic sampling: draws prompts until batch.prompts groups have both right and wrong responses.

  A group is judged by raw accuracy, not by the shaped reward. After dynamic_sampling.max_draws it trains on what there
  is, or stops; with no group at all it always stops. Either way the run is saved first.
  Source: DAPO (arXiv 2503.14476) section 3.2.
  """
  c, want = run.cfg.dynamic_sampling, run.cfg.batch.prompts
  sampling = run.sampling(
    temperature=run.cfg.rollout.temperature, top_k=run.cfg.rollout.top_k, top_p=run.cfg.rollout.top_p
  )
  kept, seen, drawn, keep_rate = [], [], set(), 1.0
  for draw in range(c.max_draws if c.enabled else 1):
    prompts = draw_prompts(run, math.ceil((want - len(kept)) / keep_rate), drawn)
    if not prompts:
      break
    key = jax.random.fold_in(run.key(step, STREAM_ROLLOUT), draw)
    with run.timers("rollout"):
      groups = run.engine.generate(
        prompts, run.cfg.rollout.samples_per_prompt, key=key, sampling=sampling,
        progress=progress.task("rollout"),
      )  # fmt: skip
    with run.timers("reward"):
      score(run, groups)
    seen += groups
    kept += [g for g in groups if not c.enabled or len({r.accuracy for r in g}) > 1]
    if len(kept) >= want:
      break
    # Never ask for more than twice the batch at once: one unlucky draw must not order an ocean.
    keep_rate = max(len(kept) / len(seen), 0.5 * (want - len(kept)) / want, 1e-6)
  rollouts = [r for g in seen for r in g]
  values = {
    "accuracy": float(np.mean([r.accuracy for r in rollouts])),
    "response_length": float(np.mean([len(r.tokens) for r in rollouts])),
    "truncated": float(np.mean([r.truncated for r in rollouts])),
    "prompts_drawn": len(seen),
    "groups_informative": len(kept),
    "groups_dropped": max(0, len(kept) - want),
    "reward_timeouts": sum("timeout" in r.flags for r in rollouts),
    "reward_errors": sum("error" in r.flags for r in rollouts),
    "tokens_generated": sum(len(r.tokens) for r in rollouts),
  }
  if len(kept) < want and (not kept or c.on_exhausted == "stop"):
    save(run)
    raise ValueError(
      f"dynamic_sampling.max_draws={c.max_draws}: {len(kept)} of {want} groups had both right and wrong responses in "
      f"{len(seen)} prompts (accuracy {values['accuracy']:.3f}); the run is saved at step {run.step}. Use easier or "
      "harder prompts, more samples per prompt or draws, or dynamic_sampling.enabled=False."
    )
  return kept[:want], values


def draw_prompts(run: Run, count: int, drawn: set[int]) -> list[Prompt]:
  """Up to count prompts that this step has not drawn yet: a repeated one would only repeat its samples."""
  prompts = []
  while len(prompts) < count and len(drawn) < run.stream.len_epoch:
    (prompt,) = run.stream.take(1)
    if prompt.id not in drawn:
      drawn.add(prompt.id)
      prompts.append(prompt)
  return prompts


def score(run: Run, groups: list[list[Rollout]]) -> None:
  """Fills text, accuracy, score, reward and flags of every rollout: the verifier's score plus the overlong penalty."""
  c = run.cfg
  rollouts = [r for group in groups for r in group]
  for r in rollouts:
    r.text = run.tokenizer.decode(r.tokens)
  verifier = "file" if c.reward.file else c.reward.verifier
  jobs = [
    Job(verifier or r.prompt.verifier, r.text, r.prompt.answer, r.prompt.extras, r.prompt.text) for r in rollouts
  ]
  for r, s in zip(rollouts, run.scorer.score(jobs), strict=True):
    r.accuracy, r.score, r.pred, r.flags = s.accuracy, s.score, s.pred, tuple(s.flags)
    r.reward = s.score + overlong_penalty(
      len(r.tokens), max_tokens=c.rollout.max_response_tokens, buffer_tokens=c.reward.overlong_buffer_tokens,
      factor=c.reward.overlong_factor,
    )  # fmt: skip


def learn(run: Run, groups: list[list[Rollout]], step: int, log, progress) -> dict[str, Any]:
  """One optimizer step per mini-batch; old log-probs of all of them are taken first, by the trainer's own program."""
  c = run.cfg.batch
  per_minibatch = c.minibatch_prompts * (len(groups[0]))
  parts = np.array_split(np.arange(len(groups)), c.prompts // c.minibatch_prompts)
  minibatches = [[groups[i] for i in part] for part in parts if len(part)]
  packed = [
    batching.pack(
      m, row_tokens=c.row_tokens, micro_rows=c.micro_rows, num_micro=math.ceil(per_minibatch / c.micro_rows)
    )
    for m in minibatches
  ]
  batches = [run.place(p.batch) for p in packed]
  if run.cfg.algorithm.name != "sft":
    batches = [
      dataclasses.replace(b, old_logp=run.steps.score(run.state.params, b, p.used))
      for b, p in zip(batches, packed, strict=True)
    ]
  records, bar = [], progress.task("update")
  for n, (batch, p) in enumerate(zip(batches, packed, strict=True), start=1):
    if n == len(batches) and run.cfg.log.samples and run.cfg.algorithm.name != "sft":
      write_samples(run, step, minibatches[-1], p, batch, log)
    run.state, record = run.steps.update(run.state, batch, p.used)
    records.append(record)
    bar(n, len(batches))
  merged = records[0]
  for record in records[1:]:
    merged = {k: merged[k].merge(record[k]) for k in merged}
  values, each = numbers(merged), [numbers(r) for r in records]
  values |= {f"minibatch/{k}": [e[k] for e in each] for k in PER_MINIBATCH if k in each[0]}
  return values


def numbers(records: dict[str, Any]) -> dict[str, float]:
  """Divided records; with the standard deviation of the weights f over tokens, std² = E[(f - 1)²] - (E[f] - 1)²."""
  values = metrics.finish(records)
  if "weight_offset_square" in values:
    square = values.pop("weight_offset_square") - (values["weight_mean"] - 1) ** 2
    values["weight_std"] = math.sqrt(max(square, 0.0))
  return values


def write_samples(run: Run, step: int, groups, packed: batching.Packed, batch, log) -> None:
  """A few responses of the last mini-batch, token by token, with the Future-KL and f that its update will use."""
  rollouts = [r for group in groups for r in group]
  inside = [i for i, place in enumerate(packed.places) if place.micro == 0][: run.cfg.log.samples]
  arrays = jax.device_get(run.steps.inspect(run.state.params, jax.tree.map(lambda x: x[0], batch)))
  for i in inside:
    r, place = rollouts[i], packed.places[i]
    at = (place.row, slice(place.start, place.stop))
    log.sample(step, {
      "prompt": r.prompt.text, "response": r.text, "answer": r.prompt.answer, "reward": r.reward,
      "accuracy": r.accuracy, "advantage": r.advantage, "stop_reason": r.stop_reason,
      "tokens": [run.tokenizer.decode([t], skip_special=False) for t in r.tokens],
      "sampler_logp": r.logp, "logp": arrays["logp"][at], "entropy": arrays["entropy"][at],
      "future_kl": arrays["future_kl"][at] if "future_kl" in arrays else None,
      "weight": arrays["weight"][at] if "weight" in arrays else None,
    })  # fmt: skip


def evaluate(run: Run, progress) -> dict[str, float]:
  """Accuracy, length, truncation on the held-out prompts, with the engine's present weights."""
  e = run.cfg.eval
  with run.timers("evaluate"):
    result = evaluate_lib.evaluate(
      run.engine, lambda groups: score(run, groups), run.heldout, samples_per_prompt=e.samples_per_prompt,
      key=run.key(0, STREAM_EVAL), sampling=run.sampling(temperature=e.temperature, top_k=e.top_k, top_p=e.top_p),
      progress=progress.task("evaluate"),
    )  # fmt: skip
  run.engine.release()
  return result


def save(run: Run) -> None:
  """Checkpoints state, data position and counters as one step; a step already saved is left alone."""
  if run.step and run.checkpointer.latest() != run.step:
    run.checkpointer.save(run.step, run.state, {**run.host, "data": run.stream.state()})


def check_alive(run: Run) -> None:
  """Ends a run whose updates have stopped being finite; its newest checkpoint is from before."""
  if (skipped := int(run.state.skipped)) >= run.cfg.optimizer.max_skipped_updates:
    run.checkpointer.close()
    raise ValueError(
      f"optimizer.max_skipped_updates={run.cfg.optimizer.max_skipped_updates}: the last {skipped} updates were not "
      "finite; lower optimizer.learning_rate, or resume from an earlier checkpoint."
    )


def finish(run: Run) -> dict[str, Any]:
  """Waits for the last checkpoint, exports, writes result.json and the report."""
  cfg, folder = run.cfg, pathlib.Path(run.cfg.workdir)
  run.checkpointer.close()
  paths = {name: folder / f"{name}.jsonl" for name in ("metrics", "samples")}
  paths["checkpoints"] = folder / "checkpoints"
  if cfg.checkpoint.export:
    paths["export"] = folder / "export"
    hf.save(paths["export"], run.state.params, run.model.config, template_dir=cfg.model.path or None)
    if not cfg.model.path:
      run.tokenizer.save(paths["export"])
  before, after = run.host.get("before", {}), run.host.get("after", {})
  result = {
    "algorithm": cfg.algorithm.name, "seed": cfg.seed, "steps": run.step, "updates": int(run.state.updates),
    "accuracy_before": before.get("accuracy"), "accuracy_after": after.get("accuracy"),
    "length_before": before.get("response_tokens"), "length_after": after.get("response_tokens"),
    "seconds": round(run.host["seconds"], 2), "before": before, "after": after,
  }  # fmt: skip
  (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
  if cfg.log.report:
    paths["report"] = report.write_report(folder)
  paths["result"] = folder / "result.json"
  metrics.summary_table(result, paths)
  return result


def describe(result: dict[str, float]) -> str:
  return f"accuracy {result['accuracy']:.3f}, mean length {result["response_tokens"]:.1f} tokens"
