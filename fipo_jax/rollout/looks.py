"""What the device's logs say of each sample: the host's work per look is by whole arrays, per token there is none."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class _Look:
  """One log.

  row: of each sample of the call, -1 where it is not in it. slot, first, end: of each row, which steps from `first` to
  before `end` in which slot. tokens_SC, logp_SC, raw_SC: by slot and step.
  """

  row: np.ndarray
  slot: np.ndarray
  first: np.ndarray
  end: np.ndarray
  tokens_SC: np.ndarray
  logp_SC: np.ndarray
  raw_SC: np.ndarray


class Looks:
  """All logs of a call, and for each sample: `count` of its response's tokens so far and the `last` one, int32."""

  def __init__(self, counts):
    """counts: tokens that each response has already."""
    self.count = np.array(counts, np.int32).reshape(-1)
    self.last = np.full(len(self.count), -1, np.int32)
    self.sampled = 0  # tokens in the newest log
    self.looks: list[_Look] = []

  def __len__(self) -> int:
    return len(self.looks)

  def add(self, log) -> np.ndarray:
    """Takes in a `decode.Log`; returns the uids of the samples that got tokens, each once."""
    n = int(log.steps)
    by_slot = lambda x: np.ascontiguousarray(x[:n].T)
    uid_SC = by_slot(log.uid_CS)
    new = np.ones(uid_SC.shape, bool)
    new[:, 1:] = uid_SC[:, 1:] != uid_SC[:, :-1]
    over = np.ones(uid_SC.shape, bool)
    over[:, :-1] = new[:, 1:]
    busy = uid_SC >= 0
    (slot, first), (_, end) = np.nonzero(new & busy), np.nonzero(over & busy)
    uid = uid_SC[slot, first]
    end += 1
    row = np.full(len(self.count), -1, np.int32)
    row[uid] = np.arange(len(uid))
    look = _Look(row, slot, first, end, *map(by_slot, (log.token_CS, log.logp_CS, log.raw_CS)))
    self.looks.append(look)
    self.count[uid] += (end - first).astype(np.int32)
    self.last[uid] = look.tokens_SC[slot, end - 1]
    self.sampled = int((end - first).sum())
    return uid

  def newest(self, uid: int) -> np.ndarray:
    """The tokens of a sample in the newest log, which has some."""
    look = self.looks[-1]
    i = look.row[uid]
    return look.tokens_SC[look.slot[i], look.first[i] : look.end[i]]

  def since(self, uid: int, begin: int, had: int):
    """(tokens, log-probs, raw log-probs) of a sample in the logs from number `begin` on, as many as `count` is more
    than `had`."""
    parts = []
    for look in self.looks[begin:]:
      if (i := look.row[uid]) >= 0:
        parts.append((look, look.slot[i], slice(look.first[i], look.end[i])))
    new = int(self.count[uid]) - had
    return tuple(
      np.concatenate([np.zeros(0, dtype), *(getattr(look, name)[slot, steps] for look, slot, steps in parts)])[:new]
      for name, dtype in (("tokens_SC", np.int32), ("logp_SC", np.float32), ("raw_SC", np.float32))
    )
