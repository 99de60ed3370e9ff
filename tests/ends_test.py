"""How programs end (fipo_jax/commands.py): one line, one code, and nobody waits for a process that has ended."""

import errno
import json
import os
import pathlib
import subprocess
import sys

import pytest

from fipo_jax import command_line, commands, processes

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments/results/evaluation"


def ended(capsys, run, error):
  """(exit code, stderr) of a program that raises this."""

  def call():
    raise error

  with pytest.raises(SystemExit) as end:
    run(call)
  return end.value.code, capsys.readouterr().err


@pytest.fixture
def leaves(monkeypatch):
  """Ends at once are exceptions here."""

  def exits(code):
    raise SystemExit(code)

  monkeypatch.setattr(os, "_exit", exits)
  monkeypatch.delenv("FIPO_TRACEBACK", raising=False)


@pytest.mark.parametrize("run", [commands.alone, commands.together])
@pytest.mark.parametrize(("error", "code"), [
  (ValueError("steps=0:\n  must be greater than 0."), processes.EXIT_MISTAKE),
  (FileNotFoundError(errno.ENOENT, "no such file", "x"), processes.EXIT_MISTAKE),
  (OSError(errno.ENOSPC, "No space left on device"), processes.EXIT_ERROR),
  (OSError(errno.EDQUOT, "quota"), processes.EXIT_ERROR),
  (processes.Missing("nothing was heard of process 1"), processes.EXIT_LOST),
])  # fmt: skip
def test_what_a_user_can_mend_is_one_line(run, error, code, capsys, leaves):
  got, said = ended(capsys, run, error)
  assert got == code and said == f"error: {' '.join(str(error).split())}\n"


def test_an_error_after_work_has_begun_is_no_mistake(capsys, monkeypatch, leaves):
  monkeypatch.setattr(processes, "begun", lambda: True)
  assert ended(capsys, commands.alone, ValueError("late"))[0] == processes.EXIT_ERROR


def test_a_fault_of_ours_keeps_its_traceback_and_ends_the_others(capsys, monkeypatch, leaves):
  with pytest.raises(KeyError):
    ended(capsys, commands.together, KeyError("x"))  # alone: Python's own end
  told = []
  monkeypatch.setattr(processes, "count", lambda: 2)
  monkeypatch.setattr(processes, "await_reason", lambda: told.append("waited"))
  monkeypatch.setattr(processes, "leave", lambda message, code: told.append((message, code)))
  code, said = ended(capsys, commands.together, KeyError("x"))
  assert code == processes.EXIT_ERROR and "Traceback" in said and said.endswith("error: KeyError: 'x'\n")
  assert told == ["waited", ("KeyError: 'x'", processes.EXIT_ERROR)]


def test_a_step_is_a_number_or_the_best():
  assert [commands.step_of(x) for x in (None, "best", "0", "120")] == [None, "best", 0, 120]
  for wrong in ("-1", "1.5", "last", ""):
    with pytest.raises(command_line.Mistake, match="--step="):
      commands.step_of(wrong)


PROGRAMS = sorted(p.stem for p in (ROOT / "launch").glob("*.py") if p.stem != "interpreter")


@pytest.mark.parametrize("program", [p if p == "verify" else pytest.param(p, marks=pytest.mark.slow) for p in PROGRAMS])
def test_help_is_no_error(program):
  done = subprocess.run(
    [sys.executable, f"launch/{program}.py", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=600,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
  )  # fmt: skip
  assert (done.returncode, done.stderr) == (0, "")
  assert f"{program}.py" in done.stdout and len(done.stdout.splitlines()) > 5


@pytest.mark.parametrize("program", [
  "plan", pytest.param("benchmark", marks=pytest.mark.slow), pytest.param("compile", marks=pytest.mark.slow),
])  # fmt: skip
@pytest.mark.parametrize(("argument", "says"), [
  ("--config.batch.promts=3", "--config.batch.promts: no such field; batch.prompts?"),
  ("--config=experiments/none.py", "--config=experiments/none.py: no such file; there are "),
])  # fmt: skip
def test_a_config_that_is_not_needed_is_read_as_well(program, argument, says):
  """These programs have a use without one, and once ended in a traceback for a misspelt field."""
  more = {"benchmark": "--what=train"}.get(program, "--topology=v5p-128")
  done = subprocess.run(
    [sys.executable, f"launch/{program}.py", "--config=experiments/qwen2_5_cpu.py", more, argument], cwd=ROOT,
    capture_output=True, text=True, timeout=600, env={**os.environ, "JAX_PLATFORMS": "cpu"},
  )  # fmt: skip
  assert done.returncode == 2 and done.stderr.startswith(f"error: {says}") and done.stderr.count("\n") == 1, done.stderr


def evaluate(*arguments):
  return subprocess.run(
    [sys.executable, "launch/evaluate.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
  )  # fmt: skip


def test_a_comparison_is_printed_and_written(tmp_path):
  two = [str(RESULTS / f"quickstart_{name}.json") for name in ("base", "fipo")]
  done = evaluate("--compare", *two, f"--out={tmp_path / 'x.json'}")
  assert (done.returncode, done.stderr) == (0, "") and "accuracy" in done.stdout
  assert json.loads((tmp_path / "x.json").read_text())["sets"]


def test_a_comparison_of_one_is_a_mistake():
  done = evaluate("--compare", str(RESULTS / "quickstart_base.json"))
  assert done.returncode == 2
  assert done.stderr == "error: --compare: 1 files named, expected two: --compare A.json B.json.\n"
