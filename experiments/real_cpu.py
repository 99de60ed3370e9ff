"""A published Qwen2.5 of 0.5B learns on a CPU, in about two core-hours: does anything rise? (Sized, not run.)

    python launch/evaluate.py --config=experiments/real_cpu.py --model=DIR --out=runs/real_cpu_before.json
    python launch/run.py --config=experiments/real_cpu.py --config.model.path=DIR [--config.algorithm.name=dapo]
    python launch/evaluate.py --run=runs/real_cpu --out=runs/real_cpu_after.json
    python launch/evaluate.py --compare runs/real_cpu_before.json runs/real_cpu_after.json

Sums of two or three numbers of two digits, as in qwen2_5_cpu.py, by whose 9 core-minutes an iteration of 8 x 8 x 128
tokens, evaluations included, this was sized. How often the model is right at first is not measured yet: the first
command says it, and 20 to 50% leaves room; --config.data.options.max_terms=4 is harder. An iteration is saved every
time: stopped and started again it goes on. DIR is a Hugging Face directory such as
Qwen2.5-0.5B-Instruct; 15 GB of memory at the peak. The same on a GPU, with more and longer: real_gpu.py.
"""

from experiments import qwen2_5_cpu


def get_config():
  c = qwen2_5_cpu.get_config()
  c.workdir = "runs/real_cpu"
  c.steps = 20
  c.data.size = 2_000
  c.data.seed = 2
  c.rollout.max_response_tokens = 96
  c.reward.overlong_buffer_tokens = 24
  c.batch.row_tokens = 384
  c.optimizer.learning_rate = 4e-6  # four times the paper's: 40 updates in all
  c.optimizer.warmup_updates = 2
  c.optimizer.weight_decay = 0.0
  c.eval.every = 0  # before and after, by launch/evaluate.py, with intervals
  c.eval.prompts = 64
  c.eval.samples_per_prompt = 2
  c.eval.top_p = 1.0
  c.checkpoint.every = 1
  c.checkpoint.export = False
  c.log.report = False
  return c
