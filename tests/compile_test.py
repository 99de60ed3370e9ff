"""The compile report: its tables, arithmetic and reading of compiled programs; and a tiny compile where libtpu is."""

import dataclasses
import json
import math
import random
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import fipo_qwen2_5_32b
from fipo_jax import config as config_lib
from fipo_jax.models import PRESETS, make_model
from fipo_jax.pods import chips, compile_report, hlo, programs
from fipo_jax.sharding import make_mesh
from tests.tolerances import close

HLO = """HloModule jit_run, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p: bf16[8,16]) -> bf16[64,16] {
  ROOT %ag = bf16[64,16]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=3, dimensions={0}, metadata={op_name="a/b/c/d/e"}
}

%layer.body (p: (s32[], f32[4,32])) -> (s32[], f32[4,32]) {
  %ar = f32[4,32]{1,0:T(4,128)} all-reduce(%x), channel_id=1, to_apply=%add, metadata={op_name="jit(run)/layer/dot"}
  %start = (f32[4,8]{1,0}, f32[4,32]{1,0}) all-gather-start(%y), channel_id=2, dimensions={1}
  %done = f32[4,32]{1,0} all-gather-done(%start)
}

%layer.cond (p: (s32[], f32[4,32])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%token.body (p: (s32[], f32[4,32])) -> (s32[], f32[4,32]) {
  %w = (s32[], f32[4,32]{1,0}) while(%t), condition=%layer.cond, body=%layer.body
  %k = (s32[], f32[4,32]) while(%t), condition=%other, body=%layer.body, backend_config={"known_trip_count":{"n":"3"}}
  %f = bf16[64,16]{1,0} fusion(%z), kind=kCustom, calls=%fused
}

%token.cond (p: (s32[], f32[4,32])) -> pred[] {
  %any = (u32[], pred[]) all-reduce(%p, %q), channel_id=4, to_apply=%add
  ROOT %go = pred[] compare(%any, %one), direction=LT
}

ENTRY %main (p: f32[4,32]) -> f32[4,32] {
  %loop = (s32[], f32[4,32]{1,0}) while(%init), condition=%token.cond, body=%token.body
  %last = f32[2]{0} collective-permute(%v), channel_id=5
}
"""


def test_collectives_are_counted_by_loop_and_layers_many_times():
  found = hlo.read(HLO).collectives
  assert {c.depth for c in found} == {0, 1}
  (once,) = (c for c in found if c.depth == 0)
  assert (once.kind, once.bytes, once.times) == ("collective-permute", 8, 1)
  step = hlo.read(HLO).innermost()
  assert [(c.kind, c.shape, c.bytes, c.times, c.asynchronous) for c in step] == [
    ("all-gather", "f32[4,32]", 512, 10, True), ("all-reduce", "f32[4,32]", 512, 10, False),
    ("all-gather", "bf16[64,16]", 2048, 1, False), ("all-reduce", "u32[] pred[]", 5, 1, False),
  ]  # fmt: skip
  assert step[2].where == "b/c/d/e"


def test_a_program_without_loops_counts_as_it_is():
  entry = HLO.replace("while(%init)", "copy(%init)")
  assert [c.kind for c in hlo.read(entry).innermost()] == ["collective-permute"]


@pytest.mark.parametrize(("groups", "chips"), [
  ("{{0,1,2,3},{4,5,6,7}}", 4), ("[2,32]<=[64]", 32), ("mesh['axis_0'=64] {'axis_0'}", 64),
  ("mesh['a'=4,'b'=8] {'a'}", 4), ("mesh['a'=4,'b'=8] {'b','a'}", 32),
])  # fmt: skip
def test_bytes_sent_by_kind_and_size_of_the_group(groups, chips):
  def of(kind, shape="f32[100]{0}"):
    line = f"  %x = {shape} {kind}(%p), replica_groups={groups}, dimensions={{0}}"
    (found,) = hlo.read(f"ENTRY %main (p: f32[100]) -> f32[100] {{\n{line}\n}}\n").collectives
    assert found.group == chips
    return found.wire_bytes

  close(of("all-gather"), 400 * (chips - 1) / chips, dtype=np.float64)
  close(of("all-reduce"), 2 * 400 * (chips - 1) / chips, dtype=np.float64)
  close(of("reduce-scatter"), 400 * (chips - 1), dtype=np.float64)


@pytest.mark.parametrize(("line", "operands", "flops"), [
  # a plain product; heads as a window of which one place falls on data; heads summed; a sum over a batch
  ("f32[6,10]{1,0} convolution(%a, %b), dim_labels=bf_io->bf", ("f32[6,8]", "f32[8,10]"), 2 * 6 * 10 * 8),
  ("f32[6,5,4]{2,1,0} convolution(%a, %b), window={size=5 pad=4_4 rhs_reversal=1}, dim_labels=bf0_i0o->b0f",
   ("f32[6,8,1]", "f32[8,5,4]"), 2 * 6 * 5 * 4 * 8),
  ("f32[6,8,1]{2,1,0} convolution(%a, %b), window={size=5}, dim_labels=b0f_o0i->bf0",
   ("f32[6,5,4]", "f32[8,5,4]"), 2 * 6 * 8 * 5 * 4),
  ("f32[6,10]{1,0} dot(%a, %b), lhs_contracting_dims={0}, rhs_contracting_dims={0}",
   ("f32[8,6]", "f32[8,10]"), 2 * 6 * 10 * 8),
])  # fmt: skip
def test_arithmetic_of_products(line, operands, flops):
  a, b = operands
  text = f"ENTRY %main (p: f32[1]) -> f32[1] {{\n  %a = {a} parameter(0)\n  %b = {b} parameter(1)\n  %c = {line}\n}}\n"
  assert hlo.read(text).flops == flops


def test_a_real_program_is_read_whole():
  """Products in a loop of seven turns, compiled here; the CPU's text, whose loops say their turns."""
  def layers(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

  text = jax.jit(layers).lower(jnp.ones((4, 16)), jnp.ones((7, 16, 16))).compile().as_text()
  read = hlo.read(text)
  assert read.flops in (0, 7 * 2 * 4 * 16 * 16)  # 0 where the backend hides products in calls of its own
  assert read.hbm_bytes > 7 * 16 * 16 * 4 and not read.collectives


def test_topologies_are_googles():
  assert chips.topology_of("v5p-128") == ("v5p", (4, 4, 4))  # counted in cores
  assert chips.topology_of("v5e-256") == ("v5e", (16, 16))  # counted in chips
  assert {"v5p-8", "v5p-1024", "v6e-256", "v4-128"} <= set(chips.TOPOLOGIES)
  for name, (kind, shape) in chips.TOPOLOGIES.items():
    assert name == f"{kind}-{math.prod(shape) * chips.CHIPS[kind].cores}"
  v5p, v6e = chips.CHIPS["v5p"], chips.CHIPS["v6e"]
  assert chips.wrap(v5p, (2, 4, 8)) == (False, True, True) and chips.wrap(v6e, (8, 16)) == (False, True)


def test_an_unknown_topology_names_its_neighbours():
  with pytest.raises(ValueError, match="'v5p-127' is unknown.*v5p-128"):
    chips.topology_of("v5p-127")
  with pytest.raises(ValueError, match="v4-8, .*v6e-256"):
    chips.topology_of("h100")


def test_without_libtpu_one_line_says_what_to_install(monkeypatch):
  def missing(name):
    raise chips.importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(chips.importlib.metadata, "version", missing)
  with pytest.raises(ValueError, match="pip install libtpu"):
    chips.open_topology("v5p-8")


def test_slots_are_those_that_the_engine_takes_of_such_a_chip():
  plan = programs.make_plan(tiny(config_lib.default()), chips.CHIPS["v5e"], jax.devices()[:1])
  e = plan.engine
  free = int(15.75 * 2**30) - plan.weight_bytes - plan.state_bytes
  assert 200 < e.slots <= 256  # the most that the engine takes
  assert e.cache_tokens == int(0.7 * free) // e.token_bytes
  assert plan.shape.slots == e.slots and e.mesh is plan.mesh


def test_programs_are_measured_on_the_mesh_they_run_on(monkeypatch):
  heads = dataclasses.replace(PRESETS["tiny"], num_heads=4, num_kv_heads=2, head_dim=40)  # that two devices can share
  monkeypatch.setitem(PRESETS, "tiny", heads)
  cfg = tiny(config_lib.default())
  cfg.mesh.fsdp, cfg.rollout.tensor, cfg.batch.micro_rows = 8, 2, 8
  plan = programs.make_plan(cfg, chips.CHIPS["v5p"], jax.devices(), slots=16)
  assert dict(plan.engine.mesh.shape) == dict(data=1, fsdp=4, context=1, tensor=2) != dict(plan.mesh.shape)
  made = {name: make(plan) for name, make in programs.PROGRAMS.items()}
  assert {name for name, program in made.items() if program.rollout is True} == {"decode", "prefill", "update"}
  assert all(made[name].kernel_flops["fwd"] > 0 for name in ("train", "score"))


def test_too_little_memory_says_what_to_change():
  e = programs.make_plan(tiny(config_lib.default()), chips.CHIPS["v5e"], jax.devices()[:1]).engine
  with pytest.raises(ValueError, match="0.00 GiB are free .* larger rollout.tensor"):
    programs.size_from_memory(e, 1000, 900)
  with pytest.raises(ValueError, match="weights and trainer state are 2.00 GiB more than a device has"):
    programs.size_from_memory(e, 0, 2 * 2**30)


def test_slots_that_are_given_have_the_pages_that_the_memory_holds(capsys):
  cfg, narrow = tiny(config_lib.default()), dataclasses.replace(chips.CHIPS["v5e"], hbm_gib=0.04)
  make = lambda **options: programs.make_plan(cfg, narrow, jax.devices()[:1], slots=256, **options)
  bytes_of = lambda plan: sum(plan.shape.pages.values()) * plan.engine.page * plan.engine.token_bytes
  run, needed = make(bounded=True), make()
  free = int(0.04 * 2**30) - run.weight_bytes - run.state_bytes
  assert bytes_of(needed) > free > bytes_of(run) > 0.5 * free and run.engine.slots == 256
  assert "256 slots of the longest responses would need" in capsys.readouterr().out
  cfg.rollout.cache_tokens = 4096
  assert make(bounded=True).engine.cache_tokens == 4096


def test_a_report_is_of_what_the_run_would_do(monkeypatch):
  """Its slots are those of the config, and what it would refuse at its start is refused."""
  plans = []
  monkeypatch.setattr(compile_report, "open_topology", lambda *_: jax.devices()[:4])
  monkeypatch.setattr(compile_report.importlib.metadata, "version", lambda name: "0")
  monkeypatch.setattr(compile_report, "measure", lambda plan, *_: plans.append(plan))
  monkeypatch.setattr(compile_report, "describe", lambda *_: "")
  cfg = tiny(config_lib.default())
  cfg.mesh.fsdp, cfg.batch.micro_rows, cfg.rollout.slots = 4, 8, 12
  for given in (0, 16):
    compile_report.run(cfg, "v5p-8", ["decode"], given)
  assert [plan.engine.slots for plan in plans] == [12, 16] and cfg.rollout.slots == 12
  with pytest.raises(ValueError, match="rollout.slots=18 must be a multiple of data.fsdp=4; try"):
    compile_report.run(cfg, "v5p-8", ["decode"], 18)
  cfg.batch.micro_rows = 6
  with pytest.raises(ValueError, match="batch.micro_rows=6 must be a multiple of data.fsdp=4; try 4"):
    compile_report.run(cfg, "v5p-8", ["train"])


@pytest.mark.parametrize(("changed", "said"), [
  ({}, r"batch.micro_rows=64 must be a multiple of data\*fsdp=256; try 256"),
  ({"batch.micro_rows": 300}, r"batch.micro_rows=300 must be a multiple of data\*fsdp=256; try 256"),
  ({"mesh.context": 2, "batch.micro_rows": 128, "batch.row_tokens": 22_529},
   "batch.row_tokens=22529 must be a multiple of mesh.context=2; try 22530"),
  ({"mesh.fsdp": 96}, "mesh.fsdp=96.*256 devices cannot be divided by 96"),
  ({"mesh.fsdp": 16, "mesh.tensor": 16}, "mesh.tensor=16 must divide (kv_heads=8|heads=40)"),
  ({"batch.micro_rows": 256, "rollout.tensor": 3}, "rollout.tensor=3 must divide fsdp.context.tensor=64"),
  ({"batch.micro_rows": 256, "rollout.tensor": 16}, "mesh.tensor=16 must divide .*as must rollout.tensor"),
  ({"batch.micro_rows": 256, "rollout.slots": 100}, r"rollout.slots=100 must be a multiple of data\*fsdp=32; try"),
  ({"batch.micro_rows": 256, "data.max_prompt_tokens": 4096}, "batch.row_tokens=22528 is shorter than .*24576"),
])  # fmt: skip
def test_what_does_not_fit_the_chips_is_one_line(monkeypatch, changed, said):
  """The published run on v6e-256, whose 64 rows are for 64 chips; libtpu's devices are described by their places."""
  monkeypatch.setattr(compile_report, "open_topology", chips.describe_topology)
  monkeypatch.setattr(compile_report.importlib.metadata, "version", lambda name: "0")
  cfg = fipo_qwen2_5_32b.get_config()
  cfg.update_from_flattened_dict(changed)
  with pytest.raises(ValueError, match=said) as error:
    compile_report.run(cfg, "v6e-256", ["decode", "train"])
  assert "\n" not in str(error.value)


def lowered_or_refused(seed: int, monkeypatch) -> str:
  """A random model, mesh and sizes, of which few fit together: what is said of them, "" when all programs lower."""
  rng = random.Random(seed)
  heads, kv_heads = rng.choice([(4, 2), (8, 4), (8, 8), (6, 3)])
  sizes = dict(num_layers=2, d_model=rng.choice([64, 56]), d_mlp=rng.choice([96, 100]), num_heads=heads,
               num_kv_heads=kv_heads, head_dim=16, tie_embeddings=rng.random() < 0.5)  # fmt: skip
  monkeypatch.setitem(PRESETS, "tiny", dataclasses.replace(PRESETS["tiny"], **sizes))
  cfg = tiny(config_lib.default())
  mesh = rng.choice([(1, -1, 1, 1), (2, 2, 2, 1), (1, 2, 2, 2), (1, 4, 1, 2), (1, 1, -1, 1), (8, 1, 1, 1)])
  cfg.mesh.update(dict(zip(("data", "fsdp", "context", "tensor"), mesh, strict=True)))
  cfg.batch.row_tokens, cfg.batch.micro_rows = rng.choice([96, 97, 100, 128]), rng.choice([8, 16, 8, 12])
  cfg.rollout.slots, cfg.rollout.tensor = rng.choice(["auto", 8, 16, 20]), rng.choice([0, 1, 2, 4])
  cfg.rollout.page_tokens, cfg.rollout.cache_dtype = rng.choice([5, 16, 100]), rng.choice(["", "int8"])
  cfg.rollout.samples_per_prompt, cfg.algorithm.name = rng.choice([2, 3, 16]), rng.choice(["fipo", "ppo", "gspo"])
  cfg.model.remat, cfg.eval.every = rng.choice(["full", "context", "none"]), 0
  try:
    programs.validate(cfg)
    slots = 0 if cfg.rollout.slots == "auto" else cfg.rollout.slots
    plan = programs.make_plan(cfg, chips.CHIPS["v5e"], jax.devices(), slots, bounded=True)
    config_lib.check_mesh(cfg, plan.mesh.shape, plan.engine.mesh.shape)
  except ValueError as refused:
    return str(refused)
  for make in programs.PROGRAMS.values():
    program = make(plan)
    with jax.set_mesh(plan.engine.mesh if program.rollout else plan.mesh):
      program.lower()
  return ""


@pytest.mark.slow
def test_what_is_not_refused_can_be_lowered(monkeypatch):
  """Nothing but a line of ours may stand between a mesh and its programs."""
  said = [lowered_or_refused(seed, monkeypatch) for seed in range(40)]
  assert all("\n" not in line and "=" in line for line in said if line)
  assert 8 <= said.count("") <= 32


def test_a_value_head_is_compiled_with_its_objective():
  """PPO's train step takes returns and old values, and its scores hold values."""
  cfg = tiny(config_lib.default())
  cfg.algorithm.name, cfg.mesh.fsdp, cfg.batch.micro_rows, cfg.batch.row_tokens = "ppo", 8, 8, 128
  plan = programs.make_plan(cfg, chips.CHIPS["v5e"], jax.devices(), 8, rollout=False)
  assert "value_head" in plan.state.params and "value_head" not in plan.engine.model.abstract()
  with jax.set_mesh(plan.mesh):
    assert set(programs.score_program(plan).lower().out_info) == {"logp", "values"}


def test_bound_is_of_memory_or_of_arithmetic():
  cfg = tiny(config_lib.default())
  plan = programs.make_plan(cfg, chips.CHIPS["v5e"], jax.devices()[:1], slots=4)
  facts = programs.bound(plan)
  c, context = plan.model.config, cfg.rollout.max_response_tokens // 2
  numbers = sum(math.prod(x.shape) for x in jax.tree.leaves(plan.model.abstract()))  # tied: every one is read
  seconds = (2 * numbers + 4 * context * plan.engine.token_bytes) / 0.82e12
  close(facts["tokens_per_second_bound"], 4 / seconds, dtype=np.float64)
  flops = 4 * (2 * numbers + 4 * c.num_layers * c.num_heads * c.head_dim * context)
  close(facts["compute_ms"], flops / 197e12 * 1e3, dtype=np.float64)
  assert 0 <= plan.state_bytes - 12 * numbers < 100  # and counters
  assert plan.params_bytes == 4 * numbers and plan.weight_bytes == 2 * numbers


def test_a_model_is_found_by_the_name_of_its_folder():
  cfg = config_lib.default()
  cfg.model.path = "some/where/Qwen2.5-32B"
  assert programs.model_config(cfg).num_layers == 64 and programs.model_config(cfg).dtype == "bfloat16"
  cfg.model.path = "Qwen2.5-33B"
  with pytest.raises(ValueError, match="'Qwen2.5-33B' is no published size.*qwen2_5_32b"):
    programs.model_config(cfg)
  cfg.model.path = "Qwen3-8B-Base"
  assert programs.model_config(cfg).family == "qwen3" and programs.model_config(cfg).d_model == 4096


def test_a_preset_goes_before_the_path_of_an_experiment():
  """Heads of qwen3_32b are 64 of 128 channels over a width of 5,120."""
  cfg = config_lib.default()
  cfg.model.path, cfg.model.preset, cfg.data.source = "Qwen2.5-32B", "qwen3_32b", "parquet"
  programs.validate(cfg)
  model = make_model(programs.model_config(cfg))
  assert model.config.d_mlp == 25600 and (cfg.model.path, cfg.model.alphabet) == ("Qwen2.5-32B", "")
  cfg.batch.micro_rows, cfg.batch.row_tokens = 4, 1024
  mesh = types.SimpleNamespace(size=4, shape=dict(tensor=2))
  linear, attention, kernels = programs.forward_flops(model, cfg.batch, mesh)
  numbers = 64 * (2 * 5120 * 64 * 128 + 2 * 5120 * 8 * 128 + 3 * 5120 * 25600 + 2 * 5120 + 2 * 128) + 5120
  assert linear == 2 * 1024 * (numbers + 151936 * 5120)
  assert attention == 64 * 2 * 1024 * 1024 * 64 * 128 and kernels["fwd"] == 2 * 1024 * 1024 * 64 * 128 / 2
  cfg.model.preset = "qwen3_33b"
  with pytest.raises(ValueError, match="model.preset='qwen3_33b' is no published size.*qwen3_32b"):
    programs.model_config(cfg)


def test_data_need_not_be_there():
  cfg = config_lib.default()
  cfg.model.path, cfg.data.source = "Qwen2.5-32B", "parquet"
  programs.validate(cfg)
  assert not cfg.data.path
  cfg.rollout.max_response_tokens = 0
  with pytest.raises(ValueError, match="max_response_tokens"):
    programs.validate(cfg)


def tiny(cfg):
  cfg.model.preset, cfg.model.alphabet = "tiny", "0"
  cfg.data.max_prompt_tokens, cfg.rollout.max_response_tokens = 32, 64
  cfg.rollout.page_tokens, cfg.reward.overlong_buffer_tokens = 16, 0
  return cfg


@pytest.mark.slow
def test_tiny_programs_compile_for_a_tpu(capsys, monkeypatch):
  pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install libtpu")
  monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
  monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  heads = dataclasses.replace(PRESETS["tiny"], num_heads=4, num_kv_heads=2, head_dim=40)  # that two devices can share
  monkeypatch.setitem(PRESETS, "tiny", heads)
  cfg = tiny(config_lib.default())
  cfg.mesh.tensor, cfg.eval.every = 2, 0
  cfg.batch.row_tokens, cfg.batch.micro_rows = 256, 4
  cfg.model.update(dict(remat="context", offload_inputs=True, tile_tokens=128))
  cfg.optimizer.offload = True
  found = json.loads(json.dumps(compile_report.run(cfg, "v5p-8", list(programs.PROGRAMS), slots=16)))["programs"]
  assert set(found) == set(programs.PROGRAMS)
  needed = {"fits", "peak_gib", "limit_gib", "compile_s", "collectives"}
  assert all(needed <= set(facts) and facts["fits"] for facts in found.values())
  figures = {"flops", "useful_flops", "wire_bytes", "wire_bytes_by_kind", "roofline_mfu", "asynchronous_share"}
  for name in ("train", "score"):
    facts = found[name]
    assert figures <= set(facts) and 0 < facts["roofline_mfu"] <= 1 and facts["flops"] > 0.9 * facts["useful_flops"]
  train = found["train"]
  assert 0.5 * train["host_bytes"] < train["host_bytes_beside_work"] <= train["host_bytes"]
  assert train["host_gib"] > 0 and train["kernel_flops"] > 0
  assert train["kinds_gib"]["optimizer"] < 0.05 * train["kinds_gib"]["parameters"]  # moments of norms and biases
  close(sum(train["kinds_gib"].values()), train["peak_gib"], terms=len(train["kinds_gib"]), dtype=np.float64)
  assert {"slots", "cache_gib", "tokens_per_second_bound"} <= set(found["decode"])
  sums = sum(c["times"] for c in found["decode"]["collectives"] if c["kind"] == "all-reduce")
  assert sums >= 2 * 3  # two products of each layer
  assert "decode: fits" in capsys.readouterr().out


def test_slices_are_joined_along_data_only():
  pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install libtpu")
  devices = chips.open_topology("v5p-16", 2)
  mesh = make_mesh({"data": 2, "fsdp": -1, "context": 1, "tensor": 1}, devices)
  assert [{d.slice_index for d in row.flat} for row in mesh.devices] == [{0}, {1}]
  with pytest.raises(ValueError, match="mesh.data=1 must be a multiple of the 2 slices; use mesh.data=2"):
    make_mesh({"data": 1, "fsdp": -1, "context": 1, "tensor": 1}, devices)


def test_what_would_help_begins_with_what_frees_most():
  cfg = config_lib.default()
  cfg.batch.micro_rows = 16
  plan = types.SimpleNamespace(
    cfg=cfg, mesh=types.SimpleNamespace(shape=dict(data=1, fsdp=8)), model=types.SimpleNamespace(
      config=types.SimpleNamespace(remat="context", offload_inputs=True)
    )
  )  # fmt: skip
  kinds = {"parameters": 4, "optimizer": 8, "gradients": 4, "layer inputs": 0, "attention results": 5}
  assert programs.remedies(plan, kinds) == [
    "optimizer.offload=True (8.0 GiB)", "twice the mesh.fsdp or mesh.tensor (8.0 GiB)",
    "model.remat='full' (5.0 GiB)", "batch.micro_rows=8 (2.5 GiB)",
    "twice the mesh.context, with as many rows (2.5 GiB)",
  ]  # fmt: skip
  plan.model.config.remat = "none"
  assert programs.remedies(plan, kinds)[0] == "model.remat='full'"


def test_a_peeled_loop_turns_from_where_its_counter_begins():
  text = """%body (p: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %d = f32[4,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %a = f32[4,4]{1,0} parameter(1)
}

%cond (p: (s32[], f32[4,4])) -> pred[] {
  %limit = s32[] constant(64)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (p: f32[4,4]) -> f32[4,4] {
  %one = s32[] constant(1)
  %begin = s32[] copy(%one)
  %init = (s32[], f32[4,4]{1,0}) tuple(%begin, %p)
  ROOT %loop = (s32[], f32[4,4]{1,0}) while(%init), condition=%cond, body=%body
}
"""
  assert hlo.read(text).flops == 63 * 2 * 4**3
  said = text.replace("{0}\n", '{0}, backend_config={"estimated_cycles":"50"}\n')
  assert hlo.read(said).cycles == 63 * 50 and hlo.read(said.replace('"50"', str(2**63 - 1))).cycles == 0
  assert hlo.read(text.replace("copy(%one)", "add(%one, %other)")).flops == 64 * 2 * 4**3


def test_a_collective_beside_the_turns_of_a_loop_is_one():
  """As libtpu writes it for v5e: a start, a part of it in each product of a loop, a done; and one that waits."""
  gather = "  %ag = bf16[1536,896] all-gather(%p), channel_id=1, replica_groups=[1,16]<=[16], dimensions={0}\n"
  part = lambda name, end="": f"%{name} (p: bf16[96,896]) -> bf16[1536,896] {{\n{gather}{end}}}\n\n"
  call = lambda which: f'  ROOT %c = bf16[1536,896] custom-call(%ag), custom_call_target="AsyncCollective{which}"\n'
  text = "HloModule m\n\n" + part("begin", call("Start")) + part("end", call("Done"))
  text += part("async_collective_fusion.7") + part("plain")
  text += """%body (t: (s32[])) -> (s32[]) {
  %f = bf16[1536,896]{1,0} fusion(%t), kind=kOutput, calls=%async_collective_fusion.7
}

ENTRY %main (p: bf16[96,896]) -> bf16[1536,896] {
  %a = bf16[1536,896]{1,0} fusion(%p), kind=kCustom, calls=%begin
  %w = (s32[]) while(%a), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %b = bf16[1536,896]{1,0} fusion(%w), kind=kCustom, calls=%end
  %d = bf16[1536,896]{1,0} fusion(%p), kind=kCustom, calls=%plain
}
"""
  found = sorted(hlo.read(text).collectives, key=lambda c: c.asynchronous)
  assert [(c.asynchronous, c.times, c.group) for c in found] == [(False, 1, 16), (True, 1, 16)]
  assert hlo.read(text).asynchronous_share() == 0.5


def test_what_moves_to_the_host_is_read_with_what_it_waits_for():
  """A slice in a loop of 4 turns with a product beside it, and a copy that nothing hides."""
  text = """
body (p: (s32[], f32[4,256], f32[256])) -> f32[] {
  %start = ((f32[4,256]{1,0:S(5)}, f32[1,256]{1,0}, s32[]), f32[4,256]{1,0:S(5)}, u32[]) dynamic-update-slice-start(%a, %b, %i)
  %work = f32[8]{0} fusion(%c), kind=kLoop, calls=%nothing
  %done = f32[4,256]{1,0:S(5)} dynamic-update-slice-done(%start)
}

ENTRY main (p: f32[4,256]) -> f32[] {
  %loop = f32[4,256]{1,0} while(%init), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"4"}}
  %start.1 = (f32[2,256]{1,0}, f32[2,256]{1,0:S(5)}, u32[]) copy-start(%loop)
  %done.1 = f32[2,256]{1,0} copy-done(%start.1)
  %later = f32[8]{0} fusion(%c), kind=kLoop, calls=%nothing
}
"""  # noqa: E501
  read = hlo.read(text)
  assert (read.host_beside, read.host_bytes) == (4 * 256 * 4, 4 * 256 * 4 + 2 * 256 * 4)
