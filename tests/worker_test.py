"""What a verification process makes of a user's file and of what its function returns."""

import numpy as np
import pytest

from fipo_jax.rewards import worker
from fipo_jax.rewards.outcome import Score, as_score

UNREAD = ("unread",)


@pytest.mark.parametrize(
  ("value", "expected"),
  [
    (True, (1.0, 1.0, None, UNREAD)),
    (False, (0.0, 0.0, None, UNREAD)),
    (1, (1.0, 1.0, None, UNREAD)),
    (0.99, (0.99, 0.0, None, UNREAD)),
    (-1.0, (-1.0, 0.0, None, UNREAD)),
    (np.float32(2.5), (2.5, 1.0, None, UNREAD)),
    (np.bool_(True), (1.0, 1.0, None, UNREAD)),
    (np.asarray(0.5, np.float32), (0.5, 0.0, None, UNREAD)),
    (Score(0.5, 1.0), (0.5, 1.0, None, UNREAD)),
    (Score(0.5, 1.0, None), (0.5, 1.0, None, ())),
    (Score(-3.0, np.float64(0.25), "x"), (-3.0, 0.25, "x", ())),
    (Score(1.0, 1.0, "y" * 10_000), (1.0, 1.0, "y" * 30, ())),
    ({"score": -1.0, "acc": np.bool_(True), "pred": 7}, (-1.0, 1.0, "7", ())),
    ({"score": np.int64(1)}, (1.0, 1.0, None, UNREAD)),
    ({"score": 0.5, "accuracy": 0.25, "pred": None, "more": []}, (0.5, 0.25, None, ())),
  ],
)
def test_as_score(value, expected):
  assert as_score(value, 30) == expected


@pytest.mark.parametrize(
  ("value", "error", "message"),
  [
    (None, TypeError, "returned NoneType"),
    ("1", TypeError, "returned str"),
    (np.str_("1"), TypeError, "returned str_"),
    (np.ones(1), TypeError, "returned ndarray"),
    ({"acc": 1.0}, TypeError, r"a dict with \['acc'\]; it must have 'score'"),
    ({"score": "1"}, TypeError, "returned score of type str"),
    (float("inf"), ValueError, "score=inf"),
    (Score(float("nan"), 1.0), ValueError, "score=nan"),
    (Score(1.0, 1.5), ValueError, "accuracy=1.5"),
    (Score(1.0, float("nan")), ValueError, "accuracy=nan"),
  ],
)
def test_as_score_refuses(value, error, message):
  with pytest.raises(error, match=message):
    as_score(value)


def test_load_file(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(
    "import dataclasses\n@dataclasses.dataclass\nclass A:\n  x: int = 3\n"
    "def verify(response, answer, extras):\n  return A().x\n"
  )
  assert worker.load_file(str(path))("", "", {}) == 3
  path.write_text("verify = 3")
  with pytest.raises(ValueError, match="mine.py: no function verify"):
    worker.load_file(str(path))
  path.write_text("def f():\n  1 / 0\nf()")
  with pytest.raises(ValueError, match="mine.py: ZeroDivisionError: .* at mine.py:2 in f"):
    worker.load_file(str(path))


def test_describe_is_one_short_line():
  text = worker.describe(ValueError("a\nb" + "c" * 1000))
  assert text.startswith("ValueError: a b") and "\n" not in text and len(text) <= 500
