"""base"""

from experiments import quickstart_base

GAME = {"min_numbers": 4, "max_numbers": 4, "min_value": 1, "max_value": 7, "min_target": 1, "max_target": 9}


def get_config():
  c = quickstart_base.get_config()
  c.workdir = "runs/long_chain_base"
  c.steps = 500
  c.model.preset = "mini"
  c.model.alphabet = "0123456789 +-=>\n:AnswerChcko"
  c.data.source = "countdown_solutions"
  c.data.size = 12_000  # two epochs
  c.data.options = GAME
  c.data.max_prompt_tokens = 16
  c.rollout.max_response_tokens = 272
  c.rollout.slots = 128
  c.batch.prompts = 48
  c.batch.minibatch_prompts = 48
  c.batch.row_tokens = 288
  c.batch.micro_rows = 5
  c.optimizer.warmup_updates = 40
  c.checkpoint.every = 250
  return c
