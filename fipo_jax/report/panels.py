"""Which figures there are: groups that are the sentence of the README, the paper's figures before them, time after.

Keys are those of metrics.jsonl (docs/metrics.md says what they mean); a * stands for anything. Only what a run has is
drawn, and what no panel names stands in the last group: nothing is left out.
"""

from __future__ import annotations

from typing import NamedTuple


class Panel(NamedTuple):
  """kind: lines | stack (values that add up) | path (the first key of each pair against the second)."""

  title: str
  unit: str
  keys: tuple[str, ...]
  note: str = ""
  kind: str = "lines"


class Group(NamedTuple):
  """said: a sentence below the title."""

  name: str
  said: str
  panels: tuple[Panel, ...]


PAPER = Group("The paper's figures", "What FIPO's paper plots of a run (arXiv 2603.19835).", (
  Panel("Accuracy", "fraction", ("accuracy", "eval/accuracy"), "of what is sampled; held out, with its 95% interval"),
  Panel("Response length", "tokens", ("response_length", "eval/response_tokens")),
  Panel("Accuracy against length", "fraction", ("response_length", "accuracy", "eval/response_tokens", "eval/accuracy"),
        "a point a step, along the run; x is tokens", "path"),
  Panel("Entropy", "nats per token", ("entropy",)),
  Panel("Policy KL", "nats per token", ("policy_kl",), "mean of old − new log-probability"),
  Panel("Length-weighted mean advantage", "deviations", ("advantage_length_weighted",),
        "above 0, longer responses are the better ones"),
  Panel("Future-KL weight f", "factor", ("weight_mean",), "mean over tokens, ± one standard deviation"),
))  # fmt: skip

SENTENCE = (
  Group("prompts", "Dynamic sampling: which prompts teach something.", (
    Panel("Kept and used", "fraction", ("keep_rate", "token_efficiency"),
          "groups with right and wrong responses; tokens that were ever learnt from"),
    Panel("Prompts of a step", "prompts", ("prompts_drawn", "groups_informative", "groups_trained")),
    Panel("Groups from other steps", "groups",
          ("groups_reused", "groups_waiting", "groups_dropped", "groups_continued", "groups_unfinished")),
    Panel("Draws until the batch was full", "draws", ("draws",)),
  )),
  Group("rollout", "What the policy says, and how long it takes to say it.", (
    Panel("Response length, quartiles", "tokens", ("response_length_median",),
          "median; bands: middle half, shortest to longest"),
    Panel("Truncated responses", "fraction", ("truncated", "truncated_correct", "truncated_wrong")),
    Panel("Slots and cache in use", "fraction", ("rollout/occupancy", "rollout/cache_in_use")),
    Panel("Tail: longest / median", "ratio", ("rollout/tail_ratio",)),
    Panel("Sampler against trainer", "nats per token", ("sampler_gap_mean", "sampler_gap_k3")),
    Panel("Sampled in an earlier iteration", "fraction of tokens", ("waited_fraction",)),
  )),
  Group("rewards", "What the verifier says.", (
    Panel("Reward", "score", ("reward", "score", "reward_trained")),
    Panel("Overlong penalty", "score", ("overlong_penalty",)),
    Panel("Responses without an answer", "fraction", ("no_answer",)),
    Panel("Verifier trouble", "responses", ("reward_errors", "reward_timeouts")),
  )),
  Group("advantages", "How much better a response is than its group.", (
    Panel("Advantage", "deviations", ("advantage_mean",), "mean per token; band: least to greatest"),
    Panel("Accuracy of what is learnt from", "fraction", ("accuracy_trained",)),
    Panel("Length of what is learnt from", "tokens", ("response_length_trained",)),
    Panel("Value head", "reward", ("value_mean", "returns_mean", "value_loss")),
  )),
  Group("Future-KL", "How far what follows a token has moved.", (
    Panel("Future-KL over tokens", "nats", ("future_kl_median",), "median; bands: quartiles, 1st to 99th percentile"),
    Panel("Mean |F| by mini-batch", "nats", ("minibatch/future_kl_abs_mean",), "0 in the first by construction"),
    Panel("Mean f by mini-batch", "factor", ("minibatch/weight_mean",)),
    Panel("Spread of f by mini-batch", "factor", ("minibatch/weight_std",)),
    Panel("f at a bound", "fraction of tokens", ("weight_upper_fraction", "weight_lower_fraction")),
    Panel("Weight before clipping", "factor", ("raw_weight_mean",), "exp F; band: least to greatest"),
    Panel("Tokens that join Future-KL", "fraction", ("participation_fraction",)),
  )),
  Group("loss", "How far the policy moves, and what holds it.", (
    Panel("Loss by mini-batch", "", ("minibatch/loss",)),
    Panel("Policy KL by mini-batch", "nats per token", ("minibatch/policy_kl",)),
    Panel("Entropy by mini-batch", "nats per token", ("minibatch/entropy",)),
    Panel("Clipped tokens", "fraction", ("clip_fraction", "dual_clip_fraction")),
    Panel("Ratio where the advantage is positive", "ratio", ("positive_ratio_median",),
          "median; bands: quartiles, to the 99.9th percentile"),
    Panel("Ratio where the advantage is negative", "ratio",
          ("negative_ratio_p75", "negative_ratio_p995", "negative_ratio_p999")),
    Panel("Rejected", "fraction", ("rejected_token_fraction", "rejected_sequence_fraction")),
    Panel("KL to the reference", "nats per token", ("reference_kl",)),
    Panel("Negative log-likelihood", "nats per token", ("nll",)),
  )),
  Group("update", "What the optimizer does.", (
    Panel("Gradient norm", "", ("grad_norm",), "before clipping"),
    Panel("Gradient norm by mini-batch", "", ("minibatch/grad_norm",)),
    Panel("Learning rate", "", ("learning_rate",)),
    Panel("Skipped updates", "fraction", ("skipped_updates", "empty_updates")),
    Panel("Packing: tokens in rows", "fraction", ("row_fill",)),
    Panel("Speed of the update", "10¹² FLOP/s per device", ("update_tflops",)),
  )),
  Group("checkpoint", "What is kept, and what it costs.", (
    Panel("Share of the time that was kept", "fraction", ("goodput",)),
    Panel("Saving", "seconds", ("seconds/checkpoint", "grace_s"), "grace: from being told to stop until all is saved"),
    Panel("Memory", "GB", ("host_memory_gb", "host_memory_peak_gb", "device_memory_peak_gb")),
  )),
  Group("evaluate", "On prompts that are not learnt from.", (
    Panel("Held-out accuracy", "fraction", ("eval/accuracy", "eval/pass@*", "eval/cons@*")),
    Panel("Accuracy by set", "fraction", ("eval/*/accuracy",)),
    Panel("Length by set", "tokens", ("eval/*/response_tokens",)),
    Panel("Truncated, without an answer", "fraction", ("eval/truncated", "eval/no_answer")),
  )),
)  # fmt: skip

TIME = Group("time", "Where a step spends its time.", (
  Panel("Seconds of a step by phase", "seconds", ("seconds/*",), kind="stack"),
  Panel("Speed", "tokens per second", ("tokens_per_second/*",)),
))  # fmt: skip

GROUPS = (PAPER, *SENTENCE, TIME)
NOT_STACKED = ("seconds/step",)  # the sum of the others
REST = "everything else"

# Key -> what its bands reach from and to, the widest last: keys; for one key, that many of it to both sides.
BANDS: dict[str, tuple[tuple[str, str] | tuple[float, str], ...]] = {
  "response_length_median": (("response_length_p25", "response_length_p75"),
                             ("response_length_min", "response_length_max")),
  "future_kl_median": (("future_kl_p25", "future_kl_p75"), ("future_kl_p01", "future_kl_p99")),
  "positive_ratio_median": (("positive_ratio_p25", "positive_ratio_p75"),
                            ("positive_ratio_min", "positive_ratio_p999")),
  "raw_weight_mean": (("raw_weight_min", "raw_weight_max"),),
  "advantage_mean": (("advantage_min", "advantage_max"),),
  "weight_mean": ((1.0, "weight_std"),),
}  # fmt: skip


def bands(key: str) -> tuple:
  """Those of a key; evaluations' accuracy has its 95% interval over prompts."""
  if key.startswith("eval/") and key.endswith("accuracy"):
    return ((1.96, f"{key}_se"),)
  return BANDS.get(key, ())
