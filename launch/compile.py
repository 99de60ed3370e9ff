"""What a run would need of a TPU, before one is paid for: compiles its programs with libtpu, without a TPU.

    python launch/compile.py --config=experiments/fipo_qwen2_5_32b.py --topology=v5p-128[,v6e-256] [--slices=N] \
      [--programs=train,score,decode] [--json=PATH] [--config.FIELD=VALUE ...]

Programs are those of the run itself, on abstract arguments: no weight is read and none is made. Memory is what the
compiler says, and a program that does not fit is refused by it just as on the chips. Speeds are bounds from the
chip's published figures: nothing runs here. With several topologies each is compiled for in turn. Sizes are those of
model.path (a folder, or a published name such as Qwen3-8B-Base), or of --config.model.preset=qwen3_32b in its place.

    train     one optimizer step on a mini-batch; figures of one micro-batch of batch.micro_rows rows
    score     log-probabilities of the same rows
    decode    the loop over tokens, with as many slots and pages as rollout.slots='auto' takes (or --slots)
    prefill   prompts of the longest bucket into pages
    update    the policy's parameters, cast and moved to where decoding wants them
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import difflib
import importlib.metadata
import json
import math
import os
import pathlib
import re
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import interpreter  # noqa: F401, I001 - first: it may end the program

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from fipo_jax import assemble, command_line, processes
from fipo_jax import config as config_lib
from fipo_jax.models import PRESETS, attention_splash, hf, make_model
from fipo_jax.models.transformer import NUMERICS, TILED, Model, ModelConfig
from fipo_jax.rollout import ENGINES, Sampling, decode, serving
from fipo_jax.sharding import HOST, for_rollout, make_mesh, named, named_tree
from fipo_jax.train.step import Steps
from fipo_jax.types import Batch
from launch import hlo
from launch.chips import CHIPS, OPTIONS, TOPOLOGIES, Chip, open_topology, topology_of, wrap

GIB = 2**30


# ---- what is compiled ----


@dataclasses.dataclass(frozen=True)
class Plan:
  """A run on a topology. state: the trainer's, abstract; state_bytes of it per chip, params_bytes of the parameters.

  size: slots per shard. kinds: pages of each kind per shard. rows: prompts of one prefill per shard.
  """

  cfg: Any
  chip: Chip
  chips: int
  model: Model
  mesh: Any
  engine: Any
  size: int
  kinds: dict[str, int]
  rows: int
  steps: Steps
  state: Any
  state_bytes: int
  params_bytes: int
  weight_bytes: int  # of the rollout's copy, per chip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """lower(): what to compile. beside_bytes: per chip, of what is in memory but no argument. facts: to report.

  useful_flops: that the mathematics needs, per chip. rollout: whether it runs on the rollouts' mesh.
  kernel_flops: of each run of a kernel, by a part of its name.
  """

  lower: Callable
  beside_bytes: int
  facts: dict
  useful_flops: float = 0.0
  rollout: bool = False
  kernel_flops: dict[str, float] = dataclasses.field(default_factory=dict)


def model_config(cfg) -> ModelConfig:
  """Sizes by model.preset or by model.path's config.json or, where none is there, its name; numerics of the config."""
  m = cfg.model
  if not m.preset and os.path.exists(os.path.join(m.path, "config.json")):
    sizes = hf.read_config(m.path)
  else:
    wanted = m.preset or os.path.basename(m.path.rstrip("/"))
    name = re.sub(r"[^a-z0-9]+", "_", wanted.lower()).removesuffix("_base")  # of the same sizes
    if name not in PRESETS:
      near = difflib.get_close_matches(name, PRESETS, 5, 0.4) or list(PRESETS)
      what = f"model.preset={wanted!r}" if m.preset else f"model.path={m.path!r} has no config.json, and {wanted!r}"
      raise ValueError(f"{what} is no published size; choose from {', '.join(near)}.")
    sizes = PRESETS[name]
  numerics = {name: m[name] for name in NUMERICS}
  return dataclasses.replace(sizes, max_position=m.max_position or sizes.max_position, **numerics)


def make_plan(cfg, chip: Chip, devices, slots: int = 0, rollout: bool = True) -> Plan:
  """Slots and pages as the native engine would choose them on such chips; slots in all, 0: from their memory.

  rollout: whether slots are of interest; else there is one on each shard.
  """
  model = make_model(model_config(cfg))
  mesh = make_mesh(cfg.mesh, devices)
  r, rollout_mesh = cfg.rollout, for_rollout(mesh, cfg.rollout.tensor)
  engine = ENGINES["native"](
    model.policy(), rollout_mesh, slots=slots or "auto", max_prompt_tokens=cfg.data.max_prompt_tokens,
    max_response_tokens=r.max_response_tokens, pad_id=0, page_tokens=r.page_tokens, cache_tokens=r.cache_tokens,
    cache_dtype=r.cache_dtype, attention=r.attention, continuous_decode_steps=r.continuous_decode_steps,
  )  # fmt: skip
  params = per_chip(model.abstract(), model.shardings(mesh))
  steps, _, abstract = assemble.open_steps(cfg, model, mesh)
  on_chip = [x for x in jax.tree.leaves(abstract) if x.sharding.memory_kind != HOST]
  state = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in on_chip)
  weights = per_chip(jax.eval_shape(engine._resident, engine.model.abstract()), engine._shardings())
  if not rollout:
    engine.slots = engine.shards
  elif not slots:
    size_from_memory(engine, int(chip.hbm_gib * GIB), weights + state)
  size = engine.slots // engine.shards
  kinds, rows = pages_of(
    size, width=r.samples_per_prompt, page=engine.page, prompt=engine.max_prompt_tokens,
    cache_tokens=(engine.cache_tokens or engine.slots * engine._longest()) // engine.shards,
  )  # fmt: skip
  return Plan(cfg, chip, mesh.size, model, mesh, engine, size, kinds, rows, steps, abstract, state, params, weights)


def size_from_memory(engine, limit: int, used: int) -> None:
  """Lets the engine choose slots and pages as on a device with so many bytes of memory, some of them in use."""
  device = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": limit, "bytes_in_use": used})
  mesh = engine.mesh
  engine.mesh = types.SimpleNamespace(local_devices=[device], shape=mesh.shape, devices=mesh.devices)
  try:
    engine._size_from_memory()
  finally:
    engine.mesh = mesh


def pages_of(size: int, *, width: int, page: int, prompt: int, cache_tokens: int) -> tuple[dict[str, int], int]:
  """({kind: pages per shard}, prompts of one prefill per shard) with prompts at their limit: serving.Call."""
  ahead = max(1, size // 4)
  rows = max(1, ahead // width)
  shared = (prompt - 1) // page * (-(-size // width) + rows)
  return {"own": cache_tokens // page, "shared": shared, "tail": max(2, ahead)}, rows


def train_program(plan: Plan) -> Program:
  batch, used = _batch(plan)
  lower = lambda: plan.steps.update.lower(plan.state, batch, used)
  linear, attention, kernels = forward_flops(plan.model, plan.cfg.batch, plan.mesh)
  facts = _rows(plan) | {"kinds_gib": kinds_of_memory(plan)}
  return Program(lower=lower, beside_bytes=0, facts=facts, useful_flops=3 * (linear + attention), kernel_flops=kernels)


def kinds_of_memory(plan: Plan) -> dict[str, float]:
  """GiB of a chip that a train step holds by design; what the compiler places beside that are its temporaries.

  gradients: float32 sums over micro-batches, and those of one, in the compute dtype, with the narrow parameters.
  """
  c, cfg = plan.model.config, plan.cfg
  size = jnp.dtype(c.dtype).itemsize
  numbers = plan.params_bytes / jnp.dtype(c.param_dtype).itemsize
  width = c.num_layers * cfg.batch.micro_rows * cfg.batch.row_tokens / plan.chips * size  # heads are cut over tensor
  inputs = 0 if c.offload_inputs else width * plan.mesh.shape["tensor"] * c.d_model
  kept = width * c.num_heads * c.head_dim if c.remat == "context" else 0
  bytes_of = {
    "parameters": plan.params_bytes, "optimizer": plan.state_bytes - plan.params_bytes,
    "gradients": numbers * (4 + 2 * size), "layer inputs": inputs, "attention results": kept,
  }  # fmt: skip
  return {kind: value / GIB for kind, value in bytes_of.items()}


def remedies(plan: Plan, kinds: dict[str, float]) -> list[str]:
  """What would make a train step smaller, with what each would free of a chip; the largest first."""
  c, b = plan.model.config, plan.cfg.batch
  shards = plan.mesh.shape["data"] * plan.mesh.shape["fsdp"]
  offload = "model.offload_inputs=True" if c.remat in TILED else "model.remat='full' and model.offload_inputs=True"
  found = [
    (kinds["layer inputs"], offload), (kinds["optimizer"], "optimizer.offload=True"),
    (math.inf if c.remat not in TILED else kinds["attention results"], "model.remat='full'"),
  ]  # fmt: skip
  if fewer := b.micro_rows // 2 // shards * shards:
    freed = (kinds["layer inputs"] + kinds["attention results"]) * (1 - fewer / b.micro_rows)
    found.append((freed, f"batch.micro_rows={fewer}"))
  state = kinds["parameters"] + kinds["optimizer"] + kinds["gradients"]
  found.append(((kinds["layer inputs"] + kinds["attention results"]) / 2, "twice the mesh.context, with as many rows"))
  found.append((state / 2, "twice the mesh.fsdp or mesh.tensor"))
  say = lambda gib, what: what + (f" ({gib:.1f} GiB)" if math.isfinite(gib) else "")
  return [say(gib, what) for gib, what in sorted(found, key=lambda f: -f[0]) if gib > 0.05]


def score_program(plan: Plan) -> Program:
  batch, used = _batch(plan)
  lower = lambda: plan.steps.score.lower(plan.state.params, batch, used)
  linear, attention, kernels = forward_flops(plan.model, plan.cfg.batch, plan.mesh)
  useful, beside = linear + attention, plan.state_bytes - plan.params_bytes
  return Program(lower=lower, beside_bytes=beside, facts=_rows(plan), useful_flops=useful, kernel_flops=kernels)


def _batch(plan: Plan):
  """An abstract mini-batch as the loop makes it, and the number of its micro-batches that are used."""
  b, r = plan.cfg.batch, plan.cfg.rollout
  num_micro = math.ceil(b.minibatch_prompts * r.samples_per_prompt / b.micro_rows)
  place = named(plan.mesh, None, "rows", "tokens")
  of = lambda dtype: jax.ShapeDtypeStruct((num_micro, b.micro_rows, b.row_tokens), dtype, sharding=place)
  integers = ("tokens", "positions", "segments")
  names = [f.name for f in dataclasses.fields(Batch) if f.default is dataclasses.MISSING] + ["age"]
  names += ["ref_logp"] if plan.cfg.algorithm.reference_kl_coef else []
  names += ["old_values", "returns"] if plan.model.config.value_head else []
  fields = {name: of(jnp.int32 if name in integers else jnp.float32) for name in names}
  return Batch(**fields), jax.ShapeDtypeStruct((), jnp.int32, sharding=named(plan.mesh))


def _rows(plan: Plan) -> dict:
  b = plan.cfg.batch
  return {"rows": b.micro_rows, "row_tokens": b.row_tokens, "tokens_per_chip": b.micro_rows * b.row_tokens / plan.chips}


def forward_flops(model: Model, b, mesh) -> tuple[float, float, dict[str, float]]:
  """FLOPs of a forward pass over a micro-batch of b (config.batch), per chip: with parameters, attention; of kernels.

      linear = 2 N tokens,   N without an embedding that is no head: it is looked up
      attention = 2 · (2 · tokens · T / 2 · H h)   per layer: scores and values, causal half

  The last is of each run of a splash kernel, by its name: 2 products forward, 5 in the fused backward.
  """
  c = model.config
  tokens = b.micro_rows * b.row_tokens / mesh.size
  tree = model.policy().abstract()
  numbers = sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
  numbers -= 0 if c.tie_embeddings else math.prod(tree["embed_VD"].shape)
  product = tokens * b.row_tokens * c.num_heads * c.head_dim
  once = product / attention_splash.groups_of(c.num_kv_heads // mesh.shape["tensor"])
  kernels = {"fwd": 2 * once, "dkv": 5 * once, "dq": 3 * once}
  return 2 * numbers * tokens, 2 * product * c.num_layers, kernels


def decode_program(plan: Plan) -> Program:
  e, D = plan.engine, plan.engine.shards
  i32 = lambda n, *more, dtype=jnp.int32: jax.ShapeDtypeStruct((n, *more), dtype, sharding=named(e.mesh, "rows"))

  def work(n):
    columns = {f.name: i32(n) for f in dataclasses.fields(decode.Work) if f.name not in ("key", "seen")}
    return decode.Work(**columns, key=i32(n, 2, dtype=jnp.uint32), seen=None)

  own, shared = (i32(D * plan.kinds[kind]) for kind in ("own", "shared"))
  slots = decode.Slots(work(D * plan.size), own, own)
  r = plan.cfg.rollout
  sampling = Sampling(
    temperature=r.temperature, top_k=r.top_k, top_p=r.top_p, min_p=r.min_p, min_tokens=r.min_tokens,
    max_tokens=r.max_response_tokens, stop_ids=(e.model.config.vocab_size - 1,),
  )  # fmt: skip
  lower = lambda: decode.run.lower(
    e.model, e.layout, sampling, _weights(plan), _pools(plan), slots, work(D * plan.size), i32(D), (shared, shared),
    jax.ShapeDtypeStruct((), bool), jax.ShapeDtypeStruct((), jnp.int32),
    page=e.page, width=r.samples_per_prompt if plan.kinds["shared"] else 0, steps=serving.STEPS, decide=e.decide,
  )  # fmt: skip
  facts = _slots(plan) | bound(plan)
  return Program(lower=lower, beside_bytes=plan.state_bytes, facts=facts, rollout=True)


def prefill_program(plan: Plan) -> Program:
  e, D = plan.engine, plan.engine.shards
  length = serving._bucket(e.max_prompt_tokens - 1, e.max_prompt_tokens + e.max_response_tokens)
  rows = D * min(plan.rows, max(1, serving.PREFILL_TOKENS // length))
  i32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=named(e.mesh, "rows"))
  lower = lambda: decode.prefill.lower(
    e.model, e.layout, _weights(plan), _pools(plan), i32(rows, length), i32(rows), i32(rows, length // e.page),
    i32(rows), page=e.page,
  )  # fmt: skip
  facts = _slots(plan) | {"prompts": rows, "prompt_tokens": length}
  return Program(lower=lower, beside_bytes=plan.state_bytes, facts=facts, rollout=True)


def update_program(plan: Plan) -> Program:
  arguments = _abstract(plan.engine.model.abstract(), plan.engine.model.shardings(plan.mesh))
  facts = {"in_gib": plan.params_bytes / GIB, "out_gib": plan.weight_bytes / GIB}
  lower = lambda: plan.engine._adopt.lower(arguments)
  return Program(lower=lower, beside_bytes=plan.state_bytes - plan.params_bytes, facts=facts, rollout=True)


PROGRAMS: dict[str, Callable[[Plan], Program]] = {
  "train": train_program,
  "score": score_program,
  "decode": decode_program,
  "prefill": prefill_program,
  "update": update_program,
}


def bound(plan: Plan) -> dict:
  """The most tokens per second that memory and arithmetic of a chip allow, with all slots at half the response limit.

      seconds = max( (weights + slots_d · context · bytes_per_token) / bandwidth,  FLOPs / peak );   slots / seconds

  per chip: its weights but for the embedding, of which a token reads one row, and its share of the heads' cache.
  """
  c, e = plan.model.config, plan.engine
  cut, context = e.mesh.shape["tensor"], e.max_response_tokens // 2
  size = jnp.dtype(c.dtype).itemsize
  table = 0 if c.tie_embeddings else c.vocab_size * c.d_model * size // cut
  read = plan.weight_bytes - table
  cache = plan.size * context * e.token_bytes // cut
  flops = plan.size * (2 * read // size + 4 * c.num_layers * c.num_heads * c.head_dim * context // cut)
  memory_s, compute_s = (read + cache) / (plan.chip.tb_s * 1e12), flops / (plan.chip.tflop_s * 1e12)
  seconds = max(memory_s, compute_s)
  return {
    "context_tokens": context, "weight_read_gib": read / GIB, "cache_read_gib": cache / GIB,
    "memory_ms": memory_s * 1e3, "compute_ms": compute_s * 1e3, "tokens_per_second_bound": e.slots / seconds,
    "tokens_per_second_per_chip_bound": e.slots / seconds / plan.chips,
  }  # fmt: skip


def per_chip(tree, shardings) -> int:
  """Bytes of one device's part of a tree of shapes."""
  return sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in _pairs(tree, shardings))


def _pairs(tree, shardings):
  return list(zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True))


def _abstract(tree, shardings):
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def _weights(plan: Plan):
  e = plan.engine
  return _abstract(jax.eval_shape(e._resident, e.model.abstract()), e._shardings())


def _pool_shapes(plan: Plan):
  """The pools' shapes and shardings."""
  e = plan.engine
  shape = jax.eval_shape(lambda: e.layout.new(e.model.config, plan.kinds, e.page, e.cache_dtype, e.shards))
  return shape, named_tree(plan.engine.mesh, e.layout.axes(shape))


def _pools(plan: Plan):
  return _abstract(*_pool_shapes(plan))


def _slots(plan: Plan) -> dict:
  e, tokens = plan.engine, sum(plan.kinds.values()) * plan.engine.page
  return {
    "slots": e.slots, "slots_per_shard": plan.size, "shards": e.shards, "pages_per_shard": plan.kinds,
    "page_tokens": e.page, "cache_tokens": tokens * e.shards, "cache_gib": per_chip(*_pool_shapes(plan)) / GIB,
    "cache_tokens_per_slot": round(plan.kinds["own"] * e.page / plan.size),
  }  # fmt: skip


# ---- what the compiler says ----


def measure(plan: Plan, program: Program, options: dict[str, str] | None = None) -> dict:
  """Compiles; memory per chip, collectives, seconds. One that does not fit has only the compiler's words for it."""
  facts = program.facts | {"limit_gib": plan.chip.hbm_gib, "beside_gib": program.beside_bytes / GIB}
  began = time.perf_counter()
  try:
    with jax.set_mesh(plan.engine.mesh if program.rollout else plan.mesh), _as_on_tpu():
      compiled = program.lower().compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    needs = re.search(r"Used ([\d.]+)G of ([\d.]+)G hbm", str(e))
    seconds = time.perf_counter() - began
    peak = float(needs[1]) + facts["beside_gib"] if needs else None
    if "kinds_gib" in facts:
      facts["would_help"] = remedies(plan, facts["kinds_gib"])
    return facts | {"fits": False, "peak_gib": peak, "why": str(e).splitlines()[0][:300], "compile_s": seconds}
  seconds = time.perf_counter() - began
  memory = compiled.memory_analysis()
  kinds = {
    "arguments": memory.argument_size_in_bytes, "outputs": memory.output_size_in_bytes,
    "aliased": memory.alias_size_in_bytes, "temp": memory.temp_size_in_bytes,
    "code": memory.generated_code_size_in_bytes,
    "host": memory.host_temp_size_in_bytes + memory.host_argument_size_in_bytes,
  }  # fmt: skip
  # What the compiler places in memory; temp counts some of it twice where loops hand on what they hold.
  peak = program.beside_bytes + memory.total_allocation_bytes + kinds["code"]
  read = hlo.read(compiled.as_text())
  facts |= {f"{name}_gib": value / GIB for name, value in kinds.items()}
  facts |= {"peak_gib": peak / GIB, "fits": peak / GIB <= plan.chip.hbm_gib, "compile_s": seconds}
  if "kinds_gib" in facts:
    facts["kinds_gib"]["temporaries"] = facts["peak_gib"] - sum(facts["kinds_gib"].values())
  if program.useful_flops:
    facts |= roofline(plan, program, read)
  return facts | {
    "collectives": [
      dataclasses.asdict(c) | {"bytes_in_all": c.times * c.bytes, "wire_bytes": c.times * c.wire_bytes}
      for c in read.innermost()
    ]
  }


def roofline(plan: Plan, program: Program, read: hlo.Reading) -> dict:
  """What a chip computes, moves and sends in one micro-batch, and the shortest time that its published speeds allow.

      seconds = max( FLOPs / peak, memory bytes / bandwidth, bytes sent / links, host bytes / host link )
      MFU = useful FLOPs / peak / seconds

  Host bytes are those of both ways, the speed that of one.
  """
  kernels = {name: n * _of_kernel(name, program.kernel_flops) for name, n in read.kernels.items()}
  flops, wire = read.flops + sum(kernels.values()), read.wire()
  sent, chip = sum(wire.values()), plan.chip
  seconds = {
    "compute": flops / (chip.tflop_s * 1e12), "memory": read.hbm_bytes / (chip.tb_s * 1e12),
    "links": sent / (chip.ici_gb_s * 1e9), "host": read.host_bytes / (chip.host_gb_s * 1e9),
  }  # fmt: skip
  bound = max(seconds, key=seconds.get)
  return {
    "flops": flops, "product_flops": read.flops, "kernel_flops": sum(kernels.values()), "kernels": read.kernels,
    "useful_flops": program.useful_flops, "flops_over_useful": flops / program.useful_flops,
    "hbm_bytes": read.hbm_bytes, "host_bytes": read.host_bytes, "host_bytes_beside_work": read.host_beside,
    "wire_bytes": sent, "wire_bytes_by_kind": wire,
    "asynchronous_share": read.asynchronous_share(), "seconds": seconds, "bound": bound,
    "roofline_mfu": program.useful_flops / (chip.tflop_s * 1e12) / seconds[bound],
  }  # fmt: skip


def _of_kernel(name: str, flops: dict[str, float]) -> float:
  return next((value for part, value in flops.items() if part in name), 0.0)


@contextlib.contextmanager
def _as_on_tpu() -> Iterator[None]:
  """The model's choices by backend are those of a TPU, though this process has a CPU."""
  before = jax.default_backend
  jax.default_backend = lambda: "tpu"
  try:
    yield
  finally:
    jax.default_backend = before


# ---- the report ----


def report(name: str, facts: dict) -> str:
  """A program's figures in lines."""
  g = lambda key: f"{facts[key]:.2f} GiB"
  lines = [f"{name}: {'fits' if facts['fits'] else 'DOES NOT FIT'}"]
  say = lambda what, text: lines.append(f"  {what:<12}{text}")
  if "slots" in facts:
    say("slots", f"{facts['slots']} ({facts['slots_per_shard']} on each of {facts['shards']} shards)")
    say(
      "cache", f"{g('cache_gib')} per chip, {facts['cache_tokens']} tokens in all, "
      f"{facts['cache_tokens_per_slot']} of its own per slot; pages per shard {facts['pages_per_shard']}"
    )  # fmt: skip
  if "prompts" in facts:
    say("prompts", f"{facts['prompts']} of {facts['prompt_tokens']} tokens")
  if facts["peak_gib"] is not None:
    say("peak", f"{g('peak_gib')} of {facts['limit_gib']} per chip, {g('beside_gib')} of it trainer state beside it")
  if "kinds_gib" in facts:
    say("of it", ", ".join(f"{kind} {gib:.2f}" for kind, gib in facts["kinds_gib"].items() if gib) + " GiB")
  if facts.get("host_gib"):
    moved = facts.get("host_bytes", 0)
    beside = f"; {moved / 1e9:.1f} GB moved, {facts['host_bytes_beside_work'] / moved:.1%} beside work" if moved else ""
    say("host", f"{g('host_gib')} per chip in the host's memory{beside}")
  if "why" in facts:
    say("compiler", facts["why"])
  if "would_help" in facts:
    say("would help", "; ".join(facts["would_help"]))
  if "temp_gib" in facts:
    say("memory", ", ".join(f"{kind} {g(kind + '_gib')}" for kind in ("arguments", "outputs", "aliased", "temp")))
    if "cache_gib" in facts:
      once = "aliased and held once" if held_once(facts) else "NOT held once"
      say("pool", f"{once}; temp is {facts['temp_gib'] / facts['cache_gib']:.1%} of it")
    if "out_gib" in facts:
      extra = facts["temp_gib"] + facts["arguments_gib"] + facts["outputs_gib"] - facts["in_gib"] - facts["out_gib"]
      say("copies", f"old {g('in_gib')} + new {g('out_gib')} + {extra:.2f} GiB")
  if "tokens_per_second_bound" in facts:
    say(
      "bound", f"{facts['tokens_per_second_bound']:,.0f} tokens/s, {facts['tokens_per_second_per_chip_bound']:,.0f} "
      f"per chip, at {facts['context_tokens']} tokens per slot: memory {facts['memory_ms']:.1f} ms, arithmetic "
      f"{facts['compute_ms']:.1f} ms a step"
    )  # fmt: skip
  if "flops" in facts:
    t = facts["seconds"]
    say(
      "arithmetic", f"{facts['flops']:.3e} FLOP per chip ({facts['product_flops']:.3e} in products, "
      f"{facts['kernel_flops']:.3e} in kernels), {facts['flops_over_useful']:.3f} x useful"
    )  # fmt: skip
    kinds = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in sorted(facts["wire_bytes_by_kind"].items()))
    share = f"{facts['asynchronous_share']:.1%} asynchronous"
    say("sent", f"{facts['wire_bytes'] / 1e9:.1f} GB per chip ({kinds}), {share}")
    say(
      "roofline", f"compute {t['compute']:.2f} s, memory {t['memory']:.2f} s, links {t['links']:.2f} s, host "
      f"{t['host']:.2f} s: bound by "
      f"{facts['bound']}, MFU at most {facts['roofline_mfu']:.1%}"
    )  # fmt: skip
  if "collectives" in facts:
    found = facts["collectives"]
    in_step = "a token step" if any(c["depth"] > 2 for c in found) else "a decision, none in a token step"
    unit = in_step if name == "decode" else "a call"
    total = sum(c["bytes_in_all"] for c in found)
    say("collectives", f"{sum(c['times'] for c in found)} {unit}, {total / 2**20:.2f} MiB")
    for c in found[:40]:
      say("", f"{c['times']:>4} x {c['kind']} {c['shape']}  ({c['bytes']} B of {c['group']} chips) {c['where']}")
  say("compile", f"{facts['compile_s']:.0f} s")
  return "\n".join(lines)


def held_once(facts: dict) -> bool:
  """Whether the pool is written in place: as much is aliased as it is large, and nothing of its size is temporary."""
  return facts["aliased_gib"] >= 0.999 * facts["cache_gib"] and facts["temp_gib"] < 0.5 * facts["cache_gib"]


# ---- the command ----

def define_flags() -> None:
  """The command's flags; here and not at import, as launch/run.py has a --config too."""
  config_flags.DEFINE_config_file("config", None, "An experiment file; --config.FIELD=VALUE overrides a field.")
  flags.DEFINE_list("topology", None, f"Rows of TOPOLOGIES: {', '.join(TOPOLOGIES)}.")
  flags.DEFINE_integer("slices", 1, "Slices of that topology, joined by the data-centre network along mesh.data.")
  flags.DEFINE_list("programs", list(PROGRAMS), "Rows of PROGRAMS.")
  flags.DEFINE_integer("slots", 0, "Slots over the mesh, in place of rollout.slots; 0: from the chip's memory.")
  flags.DEFINE_string("json", None, "Where the figures go as JSON, too.")


def main(argv) -> None:
  if len(argv) > 1:
    fail(f"unexpected argument {argv[1]!r}: fields are given as --config.FIELD=VALUE.")
  try:
    given = flags.FLAGS
    if not given.config or not given.topology:
      raise ValueError("--config=FILE and --topology=NAME are needed.")
    results = [
      run(given.config, topology, given.programs, given.slots, given.slices) for topology in given.topology
    ]
    if given.json:
      pathlib.Path(given.json).parent.mkdir(parents=True, exist_ok=True)
      pathlib.Path(given.json).write_text(
        json.dumps(_rounded(results if len(results) > 1 else results[0]), indent=1) + "\n"
      )
  except (ValueError, OSError) as e:
    if os.environ.get("FIPO_TRACEBACK"):
      raise
    fail(str(e))


def fail(message: str) -> None:
  print("error: " + " ".join(message.split()), file=sys.stderr)
  sys.exit(processes.EXIT_MISTAKE)


def run(cfg, topology: str, programs, slots: int = 0, slices: int = 1) -> dict:
  """Compiles the programs one after the other, prints and returns what there is to say."""
  validate(cfg)
  for name in programs:
    config_lib.one_of("programs", name, tuple(PROGRAMS))
  kind, shape = topology_of(topology)
  if cfg.rollout.engine != "native":
    raise ValueError(f"rollout.engine={cfg.rollout.engine!r}: only the native engine's programs can be compiled here.")
  rollout = bool({"decode", "prefill"} & set(programs))
  plan = make_plan(cfg, CHIPS[kind], open_topology(topology, slices), slots, rollout)
  c = plan.model.config
  versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu")}
  numbers = sum(math.prod(x.shape) for x in jax.tree.leaves(plan.model.abstract()))
  result = {
    "topology": topology, "slices": slices, "chips": plan.chips, "shape": "x".join(map(str, shape)),
    "mesh": dict(plan.mesh.shape), "rollout_mesh": dict(plan.engine.mesh.shape),
    "model": {"path": "" if cfg.model.preset else cfg.model.path, "preset": cfg.model.preset, "parameters": numbers,
              "layers": c.num_layers, "d_model": c.d_model, "dtype": c.dtype},
    "max_prompt_tokens": cfg.data.max_prompt_tokens, "max_response_tokens": cfg.rollout.max_response_tokens,
    "attention": plan.engine.attention, "weights_gib": plan.weight_bytes / GIB,
    "trainer_state_gib": plan.state_bytes / GIB, "versions": versions, "ran_on_a_tpu": False, "programs": {},
  }  # fmt: skip
  sizes = " x ".join(f"{axis} {n}" for axis, n in plan.mesh.shape.items())
  if plan.engine.mesh.shape != plan.mesh.shape:
    sizes += " (rollouts: " + " x ".join(f"{axis} {n}" for axis, n in plan.engine.mesh.shape.items()) + ")"
  print(
    f"{cfg.model.preset or cfg.model.path}: {numbers / 1e9:.2f}B parameters, {c.dtype}; {topology}: {plan.chips} "
    f"chips ({result['shape']}), {sizes}; attention {result['attention']}\nper chip: {result['weights_gib']:.2f} GiB "
    f"of weights for the rollout, {result['trainer_state_gib']:.2f} GiB of trainer state; jax {versions['jax']}, "
    f"libtpu {versions['libtpu']}; compiled, not run"
  )  # fmt: skip
  if slices > 1 and any(wrap(CHIPS[kind], shape)):
    print(
      "note: libtpu joins slices without the wrap-around links that each has, so gathers over a slice may come out as "
      "all-reduces; what is sent within a slice is what --slices=1 says"
    )
  for name in programs:
    facts = measure(plan, PROGRAMS[name](plan), OPTIONS[kind] if name in ("train", "score") else None)
    result["programs"][name] = facts
    print(report(name, facts), flush=True)
  return result


def validate(cfg) -> None:
  """As the run would, but data need not be there, nor a tokenizer; and a preset goes before an experiment's path."""
  cfg = copy.deepcopy(cfg)
  cfg.data.path = cfg.eval.path = __file__  # some file
  if cfg.model.preset:
    cfg.model.path, cfg.model.alphabet = "", cfg.model.alphabet or "0"
  config_lib.validate(cfg)


def _rounded(x):
  if isinstance(x, dict):
    return {key: _rounded(value) for key, value in x.items()}
  if isinstance(x, list | tuple):
    return [_rounded(value) for value in x]
  return float(np.format_float_positional(x, precision=5, fractional=False)) if isinstance(x, float) else x


if __name__ == "__main__":
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
  logging.set_verbosity(logging.WARNING)
  define_flags()
  app.run(main, flags_parser=command_line.plain)
