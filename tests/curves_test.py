"""The curves of sweeps: what is kept of a run, figures by hand, a page of finished runs, runs under way and files."""

import json

import pytest

from fipo_jax.sweeps import curves, plan
from launch import curves as launch_curves

SWEEP = """
EXPERIMENT = "experiments/quickstart.py"
SEEDS = (0, 1)
ARMS = {"dapo": {"algorithm.name": "dapo"}, "fipo": {}}
BASELINE = "dapo"
COMMON = {"steps": 40}
"""


def row(step, length, **more):
  """A line of metrics.jsonl, as a run writes it."""
  return {
    "step": step, "accuracy": 0.25 + step / 100, "reward": 0.1, "response_length": length, "tokens_generated": 1000.0,
    "response_length_p25": length / 2, "response_length_median": length, "response_length_p75": 2 * length,
    "advantage_length_weighted": 0.01, "entropy": 0.3, "policy_kl": 1e-4, "truncated": 0.0, "alarms": [], **more,
  }  # fmt: skip


def write_run(job, steps, slope, start=80.0):
  """A workdir as a run of so many steps leaves it; finished when these are all."""
  job.workdir.mkdir(parents=True)
  (job.workdir / "config.json").write_text(job.cfg.to_json())
  rows = [{"step": 0, "eval/accuracy": 0.25, "eval/response_tokens": start, "eval/truncated": 0.0}]
  rows += [row(step, start + slope * step) for step in range(1, steps + 1)]
  for step in range(10, steps + 1, 10):
    rows[step] |= {"eval/accuracy": 0.25 + step / 100, "eval/response_tokens": start, "eval/truncated": 0.0}
  rows[3]["alarms"] = ["length_runaway"]
  lines = [json.dumps(r) for r in rows]
  (job.workdir / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 4']))  # the last was cut off
  if steps == job.cfg.steps:
    (job.workdir / "result.json").write_text(json.dumps({"steps": steps, "accuracy_after": 0.65, "seconds": 12.345678}))


@pytest.fixture
def jobs(tmp_path, monkeypatch):
  """Jobs of a sweep of two arms and two seeds, whose workdirs lie in a temporary folder."""
  path = tmp_path / "small.py"
  path.write_text(SWEEP)
  found = plan.read_sweep(str(path), {})
  made = plan.make_jobs(found)
  for job in made:
    job.cfg.workdir = str(tmp_path / job.cfg.workdir)
  monkeypatch.setattr(plan, "make_jobs", lambda sweep: made)
  return found, {(job.arm, job.seed): job for job in made}, path


def page(found, made, out):
  """The text alone: drawing takes seconds."""
  sweeps = [(found, list(made.values()))]
  return curves.markdown(sweeps, curves.collect(sweeps, out), out.name)


def test_what_is_kept_of_a_run(jobs):
  _, made, _ = jobs
  job = made["fipo", 0]
  assert curves.record(job) is None
  write_run(job, 40, slope=4.0)
  run = curves.record(job)
  assert run["finished"] and run["step"] == list(range(1, 41)) and run["eval/step"] == [0, 10, 20, 30, 40]
  assert run["columns"]["response_length"][:2] == [84.0, 88.0]
  assert run["eval"]["eval/accuracy"] == [0.25, 0.35, 0.45, 0.55, 0.65]
  assert run["result"] == {"steps": 40, "accuracy_after": 0.65, "seconds": 12.346}
  assert "weight_mean" not in run["columns"]  # dapo has none, and nothing is made up
  assert json.loads(curves.dumped(run)) == run
  assert len(curves.dumped(run).splitlines()) < 60  # a line a list


def test_figures_by_hand(jobs):
  _, made, _ = jobs
  write_run(made["fipo", 0], 40, slope=4.0)
  run = curves.record(made["fipo", 0])
  assert curves.smoothed([1.0, 2.0, None, 6.0], 3) == [1.5, 1.5, 4.0, 6.0]
  assert curves.at_start(run, "response_length") == 92.0  # of 84, 88, 92, 96, 100
  assert curves.at_end(run, "response_length") == 202.0  # of 164, ..., 240
  assert curves.at_end(run, "eval/accuracy") == pytest.approx(0.6)  # of steps 30 and 40: 20 is not among the last 20
  assert curves.doubled(run) == 26  # 80 + 4 · 26 = 184
  assert curves.halved(run) is None
  falling = run["columns"]["response_length"][:30] + [60.0] * 10
  assert curves.halved(run | {"columns": {"response_length": falling}}) == 32  # 200 and four 60; most was 192
  assert curves.at_step(run, "response_length", 0.5) == 162.0  # of steps 11 to 30
  assert curves.FIGURES["tokens sampled, millions"][0](run) == pytest.approx(0.04)


def test_a_page_of_finished_runs_and_one_under_way(jobs, tmp_path):
  found, made, _ = jobs
  write_run(made["dapo", 0], 40, slope=1.0)
  write_run(made["fipo", 0], 40, slope=4.0)
  write_run(made["dapo", 1], 12, slope=1.0)
  curves.write_page([(found, list(made.values()))], tmp_path / "out")
  text = (tmp_path / "out.md").read_text()
  assert "2 of 4 runs finished. Under way: dapo seed 1 at step 12. Not begun: fipo seed 1.\n" in text
  # 80 + 30.5 for dapo, 80 + 122 for fipo: what is under way is in no mean.
  assert "| dapo | `algorithm.name=dapo` | 1 | 0.555 | 0.600 | 110 |" in text
  assert "| fipo | 1 | +0.000 | +92 | +0.000 |" in text
  assert "| responses become longer | 110 | +92: one seed |" in text
  assert "| fipo seed 0 | 0.250 -> 0.650 | 92 -> 202 | 26 | - | 0.000 | length_runaway at 3 |" in text
  assert "| dapo seed 1 (at step 12 of 40) | 0.250 -> 0.350 |" in text
  assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_a_statement_holds_where_the_interval_says_so(jobs, tmp_path):
  found, made, _ = jobs
  for (arm, seed), job in made.items():
    write_run(job, 40, slope={"dapo": 1.0, "fipo": 4.0}[arm] + 0.01 * seed * (arm == "fipo"))
  text = page(found, made, tmp_path / "out")
  assert "| responses become longer | 110 [110, 110] | +92 [+90, +94]: holds |" in text
  assert "| accuracy becomes higher | 0.555 [0.555, 0.555] | +0.000 [+0.000, +0.000]: not seen |" in text
  assert "Intervals that exclude 0: length at the end of fipo. 3 intervals, not corrected for their number." in text


def test_files_stand_for_runs_that_are_elsewhere(jobs, tmp_path):
  found, made, _ = jobs
  out, job = tmp_path / "out", made["fipo", 0]
  write_run(job, 40, slope=4.0)
  before = page(found, made, out)
  job.workdir.rename(tmp_path / "elsewhere")
  assert page(found, made, out) == before
  write_run(job, 12, slope=4.0)  # begun anew: what was finished is not lost
  assert page(found, made, out) == before
  job.cfg.steps = 50
  with pytest.raises(ValueError, match="fipo_seed0.json: of a run of 40 steps, the sweep asks for 50"):
    page(found, made, out)


def test_the_command(jobs, tmp_path, capsys):
  _, made, path = jobs
  with pytest.raises(SystemExit) as end:
    launch_curves.main([f"--sweep={path}", f"--out={tmp_path}/out"])
  assert end.value.code == 2
  assert capsys.readouterr().err.startswith("error: no run of small has made a step yet, and ")
  write_run(made["dapo", 0], 12, slope=1.0)
  launch_curves.main([f"--sweep={path}", f"--out={tmp_path}/out"])
  assert capsys.readouterr().out.split() == [f"{tmp_path}/out.md", f"{tmp_path}/out.png", f"{tmp_path}/out"]
  assert (tmp_path / "out/dapo_seed0.json").is_file()
