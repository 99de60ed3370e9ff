"""Runs whose seconds launch/plan.py --check foretells: long nonsense of a tiny model with random weights, on a CPU.

    python launch/run.py --config=experiments/plan_check.py --config.workdir=runs/plan_check/fitted
    python launch/plan.py --check=runs/plan_check/fitted,runs/plan_check/other,...

A response is right when it is long (plan_check_reward.py), so that lengths grow from step to step.
"""

from fipo_jax import config


def get_config():
  c = config.default()
  c.workdir = "runs/plan_check/fitted"
  c.steps = 10
  c.model.preset = "tiny"
  c.model.alphabet = "0123456789 +-=\n:AnswerChckoy"
  c.model.dtype = "float32"
  c.model.remat = "none"
  c.data.source = "reasoning_gym"
  c.data.name = "chain_sum"
  c.data.options = {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}
  c.data.short_question = True
  c.data.chat_template = False
  c.data.max_prompt_tokens = 16
  c.rollout.samples_per_prompt = 8
  c.rollout.max_response_tokens = 240
  c.rollout.slots = 64
  c.reward.file = "experiments/results/plan_check_reward.py"
  c.reward.overlong_buffer_tokens = 0
  c.batch.prompts = 16
  c.batch.minibatch_prompts = 4
  c.batch.row_tokens = 256
  c.batch.micro_rows = 8
  c.optimizer.learning_rate = 1e-4
  c.optimizer.warmup_updates = 0
  c.optimizer.weight_decay = 0.0
  c.dynamic_sampling.max_draws = 1  # whether another is needed hangs on single groups
  c.eval.every = 0
  c.checkpoint.every = 1000
  c.checkpoint.export = False
  c.log.samples = 0
  c.log.report = False
  return c
