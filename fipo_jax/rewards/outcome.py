"""What a verifier says. Nothing here or in the verifiers imports JAX: they run in worker processes."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Score:
  """score: the verifier's value, any finite number. accuracy: correctness in [0, 1].

  pred: the answer as the verifier read it, None when it found none.
  """

  score: float
  accuracy: float
  pred: str | None = None
