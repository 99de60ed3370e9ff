"""Nothing is lost: kill -9 at any moment, SIGTERM, an engine that fails. What is resumed ends like what was not."""

import json
import random
import signal
import threading
import time

import numpy as np
import pytest

from fipo_jax import collect, dashboards, loop, processes
from fipo_jax.rollout import stored
from fipo_jax.rollout.http import EngineError
from fipo_jax.rollout.native import NativeEngine
from fipo_jax.rollout.serving import Call
from fipo_jax.train import checkpoint
from tests.dashboards_test import curves
from tests.loop_test import lines, model, settings, small, without_time  # noqa: F401
from tests.processes_test import ends, launch, steps_logged, until

# A response that goes on is prefilled with what it has, which moves the last bits of what the sampler thinks of it.
OF_THE_SAMPLER = ("sampler_",)
EVERY_STEP = {"checkpoint.every": 1, "checkpoint.keep": 2, "eval.every": 3, "checkpoint.keep_best": 1}


def same_run(workdir, other, *, but=()):
  """Metrics, samples and exported weights, bit for bit; but those whose names begin so."""

  def records(folder):
    for record in (*without_time(lines(folder)), *lines(folder, "samples.jsonl")):
      yield {k: v for k, v in record.items() if not k.startswith(but)}

  for a, b in zip(records(workdir), records(other), strict=True):
    assert a == b, {k: (a.get(k), b.get(k)) for k in a.keys() | b.keys() if a.get(k) != b.get(k)}
  weights = [(w / "export/model.safetensors").read_bytes() for w in (workdir, other)]
  assert weights[0] == weights[1]


@pytest.fixture(scope="session")
def uninterrupted(model, tmp_path_factory):  # noqa: F811
  """The workdir of a run of nine steps, and the seconds that a step took."""
  workdir = tmp_path_factory.mktemp("nine") / "run"
  loop.train(small(model, workdir, steps=9, **EVERY_STEP | {"checkpoint.every": 9}))
  return workdir, float(np.median([r["seconds/step"] for r in lines(workdir)[2:]]))


def check_folder(workdir):
  """Every step that is there can be read, and there are not more than should be, whenever the kill came."""
  folder = checkpoint.folder_of(workdir)
  steps = checkpoint.steps_in(folder)
  left = [path.name for path in folder.iterdir()] if folder.exists() else []
  # The newest two, the best, the one that is being replaced; of torn saves and of deletions at most one.
  assert len(steps) <= 4 and len(left) <= 7, left
  manager = checkpoint.ocp.CheckpointManager(folder, item_names=("state", "host")) if steps else None
  for step in steps:
    args = checkpoint.ocp.args
    got = manager.restore(step, args=args.Composite(state=args.StandardRestore(), host=args.JsonRestore()))
    assert got["host"]["data"]["drawn"] > 0 and got["state"] is not None


def check_boards(workdir):
  """What TensorBoard shows is what metrics.jsonl has: nothing is left of steps that were made again, and none lacks."""
  shown = curves(workdir / "tensorboard")
  for name in ("loss", "entropy", "seconds/step", "reward"):
    kept = [(r["step"], np.float32(r[name])) for r in lines(workdir) if name in r]
    assert shown[dashboards.tag(name)] == kept, name


def check_goodput(workdir, killed):
  """The time of all starts, most of which ended without a word."""
  starts, result = (json.loads((workdir / f"{name}.json").read_text()) for name in ("starts", "result"))
  found, rows = result["goodput"], lines(workdir)
  assert 2 <= found["starts"] == len(starts) <= killed + 2  # some are killed before they have written one
  assert all(("ended" in start) != ("seen" in start) for start in starts) and "ended" in starts[-1]
  assert found["productive_s"] == pytest.approx(sum(r.get("seconds/step", 0) for r in rows), abs=0.1)
  parts = sum(found[f"{name}_s"] for name in ("productive", "lost", "starting", "waiting", "other"))
  assert parts == pytest.approx(found["wall_s"], abs=0.5)  # so nothing was counted twice
  assert found["wall_s"] <= time.time() - starts[0]["began"] and found["starting_s"] > 0
  rounded = 5e-5 + 0.05 * (1 + found["share"]) / found["wall_s"]  # to four places; its parts to tenths of a second
  assert found["share"] == pytest.approx(found["productive_s"] / found["wall_s"], abs=rounded)
  assert rows[-1]["goodput"] == pytest.approx(found["productive_s"] / (rows[-1]["time"] - starts[0]["began"]), abs=0.02)


def torn(workdir):
  folder = checkpoint.folder_of(workdir)
  return folder.exists() and any("orbax-checkpoint-tmp" in path.name for path in folder.iterdir())


def kill_again_and_again(model, workdir, uninterrupted, moments, seed):  # noqa: F811
  """Kills one run again and again, wherever it is: while it starts, in a step, in a save; then lets it end.

  Returns: how often it was killed before its end, and how often a save was torn.
  """
  values = settings(model, workdir, steps=9, **EVERY_STEP)
  draw, (other, seconds) = random.Random(seed), uninterrupted
  during_saves = killed = 0
  for how in moments:
    lines_before, more = steps_logged(workdir), draw.randint(1, 3)
    job = launch(values, devices=8)  # as in this process: compiled programs are shared
    if how == "start":
      time.sleep(draw.uniform(0, 8))
    elif how == "step":
      enough = min(lines_before + more, 9)
      until(lambda: steps_logged(workdir) >= enough or job.poll() is not None, [], timeout=600)  # noqa: B023
      time.sleep(draw.uniform(0, 1.5 * seconds))
    elif how == "save":
      until(lambda: torn(workdir) or job.poll() is not None, [], timeout=600)  # noqa: B023
    if job.poll() is not None:  # it was too fast and is at its end
      break
    if how == "sigterm":
      ask_to_stop(job, workdir, lines_before + more)
    else:
      job.kill()
      job.communicate()
    during_saves += torn(workdir)
    killed += 1
    check_folder(workdir)
  ends([launch(values, devices=8)], code=0)
  same_run(workdir, other)
  check_boards(workdir)
  check_goodput(workdir, killed)
  assert len(checkpoint.steps_in(checkpoint.folder_of(workdir))) <= 3
  return killed, during_saves


def ask_to_stop(job, workdir, steps):
  """SIGTERM after so many steps: what there is is saved, and exit code 75 says that there is more."""
  until(lambda: steps_logged(workdir) >= steps, [job])
  job.send_signal(signal.SIGTERM)
  ((out, err),) = ends([job], code=75)
  assert "SIGTERM: sampling stops at its next look, an update is finished; then the run is saved" in err
  newest = max(checkpoint.steps_in(checkpoint.folder_of(workdir)))
  assert f"stopped as asked, saved after step {newest} of 9" in out and "; the same command goes on" in out
  owed = "its evaluation is made when it goes on" in out
  assert [r["step"] for r in lines(workdir)][-1] == newest - owed < 9


def test_killed_in_a_step_and_in_a_save_and_asked_to_stop(model, uninterrupted, tmp_path):  # noqa: F811
  killed, _ = kill_again_and_again(model, tmp_path / "run", uninterrupted, ["step", "save", "sigterm"], seed=1)
  assert killed == 3


@pytest.mark.slow
def test_killed_twenty_times(model, uninterrupted, tmp_path):  # noqa: F811
  draw = random.Random(0)
  moments = [draw.choice(["start", "step", "save", "save"]) for _ in range(20)]
  killed = saves = number = 0
  while killed < 20:
    number += 1
    (tmp_path / str(number)).mkdir()
    more, torn_saves = kill_again_and_again(
      model, tmp_path / str(number) / "run", uninterrupted, moments[killed:], seed=number
    )
    killed, saves = killed + more, saves + torn_saves
  assert saves >= 3


STOPS = {"steps": 2, "eval.every": 2, "checkpoint.every": 2, "checkpoint.keep_best": 1,
         "eval.samples_per_prompt": 2}  # fmt: skip


@pytest.mark.parametrize("unfinished", ["finish", pytest.param("continue", marks=pytest.mark.slow)])
def test_told_to_stop_at_any_look(model, tmp_path, monkeypatch, capsys, unfinished):  # noqa: F811
  """In sampling and in the evaluation after a step: nothing is sampled twice, and the run ends as if never stopped.

  Where sampling ends when there is enough, when that is depends on what the looks saw: no number is lost, but others
  are the first to be enough.
  """
  sampled, serve = [], Call.serve

  def counted(self, progress, watch):
    serve(self, progress, watch)
    sampled.append(self.usage.tokens)

  monkeypatch.setattr(Call, "serve", counted)
  more = STOPS | {"rollout.unfinished": unfinished}
  (tmp_path / "a").mkdir()
  (tmp_path / "b").mkdir()
  loop.train(small(model, tmp_path / "a/run", **more))
  straight, sampled[:] = sum(sampled), []
  told, at = threading.Event(), []
  monkeypatch.setattr(processes, "_told_to_stop", told)

  def note(module, name):
    inner = getattr(module, name)

    def noted(run, *args):
      at[:] = [name, run.step, 0]
      return inner(run, *args)

    monkeypatch.setattr(module, name, noted)

  def asked(self):
    at[2] += 1
    if at == place[0]:
      told.set()
    return told.is_set()

  note(collect, "sample")
  note(loop, "evaluate")
  monkeypatch.setattr(processes.StopPoll, "__call__", asked)
  said, place = [], [["sample", 0, 2], ["sample", 0, 1], ["sample", 1, 2], ["evaluate", 2, 1], []]
  while place:
    told.clear()
    try:
      loop.train(small(model, tmp_path / "b/run", **more))
    except processes.Stopped as stopped:
      said.append(str(stopped))
    place.pop(0)
  assert len(said) == 4 and all("tokens of the next one" in line for line in said[:3])
  assert capsys.readouterr().out.count("tokens were sampled before: only the rest is sampled") == 3
  assert "before the first step" in said[0] and "after step 1 of 2" in said[2] and "; its evaluation is made" in said[3]
  if unfinished == "finish":
    same_run(tmp_path / "b/run", tmp_path / "a/run", but=OF_THE_SAMPLER)
    evaluated = 8 * 2 * 12  # tokens of an evaluation at most: one is cut short, and made again
    assert straight <= sum(sampled) <= straight + evaluated


@pytest.mark.parametrize("every", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_a_failing_engine_had_sampled_waits_in_the_run(model, tmp_path, monkeypatch, every):  # noqa: F811
  """It fails in the second step, with one group complete and one begun, and is mended: nothing was sampled twice."""

  more = {"checkpoint.every": every, "steps": 2, "dynamic_sampling.enabled": False}
  (tmp_path / "a").mkdir()
  (tmp_path / "b").mkdir()
  loop.train(small(model, tmp_path / "a/run", **more))
  generate, calls = NativeEngine.generate, []

  def fails(self, prompts, *args, **kwargs):
    groups = generate(self, prompts, *args, **kwargs | {"watch": None})
    calls.append(len(prompts))
    if len(calls) != 2:
      return groups
    begun = groups[1]
    for i, r in enumerate(begun):
      cut = {name: getattr(r, name)[:3] for name in ("tokens", "logp", "raw_logp")}
      begun[i] = type(r)(**vars(r) | cut | {"stop_reason": "unfinished"})
    raise EngineError("the servers are gone", groups)

  monkeypatch.setattr(NativeEngine, "generate", fails)
  with pytest.raises(EngineError, match="the servers are gone"):
    loop.train(small(model, tmp_path / "b/run", **more))
  assert calls == [4, 4]
  loop.train(small(model, tmp_path / "b/run", **more))
  assert calls == [4, 4, 0]  # only the rest of what was begun
  same_run(tmp_path / "b/run", tmp_path / "a/run", but=OF_THE_SAMPLER)
  assert stored.rescued(tmp_path / "b/run", [1, 0])
