"""An iteration of a run on a pod that is not there: the real scheduling of rollouts, drawing and packing, on a clock.

    collect.sample_groups -> serving.Call -> simulated.Simulated        seconds of the rollout
    batching.minibatches, first_fit -> micro-batches                    seconds of scoring and update

What is not simulated: verifiers (they run beside sampling), reading prompts, compiling, restarts.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import math
import types
from collections.abc import Callable

import jax
import numpy as np

from fipo_jax import collect
from fipo_jax import prompts as prompts_lib
from fipo_jax.evaluation import sets as sets_lib
from fipo_jax.pods import costs as costs_lib
from fipo_jax.pods.costs import Efficiencies, SamplingCosts, Trained
from fipo_jax.pods.programs import Plan
from fipo_jax.pods.simulated import TOKEN, Clock, Simulated
from fipo_jax.rewards.score import Scored
from fipo_jax.rollout import Sampling, looks, serving
from fipo_jax.rollout.capacity import Capacity
from fipo_jax.train import batching
from fipo_jax.types import Prompt

PHASES = ("prefill", "decode", "look", "resize", "score", "update", "move", "evaluate", "checkpoint")


@dataclasses.dataclass(frozen=True)
class Workload:
  """What a run will meet. lengths: see `simulated.Lengths`. prompt_tokens: mean; they vary by half of it.

  keep_rate: share of groups with both right and wrong responses.
  """

  lengths: Callable
  prompt_tokens: int = 200
  keep_rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Iteration:
  """seconds: by phase, evaluation and checkpoint spread over the iterations between them. tokens: sampled.

  trained: tokens of responses that were trained on. micro: micro-batches of an iteration. fill: of their rows. idle:
  share of the iteration in which slots are empty or the chips wait for the host. interrupted: responses put back.
  bounds: what limits decoding, scoring and update. programs: of decoding that were needed. host_s: what the real host
  code took on this machine.
  """

  seconds: dict[str, float]
  tokens: int
  trained: int
  micro: int
  fill: float
  idle: float
  interrupted: int
  programs: int
  host_s: float

  @property
  def total(self) -> float:
    return sum(self.seconds.values())


class _Counts(looks.Looks):
  """Of a device that samples nothing: how many tokens a sample has, and not which. All logs of a pod would be 40 GB."""

  def add(self, log) -> np.ndarray:
    """See `Looks.add`."""
    uids = super().add(log)
    self.looks[-1] = None
    return uids

  def since(self, uid: int, begin: int, had: int):
    """See `Looks.since`."""
    return (np.broadcast_to(np.int32(TOKEN), int(self.count[uid]) - had), *[np.zeros(0, np.float32)] * 2)


class SimulatedEngine:
  """The native engine's `generate` on a simulated device. Responses have their lengths, and log-probs are left out."""

  def __init__(self, capacity: Capacity, costs, lengths: Callable, stop_id: int, clock: Clock):
    self.capacity, self.costs, self.lengths, self.stop_id, self.clock = capacity, costs, lengths, stop_id, clock
    self.usage, self.host_s = None, 0.0

  def generate(
    self, prompts, samples_per_prompt: int, *, key, sampling, progress=None, watch=None, pending=(), limits=None
  ):  # fmt: skip
    """See `rollout.Engine`."""
    c = self.capacity
    device = Simulated(
      shards=c.shards, page=c.page, most_slots=c.slots, stop_id=self.stop_id, costs=self.costs, clock=self.clock,
      lengths_of=self.lengths, decide=self.costs.decide,
    )  # fmt: skip
    call = serving.Call(device, c, prompts, samples_per_prompt, key, sampling, pending, limits)
    self.usage, call.looks = call.usage, _Counts(call.looks.count)

    def thin(groups) -> None:
      for r in (r for group in groups for r in group):
        r.tokens = np.broadcast_to(np.int32(TOKEN), len(r.tokens))  # takes no memory

    def seen(groups) -> bool:
      thin(groups)
      return bool(watch and watch(groups))

    if call.samples:
      call.serve(progress or (lambda done, total: None), seen)
      thin(call.groups)
      self.host_s += call.usage.seconds
    return call.groups


class _Stream:
  """Prompts without end, of which a share is informative."""

  len_epoch = 10**9

  def __init__(self, workload: Workload):
    self.of, self.rng, self.ids = workload, np.random.default_rng(0), itertools.count()

  def take(self, number: int) -> list[Prompt]:
    return [self._one() for _ in range(number)]

  def _one(self) -> Prompt:
    mean = self.of.prompt_tokens
    tokens = np.zeros(int(self.rng.integers(mean - mean // 2, mean + mean // 2 + 1)), np.int32)
    extras = {"mixed": bool(self.rng.random() < self.of.keep_rate), "samples": itertools.count()}
    return Prompt(next(self.ids), tokens, "", "", "", extras)


class _Judge:
  """Verdicts at once: every other sample of a mixed prompt is right, none of another."""

  first_error = ""

  def submit(self, jobs) -> concurrent.futures.Future:
    future = concurrent.futures.Future()
    right = [float(job.extras["mixed"] and next(job.extras["samples"]) % 2) for job in jobs]
    future.set_result([Scored(score=a, accuracy=a, pred=None) for a in right])
    return future


class _Silent:
  def task(self, name: str) -> Callable:
    return lambda done, total: None


def simulate(
  plan: Plan, workload: Workload, by: Efficiencies, trained: dict[str, Trained], *, iterations: int = 1, warm: int = 0
) -> list[Iteration]:
  """So many iterations after `warm` others: under rollout.unfinished="continue" the first ones inherit nothing.

  Args:
    trained: a micro-batch of "train" and of "score".
  """
  cfg, e = plan.cfg, plan.engine
  run = open_run(plan, workload, SamplingCosts(costs_lib.sampled(plan), by, e.shards, e.decide))
  engine, clock, ev = run.engine, run.engine.clock, cfg.eval
  found = []
  for step in range(1, warm + iterations + 1):
    clock.__init__()
    engine.host_s = 0.0
    groups, values = draw(run, step)
    if step <= warm:
      continue
    seconds = dict.fromkeys(PHASES, 0.0) | clock.seconds
    micro, fill, updates = packed(cfg, groups, step)
    seconds["score"] = micro * trained["score"].cost(by) * (2 if cfg.algorithm.reference_kl_coef else 1)
    seconds["update"] = micro * trained["train"].cost(by)
    seconds["update"] += updates * 2 * plan.state_bytes / (plan.chip.tb_s * 1e12) / by.decode
    seconds["move"] = costs_lib.weights_move(plan, by)
    busy = clock.busy_slot_s / clock.slot_s * seconds["decode"]
    idle_s = seconds["decode"] - busy + seconds["look"]
    interrupted, programs, host_s = engine.usage.interrupted, engine.usage.decode_programs, engine.host_s
    if ev.every:
      seconds["evaluate"] = _evaluate(run, clock, workload, seconds["move"]) / ev.every
    seconds["checkpoint"] = costs_lib.checkpoint(plan, by) / cfg.checkpoint.every
    trained_tokens = sum(len(x.tokens) for group in groups for x in group)
    total = sum(seconds.values())
    found.append(Iteration(
      seconds, int(values["tokens_generated"]), trained_tokens, micro, fill, idle_s / total, interrupted, programs,
      host_s,
    ))  # fmt: skip
  return found


def open_run(plan: Plan, workload: Workload, costs) -> types.SimpleNamespace:
  """As much of a `Run` as `collect` needs, with a simulated engine."""
  cfg, r = plan.cfg, plan.cfg.rollout
  stop_id, key = plan.model.config.vocab_size - 1, jax.random.key(cfg.seed)
  return types.SimpleNamespace(
    cfg=cfg, surplus=[], pending=[], begun=[], host={"counters": {}, "keep_rate": workload.keep_rate},
    stream=_Stream(workload),
    engine=SimulatedEngine(plan.engine.capacity, costs, workload.lengths, stop_id, Clock()), scorer=_Judge(),
    timers=lambda name: contextlib.nullcontext(), verified=True,
    tokenizer=types.SimpleNamespace(decode=lambda tokens: ""),
    key=lambda step, stream: jax.random.fold_in(jax.random.fold_in(key, step), stream),
    sampling=lambda evaluation: Sampling(max_tokens=r.max_response_tokens, stop_ids=(stop_id,)),
  )  # fmt: skip


def draw(run, step: int):
  """Groups to learn from, and what is said of them: see `collect.sample_groups`."""
  return collect.sample_groups(run, step, _Silent())


def evaluation(run, workload: Workload) -> None:
  """Samples for one evaluation; its responses are as long as those of training."""
  for s, (problems, _) in zip(sets_lib.of(run.cfg), evaluated(run.cfg), strict=True):
    sampling = dataclasses.replace(run.sampling(evaluation=True), max_tokens=s.cfg.rollout.max_response_tokens)
    run.engine.generate(_Stream(workload).take(problems), s.cfg.eval.samples_per_prompt, key=s.key(), sampling=sampling)


def evaluated(cfg) -> list[tuple[int, str]]:
  """(problems, a line about it) of each set; of files that are not here eval.prompts is taken, and said."""
  found = []
  for s in sets_lib.of(cfg):
    known = prompts_lib.count(s)
    problems = known or cfg.eval.prompts
    said = f"{s.name or 'evaluation'}: {problems} problems x {s.cfg.eval.samples_per_prompt}"
    if known is None:
      said += f" (of eval.prompts: {s.cfg.eval.path or s.cfg.data.name} is not here to be counted)"
    found.append((problems, said))
  return found


def packed(cfg, groups, step: int) -> tuple[int, float, int]:
  """(micro-batches of all mini-batches, how full their rows are, updates), by the trainer's own packing."""
  b = cfg.batch
  micro = tokens = 0
  parts = batching.minibatches(groups, b.prompts // b.minibatch_prompts, seed=cfg.seed, step=step)
  for part in parts:
    lengths = [len(r.prompt.tokens) + len(r.tokens) for group in part for r in group]
    rows = batching.first_fit(lengths, b.row_tokens)
    micro += math.ceil(len(rows) / b.micro_rows)
    tokens += sum(lengths)
  return micro, tokens / (micro * b.micro_rows * b.row_tokens), len(parts)


def _evaluate(run, clock: Clock, workload: Workload, move_s: float) -> float:
  """Seconds of one evaluation, weights included."""
  before = clock.now
  evaluation(run, workload)
  return clock.now - before + move_s
