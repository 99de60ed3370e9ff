"""The published settings of the objectives, as values of the config section `algorithm`.

    c.algorithm.update(PRESETS["official_7b"])

Sources: "script" is recipe/fipo/run_fipo_qwen2.5_32b.sh of the first public release of the authors' code, "paper" is
arXiv 2603.19835 (Table 2: 32B, Table 5: 7B), "dapo" is arXiv 2503.14476, "grpo" is arXiv 2402.03300. 0, () and -1 mean
"none", as in config.
"""

from __future__ import annotations

from typing import Any

_SHARED = {
  "clip_low": 0.2,
  "clip_high": 0.28,  # script and paper Table 2; the paper's equation has one epsilon
  "dual_clip": 10.0,
  "delta_clamp": 20.0,
  "half_life_tokens": 32.0,
  "participation_ratio": 0.0,
  "raw_cap": 10.0,
  "loss_norm": "global_token",  # paper eq. 8 over the mini-batch; the script divides per micro-batch and device
  "advantage_std_ddof": 1,
}

PRESETS: dict[str, dict[str, Any]] = {
  # The script: every too likely token leaves Future-KL, f only amplifies, two dual-clipped tokens drop a response.
  "official_32b": {
    **_SHARED,
    "name": "fipo",
    "participation_mask": "all",
    "weight_clip": (1.0, 1.2),
    "safety_mode": "clamp",
    "safety_threshold": 10.0,
    "sequence_reject_count": 1,
  },
  # The same code with the paper's Table 5: f both ways, and the safety rule below the dual clip.
  "official_7b": {
    **_SHARED,
    "name": "fipo",
    "participation_mask": "all",
    "weight_clip": (0.8, 1.2),
    "safety_mode": "clamp",
    "safety_threshold": 3.0,
    "sequence_reject_count": 1,
  },
  # The paper's equations 5 to 8: only harmful tokens leave Future-KL, f is reset to 1, no dual clip, nothing rejected.
  "paper": {
    **_SHARED,
    "name": "fipo",
    "dual_clip": 0.0,
    "delta_clamp": 0.0,
    "participation_mask": "negative_only",
    "participation_ratio": 10.0,
    "weight_clip": (1.0, 1.2),
    "safety_mode": "reset",
    "safety_threshold": 10.0,
    "sequence_reject_count": -1,
  },
  # ms-swift's weights: no bound on the shift, no rejection, f clipped upwards, its default threshold. Its two-sided cap
  # on the ratio (which also caps good tokens) is not ours: that part of its loss differs where a ratio is beyond 10.
  "msswift": {
    **_SHARED,
    "name": "fipo",
    "delta_clamp": 0.0,
    "participation_mask": "all",
    "weight_clip": (1.0, 1.2),
    "safety_mode": "clamp",
    "safety_threshold": 4.0,
    "sequence_reject_count": -1,
  },
  # Asymmetric clip, token mean (dapo, section 3); the dual clip of the authors' code.
  "dapo": {**_SHARED, "name": "dapo"},
  # One epsilon, no dual clip, responses weigh the same (grpo, eq. 3); the objective takes no other clip or mean.
  "grpo": {**_SHARED, "name": "grpo", "clip_high": 0.2, "dual_clip": 0.0, "loss_norm": "sequence_mean"},
}
