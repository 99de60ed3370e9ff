"""The figures of a sweep: intervals and differences by hand, and what the text says of them."""

import math

import numpy as np

from fipo_jax.sweeps import figures, plan
from tests.tolerances import close

# 97.5% quantiles of Student's t for 1 to 30 degrees of freedom, as tables print them.
TABLE = (
  12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
  2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
# For 2 and 4 degrees of freedom there are closed forms, of a = 4p(1 - p) and p = 0.975.
A = 4 * 0.975 * 0.025
T_2 = 0.95 * math.sqrt(2 / A)
T_4 = 2 * math.sqrt(math.cos(math.acos(math.sqrt(A)) / 3) / math.sqrt(A) - 1)
SUMS = {"terms": 5, "dtype": np.float64, "scale": 4}  # of at most so many numbers of that size


def test_interval_by_hand():
  """1, 2, 3, 4, 5: mean 3, standard deviation √2.5, t(4) by hand."""
  got = figures.interval([1.0, 2.0, 3.0, 4.0, 5.0])
  half = T_4 * math.sqrt(2.5 / 5)
  close(got, {"n": 5, "mean": 3.0, "low": 3 - half, "high": 3 + half}, **SUMS)
  assert figures.interval([2.0]) == {"n": 1, "mean": 2.0, "low": None, "high": None}
  assert figures.interval([])["mean"] is None


def test_quantiles_are_those_of_printed_tables():
  for df, printed in {**dict(enumerate(TABLE, start=1)), 40: 2.021, 60: 2.000, 120: 1.980}.items():
    assert round(figures.t_975(df), 3) == printed, df


def result(before, after, length):
  return {"accuracy_before": before, "accuracy_after": after, "length_after": length, "versions": {}}


RUNS = {
  "base": {0: result(0.3, 0.70, 30.0), 1: result(0.3, 0.60, 20.0), 2: result(0.2, 0.50, 10.0)},
  "better": {0: result(0.3, 0.72, 33.0), 1: result(0.3, 0.63, 20.0), 2: result(0.2, 0.54, 10.0)},
  "partial": {1: result(0.3, 0.5, 25.0), 3: result(0.3, 0.9, 25.0)},  # 3 is missing in the baseline
  "none": {},
}


def test_differences_are_paired_by_seed():
  got = figures.summarize(RUNS, "base")
  # 0.02, 0.03, 0.04: mean 0.03, standard deviation 0.01, t(2) by hand; unpaired the interval would be 20 times as wide.
  accuracy, half = got["differences"]["better"]["accuracy after"], T_2 * 0.01 / math.sqrt(3)
  close(accuracy, {"n": 3, "mean": 0.03, "low": 0.03 - half, "high": 0.03 + half}, **SUMS)
  close(got["differences"]["better"]["length after"]["low"], 1 - T_2, **SUMS)  # 3, 0, 0: deviation √3
  one = got["differences"]["partial"]["accuracy after"]
  close(one.pop("mean"), -0.1, **SUMS)
  assert one == {"n": 1, "low": None, "high": None}
  assert got["differences"]["none"]["accuracy after"]["n"] == 0
  close(got["arms"]["base"]["accuracy gain"]["mean"], 1.0 / 3, **SUMS)
  assert list(got["differences"]) == ["better", "partial", "none"]


def test_the_text_says_which_intervals_exclude_zero_and_names_what_is_missing():
  found = plan.Sweep("name", "file.py", (0, 1, 2, 3), {"steps": "3"}, {arm: {} for arm in RUNS}, "base")
  text = figures.markdown(found, RUNS, figures.summarize(RUNS, "base"), ["partial seed 0", "none seed 2"])
  assert "Missing: partial seed 0, none seed 2." in text
  assert "Intervals that exclude 0: accuracy after of better (+0.030 [+0.005, +0.055]).\n" in text
  assert "| better |  | 3 | 0.630 [0.406, 0.854] |" in text
  assert "| 1 | 0.300 -> 0.600, 20.0 | 0.300 -> 0.630, 20.0 | 0.300 -> 0.500, 25.0 | missing |" in text


def test_the_text_says_how_many_runs_have_no_versions():
  found = plan.Sweep("name", "file.py", (0, 1, 2), {}, {arm: {} for arm in RUNS}, "base")
  runs = {"base": {0: RUNS["base"][0], 1: RUNS["base"][1] | {"versions": {"jax": "0.12", "commit": ""}}}}
  text = figures.markdown(found, runs, figures.summarize(runs, "base"), [])
  assert "Made with jax 0.12.\nWith what 1 of 2 runs were made is not known" in text
