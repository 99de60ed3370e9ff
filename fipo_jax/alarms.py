"""Tells from the metrics of each step that a run is going wrong, in one line that says what was seen and what helps.

    watch = Watch(Limits())
    for alarm in watch.check(step, values): print(alarm.message)

Plain Python on the host. An alarm only speaks; whether a run then stops is the caller's decision.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import numbers
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

NAMES = (
  "collapse", "entropy_collapse", "entropy_explosion", "length_runaway", "reward_stuck", "future_kl_zero",
  "eval_parse_failures", "verifier_trouble", "sampler_gap",
)  # fmt: skip
# The five signs of a collapse: metric -> how a message names it.
SIGNS = {
  "dual_clip_fraction": "dual-clipped share of tokens",
  "policy_kl": "policy KL in nats",
  "grad_norm": "gradient norm",
  "response_length": "mean length in tokens",
  "accuracy": "accuracy",
}
# Those that fall: metric -> the limit that says by how much.
FALLING = {"response_length": "collapse_length_drop", "accuracy": "collapse_accuracy_drop"}
# A sign of the update holds when so many of the last steps show it: one bad batch shows all three, but only once, and
# the dual clip of a collapse comes and goes. A fall of the mean length is seldom chance, and waiting costs length: it
# holds at once.
SIGN_SHOWN, SIGN_STEPS = 2, 3


@dataclasses.dataclass(frozen=True)
class Alarm:
  """One thing that went wrong, as one line for a log."""

  name: str
  step: int
  message: str


@dataclasses.dataclass(frozen=True)
class Limits:
  """Every threshold; 0 in a field marked (0 = off) switches that test off.

  Raises ValueError for a negative or infinite value, a count of steps below 1, and a window shorter than the warm-up,
  with which nothing would ever be compared.
  """

  # Shared by several alarms.
  warmup_steps: int = 10  # steps; before so many have been seen, nothing is compared with what is usual
  window_steps: int = 60  # healthy steps behind a usual value: twice a slow collapse, which must not become usual
  noise_sigmas: float = 3.0  # standard deviations of a metric's own step-to-step noise that a collapse sign must exceed
  hold_steps: int = 5  # steps in a row that a level must hold (not: collapse, surge of length, evaluations, gap)
  clear_steps: int = 5  # times in a row that a raised alarm must be absent before it can be raised again

  # collapse: unmasked Future-KL in the paper takes KL from 0.002 to 0.01 and the low-clip share from 0 to 1e-5.
  collapse_signs: int = 3  # of the five signs (0 = off); two alone also come with a healthy change of regime
  collapse_dual_clip: float = 1e-5  # share of tokens; below it the sign never shows
  collapse_policy_kl: float = 1e-3  # nats; below it the sign never shows: half of what healthy long runs reach
  collapse_rise: float = 3.0  # times the usual dual clip and policy KL; a KL that grows in step with time stays below 2
  collapse_grad_rise: float = 2.0  # times the usual gradient norm, which clipping and Adam keep steadier than KL
  collapse_length_drop: float = 0.15  # share of the usual length; a third of the way to half
  collapse_accuracy_drop: float = 0.3  # share of the usual accuracy; harder prompts alone seldom cost as much at once

  # entropy_collapse, entropy_explosion.
  entropy_min: float = 0.01  # nats per token (0 = off); the policy is all but deterministic and groups become uniform
  entropy_max: float = 2.0  # nats per token (0 = off); the paper's runs that went astray rose to 2-3
  entropy_fraction: float = 0.1  # of the median of the first steps (0 = off); a third is normal while a task is learnt
  entropy_multiple: float = 5.0  # of the same median (0 = off); slow growth is normal at 32B

  # length_runaway.
  truncated_max: float = 0.5  # share of responses at the token limit (0 = off); they are rarely right
  length_surge: float = 2.0  # growth factor over surge_steps (0 = off); healthy runs need some 40 steps to double
  surge_steps: int = 10  # steps
  truncated_rise: float = 0.1  # by which the truncated share must rise with a surge: longer but ended answers are fine

  # The others.
  stuck_margin: float = 0.001  # of accuracy around 0 and 1 (0 = off): about one response in a thousand
  future_kl_zero: float = 1e-6  # nats (0 = off); rounding leaves about 1e-7 where nothing moved, real values are ~1e-2
  parse_failures_max: float = 0.5  # share of held-out responses without an answer (0 = off)
  parse_failures_evals: int = 2  # evaluations in a row: the one before training may see a model without the format
  verifier_trouble_max: float = 0.05  # share of responses whose verification timed out or raised (0 = off)
  # sampler_gap: mean |log-prob of the trainer - of the sampler|, by model.dtype. One policy in two programs differs by
  # rounding: about 1e-7 nats were seen in float32, 1e-3 to 2e-2 in bfloat16.
  sampler_gap_float32: float = 1e-3  # nats (0 = off); a sampler in bfloat16, or TF32 at its worst, is above
  sampler_gap_bfloat16: float = 0.05  # nats (0 = off); weights of another run or step are above, sooner or later

  def __post_init__(self):
    for field, value in dataclasses.asdict(self).items():
      if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"alarms.{field}={value!r}: must be 0 or greater.")
    for field in ("hold_steps", "clear_steps", "parse_failures_evals"):
      if getattr(self, field) < 1:
        raise ValueError(f"alarms.{field}={getattr(self, field)!r}: must be at least 1.")
    if not 2 <= self.warmup_steps <= self.window_steps:
      raise ValueError(
        f"alarms.warmup_steps={self.warmup_steps}: must lie between 2 and alarms.window_steps={self.window_steps}."
      )


class Watch:
  """Reads the metrics of step after step and keeps the little history that its alarms compare with.

  An alarm is raised when an episode of its condition begins, and again only after that has ended: one line an episode.
  A step without a metric, or with one that is not finite, neither raises nor clears what depends on it.

  Args:
    dtype: model.dtype, the trainer's compute.
  """

  def __init__(self, limits: Limits, dtype: str = "bfloat16"):
    self._limits, self._dtype = limits, dtype
    self._rules = {name: getattr(self, f"_{name}") for name in NAMES}
    self._memory: dict[str, Any] = {
      "usual": {metric: [] for metric in SIGNS},  # values of the last healthy steps
      "signs": [],  # those that each of the last steps showed
      "first_entropies": [],
      "lengths": [],  # (mean length, truncated share) of the last steps
      "episodes": {},  # condition -> [whether an episode is on, times in a row that the condition said otherwise]
      "raised": [],  # alarms whose condition is on
    }

  def check(self, step: int, values: Mapping[str, Any]) -> list[Alarm]:
    """The alarms that begin at this step; to be called once a step, with what metrics.jsonl gets."""
    alarms, raised = [], self._memory["raised"]
    self._remember(values)
    for name, rule in self._rules.items():
      message = rule(values)
      if message and name not in raised:
        alarms.append(Alarm(name, step, message))
        raised.append(name)
      elif message == "" and name in raised:
        raised.remove(name)
    return alarms

  def state(self) -> dict[str, Any]:
    """All history, of plain lists, dicts and numbers: what a checkpoint needs for a resumed run to alarm alike."""
    return copy.deepcopy(self._memory)

  def restore(self, state: Mapping[str, Any]) -> None:
    """Continues from what `state` returned."""
    self._memory = copy.deepcopy(dict(state))

  def _remember(self, values) -> None:
    entropy, first = _policy_entropy(values), self._memory["first_entropies"]
    if entropy is not None and len(first) < self._limits.warmup_steps:
      first.append(entropy)
    length, truncated = _number(values, "response_length"), _number(values, "truncated")
    if length is not None and truncated is not None:
      lengths = [*self._memory["lengths"], [length, truncated]]
      self._memory["lengths"] = lengths[-(self._limits.surge_steps + 3) :]

  def _on(self, condition: str, holds: bool, times: int) -> bool:
    """Whether an episode is on: begun when the condition held `times` in a row, ended after clear_steps without it."""
    on, contrary = self._memory["episodes"].get(condition, [False, 0])
    contrary = contrary + 1 if holds != on else 0
    if contrary >= (self._limits.clear_steps if on else times):
      on, contrary = not on, 0
    self._memory["episodes"][condition] = [on, contrary]
    return on

  # The rules. Each returns a message while its condition is on, "" while it is not, None where that cannot be known.

  def _collapse(self, values) -> str | None:
    """At least collapse_signs of: dual clip, policy KL, gradient norm up, length, accuracy down; see `_sign`.

    The three signs of the update can speak before length and accuracy, their consequences, have moved; and no single
    metric, however wild, speaks alone. A step that shows so many signs is not healthy and does not change what is
    usual.
    Source: arXiv 2603.19835, training without the mask on Future-KL, which breaks near step 70; accuracy is our
    addition: where few tokens are sampled the gradient norm is too noisy to be a sign.
    """
    limits, memory = self._limits, self._memory
    measured = {metric: x for metric in SIGNS if (x := _number(values, metric)) is not None}
    if not limits.collapse_signs or len(measured) < limits.collapse_signs:
      return None
    compared = {m: x for m, x in measured.items() if len(memory["usual"][m]) >= limits.warmup_steps}
    shown = [metric for metric, x in compared.items() if self._sign(metric, x)]
    memory["signs"] = [*memory["signs"], shown][-SIGN_STEPS:]
    times = {m: sum(m in signs for signs in memory["signs"]) for m in compared}
    holding = [m for m in compared if times[m] >= SIGN_SHOWN or (m == "response_length" and m in shown)]
    seen = [f"{SIGNS[m]} {measured[m]:.3g} (usually {self._usual(m):.3g})" for m in holding]
    if len(shown) < limits.collapse_signs:
      for metric, x in measured.items():
        memory["usual"][metric] = [*memory["usual"][metric], x][-limits.window_steps :]
    if not self._on("collapse", len(holding) >= limits.collapse_signs, 1):
      return ""
    return (
      f"{len(holding)} of {len(SIGNS)} signs of a collapse: {', '.join(seen)}. Updates have become too large, and "
      "length and accuracy usually fall next; resume from an earlier checkpoint with a lower "
      "optimizer.learning_rate, and see that algorithm.participation_mask is not 'off'."
    )

  def _sign(self, metric: str, x: float) -> bool:
    """Whether x departs from what is usual, u, in the direction of a collapse; s is the metric's noise.

    length, accuracy:   x < min((1 - drop) * u, u - noise_sigmas * s)
    KL, gradient norm:  x > max(floor, rise * u, u + noise_sigmas * s)
    dual clip:          x > max(floor, rise * u, upper quartile), for most values are 0, and so are u and s
    """
    limits, history, usual = self._limits, self._memory["usual"][metric], self._usual(metric)
    margin = limits.noise_sigmas * _noise(history)
    if metric in FALLING:
      return x < min((1 - getattr(limits, FALLING[metric])) * usual, usual - margin)
    high = sorted(history)[3 * len(history) // 4]
    bounds = {
      "dual_clip_fraction": (limits.collapse_dual_clip, limits.collapse_rise * usual, high),
      "policy_kl": (limits.collapse_policy_kl, limits.collapse_rise * usual, usual + margin),
      "grad_norm": (limits.collapse_grad_rise * usual, usual + margin),
    }
    return x > max(bounds[metric])

  def _usual(self, metric: str) -> float:
    """Median over the last healthy steps; of the length, which may grow, that of the last five if it is larger."""
    history = self._memory["usual"][metric]
    usual = statistics.median(history)
    return max(usual, statistics.median(history[-5:])) if metric == "response_length" else usual

  def _entropy_collapse(self, values) -> str | None:
    entropy, early = _policy_entropy(values), self._early_entropy()
    if entropy is None:
      return None
    low = max(self._limits.entropy_min, self._limits.entropy_fraction * early)
    if not self._on("entropy_low", entropy < low, self._limits.hold_steps):
      return ""
    return (
      f"entropy {entropy:.3g} nats per token, below {low:.3g} for {self._limits.hold_steps} steps"
      f"{_early(early)}. Samples of a prompt become alike and nothing is left to learn from; raise "
      "algorithm.clip_high or rollout.temperature, or lower optimizer.learning_rate."
    )

  def _entropy_explosion(self, values) -> str | None:
    entropy, early = _policy_entropy(values), self._early_entropy()
    if entropy is None:
      return None
    limits = (self._limits.entropy_max, self._limits.entropy_multiple * early)
    high = min((limit for limit in limits if limit > 0), default=math.inf)
    if not self._on("entropy_high", entropy > high, self._limits.hold_steps):
      return ""
    return (
      f"entropy {entropy:.3g} nats per token, above {high:.3g} for {self._limits.hold_steps} steps"
      f"{_early(early)}. Responses drift towards noise; lower algorithm.clip_high or optimizer.learning_rate, and "
      "resume from an earlier checkpoint."
    )

  def _early_entropy(self) -> float:
    """Median of the first warmup_steps entropies; 0 as long as there are fewer, which switches relative limits off."""
    first = self._memory["first_entropies"]
    return statistics.median(first) if len(first) >= self._limits.warmup_steps else 0.0

  def _length_runaway(self, values) -> str | None:
    """Too many responses at the limit for hold_steps; or a surge: length multiplied, and truncation up with it.

    A surge compares the medians of the last three steps and of the three that lie surge_steps before them.
    """
    limits, lengths = self._limits, self._memory["lengths"]
    length, truncated = _number(values, "response_length"), _number(values, "truncated")
    if length is None or truncated is None:
      return None
    (length_before, truncated_before), (length_now, truncated_now) = (
      [statistics.median(column) for column in zip(*rows, strict=True)] for rows in (lengths[:3], lengths[-3:])
    )
    surge = (
      0 < limits.length_surge * length_before <= length_now
      and truncated_now - truncated_before >= limits.truncated_rise
      and len(lengths) >= limits.surge_steps + 3
    )
    full = 0 < limits.truncated_max < truncated
    seen = ""
    if self._on("length_surge", surge, 1):
      seen = (
        f"mean length from {length_before:.0f} to {length_now:.0f} tokens and truncated share from "
        f"{truncated_before:.1%} to {truncated_now:.1%} within {limits.surge_steps} steps"
      )
    if self._on("truncated", full, limits.hold_steps):
      seen = f"{truncated:.0%} of responses truncated, above {limits.truncated_max:.0%} for {limits.hold_steps} steps"
    return seen and (
      f"{seen}. Responses run into rollout.max_response_tokens and cannot be right; strengthen the overlong penalty "
      "(reward.overlong_factor, reward.overlong_buffer_tokens), see that the stop token is learnt, or raise the limit."
    )

  def _reward_stuck(self, values) -> str | None:
    accuracy, margin = _number(values, "accuracy"), self._limits.stuck_margin
    if accuracy is None or not margin:
      return None
    low = self._on("accuracy_low", accuracy <= margin, self._limits.hold_steps)
    high = self._on("accuracy_high", accuracy >= 1 - margin, self._limits.hold_steps)
    if not (low or high):
      return ""
    cause = "too hard, or the verifier finds no answer" if low else "too easy"
    return (
      f"accuracy {accuracy:.4g}, within {margin:.3g} of {0 if low else 1} for {self._limits.hold_steps} steps. The "
      f"prompts are {cause}: groups whose responses all score alike give no signal."
    )

  def _future_kl_zero(self, values) -> str | None:
    """Future-KL of every mini-batch after the first; the first is 0 anyway, for the policy has not moved since."""
    each, limits = values.get("minibatch/future_kl_abs_mean"), self._limits
    if not isinstance(each, Sequence) or not each or not limits.future_kl_zero:
      return None
    later = [x for x in each[1:] if _finite(x)]
    if not later and len(each) > 1:
      return None
    zero = all(abs(x) < limits.future_kl_zero for x in later)
    if not self._on("future_kl_zero", zero, limits.hold_steps):
      return ""
    seen = (
      f"Future-KL below {limits.future_kl_zero:.3g} nats in every mini-batch"
      if later
      else "one update per rollout, at which Future-KL is 0,"
    )
    return (
      f"{seen} for {limits.hold_steps} steps. FIPO is then DAPO: it needs more than one update per rollout "
      "(batch.minibatch_prompts below batch.prompts) and an optimizer.learning_rate that moves the policy."
    )

  def _eval_parse_failures(self, values) -> str | None:
    share, limits = _number(values, "eval/no_answer"), self._limits
    if share is None or not limits.parse_failures_max:
      return None
    if not self._on("parse_failures", share > limits.parse_failures_max, limits.parse_failures_evals):
      return ""
    return (
      f"the verifier found no answer in {share:.0%} of held-out responses, above {limits.parse_failures_max:.0%} in "
      f"{limits.parse_failures_evals} evaluations. The answer format does not reach it; compare data.instruction with "
      "what reward.verifier looks for, and see whether responses are cut off at the token limit."
    )

  def _verifier_trouble(self, values) -> str | None:
    limits = self._limits
    names = ("reward_timeouts", "reward_errors", "tokens_generated", "response_length")
    timeouts, errors, tokens, length = (_number(values, name) for name in names)
    if None in (timeouts, errors, tokens) or not length or not limits.verifier_trouble_max:
      return None
    share = (timeouts + errors) * length / tokens if tokens else 0.0  # tokens / length responses were scored
    if not self._on("verifier_trouble", share > limits.verifier_trouble_max, limits.hold_steps):
      return ""
    return (
      f"{timeouts:.0f} verifications timed out and {errors:.0f} raised, {share:.0%} of responses, above "
      f"{limits.verifier_trouble_max:.0%} for {limits.hold_steps} steps. They score as wrong whatever they say; see "
      "reward.timeout_s, reward.workers and the verifier itself."
    )

  def _sampler_gap(self, values) -> str | None:
    """Rounding is there from the first step on and does not jump: one step above the limit is enough."""
    gap, high = _number(values, "sampler_gap_mean"), getattr(self._limits, f"sampler_gap_{self._dtype}")
    if gap is None or not high:
      return None
    if not self._on("sampler_gap", gap > high, 1):
      return ""
    return (
      f"log-probabilities of sampler and trainer are {gap:.3g} nats apart on average, above {high:.3g} for "
      f"model.dtype={self._dtype!r}. The sampler has other weights (a server that was started anew, or on a CPU kept a "
      "tied head), another dtype (a server's --dtype, rollout.cache_dtype), or reports another distribution than it "
      "draws from (top-k, top-p, min-p, a temperature without processed log-probabilities)."
    )


def _finite(x) -> bool:
  return isinstance(x, numbers.Real) and math.isfinite(x)


def _number(values: Mapping[str, Any], name: str) -> float | None:
  x = values.get(name)
  return float(x) if _finite(x) else None


def _policy_entropy(values: Mapping[str, Any]) -> float | None:
  """Entropy on the policy's own samples. Supervised steps, which have no accuracy, are to lose it: None."""
  return _number(values, "entropy") if _number(values, "accuracy") is not None else None


def _early(entropy: float) -> str:
  return f" (first steps: {entropy:.3g})" if entropy else ""


def _noise(history: Sequence[float]) -> float:
  """Standard deviation of a metric around its own trend, whatever a few outliers do.

  σ ≈ 1.048 · median |x[n+1] - x[n]|, exact for independent normal noise; differences take out a slow trend.
  """
  return 1.048 * statistics.median(abs(b - a) for a, b in itertools.pairwise(history))
