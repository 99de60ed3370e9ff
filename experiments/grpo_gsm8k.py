"""GRPO on GSM8K with a Qwen2.5 of 0.5B or 1.5B, Instruct or base: the objective and settings of arXiv 2402.03300.

    python launch/run.py --config=experiments/grpo_gsm8k.py --config.model.path=Qwen2.5-1.5B-Instruct

The questions (7,473 to train on, 1,319 to test) are those of TensorFlow Datasets. Reading them needs no TensorFlow, but
downloading and preparing them does, once, in any environment:

    pip install tensorflow tensorflow-datasets array-record importlib-resources
    python -c "from tensorflow_datasets.text import Gsm8k; Gsm8k(file_format='array_record').download_and_prepare()"

"Paper" below is section 4.2 there, which trained a 7B model on GSM8K and MATH; it is silent where it says "ours".
We have not run this; mesh, rollout.slots and batch.micro_rows are yours to set for the machine.
"""

from fipo_jax import config
from fipo_jax.algorithms.presets import PRESETS


def get_config():
  c = config.default()
  c.workdir = "runs/grpo_gsm8k"
  c.steps = 467  # ours: every question once
  c.algorithm.update(PRESETS["grpo"])
  c.algorithm.reference_kl_coef = 0.04  # paper
  c.model.path = "Qwen2.5-1.5B-Instruct"  # override: --config.model.path=DIR
  c.data.source = "tfds"
  c.data.name = "gsm8k"
  c.data.columns.answer = "short_answer"  # the number alone; "answer" is the worked solution that ends in it
  c.data.instruction = (
    "{question}\nThink step by step, then end with a line 'Answer: N', where N is the number alone."
  )
  c.data.max_prompt_tokens = 512  # ours
  c.rollout.samples_per_prompt = 64  # paper
  c.rollout.max_response_tokens = 1024  # paper
  c.reward.verifier = "math_dapo"  # ours: right or wrong; the paper has a reward model
  c.reward.overlong_buffer_tokens = 0  # not part of GRPO
  c.dynamic_sampling.enabled = False  # not part of GRPO
  c.batch.prompts = 16  # paper: 1,024 samples an iteration
  c.batch.minibatch_prompts = 16  # paper: one update per rollout
  c.batch.row_tokens = 1536
  c.batch.micro_rows = 64  # ours
  c.rollout.slots = 256  # ours
  c.optimizer.learning_rate = 1e-6  # paper
  c.optimizer.warmup_updates = 10  # ours
  c.optimizer.weight_decay = 0.0  # ours
  c.eval.every = 50  # ours
  c.eval.prompts = 1319  # the whole test split
  c.eval.samples_per_prompt = 1
  c.eval.temperature = 0.0  # ours: greedy, the usual figure for GSM8K
  c.eval.top_p = 1.0
  c.checkpoint.every = 50  # ours
  return c
