"""Seconds of a run's programs on a topology: bounds from sizes and a chip's published figures, over efficiencies.

    seconds = bound / efficiency

A bound is the compile report's, where there is one of the program, or arithmetic on the model's sizes here; each cost
says which. Efficiencies are what public measurements reach of the same bounds: see `public`.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax
import numpy as np

from fipo_jax.pods.chips import CHIPS, Chip
from fipo_jax.pods.programs import Plan, forward_flops, settings
from fipo_jax.rollout.capacity import Shape


@dataclasses.dataclass(frozen=True)
class Efficiencies:
  """Shares of bounds that a run reaches; `public.efficiencies` has those of a kind of chip.

  decode: of a token step's bound, and of the memory's bandwidth elsewhere. prefill, train: of peak FLOP/s, recomputed
  ones included. links: of what a chip can send. host: of the link to the host's memory. look_s: host seconds between
  two runs of the decode program, per slot of the mesh. decision_s: of one exchange over all devices, of which one
  decision of the decode loop needs `decisions`.
  """

  decode: float
  prefill: float
  train: float
  links: float
  host: float
  look_s: float
  decision_s: float
  decisions: float


@dataclasses.dataclass(frozen=True)
class Sampled:
  """A model as a shard of the sampler holds it, on `cut` devices.

  numbers: parameters that a token is multiplied with. layers, width: of the residual stream; heads: queries' channels.
  read: bytes of weights that a device reads in a token step. token: bytes of the cache per token and device.
  faster: how much the arithmetic gains by narrower types.
  """

  chip: Chip
  cut: int
  numbers: float
  layers: int
  width: int
  heads: int
  read: float
  token: float
  faster: float = 1.0

  def step_bound(self, slots: float, context: float) -> dict[str, float]:
    """Seconds of one token step of a shard by what could bound it; slots, and tokens in them all.

        memory = (weights + context · bytes per token) / bandwidth
        compute = slots · 2 numbers / peak + 4 layers · heads · context / peak
        links = 2 layers sums over the devices of `cut`, of slots · width bfloat16 numbers:   4 (n - 1) / n bytes each
    """
    c, n = self.chip, self.cut
    peak = c.tflop_s * 1e12 * self.faster
    return {
      "memory": (self.read + context * self.token) / (c.tb_s * 1e12),
      "compute": (slots * 2 * self.numbers + 4 * self.layers * self.heads * context) / n / peak,
      "links": 2 * self.layers * slots * self.width * 4 * (n - 1) / n / (c.ici_gb_s * 1e9),
    }

  def step(self, slots: float, context: float) -> float:
    """The sum over devices waits for the product before it: links are added to the larger of the others."""
    b = self.step_bound(slots, context)
    return max(b["memory"], b["compute"]) + b["links"]

  def prefill_bound(self, rows: float, length: float) -> float:
    """Seconds of rows of padded prompts: products and the causal half of attention."""
    flops = rows * (2 * self.numbers * length + 2 * length * length * self.layers * self.heads)
    return flops / self.cut / (self.chip.tflop_s * 1e12 * self.faster)


def sampled(plan: Plan) -> Sampled:
  """The policy of a plan as its engine holds it."""
  e, c = plan.engine, plan.model.config
  cut, size = e.mesh.shape["tensor"], jax.numpy.dtype(c.dtype).itemsize
  table = 0 if c.tie_embeddings else c.vocab_size * c.d_model
  read = plan.weight_bytes - table * size // cut
  return Sampled(
    plan.chip, cut, read * cut / size, c.num_layers, c.d_model, c.num_heads * c.head_dim, read, e.token_bytes / cut
  )


@dataclasses.dataclass(frozen=True)
class SamplingCosts:
  """`simulated.Costs` of a sampler with so many shards, which decide together, once in `decide` token steps."""

  of: Sampled
  by: Efficiencies
  shards: int = 1
  decide: int = 1

  def token_steps(self, steps: int, shape: Shape, context_D: np.ndarray, growth_D: np.ndarray) -> float:
    """At the middle of the piece; of the fullest shard. Idle slots compute, too, but have nothing to read."""
    context = float(np.max(context_D + growth_D * (steps - 1) / 2))
    decisions = self.by.decisions * self.by.decision_s / self.decide if self.shards > 1 else 0.0
    return steps * (self.of.step(shape.slots, context) / self.by.decode + decisions)

  def prefill(self, rows: int, length: int) -> float:
    return self.of.prefill_bound(rows, length) / self.by.prefill

  def look(self, slots: int) -> float:
    return slots * self.by.look_s

  def resize(self, tokens: int) -> float:
    return 2 * tokens * self.of.token / (self.of.chip.tb_s * 1e12) / self.by.decode


@dataclasses.dataclass(frozen=True)
class Trained:
  """One micro-batch of a trainer's program, and what comes once an update.

  seconds: of a micro-batch, by what could bound it. source: where they come from.
  """

  seconds: dict[str, float]
  source: str

  @property
  def bound(self) -> str:
    return max(self.seconds, key=self.seconds.get)

  def cost(self, by: Efficiencies) -> float:
    """What takes longest hides the others, each at its own share; sums over the network between slices come after."""
    share = {"compute": by.train, "memory": by.decode, "links": by.links, "host": by.host}
    inside = max(s / share[kind] for kind, s in self.seconds.items() if kind in share)
    return inside + self.seconds.get("network", 0.0) / by.links


RECOMPUTED = {"none": (3.0, 6.0), "dots": (3.0, 7.0), "context": (4.0, 7.0), "full": (4.0, 9.0)}


def trained(plan: Plan, program: str, reports: list[dict]) -> Trained:
  """A micro-batch of "train" or "score": of the report that fits, else of sizes."""
  if (found := find_report(plan, program, reports)) is not None:
    report, facts = found
    seconds, source = dict(facts["seconds"]), f"compiled for {report['topology']} ({report['source']})"
    here, there = (_sum_bytes(s) for s in (settings(plan.cfg), report["settings"]))
    if program == "train" and here != there:
      sums = sum(facts["wire_bytes_by_kind"].get(kind, 0.0) for kind in ("reduce-scatter", "all-reduce"))
      seconds["links"] *= 1 + (here / there - 1) * sums / facts["wire_bytes"]
      source += f" with sums of {there} bytes a number, which are {here} here"
    return Trained(seconds, source)
  return Trained(trained_bound(plan, program), "sizes alone: no compile report of it")


def trained_bound(plan: Plan, program: str) -> dict[str, float]:
  """Seconds of one micro-batch by arithmetic and by what fully sharded parameters send; traffic of memory is left out.

      score = forward;   train = RECOMPUTED[remat] = (times the products, sixths of attention in three passes)
      sent = bfloat16 parameters gathered once a pass and their gradients scattered in model.sum_dtype, (n - 1) / n
  """
  c, chip = plan.model.config, plan.chip
  linear, attention, _ = forward_flops(plan.model, plan.cfg.batch, plan.mesh)
  products, kernel = (1.0, 2.0) if program == "score" else RECOMPUTED[c.remat]
  n = plan.mesh.shape["fsdp"]
  size = 2 if program == "score" else 2 * 2 + _sum_bytes(settings(plan.cfg))
  numbers = plan.params_bytes * n * plan.mesh.shape["tensor"] / jax.numpy.dtype(c.param_dtype).itemsize
  sent = size * numbers / plan.mesh.shape["tensor"] * (n - 1) / n
  host = 0.0
  if program == "train" and c.offload_inputs:
    b = plan.cfg.batch
    host = 2 * c.num_layers * b.micro_rows * b.row_tokens / plan.chips * c.d_model * 2
  return {
    "compute": (linear * products + attention * kernel / 2) / (chip.tflop_s * 1e12),
    "links": sent / (chip.ici_gb_s * 1e9), "host": host / (chip.host_gb_s * 1e9),
  }  # fmt: skip


def find_report(plan: Plan, program: str, reports: list[dict]) -> tuple[dict, dict] | None:
  """A report whose program does on a device what this plan's does, and its facts; of compile reports in their order.

  Same kind of chip, model, settings, mesh within a copy of the parameters, and rows of a device. More copies along
  `data` only add the sum of gradients over them: 1% of what is sent from 1 to 8 copies of 32B. The dtype of sums over
  devices changes the bytes of those and nothing else: of 32B on v5p-128 0.2% of memory and no product. Of several, one
  with as wide sums and as many copies.
  """
  other = lambda s: {k: v for k, v in (s or {}).items() if k != "sum_dtype"}
  m, b = plan.cfg.model, plan.cfg.batch
  here = {
    "model": m.preset or m.path.rstrip("/").rsplit("/", 1)[-1],
    "mesh": {axis: n for axis, n in plan.mesh.shape.items() if axis != "data"},
    "row_tokens": b.row_tokens, "tokens_per_chip": b.micro_rows * b.row_tokens / plan.chips,
    "settings": other(settings(plan.cfg)), "chip": plan.chip,
  }  # fmt: skip
  width = _sum_bytes(settings(plan.cfg))
  differs = lambda r: (
    bool(r.get("settings")) and _sum_bytes(r["settings"]) != width, r["mesh"].get("data") != plan.mesh.shape["data"]
  )
  for report in sorted(reports, key=differs):
    facts, of = report["programs"].get(program, {}), report["model"]
    if not facts.get("fits") or "seconds" not in facts:
      continue
    there = {
      "model": of["preset"] or of["path"].rstrip("/").rsplit("/", 1)[-1],
      "mesh": {axis: n for axis, n in report["mesh"].items() if axis != "data"},
      "row_tokens": facts["row_tokens"], "tokens_per_chip": facts["tokens_per_chip"],
      "settings": other(report.get("settings")), "chip": CHIPS[report["topology"].split("-")[0]],
    }  # fmt: skip
    if here == there:
      return report, facts
  return None


def _sum_bytes(settings: dict) -> int:
  """Of a number that devices add up."""
  return jax.numpy.dtype(settings["sum_dtype"] or settings["dtype"]).itemsize


def read_reports(paths) -> list[dict]:
  """The compile reports in JSON files, each with its file as "source". Raises ValueError: a file that is none."""
  reports = []
  for path in paths:
    found = json.loads(pathlib.Path(path).read_text())
    for report in found if isinstance(found, list) else [found]:
      if not {"topology", "programs", "mesh"} <= set(report):
        raise ValueError(f"reports={path}: no compile report; launch/compile.py --out=PATH writes one.")
      reports.append(report | {"source": str(path)})
  return reports


def weights_move(plan: Plan, by: Efficiencies) -> float:
  """Seconds to bring the policy to where decoding wants it: what a chip receives, over its links."""
  return plan.weight_bytes / (plan.chip.ici_gb_s * 1e9) / by.links


def checkpoint(plan: Plan, by: Efficiencies) -> float:
  """Seconds until the state is in the host's memory; writing it goes on beside the next iteration."""
  return plan.state_bytes / (plan.chip.host_gb_s * 1e9) / by.host
