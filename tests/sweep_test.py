"""launch/sweep.py: what it refuses, what it prints, and a sweep of real runs that goes on where it stopped."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from fipo_jax.data import SOURCES
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


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch):
  """Sweeps that run are processes of their own here; what a fault would let this one start takes minutes."""
  monkeypatch.setattr(runs, "execute", lambda *a, **k: pytest.fail("something was run"))


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
  (tmp_path / "prompts.jsonl").touch()
  cfg = plan.parsed([f"--config={plan.read_sweep(str(path), {}).experiment}"])
  files = ["data.path"] if SOURCES[cfg.data.source].is_file else []
  files += [f"eval.sets.{name}.path" for name, own in cfg.eval.sets.items() if "path" in own]
  found = plan.read_sweep(str(path), dict.fromkeys(files, str(tmp_path / "prompts.jsonl")))  # the user's to name
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
    ("BASELINE=['a']: expected one of", {"BASELINE": ["a"]}),
    ("SEEDS=([1],): [1] is no seed", {"SEEDS": ([1],)}),
    ("eval.every=0", {"COMMON": {"eval.every": 0}}),
  ],
)  # fmt: skip
def test_mistakes_in_a_sweep_file_are_one_line_before_anything_runs(says, rows, capsys, monkeypatch, tmp_path):
  monkeypatch.chdir(ROOT)
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


# A config with axes


def planned(*arguments):
  """The sweep and the jobs of flags."""
  found = sweep.read(*sweep.parser().parse_known_args(arguments))
  return found, plan.make_jobs(found)


TAU = "--axis=algorithm.half_life_tokens=8|32"


def test_axes_are_arms_named_by_their_values(monkeypatch):
  monkeypatch.chdir(ROOT)
  config = "--config=experiments/quickstart.py"
  clip = "--axis=config.algorithm.weight_clip=(0.8, 1.2)|()"
  found, jobs = planned(config, TAU, clip, "--seeds=3|5", "--config.steps=5")
  names = [f"half_life_tokens={tau},weight_clip={clip}" for tau in (8, 32) for clip in ("0.8_1.2", "empty")]
  assert list(found.arms) == names and found.baseline == names[0] and found.seeds == (3, 5)
  assert [(job.seed, job.arm) for job in jobs] == [(seed, arm) for seed in (3, 5) for arm in names]
  assert jobs[0].flags == [
    config, "--config.steps=5", "--config.algorithm.half_life_tokens=8", "--config.algorithm.weight_clip=(0.8, 1.2)",
    "--config.seed=3", f"--config.workdir=runs/sweeps/quickstart-half_life_tokens-weight_clip/{names[0]}/seed3",
  ]  # fmt: skip
  held = [(job.cfg.algorithm.half_life_tokens, job.cfg.algorithm.weight_clip) for job in jobs[4:]]
  assert held == [(8.0, (0.8, 1.2)), (8.0, ()), (32.0, (0.8, 1.2)), (32.0, ())]

  names = ["half_life_tokens=8,steps=5", "half_life_tokens=32,steps=6"]
  found, jobs = planned(config, TAU, "--axis=steps=5|6", "--zip", "--name=mine", f"--baseline={names[1]}")
  assert [job.arm for job in jobs] == names
  assert (found.name, found.seeds, found.baseline) == ("mine", (0,), names[1])


HYPERS = [path for path in sorted((ROOT / "experiments").glob("*.py")) if "def get_hyper(" in path.read_text()]


@pytest.mark.parametrize("path", HYPERS, ids=lambda p: p.stem)
def test_every_get_hyper_is_valid_in_every_arm(path, monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  found, jobs = planned(f"--config={path}")
  assert found.name == path.stem and len(jobs) == len(found.arms) > 1
  planned(f"--config={path}", TAU)  # says so once, and takes the axes
  assert capsys.readouterr().err == f"{path}: its get_hyper is left aside, --axis is given\n"


def with_hyper(path, body):
  path.write_text(f"from experiments import quickstart\nget_config = quickstart.get_config\n{body}\n")
  return f"--config={path}"


def test_get_hyper_reads_as_other_projects_write_it(monkeypatch, tmp_path):
  monkeypatch.chdir(ROOT)
  body = """
def get_hyper(hyper):
  print("many thoughts")
  fix = lambda **kw: hyper.product([hyper.fixed(f"config.{k}", v, length=1) for k, v in kw.items()])
  dapo = hyper.sweep("config.algorithm.name", ["dapo"])
  fipo = hyper.zipit([
    hyper.sweep("config.algorithm.half_life_tokens", (t for t in (8, 32.0))),
    hyper.sweep("algorithm.weight_clip", [(1.0, 1.2), ()]),
  ])
  return map(dict, hyper.product([hyper.chainit([dapo, fipo]), hyper.sweep("config.steps", hyper.discrete([4, 5])),
                                  fix(**{"log.samples": 2, "data.instruction": "{question}, please"})]))
"""
  found, jobs = planned(with_hyper(tmp_path / "mine.py", body))
  assert found.name == "mine" and len(jobs) == 6
  assert [job.cfg.algorithm.name for job in jobs] == ["dapo"] * 2 + ["fipo"] * 4
  assert [job.cfg.steps for job in jobs] == [4, 5] * 3
  assert jobs[-1].cfg.algorithm.weight_clip == () and jobs[-1].cfg.algorithm.half_life_tokens == 32
  assert {job.cfg.data.instruction for job in jobs} == {"{question}, please"}
  assert jobs[2].arm.startswith("half_life_tokens=8,weight_clip=1_1.2,steps=4,samples=2,instruction=question_please")


@pytest.mark.parametrize(
  "says, arguments",
  [
    ("give --sweep=FILE, or --config=FILE with --axis", []),
    ("nothing to compare; give --axis=", ["--config={quickstart}"]),
    ("--config='none.py': no such file", ["--config=none.py", TAU]),
    ("--sweep: not allowed with argument --config", ["--config={quickstart}", "--sweep=s.py"]),
    ("--emit: not allowed with argument --list", ["--config={quickstart}", TAU, "--list", "--emit=commands"]),
    ("invalid choice: 'lines'", ["--config={quickstart}", TAU, "--emit=lines"]),
    ("--axis: goes with --config=FILE", ["--sweep={file}", TAU]),
    ("--seeds: goes with --config=FILE", ["--sweep={file}", "--seeds=3"]),
    ("--zip pairs the values of several --axis", ["--config={hyper}", "--zip"]),
    ("--zip: lists of 2, 1 values", ["--config={quickstart}", TAU, "--axis=steps=3", "--zip"]),
    ("--axis: algorithm.half_life: no such field of the config; algorithm.half_life_tokens?",
     ["--config={quickstart}", "--axis=algorithm.half_life=8"]),
    ("--config.stepps: stepps: no such field of the config; steps?",
     ["--config={quickstart}", TAU, "--config.stepps=3"]),
    ("--axis: seed is set by the sweep; use --seeds", ["--config={quickstart}", "--axis=seed=1|2"]),
    ("--axis: workdir is set by the sweep", ["--config={quickstart}", "--axis=config.workdir=a|b"]),
    ("--config.seed: set by the sweep", ["--config={quickstart}", TAU, "--config.seed=3"]),
    ("--config.algorithm.half_life_tokens: arm 'half_life_tokens=8' has its own value; change --axis instead",
     ["--config={quickstart}", TAU, "--config.algorithm.half_life_tokens=3"]),
    ("--axis: steps=x: flag --config.steps=x", ["--config={quickstart}", "--axis=steps=3|x"]),
    ("--axis: steps=3 and steps=3 are the same config", ["--config={quickstart}", "--axis=steps=3|4|3"]),
    ("algorithm.half_life_tokens=8 and algorithm.half_life_tokens=8.0 are the same",
     ["--config={quickstart}", "--axis=algorithm.half_life_tokens=8|8.0"]),
    ("arm 'algorithm.name=fippo': algorithm.name='fippo': expected one of",
     ["--config={quickstart}", "--axis=algorithm.name=fipo|fippo"]),
    ("--baseline=half_life_tokens=31: no such arm; half_life_tokens=32?",
     ["--config={quickstart}", TAU, "--baseline=half_life_tokens=31"]),
    ("--name=a/b: names a folder", ["--config={quickstart}", TAU, "--name=a/b"]),
    ("--name=: names a folder", ["--config={quickstart}", TAU, "--name="]),
    ("--seeds=: expected how many", ["--config={quickstart}", TAU, "--seeds="]),
    ("--seeds=0: expected at least one", ["--config={quickstart}", TAU, "--seeds=0"]),
    ("--jobs: invalid int value: 'two'", ["--config={quickstart}", TAU, "--jobs=two"]),
    ("hyper.py: get_hyper: AttributeError: hyper.loguniform: arms must be countable", ["--config={hyper}"]),
  ],
)  # fmt: skip
def test_mistakes_in_axes_are_one_line_before_anything_runs(says, arguments, capsys, monkeypatch, tmp_path):
  monkeypatch.chdir(ROOT)
  with_hyper(tmp_path / "hyper.py", "def get_hyper(hyper):\n  return hyper.loguniform('config.steps', 1)")
  files = {
    "quickstart": "experiments/quickstart.py", "hyper": tmp_path / "hyper.py", "file": write(tmp_path / "s.py", **GOOD)
  }  # fmt: skip
  assert says in refused(capsys, *(argument.format(**files) for argument in arguments))


@pytest.mark.parametrize(
  "says, body",
  [
    ("seed is set by the sweep; use --seeds", "return hyper.sweep('config.seed', range(3))"),
    ("get_hyper: data.nam: no such field of the config; data.name?", "return hyper.sweep('config.data.nam', ['a'])"),
    ("get_hyper: expected at least one arm", "return []"),
    ("TypeError: its result: expected arms", "return [1]"),
    ("steps=3 and steps=3 are the same config", "return hyper.sweep('config.steps', [3, 3])"),
    ("TypeError: 'NoneType' object is not iterable", "pass"),
    ("ZeroDivisionError: division by zero", "1 / 0"),
    ("steps=many: flag --config.steps=many", "return hyper.sweep('config.steps', ['many'])"),
  ],
)
def test_mistakes_in_get_hyper(says, body, capsys, monkeypatch, tmp_path):
  monkeypatch.chdir(ROOT)
  found = refused(capsys, with_hyper(tmp_path / "mine.py", f"def get_hyper(hyper):\n  {body}"))
  assert says in found and "mine.py: get_hyper" in found


def test_a_config_that_cannot_be_loaded_is_one_line(capsys, monkeypatch, tmp_path):
  monkeypatch.chdir(ROOT)
  path = tmp_path / "mine.py"
  for text, says in (("import nothing_like_it", "No module named"), ("def get_config():\n  return 1 / 0", "division")):
    path.write_text(text)
    assert says in refused(capsys, f"--config={path}", TAU)
    assert says in refused(capsys, f"--sweep={write(tmp_path / 's.py', **GOOD | {'EXPERIMENT': str(path)})}")


def finish(job):
  """What a run that has ended leaves of what a sweep looks at."""
  job.workdir.mkdir(parents=True)
  (job.workdir / "config.json").write_text(job.cfg.to_json())
  figures = {"accuracy_before": 0.25, "accuracy_after": 0.5, "length_before": 8.0, "length_after": 9.0, "seconds": 3.0}
  (job.workdir / "result.json").write_text(json.dumps({"steps": job.cfg.steps} | figures))


def test_more_values_and_seeds_keep_what_is_finished(capsys, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  config = f"--config={ROOT}/experiments/quickstart.py"
  for job in planned(config, TAU, "--axis=algorithm.clip_high=0.28", "--seeds=2")[1]:
    finish(job)
  more = [config, "--axis=algorithm.half_life_tokens=4|8.0|32", "--axis=algorithm.clip_high=0.3|0.28", "--seeds=3"]
  assert sweep.main([*more, "--list"]) == 0
  said = [line.split(",")[:2] for line in capsys.readouterr().out.splitlines() if ": finished" in line]
  assert said == [[f"half_life_tokens={tau}", f"clip_high=0.28 seed {i}: finished"] for i in (0, 1) for tau in (8, 32)]
  assert sweep.main([*more, "--report_only", "--out=out"]) == 0
  report = json.loads((tmp_path / "out/quickstart-half_life_tokens-clip_high.json").read_text())
  assert len(report["runs"]) == 4 and len(report["missing"]) == 18 - 4


# Commands for a scheduler


def test_emit_prints_what_a_shell_reads_as_the_commands_and_runs_nothing(capsys, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  body = "print('from the config')\ndef get_hyper(hyper):\n  return hyper.sweep('data.instruction', TEXTS)"
  texts = ["{question} 'a'; $HOME `b`\\", '"*" & {question} | c']
  config = with_hyper(tmp_path / "mine file.py", f"TEXTS = {texts!r}\n{body}")
  arguments = [config, "--seeds=2", "--config.model.base_experiment=", f"--config.model.path={tmp_path}"]
  jobs = planned(*arguments)[1]
  capsys.readouterr()
  finish(jobs[1])
  before = sorted(tmp_path.rglob("*"))
  with monkeypatch.context() as patch:
    patch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("something was run"))
    assert sweep.main([*arguments, "--emit=commands"]) == 0
  out, err = capsys.readouterr()
  assert sorted(tmp_path.rglob("*")) == before
  assert "from the config" in err and "Run them from this folder" in err
  assert "mine file: 3 of 4 runs to do, 1 finished and left out." in err
  lines = out.splitlines()
  assert len(lines) == 3
  for line, job in zip(lines, [jobs[0], *jobs[2:]], strict=True):
    read = subprocess.run(["sh", "-c", f"set -- {line}\nprintf '%s\\0' \"$@\""], capture_output=True, text=True)
    assert read.stdout.split("\0")[:-1] == job.command and read.stderr == ""
  assert jobs[0].cfg.data.instruction == texts[0]


def test_emit_begins_with_the_base_model(capsys, monkeypatch, tmp_path):
  monkeypatch.chdir(ROOT)
  arguments = ["--config=experiments/quickstart.py", TAU, f"--config.model.path={tmp_path}/base/export"]
  assert sweep.main([*arguments, "--emit=commands"]) == 0
  out, err = capsys.readouterr()
  first, *rest = out.splitlines()
  assert first.endswith(f"--config=experiments/quickstart_base.py --config.workdir={tmp_path}/base") and len(rest) == 2
  assert "the first line makes a base model, to be there before the others start" in err


def test_emit_refuses_what_is_no_line(capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  arguments = ["--config=experiments/quickstart.py", TAU, "--config.data.instruction={question}\nGo."]
  assert "--config.data.instruction has a line break" in refused(capsys, *arguments, "--emit=commands")


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
  # With that arm mended: what is finished is left alone, only the rest is to run, here as a scheduler would do it.
  tiny(tmp_path, model, ARMS=arms | {"bad": {"data.options.max_terms": 3}})
  (tmp_path / "runs/sweeps/tiny/bad/seed0/config.json").unlink()
  before = (run / "result.json").stat().st_mtime_ns
  emitted = start(tmp_path, "--config.log.samples=2", "--emit=commands").communicate(timeout=600)[0]
  (line,) = emitted.splitlines()
  subprocess.run(["sh", "-c", line], cwd=tmp_path, env=environment(devices=8), check=True, timeout=600)
  process = start(tmp_path, "--jobs=2", "--config.log.samples=2")
  out, err = process.communicate(timeout=600)
  assert process.returncode == 0, out + err
  assert (run / "result.json").stat().st_mtime_ns == before
  assert [line.split(":")[0] for line in out.splitlines() if "was finished" in line] == ["a seed 0", "bad seed 0"]
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
