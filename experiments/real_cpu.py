"""A published Qwen2.5 of 0.5B learns on a CPU within hours: it begins to work sums out, and gets them right.

    python launch/evaluate.py --config=experiments/real_cpu.py --model=DIR --out=runs/real_cpu_before.json
    python launch/run.py --config=experiments/real_cpu.py --config.model.path=DIR [--config.algorithm.name=dapo]
    python launch/evaluate.py --run=runs/real_cpu --out=runs/real_cpu_after.json
    python launch/evaluate.py --compare runs/real_cpu_before.json runs/real_cpu_after.json

Sums of two or three numbers of two digits, of which Qwen2.5-Coder-0.5B-Instruct has a quarter right at first. What came
of it: results/real_cpu.md. An iteration is four to six minutes of one core and 17 GB of memory at the peak, and saved:
stopped and started again it goes on. DIR is a Hugging Face directory. The same on a GPU, with more and longer:
real_gpu.py.
"""

from experiments import qwen2_5_cpu


def get_config():
  c = qwen2_5_cpu.get_config()
  c.workdir = "runs/real_cpu"
  c.steps = 24
  c.model.dtype = "float32"  # a CPU without bfloat16 instructions multiplies these 1.5 times as fast
  c.data.size = 2_000
  c.data.seed = 2
  c.data.short_question = True
  c.data.system = "You do sums."  # short: each of 8 samples carries the prompt through the update
  c.rollout.max_response_tokens = 128
  c.reward.overlong_buffer_tokens = 32
  c.batch.row_tokens = 384
  c.optimizer.learning_rate = 3e-6  # three times the paper's; 1e-5 moved the policy by 0.2 nats in one iteration
  c.optimizer.warmup_updates = 4
  c.optimizer.weight_decay = 0.0
  c.eval.every = 0  # before and after, by launch/evaluate.py, with intervals
  c.eval.prompts = 128
  c.eval.samples_per_prompt = 2
  c.eval.top_p = 1.0
  c.checkpoint.every = 1
  c.checkpoint.export = False
  c.log.report = False
  return c
