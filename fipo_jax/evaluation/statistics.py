"""What n samples per problem say: pass@k, cons@k, intervals by bootstrap, and tests of paired differences.

Arrays are [P] or [P, n]: a problem, and its samples. Everything is a function of its arguments: the draws of a
bootstrap or of a permutation come from a generator of fixed seed, so that the same samples give the same figures.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence

import numpy as np

DRAWS = 10_000  # of problems; the ends of an interval then move by about 1% of its width
DRAWS_WITH_SAMPLES = 2_000  # of problems and of their samples, which costs n times as much
SEED = 0
LEVEL = 0.95
EXACT_SIGNS = 14  # so many differences that are not 0: all 2¹⁴ signs are tried
EPSILON = 1e-12  # differences of means that are equal by their arithmetic differ by less
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)

Interval = tuple[float, float]


def ks(n: int) -> list[int]:
  """1, 2, 4, ... below n, and n."""
  return [2**i for i in range(n.bit_length()) if 2**i < n] + [n]


def pass_at(right: int, n: int, k: int) -> float:
  """Chance that of k samples, drawn without replacement from n of which `right` are right, one is.

      pass@k = 1 - C(n - right, k) / C(n, k)

  Unbiased for k independent samples. Source: arXiv 2107.03374 eq. 1.
  """
  return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def cons_at(votes: Sequence[str], values: Sequence[float]) -> dict[int, float]:
  """k -> mean value of the most frequent answer of k samples drawn without replacement, for the `ks` of n samples.

  Answers that share the highest count share the vote in equal parts: what an order of the samples would break a tie by
  is chance. An answer is worth the mean of its samples' values. Exact, by counting: over subsets in which the
  highest count is a, answer by answer, the number of subsets of each size and of tied answers (total) is carried along
  with the sum of their values (worth).

  Args: votes: the answer of each sample. values: what each sample is worth, its accuracy.
  """
  n = len(votes)
  own = collections.defaultdict(list)
  for vote, value in zip(votes, values, strict=True):
    own[vote].append(value)
  answers = [(len(v), float(np.mean(v))) for v in own.values()]
  most = max(count for count, _ in answers)
  found = np.zeros(n + 1)
  for a in range(1, most + 1):
    tied_most = n // a
    total, worth = np.zeros((2, n + 1, tied_most + 1))  # [size of the subset, answers that have a of it]
    total[0, 0] = 1.0
    for count, value in answers:
      t, w = total.copy(), worth.copy()  # none of this answer
      for b in range(1, min(count, a) + 1):
        ways = math.comb(count, b)
        if b < a:
          t[b:] += ways * total[:-b]
          w[b:] += ways * worth[:-b]
        else:
          t[b:, 1:] += ways * total[:-b, :-1]
          w[b:, 1:] += ways * (worth[:-b, :-1] + value * total[:-b, :-1])
      total, worth = t, w
    found += (worth[:, 1:] / np.arange(1, tied_most + 1)).sum(axis=1)
  return {k: float(found[k] / math.comb(n, k)) for k in ks(n)}


def quantiles(values: Sequence[float]) -> dict[str, float]:
  """"min", "p10", ..., "max" -> value; linear between neighbours."""
  names = {0.0: "min", 0.5: "median", 1.0: "max"}
  found = np.quantile(np.asarray(values, float), QUANTILES)
  return {names.get(q, f"p{round(100 * q)}"): float(x) for q, x in zip(QUANTILES, found, strict=True)}


def over_problems(columns: Mapping[str, Sequence[float]]) -> dict[str, Interval]:
  """Name -> 95% interval of the mean over problems, by drawing as many problems with replacement, the same for all.

  A column may hold NaN for problems that it does not cover; a mean is over the others. Percentiles of the draws.
  """
  names, value_PM = list(columns), np.array([*columns.values()], float).T
  known_PM = ~np.isnan(value_PM)
  value_PM = np.where(known_PM, value_PM, 0.0)
  rng, problems = np.random.default_rng(SEED), len(value_PM)
  means = np.empty((DRAWS, len(names)))
  step = max(1, 20_000_000 // problems)
  for start in range(0, DRAWS, step):
    size = min(step, DRAWS - start)
    times_NP = rng.multinomial(problems, np.full(problems, 1 / problems), size=size).astype(float)
    with np.errstate(invalid="ignore"):
      means[start : start + size] = (times_NP @ value_PM) / (times_NP @ known_PM)
  return {name: _middle(means[:, m]) for m, name in enumerate(names)}


def over_problems_and_samples(value_Pn: np.ndarray) -> Interval:
  """95% interval of the mean, drawing problems, and of each its n samples anew: what another evaluation might give.

  Drawing problems alone holds each problem's mean for exact, and is nearly the same where n is large.
  """
  problems, n = value_Pn.shape
  rng = np.random.default_rng(SEED)
  means = np.empty(DRAWS_WITH_SAMPLES)
  for i in range(DRAWS_WITH_SAMPLES):
    row_P = rng.integers(problems, size=problems)
    means[i] = value_Pn[row_P[:, None], rng.integers(n, size=(problems, n))].mean()
  return _middle(means)


def of_paired_samples(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Interval:
  """95% interval of the mean over problems of mean(second) - mean(first), drawing problems and their samples anew."""
  first_Pn, second_Pm = (np.array(column, float) for column in zip(*pairs, strict=True))
  problems = len(first_Pn)
  rng = np.random.default_rng(SEED)
  means = np.empty(DRAWS_WITH_SAMPLES)
  for i in range(DRAWS_WITH_SAMPLES):
    row_P1 = rng.integers(problems, size=(problems, 1))
    drawn = [x[row_P1, rng.integers(x.shape[1], size=x.shape)].mean() for x in (first_Pn, second_Pm)]
    means[i] = drawn[1] - drawn[0]
  return _middle(means)


def permutation_test(difference_P: Sequence[float]) -> float:
  """Two-sided p-value of mean difference 0, were each problem's difference as likely to have the other sign.

  All signs where at most EXACT_SIGNS differences are not 0, else DRAWS of them, the observed one counted among them.
  Makes no assumption of a distribution; it is the sign test where all differences have one size.
  """
  d = np.asarray(difference_P, float)
  d = d[np.abs(d) > EPSILON]
  if not len(d):
    return 1.0
  observed = abs(d.sum()) - EPSILON * len(d)
  if len(d) <= EXACT_SIGNS:
    sums = np.zeros(1)
    for x in d:
      sums = np.concatenate([sums + x, sums - x])
    return float((np.abs(sums) >= observed).mean())
  rng = np.random.default_rng(SEED)
  sums = np.concatenate([(2 * rng.integers(2, size=(500, len(d))) - 1) @ d for _ in range(DRAWS // 500)])
  return float((1 + (np.abs(sums) >= observed).sum()) / (1 + DRAWS))


def sign_test(difference_P: Sequence[float]) -> tuple[int, int, float]:
  """(problems that gained, that lost, two-sided binomial p-value of as many); without a difference: no say."""
  d = np.asarray(difference_P, float)
  up, down = int((d > EPSILON).sum()), int((d < -EPSILON).sum())
  n = up + down
  tail = sum(math.comb(n, i) for i in range(min(up, down) + 1)) / 2**n
  return up, down, min(1.0, 2 * tail)


def _middle(draws: np.ndarray) -> Interval:
  draws = draws[~np.isnan(draws)]
  if not len(draws):
    return math.nan, math.nan
  low, high = np.quantile(draws, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
  return float(low), float(high)
