"""FIPO on Qwen2.5-32B, as the authors' script: run_fipo_qwen2.5_32b.sh and arXiv 2603.19835 Table 2.

    python launch/run.py --config=experiments/fipo_qwen2_5_32b.py --config.model.path=Qwen2.5-32B \
      --config.data.path=data/dapo-math-17k.parquet

It evaluates on data/aime-2024.parquet and data/aime-2025.jsonl (evaluate_math.py says which files those are);
--config.eval.sets.aime24.path=FILE names others. Every number beside the paper's: docs/recipe.md.
512 prompts x 16 samples of up to 20,480 tokens, 8 optimizer steps per rollout. Algorithm, batch, sampling and optimizer
are theirs. The machine's part is for v5p-128, 64 chips with one row each, as launch/compile.py sizes it. Larger slices,
or more of them, are copies of those 64: set batch.micro_rows to the number of chips.
"""

from experiments.evaluate_math import ASKED
from fipo_jax import config
from fipo_jax.algorithms.presets import PRESETS


def get_config():
  c = config.default()
  c.workdir = "runs/fipo_qwen2_5_32b"
  c.steps = 500
  c.algorithm.update(PRESETS["official_32b"])
  c.model.path = "Qwen2.5-32B"  # override: --config.model.path=DIR
  c.model.remat = "context"
  c.model.offload_inputs = True  # False on chips with memory to spare: 14 GiB of a v5p
  c.optimizer.offload = True  # likewise: 4 GiB
  c.model.sum_dtype = "float32"  # theirs: FSDP with reduce_dtype float32
  c.mesh.data, c.mesh.fsdp = -1, 64
  c.batch.micro_rows = 64
  c.data.source = "parquet"
  c.data.max_prompt_tokens = 2048
  c.rollout.samples_per_prompt = 16
  c.rollout.max_response_tokens = 20_480
  c.rollout.slots = "auto"
  c.rollout.tensor = 8
  c.reward.verifier = "math_dapo"
  c.reward.overlong_buffer_tokens = 4096
  c.batch.prompts = 512
  c.batch.minibatch_prompts = 64  # 8 updates of 1,024 samples
  c.batch.row_tokens = 22_528
  c.optimizer.learning_rate = 1e-6
  c.optimizer.warmup_updates = 80  # 10 rollouts of 8 updates
  c.optimizer.weight_decay = 0.1
  c.eval.every = 5
  c.eval.prompts = 30  # what a plan counts with where a file is not at hand; all of a file is evaluated
  c.eval.samples_per_prompt = 32
  c.eval.top_p = 0.7
  c.eval.sets = {
    "aime24": {"path": "data/aime-2024.parquet", "samples_per_prompt": 32},  # its prompts hold DAPO's instruction
    "aime25": {"path": "data/aime-2025.jsonl", "samples_per_prompt": 32, "instruction": ASKED},
  }
  c.eval.main = "aime24"
  c.checkpoint.every = 5
  c.checkpoint.keep = 6  # ours: a rollback finds one that is five iterations old on Spot, too, where every = 1
  c.checkpoint.keep_best = 1  # ours: by avg@32 of AIME-2024
  c.checkpoint.best_by = "aime24/accuracy"
  # Ours: nobody watches a pod at night. A collapse goes back to before it, with half the rate; other alarms warn.
  c.alarms.action = "rollback"
  c.alarms.acting = ("collapse",)
  c.alarms.rollback_overrides = {"optimizer": {"learning_rate": 5e-7}}
  return c
