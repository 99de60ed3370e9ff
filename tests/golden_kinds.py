"""How each kind of golden case is held against this project's functions; see golden_check.py.

Nothing is re-implemented here. What remains are adapters to the reference's conventions: its names,
its 1e-8 in float64 denominators, rows without tokens counting as sequences, 0 for a statistic of
nothing, and padded rows as single segments.
"""

from __future__ import annotations

import functools

import golden_other_kinds
import jax
import jax.numpy as jnp
import numpy as np
from golden_other_kinds import load, setting
from tolerances import limit

from fipo_jax.algorithms import aggregation, diagnostics, future_kl, losses
from fipo_jax.types import Batch

NORMS = {
  "token-mean": "global_token",
  "seq-mean-token-sum": "sequence_sum",
  "seq-mean-token-mean": "sequence_mean",
  "seq-mean-token-sum-norm": "sequence_sum",  # differs in the divisor only: see `divisor`
}
METRICS = {  # reference name -> ours
  "pg_clipfrac": "clip_fraction",
  "ppo_kl": "policy_kl",
  "pg_clipfrac_lower": "dual_clip_fraction",
  "influence_weights_mean": "weight_mean",
  "influence_weights_min": "weight_min",
  "influence_weights_max": "weight_max",
  "total_clip_frac": "weight_bound_fraction",
  "clip_frac_upper": "weight_upper_fraction",
  "clip_frac_lower": "weight_lower_fraction",
  "influence_weights_mean_raw": "raw_weight_mean",
  "raw_influence_weights_min": "raw_weight_min",
  "raw_influence_weights_max": "raw_weight_max",
  "neg_ratio_2_3": "negative_ratio_2_3",
  "neg_ratio_3_4": "negative_ratio_3_4",
  "neg_ratio_4_10": "negative_ratio_4_up",
  "neg_is_max": "negative_ratio_max",
  "neg_is_min": "negative_ratio_min",
  "neg_is_p75": "negative_ratio_p75",
  "neg_is_p995": "negative_ratio_p995",
  "neg_is_p999": "negative_ratio_p999",
  "pos_is_max": "positive_ratio_max",
  "pos_is_min": "positive_ratio_min",
  "pos_is_p25": "positive_ratio_p25",
  "pos_is_median": "positive_ratio_median",
  "pos_is_p75": "positive_ratio_p75",
  "pos_is_p995": "positive_ratio_p995",
  "pos_is_p999": "positive_ratio_p999",
  "pos_mini_frac": "positive_ratio_tiny",
}


def run(objective, z, dtype):
  """(TokenLoss, d total / d log_prob) of one padded case in this dtype, as NumPy.

  Padded to few shapes and run operation by operation: operations compile once for many cases, whole programs do not.
  """
  with jax.enable_x64(np.dtype(dtype) == np.float64):
    R, T = z["response_mask"].shape
    logp_RT, old_RT, mask_RT, advantages_RT = (
      framed(z[name], dtype) for name in ("log_prob", "old_log_prob", "response_mask", "advantages")
    )
    one_RT = framed(np.ones((R, T)), jnp.int32)
    batch = Batch(one_RT, one_RT, one_RT, mask_RT, advantages_RT, old_RT, old_RT, one_RT.astype(dtype))

    def total(logp_RT):
      out = objective(logp_RT, batch)
      return out.loss.total, out

    (_, out), gradient_RT = jax.value_and_grad(total, has_aux=True)(logp_RT)
    values = {name: metric.value() for name, metric in diagnostics.summarise(out.metrics).items()}
    per_token, gradient_RT = jax.tree.map(lambda x: np.asarray(x)[:R, :T], (out.per_token, gradient_RT))
    return *jax.tree.map(np.asarray, (out.loss, per_token, values)), gradient_RT


def framed(x_RT, dtype):
  """Zeros to the right and below, to the next multiples of 8 rows and 128 tokens."""
  R, T = x_RT.shape
  return jnp.asarray(np.pad(x_RT, [(0, -R % 8), (0, -T % 128)]), dtype)


def rounding(tokens: int, dtype) -> float:
  """Tolerance of what sums over a row are made of."""
  return float(limit(terms=tokens, dtype=dtype))


# The reference's metrics are rounded to float32, or divided by a count and 1e-8.
METRIC = float(limit(dtype=np.float32, room=1))


def clip_settings(config: dict) -> dict:
  base = setting(config, "clip_ratio", 0.2)
  return {
    "clip_low": setting(config, "clip_ratio_low", base),
    "clip_high": setting(config, "clip_ratio_high", base),
  }


def weight_clip(range_, high_only: bool):
  if not range_:
    return None
  return (1.0 if high_only else 1.0 - range_, 1.0 + range_)


def divisor(mode: str, kept: float, shape, epsilon: float) -> float:
  """What the reference divides the sum by: it counts rows without tokens, and the padded length."""
  by = {"token-mean": kept + epsilon, "seq-mean-token-sum-norm": shape[1]}
  return max(by.get(mode, shape[0]), 1e-8)


def expected_count(mode: str, kept_RT, mask_RT) -> float:
  """Our own count: kept tokens, or rows with any token."""
  return float(kept_RT.sum() if mode == "token-mean" else (mask_RT.sum(1) > 0).sum())


def excuse(z, mode: str, kept_RT, names) -> str:
  """Why the reference may be NaN where we are not: it multiplies by masks, and divides empty rows by their length."""
  reasons = []
  under = ~np.asarray(z["loss_mask" if "loss_mask" in z else "response_mask"]).astype(bool)
  if any(not np.isfinite(z[n][under]).all() for n in names if n in z and z[n].shape == under.shape):
    reasons.append("NaN or inf under the mask")
  if mode == "seq-mean-token-mean" and (kept_RT.sum(1) == 0).any():
    reasons.append("0/0 in a row without kept tokens")
  return ", ".join(reasons)


INPUTS = ("old_log_prob", "log_prob", "advantages")


def check_loss(report, z, mode, result, kept_RT, *, tolerance, epsilon, group, suffix=""):
  """Scalar loss, its count, and the gradient; returns the loss in the reference's normalisation."""
  loss, _, _, gradient_RT = result
  mask_RT = z["response_mask"].astype(bool)
  by = divisor(mode, kept_RT.sum(), kept_RT.shape, epsilon)
  why = excuse(z, mode, kept_RT, INPUTS)
  report.equal("count", float(loss.count), expected_count(mode, kept_RT, mask_RT))
  value = float(loss.total) / by
  if "pg_loss" + suffix in z:
    report.close(
      "pg_loss" + suffix, value, z["pg_loss" + suffix], tolerance, group=f"loss {group}", excuse=why
    )
  if not np.isfinite(value):
    report.mismatch(f"our loss is {value}")
  if "grad_log_prob" in z and not suffix:
    empty_R = (kept_RT.sum(1) == 0) & (mode == "seq-mean-token-mean")
    rows_RT = np.broadcast_to(~empty_R[:, None], kept_RT.shape)
    scale = np.nanmax(np.abs(z["grad_log_prob"]), initial=0.0) or 1.0
    report.close(
      "grad_log_prob", gradient_RT / by / scale, z["grad_log_prob"] / scale, tolerance,
      group=f"gradient {group}", where=rows_RT, excuse=why,
    )  # fmt: skip
  return value


def check_metrics(
  report, z, values, loss_value, tolerance, group, why, replaced=None, loosened=None
):
  """Every scalar the reference returns; `replaced` gives other reference values, `loosened` other tolerances."""
  reference = dict(
    zip(z.get("metric_names", np.array([])).tolist(), z.get("metric_values", []), strict=True)
  )
  for name, number in ({**reference, **(replaced or {})}).items():
    if name == "pg_loss":
      ours = loss_value
    elif name in METRICS and METRICS[name] in values:
      ours = float(values[METRICS[name]])
      ours = (
        0.0 if np.isnan(ours) and number == 0 else ours
      )  # a statistic of nothing is NaN here, 0 there
    else:
      report.mismatch(f"metric {name}: no counterpart here")
      continue
    raw = name in (loosened or {})
    report.close(
      f"metric {name}", ours, number, loosened[name] if raw else tolerance,
      group=f"{'raw ' if raw else ''}metrics {group}", excuse=why,
    )  # fmt: skip


def check_future_kl(report, folder, entry):
  z, mode = load(folder, entry["file"]), entry["loss_agg_mode"]
  dtype = z["log_prob"].dtype
  config, knobs = entry["config"], setting(entry["config"], "policy_loss", {})
  e = setting(knobs, "future_kl_clip_ratio", 0.0)
  common = clip_settings(config) | {
    "half_life_tokens": setting(knobs, "decay_rate", 128.0),
    "weight_clip": weight_clip(e, setting(knobs, "future_kl_clip_high_only", False)),
    "safety_threshold": setting(knobs, "safety_thresh", 4.0),
    "loss_norm": NORMS[mode],
  }
  c = setting(config, "clip_ratio_c", 3.0)
  objective = functools.partial(losses.fipo, dual_clip=c, **common)
  result = run(objective, z, dtype)
  compare_future_kl(report, z, mode, result, dtype)
  if dtype == np.float32:
    check_against_float64(report, z, mode, run(objective, z, np.float64), result)
  if "paper_f" in z or "paper_future_kl" in z:
    check_paper(report, z, common, c, dtype)


def compare_future_kl(report, z, mode, result, dtype):
  loss, token, values, _ = result
  single = dtype == np.float32
  group = "float32" if single else "float64"
  tolerance = rounding(z["log_prob"].shape[1], dtype)
  valid_RT = z["response_mask"].astype(bool)
  kept_RT = z["final_mask"].astype(bool) if "final_mask" in z else token["keep"].astype(bool)
  why = excuse(z, mode, kept_RT, INPUTS)
  per_token = {
    "kl_response_premask": ("delta", None),
    "future_kl": ("future_kl", None),
    "weights_after_clip": ("clipped_weight", valid_RT),
    "influence_weights": ("weight", valid_RT),
    "pg_losses": ("token_loss", valid_RT),
  }
  for name, (ours, where) in per_token.items():
    if name in z:
      report.close(name, token[ours], z[name], tolerance, group=group, where=where, excuse=why)
  tiny_RT = subnormal(report, z, valid_RT)
  for name, ours in (
    ("participation_mask", "participation"),
    ("dual_clip_mask", "dual_clipped"),
    ("final_mask", "keep"),
  ):
    if name in z:
      where = valid_RT & ~tiny_RT
      report.equal(name, token[ours].astype(np.uint8), z[name], where=where, group="masks")

  replaced, loosened = {}, {}
  if "influence_raw" in z and "future_kl" in z:
    replaced, loosened = check_raw(report, z, token, valid_RT, tolerance, group, why)
  value = check_loss(
    report, z, mode, result, kept_RT, tolerance=rounding(valid_RT.size, dtype), epsilon=0.0 if single else 1e-8,
    group=group,
  )  # fmt: skip
  tolerance = max(METRIC, tolerance)
  if tiny_RT.any():
    share = tolerance + tiny_RT.sum() / valid_RT.sum()
    loosened |= {"pg_clipfrac": share, "pg_clipfrac_lower": share}
  check_metrics(report, z, values, value, tolerance, group, why, replaced, loosened)


def subnormal(report, z, valid_RT):
  """[R, T] bool: tokens whose weight is so small that XLA on CPU flushes its products to 0.

  The loss there is 0 for every purpose, but "clipped" compares those products: such tokens are left
  out of that comparison, and said to be.
  """
  if "influence_weights" not in z:
    return np.zeros_like(valid_RT)
  weight_RT = z["influence_weights"]
  tiny_RT = valid_RT & (weight_RT > 0) & (weight_RT < np.finfo(weight_RT.dtype).tiny * 1e6)
  if tiny_RT.any():
    report.departure(
      f"pg_clipfrac: {tiny_RT.sum()} subnormal weights count as 0 here; compared without them"
    )
  return tiny_RT


def check_raw(report, z, token, valid_RT, tolerance, group, why):
  """exp(F): equal where the reference is finite; ours never overflows, its mean is held lower still.

  An error of F is multiplied by exp(F), so the tolerance is on F here too. Returns the metric
  values and tolerances to use.
  """
  raw_RT = z["influence_raw"]
  size_RT = np.maximum(1, np.abs(np.nan_to_num(z["future_kl"])))
  infinite_RT = np.isposinf(raw_RT)
  logs = [np.log(np.maximum(x.astype(np.float64), 1e-300)) for x in (token["raw_weight"], raw_RT)]
  with np.errstate(invalid="ignore", over="ignore"):
    relative_RT = np.expm1(logs[0] - logs[1])
  seen_RT = ~infinite_RT & (raw_RT > 1e-30)
  ours_RT = np.where(seen_RT, relative_RT / size_RT, 0)
  report.close(
    "influence_raw",
    ours_RT,
    np.where(np.isnan(raw_RT), np.nan, 0),
    tolerance,
    group=group,
    excuse=why,
  )
  largest = float(np.finfo(token["raw_weight"].dtype).max)
  if infinite_RT.any():
    report.equal(
      "influence_raw where inf",
      bool((token["raw_weight"][infinite_RT] > 0.99 * largest).all()),
      True,
    )
    report.departure(
      f"influence_raw: inf at {infinite_RT.sum()} places, ours held at the largest finite number"
    )
  loose = tolerance * float(size_RT[valid_RT].max(initial=1.0)) + METRIC
  names = ("influence_weights_mean_raw", "raw_influence_weights_min", "raw_influence_weights_max")
  limit = future_kl.summable_limit(token["raw_weight"].dtype)
  valid_raw = raw_RT[valid_RT].astype(np.float64)
  replaced = {}
  if (valid_raw > limit).any():
    replaced[names[0]] = np.minimum(valid_raw, limit).mean()
    report.departure(
      f"{names[0]}: {(valid_raw > limit).sum()} values held at {limit:.3g} before the mean"
    )
  for name, number in (
    (names[1], valid_raw.min(initial=np.inf)),
    (names[2], valid_raw.max(initial=-np.inf)),
  ):
    if np.isposinf(number) and valid_raw.size:
      replaced[name] = largest * (1 - 2e-5)
  return replaced, dict.fromkeys(names, loose)


def check_against_float64(report, z, mode, double, single):
  """A float32 file against the reference's float64 run: our float64 closely, our float32 loosely."""
  tokens = z["log_prob"].shape[1]
  for (_, token, _, _), dtype, group in (
    (double, np.float64, "float64 of float32"),
    (single, np.float32, "float32"),
  ):
    tolerance = rounding(tokens, dtype)
    for name, ours in (("future_kl_f64", "future_kl"), ("influence_weights_f64", "weight")):
      if name in z:
        where = z["response_mask"].astype(bool) if ours == "weight" else None
        report.close(name, token[ours], z[name], tolerance, group=group, where=where)
  if "pg_loss_f64" in z:
    kept_RT = double[1]["keep"].astype(bool)
    check_loss(
      report,
      z,
      mode,
      double,
      kept_RT,
      tolerance=rounding(kept_RT.size, np.float64),
      epsilon=1e-8,
      group="float64 of float32",
      suffix="_f64",
    )


def check_paper(report, z, common, c, dtype):
  """The paper's equations through the same function: other switches, and no dual clip, rejection or clamp."""
  settings = common | {"loss_norm": "global_token"}
  objective = functools.partial(
    losses.fipo, dual_clip=None, participation_ratio=c, participation_mask="negative_only", safety_mode="reset",
    sequence_reject_count=None, delta_clamp=None, **settings,
  )  # fmt: skip
  loss, token, _, _ = run(objective, z, dtype)
  valid_RT = z["response_mask"].astype(bool)
  tolerance = rounding(valid_RT.shape[1], dtype)
  for name, ours in (("paper_future_kl", "future_kl"), ("paper_f", "weight")):
    if name in z:
      report.close(name, token[ours], z[name], tolerance, group="paper equations", where=valid_RT)
  if "paper_pg_loss" in z:
    value = loss.total / max(loss.count, 1e-8)
    tolerance = rounding(valid_RT.size, dtype)
    report.close("paper_pg_loss", value, z["paper_pg_loss"], tolerance, group="paper equations")


def check_vanilla(report, folder, entry):
  z, mode = load(folder, entry["file"]), entry["loss_agg_mode"]
  objective = functools.partial(
    losses.dapo, dual_clip=setting(entry["config"], "clip_ratio_c", 3.0), loss_norm=NORMS[mode],
    **clip_settings(entry["config"]),
  )  # fmt: skip
  compare_plain(report, z, mode, objective)


def check_gspo(report, folder, entry):
  z, mode = load(folder, entry["file"]), "seq-mean-token-mean"  # whatever is asked for
  objective = functools.partial(
    losses.gspo, loss_norm=NORMS[mode], **{f"gspo_{k}": v for k, v in clip_settings(entry["config"]).items()}
  )
  compare_plain(report, z, mode, objective)


def compare_plain(report, z, mode, objective):
  dtype = z["log_prob"].dtype
  group, tolerance = np.dtype(dtype).name, rounding(z["log_prob"].size, dtype)
  valid_RT = z["response_mask"].astype(bool)
  why = excuse(z, mode, valid_RT, INPUTS)
  result = run(objective, z, dtype)
  for name, ours in (("pg_losses", "token_loss"), ("seq_ratio", "ratio")):
    if name in z:
      report.close(
        name, result[1][ours], z[name], tolerance, group=group, where=valid_RT, excuse=why
      )
  value = check_loss(
    report, z, mode, result, valid_RT, tolerance=tolerance, epsilon=0.0, group=group
  )
  check_metrics(report, z, result[2], value, max(METRIC, tolerance), group, why)


def check_agg(report, folder, entry):
  z = load(folder, entry["file"])
  dtype, mask_RT = z["loss_mat"].dtype, z["loss_mask"].astype(bool)
  (R, T), group, tolerance = mask_RT.shape, np.dtype(dtype).name, rounding(mask_RT.size, dtype)
  mask_dtype = setting(setting(entry, "config", {}), "mask_dtype", "int64")
  epsilon = 1e-8 if mask_dtype == "float64" else 0.0
  for mode, norm in NORMS.items():
    key = mode.replace("-", "_")
    if "loss_" + key not in z:
      continue
    with jax.enable_x64(dtype == np.float64):
      one_RT = framed(np.ones((R, T)), jnp.int32)
      batch = Batch(one_RT, one_RT, one_RT, *(one_RT.astype(dtype),) * 5)
      inside_RT = framed(mask_RT, bool)

      def total(loss_RT, batch=batch, inside_RT=inside_RT, norm=norm):
        mean = aggregation.aggregate(loss_RT, inside_RT, inside_RT, batch, loss_norm=norm)
        return mean.total, mean.count

      (sum_, count), gradient_RT = jax.value_and_grad(total, has_aux=True)(framed(z["loss_mat"], dtype))
      gradient_RT = gradient_RT[:R, :T]
    by = divisor(mode, mask_RT.sum(), mask_RT.shape, epsilon)
    why = excuse(z, mode, mask_RT, ("loss_mat",))
    report.equal("count", float(count), expected_count(mode, mask_RT, mask_RT))
    report.close(
      f"loss {mode}", float(sum_) / by, z["loss_" + key], tolerance, group=group, excuse=why
    )
    if "grad_" + key in z:
      empty_R = (mask_RT.sum(1) == 0) & (mode == "seq-mean-token-mean")
      rows_RT = np.broadcast_to(~empty_R[:, None], mask_RT.shape)
      ours = np.asarray(gradient_RT, np.float64) / by
      report.close(
        f"grad {mode}", ours, z["grad_" + key], tolerance, group=group, where=rows_RT, excuse=why
      )


def check_msswift(report, folder, entry):
  z, config = load(folder, entry["inputs_from"]), entry["config"]
  reference = load(folder, entry["file"])["influence_weights"]
  c = config.get("delta")
  objective = functools.partial(
    losses.fipo, dual_clip=c, participation_mask="off" if c is None else "all", delta_clamp=None,
    half_life_tokens=setting(config, "fipo_decay_rate", 32.0), raw_cap=None, sequence_reject_count=None,
    weight_clip=weight_clip(config.get("fipo_clip_range"), setting(config, "fipo_clip_high_only", True)),
    safety_threshold=setting(config, "fipo_safety_threshold", 4.0),
  )  # fmt: skip
  _, token, _, _ = run(objective, z, z["log_prob"].dtype)
  valid_RT = z["response_mask"].astype(bool)
  why = excuse(z, "", valid_RT, INPUTS)
  report.close(
    "influence_weights",
    token["weight"],
    reference,
    rounding(valid_RT.shape[1], z["log_prob"].dtype),
    where=valid_RT,
    excuse=why,
  )


KINDS = {
  "future_kl": check_future_kl,
  "vanilla": check_vanilla,
  "gspo": check_gspo,
  "agg_loss": check_agg,
  "grpo": golden_other_kinds.check_grpo,
  "overlong": golden_other_kinds.check_overlong,
  "verifier": golden_other_kinds.check_verifier,
  "normalize": golden_other_kinds.check_normalize,
  "validation": golden_other_kinds.check_validation,
  "msswift_weights": check_msswift,
  "qwen2": golden_other_kinds.check_qwen2,
  "qwen2_tokenizer": golden_other_kinds.check_tokenizer,
}
