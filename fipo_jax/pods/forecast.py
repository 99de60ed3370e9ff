"""What an iteration of a run costs on a pod: seconds, memory, chip-hours, money; and which settings are cheaper."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fipo_jax import config as config_lib
from fipo_jax import lines as line_files
from fipo_jax import paths
from fipo_jax.pods import costs as costs_lib
from fipo_jax.pods import public
from fipo_jax.pods.chips import CHIPS, describe_topology, topology_of
from fipo_jax.pods.costs import Efficiencies, Trained
from fipo_jax.pods.iteration import PHASES, Workload, evaluated, simulate
from fipo_jax.pods.programs import (
  GIB,
  Plan,
  kinds_of_memory,
  make_plan,
  per_chip,
  pool_shapes,
  validate,
)
from fipo_jax.pods.simulated import Lengths

# Of one chip, between slices: 6.4 Tbit/s of a pod of 256 (cloud.google.com/tpu/docs/v5e); other kinds have no less.
NETWORK_GB_S = 6400 / 8 / 256
# Of a train step beside what it holds by design, in bfloat16 numbers per token and channel of the residual stream: the
# compiler places 27 to 35 of 7B (2.2 to 2.9 GiB) and 30 of 32B (6.5), in tiles of 1,024 or 2,048 tokens.
TEMPORARIES = 36
# GiB that a sampler's programs need beside weights and cache; and by which a search leaves room where sizes alone say
# what a trainer needs.
RESERVE = 1.0
# Iterations before those that count: one leaves its surplus, and with unfinished responses the second is like the rest.
WARM = {"finish": 1, "continue": 2, "restart": 2}
QUANTILES = 4096
STEEPEST = 32.0  # power of the last quarter of a step's lengths
LENGTHS = tuple(f"response_length_{name}" for name in ("min", "p25", "median", "p75", "max"))  # metrics of a step


# ---- what is asked ----


def read_lengths(text: str) -> tuple[Lengths, str, dict[str, float]]:
  """(distribution, what to say of it, what else the file says) of "lognormal:MEDIAN,P99" or a run's metrics.jsonl.

  A log has quartiles and extremes of each step; its last step counts, with straight lines in between.
  Raises ValueError: neither.
  """
  if text.startswith("lognormal:"):
    try:
      median, p99 = (float(x) for x in text.removeprefix("lognormal:").split(","))
    except ValueError:
      raise ValueError(f"lengths={text}: expected lognormal:MEDIAN,P99, such as lognormal:3500,16000.") from None
    if not 0 < median < p99:
      raise ValueError(f"lengths={text}: the median must be above 0 and below the 99th percentile.")
    sigma = math.log(p99 / median) / statistics.NormalDist().inv_cdf(0.99)
    normal = statistics.NormalDist(math.log(median), sigma)
    quantiles = tuple(math.exp(normal.inv_cdf((i + 0.5) / QUANTILES)) for i in range(QUANTILES))
    return Lengths(quantiles), f"log-normal, median {median:,.0f}, 99% below {p99:,.0f}", {}
  path = paths.of(text)
  if not line_files.exists(path):
    raise ValueError(f"lengths={text}: no such file; give a run's metrics.jsonl, or lognormal:MEDIAN,P99.")
  records = [json.loads(line) for line in line_files.read(path)]
  records = [r for r in records if all(name in r for name in LENGTHS)]
  if not records:
    raise ValueError(f"lengths={text}: no step in it says {', '.join(LENGTHS)}.")
  last = records[-1]
  said = f"of step {last.get('step', '?')} of {path}: {', '.join(f'{last[name]:,.0f}' for name in LENGTHS)}"
  return lengths_of(last), said, {k: last[k] for k in ("keep_rate", "prompt_length") if last.get(k, 0) > 0}


def lengths_of(record: dict[str, float]) -> Lengths:
  """The distribution of a step's metrics: straight between what they say of it, and bent in the last quarter.

      quantile(u) = p75 + (max - p75) v^a,   v = 4u - 3,   a so that the mean is the step's where it says one
  """
  at, (*low, p75, most) = (np.arange(QUANTILES) + 0.5) / QUANTILES, (record[name] for name in LENGTHS)
  lengths = np.interp(at, (0, 0.25, 0.5, 0.75, 1), [*low, p75, most])
  last = at > 0.75
  if most > p75 and "response_length" in record:
    above = 4 * (record["response_length"] - lengths[~last].sum() / QUANTILES) - p75  # mean of the last quarter
    bend = (most - p75) / max(above, (most - p75) / STEEPEST) - 1
    lengths[last] = p75 + (most - p75) * (4 * at[last] - 3) ** max(bend, 1 / STEEPEST)
  return Lengths(tuple(lengths.tolist()))


def read_efficiencies(
  values: Sequence[str], by: Efficiencies, said: dict[str, str]
) -> tuple[Efficiencies, dict[str, str]]:
  """Replaces some, given as NAME=VALUE. Raises ValueError: no such name, or no positive number."""
  for item in values:
    name, _, number = item.partition("=")
    config_lib.one_of("efficiency", name, tuple(f.name for f in dataclasses.fields(Efficiencies)))
    try:
      value = float(number)
    except ValueError:
      value = math.nan
    if not value > 0:
      raise ValueError(f"efficiency={item}: expected {name}= and a positive number.")
    by, said = dataclasses.replace(by, **{name: value}), said | {name: "given"}
  return by, said


# ---- the forecast ----


def fitted(cfg, topology: str, slices: int) -> tuple[Any, list[str]]:
  """The config with as many rows at a time as the mesh needs, and what was changed."""
  kind, shape = topology_of(topology)
  chips = math.prod(shape) * CHIPS[kind].devices * slices
  cut = cfg.mesh.context * cfg.mesh.tensor
  ways, b = chips // cut, cfg.batch
  if cfg.mesh.data != -1 and cfg.mesh.fsdp != -1:
    ways = cfg.mesh.data * cfg.mesh.fsdp
  if b.micro_rows % ways == 0:
    return cfg, []
  cfg = copy.deepcopy(cfg)
  cfg.batch.micro_rows = ways
  return cfg, [f"batch.micro_rows={b.micro_rows} is no multiple of data*fsdp={ways} here: {ways} is used"]


def forecast(
  cfg, topology: str, slices: int, workload: Workload, by: Efficiencies, said: dict[str, str], reports: list[dict], *,
  iterations: int = 1, warm: int | None = None,
) -> dict[str, Any]:  # fmt: skip
  """All figures of one topology, as JSON holds them; warm: iterations before, None: WARM."""
  cfg, notes = fitted(cfg, topology, slices)
  validate(cfg)
  kind, _ = topology_of(topology)
  chip = CHIPS[kind]
  plan = make_plan(cfg, chip, describe_topology(topology, slices), slots_of(cfg))
  trained = {name: costs_lib.trained(plan, name, reports) for name in ("train", "score")}
  if slices > 1:
    trained = {name: between_slices(plan, name, of, slices) for name, of in trained.items()}
  warm = WARM[cfg.rollout.unfinished] if warm is None else warm
  found = simulate(plan, workload, by, trained, iterations=iterations, warm=warm)
  mean = lambda of: float(np.mean([of(i) for i in found]))
  seconds = {phase: mean(lambda i, p=phase: i.seconds[p]) for phase in PHASES}
  total, chips = sum(seconds.values()), plan.chips // chip.devices
  tokens = mean(lambda i: i.tokens)
  e = plan.engine
  context = tokens_in_slots(workload, cfg, plan.shape.slots)
  step = costs_lib.sampled(plan).step_bound(plan.shape.slots, context)
  memory = memory_of(plan, trained["train"], reports)
  return {
    "topology": topology, "slices": slices, "chips": chips, "mesh": dict(plan.mesh.shape),
    "model": cfg.model.preset or cfg.model.path, "prompts": cfg.batch.prompts,
    "rollout_mesh": dict(e.mesh.shape), "slots": e.slots, "unfinished": cfg.rollout.unfinished, "decide": e.decide,
    "cache_dtype": e.cache_dtype, "cache_tokens": sum(plan.shape.pages.values()) * e.page * e.shards,
    "iterations": iterations, "warm": warm, "seconds": seconds, "iteration_s": total,
    "idle_share": mean(lambda i: i.idle), "tokens": tokens, "tokens_trained": mean(lambda i: i.trained),
    "tokens_per_second_per_chip": tokens / total / chips,
    "micro_batches": mean(lambda i: i.micro), "row_fill": mean(lambda i: i.fill),
    "interrupted": mean(lambda i: i.interrupted), "decode_programs": mean(lambda i: i.programs),
    "host_s_here": mean(lambda i: i.host_s), "chip_hours_100": total * 100 * chips / 3600,
    "chip_hours_recipe": total * cfg.steps * chips / 3600, "steps": cfg.steps,
    "bounds": {
      "decode": max(step, key=step.get), "score": trained["score"].bound, "update": trained["train"].bound,
    },
    "decode_step_ms": {name: 1e3 * s for name, s in step.items()}, "decode_context": context,
    "memory_gib": memory, "fits": max(memory["train"], memory["rollout"]) <= chip.hbm_gib, "limit_gib": chip.hbm_gib,
    "sources": {name: of.source for name, of in trained.items()},
    "efficiencies": {k: {"value": v, "from": said[k]} for k, v in dataclasses.asdict(by).items() if k in said},
    "evaluated": [line for _, line in evaluated(cfg)] if cfg.eval.every else [], "notes": notes,
  }  # fmt: skip


def slots_of(cfg) -> int:
  """As `make_plan` takes them: 0 is from the memory."""
  return 0 if cfg.rollout.slots == "auto" else cfg.rollout.slots


def between_slices(plan: Plan, name: str, of: Trained, slices: int) -> Trained:
  """With the sum of a micro-batch's gradients over slices, which lie along `data`: 2 (n - 1) / n bytes of each."""
  if name != "train":
    return of
  sent = plan.params_bytes / 2 * 2 * (slices - 1) / slices  # in bfloat16
  return dataclasses.replace(of, seconds=of.seconds | {"network": sent / (NETWORK_GB_S * 1e9)})


def tokens_in_slots(workload: Workload, cfg, slots: int) -> float:
  """Tokens that full slots hold in the middle of a rollout: a long response is in its slot for longer.

      slots · (prompt + E[n²] / 2 E[n])
  """
  n = np.minimum(workload.lengths.quantiles, cfg.rollout.max_response_tokens)
  return slots * (workload.prompt_tokens + float(np.mean(n * n) / (2 * np.mean(n))))


def memory_of(plan: Plan, train: Trained, reports: list[dict]) -> dict[str, Any]:
  """GiB of a device while it trains and while it samples, and whether the compiler said so."""
  report = costs_lib.find_report(plan, "train", reports)
  held = sum(kinds_of_memory(plan).values())
  b = plan.cfg.batch
  beside = TEMPORARIES * b.micro_rows * b.row_tokens / plan.chips * plan.model.config.d_model * 2 / GIB
  cache = per_chip(*pool_shapes(plan)) / GIB
  rollout = (plan.weight_bytes + plan.state_bytes) / GIB + cache
  return {
    "train": report[1]["peak_gib"] if report else held + beside, "rollout": rollout, "cache": cache,
    "train_from": "the compiler" if report else f"sizes, and {beside:.1f} for temporaries",
  }  # fmt: skip


def describe(f: dict[str, Any], price: float) -> str:
  """A forecast in lines."""
  lines = [
    f"{f['topology']}" + (f" x {f['slices']} slices" if f["slices"] > 1 else "") + f": {f['chips']} chips, mesh "
    + " x ".join(f"{k} {v}" for k, v in f["mesh"].items() if v > 1) + "; rollouts "
    + (" x ".join(f"{k} {v}" for k, v in f["rollout_mesh"].items() if v > 1) or "1")
    + f", {f['slots']} slots, unfinished={f['unfinished']}"
  ]
  say = lambda what, text: lines.append(f"  {what:<11}{text}")
  for note in f["notes"]:
    say("note", note)
  share = lambda s: f"{s / f['iteration_s']:.0%}"
  say("iteration", f"{f['iteration_s']:,.0f} s: " + ", ".join(
    f"{phase} {s:,.1f} ({share(s)})" for phase, s in f["seconds"].items() if s >= 0.05
  ))  # fmt: skip
  say("tokens", f"{f['tokens'] / 1e6:.1f} M sampled, {f['tokens_trained'] / 1e6:.1f} M trained on in "
      f"{f['micro_batches']:.0f} micro-batches, rows {f['row_fill']:.0%} full; "
      f"{f['tokens_per_second_per_chip']:,.0f} tokens/s per chip over the whole iteration")  # fmt: skip
  if f["evaluated"]:
    say("evaluation", "; ".join(f["evaluated"]))
  say("idle", f"{f['idle_share']:.1%} of the time, as empty slots or waiting for the host; "
      f"{f['interrupted']:.0f} responses put back, {f['decode_programs']:.0f} decode programs")  # fmt: skip
  hours = lambda h: f"{h:,.0f} chip-hours" + (f" ({h * price:,.0f} USD)" if price else "")
  say("bill", f"{hours(f['chip_hours_100'])} per 100 steps, {hours(f['chip_hours_recipe'])} for {f['steps']} steps")
  ms = ", ".join(f"{name} {value:.1f}" for name, value in f["decode_step_ms"].items())
  say("bounds", f"decode by {f['bounds']['decode']} ({ms} ms a token step with {f['decode_context']:,.0f} tokens on a "
      f"shard), score by {f['bounds']['score']}, update by {f['bounds']['update']}")  # fmt: skip
  m = f["memory_gib"]
  fit = "" if f["fits"] else ": DOES NOT FIT"
  say("memory", f"{m['train']:.1f} GiB in training ({m['train_from']}), {m['rollout']:.1f} in rollouts (by sizes, "
      f"cache {m['cache']:.1f}), of {f['limit_gib']}{fit}")  # fmt: skip
  say("from", "; ".join(f"{name}: {source}" for name, source in f["sources"].items()))
  named = ("decode", "prefill", "train", "links", "host")
  say("shares", ", ".join(f"{k} {f['efficiencies'][k]['value']:.2f} ({f['efficiencies'][k]['from']})" for k in named))
  return "\n".join(lines)


# ---- what would be cheaper ----


TRAINER = {  # fields of a search and what is tried; None: as it is
  "mesh.fsdp": (None, 16, 32, 64, 128, 256), "model.remat": ("full", "context"), "model.offload_inputs": (False, True),
  "optimizer.offload": (False, True), "batch.micro_rows": (1, 2, 4),  # of each device
}  # fmt: skip
SAMPLER = {
  "rollout.tensor": (1, 2, 4, 8, 16), "rollout.cache_dtype": ("", "int8"), "rollout.page_tokens": (64, 128),
  "rollout.slots": (32, 64, 128, 256, 512),  # of each shard
}  # fmt: skip


def search(cfg, topology: str, slices: int, workload: Workload, by: Efficiencies, reports, *, best: int = 2):
  """Settings that should make an iteration cheap: [{field: value}], to be forecast; and how many were tried and fit.

  The trainer's are ranked by seconds per row and the first that fits is kept. Beside it the sampler's are ranked by the
  tokens per second of full slots in the middle of a rollout; the trainer's alone come back, and with them the `best` of
  each cache_dtype, one for a value of rollout.tensor: int8 is less exact, so that it must be seen what it gains.
  Raises ValueError: nothing fits.
  """
  rows = _each(TRAINER, lambda f: _trainer(cfg, f, topology, slices, by, reports))
  if not rows:
    raise ValueError(f"search: no setting of the trainer fits on {topology}, by sizes; try a larger topology.")
  _, trainer = min(rows, key=lambda row: row[0])
  found = _each(SAMPLER, lambda f: _sampler(cfg, trainer | f, topology, slices, workload, by, reports))
  if not found:
    raise ValueError(f"search: no setting of the sampler fits on {topology} beside the trainer; try a larger one.")
  found.sort(key=lambda row: row[0])
  first = {}  # of each way to hold the cache, by devices that share a copy: the fastest
  for _, fields in found:
    first.setdefault(fields.get("rollout.cache_dtype"), {}).setdefault(fields.get("rollout.tensor"), fields)
  chosen = [fields for by_tensor in first.values() for fields in list(by_tensor.values())[:best]]
  return [trainer, *chosen], (len(rows), len(found))


def _each(choices, cost: Callable) -> list[tuple[float, dict[str, Any]]]:
  """(cost, fields) of those combinations that have one."""
  found = []
  for fields in products(choices):
    try:
      result = cost({name: value for name, value in fields.items() if value is not None})
    except ValueError:  # sizes that do not divide, or slots that do not fit
      continue
    if result is not None:
      found.append(result)
  return found


def _open(cfg, fields: dict[str, Any], topology: str, slices: int) -> tuple[Plan, dict[str, Any]]:
  """The plan with these fields, and the fields with rows and slots over the whole mesh."""
  kind, _ = topology_of(topology)
  devices = describe_topology(topology, slices)
  fields = dict(fields)
  if "mesh.fsdp" in fields:
    fields["mesh.data"] = -1
  if "batch.micro_rows" in fields:
    fields["batch.micro_rows"] *= len(devices) // (cfg.mesh.context * cfg.mesh.tensor)
  if isinstance(fields.get("rollout.slots"), int):
    tensor = fields.get("rollout.tensor") or cfg.rollout.tensor or cfg.mesh.tensor
    fields["rollout.slots"] *= len(devices) // tensor
  new = changed(cfg, fields)
  validate(new)
  return make_plan(new, CHIPS[kind], devices, slots_of(new)), fields


def _trainer(cfg, fields, topology, slices, by, reports):
  one_each = changed(cfg, {"rollout.slots": len(describe_topology(topology, slices))})
  plan, fields = _open(one_each, fields, topology, slices)
  of = {name: costs_lib.trained(plan, name, reports) for name in ("train", "score")}
  if slices > 1:
    of = {name: between_slices(plan, name, x, slices) for name, x in of.items()}
  m = memory_of(plan, of["train"], reports)
  if m["train"] > plan.chip.hbm_gib - (0 if m["train_from"] == "the compiler" else RESERVE):
    return None
  return sum(x.cost(by) for x in of.values()) / plan.cfg.batch.micro_rows, fields


def _sampler(cfg, fields, topology, slices, workload, by, reports):
  rows = fields.get("batch.micro_rows")
  plan, fields = _open(cfg, {k: v for k, v in fields.items() if k != "batch.micro_rows"}, topology, slices)
  fields |= {"batch.micro_rows": rows} if rows else {}
  context = tokens_in_slots(workload, cfg, plan.shape.slots)
  e, room = plan.engine, (plan.chip.hbm_gib - RESERVE) * GIB - plan.weight_bytes - plan.state_bytes
  tokens = int(room / costs_lib.sampled(plan).token) // e.page * e.page
  if tokens < context:
    return None
  if tokens < sum(plan.shape.pages.values()) * e.page:  # all slots at their longest would not fit: some may be put back
    fields["rollout.cache_tokens"] = tokens * e.shards
  costs = costs_lib.SamplingCosts(costs_lib.sampled(plan), by, plan.engine.shards, e.decide)
  one = np.array([0.0])
  return costs.token_steps(1, plan.shape, one + context, one) / plan.engine.slots, fields


def changed(cfg, fields: dict[str, Any]):
  """A copy of the config with other values."""
  cfg = copy.deepcopy(cfg)
  for name, value in fields.items():
    section, field = name.split(".")
    cfg[section][field] = value
  return cfg


def products(choices: dict[str, Sequence]) -> list[dict[str, Any]]:
  """All combinations of {field: values}."""
  return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def table(measured: list[public.Measured]) -> str:
  """Published figures beside our bounds, in Markdown."""
  lines = ["| | chip | published | our bound | share | source |", "|---|---|---|---|---|---|"]
  for m in measured:
    show = lambda x, m=m: f"{x:,.0f} {m.unit}" if m.unit != "MFU" else f"{x:.1%} MFU"
    used = " (superseded)" if m.superseded else ""
    lines.append(f"| {m.what} | {m.chip} | {show(m.value)} | {show(m.bound)} | {m.reached:.2f}{used} | {m.source} |")
  return "\n".join(lines)
