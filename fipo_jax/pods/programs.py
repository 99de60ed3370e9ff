"""The programs of a run on a topology that is not there, on abstract arguments: no weight is read and none is made."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import math
import os
import re
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fipo_jax import config as config_lib
from fipo_jax import parts
from fipo_jax.evaluation import sets as sets_lib
from fipo_jax.models import PRESETS, attention_splash, hf, make_model
from fipo_jax.models.transformer import NUMERICS, TILED, Model, ModelConfig
from fipo_jax.pods.chips import Chip, Described
from fipo_jax.rollout import ENGINES, Sampling, decode, device
from fipo_jax.rollout.capacity import Shape
from fipo_jax.sharding import for_rollout, make_mesh, named, named_tree
from fipo_jax.train import state as state_lib
from fipo_jax.train.step import Steps
from fipo_jax.types import Batch

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Plan:
  """A run on a topology. state: the trainer's, abstract; state_bytes of it per chip, params_bytes of the parameters.

  shape: slots and pages of a shard, of the largest decode program.
  """

  cfg: Any
  chip: Chip
  chips: int
  model: Model
  mesh: Any
  engine: Any
  shape: Shape
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
  """Sizes by model.preset or by model.path's config.json or, where none is there, its name; numerics of the config.

  With a value head where the objective needs one.
  """
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
  own = {name: m[name] for name in NUMERICS} | {"value_head": cfg.algorithm.name == "ppo"}
  return dataclasses.replace(sizes, max_position=m.max_position or sizes.max_position, **own)


def make_plan(cfg, chip: Chip, devices, slots: int = 0, rollout: bool = True, bounded: bool = False) -> Plan:
  """Slots and pages as the native engine would choose them on such chips; slots in all, 0: from their memory.

  rollout: whether slots are of interest; else there is one on each shard. bounded: whether slots that are given have
  the pages that the memory holds, as in a run (and it is said), or all that they could need. With devices of
  `describe_topology` the plan has sizes but no steps and no state, and can be compiled for nothing.
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
  steps, abstract, state = _trainer(cfg, model, mesh)
  weights = per_chip(jax.eval_shape(engine._resident, engine.model.abstract()), engine._shardings())
  if not rollout:
    engine.slots = engine.shards
  elif not slots or bounded and not engine.cache_tokens:
    size_from_memory(engine, int(chip.hbm_gib * GIB), weights + state)
  shape = max(engine.capacity.shapes(r.samples_per_prompt), key=lambda s: (s.slots, s.own))  # what a run may come to
  return Plan(cfg, chip, mesh.size, model, mesh, engine, shape, steps, abstract, state, params, weights)


def _trainer(cfg, model: Model, mesh) -> tuple[Steps | None, Any, int]:
  """(programs, abstract state, bytes of it on a device); the first two None where the devices are only described."""
  if described := isinstance(mesh.devices.flat[0], Described):  # which have no memories to name
    steps, abstract = None, state_lib.abstract(model, parts.open_optimizer(cfg, model)[0], mesh)
  else:
    steps, _, abstract = parts.open_steps(cfg, model, mesh)
  leaves = jax.tree_util.tree_leaves_with_path(abstract)
  here = [x for path, x in leaves if not (cfg.optimizer.offload and state_lib.is_offloaded(path, x.sharding))]
  size = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in here)
  return steps, None if described else abstract, size


def size_from_memory(engine, limit: int, used: int) -> None:
  """Lets the engine choose slots, or pages for its own, as on a device with so many bytes of memory, some in use."""
  device = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": limit, "bytes_in_use": used})
  mesh = engine.mesh
  engine.mesh = types.SimpleNamespace(local_devices=[device], shape=mesh.shape, devices=mesh.devices)
  try:
    if engine.slots:
      engine._bound_by_memory()
    else:
      engine._size_from_memory()
  finally:
    engine.mesh = mesh


def train_program(plan: Plan) -> Program:
  batch, used = _batch(plan)
  lower = lambda: plan.steps.update.lower(plan.state, batch, used)
  linear, attention, kernels = forward_flops(plan.model, plan.cfg.batch, plan.mesh)
  facts = _rows(plan) | {"kinds_gib": kinds_of_memory(plan)}
  return Program(lower=lower, beside_bytes=0, facts=facts, useful_flops=3 * (linear + attention), kernel_flops=kernels)


def kinds_of_memory(plan: Plan) -> dict[str, float]:
  """GiB of a chip that a train step holds by design; what the compiler places beside that are its temporaries.

  gradients: float32 sums over micro-batches, and those of one, in the compute dtype, with the narrow parameters. kept
  products: q, k, v, attention's output matrix, gate and up of every layer, under remat "dots".
  """
  c, cfg = plan.model.config, plan.cfg
  size = jnp.dtype(c.dtype).itemsize
  numbers = plan.params_bytes / jnp.dtype(c.param_dtype).itemsize
  width = c.num_layers * cfg.batch.micro_rows * cfg.batch.row_tokens / plan.chips * size  # heads are cut over tensor
  inputs = 0 if c.offload_inputs else width * plan.mesh.shape["tensor"] * c.d_model
  kept = width * c.num_heads * c.head_dim if c.remat in ("context", "dots") else 0
  cut = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim + 2 * c.d_mlp  # over tensor
  products = width * (cut + plan.mesh.shape["tensor"] * c.d_model) if c.remat == "dots" else 0
  bytes_of = {
    "parameters": plan.params_bytes, "optimizer": plan.state_bytes - plan.params_bytes,
    "gradients": numbers * (4 + 2 * size), "layer inputs": inputs, "attention results": kept,
    "kept products": products,
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
  capacity, width = e.capacity, plan.cfg.rollout.samples_per_prompt
  flag, number = jax.ShapeDtypeStruct((), bool), jax.ShapeDtypeStruct((), jnp.int32)
  r = plan.cfg.rollout
  sampling = Sampling(
    temperature=r.temperature, top_k=r.top_k, top_p=r.top_p, min_p=r.min_p, min_tokens=r.min_tokens,
    max_tokens=r.max_response_tokens, stop_ids=(e.model.config.vocab_size - 1,),
  )  # fmt: skip
  shared = _columns(plan, D * plan.shape.shared)
  lower = lambda: decode.run.lower(
    e.model, e.layout, sampling, _weights(plan), _pools(plan), _slots(plan),
    _work(plan, D * min(plan.shape.slots, capacity.ahead + width)), _columns(plan, D), (shared, shared), flag, number,
    flag, number, page=e.page, width=width if plan.shape.shared else 0, steps=device.STEPS,
    decide=e.decide,
  )  # fmt: skip
  facts = _slots_facts(plan) | bound(plan)
  return Program(lower=lower, beside_bytes=plan.state_bytes, facts=facts, rollout=True)


def prefill_program(plan: Plan) -> Program:
  e, D = plan.engine, plan.engine.shards
  capacity = e.capacity
  length = capacity.prefill_length(e.max_prompt_tokens - 1)
  rows = D * capacity.rows(length, plan.cfg.rollout.samples_per_prompt)
  i32 = lambda *shape: _columns(plan, *shape)
  lower = lambda: decode.prefill.lower(e.model, _weights(plan), i32(rows, length), i32(rows))
  facts = _slots_facts(plan) | {"prompts": rows, "prompt_tokens": length}
  beside = plan.state_bytes + per_chip(*pool_shapes(plan))
  return Program(lower=lower, beside_bytes=beside, facts=facts, rollout=True)


def _columns(plan: Plan, n: int, *more: int, dtype=jnp.int32):
  return jax.ShapeDtypeStruct((n, *more), dtype, sharding=named(plan.engine.mesh, "rows"))


def _work(plan: Plan, n: int) -> decode.Work:
  columns = {name: _columns(plan, *x.shape, dtype=x.dtype) for name, x in device.empty_work(n).items()}
  return decode.Work(**columns, seen=None)


def _slots(plan: Plan) -> decode.Slots:
  own = _columns(plan, plan.engine.shards * plan.shape.own)
  return decode.Slots(_work(plan, plan.engine.shards * plan.shape.slots), own, own)


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
  cache = plan.shape.slots * context * e.token_bytes // cut
  flops = plan.shape.slots * (2 * read // size + 4 * c.num_layers * c.num_heads * c.head_dim * context // cut)
  memory_s, compute_s = (read + cache) / (plan.chip.tb_s * 1e12), flops / (plan.chip.tflop_s * 1e12)
  seconds = max(memory_s, compute_s)
  return {
    "context_tokens": context, "weight_read_gib": read / GIB, "cache_read_gib": cache / GIB,
    "memory_ms": memory_s * 1e3, "compute_ms": compute_s * 1e3, "tokens_per_second_bound": e.slots / seconds,
    "tokens_per_second_per_chip_bound": e.slots / seconds / plan.chips,
  }  # fmt: skip


def settings(cfg) -> dict:
  """What else decides what the train and score programs do on a device, besides sizes, mesh and rows."""
  m = cfg.model
  names = ("dtype", "param_dtype", "remat", "offload_inputs", "tile_tokens", "sum_dtype")
  return {name: m[name] for name in names} | {"optimizer.offload": cfg.optimizer.offload}


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


def pool_shapes(plan: Plan):
  """The pools' shapes and shardings."""
  e = plan.engine
  shape = jax.eval_shape(lambda: e.layout.new(e.model.config, plan.shape.pages, e.page, e.cache_dtype, e.shards))
  return shape, named_tree(plan.engine.mesh, e.layout.axes(shape))


def _pools(plan: Plan):
  return _abstract(*pool_shapes(plan))


def _slots_facts(plan: Plan) -> dict:
  e, tokens = plan.engine, sum(plan.shape.pages.values()) * plan.engine.page
  return {
    "slots": e.slots, "slots_per_shard": plan.shape.slots, "shards": e.shards, "pages_per_shard": plan.shape.pages,
    "page_tokens": e.page, "cache_tokens": tokens * e.shards, "cache_gib": per_chip(*pool_shapes(plan)) / GIB,
    "cache_tokens_per_slot": round(plan.shape.own * e.page / plan.shape.slots),
  }  # fmt: skip


def validate(cfg) -> None:
  """As the run would, but data need not be there, nor a tokenizer; and a preset goes before an experiment's path."""
  cfg = copy.deepcopy(cfg)
  cfg.data.path = cfg.eval.path = __file__  # some file
  if cfg.model.preset:
    cfg.model.path, cfg.model.alphabet = "", cfg.model.alphabet or "0"
  config_lib.validate(cfg)
  if cfg.eval.every:
    sets_lib.check_limits(cfg)
    sets_lib.best_by(cfg)
