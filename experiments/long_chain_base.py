"""The base model of long_chain.py: about 1M parameters, taught to play countdown by trying, and to give up soon.

A third of the demonstrations answers at once; the others try signs until a sum fits, give up after a few, and some
check what they have found (fipo_jax/data/countdown.py). The model imitates the mix, from 15 tokens to 450. Measured:
right in 0.156 [0.112, 0.201] of 256 held-out games, 55 tokens on average; 8.5 core-minutes.
Used by long_chain.py, which runs this by itself when its base model is missing.
"""

from fipo_jax import config

GAME = {"min_numbers": 3, "max_numbers": 6, "min_value": 1, "max_value": 9, "min_target": 1, "max_target": 50}


def get_config():
  c = config.default()
  c.workdir = "runs/long_chain_base"
  c.steps = 600
  c.algorithm.name = "sft"
  c.model.preset = "tiny"
  c.model.alphabet = "0123456789 +-=>\n:AnswerChcko"
  c.model.dtype = "float32"
  c.model.remat = "none"
  c.data.source = "countdown_solutions"
  c.data.size = 9_600  # two epochs
  c.data.options = GAME
  c.data.chat_template = False
  c.data.max_prompt_tokens = 24
  c.rollout.samples_per_prompt = 1
  c.rollout.max_response_tokens = 480
  c.rollout.slots = 128
  c.reward.overlong_buffer_tokens = 0
  c.batch.prompts = 32
  c.batch.minibatch_prompts = 32
  c.batch.row_tokens = 512
  c.batch.micro_rows = 2
  c.optimizer.name = "muon"
  c.optimizer.learning_rate = 4e-3
  c.optimizer.schedule = "cosine"
  c.optimizer.warmup_updates = 40
  c.optimizer.b2 = 0.98
  c.optimizer.weight_decay = 0.01
  c.eval.every = 100_000  # before the first and after the last iteration only
  c.eval.prompts = 256
  c.eval.samples_per_prompt = 1
  c.eval.top_p = 1.0
  c.checkpoint.every = 100
  c.log.samples = 0
  c.log.report = False
  return c
