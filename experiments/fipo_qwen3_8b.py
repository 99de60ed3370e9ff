"""FIPO on Qwen3-8B-Base: the settings of arXiv 2603.19835 for 32B, on a model that its authors did not train.

    python launch/run.py --config=experiments/fipo_qwen3_8b.py --config.model.path=Qwen3-8B-Base \
      --config.data.path=data/dapo-math-17k.parquet

No published figures to compare with, and not run yet. Any other dense Qwen3 goes the same way: name its folder.
batch.micro_rows suits 8 chips, one row each.
"""

from experiments import fipo_qwen2_5_32b


def get_config():
  c = fipo_qwen2_5_32b.get_config()
  c.workdir = "runs/fipo_qwen3_8b"
  c.model.path = "Qwen3-8B-Base"  # override: --config.model.path=DIR
  c.model.offload_inputs = c.optimizer.offload = False
  c.mesh.data, c.mesh.fsdp = 1, -1
  c.batch.micro_rows = 8
  c.rollout.tensor = 0
  return c
