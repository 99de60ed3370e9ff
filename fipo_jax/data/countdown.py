"""Solutions of the countdown game by trying, with mistakes: a supervised source to start small models from.

What makes it a game in which thoughts can grow: to find the signs is hard, to see whether signs are right is easy, and
nothing but trying again helps. Each further try has about the same chance, and how many there are is free.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

from fipo_jax.data.records import Record, Records
from fipo_jax.data.sources import gym_dataset, short_question

# Everything the questions and solutions below are written with.
ALPHABET = "0123456789 +-=>\n:AnswerChcko"

STYLES = ("direct", "tried", "checked")
DEFAULT_MIX = {"direct": 0.3, "tried": 0.6, "checked": 0.1}


def countdown_solutions(
  size: int,
  seed: int,
  options: dict[str, Any] | None = None,
  mix: dict[str, float] | None = None,
  step_error: float = 0.0,
  luck: float = 0.1,
  give_up: float = 0.4,
  most_tries: int = 10,
) -> Records:
  """Countdown with + and - ("8 2 5 2 8 -> 11:") with a solution to imitate, in one of three styles.

  A try gives every number but the first a sign, at random, in the order of the question, works out the running sum, and
  takes the target away: what leaves 0 is ok.

      8-2=6-5=1-2=-1-8=-9-11=-20 no
      8+2=10-5=5-2=3+8=11-11=0 ok
      Answer: 8+2-5-2+8

      direct    the answer alone, signs at random
      tried     tries until one says ok; after each no the solution gives up with probability `give_up`, and
                answers with its last try
      checked   the same, half as ready to give up; an ok is followed by a line that undoes the try from the target
                backwards ("Check: 11-8=3+2=5+5=10-2=8-8=0 ok"), and "no" there means another try

  Each sum of a line is wrong with probability `step_error`, and the line goes on from the wrong value: what follows
  (ok, no, another try) is true of what was written. A try is a known solution with probability `luck`, so that there
  are enough of them to learn "ok" from; who imitates it cannot know which. No solution has more than `most_tries`,
  after which it gives up.
  All noise is derived from (seed, index).

  Args:
    size: records.  seed: non-negative int.
    options: of reasoning-gym's countdown; `operators` must be + and -, and `shuffle` off, so that signs are enough.
    mix: share of each style, summing to 1; DEFAULT_MIX when None.
  Raises: ValueError for shares or probabilities out of range, or options the task refuses.
  """
  mix = DEFAULT_MIX if mix is None else mix
  unknown = sorted(set(mix) - set(STYLES))
  if unknown or min(mix.values(), default=-1) < 0 or abs(sum(mix.values()) - 1) > 1e-6:
    raise ValueError(f"data.mix={mix} must give shares of {', '.join(STYLES)} that sum to 1.")
  for name, value in (("step_error", step_error), ("luck", luck), ("give_up", give_up)):
    if not 0 <= value <= 1:
      raise ValueError(f"data.{name}={value} must be a probability between 0 and 1.")
  if most_tries < 1:
    raise ValueError(f"data.most_tries={most_tries} must be at least 1.")
  options = {"operators": ("+", "-"), "shuffle": False, **(options or {})}
  if not set(options["operators"]) <= {"+", "-"} or options["shuffle"]:
    raise ValueError(f"data.options={options}: solutions are written for operators ('+', '-') and shuffle=False alone.")
  dataset = gym_dataset("countdown", size, seed, options)

  def read(index: int) -> Record:
    entry = dataset[index]
    numbers, target = entry["metadata"]["numbers"], entry["metadata"]["target"]
    rng = random.Random(f"countdown_solutions {seed} {index}")
    style = rng.choices(list(mix), weights=list(mix.values()))[0]
    if style == "direct":
      lines, signs = [], _signs(numbers, rng)
    else:
      leave = give_up if style == "tried" else give_up / 2
      known = solved(numbers, target) if luck else []
      lines, signs = _tries(numbers, target, known, rng, step_error, luck, leave, most_tries, style == "checked")
    return {
      "id": index,
      "question": short_question(entry),
      "answer": entry["answer"],
      "verifier": "gym",
      "extras": {"task": "countdown", "entry": entry, "style": style},
      "target": "\n".join([*lines, f"Answer: {written(numbers, signs)}"]),
    }

  return Records(size, read)


def written(numbers: list[int], signs: list[int]) -> str:
  """[8, 2, 5] with signs [+1, -1] as "8+2-5"."""
  return str(numbers[0]) + "".join(f"{'+' if s > 0 else '-'}{n}" for s, n in zip(signs, numbers[1:], strict=True))


def solved(numbers: list[int], target: int) -> list[list[int]]:
  """All signs of the numbers after the first that give the target."""
  every = itertools.product((1, -1), repeat=len(numbers) - 1)
  return [list(s) for s in every if numbers[0] + sum(a * b for a, b in zip(s, numbers[1:], strict=True)) == target]


def _signs(numbers: list[int], rng: random.Random) -> list[int]:
  return [rng.choice((1, -1)) for _ in numbers[1:]]


def _tries(
  numbers: list[int], target: int, known: list[list[int]], rng: random.Random, error: float, luck: float,
  give_up: float, most: int, check: bool,
) -> tuple[list[str], list[int]]:  # fmt: skip
  """The lines of up to `most` tries, and the signs of the last one."""
  lines = []
  for _ in range(most):
    signs = rng.choice(known) if rng.random() < luck else _signs(numbers, rng)
    line, value = _sums(numbers[0], [*zip(signs, numbers[1:], strict=True), (-1, target)], rng, error)
    found = value == 0
    lines.append(f"{line} {'ok' if found else 'no'}")
    if found and check:
      back = [(-s, n) for s, n in zip(reversed(signs), reversed(numbers[1:]), strict=True)]
      line, value = _sums(target, [*back, (-1, numbers[0])], rng, error)
      found = value == 0
      lines.append(f"Check: {line} {'ok' if found else 'no'}")
    if found or rng.random() < give_up:
      break
  return lines, signs


def _sums(value: int, terms: list[tuple[int, int]], rng: random.Random, error: float) -> tuple[str, int]:
  """ "8+2=10-5=5" for 8 and [(+1, 2), (-1, 5)], and the last value; each is off with probability `error`."""
  line = str(value)
  for sign, number in terms:
    value += sign * number
    if rng.random() < error:
      value += rng.choice((-10, -3, -2, -1, 1, 2, 3, 10))
    line += f"{'+' if sign > 0 else '-'}{number}={value}"
  return line, value
