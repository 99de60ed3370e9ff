"""The responses of an evaluation, a line per prompt as it is finished: what a stopped evaluation goes on from.

    {"evaluation": the specification and the model}
    {"set": "aime24", "id": 3, "prompt": ..., "answer": ..., "samples": [{"response": ..., "accuracy": 1.0, ...}, ...]}

Figures are made from these lines alone. Texts are kept up to a bound; later lines are without.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from fipo_jax import changes, console, lines, paths, processes
from fipo_jax.types import Prompt, Rollout

FIELDS = ("stop_reason", "pred", "accuracy", "score", "reward")


class Samples:
  """The file, for appending; process 0 writes, and all know what is there.

  Raises: ValueError when it holds another evaluation, naming a field; or has a damaged line, but the last.
  """

  def __init__(self, path, evaluation: dict[str, Any], most_bytes: int):
    self.path, self._most_bytes, self._said = paths.of(path), most_bytes, False
    found: list[dict[str, Any]] = []
    if processes.is_first():
      found = self._read(evaluation)
    self._lines = processes.from_first("what has been evaluated", found)

  def _read(self, evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    paths.make_folder(self.path.parent)
    text = b"".join(lines.read(self.path)).decode("utf-8")
    whole, _, torn = text.rpartition("\n")
    found = []
    for number, line in enumerate(whole.split("\n") if whole else (), start=1):  # texts hold other ends of lines
      try:
        found.append(json.loads(line))
      except ValueError as error:
        raise ValueError(f"{self.path} line {number}: not JSON; remove the file, or name another --out.") from error
    if found:
      unlike = changes.differences(found[0].get("evaluation", {}), json.loads(json.dumps(evaluation)), ())
      if unlike:
        raise ValueError(
          f"{self.path} holds responses of another evaluation: {'; '.join(unlike[:3])}; name another --out, or remove "
          "that file."
        )
    # The torn last line of a process that was killed is left out; what was whole is written anew only then.
    self._size = len(whole.encode()) + 1 if found else 0
    if not found:
      lines.add(self.path, json.dumps({"evaluation": evaluation}).encode() + b"\n")
    elif torn:
      paths.write(self.path, whole + "\n")
    return [_short(line) for line in found[1:]]

  def groups(self, set_name: str, prompts: tuple[Prompt, ...]) -> dict[int, list[Rollout]]:
    """Prompt id -> its scored group, for the prompts of a set that are finished."""
    known = {p.id: p for p in prompts}
    return {
      line["id"]: [_rollout(known[line["id"]], i, sample) for i, sample in enumerate(line["samples"])]
      for line in self._lines if line["set"] == set_name and line["id"] in known
    }  # fmt: skip

  def append(self, set_name: str, groups: list[list[Rollout]]) -> None:
    """Adds scored groups."""
    added = []
    for group in groups:
      prompt = group[0].prompt
      record = {"set": set_name, "id": prompt.id, "prompt": prompt.text, "answer": prompt.answer}
      added.append(record | {"samples": [_sample(r) for r in group]})
    self._lines += map(_short, added)
    if not processes.is_first():
      return
    text = b""
    for line in added:
      said = json.dumps(line, ensure_ascii=False).encode() + b"\n"
      if self._size + len(text) + len(said) > self._most_bytes:
        if not self._said:
          self._said = True
          console.say(f"{self.path}: has reached log.samples_mb; responses from here on are kept without their text")
        said = json.dumps(line | {"samples": [s | {"response": None} for s in line["samples"]]}).encode() + b"\n"
      text += said
    self._size += len(text)
    lines.add(self.path, text)


def _short(line: dict[str, Any]) -> dict[str, Any]:
  """A line without texts: figures need none."""
  return {"set": line["set"], "id": line["id"], "samples": [s | {"response": ""} for s in line["samples"]]}


def _sample(r: Rollout) -> dict[str, Any]:
  return {
    "response": r.text, "tokens": len(r.tokens), **{name: getattr(r, name) for name in FIELDS}, "flags": list(r.flags)
  }


def _rollout(prompt: Prompt, number: int, sample: dict[str, Any]) -> Rollout:
  """As scoring left it, but for tokens and log-probabilities: of the tokens only the number is known."""
  nothing = np.broadcast_to(np.int32(0), (sample["tokens"],))
  own = {name: sample[name] for name in FIELDS}
  return Rollout(
    prompt, number, nothing, nothing, text=sample["response"] or "", flags=tuple(sample["flags"]), **own
  )
