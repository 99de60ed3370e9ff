"""Solutions of countdown by trying: every line is what it says, and noise is as often as asked."""

import functools
import re

import pytest

from fipo_jax.data import countdown
from fipo_jax.data.countdown import countdown_solutions
from fipo_jax.data.sources import gym_dataset
from fipo_jax.data.tokenizer import characters
from fipo_jax.rewards import gym

GAME = {"min_numbers": 4, "max_numbers": 7, "min_value": 1, "max_value": 9, "min_target": 1, "max_target": 50}
ONLY = {style: {style: 1.0} for style in countdown.STYLES}


@functools.cache
def games(size, seed, options):
  """The library's problems; making them is what takes the time here, and all tests may have the same."""
  return list(gym_dataset("countdown", size, seed, dict(options)))


@pytest.fixture(autouse=True)
def made_once(monkeypatch):
  def few(task, size, seed, options):
    if "colour" in options:
      return gym_dataset(task, size, seed, options)
    return games(600, 3, tuple(options.items()))[:size]  # of whatever seed: noise has its own

  monkeypatch.setattr(countdown, "gym_dataset", few)


@functools.cache
def solutions(style=None, size=300, seed=3, **how):
  """Records as a list; of one style or of the default mix."""
  return list(countdown_solutions(size, seed, GAME, ONLY.get(style), **how))


def right(record):
  """By reasoning-gym's own rules, which know nothing of how solutions are written."""
  return gym.verify(record["target"], record["answer"], record["extras"]).accuracy == 1.0


def share_right(records):
  return sum(map(right, records)) / len(records)


def parsed(record):
  """(is a check, signed numbers, running sums, verdict) of every line but the last, and the answer."""
  *lines, last = record["target"].split("\n")
  found = []
  for line in lines:
    match = re.fullmatch(r"(Check: )?(\d+)((?:[+-]\d+=-?\d+)+) (ok|no)", line)
    assert match, line
    steps = re.findall(r"([+-]\d+)=(-?\d+)", match[3])
    found.append((bool(match[1]), [int(match[2]), *(int(n) for n, _ in steps)], [int(s) for _, s in steps], match[4]))
  assert last.startswith("Answer: ")
  return found, last.removeprefix("Answer: ")


def wrong_steps(record):
  """Of each sum in a record, whether it does not follow from the one before."""
  for _, (first, *terms), sums, _ in parsed(record)[0]:
    for value, term, result in zip([first, *sums], terms, sums, strict=False):
      yield value + term != result


@pytest.mark.parametrize("style", countdown.STYLES)
def test_every_line_is_what_it_says(style):
  for record in solutions(style, size=150, step_error=0.1):
    numbers, target = (record["extras"]["entry"]["metadata"][k] for k in ("numbers", "target"))
    assert record["question"] == f"{' '.join(map(str, numbers))} -> {target}:"
    lines, answer = parsed(record)
    assert bool(lines) == (style != "direct") and record["extras"]["style"] == style
    tries = [line for line in lines if not line[0]]
    for check, terms, sums, verdict in lines:
      assert (verdict == "ok") == (sums[-1] == 0) and terms[-1] == -(numbers[0] if check else target)
      if not check:
        assert [abs(t) for t in terms[:-1]] == numbers and terms[0] == numbers[0]
    for before, line in zip(lines, lines[1:], strict=False):
      if line[0]:  # a check undoes the try above it, which said ok
        assert style == "checked" and before[3] == "ok"
        assert line[1] == [target, *(-t for t in reversed(before[1][1:-1])), -numbers[0]]
      else:
        assert before[3] == "no"
    if tries:
      assert answer == "".join(f"{t:+d}" for t in tries[-1][1][:-1])[1:]
    if style == "checked":
      after_ok = [line for line, b in zip(lines[1:], lines, strict=False) if b[3] == "ok" and not b[0]]
      assert all(line[0] for line in after_ok)


def test_without_mistakes_ok_is_right_and_no_is_wrong():
  found = solutions("tried", step_error=0.0)
  assert {right(r) for r in found if parsed(r)[0][-1][3] == "ok"} == {True}
  assert {right(r) for r in found if parsed(r)[0][-1][3] == "no"} == {False}
  assert not any(any(wrong_steps(r)) for r in found)


def test_steps_are_wrong_as_often_as_asked():
  for error in (0.02, 0.2):
    wrong = [w for r in solutions("checked", size=200, step_error=error) for w in wrong_steps(r)]
    rate = sum(wrong) / len(wrong)
    assert abs(rate - error) < 4 * (error * (1 - error) / len(wrong)) ** 0.5, (rate, len(wrong))


@pytest.mark.parametrize(("style", "rate"), [("tried", 0.4), ("checked", 0.2)])
def test_how_often_a_solution_gives_up(style, rate):
  """After each no, but the last one allowed, which ends every solution."""
  left = []
  for lines in (parsed(r)[0] for r in solutions(style)):
    tries = 0
    for i, (check, _, _, verdict) in enumerate(lines):
      tries += not check
      if verdict == "no" and tries < 10:
        left.append(i == len(lines) - 1)
  assert abs(sum(left) / len(left) - rate) < 4 * (rate * (1 - rate) / len(left)) ** 0.5


def test_tries_end_where_they_must():
  most = max(sum(not line[0] for line in parsed(r)[0]) for r in solutions("tried", give_up=0.0, most_tries=3))
  assert most == 3
  once = solutions("tried", size=100, give_up=1.0)
  assert {len(parsed(r)[0]) for r in once} == {1}


def test_luck_knows_a_solution_as_often_as_asked():
  """One try each, all sums right: what is right beyond chance is luck."""
  once = {q: solutions("tried", step_error=0.0, luck=q, give_up=1.0) for q in (0.0, 0.5, 1.0)}
  assert share_right(once[1.0]) == 1.0 and share_right(once[0.0]) < 0.2
  expected = 0.5 + 0.5 * share_right(once[0.0])
  assert abs(share_right(once[0.5]) - expected) < 4 * (expected * (1 - expected) / 300) ** 0.5
  assert countdown.solved([8, 2, 5], 11) == [[-1, 1]] and countdown.solved([3, 1, 1], 3) == [[1, -1], [-1, 1]]


def test_trying_longer_is_right_more_often():
  """What the experiment rests on: the chance grows with the tries, and the default mix leaves most of it to gain."""
  once, ten, many = (solutions("tried", luck=0.0, give_up=q, most_tries=n) for q, n in ((1.0, 1), (0.0, 10), (0.0, 60)))
  assert share_right(once) < 0.2 < 0.45 < share_right(ten) < share_right(many) - 0.15
  mixed = solutions(size=600)
  assert 0.25 < share_right(mixed) < 0.36
  lengths = [len(r["target"]) for r in mixed]
  assert min(lengths) < 20 and 250 < max(lengths) < 480 and 56 < sum(lengths) / len(lengths) < 72
  assert 0.24 < sum(r["extras"]["style"] == "direct" for r in mixed) / len(mixed) < 0.36


def test_noise_depends_on_seed_and_index_alone():
  one, two = countdown_solutions(20, 3, GAME), countdown_solutions(40, 3, GAME)
  assert [one[i] for i in reversed(range(20))] == [two[i] for i in reversed(range(20))]
  other = countdown_solutions(20, 4, GAME)
  assert [r["question"] for r in one] == [r["question"] for r in other]  # see made_once
  assert [r["target"] for r in one] != [r["target"] for r in other]


def test_the_alphabet_is_enough_and_not_too_much():
  tokenizer = characters(countdown.ALPHABET)
  texts = [r["question"] + r["target"] for r in solutions("checked", size=150, step_error=0.1)]
  for text in texts:
    assert tokenizer.decode(tokenizer.encode(text)) == text
  assert set("".join(texts)) == set(countdown.ALPHABET)


@pytest.mark.parametrize(
  ("how", "message"),
  [
    ({"mix": {"direct": 0.5}}, "sum to 1"),
    ({"mix": {"guess": 1.0}}, "shares of direct, tried, checked"),
    ({"step_error": 1.1}, "data.step_error=1.1"),
    ({"luck": 2.0}, "data.luck=2.0"),
    ({"give_up": -0.1}, "data.give_up=-0.1"),
    ({"most_tries": 0}, "data.most_tries=0"),
    ({"options": {**GAME, "operators": ("+", "*")}}, "operators"),
    ({"options": {**GAME, "shuffle": True}}, "shuffle=False alone"),
    ({"options": {"colour": 3}}, "colour"),
  ],
)
def test_mistakes(how, message):
  with pytest.raises(ValueError, match=message):
    countdown_solutions(10, 0, **how)
