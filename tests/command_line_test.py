"""Mistakes of a user on the command line: one line each, the code of a user's mistake, and nothing is touched."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Runs the program for each command line in a fork of one process: imports are most of a start.
RUNNER = """
import importlib, json, os, sys, traceback
sys.path.insert(0, sys.argv[1])
import launch.run as program
for name in ("assemble", "config", "loop", "workdir", "saved"):
  importlib.import_module(f"fipo_jax.{name}")
import jax
from absl import app
for number, (arguments, environment) in enumerate(json.load(sys.stdin)):
  if not (child := os.fork()):
    out = os.open(f"{sys.argv[2]}/{number}", os.O_CREAT | os.O_WRONLY)
    os.dup2(out, 1), os.dup2(out, 2)
    os.environ |= environment
    jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
    code = 99
    try:
      sys.argv = ["run.py", *arguments]
      app.run(program.main, flags_parser=program.parse)
      code = 0
    except SystemExit as end:
      code = end.code or 0
    except BaseException:
      traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)
  print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

EXPERIMENT = """
from fipo_jax import config
def get_config():
  c = config.default()
  c.workdir, c.model.preset, c.model.alphabet = "run", "tiny", "0123456789 +-="
  c.data.source, c.data.path, c.reward.verifier = "jsonl", "p.jsonl", "math_dapo"
  c.data.max_prompt_tokens, c.rollout.max_response_tokens, c.reward.overlong_buffer_tokens = 16, 16, 0
  c.data.chat_template, c.eval.prompts, c.batch.prompts, c.batch.minibatch_prompts = False, 2, 4, 2
  return c
"""
MINE = "--config=mine.py"


def of(field, value):
  return [MINE, f"--config.{field}={value}"]


# What is given (a list: flags), and what is said. All end with code 2 but for those in the second table.
MISTAKES = [
  ([], "no --config: name an experiment, such as --config=experiments/quickstart.py, or --run=DIR"),
  (["--config="], "--config=: no such file"),
  (["--config=README.md"], "--config=README.md: expected an experiment (a .py file with get_config) or the config."),
  (["--config=gone.py"], "--config=gone.py: no such file; there are experiments/"),
  (["--config=gone/config.json"], "--config=gone/config.json: no such file"),
  (["--config=broken.json"], "not valid JSON"),
  (["--config=list.json"], "list.json: no config of a run; a workdir's config.json is one"),
  (["--config=unknown.json"], "optimizer.lr=3: no such field; optimizer.learning_rate?"),
  (["--config=typed.json"], "typed.json: steps='many'"),
  (["--config=empty.py"], "get_config"),
  (["--config=syntax.py"], "the experiment cannot be read"),
  (["--config=imports.py"], "the experiment cannot be read: ModuleNotFoundError: No module named 'nothing_like_it'"),
  (["--config=raises.py"], "the experiment cannot be read: ZeroDivisionError: division by zero"),
  (["--run=gone"], "--run=gone: no run there; expected a folder with config.json"),
  ([MINE, "stray"], "unexpected argument 'stray': fields are given as --config.FIELD=VALUE"),
  ([MINE, "--nonsense=1"], "Unknown command line flag 'nonsense'"),
  ([MINE, "--step=last"], "--step=last: expected the number of a checkpoint, or 'best'"),
  ([MINE, "--allow=optimizer.lr"], "--allow=optimizer.lr: no such field; optimizer.learning_rate?"),
  (of("optimizer.lr", 3), "--config.optimizer.lr: no such field; optimizer.learning_rate?"),
  (of("stepz", 3), "--config.stepz: no such field; steps?"),
  (of("steps", "1e3"), "--config.steps=1e3: expected a whole number, such as 100"),
  (of("steps", ""), "--config.steps=: expected a whole number"),
  (of("optimizer.learning_rate", "small"), "small"),
  (of("optimizer", 3), "--config.optimizer: a section; name one of its fields, as --config.optimizer.FIELD=VALUE"),
  (of("dynamic_sampling.enabled", "perhaps"), "perhaps"),
  (of("algorithm.weight_clip", "1.0"), "algorithm.weight_clip"),
  (of("workdir", ""), "workdir='': name the folder that the run writes to"),
  (of("steps", 0), "steps=0: must be greater than 0"),
  (of("batch.prompts", 5), "batch.prompts=5 is not divisible by batch.minibatch_prompts=2; try 1"),
  (of("algorithm.name", "fippo"), "algorithm.name='fippo': expected one of 'fipo'"),
  (of("algorithm.loss_norm", "mean"), "algorithm.loss_norm='mean': expected one of"),
  (of("reward.verifier", "math"), "reward.verifier='math': expected one of"),
  (of("reward.file", "gone.py"), "reward.file='gone.py': no such file"),
  (of("rollout.engine", "vllm"), "rollout.engine='vllm': expected one of 'native'"),
  (of("rollout.engine", "http"), "rollout.urls=(): rollout.engine='http' needs the servers"),
  (of("optimizer.name", "adam"), "optimizer.name='adam': expected one of 'adamw'"),
  (of("model.preset", "qwen"), "model.preset='qwen': expected one of 'tiny'"),
  (of("model.path", "gone"), "give exactly one"),
  (of("data.source", "json"), "data.source='json': expected one of"),
  (of("data.path", "gone.jsonl"), "data.path='gone.jsonl': gone.jsonl: no such file"),
  (of("data.path", "3"), "data.path=3: expected a file, a folder, a glob, or several of them"),
  (of("data.name", "gsm8k"), "data.name='gsm8k': not read by data.source='jsonl'; leave it out"),
  (of("data.question_field", "q"), "--config.data.question_field: no such field; data.columns.question?"),
  (of("data.columns.question", "q"), "p.jsonl line 1: no field 'q' among 'answer', 'prompt'; see data.columns"),
  (of("data.path", "bad.jsonl"), "bad.jsonl line 2: not valid JSON"),
  (of("data.path", "utf16.jsonl"), "utf16.jsonl line 1: the file is UTF-16"),
  (of("eval.prompts", 90), "eval.prompts=90: data.path='p.jsonl' has only 9 records"),
  (of("batch.prompts", 64), "batch.prompts=64 is more than the 7 prompts there are"),
  (of("mesh.fsdp", 7), "mesh."),
  (of("model.alphabet", "01"), "the vocabulary has no token for"),
  (of("workdir", "p.jsonl/run"), "workdir=p.jsonl/run cannot be written: Not a directory; name another one"),
  (of("workdir", "taken"), "workdir='taken' holds a run of another config: "),
  (of("checkpoint.folder", "p.jsonl"), "p.jsonl"),
  ([MINE, "--num_processes=2"], "give all three, the coordinator as host:port"),
]
WITH_ENVIRONMENT = [
  ({"JAX_PLATFORMS": "tpu"}, [MINE], "JAX_PLATFORMS='tpu': JAX finds no such device here"),
  ({"JAX_PLATFORMS": "cuda"}, [MINE], "JAX_PLATFORMS='cuda': JAX finds no such device here"),
]


def given_files(folder):
  (folder / "mine.py").write_text(EXPERIMENT)
  rows = "".join(json.dumps({"prompt": f"{i} + 1 =", "answer": str(i + 1)}) + "\n" for i in range(9))
  texts = {
    "README.md": "# about", "broken.json": "{", "list.json": "[1]", "unknown.json": '{"optimizer": {"lr": 3}}',
    "typed.json": '{"steps": "many"}', "empty.py": "", "syntax.py": "def", "imports.py": "import nothing_like_it",
    "raises.py": "def get_config(): return 1 / 0", "p.jsonl": rows,
    "taken/config.json": json.dumps({"optimizer": {"learning_rate": 9.0}}), "taken/metrics.jsonl": '{"step": 1}\n',
  }  # fmt: skip
  (folder / "taken").mkdir()
  for name, text in texts.items():
    (folder / name).write_text(text)
  (folder / "bad.jsonl").write_text(rows.splitlines()[0] + "\n{\n")
  (folder / "utf16.jsonl").write_bytes(rows.encode("utf-16"))


def contents(folder):
  """What is there, but for the workdir that a run makes for itself, and the lock of one that is there."""
  files = {p.relative_to(folder): p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
  return {name: path.read_bytes() for name, path in files.items() if name.parts[0] != "run"}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
  """(code, output) of each mistake, in a folder of its own, which is left as it was."""
  folder, out = tmp_path_factory.mktemp("mistakes"), tmp_path_factory.mktemp("said")
  given_files(folder)
  before = contents(folder)
  commands = [(arguments, {}) for arguments, _ in MISTAKES] + [(a, e) for e, a, _ in WITH_ENVIRONMENT]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1"}
  done = subprocess.run(
    [sys.executable, "-c", RUNNER, str(ROOT), str(out)], cwd=folder, env=environment, input=json.dumps(commands),
    capture_output=True, text=True, timeout=600,
  )  # fmt: skip
  codes = done.stdout.split()
  assert len(codes) == len(commands), done.stderr
  assert contents(folder) == before
  assert not (folder / "run/metrics.jsonl").exists() and not (folder / "run/checkpoints").exists()
  return [(int(code), (out / str(number)).read_text()) for number, code in enumerate(codes)]


ALL = [message for _, message in MISTAKES] + [message for *_, message in WITH_ENVIRONMENT]


def test_mistakes_are_one_line_with_code_2_and_touch_nothing(said):
  assert len(ALL) >= 40
  wrong = []
  for message, (code, output) in zip(ALL, said, strict=True):
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    if code != 2 or len(errors) != 1 or message not in errors[0] or "Traceback" in output:
      wrong.append((message, code, output[-600:]))
  assert wrong == []


@pytest.mark.parametrize("flag", ["-h", "--help", "--helpfull"])
def test_help_is_no_mistake(flag):
  done = subprocess.run([sys.executable, "launch/run.py", flag], cwd=ROOT, capture_output=True, text=True, timeout=60)
  assert done.returncode == 0 and "--config" in done.stdout and "--allow" in done.stdout and done.stderr == ""


def test_a_python_without_the_project_is_told_which_one_has_it():
  done = subprocess.run([sys.executable, "-S", "launch/run.py"], cwd=ROOT, capture_output=True, text=True, timeout=60)
  assert done.returncode == 2 and done.stderr.count("\n") == 1
  assert f"error: this Python ({sys.executable}) has no jax, flax" in done.stderr and ".venv/bin/python" in done.stderr
