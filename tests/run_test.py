"""launch/run.py: every mistake is one line on stderr and an exit code that is not 0."""

import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import types

import pytest

from fipo_jax import command_line, commands, processes
from launch import run

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "qwen2" / "tied_mqa"


def refused(code, says, *arguments):
  """By the program itself, in a process of its own."""
  done = subprocess.run(
    [sys.executable, "launch/run.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
  )  # fmt: skip
  check_line(done.returncode, code, says, done.stderr)


def check_line(got, code, says, stderr):
  assert got == code, stderr
  errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
  assert len(errors) == 1 and says in errors[0], stderr
  assert "Traceback" not in stderr


@pytest.fixture
def refuses(monkeypatch, capsys):
  """The same of main() in this process, which saves an interpreter and its imports: refuses(what it says, fields)."""

  def exits(code):
    raise SystemExit(code)

  def refuses(says, fields, code=2):
    cfg = command_line.load_experiment("experiments/quickstart.py")
    cfg.update_from_flattened_dict(fields)
    monkeypatch.setattr(run, "_CONFIG", types.SimpleNamespace(value=cfg))
    with pytest.raises(SystemExit) as end:
      run.main(["launch/run.py"])
    check_line(end.value.code, code, says, capsys.readouterr().err)

  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(os, "_exit", exits)
  flag = lambda value: types.SimpleNamespace(value=value)
  monkeypatch.setattr(run, "_PROCESSES", commands.Processes(flag(""), flag(0), flag(-1)))
  monkeypatch.setattr(run, "_ALLOW", flag([]))
  monkeypatch.setattr(run, "_STEP", flag(None))
  monkeypatch.setattr(command_line, "experiment", lambda: "quickstart")
  monkeypatch.setattr(command_line, "overrides", lambda: {"data.source": 1, "data.path": 1})
  before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
  yield refuses
  for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
    signal.signal(number, handler)
  signal.set_wakeup_fd(-1)


QUICK = "--config=experiments/quickstart.py"


@pytest.mark.parametrize(
  "says, arguments",
  [
    ("promts", [QUICK, "--config.batch.promts=3"]),
    ("batch.prompts", [QUICK, "--config.batch.prompts=many"]),
    ("no_such.py", ["--config=experiments/no_such.py"]),
    ("stray", [QUICK, "stray"]),
  ],
)
def test_mistakes_in_flags(says, arguments):
  refused(2, says, *arguments)


def model(tmp_path):
  """A directory with a real tiny model and a tokenizer that fits it."""
  from fipo_jax.data.tokenizer import characters

  folder = tmp_path / "model"
  folder.mkdir()
  shutil.copy(GOLDEN / "model.safetensors", folder)
  characters("0123456789 +-=\n:AnswerChckoy").save(folder)
  shutil.copy(GOLDEN / "config.json", folder)
  return folder


def on(folder, tmp_path, **more):
  fields = {"workdir": f"{tmp_path}/run", "model.path": str(folder), "model.base_experiment": ""}
  return fields | {name.replace("__", "."): value for name, value in more.items()}


def test_missing_model(tmp_path):
  flags = [f"--config.{name}={value}" for name, value in on(tmp_path / "nowhere", tmp_path).items()]
  refused(2, "config.json", QUICK, *flags)


def test_truncated_safetensors(tmp_path, refuses):
  folder = model(tmp_path)
  data = (folder / "model.safetensors").read_bytes()
  (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
  refuses("model.safetensors", on(folder, tmp_path))


def test_missing_safetensors(tmp_path, refuses):
  folder = model(tmp_path)
  (folder / "model.safetensors").unlink()
  refuses("safetensors", on(folder, tmp_path))


@pytest.mark.parametrize(("field", "change", "says"), [
  ("intermediate_size", lambda n: n + 8, "mlp"),  # shapes that do not match: tensor and shapes are named
  ("num_hidden_layers", lambda n: n + 1, "model.layers."),  # a missing tensor is named
  ("vocab_size", lambda n: 16, "vocab"),  # the tokenizer has more
])  # fmt: skip
def test_weights_that_do_not_fit_their_config(tmp_path, refuses, field, change, says):
  folder = model(tmp_path)
  facts = json.loads((folder / "config.json").read_text())
  facts[field] = change(facts[field])
  (folder / "config.json").write_text(json.dumps(facts))
  refuses(says, on(folder, tmp_path))


@pytest.mark.parametrize(("text", "says"), [
  ('{"prompt": "1 + 1 =", "answer": "2"}\n{"prompt": "1 + \n', "line 2"),
  ("", "prompts.jsonl"),
], ids=["broken line", "empty"])  # fmt: skip
def test_prompt_files(tmp_path, refuses, text, says):
  data = tmp_path / "prompts.jsonl"
  data.write_text(text)
  refuses(says, on(model(tmp_path), tmp_path, data__source="jsonl", data__path=str(data)))


def test_prompt_over_the_limit_is_refused_when_asked(tmp_path, refuses):
  limit = {"data__max_prompt_tokens": 9, "data__on_long_prompt": "error"}
  refuses("max_prompt_tokens", on(model(tmp_path), tmp_path, **limit))


def test_unwritable_workdir(tmp_path, refuses):
  (tmp_path / "file").write_text("in the way")
  refuses("workdir", {"workdir": f"{tmp_path}/file/run"})


def test_a_board_that_is_not_installed(tmp_path, refuses, monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else find(name, *more))
  refuses("log.wandb='p': wandb is not installed", {"workdir": str(tmp_path / "run"), "log.wandb": "p"})
  assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_names_the_workdir(tmp_path, refuses):
  folder = tmp_path / "run"
  folder.mkdir()
  (folder / f".config.json-{os.getpid()}").symlink_to("/dev/full")  # what is to replace it
  refuses("No space left", on(model(tmp_path), tmp_path) | {"workdir": str(folder)}, code=1)


def test_a_run_that_was_told_to_stop_has_a_code_of_its_own(monkeypatch, capsys):
  """75: schedulers start such a job again."""

  def stopped(cfg):
    raise processes.Stopped("saved after step 3 of 9")

  monkeypatch.setattr(run, "_CONFIG", types.SimpleNamespace(value=None))
  monkeypatch.setattr(run, "run", stopped)
  with pytest.raises(SystemExit) as end:
    run.main(["launch/run.py"])
  assert end.value.code == 75 and capsys.readouterr().out == "saved after step 3 of 9\n"


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_end_does_not_depend_on_the_disk_of_its_log():
  with open("/dev/full", "w") as full:
    done = subprocess.run(
      [sys.executable, "launch/run.py", "--config=experiments/quickstart.py", "--config.batch.promts=4"], cwd=ROOT,
      stderr=full, stdout=full, timeout=600, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
  assert done.returncode == processes.EXIT_MISTAKE
