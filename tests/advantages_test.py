"""Group-relative advantages: by hand, against the reference, and where rounding would show."""

import pathlib

import numpy as np
import pytest
from tolerances import close

from fipo_jax.algorithms.advantages import group_relative

GOLDEN = pathlib.Path(__file__).parent / "golden"


def test_by_hand():
  rewards = [[1.0, -1.0, -1.0, -1.0]]  # mean -1/2; deviations from it 3/2, -1/2 three times; squares add to 3
  np.testing.assert_array_equal(group_relative(rewards, epsilon=0.0), [[1.5, -0.5, -0.5, -0.5]])
  biased = np.array([[1.5, -0.5, -0.5, -0.5]]) / np.sqrt(0.75)
  close(group_relative(rewards, std_ddof=0, epsilon=0.0), biased, terms=4, dtype=np.float64)
  np.testing.assert_array_equal(group_relative(rewards, std_ddof=None), [[1.5, -0.5, -0.5, -0.5]])
  np.testing.assert_array_equal(group_relative(rewards, epsilon=1.0), [[0.75, -0.25, -0.25, -0.25]])


def test_equal_rewards_give_exactly_zero():
  for value in (0.1, 0.7, -1.0, 1e9 + 0.3):
    assert (group_relative(np.full((1, 7), value)) == 0).all()
    assert (group_relative(np.full((1, 7), value, np.float32)) == 0).all()


def test_groups_of_one():
  close(group_relative([[0.5], [-2.0]]), [[0.5 / 1.000001], [-2.0 / 1.000001]], dtype=np.float64)
  np.testing.assert_array_equal(group_relative([[0.5]], std_ddof=None), [[0.5]])


def test_golden_interleaved_groups():
  z = np.load(GOLDEN / "grpo_p03_interleaved_singletons.npz")
  rewards, keys, ours = z["token_level_rewards"].sum(1), z["index"], np.zeros(len(z["index"]))
  for key in np.unique(keys):
    ours[keys == key] = group_relative(rewards[keys == key][None])[0]
  close(ours[:, None] * z["response_mask"], z["advantages"])  # the reference divides single rows in float32


def test_mistakes_are_named():
  with pytest.raises(ValueError, match="std_ddof=2"):
    group_relative([[1.0, 2.0]], std_ddof=2)
  with pytest.raises(ValueError, match="rewards_PG has shape"):
    group_relative([1.0, 2.0])
