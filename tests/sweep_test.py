"""launch/sweep.py: what it refuses, what it prints, and a sweep of real runs that goes on where it stopped."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from fipo_jax.sweeps import plan, runs
from launch import sweep
from tests.loop_test import model, settings  # noqa: F401
from tests.processes_test import environment

ROOT = pathlib.Path(__file__).resolve().parent.parent
SWEEPS = sorted((ROOT / "experiments/sweeps").glob("*.py"))
GOOD = {
  "EXPERIMENT": "experiments/quickstart.py", "SEEDS": (0, 1), "ARMS": {"a": {}, "b": {"algorithm.name": "dapo"}},
  "BASELINE": "a",
}  # fmt: skip


def write(path, **rows):
  path.write_text("".join(f"{name} = {value!r}\n" for name, value in rows.items()))
  return str(path)


def refused(capsys, *arguments):
  assert sweep.main(list(arguments)) == 2
  out, err = capsys.readouterr()
  (line,) = err.splitlines()
  assert out == ""
  return line


# Sweep files


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_every_sweep_file_is_valid_in_every_arm(path, monkeypatch, tmp_path):
  monkeypatch.chdir(ROOT)
  (tmp_path / "prompts").touch()
  found = plan.read_sweep(str(path), {"data.path": str(tmp_path / "prompts")})  # the user's to name
  jobs = plan.make_jobs(found)
  assert [(job.seed, job.arm) for job in jobs] == [(seed, arm) for seed in found.seeds for arm in found.arms]
  configs = {json.dumps(json.loads(job.cfg.to_json()) | {"seed": 0, "workdir": ""}) for job in jobs}
  assert len(configs) == len(found.arms)


def test_there_are_sweeps():
  assert len(SWEEPS) >= 6


@pytest.mark.parametrize(
  "says, rows",
  [
    ("SEEDS=(): expected at least one seed", {"SEEDS": ()}),
    ("SEEDS=(1, 1)", {"SEEDS": (1, 1)}),
    ("-1 is no seed", {"SEEDS": (0, -1)}),
    ("ARMS={}: expected at least one arm", {"ARMS": {}}),
    ("BASELINE='c': expected one of the arms 'a', 'b'", {"BASELINE": "c"}),
    ("EXPERIMENT='experiments/none.py': no such file", {"EXPERIMENT": "experiments/none.py"}),
    ("COMON: not a row of a sweep file", {"COMON": {}}),
    ("algorithm.nam: no such field of the config; algorithm.name?", {"ARMS": {"a": {}, "b": {"algorithm.nam": 1}}}),
    ("arm 'a': batch.promts: no such field", {"COMMON": {"batch.promts": 3}}),
    ("arm 'b': algorithm.name='fippo': expected one of", {"ARMS": {"a": {}, "b": {"algorithm.name": "fippo"}}}),
    ("arm 'b': batch.prompts=33 is not divisible", {"ARMS": {"a": {}, "b": {"batch.prompts": 33}}}),
    ("batch.prompts", {"ARMS": {"a": {}, "b": {"batch.prompts": "many"}}}),
    ("b: seed is set by the sweep", {"ARMS": {"a": {}, "b": {"seed": 3}}}),
    ("'b/c' names a folder", {"ARMS": {"a": {}, "b/c": {}}}),
    ("eval.every=0", {"COMMON": {"eval.every": 0}}),
  ],
)  # fmt: skip
def test_mistakes_in_a_sweep_file_are_one_line_before_anything_runs(says, rows, capsys, monkeypatch, tmp_path):
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(runs, "execute", lambda *a, **k: pytest.fail("something was run"))
  assert says in refused(capsys, f"--sweep={write(tmp_path / 's.py', **GOOD | rows)}", f"--out={tmp_path}")


@pytest.mark.parametrize(
  "says, arguments",
  [
    ("stray", ["stray"]),
    ("--jobs=0", ["--jobs=0"]),
    ("--config.workdir: set by the sweep", ["--config.workdir=here"]),
    ("--config.algorithm.name: arm 'b' has its own value", ["--config.algorithm.name=grpo"]),
    ("no such field", ["--config.algorithm.nam=grpo"]),
  ],
)
def test_mistakes_in_flags(says, arguments, capsys, monkeypatch, tmp_path):
  monkeypatch.chdir(ROOT)
  assert says in refused(capsys, f"--sweep={write(tmp_path / 's.py', **GOOD)}", *arguments)


def test_missing_and_broken_files(capsys, tmp_path):
  assert "no such file" in refused(capsys, f"--sweep={tmp_path}/none.py")
  (tmp_path / "s.py").write_text("SEEDS = (0,\n")
  assert "SyntaxError" in refused(capsys, f"--sweep={tmp_path}/s.py")
  (tmp_path / "s.py").write_text("SEEDS = (0,)\n")
  assert "EXPERIMENT is missing" in refused(capsys, f"--sweep={tmp_path}/s.py")


def test_values_arrive_as_they_were_written(monkeypatch, tmp_path):
  """Through the flags' text and back: tuples, the empty one, strings with spaces, booleans, numbers."""
  monkeypatch.chdir(ROOT)
  values = {
    "algorithm.weight_clip": (0.8, 1.3), "data.instruction": "Say 'x', {question}\n(now)", "eval.path": "",
    "log.report": False, "dynamic_sampling.enabled": True, "optimizer.learning_rate": 3e-7, "batch.micro_rows": 5,
    "algorithm.safety_threshold": 4, "data.options.max_terms": 7,
  }  # fmt: skip
  arms = {"a": values, "b": {"algorithm.weight_clip": ()}}
  rows = GOOD | {"ARMS": arms, "SEEDS": (3,), "COMMON": {"steps": 5, "eval.prompts": 6}}
  a, b = plan.make_jobs(plan.read_sweep(write(tmp_path / "s.py", **rows), {"steps": "7"}))
  for field, value in values.items():
    node = a.cfg
    for key in field.split("."):
      node = node[key]
    assert node == value and isinstance(node, type(value) if value != 4 else float), field
  assert b.cfg.algorithm.weight_clip == ()
  assert (b.cfg.steps, b.cfg.eval.prompts) == (7, 6)  # the command line wins over COMMON
  assert (a.cfg.seed, a.cfg.workdir) == (3, "runs/sweeps/s/a/seed3")


# Running


def tiny(folder, model, *, common=None, **rows):  # noqa: F811
  """A sweep file of real, tiny runs, in a folder to start from."""
  fields = settings(model, folder / "run", **{"steps": 1, "eval.every": 1, "dynamic_sampling.enabled": False})
  del fields["workdir"]
  ours = {"EXPERIMENT": str(ROOT / "experiments/quickstart.py"), "COMMON": fields | (common or {}), "SEEDS": (0,)}
  return write(folder / "tiny.py", **GOOD | ours | rows)


def start(folder, *arguments):
  return subprocess.Popen(
    [sys.executable, str(ROOT / "launch/sweep.py"), f"--sweep={folder}/tiny.py", "--out=out", *arguments],
    cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(devices=8),
  )  # fmt: skip


@pytest.mark.parametrize("again", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_runs_every_arm_reports_the_one_that_fails_and_goes_on_where_it_stopped(model, tmp_path, again):  # noqa: F811
  arms = {"a": {}, "bad": {"data.options.max_terms": 1}}  # fewer than min_terms: found when the data is made
  tiny(tmp_path, model, ARMS=arms)
  process = start(tmp_path, "--jobs=2", "--config.log.samples=2")
  out, err = process.communicate(timeout=600)
  assert process.returncode == 1, err
  said = {line.split(":")[0]: line for line in out.splitlines()}
  assert "accuracy 0." in said["a seed 0"] and "finished" not in said["a seed 0"]
  assert "failed: error: " in said["bad seed 0"] and "max_terms" in said["bad seed 0"]
  run = tmp_path / "runs/sweeps/tiny/a/seed0"
  assert json.loads((run / "config.json").read_text())["log"]["samples"] == 2
  assert "step 1/1" in (run / "output.txt").read_text()
  report = json.loads((tmp_path / "out/tiny.json").read_text())
  (only,) = report["runs"]
  assert (only["arm"], only["seed"], report["missing"]) == ("a", 0, ["bad seed 0"])
  assert only["accuracy_after"] == json.loads((run / "result.json").read_text())["accuracy_after"]
  assert only["versions"]["jax"] and report["common"]["log.samples"] == "2"

  if not again:
    return
  # With that arm mended: what is finished is left alone, only the rest runs.
  tiny(tmp_path, model, ARMS=arms | {"bad": {"data.options.max_terms": 3}})
  (tmp_path / "runs/sweeps/tiny/bad/seed0/config.json").unlink()
  before = (run / "result.json").stat().st_mtime_ns
  process = start(tmp_path, "--jobs=2", "--config.log.samples=2")
  out, err = process.communicate(timeout=600)
  assert process.returncode == 0, out + err
  assert (run / "result.json").stat().st_mtime_ns == before
  assert [line.split(":")[0] for line in out.splitlines() if "was finished" in line] == ["a seed 0"]
  report = json.loads((tmp_path / "out/tiny.json").read_text())
  assert [(r["arm"], r["seed"]) for r in report["runs"]] == [("a", 0), ("bad", 0)]
  assert report["missing"] == [] and report["summary"]["differences"]["bad"]["accuracy after"]["n"] == 1


def test_a_stopped_sweep_stops_its_runs(model, tmp_path):  # noqa: F811
  tiny(tmp_path, model, common={"steps": 10_000})
  process, run = start(tmp_path), tmp_path / "runs/sweeps/tiny/a/seed0"
  deadline = time.monotonic() + 600
  while not (run / "config.json").exists():
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=600)
  assert process.returncode == 1 and "error: stopped" in err
  assert not (tmp_path / "runs/sweeps/tiny/b").exists()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_processes_share_the_cpus(monkeypatch):
  given = {}
  monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 4, 7, 9})
  for slots in (1, 2, 5, 6):
    given[slots] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cpus, slots=slots: given[slots].append(list(cpus)))
    for slot in range(slots):
      runs.limit_cpus(slot, slots)
  assert given == {1: [], 2: [[2, 3], [4, 7, 9]], 5: [[2], [3], [4], [7], [9]], 6: []}


def test_a_base_model_is_made_once_and_before(monkeypatch, tmp_path):
  monkeypatch.chdir(ROOT)
  extra = {"model.path": str(tmp_path / "base/export")}
  jobs = plan.make_jobs(plan.read_sweep(write(tmp_path / "s.py", **GOOD), extra))
  (base,) = plan.base_jobs(jobs)
  assert base.flags == ["--config=experiments/quickstart_base.py", f"--config.workdir={tmp_path}/base"]
  (tmp_path / "base/export").mkdir(parents=True)
  (tmp_path / "base/export/config.json").touch()
  assert plan.base_jobs(jobs) == []
  other = json.loads(base.cfg.to_json())
  other["optimizer"]["b1"] = 0.5
  (tmp_path / "base/config.json").write_text(json.dumps(other))
  with pytest.raises(ValueError, match="holds a run of another config: optimizer.b1: 0.5 -> 0.9"):
    plan.base_jobs(jobs)
