"""A published Qwen2.5 of 0.5B learns word problems on one GPU, within a quarter of an hour with evaluation. (Not run.)

    python launch/run.py --config=experiments/real_gpu.py --config.model.path=DIR [--config.algorithm.name=dapo]
    python launch/evaluate.py --config=experiments/real_gpu.py --model=DIR        before
    python launch/evaluate.py --run=runs/real_gpu                                 after

Questions are reasoning-gym's gsm_symbolic, GSM8K with other numbers; 256 that are not trained on are answered twice
each. DIR is a Hugging Face directory such as Qwen2.5-0.5B-Instruct. Sizes are for 80 GB; experiments/gpu/ takes model
and run to a machine that nothing but files can reach.
"""

from fipo_jax import config


def get_config():
  c = config.default()
  c.workdir = "runs/real_gpu"
  c.steps = 48
  c.model.path = "model"  # override: --config.model.path=DIR
  c.model.remat = "context"
  c.data.source = "reasoning_gym"
  c.data.name = "gsm_symbolic"
  c.data.size = 4_000
  c.data.seed = 2
  c.data.instruction = (
    "{question}\nWork it out step by step in a few lines. End with a line 'Answer: N', where N is the number alone."
  )
  c.data.max_prompt_tokens = 256
  c.reward.verifier = "math_dapo"
  c.reward.overlong_buffer_tokens = 64
  c.rollout.samples_per_prompt = 8
  c.rollout.max_response_tokens = 384
  c.rollout.slots = 256
  c.batch.prompts = 32
  c.batch.minibatch_prompts = 8  # four updates per rollout: with one, Future-KL would be 0
  c.batch.row_tokens = 2_560
  c.batch.micro_rows = 8
  c.dynamic_sampling.max_draws = 2
  c.optimizer.learning_rate = 2e-6  # twice the paper's of 32B, for a model of a sixtieth and a few dozen steps
  c.optimizer.warmup_updates = 8
  c.optimizer.weight_decay = 0.0
  c.eval.every = 0  # before and after, by launch/evaluate.py, with intervals
  c.eval.prompts = 256
  c.eval.samples_per_prompt = 2
  c.eval.top_p = 1.0
  c.checkpoint.every = 16
  c.checkpoint.keep = 1
  c.checkpoint.export = False
  c.log.samples = 8
  c.log.report = False
  return c
