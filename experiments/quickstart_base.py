"""A base model to start from: about 1M parameters, taught by noisy worked solutions of chain sums.

Some demonstrations jump to an answer and are usually wrong; some work step by step, some check themselves. The model
imitates the mix and solves about a third: reinforcement learning has something to find.
Used by quickstart.py, which runs this by itself when its base model is missing.
"""

from fipo_jax import config


def get_config():
  c = config.default()
  c.workdir = "runs/quickstart_base"
  c.steps = 400
  c.algorithm.name = "sft"
  c.model.preset = "tiny"
  c.model.alphabet = "0123456789 +-=\n:AnswerChckoy"
  c.model.dtype = "float32"
  c.model.remat = "none"
  c.data.source = "chain_sum_solutions"
  c.data.name = "chain_sum"
  c.data.size = 30_000
  c.data.options = {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}
  c.data.chat_template = False
  c.data.max_prompt_tokens = 16
  c.rollout.samples_per_prompt = 1
  c.rollout.max_response_tokens = 80
  c.rollout.slots = 64
  c.reward.overlong_buffer_tokens = 0
  c.batch.prompts = 64
  c.batch.minibatch_prompts = 64
  c.batch.row_tokens = 96
  c.batch.micro_rows = 12
  c.optimizer.name = "muon"  # AdamW needs about twice the samples to learn the arithmetic
  c.optimizer.learning_rate = 4e-3
  c.optimizer.schedule = "cosine"
  c.optimizer.warmup_updates = 20
  c.optimizer.b2 = 0.98
  c.optimizer.weight_decay = 0.01
  c.eval.every = 100_000  # before the first and after the last iteration only
  c.eval.prompts = 256
  c.eval.samples_per_prompt = 1
  c.eval.top_p = 1.0
  c.checkpoint.every = 1000
  c.log.samples = 0
  c.log.report = False
  return c
