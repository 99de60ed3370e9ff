"""Seconds of an iteration of a run on one device, by phase, beside those that the plan foretells for such a device."""

from __future__ import annotations

import jax

from fipo_jax import paths, saved
from fipo_jax.pods import costs, forecast, iteration, measured, public
from fipo_jax.pods.chips import GPUS, gpu_of
from fipo_jax.pods.programs import make_plan

ELSEWHERE = "NVIDIA H100 80GB HBM3"  # what is foretold on a machine without a known GPU
# Phase of metrics.jsonl -> those of a simulated iteration that it covers.
COVERS = {"rollout": ("prefill", "decode", "look", "resize"), "old_logp": ("score",), "update": ("update",)}


def phases(folder: str) -> dict:
  """The last step of a run: what each phase took, and what the plan says of a step with its lengths.

  Costs are sizes over public efficiencies: of TPUs, the least of each kind, for of GPUs there are none. Nothing of the
  run's seconds is taken. Measured seconds are the loop's; what it does beside them (verdicts, writing) is in neither.
  Raises ValueError: no such run, or one without a number of rollout.slots.
  """
  record = measured.records_of(folder, "run")[-1]
  cfg = saved.get_config(str(paths.of(folder) / "config.json"))
  if cfg.rollout.engine != "native" or cfg.rollout.slots == "auto":
    raise ValueError(f"run={folder}: rollout.engine='native' and a number of rollout.slots are needed.")
  device = jax.devices()[0]
  chip = gpu_of(device.device_kind)
  plan = make_plan(cfg, chip or GPUS[ELSEWHERE], [device], cfg.rollout.slots)
  by, _ = public.efficiencies("")
  trained = {name: costs.Trained(costs.trained_bound(plan, name), "sizes") for name in ("train", "score")}
  work = iteration.Workload(forecast.lengths_of(record), round(record["prompt_length"]), max(record["keep_rate"], 1e-3))
  (found,) = iteration.simulate(plan, work, by, trained, warm=forecast.WARM[cfg.rollout.unfinished])
  result = {
    "device": device.device_kind, "foretold_for": device.device_kind if chip else ELSEWHERE, "step": record["step"],
    "compile_s": record.get("rollout/compile_s", 0.0), "tokens": record["tokens_generated"],
    "tokens_foretold": found.tokens,
  }  # fmt: skip
  for phase, kinds in COVERS.items():
    result[f"{phase}_s"] = float(record[f"seconds/{phase}"])
    result[f"{phase}_foretold_s"] = float(sum(found.seconds[kind] for kind in kinds))
  others = {k.removeprefix("seconds/"): v for k, v in record.items() if k.startswith("seconds/")}
  result["others_s"] = {k: round(v, 4) for k, v in others.items() if k not in COVERS}
  return result | {"efficiencies": {k: round(getattr(by, k), 3) for k in ("decode", "prefill", "train")}}
