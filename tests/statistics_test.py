"""Figures of n samples per problem: by hand, and against counting every subset and every sign."""

import collections
import itertools
import math

import numpy as np
import pytest

from fipo_jax.evaluation import statistics
from tests.tolerances import close


def test_the_ks_are_powers_of_two_and_n():
  assert [statistics.ks(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


@pytest.mark.parametrize("n", [1, 5, 6])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n):
  for right in range(n + 1):
    samples = [1] * right + [0] * (n - right)
    for k in range(1, n + 1):
      share = np.mean([max(s) for s in itertools.combinations(samples, k)])
      close(statistics.pass_at(right, n, k), share, terms=20, dtype=np.float64, scale=1)


@pytest.mark.parametrize("votes", ["aaabbc", "aabb", "abcdef", "aaaa", "a", "aabbbcd"])
def test_cons_at_k_is_the_mean_over_subsets_with_ties_shared(votes):
  """An answer is worth the mean of its samples; "a" is right in all of them, "b" in its first sample alone."""
  values = [float(v == "a" or (v == "b" and i == votes.index("b"))) for i, v in enumerate(votes)]
  worth = {v: np.mean([x for w, x in zip(votes, values, strict=True) if w == v]) for v in votes}

  def agreed(subset):
    counts = collections.Counter(votes[i] for i in subset)
    return np.mean([worth[v] for v, count in counts.items() if count == max(counts.values())])

  got = statistics.cons_at(list(votes), values)
  assert [*got] == statistics.ks(len(votes))
  for k, value in got.items():
    subsets = [*itertools.combinations(range(len(votes)), k)]
    close(value, np.mean([agreed(s) for s in subsets]), terms=len(subsets), dtype=np.float64, scale=1)


def test_cons_at_many_samples_stays_a_share():
  """Numbers of subsets are beyond 2⁵³ at 64 samples; their ratio is not."""
  rng = np.random.default_rng(0)
  votes = [str(v) for v in rng.integers(9, size=64)]
  got = statistics.cons_at(votes, [float(v == "3") for v in votes])
  assert all(0 <= value <= 1 for value in got.values())
  close(got[1], votes.count("3") / 64, terms=64, dtype=np.float64, scale=1)


def test_the_interval_over_problems_has_the_width_of_its_standard_error():
  accuracy = np.random.default_rng(1).random(400)
  error = accuracy.std() / math.sqrt(400)
  low, high = statistics.over_problems({"x": accuracy})["x"]
  np.testing.assert_allclose([low, high], accuracy.mean() + np.array([-1.96, 1.96]) * error, atol=0.1 * error)


def test_problems_that_a_metric_does_not_cover_are_left_out():
  found = statistics.over_problems({"some": [0.5, math.nan, 0.5], "same": [1.0, 1.0, 1.0], "none": [math.nan] * 3})
  assert found["some"] == (0.5, 0.5) and found["same"] == (1.0, 1.0) and np.isnan(found["none"]).all()


def test_drawing_samples_anew_widens_the_interval_by_their_own_spread():
  """Problems that are all alike: what is left is the spread of their samples."""
  value_Pn = np.tile([0.0, 1.0], (100, 1))
  assert statistics.over_problems({"x": value_Pn.mean(axis=1)})["x"] == (0.5, 0.5)
  error = 0.5 / math.sqrt(200)
  low, high = statistics.over_problems_and_samples(value_Pn)
  np.testing.assert_allclose([low, high], 0.5 + np.array([-1.96, 1.96]) * error, atol=0.2 * error)
  pairs = [([0.0, 1.0], [1.0, 1.0])] * 100
  low, high = statistics.of_paired_samples(pairs)
  np.testing.assert_allclose([low, high], 0.5 + np.array([-1.96, 1.96]) * error, atol=0.2 * error)


@pytest.mark.parametrize(("difference", "p"), [
  ([1.0, 1.0, 1.0], 2 / 8), ([1.0, 1.0, -1.0], 1.0), ([0.0, 0.0], 1.0), ([0.0, 2.0, 1.0, 1.0, 1.0], 2 / 16),
  ([0.1 + 0.2, -0.3], 1.0),  # equal but for rounding
])  # fmt: skip
def test_permutation_by_hand(difference, p):
  assert statistics.permutation_test(difference) == p


def test_many_differences_are_tried_by_chance():
  """p of the sum of many differences is that of a normal distribution."""
  d = np.random.default_rng(2).normal(0.15, 1.0, size=200)
  z = abs(d.sum()) / math.sqrt((d**2).sum())
  np.testing.assert_allclose(statistics.permutation_test(d), math.erfc(z / math.sqrt(2)), atol=0.015)
  assert statistics.permutation_test(np.ones(40)) == 1 / 10_001


def test_signs_by_hand():
  assert statistics.sign_test([1.0, 0.5, -0.1, 0.0]) == (2, 1, 1.0)
  assert statistics.sign_test([0.5] * 5) == (5, 0, 2 / 32)
  assert statistics.sign_test([0.0]) == (0, 0, 1.0)


def test_quantiles_by_hand():
  found = statistics.quantiles(range(101))
  assert found == {"min": 0, "p10": 10, "p25": 25, "median": 50, "p75": 75, "p90": 90, "p99": 99, "max": 100}
