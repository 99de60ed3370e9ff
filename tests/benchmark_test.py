"""What `launch/benchmark.py` measures: an experiment's own step, and how far the sampler is from the trainer."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from fipo_jax import config
from fipo_jax.algorithms.presets import PRESETS
from fipo_jax.benchmarks import gap, gradient_sums, timing, update
from fipo_jax.data.tokenizer import characters
from fipo_jax.models import PRESETS as SIZES
from fipo_jax.models import hf, make_model
from fipo_jax.sharding import make_mesh
from tests.tolerances import close


def tiny():
  c = config.default()
  c.algorithm.update(PRESETS["dapo"])
  c.model.path, c.model.dtype = "tiny", "float32"
  c.data.max_prompt_tokens, c.rollout.max_response_tokens, c.batch.row_tokens = 16, 48, 64
  c.batch.micro_rows, c.mesh.data, c.mesh.fsdp = 8, 2, 4
  c.reward.verifier, c.reward.overlong_buffer_tokens, c.eval.every = "math_dapo", 16, 0
  return c


@pytest.mark.slow
def test_a_step_with_a_reference_policy_is_timed(monkeypatch):
  monkeypatch.setattr(timing, "RUNS", 1)
  c = tiny()
  c.algorithm.reference_kl_coef = 0.1
  result = update.train(c, 2)
  assert (result["rows"], result["tokens"], result["devices"]) == (16, 16 * 64, 8)
  close(result["tok_s"], result["tokens"] / result["seconds"], dtype=np.float64)
  assert math.isfinite(result["loss"]) and result["loss"] != 0 and result["mfu"] is None
  # And biases, norms, attention: a tenth at most.
  useful = 6 * (3 * 160 * (480 * 3 + 160 * 2 + 160 * 2) + 256 * 160) * 1024
  assert result["tflop_s_per_device"] * 1e12 * 8 * result["seconds"] == pytest.approx(useful, rel=0.1)


def test_what_cannot_be_timed_is_one_line():
  c = tiny()
  c.batch.micro_rows = 6
  with pytest.raises(ValueError, match="batch.micro_rows=6"):
    update.train(c, 1)
  c = tiny()
  c.algorithm.name = "ppo"
  with pytest.raises(ValueError, match="algorithm.name='ppo'"):
    update.train(c, 1)
  with pytest.raises(ValueError, match="--config=None"):
    update.train(None, 1)


def test_sums_round_where_their_names_say():
  """A ring loses what is small beside its sum so far; rounding once, or what is sent, does not."""
  parts = [[np.float32([1.0, 1.0])]] + [[np.float32([2**-9, 1 + 2**-10])]] * 256
  made = {way: arrays[0] for way, arrays in gradient_sums.added(parts).items()}
  np.testing.assert_array_equal(made["exact"], [1.5, 257.25])
  np.testing.assert_array_equal(made["float32"], [1.5, 258.0])  # multiples of 2
  np.testing.assert_array_equal(made["bfloat16"], [1.5, 256.0])  # what is sent has lost 2^-10; 257 is halfway
  np.testing.assert_array_equal(made["bfloat16 ring"], [1.0, 256.0])


def test_errors_are_by_kind_of_parameter():
  """On a tiny model: every parameter has a kind, a number is picked from each, and only what differs is off."""
  params = make_model(SIZES["tiny"]).abstract()
  take, kinds = gradient_sums.picked(params)
  zeros = take(jax.tree.map(lambda x: np.zeros(x.shape, np.float32), params))
  assert {"all", "embedding", "q, k, v", "biases", "norms", "attention out", "gate, up", "down"} == set(kinds)
  assert sorted(i for kind, of in kinds.items() if kind != "all" for i in of) == kinds["all"]
  exact = [x + 3 for x in zeros]
  got = [x.copy() for x in exact]
  for i in kinds["down"]:
    got[i][0] = -3
  found = gradient_sums.apart(got, exact, got, exact, kinds)
  numbers = sum(exact[i].size for i in kinds["down"])
  assert found["norms"] == {"error": 0.0, "cosine": 1.0, "flipped": 0.0, "adam": 0.0}
  down = found["down"]
  assert (down["error"], down["flipped"]) == (float(f"{2 / numbers**0.5:.3g}"), float(f"{1 / numbers:.3g}"))


def test_a_gap_is_in_nats_of_the_trainer_over_the_sampler():
  """One token is 8 times as likely to the trainer; errors of a response that cancel are no error of its ratio."""
  sampled, scored = [np.zeros(2), np.full(2, -1.0)], [np.array([0.25, -0.25]), np.array([-1.0, -1.0 + np.log(8)])]
  found = gap.gap_of(sampled, scored)
  k3 = (np.expm1(0.25) - 0.25 + np.expm1(-0.25) + 0.25 + 7 - np.log(8)) / 4
  weight = (np.exp(0.25) + np.exp(-0.25) + 1 + 2) / 4
  want = {"mean": (0.5 + np.log(8)) / 4, "max": np.log(8), "bias": np.log(8) / 4, "k3": k3, "response": np.log(8) / 2,
          "weight_mean": weight, "weight_clipped": 0.25}  # fmt: skip
  assert found["sampled"] == 4
  for name, value in want.items():
    assert found[name] == pytest.approx(value, rel=1e-3), name


@pytest.mark.slow
def test_what_a_checkpoint_samples_is_scored_by_the_trainer(tmp_path, monkeypatch):
  """int8 pages move log-probabilities by more than float32 does, and by far less than a wrong token would."""
  monkeypatch.setattr(gap, "GAP_TEXTS", ("1+1=", "12+34=", "5", "7+7+7="))
  monkeypatch.setattr(gap, "GAP_RUNS", (("float32", ""), ("float32", "int8")))
  monkeypatch.setattr(gap, "make_mesh", lambda shape: make_mesh(shape, jax.devices()[:1]))
  model = make_model(dataclasses.replace(SIZES["tiny"], num_layers=1))
  hf.save(tmp_path, model.init(jax.random.key(0)), model.config)
  characters("0123456789+=").save(tmp_path)
  found = gap.gap(str(tmp_path), 8)
  plain, narrow = found["float32"], found["float32_int8"]
  assert 16 < plain["sampled"] <= 16 * 8
  assert plain["max"] < 2e-5 < narrow["mean"] < narrow["max"] < 0.1
  assert narrow["weight_clipped"] == 0 and narrow["weight_mean"] == pytest.approx(1, abs=0.01)


def test_a_gap_needs_a_checkpoint():
  with pytest.raises(ValueError, match="--model=''"):
    gap.gap("", 8)
