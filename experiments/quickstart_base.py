"""A base model to start from: about 1M parameters, taught by noisy worked solutions of chain sums.

Most demonstrations jump to an answer and are usually wrong; some work step by step, some check themselves. The model
imitates the mix, so it solves about a third: reinforcement learning has something to find.
Used by quickstart.py, which runs this by itself when its base model is missing.
"""

from fipo_jax import config


def get_config():
  c = config.default()
  c.workdir = "runs/quickstart_base"
  c.steps = 600
  c.algorithm.name = "sft"
  c.model.preset = "tiny"
  c.model.alphabet = "0123456789 +-=\n:AnswerChckoy"
  c.model.dtype = "float32"
  c.model.remat = "none"
  c.data.source = "chain_sum_solutions"
  c.data.name = "chain_sum"
  c.data.size = 40_000
  c.data.options = {"min_terms": 3, "max_terms": 4, "min_digits": 1, "max_digits": 2}
  c.data.chat_template = False
  c.data.max_prompt_tokens = 24
  c.rollout.samples_per_prompt = 1
  c.rollout.max_response_tokens = 104
  c.rollout.slots = 64
  c.reward.overlong_buffer_tokens = 0
  c.batch.prompts = 128
  c.batch.minibatch_prompts = 128
  c.batch.row_tokens = 128
  c.batch.micro_rows = 16
  c.optimizer.learning_rate = 2e-3
  c.optimizer.schedule = "cosine"
  c.optimizer.warmup_updates = 40
  c.optimizer.b2 = 0.98
  c.optimizer.weight_decay = 0.01
  c.eval.every = 100_000  # before the first and after the last iteration only
  c.eval.prompts = 128
  c.eval.samples_per_prompt = 1
  c.eval.top_p = 1.0
  c.checkpoint.every = 200
  c.log.samples = 0
  c.log.report = False
  return c
