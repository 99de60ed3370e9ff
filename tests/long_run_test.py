"""A thousand steps: what a fortnight would wear out. Memory, files and the time of a step stay as they are."""

import itertools
import json
import pathlib
import statistics
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS = 1000
VERIFIER = """
def verify(response, answer, extras):
  return {"score": float(sum(map(ord, response)) % 2), "pred": response[-3:]}
"""
EXPERIMENT = """
from fipo_jax import config

def get_config():
  c = config.default()
  c.steps, c.workdir = {steps}, {workdir!r}
  c.model.preset, c.model.alphabet, c.model.dtype, c.model.remat = "tiny", "0123456789+-= .?", "float32", "none"
  c.data.short_question, c.data.chat_template, c.data.size, c.data.max_prompt_tokens = True, False, 64, 24
  c.data.options = {{"max_terms": 3, "max_digits": 1, "min_digits": 1}}
  c.rollout.samples_per_prompt, c.rollout.max_response_tokens, c.rollout.slots = 4, 8, 16
  c.reward.file, c.reward.workers, c.reward.overlong_buffer_tokens = {verifier!r}, 1, 0
  c.batch.prompts, c.batch.minibatch_prompts, c.batch.row_tokens, c.batch.micro_rows = 4, 2, 32, 8
  c.eval.prompts, c.eval.samples_per_prompt, c.eval.every = 4, 1, 50
  c.checkpoint.every, c.checkpoint.export = 50, False
  c.log.samples, c.log.samples_mb, c.log.report = 4, 1, False
  c.optimizer.learning_rate, c.optimizer.warmup_updates = 1e-6, 0
  return c
"""


def files_of(folder):
  found = [p for p in pathlib.Path(folder).rglob("*") if p.is_file()]
  return len(found), sum(p.stat().st_size for p in found)


@pytest.mark.slow
def test_a_thousand_steps_do_not_wear_out(tmp_path):
  workdir = tmp_path / "run"
  (tmp_path / "verifier.py").write_text(VERIFIER)
  seen = {}
  for steps in (STEPS // 5, STEPS):  # the second start resumes
    text = EXPERIMENT.format(steps=steps, workdir=str(workdir), verifier=str(tmp_path / "verifier.py"))
    (tmp_path / "long.py").write_text(text)
    subprocess.run(
      [sys.executable, "launch/run.py", f"--config={tmp_path / 'long.py'}"], cwd=ROOT, check=True, timeout=3000
    )
    seen[steps] = files_of(workdir / "checkpoints")
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  rows = [r for r in rows if r["step"] > STEPS // 5]
  early, late = rows[100:300], rows[-200:]
  # A step may sample nothing, and then has no phase of that name.
  middle = lambda part, name: statistics.median(r[name] for r in part if name in r)
  figures = {name: (middle(early, name), middle(late, name)) for name in ("seconds/step", "seconds/reward")}
  figures |= {"checkpoint files": (seen[STEPS // 5][0], seen[STEPS][0]),
              "checkpoint bytes": (seen[STEPS // 5][1], seen[STEPS][1]),
              "samples bytes": (1e6, (workdir / "samples.jsonl").stat().st_size)}  # fmt: skip
  for name, (before, after) in figures.items():
    room = {"seconds/step": 1.5, "seconds/reward": 2.0}.get(name, 1.02)  # a shared machine is noisy
    assert after <= room * before, (name, figures)
  # A program that is compiled late takes memory once; a leak takes some at every step. So: the growth from twenty steps
  # to the next twenty, its three largest jumps left out, over the last 700 steps. Saving checkpoints takes 65 MB over
  # the first hundred saves and no more after them.
  blocks = [middle(rows[i : i + 20], "host_memory_gb") for i in range(100, len(rows) - 19, 20)]
  growth = sum(sorted(b - a for a, b in itertools.pairwise(blocks))[:-3])
  print(json.dumps({**figures, "host_memory_gb": (blocks[0], blocks[-1]), "growth but for compiling": growth}))
  assert growth < 0.04 * blocks[0], blocks
  metrics_bytes = (workdir / "metrics.jsonl").stat().st_size / STEPS
  assert metrics_bytes < 10_000  # a line a step, of one size
  assert json.loads((workdir / "result.json").read_text())["reward_errors"] == 0
