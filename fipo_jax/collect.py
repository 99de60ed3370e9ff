"""Groups to learn from: draw prompts, sample, score, keep the informative ones, and turn rewards into advantages."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import json
import math
from collections.abc import Callable

import jax
import numpy as np

from fipo_jax import parts, processes
from fipo_jax.assemble import Run
from fipo_jax.evaluate import failures, no_answer
from fipo_jax.judges import verifier_of
from fipo_jax.rewards.score import Job, Scored, overlong_penalty
from fipo_jax.rollout.http import EngineError
from fipo_jax.types import Prompt, Rollout, unbegun

Group = list[Rollout]
KEEP_RATE_MEMORY = 0.5  # weight of the past in the keep rate that sizes the next draw
LARGEST_DRAW = 2  # batches: one unlucky draw must not order an ocean
MARGIN = 1.1  # on a draw whose surplus may wait: a second one would take as long as its longest response
# The same where sampling ends once there are enough: what is too much goes on in the next step and costs nothing.
# Slots stay full to the end, where a second draw would fill a few of them.
LARGEST_ENDED_EARLY, MARGIN_ENDED_EARLY = 3, 1.5


class DataExhausted(Exception):
  """No (or too few) informative groups could be found; the run should be saved and ended in good order."""


def collect(run: Run, step: int, progress) -> tuple[list[Group], dict[str, float]]:
  """Groups to learn from, scored and with advantages; and what was seen on the way."""
  if run.cfg.algorithm.name == "sft":
    return demonstrations(run), {}
  run.engine.update(run.policy_params())
  try:
    groups, values = sample_groups(run, step, progress)
  finally:
    run.engine.release()
  return groups, values | give_advantages(run, groups)


def give_advantages(run: Run, groups: list[Group]) -> dict[str, float]:
  """Fills the advantages of scored groups from their rewards; returns what there is to say of the groups."""
  rewards_PG = np.array([[r.reward for r in group] for group in groups])
  for group, row in zip(groups, run.advantages(rewards_PG), strict=True):
    for rollout, advantage in zip(group, row, strict=True):
      rollout.advantage = float(advantage)
  return describe_trained(groups, advantages=run.credit is None)


def demonstrations(run: Run) -> list[Group]:
  """Supervised records as groups of one: the target, ended by the stop token, with advantage 1."""
  groups = []
  for prompt in run.stream.take(run.cfg.batch.prompts):
    if "target" not in prompt.extras:
      raise ValueError(f"algorithm.name='sft': data.source={run.cfg.data.source!r} has no field 'target' to imitate.")
    text = prompt.extras["target"]
    tokens = np.array([*run.tokenizer.encode(text), run.tokenizer.stop_ids[0]], np.int32)
    tokens = tokens[: run.cfg.rollout.max_response_tokens]
    zeros = np.zeros(len(tokens), np.float32)
    groups.append([Rollout(prompt, 0, tokens, zeros, "stop", text, advantage=1.0)])
  return groups


def sample_groups(run: Run, step: int, progress) -> tuple[list[Group], dict[str, float]]:
  """Dynamic sampling: draws prompts until batch.prompts groups have both right and wrong responses.

  A group is judged by raw accuracy, not by the shaped reward. The size of a draw follows the keep rate of past steps.
  Groups are scored while others are still being sampled. What is left over waits in run.surplus for the next steps, up
  to dynamic_sampling.max_age iterations from its first token on, the oldest first. Unless rollout.unfinished is
  "finish", sampling stops when there are enough; unfinished groups wait in run.pending, come first in the next step and
  have no age limit, and what has come of them meets the next batch whatever its age: a long response is late, never
  lost. After dynamic_sampling.max_draws it trains on what there is, or ends the run; with no group at all it
  always ends.

      prompts of a draw = min(⌈margin · missing groups / keep rate⌉, largest · batch.prompts) − unfinished groups

  Where it is cut short, run.begun has what was sampled, by draw. A process that is given it goes the same way from the
  beginning of the step, draws the same prompts, and samples only what is missing.

  Raises:
    DataExhausted: too few groups; says how many, and what would help.
    Stopping: the run was told to stop. EngineError: the engine cannot go on.
  Source: DAPO (arXiv 2503.14476) section 3.2, which throws the surplus away and draws a fixed multiple.
  """
  c, want = run.cfg.dynamic_sampling, run.cfg.batch.prompts
  finished = lambda s, g: s + g[0].age  # in which step: a group that waits has the age it had then
  waiting = [(s, g) for s, g in run.surplus if step - s <= c.max_age or finished(s, g) == step - 1]
  aged_out = len(run.surplus) - len(waiting)
  waiting.sort(key=lambda pair: pair[0])
  reused, run.surplus = waiting[:want], waiting[want:]
  kept = list(reused)
  pending, run.pending = run.pending, []
  begun, run.begun = run.begun, []
  drawn = {g[0].prompt.id for _, g in waiting + pending}  # a prompt is one group of a batch
  seen: list[Group] = []
  draws = continued = 0
  keep_rate = run.host.get("keep_rate", 1.0) if c.enabled else 1.0
  largest, margin = LARGEST_DRAW, MARGIN if c.enabled and c.max_age else 1.0
  if run.cfg.rollout.unfinished != "finish":
    largest, margin = LARGEST_ENDED_EARLY, MARGIN_ENDED_EARLY
  for draw in range(c.max_draws if c.enabled else 1):
    if len(kept) >= want:
      break
    need = math.ceil((want - len(kept)) / max(keep_rate, 1e-6) * margin)
    need = max(min(need, largest * want) - len(pending), 0)
    prompts = draw_prompts(run, need, drawn)
    if not prompts and not pending:
      break
    draws += 1
    enough = want - len(kept) if run.cfg.rollout.unfinished != "finish" else math.inf
    since = {g[0].prompt.id: s for s, g in pending if any(len(r.tokens) for r in g)}
    continued += len(pending)
    have = [g for n, g in begun if n == draw]
    groups, why = sample(run, step, draw, prompts, [g for _, g in pending], have, enough, progress)
    run.begun += [(draw, g) for g in groups]
    if why:
      run.begun += [(n, g) for n, g in begun if n > draw]
      raise why
    if run.cfg.rollout.unfinished == "restart":
      groups = [g if all(r.finished for r in g) else [_begun_again(r) for r in g] for g in groups]
    done, left = [], []
    for g in groups:
      (done if all(r.finished for r in g) else left).append(g)
    pending, run.pending = [], run.pending + [(since.get(g[0].prompt.id, step), g) for g in left]
    for g in done:
      for r in g:
        r.age = step - since.get(g[0].prompt.id, step)
    seen += done
    fresh = [(since.get(g[0].prompt.id, step), g) for g in done if not c.enabled or informative(g)]
    kept += sorted(fresh, key=lambda pair: pair[0])
    if seen:
      keep_rate = (len(kept) - len(reused)) / len(seen)
    if left:
      break  # enough of them
  run.pending += pending  # there were enough without them
  run.begun = []
  found = len(kept) - len(reused)
  if seen:
    measured = found / len(seen)
    old = run.host.get("keep_rate", measured)
    run.host["keep_rate"] = KEEP_RATE_MEMORY * old + (1 - KEEP_RATE_MEMORY) * measured
  kept, left = kept[:want], kept[want:]
  can_wait = left if c.max_age > 0 else []
  run.surplus += can_wait
  values = describe_sampled(seen) | {
    "draws": draws,
    "prompts_drawn": len(seen),
    "groups_informative": found,
    "groups_reused": len(reused),
    "groups_continued": continued,
    "groups_unfinished": len(run.pending),
    "groups_waiting": len(run.surplus),
    "groups_dropped": aged_out + len(left) - len(can_wait),
    "keep_rate": found / len(seen) if seen else math.nan,
  }
  if draws:
    values |= run.engine.usage.values()
  if missing := without_verdict(seen):
    values["unverified"] = missing
  if len(kept) < want and (not kept or c.on_exhausted == "stop"):
    run.surplus = kept  # saved with the run
    limit = f"max_draws={c.max_draws}" if draws == c.max_draws else f"all {len(drawn)} prompts were drawn"
    raise DataExhausted(
      f"dynamic_sampling: {limit}: {len(kept)} of {want} groups had both right and wrong responses in "
      f"{len(seen)} prompts (accuracy {values.get('accuracy', math.nan):.3f}{unverified(run, seen)}). Use easier or "
      "harder prompts, more samples per prompt or draws, or dynamic_sampling.enabled=False."
    )
  for s, group in kept:
    for r in group:
      r.age = step - s
  return [g for _, g in kept], count(run, values, kept)


def sample(
  run: Run, step: int, draw: int, prompts, pending: list[Group], have: list[Group], enough: float, progress
) -> tuple[list[Group], Exception | None]:  # fmt: skip
  """One draw: groups, scored where they are complete. Scoring runs beside the sampling of the others.

  have: what an earlier process had sampled of this draw.
  enough: sampling ends early once so many groups are informative. Whether that is so is decided by the groups that were
  complete at the last look but one, so it does not depend on how fast the scoring is. Where it is infinite nobody needs
  a verdict before the end, and sampling waits for none.
  Returns the groups, and why they are not what was asked for, not scored then: Stopping, EngineError or None.
  Raises: ValueError when the first verifications of a run have failed one and all.
  """
  found, stopped, stop_asked = 0, False, processes.StopPoll()
  key = jax.random.fold_in(run.key(step, parts.STREAM_ROLLOUT), draw)
  if have:
    pending, prompts = _with_begun(have, pending, prompts, run.cfg.rollout.samples_per_prompt, key), []
  under_way: list[tuple[concurrent.futures.Future, list[Group]]] = []  # in the same order on all processes

  def judge(future, groups):
    nonlocal found
    with run.timers("reward"):  # what sampling did not hide
      future.result()()
    found += sum(informative(g) or not run.cfg.dynamic_sampling.enabled for g in groups)

  scored = set()
  with concurrent.futures.ThreadPoolExecutor(1) as pool:  # texts of long responses take time, too

    def watch(groups: list[Group]) -> bool:
      nonlocal stopped
      if groups:
        while under_way and enough < math.inf:
          judge(*under_way.pop(0))
        under_way.append((pool.submit(begin_score, run, groups), groups))
        scored.update(g[0].prompt.id for g in groups)
      stopped = stop_asked()
      return stopped or found >= enough

    with run.timers("rollout"):
      if complete := [g for g in pending if all(r.finished for r in g)]:
        watch(complete)
      try:
        groups = run.engine.generate(
          prompts, run.cfg.rollout.samples_per_prompt, key=key, sampling=run.sampling(evaluation=False),
          progress=progress.task("rollout"), watch=watch, pending=pending,
        )  # fmt: skip
      except EngineError as error:
        return error.groups or have, error
    if stopped and not all(r.finished for g in groups for r in g):
      return groups, processes.Stopping()
    rest = [g for g in groups if all(r.finished for r in g) and g[0].prompt.id not in scored]
    under_way.append((pool.submit(begin_score, run, rest), rest))
    for item in under_way:
      judge(*item)
  refuse_silence(run, [g for g in groups if all(r.finished for r in g)])
  return groups, None


def _with_begun(have: list[Group], pending: list[Group], prompts: list[Prompt], samples: int, key) -> list[Group]:
  """Groups of a draw in its order, to be continued: as they are in `have`, where they are."""
  begun = {g[0].prompt.id: g for g in have}
  raw = tuple(int(x) for x in np.asarray(jax.random.key_data(key)))
  fresh = [[unbegun(p, number, raw) for number in range(samples)] for p in prompts]
  return [begun.get(g[0].prompt.id, g) for g in [*pending, *fresh]]


def _begun_again(r: Rollout) -> Rollout:
  if r.finished:
    return r
  nothing = np.zeros(0, np.float32)
  return dataclasses.replace(r, tokens=np.zeros(0, np.int32), logp=nothing, raw_logp=nothing)


def informative(group: Group) -> bool:
  """Whether a group has both right and wrong responses: else all its advantages are 0."""
  return len({r.accuracy for r in group}) > 1


def draw_prompts(run: Run, number: int, drawn: set[int]) -> list[Prompt]:
  """Up to so many prompts that this step has not drawn yet: a repeated one would only repeat its samples."""
  prompts = []
  while len(prompts) < number and len(drawn) < run.stream.len_epoch:
    (prompt,) = run.stream.take(1)
    if prompt.id not in drawn:
      drawn.add(prompt.id)
      prompts.append(prompt)
  return prompts


def score(run: Run, groups: list[Group], cfg=None) -> None:
  """Fills text, accuracy, score, reward and flags of every rollout: the verifier's score plus the overlong penalty.

  cfg: of an evaluation set, if not that of the run.
  Raises: ValueError when the first verifications of a run have failed one and all.
  """
  begin_score(run, groups, cfg)()
  refuse_silence(run, groups)


def begin_score(run: Run, groups: list[Group], cfg=None) -> Callable[[], None]:
  """Hands the responses to the verifiers; the function that comes back waits for the verdicts and fills them in.

  Only the responses that this process verifies are decoded here.
  """
  c = run.cfg if cfg is None else cfg
  rollouts = [r for group in groups for r in group]

  def job(i: int) -> Job:
    r = rollouts[i]
    r.text = run.tokenizer.decode(r.tokens)
    key = (r.prompt.id, r.sample)
    return Job(verifier_of(c, r.prompt), r.text, r.prompt.answer, r.prompt.extras, r.prompt.text, key)

  verdicts = begin_verify(run, job, len(rollouts))

  def finish() -> None:
    for r, s in zip(rollouts, verdicts(), strict=True):
      r.accuracy, r.score, r.pred, r.flags = s.accuracy, s.score, s.pred, tuple(s.flags)
      r.reward = s.score + overlong_penalty(
        len(r.tokens), max_tokens=c.rollout.max_response_tokens, buffer_tokens=c.reward.overlong_buffer_tokens,
        factor=c.reward.overlong_factor,
      )  # fmt: skip

  return finish


def begin_verify(run: Run, job: Callable[[int], Job], number: int) -> Callable[[], list[Scored]]:
  """Scores of job(0), job(1), ..., later; of many processes each verifies its share, and all get to know all."""
  n = processes.count()
  mine = run.scorer.submit([job(i) for i in range(processes.index(), number, n)])

  def finish() -> list[Scored]:
    if n == 1:
      return mine.result()
    scored: list[Scored | None] = [None] * number
    said = processes.exchange("scores", json.dumps([dataclasses.astuple(s) for s in mine.result()]))
    for k, text in enumerate(said):
      scored[k::n] = [Scored(*s) for s in json.loads(text)]
    return scored

  return finish


def refuse_silence(run: Run, groups: list[Group]) -> None:
  """The first batch of a process tells whether verifying works at all: ValueError when not one verdict came of it."""
  rollouts = list(itertools.chain.from_iterable(groups))
  if run.verified or not rollouts:
    return
  if all(r.failed for r in rollouts):
    raise ValueError(f"none of the first {len(rollouts)} responses could be verified{unverified(run, groups)}.")
  run.verified = True


def without_verdict(groups: list[Group]) -> list[tuple[int, int, str]]:
  """(Prompt's id, number of the sample, "timeout" or "error") of responses without a verdict, for a replay.

  Another process, on another day, may find the time.
  """
  return [(r.prompt.id, r.sample, f) for g in groups for r in g for f in r.flags if f in ("timeout", "error")]


def unverified(run: Run, groups: list[Group]) -> str:
  """How many responses have no verdict and why, as the end of a sentence; "" when all have one."""
  rollouts = list(itertools.chain.from_iterable(groups))
  number = failures(rollouts)
  if not any(number.values()):
    return ""
  why = f"; the first error: {run.scorer.first_error}" if run.scorer.first_error else ""
  return (
    f"; of {len(rollouts)} verifications {number['reward_errors']} raised and {number['reward_timeouts']} took more "
    f"than reward.timeout_s={run.cfg.reward.timeout_s:g} s or reward.memory_mb={run.cfg.reward.memory_mb}{why}"
  )


# ---- what was seen ----


def describe_sampled(groups: list[Group]) -> dict[str, float]:
  """Everything sampled in a step, before any filtering: the policy as it is.

  truncated_correct, truncated_wrong: shares of all responses that hit the limit and were right, or not.
  overlong_penalty: mean of reward − score.
  """
  if not groups:
    return {"tokens_generated": 0}
  rollouts = [r for g in groups for r in g]
  column = lambda of: np.array([of(r) for r in rollouts], float)
  accuracy, cut = column(lambda r: r.accuracy), column(lambda r: r.truncated)
  lengths, prompts = column(lambda r: len(r.tokens)), np.array([len(g[0].prompt.tokens) for g in groups], float)
  rewards, scores = column(lambda r: r.reward), column(lambda r: r.score)
  low, middle, high = np.quantile(lengths, (0.25, 0.5, 0.75))
  values = {
    "accuracy": accuracy.mean(),
    "score": scores.mean(), "score_min": scores.min(), "score_max": scores.max(),
    "reward": rewards.mean(), "reward_min": rewards.min(), "reward_max": rewards.max(),
    "overlong_penalty": (rewards - scores).mean(),
    "response_length": lengths.mean(), "response_length_min": lengths.min(), "response_length_max": lengths.max(),
    "response_length_p25": low, "response_length_median": middle, "response_length_p75": high,
    "prompt_length": prompts.mean(), "prompt_length_min": prompts.min(), "prompt_length_max": prompts.max(),
    "truncated": cut.mean(),
    "truncated_correct": (cut * (accuracy >= 1)).mean(), "truncated_wrong": (cut * (accuracy < 1)).mean(),
    **failures(rollouts),
    "tokens_generated": lengths.sum(),
  }  # fmt: skip
  if (missing := no_answer(rollouts)) is not None:
    values["no_answer"] = missing
  return {name: float(value) for name, value in values.items()}


def describe_trained(groups: list[Group], *, advantages: bool = True) -> dict[str, float]:
  """The groups that are learnt from, after filtering.

  advantages: False leaves those out, for they are not known before a value head has spoken.

      advantage_length_weighted = Σ_i A_i·|o_i| / Σ_i |o_i|

  Above 0: longer responses are the better ones of their groups. Source: arXiv 2603.19835, its early sign of growth.
  """
  rollouts = [r for g in groups for r in g]
  lengths = np.array([len(r.tokens) for r in rollouts], float)
  A = np.array([r.advantage for r in rollouts])
  values = {
    "groups_trained": len(groups),
    "tokens_trained": lengths.sum(),
    "accuracy_trained": np.mean([r.accuracy for r in rollouts]),
    "reward_trained": np.mean([r.reward for r in rollouts]),
    "response_length_trained": lengths.mean(),
    "sequence_tokens_max": max(len(r.prompt.tokens) + len(r.tokens) for r in rollouts),
  }  # fmt: skip
  if advantages:
    values |= {"advantage_min": A.min(), "advantage_max": A.max(),
               "advantage_length_weighted": (A * lengths).sum() / lengths.sum()}  # fmt: skip
  return {name: float(value) for name, value in values.items()}


def count(run: Run, values: dict[str, float], kept: list[tuple[int, Group]]) -> dict[str, float]:
  """Adds a step to the run's counters, which survive in checkpoints; and the share of generated tokens ever trained."""
  totals = run.host["counters"]
  trained = sum(len(r.tokens) for _, g in kept for r in g)
  for name, value in {**values, "groups_trained": len(kept), "tokens_trained": trained}.items():
    if name in ("prompts_drawn", "groups_trained", "groups_reused", "groups_dropped", "tokens_generated",
                "tokens_trained", "reward_errors", "reward_timeouts"):  # fmt: skip
      totals[name] = totals.get(name, 0) + int(value)
  efficiency = totals["tokens_trained"] / totals["tokens_generated"] if totals["tokens_generated"] else math.nan
  return values | {"token_efficiency": efficiency} | {f"total/{name}": value for name, value in totals.items()}
