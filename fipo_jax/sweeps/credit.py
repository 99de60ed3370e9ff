"""What Future-KL credits: the sampled tokens of FIPO runs of the countdown miniature, sorted by their place.

A run keeps some responses of each step token by token (samples.jsonl), with the Future-KL and the weight f that its
last update used. Here each token gets a kind, by where in the solution it stands; then F, f, entropy and the shift of
its own log-probability are averaged by kind, and the variance of f is split: what of it is the response, what the
position in it, what the kind.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from scipy import stats

from fipo_jax import lines, paths

# "8-2=6-5=1 no\n": number sign number = result ...; "answer ..." after "Answer: ". What stands first after a "no" is a
# choice: "try again" where it is the number that begins a line, "give up" where it is the A of "Answer: ".
KINDS = (
  "try again", "give up", "number", "sign", "=", "result", "blank", "ok", "no", "newline", "Check:", "Answer:",
  "answer number", "answer sign", "end", "other",
)  # fmt: skip
LEAST = 30  # tokens of a kind in a run, below which its mean says nothing
BIN = 16  # tokens; positions from either end that are counted as one, up to FAR of them
FAR = 12
_WORK = re.compile(r"(?P<label>Check: )?-?\d+(?:[+-]\d+=-?\d+)+ (?:ok|no)")


# ---- from a text to kinds ----


def kinds(tokens: list[str]) -> list[str]:
  """The kind of each token of a response that is written character by character; a longer token is the end."""
  found: list[str] = []
  text, after_no = "".join(t if len(t) == 1 else "" for t in tokens), False
  for line in text.splitlines(keepends=True):
    here = _of_line(line)
    if after_no and here[0] in ("number", "Answer:"):
      here[0] = "try again" if here[0] == "number" else "give up"
    found, after_no = found + here, "no" in here
  each = iter(found)
  return [next(each) if len(t) == 1 else "end" for t in tokens]


def _of_line(line: str) -> list[str]:
  """Of a line that is a try, a check or an answer; "other" elsewhere, as in a try that was written wrongly."""
  body, end = line.removesuffix("\n"), ["newline"] * line.endswith("\n")
  if body.startswith("Answer: "):
    rest = body[len("Answer: ") :]
    kind = lambda c: "answer number" if c.isdigit() else "answer sign" if c in "+-" else "other"
    return ["Answer:"] * 8 + [kind(c) for c in rest] + end
  match = _WORK.fullmatch(body)
  if not match:
    return ["other"] * len(body) + end
  found, after_equals = ["Check:"] * len(match["label"] or ""), False
  for before, c in zip(body[len(found) - 1 :] if found else " " + body, body[len(found) :], strict=False):
    if c == "=":
      after_equals = True
      found.append("=")
    elif c in "+-" and before != "=":
      after_equals = False
      found.append("sign")
    elif c.isdigit() or c == "-":
      found.append("result" if after_equals else "number")
    else:
      found.append("blank" if c == " " else body[-2:])
  return found + end


# ---- from files to columns ----


def read(run: str) -> dict[str, Any]:
  """Columns over all sampled tokens of a run: response, kind, first, last (distance in tokens), F, f, entropy, ...

  shift: log-probability at the last update minus that before the step's first one, nats (minus that of sampling in runs
  of versions that kept no other).  good: whether the advantage is positive.
  Raises: ValueError when the run has no samples with Future-KL.
  """
  names = ("response", "kind", "first", "last", "F", "f", "entropy", "shift", "good")
  columns: dict[str, list] = {name: [] for name in names}
  number, steps = 0, set()
  for line in lines.read(paths.of(run) / "samples.jsonl"):
    sample = json.loads(line)
    if sample.get("future_kl") is None or not sample["tokens"]:
      continue
    n = len(sample["tokens"])
    columns["response"] += [number] * n
    columns["kind"] += [KINDS.index(k) for k in kinds(sample["tokens"])]
    columns["first"] += range(n)
    columns["last"] += range(n - 1, -1, -1)
    columns["good"] += [sample["advantage"] > 0] * n
    for name, key in (("F", "future_kl"), ("f", "weight"), ("entropy", "entropy")):
      columns[name] += sample[key]
    before = sample.get("old_logp") or sample["sampler_logp"]  # a sampler of an earlier step is farther away
    columns["shift"] += np.subtract(sample["logp"], before).tolist()
    number += 1
    steps.add(sample["step"])
  if not number:
    raise ValueError(f"--run={run}: samples.jsonl has no response with Future-KL; it needs algorithm.name='fipo'.")
  return {"steps": len(steps), "responses": number, **{k: np.asarray(v) for k, v in columns.items()}}


# ---- from columns to figures ----


def summary(c: dict[str, Any]) -> dict[str, Any]:
  """The figures of one run: by kind, by distance to the end, and how the variance of f is explained."""
  F, f, shift = c["F"], c["f"], np.abs(c["shift"])
  top = {"of F": F >= np.quantile(F, 0.99), "of shifts": shift >= np.quantile(shift, 0.99)}
  by_kind = {}
  for i, kind in enumerate(KINDS):
    here = c["kind"] == i
    if here.sum() >= LEAST:
      by_kind[kind] = {
        "tokens": int(here.sum()), "F": F[here].mean(), "abs F": np.abs(F[here]).mean(), "f": f[here].mean(),
        "entropy": c["entropy"][here].mean(), "abs shift": shift[here].mean(),
        "top of F": (here & top["of F"]).sum() / top["of F"].sum(),
        "top of shifts": (here & top["of shifts"]).sum() / top["of shifts"].sum(),
      }  # fmt: skip
  ends = np.minimum(c["last"] // BIN, FAR)
  factors = {"position": [np.minimum(c["first"] // BIN, FAR), ends], "response": [c["response"]], "kind": [c["kind"]]}
  nested, groups = {}, []
  for name in ("response", "position", "kind"):
    groups = groups + factors[name]
    nested[name] = explained(f, groups)
  good = c["good"].astype(bool)
  return {
    "steps": c["steps"], "responses": c["responses"], "tokens": len(f),
    "f": f.mean(), "f std": f.std(), "f at 1": (f == 1).mean(), "f at its highest": (f == f.max()).mean(),
    **{f"{name} where {how}": x[some].mean() if some.any() else None
       for name, x in (("F", F), ("f", f)) for how, some in (("good", good), ("bad", ~good))},
    "kinds": by_kind,
    "by distance to the end": [[int(n) * BIN, F[ends == n].mean(), f[ends == n].mean()] for n in np.unique(ends)],
    "alone": {name: explained(f, some) for name, some in factors.items()},
    "nested": nested,
    "rank correlation": {
      "abs F and entropy": correlation(np.abs(F), c["entropy"]), "abs F and abs shift": correlation(np.abs(F), shift),
      "abs F and distance to the end": correlation(np.abs(F), c["last"]),
      "abs shift and entropy": correlation(shift, c["entropy"]),
    },
  }  # fmt: skip


def explained(values: np.ndarray, groups: list[np.ndarray], rounds: int = 60) -> float:
  """R² of the best sum of one number per group and factor: least squares by taking group means away in turn.

  It can only grow with more factors. 0 where nothing varies.
  groups: for each factor, the group of each value.
  """
  left = values - values.mean()
  total = float(left @ left)
  if total == 0:
    return 0.0
  coded = [np.unique(g, return_inverse=True)[1] for g in groups]
  counts = [np.bincount(g) for g in coded]
  for _ in range(rounds if len(coded) > 1 else 1):
    for g, n in zip(coded, counts, strict=True):
      left = left - (np.bincount(g, weights=left) / n)[g]
  return 1.0 - float(left @ left) / total


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
  """Spearman's; None where one of them does not vary."""
  if np.ptp(a) == 0 or np.ptp(b) == 0:
    return None
  return float(stats.spearmanr(a, b).statistic)


def stability(runs: list[dict[str, Any]], figure: str) -> list[float]:
  """Spearman's correlation of the means by kind, of each pair of runs, over the kinds that both have."""
  found = []
  for i, a in enumerate(runs):
    for b in runs[i + 1 :]:
      both = [k for k in a["kinds"] if k in b["kinds"]]
      x, y = (np.asarray([r["kinds"][k][figure] for k in both]) for r in (a, b))
      if len(both) > 2 and (value := correlation(x, y)) is not None:
        found.append(value)
  return found
