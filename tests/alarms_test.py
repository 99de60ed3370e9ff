"""Alarms: each fires on the stream made for it, at the step it should, and none on runs that are well."""

import dataclasses
import json
import math

import numpy as np
import pytest

from fipo_jax.alarms import Limits, Watch

LIMITS = Limits()


def stream(steps, seed=0, **changes):
  """Metrics of a healthy run, steps 1..; a change is a function of the step, giving a value or None (as it was)."""
  rng = np.random.default_rng(seed)
  out = []
  for step in range(1, steps + 1):
    # Spread like the batches of a small run: KL and gradient norm with the heavy tails that they have.
    values = {
      "accuracy": float(np.clip(rng.normal(0.5, 0.08), 0.05, 0.95)),
      "response_length": float(1000 * rng.lognormal(0, 0.05)),
      "truncated": float(np.clip(rng.normal(0.05, 0.02), 0, 1)),
      "entropy": float(0.4 * rng.lognormal(0, 0.1)),
      "policy_kl": float(0.002 * rng.lognormal(0, 0.4)),
      "grad_norm": float(0.1 * rng.lognormal(0, 0.25)),
      "dual_clip_fraction": float(3e-5 * rng.lognormal(0, 0.3) * (rng.random() < 0.05)),
      "minibatch/future_kl_abs_mean": [0.0, *(0.02 * rng.lognormal(0, 0.3, 3)).tolist()],
      "reward_timeouts": int(rng.integers(0, 3)),
      "reward_errors": 0,
      "tokens_generated": 512_000,
      "sampler_gap_mean": float(np.clip(0.005 * rng.lognormal(0, 0.5), 1e-3, 2e-2)),  # of bfloat16
    }
    if step % 5 == 0:
      values |= {"eval/accuracy": 0.5, "eval/no_answer": 0.03}
    for name, change in changes.items():
      name = name.replace("eval_", "eval/").replace("minibatch_", "minibatch/")
      # Held-out metrics come with an evaluation only.
      if (value := change(step)) is not None and (name in values or not name.startswith("eval/")):
        values[name] = value
    out.append((step, values))
  return out


def alarms(stream, limits=LIMITS):
  watch = Watch(limits)
  return [alarm for step, values in stream for alarm in watch.check(step, values)]


def fired(stream, limits=LIMITS):
  return [(alarm.name, alarm.step) for alarm in alarms(stream, limits)]


def between(first, last, value):
  return lambda step: value if first <= step <= last else None


@pytest.mark.parametrize("seed", range(20))
def test_noisy_healthy_run_is_quiet(seed):
  assert fired(stream(200, seed)) == []


@pytest.mark.parametrize("seed", range(5))
def test_slow_healthy_growth_is_quiet(seed):
  """Length grows 10 times in 300 steps, policy KL from 1e-4 to 2e-3, entropy doubles, gradients grow by half."""
  rng = np.random.default_rng(seed)

  def grow(first, last, noise):
    return lambda step: float(first * (last / first) ** (step / 300) * rng.lognormal(0, noise))

  growth = {
    "response_length": grow(500, 5000, 0.03), "policy_kl": grow(1e-4, 2e-3, 0.2), "entropy": grow(0.3, 0.6, 0.05),
    "grad_norm": grow(0.08, 0.12, 0.1), "truncated": grow(0.01, 0.1, 0.2),
  }  # fmt: skip
  assert fired(stream(300, seed, **growth)) == []


def test_learning_rate_warmup_is_quiet():
  """KL and gradient norm rise from nothing over the first ten steps while a rambling base model is cut to size."""
  ramp = {
    "policy_kl": lambda step: 2e-3 * min(step / 10, 1) ** 2, "grad_norm": lambda step: 0.3 * min(step / 10, 1),
    "response_length": lambda step: 1500.0 - 50 * min(step, 20),
  }  # fmt: skip
  assert fired(stream(60, **ramp)) == []


def collapse(start, steps, length_delay, length_rate, *, without=()):
  """From `start` on, over `steps`, to the values of the paper; then length falls by length_rate a step."""

  def rise(low, high):
    return lambda step: None if step < start else low * (high / low) ** min(1, (step - start + 1) / steps)

  changes = {
    "policy_kl": rise(0.002, 0.01), "grad_norm": rise(0.1, 0.4), "dual_clip_fraction": rise(1e-7, 6e-5),
    "response_length": lambda step: None if step < start + length_delay
    else 1000 * (1 - length_rate) ** (step - start - length_delay + 1),
  }  # fmt: skip
  return {name: change for name, change in changes.items() if name not in without}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
  ("shape", "earliest", "latest"),
  [
    (collapse(70, 1, 1, 0.1), 71, 71),  # all at once
    (collapse(70, 1, 1, 0.3), 71, 71),  # with length falling at a terrible pace
    (collapse(70, 5, 3, 0.1), 73, 76),
    (collapse(70, 20, 10, 0.05), 76, 91),  # creeping: half the length is lost at step 93
    (collapse(70, 30, 20, 0.05), 80, 101),
    (collapse(70, 3, 1, 0.1, without=["dual_clip_fraction"]), 72, 75),  # half is lost at step 77
    (collapse(70, 3, 1, 0.1, without=["grad_norm"]), 72, 75),
    (collapse(70, 3, 1, 0.1, without=["policy_kl"]), 72, 75),
    (collapse(70, 1, 1, 0.3, without=["dual_clip_fraction"]), 71, 71),  # half is lost at step 72
    (collapse(70, 1, 1, 0.3, without=["grad_norm"]), 71, 71),
    (collapse(70, 1, 1, 0.3, without=["policy_kl"]), 71, 71),
    (collapse(70, 2, 99, 0.1), 71, 73),  # before length moves at all
    (collapse(16, 2, 1, 0.1), 17, 19),  # soon after the warm-up
  ],
)
def test_collapse_fires_before_length_has_halved(seed, shape, earliest, latest):
  run = stream(110, seed, **shape)
  ((name, step),) = fired(run)
  assert name == "collapse" and earliest <= step <= latest
  lengths = {s: values["response_length"] for s, values in run}
  assert lengths[step] > 0.5 * np.median([lengths[s] for s in range(1, 16)])


def test_collapse_says_what_it_saw():
  (alarm,) = alarms(stream(72, **collapse(70, 1, 1, 0.3)))
  assert (alarm.name, alarm.step) == ("collapse", 71)
  assert alarm.message.startswith("4 of 5 signs of a collapse: dual-clipped share of tokens 6e-05 (usually 0), ")
  assert "policy KL in nats 0.01 (usually 0.00" in alarm.message and "gradient norm 0.4 " in alarm.message
  assert "mean length in tokens 700 (usually " in alarm.message
  assert "\n" not in alarm.message and "optimizer.learning_rate" in alarm.message


@pytest.mark.parametrize(
  "changes",
  [
    {"policy_kl": between(70, 70, 0.01), "grad_norm": between(70, 70, 0.4),
     "dual_clip_fraction": between(70, 70, 6e-5)},  # one bad batch
    {"policy_kl": between(70, 200, 0.01), "grad_norm": between(70, 200, 0.4),
     "dual_clip_fraction": between(70, 200, 0.0)},  # two signs, for good
    {"response_length": between(70, 200, 600.0), "policy_kl": between(70, 200, 0.01),
     "dual_clip_fraction": between(70, 200, 0.0)},
    {"dual_clip_fraction": between(70, 200, 6e-5), "grad_norm": between(70, 200, 0.4)},
    {"policy_kl": between(70, 200, 0.0045), "grad_norm": between(70, 200, 0.17),
     "response_length": between(70, 200, 900.0), "dual_clip_fraction": between(70, 200, 2e-5)},  # not far enough
  ],
)  # fmt: skip
def test_less_than_a_collapse_is_quiet(changes):
  assert fired(stream(120, **changes)) == []


@pytest.mark.parametrize("usual_gradient", [True, False])
def test_a_fall_of_accuracy_is_a_sign(usual_gradient):
  """Beside policy KL and dual clip, with a gradient norm too noisy to say anything."""
  noisy = {} if usual_gradient else {"grad_norm": lambda step: float(np.random.default_rng(step).lognormal(0, 1))}
  two = {"policy_kl": between(70, 200, 0.03), "dual_clip_fraction": between(70, 200, 1e-4), **noisy}
  assert fired(stream(90, **two)) == []
  assert fired(stream(90, **two, accuracy=between(70, 200, 0.1))) == [("collapse", 71)]
  assert fired(stream(90, **two, accuracy=between(70, 200, 0.4))) == []


def test_collapse_waits_for_the_warmup():
  assert fired(stream(9, **collapse(6, 1, 1, 0.3))) == []


STEADY = {
  "policy_kl": lambda step: 0.002 if step % 2 else 0.0021, "grad_norm": lambda step: 0.1 if step % 2 else 0.102,
  "dual_clip_fraction": lambda step: 0.0, "response_length": lambda step: 1000.0 if step % 2 else 1010.0,
}  # fmt: skip
WRONG = {"policy_kl": 0.01, "grad_norm": 0.4, "dual_clip_fraction": 6e-5, "response_length": 600.0}


def from_70(usual, then):
  return lambda step: usual(step) if step < 70 else then


@pytest.mark.parametrize(
  ("metric", "wild"),
  [
    # As on a few responses a step: KL scatters around 0, so that any multiple of its median is exceeded all the time.
    ("policy_kl", lambda step: float(np.random.default_rng(step).normal(2e-4, 2e-3))),
    ("grad_norm", lambda step: float(0.1 * np.random.default_rng(step).lognormal(0, 0.8))),
    ("dual_clip_fraction", lambda step: 1e-4 * (step % 5 < 2)),
    ("response_length", lambda step: float(np.random.default_rng(step).normal(1000, 150))),
    # Steady, and not far enough.
    ("policy_kl", from_70(STEADY["policy_kl"], 0.0058)),
    ("grad_norm", from_70(STEADY["grad_norm"], 0.195)),
    ("dual_clip_fraction", from_70(STEADY["dual_clip_fraction"], 9e-6)),
    ("response_length", from_70(STEADY["response_length"], 880.0)),
  ],
)
def test_what_a_metric_always_does_is_no_sign_of_a_collapse(metric, wild):
  """Two of the other signs are there for good, so that this one would complete them."""
  a, b = [m for m in ("policy_kl", "grad_norm", "response_length") if m != metric][:2]
  changes = STEADY | {m: from_70(STEADY[m], WRONG[m]) for m in (a, b)} | {metric: wild}
  assert fired(stream(100, **changes)) == []
  changes |= {metric: from_70(wild, 1.0 if metric != "response_length" else 400.0)}
  assert [name for name, _ in fired(stream(100, **changes))] == ["collapse"]


def test_a_long_collapse_does_not_become_usual():
  def twice(metric):  # 40-139 and 150-
    return lambda step: WRONG[metric] if 40 <= step < 140 or step >= 150 else STEADY[metric](step)

  assert fired(stream(160, **{m: twice(m) for m in WRONG})) == [("collapse", 41), ("collapse", 151)]


def test_length_is_held_against_its_latest_values_while_it_grows():
  """A fifth below the peak is still far above the median of the last 60 steps."""
  changes = STEADY | {m: from_70(STEADY[m], WRONG[m]) for m in ("policy_kl", "dual_clip_fraction")}
  changes["response_length"] = lambda step: 500 * 1.02 ** min(step, 70) * (1 if step <= 70 else 0.8)
  assert fired(stream(90, **changes)) == [("collapse", 71)]


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    ({"entropy": between(50, 99, 0.008)}, ("entropy_collapse", 54)),  # below a tenth of the first steps' 0.4
    ({"entropy": between(3, 99, 0.005)}, ("entropy_collapse", 7)),  # the absolute limit needs no warm-up
    ({"entropy": between(50, 99, 2.1)}, ("entropy_explosion", 54)),
    ({"truncated": between(50, 99, 0.6)}, ("length_runaway", 51)),  # a jump of the length comes with it
    ({"truncated": lambda step: 0.6}, ("length_runaway", 5)),
    ({"accuracy": between(50, 99, 0.0)}, ("reward_stuck", 54)),
    ({"accuracy": between(50, 99, 1.0)}, ("reward_stuck", 54)),
    ({"minibatch_future_kl_abs_mean": between(50, 99, [0.0, 0.0, 1e-7])}, ("future_kl_zero", 54)),
    ({"minibatch_future_kl_abs_mean": between(50, 99, [2e-6, 0.0])}, ("future_kl_zero", 54)),
    ({"minibatch_future_kl_abs_mean": between(50, 99, [0.0])}, ("future_kl_zero", 54)),
    ({"eval_no_answer": between(50, 99, 0.7)}, ("eval_parse_failures", 55)),
    ({"reward_timeouts": between(50, 99, 20), "reward_errors": between(50, 99, 20)}, ("verifier_trouble", 54)),
    ({"sampler_gap_mean": between(50, 99, 0.06)}, ("sampler_gap", 50)),
    ({"sampler_gap_mean": lambda step: 0.06}, ("sampler_gap", 1)),
  ],
)
def test_alarm_fires_once_at_its_step(changes, expected):
  if expected == ("length_runaway", 51):
    changes = changes | {"response_length": between(50, 99, 2500.0)}
  assert fired(stream(90, **changes)) == [expected]


def test_entropy_multiple_of_the_first_steps():
  run = stream(90, entropy=lambda step: 0.1 if step < 50 else 0.6)
  assert fired(run) == [("entropy_explosion", 54)]
  assert fired(run, dataclasses.replace(LIMITS, entropy_multiple=0.0)) == []


def test_entropy_is_held_against_the_first_steps_only():
  run = stream(90, entropy=lambda step: 0.4 if step <= 10 else 0.1 if step < 60 else 0.035)
  assert fired(run) == [("entropy_collapse", 64)]


def test_a_surge_waits_until_there_are_steps_enough_to_look_back():
  run = stream(30, response_length=lambda s: 100.0 if s <= 3 else 300.0, truncated=lambda s: 0.0 if s <= 3 else 0.3)
  assert fired(run) == [("length_runaway", 13)]


@pytest.mark.parametrize(
  "changes",
  [
    {"entropy": between(50, 53, 0.008)},  # a step too short
    {"entropy": between(50, 99, 0.06)},
    {"entropy": between(50, 99, 1.5)},
    {"truncated": between(50, 53, 0.6)},
    {"truncated": between(50, 99, 0.4)},
    {"response_length": between(50, 99, 3000.0)},  # longer, but ended
    {"accuracy": between(50, 53, 0.0)},
    {"accuracy": between(50, 99, 0.002)},
    {"accuracy": between(50, 99, 0.998)},
    {"accuracy": lambda step: step % 2},  # 0 and 1 in turn
    {"minibatch_future_kl_abs_mean": between(50, 53, [0.0, 0.0])},
    {"minibatch_future_kl_abs_mean": between(50, 99, [0.0, 0.0, 1e-5])},
    {"eval_no_answer": between(50, 54, 0.7)},  # one evaluation
    {"eval_no_answer": between(50, 99, 0.4)},
    {"reward_timeouts": between(50, 99, 15)},
    {"reward_errors": between(50, 53, 200)},
    {"sampler_gap_mean": between(50, 99, 0.04)},
  ],
)
def test_near_miss_is_quiet(changes):
  assert fired(stream(90, **changes)) == []


@pytest.mark.parametrize(("dtype", "well", "wrong"), [("float32", 1e-4, 2e-3), ("bfloat16", 2e-2, 0.06)])
def test_the_gap_to_the_sampler_is_judged_by_the_compute_dtype(dtype, well, wrong):
  """What is usual in bfloat16 is a fault in float32."""
  watch = Watch(LIMITS, dtype)
  seen = [watch.check(step, {"sampler_gap_mean": well if step < 9 else wrong}) for step in range(1, 12)]
  [[alarm]] = [found for found in seen if found]
  assert (alarm.name, alarm.step) == ("sampler_gap", 9) and "\n" not in alarm.message
  assert f"are {wrong:.3g} nats apart" in alarm.message and f"model.dtype={dtype!r}" in alarm.message
  assert "started anew" in alarm.message and "tied head" in alarm.message and "--dtype" in alarm.message


def test_supervised_training_may_lose_its_entropy():
  steps = [(step, {"entropy": 3 * 0.9**step, "grad_norm": 1.0, "loss": 1.0}) for step in range(1, 100)]
  assert fired(steps) == []


def test_an_episode_is_one_alarm():
  def accuracy(step):  # holds 30-49, is well for 3 steps, holds 53-59, is well for 10, holds from 70 on
    return 0.0 if 30 <= step < 50 or 53 <= step < 60 or step >= 70 else 0.5

  assert fired(stream(100, accuracy=accuracy)) == [("reward_stuck", 34), ("reward_stuck", 74)]


def test_two_alarms_have_episodes_of_their_own():
  run = stream(60, accuracy=between(20, 40, 0.0), entropy=between(22, 60, 3.0))
  assert fired(run) == [("reward_stuck", 24), ("entropy_explosion", 26)]


TROUBLED = [
  collapse(40, 8, 4, 0.1),
  {"entropy": between(38, 60, 0.008), "accuracy": between(36, 60, 0.0)},
  {"truncated": lambda s: min(0.9, s / 60), "response_length": lambda s: 500.0 * 1.1 ** min(s, 60)},
  {"minibatch_future_kl_abs_mean": between(38, 60, [0.0, 0.0]), "eval_no_answer": between(30, 60, 1.0)},
]


@pytest.mark.parametrize("changes", TROUBLED)
def test_resumed_watch_alarms_as_the_uninterrupted(changes):
  run = stream(70, **changes)
  whole = alarms(run)
  assert whole
  for cut in range(0, 70, 3):
    first, second = Watch(LIMITS), Watch(LIMITS)
    before = [alarm for step, values in run[:cut] for alarm in first.check(step, values)]
    state = first.state()
    saved = json.dumps(state, allow_nan=False)
    for step, values in run[cut : cut + 3]:  # what follows leaves the state that was taken alone
      first.check(step, values)
    assert json.dumps(state) == saved
    second.restore(json.loads(saved))
    assert before + [alarm for step, values in run[cut:] for alarm in second.check(step, values)] == whole


def names():
  return list(stream(5)[-1][1])


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, -math.inf, [], [None, math.nan]])
@pytest.mark.parametrize("name", [*names(), "all"])
def test_unusable_values_neither_crash_nor_alarm(name, bad):
  run = [(s, {k: bad if name in (k, "all") else v for k, v in values.items()}) for s, values in stream(60)]
  assert fired(run) == []


@pytest.mark.parametrize("name", [*names(), "all"])
def test_absent_metrics_cannot_alarm(name):
  run = [(s, {k: v for k, v in values.items() if name not in (k, "all")}) for s, values in stream(60)]
  assert fired(run) == []


def test_gaps_neither_raise_nor_clear():
  gaps = lambda step: math.nan if step % 2 else 0.0  # the fifth measured zero from 30 on is at step 38
  run = stream(80, accuracy=lambda step: gaps(step) if step >= 30 else 0.5)
  assert fired(run) == [("reward_stuck", 38)]


def test_collapse_is_seen_without_the_dual_clip():
  """An objective without it leaves three signs, and all of them are needed."""
  run = stream(110, **collapse(70, 3, 1, 0.1))
  for _, values in run:
    del values["dual_clip_fraction"]
  ((name, step),) = fired(run)
  assert name == "collapse" and 72 <= step <= 75
  for _, values in run:
    del values["grad_norm"]
  assert fired(run) == []


OFF = {
  "collapse": ("collapse_signs",), "entropy_collapse": ("entropy_min", "entropy_fraction"),
  "entropy_explosion": ("entropy_max", "entropy_multiple"), "length_runaway": ("truncated_max", "length_surge"),
  "reward_stuck": ("stuck_margin",), "future_kl_zero": ("future_kl_zero",),
  "eval_parse_failures": ("parse_failures_max",), "verifier_trouble": ("verifier_trouble_max",),
  "sampler_gap": ("sampler_gap_bfloat16",),
}  # fmt: skip
ALL_WRONG = {
  "collapse": collapse(40, 1, 1, 0.1), "entropy_collapse": {"entropy": between(30, 90, 0.0)},
  "entropy_explosion": {"entropy": between(30, 90, 5.0)},
  "length_runaway": {"truncated": between(30, 90, 1.0), "response_length": between(30, 90, 9000.0)},
  "reward_stuck": {"accuracy": between(30, 90, 0.0)},
  "future_kl_zero": {"minibatch_future_kl_abs_mean": between(30, 90, [0.0, 0.0])},
  "eval_parse_failures": {"eval_no_answer": between(30, 90, 1.0)},
  "verifier_trouble": {"reward_errors": between(30, 90, 500)},
  "sampler_gap": {"sampler_gap_mean": between(30, 90, 0.5)},
}  # fmt: skip


@pytest.mark.parametrize("name", OFF)
def test_zero_switches_an_alarm_off(name):
  run = stream(80, **ALL_WRONG[name])
  assert [alarm for alarm, _ in fired(run)] == [name]
  assert fired(run, dataclasses.replace(LIMITS, **dict.fromkeys(OFF[name], 0))) == []


@pytest.mark.parametrize(
  ("field", "value"),
  [("entropy_max", -1.0), ("collapse_rise", math.nan), ("length_surge", math.inf), ("hold_steps", 0),
   ("clear_steps", 0), ("parse_failures_evals", 0), ("warmup_steps", 1), ("warmup_steps", 61)],
)  # fmt: skip
def test_bad_limits_are_named(field, value):
  with pytest.raises(ValueError, match=f"alarms.{field}={value}"):
    Limits(**{field: value})
