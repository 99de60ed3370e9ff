"""Angles and turns by hand, and YaRN against its definition pair by pair."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import close

from fipo_jax.models.rotary import Yarn, rotate, rotation

CARD = Yarn(factor=4.0, original_max_position=32768)  # of Qwen2.5 beyond 32,768 tokens


def test_rotation_by_hand():
  # h = 2: one pair, frequency 1. Position 3 turns (1, 0) by 3 radians, and keeps lengths.
  cos, sin = rotation(jnp.array([0, 3]), 2, 10000.0)
  turned = rotate(jnp.array([[[1.0, 0.0]], [[1.0, 0.0]]]), cos, sin)
  close(turned[:, 0], [[1, 0], [np.cos(3), np.sin(3)]])


def test_yarn_by_hand():
  """h = 8, θ = 10^4: pairs 1, 10^-1, 10^-2, 10^-3. 200π positions are 100, 10, 1, 0.1 turns."""
  yarn = Yarn(factor=2.0, original_max_position=628, beta_fast=50.0, beta_slow=0.5)
  # d(50) = 0.30 and d(0.5) = 2.3 are 0 and 3: a ramp of 0, 1/3, 2/3, 1, from as before to half as fast.
  close(yarn.slowing(8, 1e4), [1, 5 / 6, 2 / 3, 1 / 2])
  cos, sin = rotation(jnp.array([7]), 8, 1e4, yarn)
  angle = 7 * np.array([1, 0.1, 0.01, 0.001]) * [1, 5 / 6, 2 / 3, 1 / 2]
  sharper = 0.1 * math.log(2) + 1
  close(cos[0, 0], sharper * np.cos(angle))
  close(sin[0, 0], sharper * np.sin(angle))


def test_yarn_of_the_model_card():
  """Heads of 128, θ = 10^6: 32 turns fall on pair 23.6, one turn on 39.6."""
  slowing = CARD.slowing(128, 1e6)
  np.testing.assert_array_equal(slowing[:24], 1)
  np.testing.assert_array_equal(slowing[40:], 0.25)
  close(slowing[24:40], 1 - 0.75 * np.arange(1, 17) / 17)
  assert CARD.longest == 131072 and CARD.scale == 0.1 * math.log(4) + 1


@pytest.mark.parametrize(("fields", "scale"), [
  ({"attention_factor": 1.5}, 1.5), ({"mscale": 2.0}, 0.1 * math.log(4) + 1), ({"factor": 1.0}, 1.0),
  ({"mscale": 1.0, "mscale_all_dim": 0.5}, (0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1)),
])  # fmt: skip
def test_yarn_scale(fields, scale):
  close(dataclasses.replace(CARD, **fields).scale, scale, dtype=np.float64)


def test_yarn_limits():
  """Short originals put both ends of the ramp before the first pair; without rounding its ends lie between pairs."""
  short = Yarn(factor=4.0, original_max_position=4)
  close(short.slowing(8, 1e4), [1, 0.25, 0.25, 0.25])
  exact = Yarn(factor=2.0, original_max_position=628, beta_fast=50.0, beta_slow=0.5, truncate=False)
  low, high = (4 * math.log10(628 / (2 * math.pi * n)) / 4 for n in (50, 0.5))
  close(exact.slowing(8, 1e4), 1 - 0.5 * np.clip((np.arange(4) - low) / (high - low), 0, 1))


@pytest.mark.parametrize(("fields", "message"), [
  ({"factor": 0.5}, "factor=0.5 must be at least 1"), ({"original_max_position": 0}, "original_max_position_embedd"),
  ({"attention_factor": 0.0}, "attention_factor=0.0"), ({"beta_fast": 0.5}, "beta_slow=1.0 .* at most beta_fast=0.5"),
])  # fmt: skip
def test_yarn_out_of_range(fields, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CARD, **fields)
