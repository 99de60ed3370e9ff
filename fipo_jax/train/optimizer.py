"""AdamW or Muon with warm-up and global-norm clipping, as one Optax chain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

OPTIMIZERS = ("adamw", "muon")
# Both of arXiv 2502.16982: with this scale an orthogonal update is as large as AdamW's, so that rates carry over.
MUON_UPDATE_RMS = 0.2
MUON_MOMENTUM = 0.95


def schedule(*, learning_rate: float, warmup_updates: int, total_updates: int, kind: str) -> optax.Schedule:
  """Learning rate per optimizer update, counted from 0.

      lr(u) = learning_rate * min((u + 1) / warmup, 1)                          constant
      lr(u) = as above until warm-up ends, then half a cosine down to 0          cosine

  The released FIPO script steps its warm-up once per rollout, so its first 8 updates have rate 0; here every update
  counts. Raises ValueError for an unknown kind.
  """
  if kind not in ("constant", "cosine"):
    raise ValueError(f"optimizer.schedule={kind!r}: expected 'constant' or 'cosine'.")
  warm = max(warmup_updates, 1)
  ramp = optax.linear_schedule(learning_rate / warm, learning_rate, warm - 1)
  if kind == "constant":
    return ramp
  fall = optax.cosine_decay_schedule(learning_rate, max(total_updates - warm, 1))
  return optax.join_schedules([ramp, fall], [warm])


def make_optimizer(
  learning_rate: optax.Schedule,
  *,
  b1: float,
  b2: float,
  eps: float,
  weight_decay: float,
  clip_norm: float,
  name: str,
  momentum_dtype: str = "",
  matrix_axes: Any = None,
  scales: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
  """Clip by global norm, then the named optimizer; decoupled weight decay on all parameters (as the released script).

      adamw   Loshchilov & Hutter 2019, with the hyperparameters of arXiv 2603.19835 Table 2
      muon    momentum of each matrix made orthogonal by Newton-Schulz iterations, scaled to AdamW's size; AdamW with
              Nesterov momentum for embeddings, head, norms and biases. About half as many samples as AdamW where
              small models learn from scratch. Optax's; arXiv 2502.16982.

  Args:
    learning_rate: per update, counted from 0. name: a row of OPTIMIZERS. clip_norm: bound on the global gradient norm.
    momentum_dtype: of the stored first moment (of muon its momentum); "": that of the gradients. The second moment
      keeps the parameters': its changes, 1 - b2 of it at a time, would be lost in bfloat16.
    b1, b2, eps: of Adam. weight_decay: per update, times the learning rate.
    matrix_axes: for muon: a tree like the parameters, ((input axes), (output axes)) of a matrix and None for the
      rest (`Model.matrix_axes`).
    scales: factor on the learning rate of a top-level part of the parameters, by its name; the rest have 1.
  Raises: ValueError for an unknown name.
  """
  if name not in OPTIMIZERS:
    raise ValueError(f"optimizer.name={name!r}: expected one of {', '.join(map(repr, OPTIMIZERS))}.")
  kept = dict(eps=eps, weight_decay=weight_decay, mu_dtype=momentum_dtype or None)
  if name == "adamw":
    chain = optax.adamw(learning_rate, b1=b1, b2=b2, **kept)
  else:
    is_axes = lambda x: x is None or isinstance(x, tuple)
    dimensions = lambda axes: None if axes is None else MuonDimensionNumbers(*axes)
    chain = muon(
      learning_rate, beta=MUON_MOMENTUM, consistent_rms=MUON_UPDATE_RMS, **kept,
      adam_b1=b1, adam_b2=b2, adam_weight_decay=weight_decay,
      muon_weight_dimension_numbers=jax.tree.map(dimensions, matrix_axes, is_leaf=is_axes),
    )  # fmt: skip
  parts = [optax.clip_by_global_norm(clip_norm), chain]
  return optax.chain(*parts, _scaled(scales)) if scales else optax.chain(*parts)


def _scaled(scales: Mapping[str, float]) -> optax.GradientTransformation:
  """Multiplies the updates of top-level parts; both optimizers' updates are proportional to their learning rate."""

  def update(updates, state, params=None):
    del params
    scale = lambda name, tree: jax.tree.map(lambda x: x * scales[name], tree) if name in scales else tree
    return {name: scale(name, tree) for name, tree in updates.items()}, state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
