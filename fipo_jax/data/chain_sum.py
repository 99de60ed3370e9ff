"""Worked solutions of chain sums, with mistakes: a supervised source to start small models from."""

from __future__ import annotations

import random
from typing import Any

from fipo_jax.data.records import Record, Records
from fipo_jax.data.sources import gym_dataset

# Everything the questions and solutions below are written with.
ALPHABET = "0123456789 +-=\n:AnswerChcko"

STYLES = ("direct", "worked", "checked")


def chain_sum_solutions(
  size: int,
  seed: int,
  options: dict[str, Any] | None = None,
  mix: dict[str, float] | None = None,
  direct_error: float = 0.9,
  step_error: float = 0.03,
  fix: float = 0.9,
  spread: int = 20,
) -> Records:
  """Chain sums ("34 + 7 - 12 =") with a solution to imitate, in one of three styles of very different reliability.

      direct    Answer: 29                              wrong with probability direct_error
      worked    34+7=41, 41-12=29, Answer: 29           each line wrong with probability step_error, the rest
                                                        continues from the wrong value
      checked   as worked, then "Check:" undoes the steps from the result; "ok" when it arrives at the first
                number, else "no" and, with probability fix, a second attempt

  With the defaults about half the solutions are right, nearly all of them worked or checked: a model that
  imitates the mix can gain a lot by choosing its style, which is what reinforcement learning should find.
  All noise is derived from (seed, index).

  Args:
    size: records.  seed: non-negative int.  options: of reasoning-gym's chain_sum (min_terms, max_digits, ...).
    mix: share of each style, summing to 1; default 0.55 direct, 0.3 worked, 0.15 checked.
    spread: a mistake is off by 1 to `spread`, either way, in `direct`; by 1, 2, 3 or 10 in a step.
  Raises: ValueError for shares or probabilities out of range, or options the task refuses.
  """
  mix = {"direct": 0.55, "worked": 0.3, "checked": 0.15} if mix is None else mix
  unknown = sorted(set(mix) - set(STYLES))
  if unknown or min(mix.values(), default=-1) < 0 or abs(sum(mix.values()) - 1) > 1e-6:
    raise ValueError(f"data.mix={mix} must give shares of {', '.join(STYLES)} that sum to 1.")
  for name, value in (("direct_error", direct_error), ("step_error", step_error), ("fix", fix)):
    if not 0 <= value <= 1:
      raise ValueError(f"data.{name}={value} must be a probability between 0 and 1.")
  if spread < 1:
    raise ValueError(f"data.spread={spread} must be at least 1.")
  dataset = gym_dataset("chain_sum", size, seed, options)

  def read(index: int) -> Record:
    entry = dataset[index]
    expression = entry["metadata"]["expression"]
    first, terms = parse(expression)
    rng = random.Random(f"chain_sum_solutions {seed} {index}")
    style = rng.choices(list(mix), weights=list(mix.values()))[0]
    if style == "direct":
      target = _direct(int(entry["answer"]), rng, direct_error, spread)
    elif style == "worked":
      lines, result = _steps(first, terms, rng, step_error)
      target = "\n".join([*lines, f"Answer: {result}"])
    else:
      target = _checked(first, terms, rng, step_error, fix)
    return {
      "id": index,
      "question": f"{expression} =",
      "answer": entry["answer"],
      "verifier": "gym",
      "extras": {"task": "chain_sum", "entry": entry, "style": style},
      "target": target,
    }

  return Records(size, read)


def parse(expression: str) -> tuple[int, list[tuple[str, int]]]:
  """ "34 + 7 - 12" as (34, [("+", 7), ("-", 12)]); numbers may be negative."""
  words = expression.split()
  return int(words[0]), [(op, int(n)) for op, n in zip(words[1::2], words[2::2], strict=True)]


def _steps(
  value: int, terms: list[tuple[str, int]], rng: random.Random, error: float
) -> tuple[list[str], int]:
  """One line per operation, each off by a little with probability `error`, and the last value."""
  lines = []
  for op, number in terms:
    result = value + number if op == "+" else value - number
    if rng.random() < error:
      result += rng.choice((-10, -3, -2, -1, 1, 2, 3, 10))
    lines.append(f"{value}{op}{number}={result}")
    value = result
  return lines, value


def _direct(answer: int, rng: random.Random, error: float, spread: int) -> str:
  if rng.random() < error:
    answer += rng.randint(1, spread) * rng.choice((-1, 1))
  return f"Answer: {answer}"


def _checked(
  first: int, terms: list[tuple[str, int]], rng: random.Random, error: float, fix: float
) -> str:
  lines, result = _steps(first, terms, rng, error)
  undo = [("-" if op == "+" else "+", number) for op, number in reversed(terms)]
  check, back = _steps(result, undo, rng, error)
  lines += ["Check:", *check]
  if back == first:
    lines.append("ok")
  else:
    lines.append("no")
    if rng.random() < fix:
      again, result = _steps(first, terms, rng, error)
      lines += again
  return "\n".join([*lines, f"Answer: {result}"])
