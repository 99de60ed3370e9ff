"""Before training: can the ground truths be met? Each is written as a response and judged by its own verifier."""

from __future__ import annotations

import collections
import re
import time
from collections.abc import Sequence

from fipo_jax.rewards.score import Job, Scored, Scorer
from fipo_jax.types import Prompt

SAMPLE = 2000  # golds that are looked at
BUDGET_S = 60.0  # no further ones are begun after so long

# What passes that check and is hardly ever met all the same, for math_dapo compares text.
_ODD = {
  "have leading zeros": lambda gold: re.fullmatch(r"[+-]?0\d+", gold),
  "are whole numbers with a decimal point": lambda gold: re.fullmatch(r"[+-]?\d+\.0*", gold),
  "are prose of several words": lambda gold: not re.search(r"[\\$]", gold) and re.search(r"[A-Za-z]{2}\S*\s", gold)
  and len(re.findall(r"[A-Za-z]{2,}", gold)) > 1,
}
_TEXTUAL = ("math_dapo", "math_dapo_strict_box")


def check(scorer: Scorer, prompts: Sequence[tuple[Prompt, str]]) -> list[str]:
  """Lines about golds that a response can hardly meet; none when all is well.

  Args:
    prompts: (prompt, name of its verifier). Of a user's file ("file") the first is verified, for its exceptions.
  Raises: ValueError when a user's function raises, or when no gold at all is right by its own verifier.
  """
  own = [prompt for prompt, verifier in prompts if verifier == "file"]
  notes = [line for prompt in own[:1] for line in _call_once(scorer, prompt)]
  jobs, unwritten = [], collections.Counter()
  for prompt, verifier in prompts:
    if verifier == "file":
      continue
    row = scorer.row(verifier)
    written = [] if row.write is None else [(g, row.write(g, prompt.extras)) for g in several(prompt.answer)]
    written = [(gold, text) for gold, text in written if text is not None]
    if not written:
      unwritten[verifier] += 1
    for gold, text in written[:1]:
      jobs.append((prompt, Job(verifier, text, gold, prompt.extras, prompt.text)))
  found = _verify(scorer, [job for _, job in jobs])
  wrong = [(p, job, s) for (p, job), s in zip(jobs, found, strict=False) if s.accuracy < 1]
  if wrong:
    prompt, job, scored = wrong[0]
    why = f": {scored.message}" if scored.message else ""
    text = (
      f"{len(wrong)} of {len(found)} answers that were looked at are not right by their own verifier; the first: "
      f"record {prompt.id}, verifier {job.verifier!r}, answer {job.answer!r:.80}{why}"
    )
    if len(wrong) == len(found):
      raise ValueError(f"{text}. No response can be right; use another reward.verifier, or mend the answers.")
    notes.append(text)
  if unwritten:
    rows = ", ".join(f"{n} of {name!r}" for name, n in unwritten.items())
    notes.append(f"answers that cannot be checked before training, for none can be written as a response: {rows}")
  return notes + _odd([(p, name) for p, name in prompts if name in _TEXTUAL])


def several(answer: str | tuple[str, ...]) -> tuple[str, ...]:
  """The ground truths of a prompt."""
  return (answer,) if isinstance(answer, str) else tuple(answer)


def _call_once(scorer: Scorer, prompt: Prompt) -> list[str]:
  gold = several(prompt.answer)[0]
  (scored,) = scorer.submit([Job("file", f"Answer: {gold}", gold, prompt.extras, prompt.text)], trial=True).result()
  if "error" in scored.flags:
    raise ValueError(f"reward.file: the first call raised. {scored.message}")
  return [f"reward.file: the first call gave no verdict. {scored.message}"] if scored.message else []


def _verify(scorer: Scorer, jobs: list[Job]) -> list[Scored]:
  """Verdicts of as many jobs as BUDGET_S has time for, from the first on."""
  found, begin, size = [], time.monotonic(), 16
  while len(found) < len(jobs) and time.monotonic() - begin < BUDGET_S:
    part = scorer.submit(jobs[len(found) : len(found) + size], trial=True).result()
    found += part
    if all(s.flags and s.accuracy < 1 for s in found):  # not one verdict
      break
    size *= 2
  return found


def _odd(prompts: Sequence[tuple[Prompt, str]]) -> list[str]:
  said = []
  for what, is_odd in _ODD.items():
    odd = [p for p, _ in prompts if all(is_odd(gold.strip()) for gold in several(p.answer))]
    if odd:
      said.append(f"{len(odd)} {what} (the first: record {odd[0].id}, {odd[0].answer!r:.80})")
  if not said:
    return []
  names = " and ".join(repr(name) for name in dict.fromkeys(name for _, name in prompts))
  return [
    f"of {len(prompts)} answers that were looked at {'; '.join(said)}: {names} compares text, and a response must "
    "write them alike; 'math_symbolic' compares values"
  ]
