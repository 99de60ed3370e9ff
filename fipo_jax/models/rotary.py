"""Rotary position embedding: angles, their scaling for longer texts (YaRN), and the turn itself."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Yarn:
  """YaRN: pairs of channels that turn slowly turn `factor` times slower, fast ones as before, the rest by a ramp.

      frequency[i] = θ^(-2i / h) (1 - r[i] + r[i] / factor),   r[i] = clip((i - low) / (high - low), 0, 1)
      low = ⌊d(beta_fast)⌋,  high = ⌈d(beta_slow)⌉,            d(n) = h ln(original_max_position / 2πn) / (2 ln θ)

  d(n) is the pair that turns n times over the original positions. Cosines and sines are multiplied by a number that
  makes attention sharper, `scale`. Fields are those of config.json: attention_factor is that number where it is not
  None; truncate: whether low and high are rounded as above.

  Raises:
    ValueError: a number is out of range.
  Source: arXiv 2309.00071; defaults, limits and names as in Hugging Face transformers 5, modeling_rope_utils.py.
  """

  factor: float
  original_max_position: int
  attention_factor: float | None = None
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  mscale: float = 0.0
  mscale_all_dim: float = 0.0
  truncate: bool = True

  def __post_init__(self):
    if self.factor < 1:
      raise ValueError(f"yarn's factor={self.factor} must be at least 1.")
    if self.original_max_position < 1:
      raise ValueError(f"yarn's original_max_position_embeddings={self.original_max_position} must be at least 1.")
    if self.attention_factor is not None and self.attention_factor <= 0:
      raise ValueError(f"yarn's attention_factor={self.attention_factor} must be above 0.")
    if not 0 < self.beta_slow <= self.beta_fast:
      raise ValueError(f"yarn's beta_slow={self.beta_slow} must be above 0 and at most beta_fast={self.beta_fast}.")

  @property
  def longest(self) -> int:
    """Positions that the scaled angles are made for."""
    return int(self.factor * self.original_max_position)

  @property
  def scale(self) -> float:
    """The factor on cosines and sines.

        attention_factor, or m(mscale) / m(mscale_all_dim) where both are given, or m(1);   m(x) = 0.1 x ln factor + 1
    """
    if self.attention_factor is not None:
      return self.attention_factor
    m = lambda x: 0.1 * x * math.log(self.factor) + 1
    return m(self.mscale) / m(self.mscale_all_dim) if self.mscale and self.mscale_all_dim else m(1)

  def slowing(self, head_dim: int, theta: float) -> np.ndarray:
    """1 - r + r / factor of each pair of channels: [h/2] float32."""
    turned = lambda n: head_dim * math.log(self.original_max_position / (2 * math.pi * n)) / (2 * math.log(theta))
    low, high = turned(self.beta_fast), turned(self.beta_slow)
    if self.truncate:
      low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high += 0.001 if low == high else 0
    ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0, 1)
    return (1 - ramp + ramp / self.factor).astype(np.float32)


def rotation(positions, head_dim: int, theta: float, yarn: Yarn | None = None):
  """Cosines and sines of rotary position embedding, one angle per position and pair of channels.

      angle[p, i] = p · θ^(-2i / h),   i = 0 .. h/2 - 1

  Args:
    positions: [...] int32. yarn: scales frequencies, cosines and sines, as it says.
  Returns:
    (cos, sin), each [..., 1, h/2] float32; the 1 is the heads axis.
  Source: arXiv 2104.09864.
  """
  frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  if yarn is not None:
    frequency *= yarn.slowing(head_dim, theta)
  angle = positions[..., None, None].astype(jnp.float32) * frequency
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  return (cos, sin) if yarn is None else (cos * yarn.scale, sin * yarn.scale)


def rotate(x, cos, sin):
  """Applies rotary embedding in the half-split convention: channel i is paired with channel i + h/2.

      y[i] = x[i] cos - x[i + h/2] sin,   y[i + h/2] = x[i + h/2] cos + x[i] sin

  Args:
    x: [..., heads, h]. cos, sin: [..., 1, h/2] float32, of `rotation`.
  """
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(x.dtype)
