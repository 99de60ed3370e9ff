"""A miniature in which thoughts can grow: a tiny model plays countdown, where trying longer is what finds the answer.

    python launch/run.py --config=experiments/long_chain.py [--config.algorithm.name=dapo|grpo]

The question is "6 2 3 1 -> 2:", the answer the same numbers with signs between them. Whether signs are right is easy
to see, which ones are is not: a try of 20 tokens has a chance of 18%, the base model (long_chain_base.py) gives up
after two or so, and its demonstrations never had more than ten. Going on until a sum leaves 0 takes about 140 tokens on
average, so length can triple, a try at a time, as far as the policy finds that it pays; it can also learn to try
likelier signs first. There are 6,240 such games, so a third of those held out are met once in training as well.
What is compared on it: experiments/sweeps/long_chain.py. The learning rate is the one that suited DAPO best, on another
seed and other problems (sweeps/long_chain_tuning.py).
"""

from experiments.long_chain_base import GAME
from fipo_jax import config


def get_config():
  c = config.default()
  c.workdir = "runs/long_chain"
  c.steps = 150
  c.model.base_experiment = "experiments/long_chain_base.py"
  c.model.path = "runs/long_chain_base/export"
  c.model.dtype = "float32"
  c.model.remat = "none"
  c.data.source = "reasoning_gym"
  c.data.name = "countdown"
  c.data.options = {**GAME, "operators": ("+", "-"), "shuffle": False}
  c.data.size = 5_000
  c.data.seed = 2  # not the base model's
  c.data.short_question = True
  c.data.chat_template = False
  c.data.max_prompt_tokens = 16
  c.rollout.samples_per_prompt = 8
  c.rollout.max_response_tokens = 448
  c.rollout.slots = 64
  c.reward.overlong_buffer_tokens = 90  # a fifth of the limit, as in DAPO
  c.reward.overlong_factor = 0.5  # scores are 0.05 and 1 here, -1 and 1 there
  c.batch.prompts = 16
  c.batch.minibatch_prompts = 4
  c.batch.row_tokens = 464
  c.batch.micro_rows = 4
  c.optimizer.learning_rate = 1e-4
  c.optimizer.warmup_updates = 8
  c.optimizer.weight_decay = 0.0
  c.eval.every = 25
  c.eval.prompts = 128
  c.eval.samples_per_prompt = 1
  c.eval.top_p = 1.0
  c.checkpoint.every = 10
  c.log.samples = 16
  return c
