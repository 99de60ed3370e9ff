"""What a run would cost: what is asked, what is answered, and the mistakes."""

import dataclasses
import json

import numpy as np
import pytest
from absl import flags
from tolerances import close

from fipo_jax import config as config_lib
from fipo_jax.pods import answers, forecast, iteration, measured, plan, public
from fipo_jax.pods.costs import Efficiencies
from fipo_jax.pods.simulated import Lengths
from fipo_jax.rollout import Sampling
from launch import plan as command

ALL = Efficiencies(1, 1, 1, 1, 1, look_s=1e-4, decision_s=1e-5, decisions=4)
SAID = dict.fromkeys(("decode", "prefill", "train", "links", "host"), "a test")
STEP = {f"response_length_{k}": v for k, v in dict(min=10, p25=20, median=30, p75=60, max=100).items()}


def tiny():
  c = config_lib.default()
  c.model.preset, c.model.alphabet = "qwen2_5_0_5b", "0"
  c.data.max_prompt_tokens, c.rollout.max_response_tokens, c.rollout.slots = 64, 256, 64
  c.rollout.samples_per_prompt, c.batch.prompts, c.batch.minibatch_prompts = 4, 32, 8
  c.batch.row_tokens, c.batch.micro_rows, c.reward.overlong_buffer_tokens = 512, 8, 0
  c.eval.prompts, c.eval.samples_per_prompt, c.steps = 4, 2, 50
  return c


def workload(**more):
  return iteration.Workload(Lengths(tuple(range(20, 300, 10))), prompt_tokens=30, **more)


def ask(cfg, topology="v5e-16", slices=1, **more):
  return forecast.forecast(cfg, topology, slices, workload(), ALL, SAID, [], **more)


@pytest.fixture(scope="module")
def whole():
  return ask(tiny(), "v5e-16")


def test_a_forecast_adds_up(whole, tmp_path):
  f = whole
  close(f["iteration_s"], sum(f["seconds"].values()), dtype=np.float64)
  assert set(f["seconds"]) == set(iteration.PHASES) and f["chips"] == 16 and f["micro_batches"] == 4
  assert 0 < f["idle_share"] < 1 and f["tokens"] > f["tokens_trained"] > 32 * 4 * 30
  close(f["chip_hours_recipe"], f["chip_hours_100"] / 2, dtype=np.float64)
  close(f["chip_hours_100"], f["iteration_s"] * 100 * 16 / 3600, dtype=np.float64)
  answers.draw([f, f], str(tmp_path / "x.png"))
  assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
  assert f["fits"] and "sizes alone" in f["sources"]["train"]
  text = forecast.describe(f, 2.0)
  assert f["decide"] == 4 and f["cache_dtype"] == "bfloat16"  # a 64th of the limit
  assert "evaluation: 4 problems x 2" in text
  assert "16 chips" in text and "a test" in text and f"{2 * f['chip_hours_100']:,.0f} USD" in text
  json.dumps(f)


def test_decisions_are_as_rare_as_the_engine_makes_them():
  seconds = {}
  for steps in (1, 16):
    cfg = tiny()
    cfg.rollout.continuous_decode_steps = steps
    slow = dataclasses.replace(ALL, decision_s=1.0, decisions=1)
    seconds[steps] = forecast.forecast(cfg, "v5e-16", 1, workload(), slow, SAID, [], warm=0)["seconds"]["decode"]
  assert seconds[16] < seconds[1] / 8


def result(chips, rollout, learning, name=None):
  seconds = dict.fromkeys(iteration.PHASES, 0.0) | {"decode": rollout, "update": learning}
  return {
    "topology": f"v5p-{2 * chips}", "slices": 1, "chips": chips, "model": "m", "lengths": "l", "unfinished": "continue",
    "prompts": 8, "cache_dtype": "bfloat16", "seconds": seconds,
  } | ({"name": name} if name else {})  # fmt: skip


def test_a_split_takes_as_long_as_the_longer_of_its_parts():
  """Learning scales and sampling does not: two chips that sample leave six to learn meanwhile."""
  text = answers.splits([result(n, 50, 80 / n) for n in (2, 4, 8)])
  assert "m on v5p, l, continue:" in text
  assert "| 8 | 60 s | 50 s | 50 s at 2 + 6 | +17% | +17% |" in text
  text = answers.splits([result(n, 80 / n, 80 / n) for n in (2, 4, 8)])
  assert "| 8 | 20 s | 20 s | 20 s at 4 + 4 | +0% | +0% |" in text  # all scales: nothing to gain
  assert not answers.splits([result(2, 1, 1), result(4, 1, 1)])


def test_forecasts_are_shown_together(whole, tmp_path):
  path = tmp_path / "a_row.json"
  path.write_text(json.dumps([whole]))
  (found,) = plan.read_results([path])
  line = answers.table([found]).splitlines()[2]
  assert line.startswith("| a_row | 16 | 64 | ") and f"**{whole['iteration_s']:,.0f}**" in line
  assert "DOES NOT FIT" in answers.table([found | {"fits": False}])


def test_every_response_has_the_length_that_was_asked_for():
  cfg = tiny()
  cfg.dynamic_sampling.enabled = False
  f = ask(cfg, warm=0)
  lengths = np.minimum(np.arange(20, 300, 10), 256)
  assert f["tokens"] == f["tokens_trained"] and abs(f["tokens"] / 128 / lengths.mean() - 1) < 0.15


def test_groups_that_teach_nothing_are_sampled_and_not_trained_on():
  half = forecast.forecast(tiny(), "v5e-16", 1, workload(keep_rate=0.4), ALL, SAID, [], warm=2)
  assert 1.8 < half["tokens"] / half["tokens_trained"] < 3.5


def test_unfinished_responses_go_on_and_the_tail_is_not_waited_for(whole):
  """More groups than slots, so that there is always something to go on with."""
  cfg = tiny()
  cfg.batch.prompts = 128
  waits = ask(cfg)
  cfg.rollout.unfinished = "continue"
  goes_on = ask(cfg)
  assert (waits["warm"], goes_on["warm"]) == (1, 2) and goes_on["idle_share"] < 0.85 * waits["idle_share"]
  per_token = lambda x: x["seconds"]["decode"] / x["tokens"]
  assert per_token(goes_on) < per_token(waits)
  close(waits["seconds"]["score"] / 16, whole["seconds"]["score"] / 4, dtype=np.float64)  # micro-batches


def test_rows_are_made_to_fit_and_that_is_said():
  cfg, notes = forecast.fitted(tiny(), "v5e-16", 1)
  assert cfg.batch.micro_rows == 16 and notes == [
    "batch.micro_rows=8 is no multiple of data*fsdp=16 here: 16 is used"
  ]  # fmt: skip
  cfg, notes = forecast.fitted(tiny(), "v6e-8", 1)
  assert cfg.batch.micro_rows == 8 and not notes


def test_gradients_cross_the_network_between_slices():
  cfg = tiny()
  cfg.mesh.data, cfg.mesh.fsdp = -1, 16
  one, two = ask(cfg), ask(cfg, slices=2)
  assert two["chips"] == 32
  params = 494e6 * 4 / 16  # of a chip, float32
  network = params / 2 * 2 * (1 / 2) / (forecast.NETWORK_GB_S * 1e9)
  extra = two["seconds"]["update"] / two["micro_batches"] - one["seconds"]["update"] / one["micro_batches"]
  assert abs(extra / network - 1) < 0.05


def test_long_responses_are_in_their_slots_for_longer():
  """Lengths 10 and 30: a slot holds the long one three times as long, on average 5 or 15 of its tokens."""
  w = iteration.Workload(Lengths((10.0, 30.0)), prompt_tokens=100)
  cfg = tiny()
  assert forecast.tokens_in_slots(w, cfg, 2) == 2 * (100 + (1 * 5 + 3 * 15) / 4)
  cfg.rollout.max_response_tokens = 10
  assert forecast.tokens_in_slots(w, cfg, 1) == 105


def test_lengths_of_a_law_and_of_a_log(tmp_path):
  lengths, said, facts = forecast.read_lengths("lognormal:1000,5000")
  q = np.array(lengths.quantiles)
  assert abs(np.median(q) / 1000 - 1) < 1e-3 and abs(np.quantile(q, 0.99) / 5000 - 1) < 1e-2 and not facts
  log = tmp_path / "metrics.jsonl"
  lines = [{"step": 0}, {"step": 1, **STEP, "response_length_max": 9000}, {"step": 2, **STEP, "keep_rate": 0.25}]
  log.write_text("".join(json.dumps(x) + "\n" for x in lines))
  lengths, said, facts = forecast.read_lengths(str(log))
  assert "step 2" in said and facts == {"keep_rate": 0.25}
  np.testing.assert_allclose(np.quantile(lengths.quantiles, (0, 0.25, 0.5, 0.75, 1)), [10, 20, 30, 60, 100], rtol=2e-3)


def test_the_longest_quarter_of_lengths_has_the_mean_that_was_measured():
  row = STEP | {"response_length": 40.0}  # straight lines would come to 41.25
  q = np.array(forecast.lengths_of(row).quantiles)
  assert abs(q.mean() / 40 - 1) < 1e-3 and abs(np.array(forecast.lengths_of(STEP).quantiles).mean() / 41.25 - 1) < 1e-3
  np.testing.assert_allclose(np.quantile(q, (0, 0.25, 0.5, 0.75, 1)), [10, 20, 30, 60, 100], rtol=3e-3)
  q = np.array(forecast.lengths_of(STEP | {"response_length": 20.0}).quantiles)  # less than can be: still a law
  assert np.all(np.diff(q) >= 0) and q.max() <= 100


@pytest.mark.parametrize(("text", "why"), [
  ("lognormal:5", "expected lognormal:MEDIAN,P99"), ("lognormal:10,5", "above 0 and below the 99th"),
  ("gone.jsonl", "no such file"),
])  # fmt: skip
def test_lengths_that_are_none(text, why):
  with pytest.raises(ValueError, match=f"lengths={text}.*{why}"):
    forecast.read_lengths(text)


def test_a_share_can_be_given():
  by, said = forecast.read_efficiencies(["decode=0.25"], ALL, SAID)
  assert by == dataclasses.replace(ALL, decode=0.25) and said["decode"] == "given" and said["train"] == "a test"
  with pytest.raises(ValueError, match="efficiency='speed'.*'decode'"):
    forecast.read_efficiencies(["speed=1"], ALL, SAID)
  with pytest.raises(ValueError, match="efficiency=decode=0: expected decode= and a positive number"):
    forecast.read_efficiencies(["decode=0"], ALL, SAID)


def test_a_run_on_that_topology_gives_its_own_shares(whole, tmp_path):
  """A run that took twice as long for sampling as its bounds, four times for learning: a half and a quarter."""
  cfg = tiny()
  (tmp_path / "config.json").write_text(cfg.to_json())
  quantiles = workload().lengths.quantiles
  row = dict(zip(forecast.LENGTHS, np.quantile(quantiles, (0, 0.25, 0.5, 0.75, 1)), strict=True))
  rollout = sum(whole["seconds"][k] for k in ("prefill", "decode", "look", "resize"))
  row |= {
    "step": 3, "prompt_length": 30, "keep_rate": 0.5, "tokens_generated": whole["tokens"],
    "response_length": np.minimum(quantiles, 256).mean(),
    "seconds/rollout": 2 * rollout, "seconds/old_logp": 4 * whole["seconds"]["score"],
    "seconds/update": 4 * whole["seconds"]["update"],
  }  # fmt: skip
  (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
  by, said = measured.efficiencies(str(tmp_path), "v5e-16", 1, ALL, SAID, [])
  assert abs(by.decode / 0.5 - 1) < 0.1 and abs(by.train / 0.25 - 1) < 0.15 and "step 3" in said["decode"]
  with pytest.raises(ValueError, match="measured=.*no run there"):
    measured.efficiencies(str(tmp_path / "gone"), "v5e-16", 1, ALL, SAID, [])


def test_a_search_tries_trainer_and_sampler_and_keeps_what_fits(monkeypatch):
  monkeypatch.setattr(forecast, "TRAINER", {"model.remat": ("full", "context"), "batch.micro_rows": (1, 4096)})
  monkeypatch.setattr(forecast, "SAMPLER", {
    "rollout.tensor": (1, 3), "rollout.cache_dtype": ("", "int8"), "rollout.slots": (4, 64, 10**6)
  })  # fmt: skip
  cfg = tiny()
  cfg.batch.row_tokens = 16_384  # long enough that arithmetic is the bound, of which "context" does less
  options, (trainers, samplers) = forecast.search(cfg, "v5e-16", 1, workload(), ALL, [])
  assert options[0] == {"model.remat": "context", "batch.micro_rows": 16}
  assert (trainers, samplers) == (2, 4)  # 4,096 rows and a million slots do not fit, three devices do not divide
  best = options[0] | {"rollout.tensor": 1, "rollout.slots": 64 * 16}
  assert sorted(options[1:], key=lambda f: f["rollout.cache_dtype"]) == [
    best | {"rollout.cache_dtype": ""}, best | {"rollout.cache_dtype": "int8"}
  ]  # fmt: skip
  monkeypatch.setattr(forecast, "TRAINER", {"batch.micro_rows": (4096,)})
  with pytest.raises(ValueError, match="no setting of the trainer fits on v5e-16"):
    forecast.search(tiny(), "v5e-16", 1, workload(), ALL, [])


def test_what_is_evaluated_is_counted_where_it_is_here(tmp_path, monkeypatch):
  lines = "".join(f'{{"prompt": "p{i % 6}", "answer": "1"}}\n' for i in range(9))  # three are there twice
  (tmp_path / "whole.jsonl").write_text(lines)
  cfg = tiny()
  cfg.eval.sets = {
    "few": {"path": "gone.jsonl", "prompts": 3}, "gone": {"path": "gone.jsonl", "max_response_tokens": 100},
    "bucket": {"path": "gs://bucket/x.jsonl"},
    "whole": {"path": str(tmp_path / "whole.jsonl"), "samples_per_prompt": 5},
  }  # fmt: skip
  found = dict(zip(("bucket", "few", "gone", "whole"), iteration.evaluated(cfg), strict=True))
  assert {name: problems for name, (problems, _) in found.items()} == {"bucket": 4, "few": 3, "gone": 4, "whole": 6}
  assert found["whole"][1] == "whole: 6 problems x 5" and found["few"][1] == "few: 3 problems x 2"
  assert found["gone"][1].endswith("(of eval.prompts: gone.jsonl is not here to be counted)")
  run, asked = iteration.types.SimpleNamespace(), []
  run.cfg, run.sampling = cfg, lambda evaluation: Sampling(max_tokens=256, stop_ids=(0,))
  run.engine = iteration.types.SimpleNamespace(
    generate=lambda prompts, n, *, key, sampling: asked.append((len(prompts), n, sampling.max_tokens))
  )
  iteration.evaluation(run, workload())
  assert asked == [(4, 2, 256), (3, 2, 256), (4, 2, 100), (6, 5, 256)]


@pytest.mark.parametrize(("source", "fits"), [("the compiler", True), ("sizes", False)])
def test_a_search_leaves_room_where_sizes_alone_speak(monkeypatch, source, fits):
  monkeypatch.setattr(forecast, "TRAINER", {"batch.micro_rows": (1,)})
  monkeypatch.setattr(forecast, "SAMPLER", {"rollout.slots": (4,)})
  nearly = lambda plan, *_: {"train": plan.chip.hbm_gib - 0.5, "train_from": source}
  monkeypatch.setattr(forecast, "memory_of", nearly)
  if fits:
    assert forecast.search(tiny(), "v5e-16", 1, workload(), ALL, [])[1] == (1, 1)
  else:
    with pytest.raises(ValueError, match="no setting of the trainer fits"):
      forecast.search(tiny(), "v5e-16", 1, workload(), ALL, [])


def test_the_table_shows_each_figure_with_its_source():
  text = forecast.table(public.measured())
  assert text.count("\n") == len(public.measured()) + 1
  assert "tpu-inference pull 1961" in text and "(superseded)" in text and "65.4% MFU" in text


def test_mistakes_are_one_line(capsys, monkeypatch):
  given = dict(table=False, config=None, out=None, plot=None, results=[], check=[]) | dataclasses.asdict(plan.Asked())
  monkeypatch.setattr(flags, "FLAGS", type("Given", (), given | {"check": ["a"], "plot": "x.png"}))
  with pytest.raises(SystemExit):
    command.main(["plan"])
  assert "--check ends after its table" in capsys.readouterr().err
  monkeypatch.setattr(flags, "FLAGS", type("Given", (), given))
  monkeypatch.setattr(command, "flags", flags)
  with pytest.raises(SystemExit) as end:
    command.main(["plan"])
  assert end.value.code == 2 and capsys.readouterr().err == "error: --config=FILE and --topology=NAME are needed.\n"
