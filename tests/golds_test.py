"""Ground truths before training: which can be met, which hardly, and what is said of them."""

import numpy as np
import pytest

from fipo_jax import config, judges
from fipo_jax.evaluation.sets import EvalSet
from fipo_jax.rewards import golds
from fipo_jax.rewards.score import Scorer
from fipo_jax.types import Prompt


@pytest.fixture(scope="module")
def scorer():
  with Scorer(
    workers=1, timeout_s=10.0, verifier_file=None, on_error="stop", wrong_score=-1.0,
    weights={"math_dapo": 1, "format": 2},
  ) as pool:  # fmt: skip
    yield pool
    assert (pool.errors, pool.timeouts, pool.first_error) == (0, 0, "")  # a check is not a part of the run


def check(scorer, *rows):
  prompt = lambda i, answer: Prompt(i, np.zeros(1, np.int32), f"p{i}", answer, "", {})
  return golds.check(scorer, [(prompt(i, answer), verifier) for i, (verifier, answer) in enumerate(rows)])


def test_nothing_is_said_of_good_ones(scorer):
  rows = ("math_dapo", "16"), ("math_symbolic", "\\frac{1}{2}"), ("exact", "two words"), ("math_dapo", ("1", "2"))
  assert check(scorer, *rows) == []


def test_those_that_fail_are_counted_with_the_first(scorer):
  rows = ("exact", "fine"), ("math_symbolic", "}{"), ("exact", "two\nlines"), ("math_dapo_strict_box", "}")
  (said,) = check(scorer, *rows)
  assert said.startswith("3 of 4 answers") and "record 1, verifier 'math_symbolic', answer '}{'" in said


def test_all_failing_is_an_error(scorer):
  with pytest.raises(ValueError, match="2 of 2 answers .* record 0, verifier 'exact', answer 'a.nb'.* No response can"):
    check(scorer, ("exact", "a\nb"), ("exact", "c\nd"))


def test_those_that_cannot_be_written_are_named(scorer):
  said = check(scorer, ("format", "-"), ("regex", "a+"), ("regex", "b"), ("weighted", "7"), ("math_dapo", "7"))
  assert len(said) == 1 and "1 of 'format', 2 of 'regex', 1 of 'weighted'" in said[0]


def test_what_verifies_itself_and_is_hardly_met(scorer):
  odd = ("033", "-07", "204.0", "the larger one", "about 3 apples")
  plain = ("0", "0.5", "12.5", "\\text{the larger one}", "$a b$", "blue", "x y")
  (said,) = check(scorer, *(("math_dapo", a) for a in odd + plain))
  assert "of 12 answers" in said and "2 have leading zeros (the first: record 0, '033')" in said
  assert "1 are whole numbers with a decimal point (the first: record 2, '204.0')" in said
  assert "2 are prose of several words (the first: record 3, 'the larger one')" in said
  assert check(scorer, *(("math_symbolic", a) for a in ("033", "204.0"))) == []
  assert check(scorer, ("math_dapo", ("033", "33"))) == []  # one of them can be met


def test_a_users_function_is_called_once_and_only_its_exceptions_are_fatal(tmp_path):
  path = tmp_path / "mine.py"
  settings = dict(workers=1, timeout_s=0.5, on_error="score_wrong", wrong_score=-1.0)
  rows = [("file", "1"), ("file", "2")]
  for body, said in (
    ("open('calls', 'a').write(answer); return -3.0", []),
    ("while True: pass", ["reward.file: the first call gave no verdict."]),
  ):
    path.write_text(f"def verify(response, answer, extras):\n  {body}\n")
    with Scorer(verifier_file=str(path), **settings) as scorer:
      assert [line.split(" verify in")[0] for line in check(scorer, *rows)] == said
  assert (tmp_path / "calls").read_text() == "1"
  path.write_text("def verify(response, answer, extras):\n  raise KeyError('grader table')\n")
  with Scorer(verifier_file=str(path), **settings) as scorer:
    with pytest.raises(ValueError, match="first call raised.*grader"):
      check(scorer, *rows)


def test_a_check_without_a_verdict_ends_soon(tmp_path, monkeypatch):
  """Verdicts that all run out of time are not waited for two thousand times."""
  with Scorer(workers=2, timeout_s=0.05, verifier_file=None, on_error="stop", wrong_score=-1.0) as scorer:
    tried = []
    submit = scorer.submit
    monkeypatch.setattr(scorer, "submit", lambda jobs, trial: tried.extend(jobs) or submit(jobs, trial=trial))
    with pytest.raises(ValueError, match="16 of 16 answers"):
      check(scorer, *[("exact", "a\nb")] * 16)
    monkeypatch.setattr(golds, "BUDGET_S", 0.0)
    assert check(scorer, *[("exact", "a")] * 100) == [] and len(tried) == 16


class Stream:
  """The training prompts, as `open_scorer` asks for them."""

  def __init__(self, *rows):
    self.prompts = [Prompt(i, np.zeros(1, np.int32), f"p{i}", gold, name, {}) for i, (name, gold) in enumerate(rows)]
    self.verifiers = {p.verifier: p.id for p in reversed(self.prompts)}

  def spread(self, number):
    return self.prompts[:number]


def open_scorer(*rows, heldout=(), check=True, **fields):
  cfg = config.default()
  cfg.data.path, cfg.reward.workers = "prompts.jsonl", 1
  cfg.update_from_flattened_dict({f"reward.{name}": value for name, value in fields.items()})
  sets = [EvalSet("", cfg, False, tuple(heldout))]
  scorer, notes = judges.open_scorer(cfg, Stream(*rows), sets, check=check)
  scorer.close()
  return notes


def test_a_verifier_that_a_record_misnames_is_refused_with_file_and_record():
  with pytest.raises(ValueError, match="'prompts.jsonl' record 1 .* field 'verifier' is 'magic', expected one of"):
    open_scorer(("math_dapo", "1"), ("magic", "2"))
  with pytest.raises(ValueError, match="record 0 .* names no verifier, and reward.verifier='': set one"):
    open_scorer(("", "1"))
  (heldout,) = Stream(("magic", "1")).prompts
  with pytest.raises(ValueError, match="'magic'"):
    open_scorer(("math_dapo", "1"), heldout=[heldout])


def test_what_records_name_in_vain_is_said():
  rows = ("magic", "1"), ("", "2"), ("exact", "3")
  (said,) = open_scorer(*rows, verifier="exact")
  assert said.startswith("reward.verifier='exact' judges all prompts") and said.endswith("; not used: magic")


def test_golds_are_checked_where_a_run_begins(tmp_path):
  rows = ("exact", "1"), ("exact", "a\nb")
  (said,) = open_scorer(*rows)
  assert said.startswith("1 of 2 answers")
  assert open_scorer(*rows, check=False) == []  # a run that resumes has said it
  with pytest.raises(ValueError, match="2 of 2 answers .* No response can be right"):
    open_scorer(("exact", "a\nb"), ("exact", "c\nd"))
  (tmp_path / "mine.py").write_text("def verify(response, answer, extras):\n  raise KeyError('grader table')\n")
  with pytest.raises(ValueError, match="first call raised.*grader table"):
    open_scorer(*rows, file=str(tmp_path / "mine.py"), check=False)
