"""The whole path on a model of a few thousand parameters: train, resume, survive, and refuse."""

import dataclasses
import gc
import json
import math
import os
import pathlib
import shutil
import time
import types

import jax
import numpy as np
import pytest

from fipo_jax import assemble, command_line, config, loop, metrics, processes, sharding
from fipo_jax.alarms import Limits, Watch
from fipo_jax.data.tokenizer import Tokenizer, characters
from fipo_jax.models import PRESETS, hf, make_model
from fipo_jax.train.checkpoint import Checkpointer, folder_of, steps_in
from fipo_jax.train.state import TrainState
from fipo_jax.types import Mean
from tests.tolerances import close, limit

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests/golden/qwen2/tied_mqa"
ALPHABET = "0123456789 +-=\n:AnswerChckoy"
# Right by a coin that only the text decides: groups are mixed from the first step, without a trained model.
VERIFIER = '''
def verify(response, answer, extras):
  return float(sum(map(ord, response)) % 2)
'''

# The same, but all wrong for two prompts in three.
SOME = """
def verify(response, answer, extras):
  return float(sum(map(ord, response)) % 2) if extras['entry']['metadata']['source_index'] % 3 == 0 else 0.0
"""


@pytest.fixture(scope="session")
def model(tmp_path_factory):
  """A directory with a model of two layers and 48 units, and its tokenizer."""
  folder = tmp_path_factory.mktemp("model") / "export"
  shutil.copytree(GOLDEN, folder)
  characters(ALPHABET).save(folder)
  return folder


def experiment(path, **fields):
  os.chdir(ROOT)
  c = command_line.load_experiment(path)
  c.update(fields)
  return c


def settings(model, workdir, *, verifier=VERIFIER, **more):
  """Fields of a small quickstart, which saves at its end alone.

  Runs of the same shapes share their compiled programs: conftest has a cache.
  """
  file = pathlib.Path(workdir).parent / "verifier.py"
  file.parent.mkdir(exist_ok=True)
  file.write_text(verifier)
  return {
    "workdir": str(workdir), "model.path": str(model), "model.base_experiment": "", "reward.file": str(file),
    "steps": 3, "data.size": 64, "rollout.max_response_tokens": 12, "rollout.slots": 8, "log.samples": 1,
    "rollout.samples_per_prompt": 4, "batch.prompts": 4, "batch.minibatch_prompts": 2, "batch.row_tokens": 36,
    "batch.micro_rows": 8, "eval.prompts": 8, "eval.every": 0, "checkpoint.every": 100, "log.report": False,
    "reward.workers": 1, "compile_cache": "",
  } | more  # fmt: skip


def small(model, workdir, **more):
  c = experiment("experiments/quickstart.py")
  c.update_from_flattened_dict(settings(model, workdir, **more))
  config.validate(c)
  return c


def rounding(tokens=1):
  """How far apart two programs may find a sum of that many log-probabilities, which are of size 10 at most."""
  c = hf.read_config(GOLDEN)
  products = c.num_layers * (2 * c.d_model + c.num_heads * c.head_dim + c.d_mlp) + c.d_model
  return limit(terms=products * tokens, scale=10)


def lines(workdir, name="metrics.jsonl"):
  return [json.loads(line) for line in (pathlib.Path(workdir) / name).read_text().splitlines()]


def without_time(records):
  measured = (
    "time", "changed", "seconds", "tokens_per_second", "update_tflops", "host_memory", "device_memory", "rollout/",
    "grace_s", "goodput",
  )  # fmt: skip
  return [{k: v for k, v in r.items() if not k.startswith(measured)} for r in records]


HANG_S = 600  # of a verifier that hangs
WHOLE = {"eval.every": 2, "log.samples": 4}


@pytest.fixture(scope="session")
def whole(model, tmp_path_factory):
  """The workdir of one uninterrupted run."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  result = loop.train(small(model, workdir, **WHOLE))
  return workdir, result


def test_a_run_writes_what_it_promises(whole):
  workdir, result = whole
  on_disk = json.loads((workdir / "result.json").read_text())
  assert on_disk == json.loads(json.dumps(result))
  for key in ("accuracy_before", "accuracy_after", "length_before", "length_after", "seconds"):
    assert isinstance(on_disk[key], float)
  assert [r["step"] for r in lines(workdir)] == [0, 1, 2, 3]
  files = {p.name for p in (workdir / "export").iterdir()}
  assert files >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}


def test_future_kl_acts_from_the_second_mini_batch_on(whole):
  for record in lines(whole[0])[1:]:
    first, second = record["minibatch/future_kl_abs_mean"]
    assert first <= rounding(tokens=12) < second
    assert np.isfinite(record["loss"]) and record["sampler_gap_max"] <= rounding()


def trained_on(workdir):
  return [record for record in lines(workdir, "samples.jsonl") if "set" not in record]


def test_samples_are_told_token_by_token(whole):
  for record in trained_on(whole[0]):
    n = len(record["tokens"])
    assert n == len(record["logp"]) == len(record["future_kl"]) == len(record["weight"]) == len(record["sampler_logp"])
    assert "".join(t for t in record["tokens"] if not t.startswith("<")) == record["response"]
    assert record["reward"] == record["accuracy"]


def test_samples_say_what_their_future_kl_is_made_of(whole):
  decay, moved = 0.5 ** (1 / experiment("experiments/quickstart.py").algorithm.half_life_tokens), 0.0
  for record in trained_on(whole[0]):
    logp, old_logp, sampler_logp = (np.asarray(record[name]) for name in ("logp", "old_logp", "sampler_logp"))
    if record["step"] == 1:  # later ones may have been sampled by an earlier policy
      np.testing.assert_allclose(old_logp, sampler_logp, atol=rounding(tokens=12))
    assert record["mask"] == [1] * len(logp)
    behind, expected = 0.0, []
    for shift in (logp - old_logp)[::-1]:
      behind = shift + decay * behind
      expected.append(behind)
    np.testing.assert_allclose(record["future_kl"], expected[::-1], atol=rounding(tokens=12))
    moved = max(moved, np.abs(logp - old_logp).max())
  assert moved > rounding(tokens=12)


def test_evaluations_leave_responses_to_the_same_prompts(whole):
  found = [record for record in lines(whole[0], "samples.jsonl") if "set" in record]
  assert [record["step"] for record in found] == [2] * 4 + [3] * 4 and {record["set"] for record in found} == {"eval"}
  first, last = ([record["prompt"] for record in found if record["step"] == step] for step in (2, 3))
  assert first == last and len(set(first)) == 4
  for record in found:
    assert len(record["tokens"]) == len(record["sampler_logp"]) and "logp" not in record
    assert record["reward"] in (-1.0, 0.0, 1.0) and not {r["prompt"] for r in trained_on(whole[0])} & set(first)


def test_a_supervised_run_from_a_preset_exports_a_model_with_its_tokenizer(tmp_path):
  c = experiment("experiments/quickstart_base.py", workdir=str(tmp_path / "run"), steps=2, compile_cache="")
  c.data.size, c.eval.every, c.batch.prompts, c.batch.minibatch_prompts, c.batch.micro_rows = 64, 0, 8, 8, 8
  config.validate(c)
  result = loop.train(c)
  first, second = lines(tmp_path / "run")
  assert result["updates"] == 2 and 0 < second["loss"] < first["loss"]
  export = tmp_path / "run/export"
  assert Tokenizer.load(export).encode(ALPHABET) == characters(ALPHABET).encode(ALPHABET)
  preset = dataclasses.replace(PRESETS["tiny"], vocab_size=characters(ALPHABET).vocab_size)
  assert hf.read_config(export) == preset
  shapes = jax.tree.map(np.shape, hf.load(export, make_model(preset), sharding.make_mesh(c.mesh)))
  assert shapes == jax.tree.map(np.shape, make_model(preset).abstract())


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["dapo", "grpo", "dr_grpo", "gspo", "cispo", "rloo", "reinforce_pp"])
def test_baselines_run_on_the_same_job(model, tmp_path, algorithm):
  result = loop.train(small(model, tmp_path / "run", **{"algorithm.name": algorithm, "steps": 1}))
  assert result["updates"] == 2 and "future_kl_abs_mean" not in lines(tmp_path / "run")[-1]


def flags_of(values):
  return [f"--config.{k}={v}" for k, v in values.items()]


def test_a_run_of_another_config_is_refused_and_left_alone(model, whole):
  workdir = whole[0]
  before = (workdir / "metrics.jsonl").read_bytes()
  with pytest.raises(ValueError, match=r"holds a run of another config: algorithm.clip_high: 0.28 -> 0.4; use another"):
    loop.train(small(model, workdir, **WHOLE | {"algorithm.clip_high": 0.4}))
  assert (workdir / "metrics.jsonl").read_bytes() == before


def resumed(workdir, copy, step):
  """The same run once more in another folder, from its checkpoint of that step on."""
  shutil.copytree(workdir, copy)
  for later in steps_in(folder_of(copy)):
    if later > step:
      shutil.rmtree(folder_of(copy) / str(later))
  return copy


def test_more_steps_go_on_from_the_last_one(model, whole):
  workdir = resumed(whole[0], whole[0].parent / "longer", 3)  # a copy: others look at the original
  before = lines(workdir)
  result = loop.train(small(model, workdir, **WHOLE | {"steps": 4}))
  assert result["steps"] == 4
  assert lines(workdir)[: len(before)] == before


def test_too_few_informative_groups_train_on_what_there_is_or_stop(model, tmp_path):
  """Only one prompt in three has mixed answers."""
  more = {"verifier": SOME, "dynamic_sampling.max_draws": 1, "steps": 1, "batch.prompts": 16}
  loop.train(small(model, tmp_path / "a", **more))
  record = lines(tmp_path / "a")[-1]
  assert 0 < record["groups_trained"] < 16
  result = loop.train(small(model, tmp_path / "b", **more, **{"dynamic_sampling.on_exhausted": "stop"}))
  assert result["steps"] == 0 and "of 16 groups" in result["ended"]


def test_a_verifier_that_raises_or_hangs_is_counted_or_stops(model, tmp_path):
  verifier = (
    "import time\n"
    "def verify(response, answer, extras):\n"
    "  if response == f'Answer: {answer}': return 1.0\n"  # the call before training
    "  coin = sum(map(ord, response))\n"  # not how often it was called: on a slow machine a process is soon replaced
    "  if coin % 5 == 0: raise RuntimeError('no idea')\n"
    f"  if coin % 5 == 1: time.sleep({HANG_S})\n"
    "  return float(coin % 2)\n"
  )
  more = {"verifier": verifier, "reward.timeout_s": 1.0, "steps": 1, "rollout.samples_per_prompt": 8}
  started = time.monotonic()
  loop.train(small(model, tmp_path / "a", **more))
  assert lines(tmp_path / "a")[-1]["reward_errors"] > 0 and lines(tmp_path / "a")[-1]["reward_timeouts"] > 0
  assert time.monotonic() - started < HANG_S
  with pytest.raises(ValueError, match="no idea"):
    loop.train(small(model, tmp_path / "b", **more, **{"reward.on_error": "stop"}))


def test_ppo_with_every_term_of_the_loss_starts_from_the_export_and_resumes(whole, tmp_path):
  workdir, result = whole
  more = {
    "algorithm.name": "ppo", "dynamic_sampling.enabled": False, "steps": 2, "checkpoint.every": 1, "eval.every": 2,
    "optimizer.value_learning_rate": 1e-2, "algorithm.value_clip": 0.0, "algorithm.reference_kl_coef": 0.1,
    "algorithm.entropy_coef": 0.01, "algorithm.sampler_ratio_cap": 2.0, "model.max_position": 5000,
  }  # fmt: skip
  straight = loop.train(small(workdir / "export", tmp_path / "run", **more))
  # It evaluates first, as the run that exported the model did last: sampler and export agree.
  assert straight["before"] == result["after"] and straight["updates"] == 4
  first, second = lines(tmp_path / "run")[1:]
  assert first["value_loss"] > 0 and "future_kl_abs_mean" not in first
  assert abs(second["value_mean"]) > abs(first["value_mean"]) > 0  # it goes on towards the rewards
  assert abs(first["sampler_weight_mean"] - 1) <= rounding()
  # The reference is where the run began: the first update starts on it.
  assert 0 < first["reference_kl"] < second["reference_kl"]
  loop.train(small(workdir / "export", resumed(tmp_path / "run", tmp_path / "again", 1), **more))
  assert without_time(lines(tmp_path / "again")) == without_time(lines(tmp_path / "run"))
  # It exports the policy alone.
  from safetensors import safe_open

  names = lambda folder: set(safe_open(folder / "model.safetensors", "numpy").keys())
  assert names(tmp_path / "run/export") == names(workdir / "export")
  exported = json.loads((tmp_path / "run/export/config.json").read_text())
  assert exported == json.loads((workdir / "export/config.json").read_text()) | {"max_position_embeddings": 5000}


def test_a_control_changes_weights_and_nothing_else_of_the_first_update(model, whole, tmp_path):
  loop.train(small(model, tmp_path / "run", **WHOLE | {"algorithm.control": "constant", "steps": 1}))
  control, fipo = lines(tmp_path / "run")[1], lines(whole[0])[1]
  for name in ("loss", "grad_norm"):
    (ours, _), (theirs, _) = (r[f"minibatch/{name}"] for r in (control, fipo))
    assert abs(ours - theirs) <= rounding(tokens=96)
  # Before the second update the policy is the same, so is the mean of the weights; but they do not differ any more.
  mean, expected = control["minibatch/weight_mean"][1], fipo["minibatch/weight_mean"][1]
  assert abs(mean - expected) <= rounding() < expected - 1
  # The deviation is taken from (mean - 1)²; the mean is a sum of numbers of size 1.
  assert control["minibatch/weight_std"][1] <= math.sqrt(limit(terms=96, scale=2 * (mean - 1)))
  assert fipo["minibatch/weight_std"][1] > rounding()


def test_groups_that_wait_survive_in_checkpoints(model, tmp_path):
  """One prompt in three is mixed, so draws overshoot; a run resumed in between equals one that was not stopped."""
  more = {"verifier": SOME, "steps": 4, "checkpoint.every": 3}
  loop.train(small(model, tmp_path / "whole", **more))
  records = lines(tmp_path / "whole")
  assert records[2]["groups_waiting"] > 0 and records[3]["groups_reused"] == records[2]["groups_waiting"]
  assert records[3]["waited_fraction"] > 0 and records[3]["total/groups_trained"] == 16
  assert all(r["token_efficiency"] < 1 and r["tokens_per_second/rollout"] > 0 for r in records)
  loop.train(small(model, resumed(tmp_path / "whole", tmp_path / "parts", 3), **more))
  assert without_time(lines(tmp_path / "parts")) == without_time(records)


def test_data_that_cannot_supply_ends_the_run_in_good_order(model, tmp_path):
  never = "def verify(response, answer, extras):\n  return 0.0\n"
  more = {"verifier": never, "dynamic_sampling.max_draws": 2, "eval.every": 2}
  result = loop.train(small(model, tmp_path / "run", **more))
  assert result["steps"] == 0 and "0 of 4 groups" in result["ended"] and result["accuracy_after"] == 0.0
  assert (tmp_path / "run/export/model.safetensors").is_file()


def test_an_alarm_takes_the_run_back_changes_settings_and_then_stops_it(model, tmp_path):
  more = {
    "dynamic_sampling.enabled": False, "steps": 9, "alarms.action": "rollback", "alarms.hold_steps": 3,
    "alarms.acting": ("entropy_explosion",), "alarms.rollback_steps": 1, "alarms.max_rollbacks": 1,
    "checkpoint.every": 1, "checkpoint.keep": 4,
  }  # fmt: skip
  cfg = small(model, tmp_path / "run", **more)
  cfg.alarms.rollback_overrides = {"algorithm": {"weight_clip": (1.0, 1.0)}}
  config.validate(cfg)
  with pytest.raises(ValueError, match="stopped after 1 rollbacks at step 3 by the alarm entropy_explosion"):
    loop.train(cfg)
  workdir = tmp_path / "run"
  assert json.loads((workdir / "rollbacks.json").read_text()) == [{"alarm": "entropy_explosion", "step": 3, "to": 2}]
  before, after = lines(workdir, "metrics.rollback1.jsonl"), lines(workdir)
  assert [r["step"] for r in before] == [1, 2, 3] and "entropy_explosion" in before[-1]["alarms"]
  assert [r["step"] for r in after] == [1, 2, 3] and after[:2] == before[:2]
  assert after[2]["weight_std"] == 0 < before[2]["weight_std"] and after[2]["weight_mean"] == 1
  assert after[2]["learning_rate"] == before[2]["learning_rate"]  # the warm-up goes on where it was at step 2
  assert after[2]["minibatch/entropy"][0] != before[2]["minibatch/entropy"][0]  # other random numbers


def test_the_deviation_of_weights_by_hand():
  weights = np.array([1.0, 1.1, 1.2, 0.9])
  mean = lambda x: Mean(np.float32(x.sum()), np.float32(len(x)))
  values = loop.numbers({"weight_mean": mean(weights), "weight_offset_square": mean((weights - 1) ** 2)})
  close(values, {"weight_mean": weights.mean(), "weight_std": weights.std()}, terms=len(weights), scale=1)


def stopped(tmp_path, step, evaluated):
  """A run that has done so many steps, evaluated then, and is told to stop: what is in its newest checkpoint."""
  c = config.default()
  c.steps, c.eval.every = 9, 3
  saver = Checkpointer(tmp_path, keep=9, best=1)
  state = lambda x: TrainState(np.int32(step), np.int32(0), {"layers": {"x": x}}, {})
  saver.save(1, state(np.zeros(2)), {}, 0.25)
  run = types.SimpleNamespace(
    cfg=c, step=step, host={"seconds": 1.5, "after": {"accuracy": 0.5}, "keep_rate": 0.25}, checkpointer=saver,
    state=state(np.full(2, float(step))), stream=types.SimpleNamespace(state=lambda: {"drawn": 7}), surplus=[],
    pending=[], begun=[], watch=Watch(Limits()), timers=metrics.Timers(),
  )  # fmt: skip
  with pytest.raises(processes.Stopped, match=f"saved after step {step} of 9; the same command goes on"):
    loop.stop(run)
  loader = Checkpointer(tmp_path, keep=1, best=1)
  assert loader.latest() == step
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), run.state)
  restored, host = loader.restore(step, shapes)
  jax.tree.map(np.testing.assert_array_equal, restored, run.state)
  assert host == run.host | {"data": {"drawn": 7}, "surplus": {}, "pending": {}, "watch": run.watch.state()}
  loader.save(8, state(np.zeros(2)), {})  # leaves the newest, and the best
  loader.close()
  assert steps_in(folder_of(tmp_path)) == [step if evaluated else 1, 8]


def test_saved_by_time(model, tmp_path):
  """checkpoint.every_s, and how long a scheduler must wait, known once something was saved."""
  loop.train(small(model, tmp_path / "run", **{"steps": 2, "checkpoint.every_s": 1e-6, "checkpoint.keep": 9}))
  assert steps_in(folder_of(tmp_path / "run")) == [1, 2]
  first, second = lines(tmp_path / "run")
  assert "grace_s" not in first or first["grace_s"] > first["seconds/update"]
  assert second["grace_s"] > second["seconds/update"] + second["seconds/old_logp"]


def test_a_run_that_is_stopped_has_saved(tmp_path):
  """An accuracy belongs to the step that was evaluated, and not to those after it."""
  stopped(tmp_path / "a", 3, evaluated=True)
  stopped(tmp_path / "b", 4, evaluated=False)


def test_one_mini_batch_at_a_time_is_on_the_mesh(model, tmp_path, monkeypatch):
  """Of four: when one is placed, no more than the one before it is there, whole, and old log-probs wait on the host."""
  seen, place = [], assemble.Run.place

  def watched(run, batch):
    gc.collect()
    live = [x for x in jax.live_arrays() if x.shape == batch.tokens.shape]
    seen.append(sum(x.nbytes for x in live) / batch.tokens.nbytes)
    return place(run, batch)

  monkeypatch.setattr(assemble.Run, "place", watched)
  loop.train(small(model, tmp_path / "run", steps=1, **{"batch.minibatch_prompts": 1}))
  fields = 9  # of a batch as it is placed
  assert len(seen) == 8  # each twice: to be scored, to be learnt from
  assert max(seen) <= fields + 1 and seen[1] > 0, seen  # and what scoring found


@pytest.mark.parametrize(
  ("each", "said"),
  [
    (["bad"] * 3, "of the last 3 updates 3 were not finite; lower optimizer.learning_rate"),
    (["empty"] * 3, "of the last 3 updates 3 had no token left, .* algorithm.sequence_reject_count=1 "),
    (["empty", "made", "bad", "empty", "empty"], "1 were not finite; .*2 had no token left"),
  ],
)
def test_skipped_updates_say_why(each, said):
  """All responses rejected is another trouble than a gradient that is not finite; the streak counts over steps."""
  closed = []
  run = types.SimpleNamespace(
    cfg=config.default(), host={}, state=types.SimpleNamespace(skipped=0),
    checkpointer=types.SimpleNamespace(close=lambda: closed.append(1)),
  )  # fmt: skip
  run.cfg.optimizer.max_skipped_updates = 3
  for n, kind in enumerate(each, start=1):
    loop.count_empty(run, [{"skipped_updates": float(kind != "made"), "empty_updates": float(kind == "empty")}])
    run.state.skipped = 0 if kind == "made" else run.state.skipped + 1
    if n < len(each):
      loop.check_alive(run)
  assert not closed
  with pytest.raises(ValueError, match=said):
    loop.check_alive(run)
  assert closed
