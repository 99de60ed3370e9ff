"""BENCHMARKS: name -> what measures it, and the flags of launch/benchmark.py that it reads, in their order."""

from fipo_jax.benchmarks import gap, gradient_sums, sampler, scan, update, verdicts
from fipo_jax.pods import phases

BENCHMARKS = {
  "future_kl": (scan.future_kl,),
  "gap": (gap.gap, "model", "tokens"),
  "longtail": (sampler.longtail,),
  "phases": (phases.phases, "run"),
  "real_sampler": (sampler.real_sampler, "model", "slots"),
  "rewards": (verdicts.rewards,),
  "sampler": (sampler.sampler,),
  "step": (update.step,),
  "sums": (gradient_sums.sums, "config", "updates"),
  "train": (update.train, "config", "micro_batches"),
}
