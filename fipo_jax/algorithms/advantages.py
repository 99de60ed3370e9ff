"""Group-relative advantages, on the host, in float64.

Float64 is not a luxury: in float32 the mean of equal rewards can be off by one unit in the last
place, and the small epsilon below turns that into a visible advantage with one sign for the whole
group.
"""

from __future__ import annotations

import numpy as np


def group_relative(rewards_PG, epsilon: float = 1e-6, *, std_ddof: int | None = 1) -> np.ndarray:
  """How much better each sample is than its group, in deviations of the group.

      A[p, g] = (r[p, g] − mean_g r[p]) / (std_g r[p] + ε)

  A group of equal rewards gets exactly 0. A group of one has no statistics: mean 0 and deviation 1
  stand in.

  Args:
    rewards_PG: [P, G] rewards.
    std_ddof: 1 divides squares by G − 1, 0 by G; None leaves the deviation (and ε) out.
    epsilon: ε, in units of reward.
  Returns: [P, G] float64.
  Raises:
    ValueError: rewards are not [P, G], or std_ddof is none of 1, 0, None.
  Source: arXiv 2603.19835 eq. 1; the +ε and G − 1 are those of the published configuration.
  """
  rewards_PG = np.asarray(rewards_PG, np.float64)
  if rewards_PG.ndim != 2:
    raise ValueError(f"rewards_PG has shape {rewards_PG.shape}; expected [prompts, samples].")
  return np.array([_one_group(r, std_ddof, epsilon) for r in rewards_PG]).reshape(rewards_PG.shape)


def group_centred(rewards_PG) -> np.ndarray:
  """How much better each sample is than its group: A[p, g] = r[p, g] − mean_g r[p]; [P, G] float64.

  Raises ValueError as `group_relative`. Source: arXiv 2503.20783 section 3.
  """
  return group_relative(rewards_PG, std_ddof=None)


def leave_one_out(rewards_PG) -> np.ndarray:
  """How much better each sample is than the others of its group.

      A[p, g] = r[p, g] − mean_{h ≠ g} r[p, h] = G / (G − 1) · (r[p, g] − mean_h r[p, h])

  Returns: [P, G] float64. Raises ValueError as `group_relative`, and for groups of one, which have no others.
  Source: arXiv 2402.14740 section 2.
  """
  centred_PG = group_centred(rewards_PG)
  G = centred_PG.shape[1]
  if G < 2:
    raise ValueError(f"rewards_PG has shape {centred_PG.shape}; leaving one out needs at least 2 samples per prompt.")
  return centred_PG * (G / (G - 1))


def batch_normalised(rewards_PG, epsilon: float = 1e-8) -> np.ndarray:
  """How much better each sample is than the whole batch, in deviations of the batch.

      A[p, g] = (r[p, g] − mean r) / (std r + ε),    std over the batch, divided by its size

  Equal rewards, or a single one, give exactly 0. Returns: [P, G] float64. Raises ValueError as `group_relative`.
  Source: arXiv 2501.03262 section 3.
  """
  rewards_PG = np.asarray(rewards_PG, np.float64)
  if rewards_PG.size == 1:
    return np.zeros_like(rewards_PG)
  return group_relative(rewards_PG.reshape(1, -1), std_ddof=0, epsilon=epsilon).reshape(rewards_PG.shape)


def rewards_themselves(rewards_PG) -> np.ndarray:
  """For objectives that find their advantages elsewhere (`gae.gae`), or read none."""
  return np.asarray(rewards_PG, np.float64)


def _one_group(rewards_G: np.ndarray, std_ddof: int | None, epsilon: float) -> np.ndarray:
  if std_ddof not in (0, 1, None):
    raise ValueError(f"std_ddof={std_ddof!r}; use 1, 0, or None for no division.")
  if rewards_G.size == 1:
    return rewards_G if std_ddof is None else rewards_G / (1.0 + epsilon)
  if (rewards_G == rewards_G[:1]).all():
    return np.zeros_like(rewards_G)
  centred_G = rewards_G - rewards_G.mean()
  return centred_G if std_ddof is None else centred_G / (rewards_G.std(ddof=std_ddof) + epsilon)
