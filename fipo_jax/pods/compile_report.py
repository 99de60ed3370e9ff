"""What the TPU compiler says of a run's programs: memory, arithmetic, bytes moved and sent, and the bounds of speed."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import re
import time
from collections.abc import Iterator

import jax
import numpy as np

from fipo_jax import config as config_lib
from fipo_jax.pods import hlo
from fipo_jax.pods import programs as programs_lib
from fipo_jax.pods.chips import CHIPS, open_topology, topology_of, wrap
from fipo_jax.pods.programs import GIB, PROGRAMS, Plan, Program, make_plan, remedies, validate
from fipo_jax.train.compiler_options import options_of


def run(cfg, topology: str, programs, slots: int = 0, slices: int = 1) -> dict:
  """Compiles the programs one after the other, prints and returns what there is to say; slots, 0: as the config says.

  Raises ValueError for what the run would refuse at its start.
  """
  if slots:
    cfg = copy.deepcopy(cfg)
    cfg.rollout.slots = slots
  validate(cfg)
  for name in programs:
    config_lib.one_of("programs", name, tuple(PROGRAMS))
  kind, shape = topology_of(topology)
  if cfg.rollout.engine != "native":
    raise ValueError(f"rollout.engine={cfg.rollout.engine!r}: only the native engine's programs can be compiled here.")
  rollout = bool({"decode", "prefill"} & set(programs))
  slots = 0 if cfg.rollout.slots == "auto" else cfg.rollout.slots
  plan = make_plan(cfg, CHIPS[kind], open_topology(topology, slices), slots, rollout, bounded=True)
  config_lib.check_mesh(cfg, plan.mesh.shape, plan.engine.mesh.shape)
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
    "compiler_options": options_of(plan.mesh, cfg.compiler_options) or {},
    "trainer_state_gib": plan.state_bytes / GIB, "settings": programs_lib.settings(cfg),
    "versions": versions, "ran_on_a_tpu": False, "programs": {},
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
    facts = measure(plan, PROGRAMS[name](plan))
    result["programs"][name] = facts
    print(describe(name, facts), flush=True)
  return result


def measure(plan: Plan, program: Program) -> dict:
  """Compiles; memory per chip, collectives, seconds. One that does not fit has only the compiler's words for it."""
  facts = program.facts | {"limit_gib": plan.chip.hbm_gib, "beside_gib": program.beside_bytes / GIB}
  began, cpu = time.perf_counter(), os.times().user
  try:
    with jax.set_mesh(plan.engine.mesh if program.rollout else plan.mesh), _as_on_tpu():
      compiled = program.lower().compile()
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    needs = re.search(r"Used ([\d.]+)G of ([\d.]+)G hbm", str(e))
    seconds = {"compile_s": time.perf_counter() - began, "compile_cpu_s": os.times().user - cpu}
    peak = float(needs[1]) + facts["beside_gib"] if needs else None
    if "kinds_gib" in facts:
      facts["would_help"] = remedies(plan, facts["kinds_gib"])
    return facts | {"fits": False, "peak_gib": peak, "why": str(e).splitlines()[0][:300], **seconds}
  seconds = {"compile_s": time.perf_counter() - began, "compile_cpu_s": os.times().user - cpu}
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
  facts |= {"peak_gib": peak / GIB, "fits": peak / GIB <= plan.chip.hbm_gib, **seconds}
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
    "hbm_bytes": read.hbm_bytes, "estimated_cycles": read.cycles,
    "host_bytes": read.host_bytes, "host_bytes_beside_work": read.host_beside,
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


def describe(name: str, facts: dict) -> str:
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
      f"{facts['kernel_flops']:.3e} in kernels), {facts['flops_over_useful']:.3f} x useful; the compiler's estimate "
      f"without kernels and collectives: {facts['estimated_cycles'] / 1e9:.2f}e9 cycles"
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
  say("compile", f"{facts['compile_s']:.0f} s, {facts['compile_cpu_s']:.0f} s of CPU time")
  return "\n".join(lines)


def held_once(facts: dict) -> bool:
  """Whether the pool is written in place: as much is aliased as it is large, and nothing of its size is temporary."""
  return facts["aliased_gib"] >= 0.999 * facts["cache_gib"] and facts["temp_gib"] < 0.5 * facts["cache_gib"]


def write(results, path: str) -> None:
  """Figures as a JSON file, in a folder that is made where it is not there."""
  file = pathlib.Path(path)
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps(rounded(results), indent=1) + "\n")


def rounded(x):
  """A report with five digits of each number."""
  if isinstance(x, dict):
    return {key: rounded(value) for key, value in x.items()}
  if isinstance(x, list | tuple):
    return [rounded(value) for value in x]
  return float(np.format_float_positional(x, precision=5, fractional=False)) if isinstance(x, float) else x
