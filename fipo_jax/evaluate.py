"""Accuracy of a policy over several samples per prompt: avg@n, pass@n, cons@n, lengths, truncation.

Two families of numbers, on purpose side by side. *Exact* ones are plain functions of the n samples and are what papers
report. *Validation* ones are the reference trainer's bootstrap over resampled subsets (best@k, worst@k, maj@k), kept
so that its logged curves can be compared; best@n of the bootstrap is not pass@n.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence

import numpy as np

from fipo_jax import processes
from fipo_jax.types import Prompt, Rollout

NO_ANSWER = "[INVALID]"  # what verifiers of the reference say when they find no answer; it votes like any other
BOOTSTRAP_DRAWS = 1000
BOOTSTRAP_SEED = 42


def evaluate(
  engine,
  score: Callable[[list[list[Rollout]]], None],
  prompts: list[Prompt],
  *,
  samples_per_prompt: int,
  key,
  sampling,
  progress=None,
  watch: Callable[[list[list[Rollout]]], bool] | None = None,
) -> dict[str, float]:
  """Samples, scores and summarises; see `summary` for what comes back.

  Args:
    engine: a row of ENGINES, its parameters up to date.
    score: fills text, pred, accuracy, score and reward of each rollout in place.
    progress: passed to the engine; called with (samples done, samples in total).
    watch: passed to the engine, which it may end early.
  Raises:
    processes.Stopping: it was ended early.
    ValueError: no prompts, or samples_per_prompt below 1.
  """
  if not prompts:
    raise ValueError("prompts=[]: there is nothing to evaluate; is the evaluation source empty?")
  if samples_per_prompt < 1:
    raise ValueError(f"samples_per_prompt={samples_per_prompt} must be at least 1.")
  groups = engine.generate(
    prompts, samples_per_prompt, key=key, sampling=sampling, progress=progress, watch=watch
  )
  if not all(r.finished for group in groups for r in group):
    raise processes.Stopping
  score(groups)
  return summary(groups)


def summary(groups: list[list[Rollout]]) -> dict[str, float]:
  """Metric name -> value over scored groups of n rollouts each, every prompt with equal weight.

  accuracy (= avg@n, "Pass@1" of papers) and accuracy_se, its standard error over prompts; pass@n: any sample right;
  cons@n: majority answer right, ties to the answer seen first; reward; response_tokens and response_tokens_max;
  truncated: fraction of samples; no_answer: see there; reward_timeouts, reward_errors: how many have no verdict.
  prompts, samples: how many there were. Without cons@n and no_answer where the verifier does not read answers.
  """
  rollouts = [rollout for group in groups for rollout in group]
  n = max(len(group) for group in groups)
  per_prompt = [
    exact_per_prompt([r.pred for r in group], [r.accuracy for r in group]) for group in groups
  ]
  accuracy = [p["avg"] for p in per_prompt]
  lengths = [len(r.tokens) for r in rollouts]
  spread = np.std(accuracy, ddof=1) / np.sqrt(len(groups)) if len(groups) > 1 else np.nan
  values = {
    "accuracy": np.mean(accuracy),
    "accuracy_se": spread,
    f"pass@{n}": np.mean([p["pass_any"] for p in per_prompt]),
    "reward": np.mean([r.reward for r in rollouts]),
    "response_tokens": np.mean(lengths),
    "response_tokens_max": np.max(lengths),
    "truncated": np.mean([r.truncated for r in rollouts]),
    **failures(rollouts),
    "prompts": len(groups),
    "samples": len(rollouts),
  }
  missing = no_answer(rollouts)
  if missing is not None:
    values |= {f"cons@{n}": np.mean([p["cons_first"] for p in per_prompt]), "no_answer": missing}
  return {name: float(value) for name, value in values.items()}


def no_answer(rollouts: Sequence[Rollout]) -> float | None:
  """Share of verified responses in which the verifier found no answer; None when it reads none, or verified nothing.

  The one definition, in training and in evaluation. Responses without a verdict are counted by `failures`.
  """
  verified = [r for r in rollouts if not r.failed]
  if not verified or any("unread" in r.flags for r in verified):
    return None
  return float(np.mean([r.pred is None for r in verified]))


def failures(rollouts: Sequence[Rollout]) -> dict[str, int]:
  """reward_timeouts, reward_errors: how many verifications ran out of time or memory, or raised."""
  return {f"reward_{kind}s": sum(kind in r.flags for r in rollouts) for kind in ("timeout", "error")}


def exact_per_prompt(preds: Sequence[str | None], accs: Sequence[float]) -> dict[str, float]:
  """Plain numbers of one prompt's n samples; an answer's value is that of its first sample.

  avg: mean accuracy. pass_any: best accuracy, 1 if any sample is right. cons_first: value of the most frequent answer,
  ties to the one seen first. cons_tie_mean: mean value of the tied answers. cons_first_valid_only: as cons_first, but
  missing answers do not vote (0 when none is left). n_tied: answers sharing the highest count.

  Raises:
    ValueError: no samples, or as many answers as accuracies are not given.
  """
  if not len(accs) or len(preds) != len(accs):
    raise ValueError(
      f"{len(preds)} answers and {len(accs)} accuracies: need one of each per sample."
    )
  votes = [_vote(pred) for pred in preds]
  value = dict(
    zip(reversed(votes), reversed(accs), strict=True)
  )  # the first sample's accuracy wins
  tied = _most_frequent(votes)
  valid = [vote for vote in votes if vote != NO_ANSWER]
  return {
    "avg": float(np.mean(accs)),
    "pass_any": float(np.max(accs)),
    "cons_first": float(value[tied[0]]),
    "cons_tie_mean": float(np.mean([value[vote] for vote in tied])),
    "cons_first_valid_only": float(value[_most_frequent(valid)[0]]) if valid else 0.0,
    "n_tied": len(tied),
  }


def validation_metrics(
  data_sources: Sequence[str],
  sample_inputs: Sequence[str],
  preds: Sequence[str | None],
  accs: Sequence[float],
  rewards: Sequence[float],
) -> dict[str, dict[str, dict[str, float]]]:
  """The reference trainer's validation numbers: source -> "reward" or "acc" -> metric name -> value.

  Samples are grouped by (source, prompt text). A prompt with n samples has mean@n and std@n (population deviation)
  and, for k = 2, 4, 8, ... below n and k = n, best@k, worst@k and maj@k, each with /mean and /std over 1000 draws of k
  samples with replacement. maj is the value of the first sample in the draw that holds the draw's most frequent
  answer, ties to the answer drawn first. Every name is averaged over the prompts that have it.

  Args:
    data_sources, sample_inputs, preds, accs, rewards: one entry per sample, in any order.
  Source: qwenpilot/FIPO, validation of the trainer.
  """
  names = {"reward": rewards, "acc": accs}
  collected = collections.defaultdict(lambda: collections.defaultdict(list))
  for (source, _), index in _by_prompt(data_sources, sample_inputs).items():
    votes = [_vote(preds[i]) for i in index]
    for variable, values in names.items():
      for metric, value in _bootstrap(np.array([values[i] for i in index], float), votes).items():
        collected[source, variable][metric].append(value)
  out: dict[str, dict[str, dict[str, float]]] = {}
  for (source, variable), metrics in collected.items():
    out.setdefault(source, {})[variable] = {m: float(np.mean(v)) for m, v in metrics.items()}
  return out


def _bootstrap(value_n, votes: list[str]) -> dict[str, float]:
  """Metric name -> value of one variable of one prompt's n samples."""
  n = len(value_n)
  out = {f"mean@{n}": value_n.mean()}
  if n == 1:
    return out
  out[f"std@{n}"] = value_n.std()
  _, answer_n = np.unique(votes, return_inverse=True)  # answers as numbers 0, 1, ...
  for k in [2**i for i in range(1, n.bit_length()) if 2**i < n] + [n]:
    draw_Nk = np.random.RandomState(BOOTSTRAP_SEED).randint(0, n, size=(BOOTSTRAP_DRAWS, k))
    drawn_Nk, answer_Nk = value_n[draw_Nk], answer_n[draw_Nk]
    # Votes that each drawn sample's answer gets in its draw; argmax takes the first of equals.
    count_Nk = (answer_Nk[:, :, None] == answer_Nk[:, None, :]).sum(axis=-1)
    majority_N = np.take_along_axis(drawn_Nk, count_Nk.argmax(axis=-1)[:, None], axis=1)[:, 0]
    for name, result_N in (
      ("best", drawn_Nk.max(axis=-1)),
      ("worst", drawn_Nk.min(axis=-1)),
      ("maj", majority_N),
    ):
      out[f"{name}@{k}/mean"] = result_N.mean()
      out[f"{name}@{k}/std"] = result_N.std()
  return out


def _by_prompt(data_sources, sample_inputs) -> dict[tuple[str, str], list[int]]:
  """(source, prompt text) -> indices of its samples, in order of first appearance."""
  groups = collections.defaultdict(list)
  for i, prompt in enumerate(zip(data_sources, sample_inputs, strict=True)):
    groups[prompt].append(i)
  return groups


def _most_frequent(votes: list[str]) -> list[str]:
  """The answers that share the highest count, in order of first appearance."""
  counts = collections.Counter(votes)
  return [vote for vote, count in counts.items() if count == max(counts.values())]


def votes(group: Sequence[Rollout]) -> list[str]:
  """What each response votes for; a missing answer votes like any other."""
  return [_vote(r.pred) for r in group]


def _vote(pred: str | None) -> str:
  return NO_ANSWER if pred is None else str(pred)
