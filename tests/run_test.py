"""launch/run.py: every mistake is one line on stderr and an exit code that is not 0."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "qwen2" / "tied_mqa"


def launch(*arguments):
  return subprocess.run(
    [sys.executable, "launch/run.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
  )  # fmt: skip


def refused(code, says, *arguments):
  done = launch(*arguments)
  assert done.returncode == code, done.stderr
  errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
  assert len(errors) == 1 and says in errors[0], done.stderr
  assert "Traceback" not in done.stderr
  return errors[0]


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


def on(folder, tmp_path, *more):
  return [
    QUICK, f"--config.workdir={tmp_path}/run", f"--config.model.path={folder}", "--config.model.base_experiment=", *more
  ]  # fmt: skip


def test_missing_model(tmp_path):
  refused(1, "config.json", *on(tmp_path / "nowhere", tmp_path))


def test_truncated_safetensors(tmp_path):
  folder = model(tmp_path)
  data = (folder / "model.safetensors").read_bytes()
  (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
  refused(1, "model.safetensors", *on(folder, tmp_path))


def test_missing_safetensors(tmp_path):
  folder = model(tmp_path)
  (folder / "model.safetensors").unlink()
  refused(1, "safetensors", *on(folder, tmp_path))


def test_shape_mismatch_names_tensor_and_shapes(tmp_path):
  folder = model(tmp_path)
  facts = json.loads((folder / "config.json").read_text())
  facts["intermediate_size"] += 8
  (folder / "config.json").write_text(json.dumps(facts))
  refused(1, "mlp", *on(folder, tmp_path))


def test_missing_tensor_is_named(tmp_path):
  folder = model(tmp_path)
  facts = json.loads((folder / "config.json").read_text())
  facts["num_hidden_layers"] += 1
  (folder / "config.json").write_text(json.dumps(facts))
  refused(1, "model.layers.", *on(folder, tmp_path))


def test_tokenizer_beyond_the_vocabulary(tmp_path):
  folder = model(tmp_path)
  facts = json.loads((folder / "config.json").read_text())
  facts["vocab_size"] = 16
  (folder / "config.json").write_text(json.dumps(facts))
  refused(1, "vocab", *on(folder, tmp_path))


def test_broken_line_of_prompts_is_numbered(tmp_path):
  data = tmp_path / "prompts.jsonl"
  data.write_text('{"prompt": "1 + 1 =", "answer": "2"}\n{"prompt": "1 + \n')
  refused(
    1, "line 2", *on(model(tmp_path), tmp_path, "--config.data.source=jsonl", f"--config.data.path={data}")
  )


def test_empty_prompt_file(tmp_path):
  data = tmp_path / "prompts.jsonl"
  data.write_text("")
  refused(
    1, "prompts.jsonl", *on(model(tmp_path), tmp_path, "--config.data.source=jsonl", f"--config.data.path={data}")
  )


def test_prompt_over_the_limit_is_refused_when_asked(tmp_path):
  flags = ["--config.data.max_prompt_tokens=9", "--config.data.on_long_prompt=error"]
  refused(1, "max_prompt_tokens", *on(model(tmp_path), tmp_path, *flags))


def test_unwritable_workdir(tmp_path):
  (tmp_path / "file").write_text("in the way")
  refused(1, "workdir", QUICK, f"--config.workdir={tmp_path}/file/run")


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_names_the_workdir(tmp_path):
  folder = tmp_path / "run"
  folder.mkdir()
  (folder / "config.tmp").symlink_to("/dev/full")
  refused(1, "No space left", QUICK, f"--config.workdir={folder}")
