"""The embedded default: FIPO teaches a tiny model to work out chain sums. No download, minutes on two CPU cores.

    python launch/run.py --config=experiments/quickstart.py [--config.algorithm.name=dapo|grpo]

The path is the one a real Qwen2.5 takes: a Hugging Face directory (made by quickstart_base.py the first time), Grain
prompts, jitted sampling, dynamic sampling, Future-KL, 4 optimizer steps per rollout, Orbax, held-out evaluation.
"""

from fipo_jax import config


def get_config():
  c = config.default()
  c.workdir = "runs/quickstart"
  c.steps = 24
  c.model.base_experiment = "experiments/quickstart_base.py"
  c.model.path = "runs/quickstart_base/export"
  c.model.dtype = "float32"
  c.model.remat = "none"
  c.algorithm.clip_high = 0.28
  c.algorithm.safety_threshold = 3.0
  c.data.source = "reasoning_gym"
  c.data.name = "chain_sum"
  c.data.short_question = True
  c.data.options = {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}
  c.data.seed = 2  # not the base model's
  c.data.chat_template = False
  c.data.max_prompt_tokens = 16
  c.rollout.samples_per_prompt = 8
  c.rollout.max_response_tokens = 80
  c.rollout.slots = 256
  c.reward.verifier = "math_dapo"  # right or wrong: the generator's own scorer pays partly for wrong numbers
  c.reward.overlong_buffer_tokens = 0
  c.batch.prompts = 32
  c.batch.minibatch_prompts = 8
  c.batch.row_tokens = 96
  c.batch.micro_rows = 32
  c.optimizer.learning_rate = 1e-4
  c.optimizer.warmup_updates = 8
  c.optimizer.weight_decay = 0.0
  c.eval.every = 12
  c.eval.prompts = 256
  c.eval.samples_per_prompt = 1
  c.eval.top_p = 1.0
  c.checkpoint.every = 12
  return c
