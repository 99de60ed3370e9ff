"""A real Qwen2.5 checkpoint on a CPU: two iterations, to see the whole path work before renting anything.

    python launch/run.py --config=experiments/qwen2_5_cpu.py --config.model.path=DIR

DIR is a Hugging Face directory of any small Qwen2.5 (config.json, safetensors, tokenizer.json). Measured for 0.5B on
two cores: 9 minutes, 15 GB at the peak; more when more groups are neither all right nor all wrong.
"""

from fipo_jax import config


def get_config():
  c = config.default()
  c.workdir = "runs/qwen2_5_cpu"
  c.steps = 2
  c.model.path = "model"  # override: --config.model.path=DIR
  c.model.dtype = "bfloat16"
  c.model.remat = "none"  # so few tokens at a time: recomputing would only cost time
  c.data.source = "reasoning_gym"
  c.data.name = "chain_sum"
  c.data.options = {"min_terms": 2, "max_terms": 3, "min_digits": 2, "max_digits": 2}
  c.data.size = 1000
  c.data.instruction = (
    "{question}\nWork it out in one or two lines, without explanation, then write 'Answer: ' and the number."
  )
  c.data.max_prompt_tokens = 96
  c.reward.verifier = "math_dapo"
  c.reward.overlong_buffer_tokens = 32
  c.rollout.samples_per_prompt = 8
  c.rollout.max_response_tokens = 128
  c.rollout.slots = 64
  c.batch.prompts = 8
  c.batch.minibatch_prompts = 4  # two optimizer steps per rollout
  c.batch.row_tokens = 448  # two prompts with responses of full length
  c.batch.micro_rows = 1
  c.dynamic_sampling.max_draws = 1  # trains on the mixed groups of 8 prompts: another draw costs minutes
  c.optimizer.warmup_updates = 0
  c.eval.every = 2
  c.eval.prompts = 16
  c.eval.samples_per_prompt = 1
  c.checkpoint.every = 2
  c.checkpoint.keep = 1
  return c
