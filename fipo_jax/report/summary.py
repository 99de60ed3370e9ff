"""A run in about ten lines, as a person would write them. What is not known is not said."""

from __future__ import annotations

import collections
import math
from typing import Any

from fipo_jax.report import compare, events
from fipo_jax.report.read import Row, Run

Z = 1.96  # of a normal distribution, for 95%
AROUND = 5  # steps at an end of the run that are averaged: a single one is noisy


def summary(run: Run) -> list[tuple[str, str]]:
  """(What it is about, a line)."""
  lines = [
    ("run", _what(run)), ("model and data", _on_what(run)), ("a step", _step(run)), ("when", _when(run)),
    *_evaluated(run), ("in training", _trained(run)), ("policy", _policy(run)), ("events", _events(run)),
    ("time", _time(run)), ("speed", _speed(run)), ("verifier", _verifier(run)), ("files", "; ".join(run.notes)),
  ]  # fmt: skip
  return [(name, line) for name, line in lines if line]


def tiles(run: Run) -> list[tuple[str, str]]:
  """(Name, short text): the same for every run, so that they make a table; "–" where it is not known."""
  rows = [row for row in run.rows if _number(row, "eval/accuracy") is not None]
  both = rows[:1] + rows[1:][-1:]
  ends = lambda key, form: " → ".join(f"{row[key]:{form}}" for row in both if _number(row, key) is not None)
  alarms = sum(event.kind == "alarm" for event in events.events(run))
  seconds = run.spent.get("wall_s") or sum(_number(row, "seconds/step") or 0.0 for row in run.rows)
  shares = [share for row in run.rows if (share := _number(row, "goodput")) is not None]
  share = run.spent.get("share", shares[-1] if shares else None)
  return [
    ("steps", f"{run.step}"), ("held-out accuracy", ends("eval/accuracy", ".3f") or "–"),
    ("mean length, tokens", ends("eval/response_tokens", ",.1f") or "–"), ("alarms", f"{alarms}"),
    ("time", duration(seconds) if seconds else "–"), ("goodput", f"{share:.0%}" if share is not None else "–"),
  ]  # fmt: skip


def _what(run: Run) -> str:
  config, result = compare.flat(run.config), run.result
  name = result.get("algorithm") or config.get("algorithm.name")
  control = config.get("algorithm.control", "none")
  control = f" with the control {control}" if control != "none" else ""
  of = f" of {config['steps']}" if "steps" in config else ""
  seed = f", seed {config['seed']}" if "seed" in config else ""
  updates = f", {result['updates']} updates" if result.get("updates") and result.get("steps") == run.step else ""
  ended = f"; it ended early: {result['ended']}" if result.get("ended") and result.get("steps") == run.step else ""
  going = "" if result.get("steps") == run.step or not run.rows else "; not finished" if run.ended else "; under way"
  return f"{str(name or 'a run').upper()}{control}{seed}: step {run.step}{of}{updates}{going}{ended}"


def _on_what(run: Run) -> str:
  c = compare.flat(run.config)
  if not c:
    return ""
  model = c.get("model.path") or c.get("model.preset") or "a model"
  base = f" (made by {c['model.base_experiment']})" if c.get("model.base_experiment") else ""
  names = [c.get(f"data.{field}") for field in ("source", "name", "path")]
  verifier = c.get("reward.file") or c.get("reward.verifier")
  judged = f", judged by {verifier}" if verifier else ""
  return f"{model}{base} on {' '.join(str(name) for name in names if name)}{judged}"


def _step(run: Run) -> str:
  c = compare.flat(run.config)
  fields = ("batch.prompts", "rollout.samples_per_prompt", "batch.minibatch_prompts", "rollout.max_response_tokens")
  if not all(c.get(field) for field in fields):
    return ""
  prompts, samples, mini, tokens = (c[field] for field in fields)
  rate = f", learning rate {c['optimizer.learning_rate']:g}" if "optimizer.learning_rate" in c else ""
  return (
    f"{prompts} prompts × {samples} responses of up to {tokens:,} tokens, learnt from in mini-batches of {mini} prompts"
    f"{rate}"
  )


def _when(run: Run) -> str:
  if not run.starts:
    return ""
  first, last = run.starts[0], run.starts[-1]
  count = f"{len(run.starts)} starts" if len(run.starts) > 1 else "one start"
  code = ", ".join(f"{name} {last[field]}" for name, field in (("code", "commit"), ("jax", "jax")) if last.get(field))
  said = [str(first.get("time", ""))[:16] + " UTC", count, code, f"on {last['host']}" if last.get("host") else ""]
  return ", ".join(part for part in said if part)


# ---- evaluations ----


def _evaluated(run: Run) -> list[tuple[str, str]]:
  """A line per evaluation set: accuracy and length, before and after."""
  rows = [row for row in run.rows if any(key.startswith("eval/") for key in row)]
  sets = dict.fromkeys(key.removesuffix("accuracy") for row in rows for key in row if key.endswith("/accuracy"))
  named = [name for name in sets if name != "eval/"]
  found = []
  for name in named or sets:
    own = [row for row in rows if _number(row, f"{name}accuracy") is not None]
    if own:
      found.append((f"held out {name[5:-1]}".strip(), _before_and_after(name, own[0], own[-1])))
  return found


def _before_and_after(name: str, first: Row, last: Row) -> str:
  both = [first, last] if last is not first else [last]
  said = "accuracy " + " → ".join(_accuracy(name, row) for row in both)
  if last is not first:
    change = last[f"{name}accuracy"] - first[f"{name}accuracy"]
    said += f" ({change:+.3f}; steps {first['step']} and {last['step']})"
  lengths = [length for row in both if (length := _number(row, f"{name}response_tokens")) is not None]
  if lengths:
    said += ", length " + " → ".join(f"{length:,.1f}" for length in lengths) + " tokens"
  prompts, samples = _number(last, f"{name}prompts"), _number(last, f"{name}samples")
  if prompts and samples:
    each = f" × {samples / prompts:g} samples" if samples != prompts else ""
    said += f"; n = {prompts:.0f} prompts{each}, 95% intervals {'by Wilson' if samples == prompts else 'over prompts'}"
  return said


def _accuracy(name: str, row: Row) -> str:
  value = row[f"{name}accuracy"]
  found = interval(value, *(_number(row, f"{name}{field}") for field in ("accuracy_se", "prompts", "samples")))
  return f"{value:.3f}" + (f" [{found[0]:.3f}, {found[1]:.3f}]" if found else "")


def interval(accuracy: float, error: float | None, prompts: float | None, samples: float | None):
  """(Low, high) of a 95% interval, None where nothing tells.

  One sample a prompt: Wilson's for a proportion of n prompts. Several: samples of a prompt are not independent, so it
  is ± 1.96 standard errors over prompts.
  """
  if prompts and prompts == samples:
    n, p = prompts, accuracy
    middle, half = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return (middle - half) / (1 + Z**2 / n), (middle + half) / (1 + Z**2 / n)
  if error is None:
    return None
  return max(accuracy - Z * error, 0.0), min(accuracy + Z * error, 1.0)


# ---- training ----


def _trained(run: Run) -> str:
  shown = (("accuracy", "accuracy", ".3f"), ("reward", "reward", ".3f"), ("length", "response_length", ",.1f"),
           ("truncated", "truncated", ".1%"))  # fmt: skip
  return _ends(run, shown)


def _policy(run: Run) -> str:
  said = _ends(run, (("entropy", "entropy", ".3f"), ("mean f", "weight_mean", ".4f")))
  kls = [(abs(kl), row["step"]) for row in run.rows if (kl := _number(row, "policy_kl")) is not None]
  if kls:
    said += f"{', ' if said else ''}largest |policy KL| {max(kls)[0]:.2g} at step {max(kls)[1]}"
  return said


def _ends(run: Run, shown) -> str:
  """name first → last, .. : means over some steps at both ends."""
  found = []
  for name, key, form in shown:
    values = [value for row in run.rows if (value := _number(row, key)) is not None]
    if values:
      n = min(AROUND, max(len(values) // 2, 1))
      mean = lambda some: sum(some) / len(some)
      found.append(f"{name} {mean(values[:n]):{form}} → {mean(values[-n:]):{form}}")
  steps = sum(1 for row in run.rows if row["step"])
  n = min(AROUND, max(steps // 2, 1))
  about = f" (means of {n} steps at the ends)" if found and n > 1 else ""
  return ", ".join(found) + about


def _events(run: Run) -> str:
  """How many of each kind; of alarms the names and steps."""
  found = events.events(run)
  if not run.rows:
    return ""
  steps: dict[str, list[int]] = collections.defaultdict(list)
  for event in found:
    if event.kind == "alarm":
      steps[event.said].append(event.step)
  said = [f"alarm {name} at {_steps(at)}" for name, at in steps.items()] or ["no alarms"]
  for kind, one, many in WORDS:
    count = sum(event.kind == kind for event in found)
    said += [f"{count} {many if count > 1 else one}"] if count else []
  return ", ".join(said)


WORDS = (
  ("rollback", "rollback", "rollbacks"), ("restart", "restart", "restarts"),
  ("changed", "changed field", "changed fields"),
  ("skipped", "step with skipped updates", "steps with skipped updates"),
)  # fmt: skip


def _steps(at: list[int]) -> str:
  return f"step {at[0]}" if len(at) == 1 else f"{len(at)} steps, {at[0]} to {at[-1]}"


# ---- time ----

TIMES = (
  ("productive_s", "iterations that were kept"), ("lost_s", "iterations that were made again"),
  ("starting_s", "starting, until training began"), ("waiting_s", "without a process"),
  ("other_s", "evaluation before training, iterations cut off, the end"),
)  # fmt: skip


def _time(run: Run) -> str:
  spent = run.spent
  seconds = sum(_number(row, "seconds/step") or 0.0 for row in run.rows)
  if not spent:
    shares = [share for row in run.rows if (share := _number(row, "goodput")) is not None]
    kept = f"; {shares[-1]:.0%} of the time went into iterations that were kept" if shares else ""
    return f"{duration(seconds)} of iterations{kept}" if seconds else ""
  said = f"{duration(spent['wall_s'])}, of which {spent.get('share', 0.0):.0%} went into iterations that were kept"
  least = 0.005 * spent["wall_s"]
  rest = [f"{name[:-2]} {duration(spent[name])}" for name, _ in TIMES[1:] if spent.get(name, 0) >= least]
  return said + (f" ({', '.join(rest)})" if rest else "")


def phases(run: Run) -> list[tuple[str, float]]:
  """Seconds by phase over all iterations, the longest first."""
  total: dict[str, float] = collections.defaultdict(float)
  for row in run.rows:
    for key in row:
      if key.startswith("seconds/") and key != "seconds/step":
        total[key.removeprefix("seconds/")] += _number(row, key) or 0.0
  return sorted(((name, seconds) for name, seconds in total.items() if seconds), key=lambda pair: -pair[1])


def _speed(run: Run) -> str:
  found, whole = phases(run), sum(seconds for _, seconds in phases(run))
  said = [", ".join(f"{name} {seconds / whole:.0%}" for name, seconds in found[:4])] if whole else []
  rates = sorted(rate for row in run.rows if (rate := _number(row, "tokens_per_second/step")))
  if rates:
    said.append(f"{rates[len(rates) // 2]:,.0f} sampled tokens per second of a step (median)")
  tokens = [total for row in run.rows if (total := _number(row, "total/tokens_generated"))]
  if tokens:
    said.append(f"{_count(tokens[-1])} tokens sampled")
  return "; ".join(said)


def _verifier(run: Run) -> str:
  counts = {name: run.result.get(f"reward_{name}") or 0 for name in ("errors", "timeouts")}
  if not any(counts.values()):
    return ""
  first = " ".join(str(run.result.get("first_error") or "").split())[:160]
  return f"{counts['errors']} errors, {counts['timeouts']} time-outs" + (f"; the first: {first}" if first else "")


def duration(seconds: float) -> str:
  """As people say it."""
  if seconds < 120:
    return f"{seconds:.0f} s"
  minutes = round(seconds / 60)
  return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _count(n: float) -> str:
  for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
    if n >= size:
      return f"{n / size:.3g}{unit}"
  return f"{n:.0f}"


def _number(row: dict[str, Any], key: str) -> float | None:
  value = row.get(key)
  plain = isinstance(value, int | float) and not isinstance(value, bool)
  return value if plain and math.isfinite(value) else None
