"""AdamW with warm-up and global-norm clipping, as one Optax chain."""

from __future__ import annotations

import optax


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
  learning_rate: optax.Schedule, *, b1: float, b2: float, eps: float, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
  """Clip by global norm, Adam, decoupled weight decay on all parameters (as the released script), learning rate.

  Source: Loshchilov & Hutter 2019; hyperparameters of arXiv 2603.19835 Table 2.
  """
  return optax.chain(
    optax.clip_by_global_norm(clip_norm),
    optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
    optax.add_decayed_weights(weight_decay),
    optax.scale_by_learning_rate(learning_rate),
  )
