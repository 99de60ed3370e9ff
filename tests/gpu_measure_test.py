"""experiments/gpu/measure.py: what is measured is kept, what fails or is cut off ends nothing."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name
from tolerances import close

from experiments.gpu import machine, measure
from fipo_jax import config
from fipo_jax.benchmarks import sampler
from fipo_jax.models import PRESETS, attention_cudnn, make_model, transformer
from fipo_jax.pods import chips, phases, programs
from tests.check_test import write_run

SAYS = "print('compiling'); print('{\"tok_s\": %d}')"


def measured(tmp_path, *stages, seconds=60.0):
  runner = machine.Stages(tmp_path, machine.time.monotonic() + seconds, grace_s=5)
  left = measure.measure(runner, list(stages))
  kept = tmp_path / "measured.json"
  return left, json.loads(kept.read_text()) if kept.exists() else {}


def stage(name, code, limit_s=30.0, **more):
  return measure.Stage(name, limit_s, ("-c", code), **more)


def test_what_fails_or_lacks_something_ends_nothing_and_nothing_is_done_twice(tmp_path, capsys):
  stages = [
    stage("bad", "import sys; print('{\"tok_s\": 9}'); sys.exit('no room for 70 GiB')"),
    stage("lacks", "open('/never')", needs="model"),
    stage("slow", "import time; time.sleep(60)", limit_s=1.0),
    stage("good", "import os; print('{\"tok_s\": %s}' % os.environ['SPEED'])", env={"SPEED": "7"}),
  ]
  left, found = measured(tmp_path, *stages)
  assert left == [] and list(found) == ["bad", "slow", "good"] and found["good"] == {"exit_code": 0, "tok_s": 7}
  assert found["bad"] == {"exit_code": 1, "error": "no room for 70 GiB"}
  assert found["slow"]["error"] == "stopped at its limit of 1 s"
  said = capsys.readouterr().out
  assert "lacks: needs model in --store, which is not there" in said and "good: tok_s 7" in said
  assert "bad: failed, exit code 1: no room for 70 GiB" in said
  (tmp_path / "model").mkdir()
  again = [dataclasses.replace(s, command=("-c", SAYS % 8)) for s in stages]
  left, found = measured(tmp_path, *again)
  assert left == [] and found["lacks"] == {"exit_code": 0, "tok_s": 8}
  assert found["good"]["tok_s"] == 7 and found["bad"]["exit_code"] == 1
  runner = machine.Stages(tmp_path, machine.time.monotonic() + 60, grace_s=5)
  assert measure.measure(runner, again[-2:], again=True) == []
  found = json.loads((tmp_path / "measured.json").read_text())
  assert found["slow"]["tok_s"] == 8 and found["good"]["tok_s"] == 7  # what failed, and nothing else
  measure.bring(tmp_path, tmp_path / "out")
  text = (tmp_path / "out/measured.md").read_text()
  assert "| good | 7 |" in text and "| bad | failed, exit code 1: no room for 70 GiB |" in text
  assert "compiling" in (tmp_path / "out/log.txt").read_text() and (tmp_path / "out/measured.json").exists()


def test_what_the_minutes_cut_off_is_left_for_the_next_command(tmp_path):
  long = stage("long", "import time; time.sleep(60)", limit_s=3.0)
  later = stage("later", SAYS % 1, limit_s=500.0)  # begins where half of that is left
  left, found = measured(tmp_path, later, long, stage("short", SAYS % 2, limit_s=1.0), seconds=2.0)
  assert left == ["later", "long", "short"] and found == {}
  left, found = measured(tmp_path, later, seconds=300.0)
  assert left == [] and found["later"]["tok_s"] == 1


def test_every_stage_is_a_command_of_the_repository(tmp_path):
  for tiny in (False, True):
    stages = measure.stages(tmp_path, tiny, ["--config.steps=2"])
    assert len({s.name for s in stages}) == len(stages)
    for s in stages:
      assert (measure.ROOT / s.command[0]).is_file() and 0 < s.limit_s <= (4 if tiny else 1) * 540
    (run,) = (s for s in stages if s.name == "fipo_run")
    assert run.command[-1] == "--config.steps=2" and run.needs == "model"
  assert measure.result_of('x\n{"a": 1}\n{torn\nend') == {"a": 1} and measure.result_of("nothing") is None
  lines = ["x", "jaxlib.JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory", "-" * 20, "for simplicity", ""]
  assert measure.why(1, lines, 9).endswith("RESOURCE_EXHAUSTED: Out of memory") and measure.why(1, ["a", ""], 9) == "a"
  assert measure.why(1, [], 9) == "it said nothing"


def test_memory_bounds_a_sampler_by_weights_and_cache_of_every_token_step():
  # Two steps read 10 bytes of weights each, and of two slots 4 and 5 tokens.
  close(sampler.least_seconds(10, 1, 2, 3, 2, 1e-12), 2 * 10 + 2 * (4 + 5))
  h100, h200 = (chips.gpu_of(kind) for kind in ("NVIDIA H100 80GB HBM3", "NVIDIA H200"))
  assert (h100.tb_s, h200.tb_s, h100.tflop_s) == (3.35, 4.8, 989) and chips.gpu_of("cpu") is None


def test_dots_keeps_what_attention_made_too():
  """Its products are inside a kernel; without, a third of a long row's forward pass would be computed again."""
  (name,) = {e.primitive for e in jax.make_jaxpr(lambda x: checkpoint_name(x, "n"))(1.0).eqns}
  policy = make_model(dataclasses.replace(PRESETS["tiny"], remat="dots"))._policy()
  assert policy(attention_cudnn.KERNEL) and policy(name, name=transformer.CONTEXT)
  assert not policy(name, name=transformer.INPUT)
  (product,) = jax.make_jaxpr(jnp.dot)(jnp.ones((2, 2)), jnp.ones((2, 2))).eqns
  assert policy(product.primitive, *(v.aval for v in product.invars), **product.params)


def test_what_dots_keeps_is_in_the_memory_that_a_plan_foretells():
  """Of Qwen2.5-1.5B, 24,576 numbers a token and layer, as the compiler keeps them: the input and context with it."""
  c = config.default()
  c.model.path, c.model.remat, c.batch.row_tokens, c.batch.micro_rows = "Qwen2.5-1.5B", "dots", 22_528, 4
  plan = programs.make_plan(c, chips.CHIPS["v5p"], chips.describe_topology("v5p-8"), 4, rollout=False)
  kinds = programs.kinds_of_memory(plan)
  kept = sum(kinds[kind] for kind in ("layer inputs", "attention results", "kept products"))
  close(kept * 2**30, 28 * 22_528 * 24_576 * 2.0, dtype="float64")


def test_a_step_is_foretold_by_phase(tmp_path, monkeypatch):
  """Of a GPU that is known; one with half of its arithmetic scores in twice the time."""
  folder = write_run(tmp_path / "run", 16, steps=2)
  fast = phases.phases(folder)
  last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
  assert fast["step"] == 2 and fast["foretold_for"].startswith("NVIDIA H100") and fast["device"] == "cpu"
  assert (fast["rollout_s"], fast["old_logp_s"], fast["compile_s"]) == (200.0, last["seconds/old_logp"], 100.0)
  half = dataclasses.replace(chips.GPUS[phases.ELSEWHERE], tflop_s=989 / 2)
  monkeypatch.setitem(chips.GPUS, phases.ELSEWHERE, half)
  slow = phases.phases(folder)
  close(slow["old_logp_foretold_s"], 2 * fast["old_logp_foretold_s"], dtype="float64")
  assert 0 < fast["old_logp_foretold_s"] < fast["update_foretold_s"] < slow["update_foretold_s"]
  assert fast["rollout_foretold_s"] > 0 and fast["tokens_foretold"] == slow["tokens_foretold"] > 0


@pytest.mark.slow
def test_a_sampler_without_a_checkpoint_has_the_weights_of_its_size():
  found = sampler.real_sampler("tiny", 8)  # a slot for each of the eight devices that tests have
  assert (found["tokens"], found["slots"], found["weights"], found["of_bound"]) == (8 * 128, 8, "random", None)


@pytest.mark.parametrize("argv, says", [
  (["--steps=3"], "--steps=3: unknown; fields of the stage fipo_run are given as --config.FIELD=VALUE"),
  (["--only=stepp"], "--only=stepp: unknown; choose from step_dots, step_context"),
])  # fmt: skip
def test_mistakes_are_one_line(argv, says, capsys, tmp_path):
  with pytest.raises(SystemExit) as end:
    measure.main([f"--store={tmp_path}", f"--out={tmp_path}", *argv])
  assert end.value.code == 2 and says in capsys.readouterr().err.splitlines()[-1]
