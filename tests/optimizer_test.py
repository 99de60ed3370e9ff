"""Schedule values by hand, and one AdamW step against the formula."""

import numpy as np
import pytest

from fipo_jax.train.optimizer import make_optimizer, schedule


def test_warmup_counts_every_update():
  rate = schedule(learning_rate=1.0, warmup_updates=4, total_updates=100, kind="constant")
  np.testing.assert_allclose([float(rate(u)) for u in (0, 1, 3, 50)], [0.25, 0.5, 1.0, 1.0])


def test_no_warmup_starts_at_full_rate():
  rate = schedule(learning_rate=0.5, warmup_updates=0, total_updates=10, kind="constant")
  assert float(rate(0)) == 0.5


def test_cosine_falls_to_zero_at_the_last_update():
  rate = schedule(learning_rate=1.0, warmup_updates=2, total_updates=12, kind="cosine")
  np.testing.assert_allclose([float(rate(u)) for u in (1, 2, 7, 12)], [1.0, 1.0, 0.5, 0.0], atol=1e-6)


def test_unknown_schedule_is_named():
  with pytest.raises(ValueError, match="optimizer.schedule='step'"):
    schedule(learning_rate=1.0, warmup_updates=2, total_updates=12, kind="step")


def test_one_step_is_clipped_adamw():
  rate = schedule(learning_rate=0.1, warmup_updates=0, total_updates=1, kind="constant")
  chain = make_optimizer(rate, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.5, clip_norm=1.0)
  p, g = np.array([1.0, -2.0], np.float32), np.array([30.0, 40.0], np.float32)
  update, _ = chain.update(g, chain.init(p), p)
  clipped = g / 50.0
  m, v = 0.1 * clipped / (1 - 0.9), 0.01 * clipped**2 / (1 - 0.99)
  np.testing.assert_allclose(update, -0.1 * (m / (np.sqrt(v) + 1e-8) + 0.5 * p), rtol=1e-5, atol=1e-6)
