"""Ablations of FIPO's weight: what each keeps, and that the untouched weight gives FIPO back."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses_test import TERMS, packed, responses, value_and_grad
from tolerances import close

from fipo_jax.algorithms import CONTROLS, control, controls, losses

SETTINGS = dict(
  delta_clamp=20.0, dual_clip=10.0, participation_ratio=None, half_life_tokens=4.0, participation_mask="all",
  weight_clip=(0.8, 1.2), raw_cap=10.0, safety_mode="clamp", safety_threshold=3.0,
)  # fmt: skip


def case(kind, key=0):
  """(weights of fipo, weights g of the control, its metrics, batch, logp), NaN outside the mask."""
  logp, batch = packed()
  micro = jax.tree.map(lambda x: x[None], batch)
  changed, metrics = control(micro, logp[None], jax.random.key(key), kind=kind, **SETTINGS)
  names = ("weight_clip", "raw_cap", "safety_mode", "safety_threshold", "half_life_tokens")
  f = losses.fipo(logp, batch, **{name: SETTINGS[name] for name in names}).per_token["weight"]
  valid = np.asarray(batch.mask) > 0
  g = np.where(valid, np.asarray(changed.advantages[0]) / np.asarray(batch.advantages), np.nan)
  return np.where(valid, f, np.nan), g, metrics, changed, logp


def test_constant_is_the_mean():
  f, g, metrics, _, _ = case("constant")
  close(g[~np.isnan(g)], np.nanmean(f), terms=TERMS)
  close(metrics["weight_mean"].value(), np.nanmean(f), terms=TERMS)
  assert np.nanstd(f) > 0.05


def test_permuted_keeps_the_weights_of_a_response():
  f, g, metrics, batch, _ = case("permuted")
  moved = 0
  for r, tokens in responses(jax.tree.map(lambda x: x[0], batch)):
    close(np.sort(g[r, tokens]), np.sort(f[r, tokens]))
    moved += (np.abs(g[r, tokens] - f[r, tokens]) > 1e-3).sum()
  assert moved > 5
  close(metrics["weight_mean"].value(), np.nanmean(f), terms=TERMS)
  assert not np.allclose(g, case("permuted", key=1)[1], equal_nan=True)


def test_past_looks_the_other_way():
  logp, batch = packed()
  _, g, _, _, _ = case("past")
  valid = np.asarray(batch.mask) > 0
  d = np.clip(np.where(valid, np.asarray(logp) - np.asarray(batch.old_logp), 0), -20, 20)
  for r, tokens in responses(batch):
    for t in tokens:
      before = [k for k in tokens if k <= t and d[r, k] <= np.log(10)]
      weight = np.clip(np.exp(sum(2.0 ** (-(t - k) / 4) * d[r, k] for k in before)), 0.8, 1.2)
      if batch.advantages[r, t] < 0 and np.exp(d[r, t]) > 3:
        weight = np.clip(weight, 0.8, 1.0)
      close(g[r, t], weight, terms=TERMS, scale=5)  # of the shifts that are added up, before exp


def test_weights_multiplied_into_advantages_are_fipo():
  """The path of the controls, with the weights left as they are: same loss, gradient and rejection."""
  logp, batch = packed(spread=1.5)
  hyper = dict(weight_clip=(0.8, 1.2), half_life_tokens=4.0, safety_threshold=3.0, dual_clip=2.0)
  whole, gradient = value_and_grad(functools.partial(losses.fipo, **hyper), logp, batch)
  assert (whole.per_token["keep"] == 0)[batch.mask > 0].any()
  moved = dataclasses.replace(batch, advantages=batch.advantages * whole.per_token["weight"])
  unit = functools.partial(losses.fipo, **hyper | {"weight_clip": (1.0, 1.0)})
  same, same_gradient = value_and_grad(unit, logp, moved)
  close(same.loss.total, whole.loss.total, terms=TERMS)
  close(same_gradient, gradient)
  np.testing.assert_array_equal(same.per_token["keep"], whole.per_token["keep"])


def test_permute_stays_within_a_class():
  x = jnp.arange(8.0)
  classes = jnp.array([1, 1, 0, 2, 2, 2, 0, 3])
  y = controls.permute(x, classes, jnp.array([0.9, 0.1, 0.5, 0.3, 0.1, 0.2, 0.4, 0.0]))
  np.testing.assert_array_equal(y, [1, 0, 6, 4, 5, 3, 2, 7])


def test_unknown_control_is_named():
  logp, batch = packed()
  for kind in ("none", "future"):
    with pytest.raises(ValueError, match=f"control='{kind}'; choose one of {', '.join(CONTROLS[1:])}"):
      control(batch, logp, jax.random.key(0), kind=kind, **SETTINGS)
