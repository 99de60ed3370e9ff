"""Metrics of a policy loss against plain NumPy on the valid tokens; the rest of them is held by golden_check_test."""

import numpy as np
from losses_test import SIZE, TERMS, packed
from masked_test import close_quantiles
from tolerances import close, limit

from fipo_jax.algorithms import diagnostics, losses


def numbers():
  logp, batch = packed(spread=0.5)
  out = losses.fipo(logp, batch, weight_clip=(0.8, 1.2), half_life_tokens=4.0)
  valid = np.asarray(batch.mask) > 0
  token = {name: np.asarray(x, np.float64)[valid] for name, x in out.per_token.items()}
  token["advantage"] = np.asarray(batch.advantages, np.float64)[valid]
  metrics = diagnostics.summarise(out.metrics)
  return {name: metric.value() for name, metric in metrics.items()}, token, out, batch


def test_weight_and_future_kl_statistics():
  ours, token, _, _ = numbers()
  w, F = token["weight"], token["future_kl"]
  assert w.std() > 0.05
  close(ours["weight_offset_square"] - (ours["weight_mean"] - 1) ** 2, w.var(), terms=TERMS)
  close(ours["weight_mean"], w.mean(), terms=TERMS)
  close(ours["future_kl_mean"], F.mean(), terms=TERMS, scale=SIZE)
  close(ours["future_kl_abs_mean"], np.abs(F).mean(), terms=TERMS)
  np.testing.assert_array_equal(ours["future_kl_abs_max"], np.abs(F).max())
  upper, lower = (w >= 1.2 - limit()).mean(), (w <= 0.8 + limit()).mean()
  assert upper > 0 and lower > 0
  close(
    [ours["weight_upper_fraction"], ours["weight_lower_fraction"], ours["weight_bound_fraction"]],
    [upper, lower, upper + lower],
  )


def test_ratio_statistics_by_sign():
  ours, token, _, _ = numbers()
  r, A = token["ratio"], token["advantage"]
  for side, x in (("negative", r[A < 0]), ("positive", r[A > 0])):
    np.testing.assert_array_equal(ours[f"{side}_ratio_max"], x.max())
    np.testing.assert_array_equal(ours[f"{side}_ratio_min"], x.min())
    close_quantiles([ours[f"{side}_ratio_p75"], ours[f"{side}_ratio_p999"]], x, [0.75, 0.999])
  close(ours["policy_kl"], -token["delta"].mean(), terms=TERMS, scale=SIZE)
  close(ours["advantage_mean"], A.mean(), terms=TERMS, scale=np.abs(A).max())


def test_mismatch_rejection_and_participation():
  ours, token, out, batch = numbers()
  close(ours["sampler_gap_mean"], 0.01, terms=TERMS, scale=np.nanmax(np.abs(batch.old_logp)))
  close(ours["participation_fraction"], token["participation"].mean())
  logp, batch = packed(spread=1.5)
  out = losses.fipo(logp, batch, dual_clip=2.0)
  valid, keep = np.asarray(batch.mask) > 0, np.asarray(out.per_token["keep"]) > 0
  segments = np.asarray(batch.segments)
  lost = {(r, segments[r, t]) for r, t in zip(*np.nonzero(valid & ~keep), strict=True)}
  assert lost
  close(out.metrics["rejected_sequence_fraction"].value(), len(lost) / 6)
  close(out.metrics["rejected_token_fraction"].value(), (valid & ~keep).sum() / valid.sum())
