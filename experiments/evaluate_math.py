"""AIME-2024, AIME-2025, AMC, MATH-500 and GSM8K for any model: several samples per problem, or one greedy one.

    python launch/evaluate.py --config=experiments/evaluate_math.py --model=DIR [--sets=aime24,math500]
    python launch/evaluate.py --config=experiments/evaluate_math.py:greedy --run=runs/fipo_qwen2_5_32b --step=best

The files are the published ones, not shipped; put them into data/ or name them, --config.eval.sets.aime24.path=FILE:

| set | file | from |
|---|---|---|
| aime24 | aime-2024.parquet | BytedTsinghua-SIA/AIME-2024, DAPO's layout: the prompt holds its own instruction |
| aime25 | aime-2025.jsonl | any with problem and answer, such as math-ai/aime25 |
| amc23 | amc23.parquet | math-ai/amc23, 40 problems |
| math500 | math-500.jsonl | HuggingFaceH4/MATH-500 |
| gsm8k | gsm8k-test.parquet | openai/gsm8k, main, 1,319 problems |

--config.data.path=FILE names what the model was trained on: questions that are in both are counted. Sampling is that of
the FIPO script's validation (temperature 1, top-p 0.7), of AIME 32 times; greedy is once, at temperature 0.

What papers report, to lay beside (their prompts, limits and verifiers differ from ours where they do not say):

| model | figure | source |
|---|---|---|
| FIPO, Qwen2.5-32B | AIME-2024 avg@32 58.0% at its peak, about 56.0% at its end | arXiv 2603.19835 |
| DAPO, Qwen2.5-32B, as FIPO's authors made it | 50.0% | arXiv 2603.19835 |
| DeepSeek-R1-Zero on Qwen2.5-32B; o1-mini | about 47.0%; about 56.0% | arXiv 2603.19835 |
| Qwen2.5-Math-7B-Instruct, greedy | GSM8K 95.2%, MATH 83.6% | arXiv 2409.12122 |
| Qwen2.5-Math-72B-Instruct, greedy | GSM8K 95.9%, MATH 85.9% | arXiv 2409.12122 |
"""

from fipo_jax import config

ASKED = "{question}\n\nReason step by step. End with a line 'Answer: X', where X is the answer alone."


def get_config(form: str = "samples"):
  if form not in ("samples", "greedy"):
    raise ValueError(f"--config=evaluate_math.py:{form}: expected samples or greedy.")
  c = config.default()
  c.workdir = "runs/evaluate_math"
  c.model.path = "model"  # override: --model=DIR
  c.data.source = "parquet"  # what the model was trained on, where you name it
  c.data.max_prompt_tokens = 2048
  c.rollout.max_response_tokens = 20_480
  c.rollout.slots = "auto"
  c.reward.overlong_buffer_tokens = 0  # figures are of accuracy
  c.batch.row_tokens = 22_528  # nothing is trained
  c.eval.every = 0
  c.eval.top_p = 0.7
  if form == "greedy":
    c.eval.temperature, c.eval.top_p = 0.0, 1.0
  many = lambda n: 1 if form == "greedy" else n
  by_value = {"instruction": ASKED, "verifier": "math_symbolic"}
  c.eval.sets = {
    "aime24": {"path": "data/aime-2024.parquet", "samples_per_prompt": many(32), "verifier": "math_dapo"},
    "aime25": {"path": "data/aime-2025.jsonl", "samples_per_prompt": many(32), **by_value},
    "amc23": {"path": "data/amc23.parquet", "samples_per_prompt": many(32), **by_value},
    "math500": {"path": "data/math-500.jsonl", "samples_per_prompt": many(4), **by_value},
    "gsm8k": {"path": "data/gsm8k-test.parquet", "samples_per_prompt": 1, **by_value},
  }
  return c
