"""The collapse of unmasked Future-KL in miniature, the alarm that sees it, and the way back.

    python launch/run.py --config=experiments/collapse.py

The quickstart with what keeps FIPO stable taken away: no token leaves Future-KL, f is not clipped (but for the cap of
the released code), no safety rule, no response dropped, and a learning rate that warms up to 20 times the quickstart's.
arXiv 2603.19835 saw such a run break near step 70. The alarm takes the run back to the last good checkpoint, with the
filter and the clip on and the quickstart's learning rate. --config.alarms.action=warn lets it collapse.
"""

from experiments import quickstart

STABLE = ("participation_mask", "weight_clip", "safety_mode", "sequence_reject_count")


def get_config():
  c = quickstart.get_config()
  c.workdir = "runs/collapse"
  c.steps = 40
  stable = {name: c.algorithm[name] for name in STABLE}
  c.algorithm.participation_mask = "off"
  c.algorithm.weight_clip = ()
  c.algorithm.safety_mode = "off"
  c.algorithm.sequence_reject_count = -1
  c.alarms.action = "rollback"
  rate = {name: c.optimizer[name] for name in ("learning_rate", "warmup_updates")}
  c.alarms.rollback_overrides = {"algorithm": stable, "optimizer": rate}
  c.optimizer.learning_rate = 2e-3
  c.optimizer.warmup_updates = 200  # 50 rollouts: what is usual must be seen before it can be lost
  c.checkpoint.every = 3
  c.checkpoint.keep = 4
  c.checkpoint.keep_every = 3  # for launch/replay.py
  c.eval.every = 10
  return c
