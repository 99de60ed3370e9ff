"""Costs of programs by arithmetic that a hand can follow; shares from public figures; compile reports that fit."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from tolerances import close

from fipo_jax import config as config_lib
from fipo_jax.pods import chips, costs, programs, public
from fipo_jax.pods.costs import Efficiencies, Sampled, SamplingCosts, Trained
from fipo_jax.rollout.capacity import Shape

REPORTS = pathlib.Path(__file__).parent.parent / "experiments" / "results" / "compile"
REPORTED = costs.read_reports([REPORTS / "qwen2_5_32b_v5p_128.json"])
ALL = Efficiencies(1, 1, 1, 1, 1, look_s=0.01, decision_s=0.1, decisions=3)
CHIP = dataclasses.replace(chips.CHIPS["v5e"], tb_s=1e-6, tflop_s=1e-6, ici_gb_s=1e-3)  # a million of each a second


def config_32b():
  c = config_lib.default()
  c.model.path, c.model.remat = "Qwen2.5-32B", "context"
  c.model.offload_inputs = c.optimizer.offload = True
  c.mesh.data, c.mesh.fsdp = -1, 64
  c.rollout.slots, c.rollout.tensor = "auto", 8
  return c


def open_plan(cfg, topology, slices=1):
  kind, _ = chips.topology_of(topology)
  return programs.make_plan(cfg, chips.CHIPS[kind], chips.describe_topology(topology, slices))


def test_a_token_step_is_bound_by_memory_or_arithmetic_and_waits_for_its_sums():
  of = Sampled(CHIP, cut=2, numbers=1000, layers=3, width=10, heads=8, read=5000, token=7)
  bound = of.step_bound(slots=4, context=100)
  close(bound["memory"], (5000 + 700) / 1e6, dtype=np.float64)
  close(bound["compute"], (4 * 2000 + 4 * 3 * 8 * 100) / 2 / 1e6, dtype=np.float64)
  close(bound["links"], 2 * 3 * 4 * 10 * 4 * 0.5 / 1e6, dtype=np.float64)
  close(of.step(4, 100), max(bound["memory"], bound["compute"]) + bound["links"], dtype=np.float64)
  close(of.prefill_bound(2, 10), 2 * (2 * 1000 * 10 + 2 * 100 * 3 * 8) / 2 / 1e6, dtype=np.float64)


def test_steps_are_those_of_the_fullest_shard_in_their_middle_and_shards_decide_together():
  of = Sampled(CHIP, cut=1, numbers=0, layers=1, width=1, heads=0, read=0, token=1)
  context, growth, shape = np.array([10, 40]), np.array([5, 2]), Shape(8, 0, 0, 1)
  alone = SamplingCosts(of, ALL).token_steps(11, shape, context, growth)
  close(alone, 11 * 50 / 1e6, dtype=np.float64)  # 40 + 2 · 5
  both = SamplingCosts(of, dataclasses.replace(ALL, decode=0.5), shards=2)
  close(both.token_steps(11, shape, context, growth), 2 * alone + 11 * 3 * 0.1, dtype=np.float64)
  assert both.look(200) == 2.0


def test_a_micro_batch_takes_what_takes_longest_at_its_own_share():
  of = Trained({"compute": 4.0, "memory": 3.0, "links": 1.0, "host": 1.0}, "")
  by = Efficiencies(decode=0.5, prefill=1, train=0.8, links=0.25, host=0.125, look_s=0, decision_s=0, decisions=0)
  assert (of.cost(by), of.bound) == (8.0, "compute")
  assert Trained({"compute": 4.0, "links": 1.0, "network": 2.0}, "").cost(by) == 5.0 + 2.0 / 0.25  # nothing hides it


def test_sizes_without_a_compiler_are_those_of_the_report():
  """v5p-128: slots, weights and useful arithmetic as libtpu's report has them; products at most a tenth above its."""
  report = json.loads((REPORTS / "qwen2_5_32b_v5p_128.json").read_text())
  plan = open_plan(config_32b(), "v5p-128")
  assert plan.steps is None and plan.engine.slots == report["programs"]["decode"]["slots"]
  near = lambda got, want: abs(got / want - 1) < 1e-4  # reports have five digits
  assert near(plan.weight_bytes / programs.GIB, report["weights_gib"])
  of = costs.sampled(plan)
  facts = report["programs"]["decode"]
  bound = of.step_bound(plan.shape.slots, plan.shape.slots * facts["context_tokens"])
  assert near(bound["memory"] * 1e3, facts["memory_ms"]) and near(bound["compute"] * 1e3, facts["compute_ms"])
  for name in ("train", "score"):
    seconds, there = costs.trained_bound(plan, name), report["programs"][name]["seconds"]
    assert 1.0 <= seconds["compute"] / there["compute"] < 1.1 and 1.0 <= seconds["links"] / there["links"] < 1.05


def test_the_report_that_fits_is_found_and_no_other():
  reports = costs.read_reports([REPORTS / f"qwen2_5_32b_{name}.json" for name in ("v6e_256", "v5p_128")])
  cfg = config_32b()
  found = costs.trained(open_plan(cfg, "v5p-128"), "train", reports)
  assert "v5p-128" in found.source and found.seconds["compute"] == 14.205
  several = costs.read_reports([REPORTS / f"qwen2_5_32b_{name}.json" for name in ("v5p_1024", "v5p_128")])
  assert "for v5p-128 " in costs.trained(open_plan(cfg, "v5p-128"), "train", several).source
  cfg.batch.micro_rows = 128  # two copies of the same 64 chips
  assert costs.trained(open_plan(cfg, "v5p-256"), "train", reports).seconds == found.seconds
  for field, value in (("remat", "full"), ("tile_tokens", 2048)):
    other = config_32b()
    other.model[field] = value
    assert "sizes alone" in costs.trained(open_plan(other, "v5p-128"), "train", reports).source
  cfg.batch.row_tokens = 45_056
  assert "sizes alone" in costs.trained(open_plan(cfg, "v5p-256"), "train", reports).source


def test_sums_of_another_width_change_what_is_sent_and_nothing_else():
  """Foretold from the report with bfloat16 sums, beside what was compiled with float32 ones, which goes first."""
  cfg = config_32b()
  cfg.model.sum_dtype = "float32"
  plan = open_plan(cfg, "v5p-128")
  both = costs.read_reports([REPORTS / "qwen2_5_32b_v5p_128_sums.json"])
  compiled = costs.trained(plan, "train", both)
  told = costs.trained(plan, "train", both[:1])
  assert "2 bytes a number, which are 4 here" in told.source and "a number" not in compiled.source
  for kind, seconds in compiled.seconds.items():
    assert abs(told.seconds[kind] / seconds - 1) < 1e-3, kind
  score = [costs.trained(open_plan(c, "v5p-128"), "score", REPORTED) for c in (cfg, config_32b())]
  assert score[0].seconds == score[1].seconds and "v5p-128" in score[0].source
  sizes = [costs.trained_bound(open_plan(c, "v5p-128"), "train")["links"] for c in (cfg, config_32b())]
  close(sizes[0], sizes[1] * 8 / 6, dtype=np.float64)


def test_what_is_no_report_is_named(tmp_path):
  (tmp_path / "x.json").write_text('{"steps": 3}')
  with pytest.raises(ValueError, match="x.json: no compile report"):
    costs.read_reports([tmp_path / "x.json"])


def test_requests_fill_slots_as_they_end():
  """Three answers of 4 tokens on two slots: 4 steps of two, 4 of one; a token of context costs a millionth."""
  of = Sampled(CHIP, cut=1, numbers=1, layers=0, width=0, heads=0, read=0, token=1)
  prefill, decode = public.Workload(of, requests=3, slots=2, prompts=(10, 10), answers=(4, 4)).seconds()
  close(prefill, 3 * 2 * 10 / 1e6, dtype=np.float64)
  contexts = sum(2 * (10 + i) for i in (1, 2, 3, 4)) + sum(10 + i for i in (1, 2, 3, 4))
  close(decode, contexts / 1e6, dtype=np.float64)


def test_published_models_have_their_sizes():
  of = public.dense("v6e", 8, **public.LLAMA_70B)
  assert 69.0e9 < of.numbers < 69.6e9  # 70.6 · 10⁹ without the table of embeddings
  assert of.token == 80 * 2 * 8 * 128 * 2 / 8 and of.read == of.numbers * 2 / 8


def test_efficiencies_are_the_least_of_a_chip_and_say_whose():
  one = lambda what, chip, part, value, **more: public.Measured(what, chip, part, "tokens/s", value, 100, "s", **more)
  table = [
    one("a", "v6e", "decode", 60), one("b", "v6e", "decode", 50), one("c", "v7x", "decode", 40),
    one("old", "v6e", "decode", 10, superseded=True), one("p", "v7x", "prefill", 30), one("t", "v5p", "train", 70),
  ]  # fmt: skip
  by, said = public.efficiencies("v6e", table)
  assert (by.decode, by.prefill, by.train) == (0.5, 0.3, 0.7)
  assert said["decode"].startswith("b on v6e") and said["prefill"].startswith("p on v7x")
  assert public.efficiencies("v5p", table)[0].decode == 0.4  # none of its own: the least of all
  assert by.decisions == 1  # one gather of the decode loop, see decode_test.py


def test_public_figures_stay_below_their_bounds():
  shares = [m.reached for m in public.measured()]
  assert len(shares) >= 19 and all(0.2 < s < 1 for s in shares)
  for kind in chips.CHIPS:
    by, _ = public.efficiencies(kind)
    assert 0.4 < by.decode < 0.6 and 0.3 < by.train < 0.7


@pytest.mark.parametrize(("name", "slices", "devices"), [("v5p-16", 1, 8), ("v6e-8", 2, 16), ("v7x-16", 1, 16)])
def test_a_topology_is_described_without_libtpu(name, slices, devices):
  found = chips.describe_topology(name, slices)
  assert len(found) == devices == len({(d.slice_index, d.coords, d.core_on_chip) for d in found})
  assert {d.slice_index for d in found} == set(range(slices)) and [d.id for d in found] == list(range(devices))


def test_what_waits_on_the_host_is_not_counted_on_a_described_chip():
  cfg = config_lib.default()
  cfg.model.preset, cfg.model.alphabet = "tiny", "0"
  cfg.data.max_prompt_tokens, cfg.rollout.max_response_tokens, cfg.batch.micro_rows = 32, 64, 8
  plan = open_plan(cfg, "v6e-8")
  assert plan.state_bytes > 2.9 * plan.params_bytes
  cfg.optimizer.offload = True
  offloaded = open_plan(cfg, "v6e-8")
  assert offloaded.params_bytes == plan.params_bytes < offloaded.state_bytes < 1.2 * plan.params_bytes
