"""What the device's logs say of each sample: the host's work per look is by whole arrays, per token there is none."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class _Look:
  """One log.

  place_N: of each sample of the call, -1 where it is not in it; else its slot, the first of its steps and the one after
  its last, as one number (see `_packed`): a response of 20,000 tokens is put together from 300 looks.
  values_3SC: int32; tokens, and the bits of log-probs and raw log-probs, by slot and step.
  """

  place_N: np.ndarray
  values_3SC: np.ndarray

  def of(self, uid: int) -> np.ndarray | None:
    """[3, steps] of a sample, or None."""
    place = self.place_N.item(uid)
    return None if place < 0 else self.values_3SC[:, place >> 32, (place >> 16) & 0xFFFF : place & 0xFFFF]


def _packed(slot, first, end):
  return slot.astype(np.int64) << 32 | first << 16 | end


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
    uid_SC = np.ascontiguousarray(log.uid_CS[:n].T)
    new = np.ones(uid_SC.shape, bool)
    new[:, 1:] = uid_SC[:, 1:] != uid_SC[:, :-1]
    over = np.ones(uid_SC.shape, bool)
    over[:, :-1] = new[:, 1:]
    busy = uid_SC >= 0
    (slot, first), (_, end) = np.nonzero(new & busy), np.nonzero(over & busy)
    uid = uid_SC[slot, first]
    end += 1
    place_N = np.full(len(self.count), -1, np.int64)
    place_N[uid] = _packed(slot, first, end)
    values_3SC = np.empty((3, *uid_SC.shape), np.int32)
    for of, x in zip(values_3SC, (log.token_CS, log.logp_CS, log.raw_CS), strict=True):
      of[:] = x[:n].T.view(np.int32)
    self.looks.append(_Look(place_N, values_3SC))
    self.count[uid] += (end - first).astype(np.int32)
    self.last[uid] = values_3SC[0, slot, end - 1]
    self.sampled = int((end - first).sum())
    return uid

  def newest(self, uid: int) -> np.ndarray:
    """The tokens of a sample in the newest log, which has some."""
    return self.looks[-1].of(uid)[0]

  def since(self, uid: int, begin: int, had: int):
    """(tokens, log-probs, raw log-probs) of a sample in the logs from number `begin` on, as many as `count` is more
    than `had`."""
    parts = [part for look in self.looks[begin:] if (part := look.of(uid)) is not None]
    values = np.concatenate([np.zeros((3, 0), np.int32), *parts], axis=1)[:, : int(self.count[uid]) - had]
    return values[0], values[1].view(np.float32), values[2].view(np.float32)
