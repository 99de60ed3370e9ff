"""Objectives against a slow NumPy oracle, each other, and every way of cutting the batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from future_kl_test import slow_future_kl
from tolerances import close

from fipo_jax.algorithms import OBJECTIVES, aggregation, diagnostics, losses, make_objective
from fipo_jax.types import Batch, Max, Mean, Min, Quantiles

LENGTHS = [(5, 9, 1), (14,), (7, 6)]  # responses of each packed row of 16 tokens
R, T = 6, 16  # of all batches here: what runs op by op is compiled once for each shape
TERMS = T  # that a sum over a response adds up
SIZE = 10.0  # of the log-probs and ratios that metrics are made of
# The norms that one row at a time can say; sequence_fixed and verl_microbatch are in aggregation_test.
NORMS = ("global_token", "sequence_mean", "sequence_sum", "group_token")
SETTINGS = {  # name -> hyperparameters that reach other branches of fipo
  "published": {},
  "two_sided": {"weight_clip": (0.8, 1.2), "safety_threshold": 3.0, "half_life_tokens": 4.0},
  "paper": {
    "participation_mask": "negative_only", "safety_mode": "reset", "sequence_reject_count": None,
    "delta_clamp": None, "weight_clip": (0.8, 1.2), "safety_threshold": 2.0,
  },
  "open": {"weight_clip": None, "raw_cap": 5.0, "participation_mask": "off", "safety_mode": "off", "dual_clip": 2.0},
}  # fmt: skip


def packed(seed=2, dtype=np.float32, spread=1.0):
  """(logp, Batch) of LENGTHS: two prompt tokens before each response of two or more, NaN under the mask; empty rows."""
  rng = np.random.default_rng(seed)
  segments = np.zeros((3, 16), np.int32)
  mask = np.zeros((3, 16), dtype)
  advantages = np.zeros((3, 16), dtype)
  group_tokens = np.zeros((3, 16), dtype)
  group = 0
  for r, row in enumerate(LENGTHS):
    start = 0
    for s, n in enumerate(row):
      here = slice(start, start + n)
      prompt = min(2, n - 1)
      segments[r, here] = s + 1
      mask[r, start + prompt : start + n] = 1
      advantages[r, here] = (-1) ** group * (1 + rng.random())
      group_tokens[r, here] = n - prompt  # each response its own group
      start, group = start + n, group + 1
  old = np.where(mask > 0, rng.normal(-1, 0.5, mask.shape), np.nan).astype(dtype)
  delta = np.where(
    rng.random(mask.shape) < 0.25, rng.normal(1, 2, mask.shape), rng.normal(0, 0.3, mask.shape)
  )
  logp = (old + spread * delta).astype(dtype)
  batch = Batch(
    segments, segments, segments, mask, np.where(mask > 0, advantages, np.nan), old,
    (old + 0.01).astype(dtype), group_tokens,
  )  # fmt: skip
  return framed(logp, batch)


def framed(logp, batch):
  """The same with padding to [R, T]."""
  pad = lambda x: jnp.asarray(np.pad(x, [(0, R - np.shape(x)[0]), (0, T - np.shape(x)[1])]))
  return pad(logp), jax.tree.map(pad, batch)


def value_and_grad(objective, logp, batch):
  def total(logp):
    out = objective(logp, batch)
    return out.loss.total, out

  (_, out), gradient = jax.value_and_grad(total, has_aux=True)(logp)  # op by op, see R and T
  return out, gradient


def responses(batch):
  """(row, indices of its valid tokens) of each response."""
  segments, mask = np.asarray(batch.segments), np.asarray(batch.mask)
  for r in range(len(segments)):
    for s in range(1, segments[r].max() + 1):
      yield r, np.flatnonzero((segments[r] == s) & (mask[r] > 0))


def slow_fipo(logp, batch, *, clip_low=0.2, clip_high=0.28, dual_clip=10.0, half_life_tokens=32.0,
              participation_mask="all", weight_clip=(1.0, 1.2), raw_cap=10.0, safety_mode="clamp",
              safety_threshold=10.0, sequence_reject_count=1, delta_clamp=20.0, loss_norm="global_token"):  # fmt: skip
  """(total, count, per-token losses, gradient of total), token by token from the equations."""
  valid = np.asarray(batch.mask) > 0
  A = np.where(valid, batch.advantages, 0.0).astype(float)
  raw = np.where(valid, np.asarray(logp, float) - np.asarray(batch.old_logp, float), 0.0)
  d = raw if delta_clamp is None else np.clip(raw, -delta_clamp, delta_clamp)
  out = (d > np.log(dual_clip)) & {"all": True, "negative_only": A < 0, "off": False}[
    participation_mask
  ]
  F = slow_future_kl(d, valid & ~out, np.asarray(batch.segments), half_life_tokens)
  loss, slope, dual = np.zeros(d.shape), np.zeros(d.shape), np.zeros(d.shape, bool)
  for i in zip(*np.nonzero(valid), strict=True):
    w = min(np.exp(F[i]), raw_cap) if weight_clip is None else np.clip(np.exp(F[i]), *weight_clip)
    r = np.exp(d[i])
    if A[i] < 0 and r > safety_threshold:
      w = {"clamp": np.clip(w, 0.8, 1.0), "reset": 1.0, "off": w}[safety_mode]
    if A[i] > 0:
      used, free = min(r, 1 + clip_high), r <= 1 + clip_high
    else:
      used, free = min(max(r, 1 - clip_low), dual_clip), 1 - clip_low <= r <= dual_clip
    loss[i] = -A[i] * w * used
    inside = delta_clamp is None or abs(raw[i]) <= delta_clamp
    slope[i] = -A[i] * w * r if free and inside else 0.0
    dual[i] = A[i] < 0 and r > dual_clip
  total, count, gradient = 0.0, 0.0, np.zeros(d.shape)
  for r, tokens in responses(batch):
    dropped = sequence_reject_count is not None and dual[r, tokens].sum() > sequence_reject_count
    divide, counted = {
      "global_token": (1, 0 if dropped else len(tokens)),
      "sequence_mean": (len(tokens), 1),
      "sequence_sum": (1, 1),
      "group_token": (len(tokens), 1),
    }[loss_norm]
    count += counted
    if not dropped:
      total += loss[r, tokens].sum() / divide
      gradient[r, tokens] = slope[r, tokens] / divide
  return total, count, loss, gradient


@pytest.mark.parametrize(
  "name, loss_norm",
  [(name, "global_token") for name in SETTINGS]
  + [("published", norm) for norm in NORMS[1:]],
)
def test_fipo_equals_oracle(name, loss_norm):
  settings = SETTINGS[name] | {"loss_norm": loss_norm}
  with jax.enable_x64(True):
    logp, batch = packed(dtype=np.float64, spread=1.5)
    out, gradient = value_and_grad(functools.partial(losses.fipo, **settings), logp, batch)
  total, count, loss, slow_gradient = slow_fipo(logp, batch, **settings)
  assert np.abs(slow_gradient).max() > 0.01
  close(out.loss.total, total, terms=TERMS, dtype=np.float64)
  assert out.loss.count == count
  valid = np.asarray(batch.mask) > 0
  close(out.per_token["token_loss"][valid], loss[valid], terms=TERMS, dtype=np.float64)
  close(gradient, slow_gradient, terms=TERMS, dtype=np.float64)


def test_oracle_cases_reject_and_keep_responses():
  logp, batch = packed(spread=1.5)
  keep = np.asarray(losses.fipo(logp, batch).per_token["keep"])
  kept = [keep[r, tokens].all() for r, tokens in responses(batch)]
  assert 0 < sum(kept) < len(kept)
  assert all(keep[r, tokens].all() or not keep[r, tokens].any() for r, tokens in responses(batch))


def row(logp, old=None, advantages=None, segments=None):
  """(logp, Batch) of one packed row, all of it valid."""
  one = np.ones((1, len(logp)), np.float32)
  given = lambda x, fallback: fallback if x is None else np.asarray([x], fallback.dtype)
  segments = given(segments, one.astype(np.int32))
  old = given(old, 0 * one)
  return framed([logp], Batch(segments, segments, segments, one, given(advantages, one), old, old, 2 * one))


def test_by_hand():
  # weights: min(1.1 · 1.5^½, 1.4) = 1.347..., min(1.5, 1.4) = 1.4; ratios used: 1.1 and 1.28
  logp, batch = row(np.log([1.1, 1.5]))
  out = losses.fipo(logp, batch, half_life_tokens=1.0, weight_clip=(0.5, 1.4))
  close(out.per_token["weight"][0, :2], [1.1 * 1.5**0.5, 1.4])
  close(out.loss.total, -(1.1 * 1.5**0.5 * 1.1 + 1.4 * 1.28))
  assert out.loss.count == 2
  out = losses.dapo(*row(np.log([0.5, 20.0]), advantages=[-1, -1]))
  close(out.per_token["token_loss"][0, :2], [0.8, 10.0])  # clipped below, dual-clipped above


@pytest.mark.parametrize(
  "name, loss_norm",
  [("fipo", norm) for norm in NORMS]
  + [(name, "sequence_mean") for name in OBJECTIVES if name != "fipo"],
)
def test_packed_equals_unpacked(name, loss_norm):
  logp, batch = packed()
  objective = make_objective(name, loss_norm=loss_norm)
  together, gradient = value_and_grad(objective, logp, batch)
  segments = np.asarray(batch.segments)
  places = [(r, s) for r in range(R) for s in range(1, segments[r].max() + 1)]
  assert len(places) == R

  def alone(x):  # each response moved to a row of its own, at the left
    rows = np.zeros((R, T), np.asarray(x).dtype)
    for i, (r, s) in enumerate(places):
      own = np.asarray(x)[r, segments[r] == s]
      rows[i, : len(own)] = own
    return jnp.asarray(rows)

  rows = jax.tree.map(alone, batch)
  rows = dataclasses.replace(rows, segments=jnp.minimum(rows.segments, 1))
  apart, row_gradient = value_and_grad(objective, alone(logp), rows)
  close(together.loss.total, apart.loss.total, terms=TERMS)
  assert together.loss.count == apart.loss.count
  close(alone(gradient), row_gradient, terms=TERMS)
  ours, theirs = (diagnostics.summarise(out.metrics) for out in (together, apart))
  for key, metric in ours.items():
    close(metric.value(), theirs[key].value(), terms=TERMS, scale=SIZE, name=key)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_add_up(name):
  logp, batch = packed()
  objective = make_objective(name)
  whole = objective(logp, batch)
  only = lambda r, x: jnp.where(jnp.arange(R)[:, None] == r, x, 0)
  parts = [objective(only(r, logp), jax.tree.map(functools.partial(only, r), batch)) for r in range(3)]
  merged = functools.reduce(Mean.merge, [part.loss for part in parts])
  close(merged.total, whole.loss.total, terms=TERMS)
  assert merged.count == whole.loss.count
  for key, metric in whole.metrics.items():
    if isinstance(metric, Quantiles):  # do not add: the train step keeps their values until all are there
      continue
    total = functools.reduce(type(metric).merge, [part.metrics[key] for part in parts])
    close(total.value(), metric.value(), terms=TERMS, scale=SIZE, name=key)


def test_fipo_with_weight_one_is_dapo():
  logp, batch = packed()
  one = functools.partial(
    losses.fipo, weight_clip=(1.0, 1.0), safety_mode="reset", sequence_reject_count=None
  )
  ours, gradient = value_and_grad(one, logp, batch)
  plain, plain_gradient = value_and_grad(losses.dapo, logp, batch)
  assert ours.loss.total == plain.loss.total and ours.loss.count == plain.loss.count
  np.testing.assert_array_equal(gradient, plain_gradient)
  weighted, other = value_and_grad(losses.fipo, logp, batch)
  assert not np.allclose(gradient, other)


def test_on_policy_gradient_is_minus_the_advantage():
  _, batch = packed()
  out, gradient = value_and_grad(losses.fipo, batch.old_logp, batch)
  np.testing.assert_array_equal(gradient, np.where(batch.mask > 0, -batch.advantages, 0))
  assert (np.asarray(out.per_token["future_kl"]) == 0).all() and out.metrics[
    "weight_mean"
  ].value() == 1


def test_sft_is_the_negative_log_likelihood():
  logp, batch = packed()
  out, gradient = value_and_grad(losses.sft, logp, batch)
  valid = np.asarray(batch.mask) > 0
  close(out.loss.total, -np.asarray(logp, np.float64)[valid].sum(), terms=TERMS)
  np.testing.assert_array_equal(gradient, -valid.astype(np.float32))
  assert out.loss.count == valid.sum()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_all_masked_is_zero_and_finite(name):
  """Rows of padding, and rows that are one response of which no token counts."""
  nan, zero = jnp.full((R, T), jnp.nan), jnp.zeros((R, T))
  segments = (zero + jnp.arange(R)[:, None] % 2).astype(jnp.int32)
  batch = Batch(segments, segments, segments, zero, nan, nan, nan, zero)
  out, gradient = value_and_grad(make_objective(name), nan, batch)
  assert out.loss.total == 0 and out.loss.count == 0
  assert (gradient == 0).all()
  assert all(np.isfinite(m.total) for m in out.metrics.values() if isinstance(m, Mean))


@pytest.mark.parametrize("loss_norm", aggregation.LOSS_NORMS)
def test_all_masked_is_zero_under_every_norm(loss_norm):
  nan, zero = jnp.full((R, T), jnp.nan), jnp.zeros((R, T))
  for segments in (zero, zero + 1):
    segments = segments.astype(jnp.int32)
    batch = Batch(segments, segments, segments, zero, nan, nan, nan, zero)
    mean = aggregation.aggregate(nan, zero > 0, zero > 0, batch, loss_norm=loss_norm, max_response_tokens=8)
    assert mean.total == 0 and mean.count == 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_length_one_and_float64(name):
  with jax.enable_x64(True):
    one, unit = np.ones((1, 1), np.int32), np.ones((1, 1))
    logp, batch = framed(-unit, Batch(one, one, one, unit, unit, -unit, -unit, unit))
    out, gradient = value_and_grad(make_objective(name), logp, batch)
    assert out.loss.total.dtype == gradient.dtype == jnp.float64
    # What any objective has: one token that counts, and an advantage of 1 that makes it more likely.
    assert np.isfinite(out.loss.total) and gradient[0, 0] < 0 and (np.delete(gradient, 0) == 0).all()


@pytest.mark.parametrize("name", ["fipo", "dapo", "grpo", "rloo", "reinforce_pp", "ppo", "gspo"])
def test_an_unclipped_ratio_of_one_is_the_advantage(name):
  with jax.enable_x64(True):
    one, unit = np.ones((1, 1), np.int32), np.ones((1, 1))
    logp, batch = framed(-unit, Batch(one, one, one, unit, unit, -unit, -unit, unit))
    out, gradient = value_and_grad(make_objective(name), logp, batch)
    assert out.loss.count == 1 and out.loss.total == -1 == gradient[0, 0]


def test_nan_on_a_counted_token_is_seen():
  logp, batch = packed()
  out, gradient = value_and_grad(losses.fipo, logp.at[1, 5].set(jnp.nan), batch)
  assert np.isnan(out.loss.total) and np.isnan(gradient).any()


def test_huge_shifts_stay_finite():
  logp, batch = packed(spread=-1e3)
  for settings in (
    SETTINGS["published"],
    SETTINGS["paper"],
    {"weight_clip": None, "raw_cap": None},
  ):
    out, gradient = value_and_grad(functools.partial(losses.fipo, **settings), logp, batch)
    assert np.isfinite(out.loss.total) and np.isfinite(gradient).all(), settings
    assert np.abs(out.per_token["future_kl"]).max() > 40
    metrics = diagnostics.summarise(out.metrics)
    numbers = [float(m.value()) for m in metrics.values() if isinstance(m, (Max, Min)) or m.count > 0]
    assert not np.isinf(numbers).any(), settings


def test_gradient_reaches_only_the_loss():
  logp, batch = packed()

  def leak(logp):
    out = losses.fipo(logp, batch)
    return sum(
      jnp.sum(jnp.nan_to_num(x))
      for x in jax.tree.leaves((out.metrics, out.per_token, out.loss.count))
    )

  assert (jax.grad(leak)(logp) == 0).all()


def test_gspo_by_hand():
  out, gradient = value_and_grad(functools.partial(losses.gspo, gspo_clip_high=0.5), *row([0.1, 0.3]))
  close(out.loss.total, -np.exp(0.2))
  close(gradient[0, :2], [-np.exp(0.2) / 2] * 2)


def test_grpo_stays_itself_under_the_settings_of_dapo():
  """One config section serves every objective: its clip_high, dual_clip and loss_norm must not turn grpo into dapo."""
  logp, batch = packed()
  config = dict(clip_low=0.2, clip_high=0.28, dual_clip=10.0, loss_norm="global_token")
  out = make_objective("grpo", **config)(logp, batch)
  own = losses.dapo(logp, batch, clip_low=0.2, clip_high=0.2, dual_clip=None, loss_norm="sequence_mean").loss
  dapo = make_objective("dapo", **config)(logp, batch).loss
  assert out.loss.total == own.total and out.loss.count == own.count == sum(map(len, LENGTHS))
  assert dapo.count != own.count and dapo.total != own.total


def test_make_objective_picks_what_fits_and_names_mistakes():
  objective = make_objective(
    "dapo", clip_high=0.5, half_life_tokens=7.0
  )  # the second belongs to fipo
  logp, batch = packed()
  assert objective(logp, batch).loss.total == losses.dapo(logp, batch, clip_high=0.5).loss.total
  for settings, said in (
    ({"name": "trpo"}, "choose one of fipo, dapo, grpo, dr_grpo, gspo"),
    ({"name": "fipo", "half_live": 3}, "half_live=3"),
    ({"name": "fipo", "dual_clip": 1.0}, "dual_clip=1.0"),
    ({"name": "fipo", "clip_low": -0.1}, "clip_low=-0.1"),
    ({"name": "fipo", "loss_norm": "mean"}, "loss_norm='mean'"),
    ({"name": "fipo", "participation_mask": "some"}, "participation_mask='some'"),
    ({"name": "fipo", "dual_clip": None}, "needs a ratio"),
    ({"name": "fipo", "sequence_reject_count": -1}, "sequence_reject_count=-1"),
    ({"name": "fipo", "delta_clamp": 0.0}, "delta_clamp=0.0"),
  ):
    with pytest.raises(ValueError, match=said):
      make_objective(**settings)


def test_shapes_are_checked():
  logp, batch = packed()
  with pytest.raises(ValueError, match="axis T"):
    losses.fipo(logp[:, :-1], batch)
