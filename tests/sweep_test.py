"""launch/sweep.py: what it refuses, the statistics, and a sweep of real runs that goes on where it stopped."""

import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from launch import sweep
from tests.loop_test import model, settings  # noqa: F401
from tests.processes_test import environment
from tests.tolerances import close

ROOT = pathlib.Path(__file__).resolve().parent.parent
SWEEPS = sorted((ROOT / "experiments/sweeps").glob("*.py"))
GOOD = {
  "EXPERIMENT": "experiments/quickstart.py", "SEEDS": (0, 1), "ARMS": {"a": {}, "b": {"algorithm.name": "dapo"}},
  "BASELINE": "a",
}  # fmt: skip


SUMS = {"terms": 5, "dtype": np.float64, "scale": 4}  # of at most so many numbers of that size


def write(path, **rows):
  path.write_text("".join(f"{name} = {value!r}\n" for name, value in rows.items()))
  return str(path)


def refused(capsys, *arguments):
  assert sweep.main(list(arguments)) == 1
  (line,) = capsys.readouterr().err.splitlines()
  return line


# Sweep files


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_every_sweep_file_is_valid_in_every_arm(path, monkeypatch, tmp_path):
  monkeypatch.chdir(ROOT)
  (tmp_path / "prompts").touch()
  found = sweep.read_sweep(str(path), {"data.path": str(tmp_path / "prompts")})  # the user's to name
  jobs = sweep.make_jobs(found)
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
  monkeypatch.setattr(sweep, "execute", lambda *a, **k: pytest.fail("something was run"))
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
  a, b = sweep.make_jobs(sweep.read_sweep(write(tmp_path / "s.py", **rows), {"steps": "7"}))
  for field, value in values.items():
    node = a.cfg
    for key in field.split("."):
      node = node[key]
    assert node == value and isinstance(node, type(value) if value != 4 else float), field
  assert b.cfg.algorithm.weight_clip == ()
  assert (b.cfg.steps, b.cfg.eval.prompts) == (7, 6)  # the command line wins over COMMON
  assert (a.cfg.seed, a.cfg.workdir) == (3, "runs/sweeps/s/a/seed3")


# Statistics


def test_interval_by_hand():
  """1, 2, 3, 4, 5: mean 3, standard deviation √2.5, t(4) = 2.776."""
  got = sweep.interval([1.0, 2.0, 3.0, 4.0, 5.0])
  half = 2.776 * math.sqrt(2.5 / 5)
  close(got, {"n": 5, "mean": 3.0, "low": 3 - half, "high": 3 + half}, **SUMS)
  assert sweep.interval([2.0]) == {"n": 1, "mean": 2.0, "low": None, "high": None}
  assert sweep.interval([])["mean"] is None


@pytest.mark.parametrize("df", range(1, 31))
def test_quantiles_leave_two_and_a_half_percent_above(df):
  """With x = √df · tan(θ) Student's density is cos(θ)^(df - 1) up to a factor, which Simpson's rule divides out."""

  def area(low, high):
    theta = np.linspace(low, high, 20_001)
    weights = np.r_[1, np.tile([4, 2], 9_999), 4, 1]
    return (np.cos(theta) ** (df - 1) * weights).sum() * (high - low) / 60_000

  def above(t):
    return area(math.atan(t / math.sqrt(df)), math.pi / 2) / area(-math.pi / 2, math.pi / 2)

  half_a_digit = 0.000501  # the table has three; and a little for what is itself a half
  assert above(sweep.T_975[df - 1] + half_a_digit) < 0.025 < above(sweep.T_975[df - 1] - half_a_digit)


def result(before, after, length):
  return {"accuracy_before": before, "accuracy_after": after, "length_after": length, "versions": {}}


RUNS = {
  "base": {0: result(0.3, 0.70, 30.0), 1: result(0.3, 0.60, 20.0), 2: result(0.2, 0.50, 10.0)},
  "better": {0: result(0.3, 0.72, 33.0), 1: result(0.3, 0.63, 20.0), 2: result(0.2, 0.54, 10.0)},
  "partial": {1: result(0.3, 0.5, 25.0), 3: result(0.3, 0.9, 25.0)},  # 3 is missing in the baseline
  "none": {},
}


def test_differences_are_paired_by_seed():
  got = sweep.summarize(RUNS, "base")
  # 0.02, 0.03, 0.04: mean 0.03, standard deviation 0.01, t(2) = 4.303; unpaired the interval would be 20 times as wide.
  accuracy, half = got["differences"]["better"]["accuracy after"], 4.303 * 0.01 / math.sqrt(3)
  close(accuracy, {"n": 3, "mean": 0.03, "low": 0.03 - half, "high": 0.03 + half}, **SUMS)
  close(got["differences"]["better"]["length after"]["low"], 1 - 4.303, **SUMS)  # 3, 0, 0: deviation √3
  one = got["differences"]["partial"]["accuracy after"]
  close(one.pop("mean"), -0.1, **SUMS)
  assert one == {"n": 1, "low": None, "high": None}
  assert got["differences"]["none"]["accuracy after"]["n"] == 0
  close(got["arms"]["base"]["accuracy gain"]["mean"], 1.0 / 3, **SUMS)
  assert list(got["differences"]) == ["better", "partial", "none"]


def test_the_text_says_which_intervals_exclude_zero_and_names_what_is_missing():
  found = sweep.Sweep("name", "file.py", (0, 1, 2, 3), {"steps": "3"}, {arm: {} for arm in RUNS}, "base")
  text = sweep.markdown(found, RUNS, sweep.summarize(RUNS, "base"), ["partial seed 0", "none seed 2"])
  assert "Missing: partial seed 0, none seed 2." in text
  assert "Intervals that exclude 0: accuracy after of better (+0.030 [+0.005, +0.055]).\n" in text
  assert "| better |  | 3 | 0.630 [0.406, 0.854] |" in text
  assert "| 1 | 0.300 -> 0.600, 20.0 | 0.300 -> 0.630, 20.0 | 0.300 -> 0.500, 25.0 | missing |" in text


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
      sweep.limit_cpus(slot, slots)
  assert given == {1: [], 2: [[2, 3], [4, 7, 9]], 5: [[2], [3], [4], [7], [9]], 6: []}


def test_a_base_model_is_made_once_and_before(monkeypatch, tmp_path):
  monkeypatch.chdir(ROOT)
  extra = {"model.path": str(tmp_path / "base/export")}
  jobs = sweep.make_jobs(sweep.read_sweep(write(tmp_path / "s.py", **GOOD), extra))
  (base,) = sweep.base_jobs(jobs)
  assert base.flags == ["--config=experiments/quickstart_base.py", f"--config.workdir={tmp_path}/base"]
  (tmp_path / "base/export").mkdir(parents=True)
  (tmp_path / "base/export/config.json").touch()
  assert sweep.base_jobs(jobs) == []
  other = json.loads(base.cfg.to_json())
  other["optimizer"]["b1"] = 0.5
  (tmp_path / "base/config.json").write_text(json.dumps(other))
  with pytest.raises(ValueError, match="holds a run of another config: optimizer.b1: 0.5 -> 0.9"):
    sweep.base_jobs(jobs)
