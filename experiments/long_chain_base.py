"""The base model of long_chain.py: 0.4M parameters, taught to play countdown by trying, and to give up soon.

A third of the demonstrations answers at once; the others try signs until a sum leaves 0, give up after a few, and some
check what they have found (fipo_jax/data/countdown.py). The model imitates the mix, from 13 tokens to 270.
Used by long_chain.py, which runs this by itself when its base model is missing; about 5 core-minutes.

Measured, 128 held-out games, 4 answers each: right in 0.273 [0.221, 0.326], 52 tokens on average. 5% of sums are wrong;
of answers after "ok" 85% are right, of those that gave up 4%, of those at once 15%. So what reinforcement learning can
find is not to give up. Two bases before it could not be taught that:

* 1M parameters, 3 to 6 numbers of 1 to 9, every fiftieth sum of the demonstrations wrong, "ok" where the sum is the
  target: 0.156 right; 19% of sums wrong, "ok" true in one of four, right answers as rare after one try as after ten. 30
  iterations of DAPO took it from 51 tokens to 27, and to 0.133.
* 0.4M, 5 numbers of 1 to 5, no wrong sums to imitate: 2% of sums wrong after 400 steps, but "ok" still true in 22%. To
  compare two numbers is harder to learn than to subtract them and see 0: hence the last step of each line.
"""

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
