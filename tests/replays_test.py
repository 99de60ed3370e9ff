"""A step of a past run made again: equal bit for bit, under other fields, of an earlier attempt; nothing is written."""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fipo_jax import config, loop, saved, workdir
from fipo_jax.replays import compare, dump, fields, past, program
from fipo_jax.rewards.score import Job, Scorer
from fipo_jax.rollout.native import NativeEngine
from fipo_jax.train.checkpoint import folder_of, steps_in
from tests.loop_test import ROOT, SOME, VERIFIER, lines, model, small  # noqa: F401
from tests.tolerances import close

BRIEF = {"steps": 2, "checkpoint.every": 1, "checkpoint.keep": 1, "checkpoint.keep_every": 1, "log.samples": 2}
# One prompt in three is mixed, so groups wait in the checkpoint; one response in seven gets no verdict.
RAISES = "  if sum(map(ord, response)) % 7 == 0 and response != f'Answer: {answer}': raise ValueError('?')\n"
FAILING = SOME.replace("  return ", f"{RAISES}  return ")
LONG = BRIEF | {"verifier": FAILING, "steps": 5, "checkpoint.keep_every": 3, "eval.every": 4}
FILTERED = {"algorithm.weight_clip": (0.8, 0.9), "algorithm.clip_low": 0.0}


def again(run, step, out, **given):
  """What replay.json holds, and what was said."""
  cfg = saved.get_config(f"{run}/config.json")
  cfg.workdir, attempt = str(run), given.pop("attempt", 0)
  with contextlib.redirect_stdout(io.StringIO()) as said:
    program.replay(cfg, step, attempt=attempt, out=str(out), given=given)
  return json.loads((pathlib.Path(out) / dump.RECORD).read_text()), said.getvalue()


def tree(folder):
  """Every file and folder with its content and time."""
  found = {}
  for path in sorted(pathlib.Path(folder).rglob("*")):
    content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    found[str(path.relative_to(folder))] = (content, path.stat().st_mtime_ns)
  return found


@pytest.fixture(scope="session")
def replayed(model, tmp_path_factory):  # noqa: F811
  """A run of two steps, and its second made again, beside another process that has it, as it was and changed."""
  folder = tmp_path_factory.mktemp("brief")
  loop.train(small(model, folder / "run", **BRIEF))
  (folder_of(folder / "run") / "3.orbax-checkpoint-tmp-1").mkdir()  # a save that is being made
  with workdir.hold(folder / "run"):
    trees = [tree(folder / "run")]
    found, said = again(folder / "run", 2, folder / "out", **FILTERED)
    trees.append(tree(folder / "run"))
  return folder, found, said, trees


def test_a_step_is_made_again_bit_for_bit(replayed):
  folder, found, said, _ = replayed
  row = lines(folder / "run")[-1]
  assert found["equal"] and found["done"] and found["checkpoint"] == 1
  (compared,) = found["compared"]
  assert compared["number"] > 90 and not compared["only_then"] + compared["only_now"]
  assert f"step 2: all {compared['number']} metrics are equal to those recorded, bit for bit" in said
  for name in ("loss", "minibatch/grad_norm", "future_kl_p99", "total/tokens_generated", "alarms"):
    assert found["metrics"][name]["recorded"] == found["metrics"][name]["replayed"] == row[name]


def test_the_run_is_left_alone(replayed):
  """Not a file of it is made, changed, deleted or touched."""
  before, after = replayed[-1]
  assert len(before) > 40 and after == before


def test_tokens_are_those_of_samples_and_all_of_them(replayed):
  folder, found, _, _ = replayed
  records = lines(folder / "out", dump.TOKENS)
  samples = [r for r in lines(folder / "run", "samples.jsonl") if r["step"] == 2]
  assert len(records) == found["responses"] == 16 and len({(r["prompt_id"], r["sample"]) for r in records}) == 16
  assert len(samples) == 2 and all(sample in records for sample in samples)  # the same form, the same numbers
  assert {r["minibatch"] for r in records} == {1, 2}
  by_token = ("sampler_logp", "old_logp", "logp", "entropy", "future_kl", "weight", "weighted_advantage", "mask")
  for r in records:
    assert all(len(r[name]) == len(r["tokens"]) for name in by_token)
    close(r["weighted_advantage"], np.float32(r["advantage"]) * np.float32(r["weight"]))
    assert r["rejected"] == (not any(r["mask"])) and r["truncated"] == (r["stop_reason"] == "length")
  best = max(records, key=lambda r: max(map(abs, r["future_kl"])))
  assert (found["top"][0]["prompt_id"], found["top"][0]["sample"]) == (best["prompt_id"], best["sample"])
  assert abs(found["top"][0]["future_kl"]) == max(map(abs, best["future_kl"]))


def test_gradients_by_layer_are_those_of_the_update(replayed):
  folder, found, _, _ = replayed
  norms = lines(folder / "run")[-1]["minibatch/grad_norm"]
  for g, norm in zip(found["gradients"], norms, strict=True):
    close(g["norm"], norm, terms=62_000, scale=norm)
    assert len(g["layers"]) == 2 and len(g["kinds"]["attention/q"]) == 2
    outside = sum(np.square(v) for v in g["kinds"].values() if np.ndim(v) == 0)
    close(np.sqrt(outside + np.sum(np.square(g["layers"]))), g["norm"])


def test_what_the_step_would_have_been_stands_beside_it(replayed):
  """f of the second mini-batch is another, and so is its update; the first begins where it did."""
  folder, found, said, _ = replayed
  assert found["same_responses"] and found["changed"]["algorithm.weight_clip"] == [[1.0, 1.2], [0.8, 0.9]]
  was, other = (lines(folder / "out", name) for name in (dump.TOKENS, dump.CHANGED))
  assert [(r["prompt_id"], r["sample"], r["tokens"]) for r in was] == [
    (r["prompt_id"], r["sample"], r["tokens"]) for r in other
  ]
  assert all(a["logp"] == b["logp"] for a, b in zip(was, other, strict=True) if a["minibatch"] == 1)
  assert any(a["future_kl"] != b["future_kl"] for a, b in zip(was, other, strict=True) if a["minibatch"] == 2)
  assert all(0.8 <= w <= np.float32(0.9) for r in other for w in r["weight"])
  weight = found["metrics"]["weight_mean"]
  assert weight["replayed"] >= 1 > 0.9 >= weight["changed"] - 1e-6
  assert found["metrics"]["loss"]["changed"] != found["metrics"]["loss"]["replayed"]
  assert "accuracy" in found["metrics"] and "changed" not in found["metrics"]["accuracy"]
  assert "the same responses once more under algorithm.weight_clip=(0.8, 0.9)" in said and "changed\n" in said


# ---- cheap ones ----


def left(folder, *, rows=(), rollbacks=(), checkpoints=(), starts=(), earlier=None, **values):
  """A folder with what a run leaves, and its config."""
  c = config.default()
  c.workdir = str(folder)
  c.update_from_flattened_dict(values)
  write = lambda name, rows: (folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
  write("metrics.jsonl", rows)
  for number, those in (earlier or {}).items():
    write(f"metrics.rollback{number}.jsonl", those)
  (folder / "rollbacks.json").write_text(json.dumps([*rollbacks]))
  (folder / "starts.json").write_text(json.dumps([*starts]))
  (folder / "config.json").write_text(c.to_json())
  for step in checkpoints:
    (folder / "checkpoints" / str(step)).mkdir(parents=True)
  return c


def steps(*numbers):
  return [{"step": n, "seconds/step": 10.0, "seconds/evaluate": float(n), "seconds/checkpoint": 1.0} for n in numbers]


def test_the_attempts_of_a_run_that_was_rolled_back(tmp_path):
  """Of two: lines, checkpoints, random numbers and settings are those of whoever made the step."""
  c = left(
    tmp_path, rows=steps(*range(1, 31)), earlier={1: steps(*range(1, 20)), 2: steps(*range(1, 26))},
    rollbacks=[{"alarm": "collapse", "step": 19, "to": 12}, {"alarm": "collapse", "step": 25, "to": 18}],
    checkpoints=[6, 12, 15, 18, 21, 30],
    **{"alarms.rollback_overrides": {"optimizer": {"learning_rate": 1e-9}}},
  )  # fmt: skip
  first, second, third = (past.read(c, attempt) for attempt in (1, 2, 0))
  assert [p.checkpoints for p in (first, second, third)] == [[6, 12], [6, 12, 15, 18], [6, 12, 15, 18, 21, 30]]
  assert [max(p.rows) for p in (first, second, third)] == [19, 25, 30]
  assert (first.checkpoint_before(19), second.checkpoint_before(19), third.checkpoint_before(6)) == (12, 18, 0)
  assert [[p.rolled_back(s) for s in (12, 13, 18, 19)] for p in (first, second, third)] == [
    [0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 2],
  ]  # fmt: skip
  assert [p.config(13).optimizer.learning_rate for p in (first, second)] == [1e-6, 1e-9]
  assert third.config(12).optimizer.learning_rate == 1e-6
  assert first.seconds(13, 14) == 20 - 13 - 14 - 2
  with pytest.raises(ValueError, match="--attempt=4: no such attempt of .*; there is 1 to 3"):
    past.read(c, 4)
  program.check(first, 19)
  with pytest.raises(ValueError, match="attempt 1 of 3 has those of 1 to 19, and --attempt=2 has it"):
    program.check(first, 20)


def test_what_was_changed_later_is_undone(tmp_path):
  changed = ["optimizer.learning_rate: 1e-06 -> 5e-07", "algorithm.weight_clip: [0.8, 1.2] -> []", "mesh.data: 1 -> 2"]
  c = left(
    tmp_path, rows=steps(1, 2, 3, 4),
    starts=[{"step": 0, "changes": []}, {"step": 2, "changes": changed}, {"step": 3, "changes": ["steps: 4 -> 9"]}],
    **{"optimizer.learning_rate": 5e-7, "algorithm.weight_clip": (), "mesh.data": 2, "steps": 9},
  )  # fmt: skip
  p = past.read(c)
  of = lambda cfg: (cfg.optimizer.learning_rate, cfg.algorithm.weight_clip, cfg.mesh.data, cfg.steps)
  assert of(p.config(2)) == (1e-6, (0.8, 1.2), 2, 4) and of(p.config(3)) == (5e-7, (), 2, 4)
  assert of(p.config(4)) == (5e-7, (), 2, 9)
  assert p.resumed(1, 4) == [2, 3] and p.resumed(3, 3) == [] and p.start(3)["step"] == 2
  text = config.default()
  past.undo(text, "data.instruction: 'a -> {question}' -> 'b -> {question}'")
  assert text.data.instruction == "a -> {question}"
  with pytest.raises(ValueError, match="cannot be undone; name a later step"):
    past.undo(text, "reward.weights: contents 12 -> contents 34")


@pytest.mark.parametrize(
  ("field", "value", "said"),
  [
    ("seed", 3, "the state of the run is that of its own seed; a replay can change algorithm, optimizer"),
    ("data.max_prompt_tokens", 9, "that of its own data"),
    ("model.dtype", "bfloat16", "that of its own model"),
    ("steps", 9, "a replay makes one step and does not read it"),
    ("log.samples", 9, "does not read it"),
    ("optimizer.name", "muon", "the optimizer's state in the checkpoint is that of another"),
    ("algorithm.name", "ppo", "of a run of 'fipo' its parameters or responses are missing"),
  ],
)
def test_fields_that_cannot_be_changed(field, value, said):
  with pytest.raises(ValueError, match=said):
    fields.sort(config.default(), {field: value})


def test_fields_that_can():
  given = {"algorithm.name": "dapo", "batch.minibatch_prompts": 8, "rollout.temperature": 0.5, "reward.timeout_s": 1.0,
           "mesh.data": 2, "checkpoint.folder": "x", "optimizer.b1": 0.9, "batch.micro_rows": 1}  # fmt: skip
  found = fields.sort(config.default(), given)
  assert found.update == {"algorithm.name": "dapo", "batch.minibatch_prompts": 8}  # b1 is as it was
  assert found.responses == {"rollout.temperature": 0.5}
  assert [*found.where] == ["reward.timeout_s", "mesh.data", "checkpoint.folder", "batch.micro_rows"]


def test_what_differs_is_named_with_how_much():
  then = {"step": 7, "time": 1.0, "loss": 0.5, "minibatch/loss": [1, 2.0], "eval/accuracy": 1.0, "alarms": [], "old": 1}
  now = then | {"loss": 0.5 + 2**-30, "minibatch/loss": [1, 2.5], "alarms": ["collapse"], "new": 2, "seconds/step": 9.0}
  del now["old"], now["eval/accuracy"]
  found = compare.compare(7, then, now)
  assert (found.number, found.only_then, found.only_now) == (3, ["old"], ["new"])
  assert [(d.name, d.absolute) for d in found.different] == [
    ("alarms", None), ("minibatch/loss", 0.5), ("loss", 2.0**-30)
  ]  # fmt: skip
  said = "\n".join(compare.said([found]))
  assert "step 7: 3 of 3 metrics differ" in said and "minibatch/loss by 0.5 (0.2 of it)" in said and ": old" in said
  same = compare.compare(7, then, dict(then))
  assert compare.said([same]) == ["step 7: all 4 metrics are equal to those recorded, bit for bit"]


def test_refusals(tmp_path):
  servers = {"rollout.engine": "http", "rollout.urls": ("http://localhost:1",)}
  c = left(tmp_path, rows=steps(1), **servers)
  with pytest.raises(ValueError, match="rollout.engine='http': what servers have sampled is no function of the seed"):
    program.check(past.read(c), 1)
  c.rollout.engine = "native"
  with pytest.raises(ValueError, match="--step=2: no metrics of it in .*: it has those of 1 to 1"):
    program.check(past.read(c), 2)
  with pytest.raises(ValueError, match="--attempt=2: no such attempt of .*; there is 1 alone"):
    past.read(c, 2)
  (tmp_path / "out").mkdir()
  (tmp_path / "out/thesis.tex").write_text("")
  with pytest.raises(ValueError, match=r"--out=.*: holds other files \(thesis.tex, ...\)"):
    dump.claim(tmp_path / "out", {})
  dump.claim(tmp_path / "new", {})
  (tmp_path / "new" / dump.TOKENS).write_text("of an earlier replay")
  dump.claim(tmp_path / "new", {"step": 3})
  assert [p.name for p in (tmp_path / "new").iterdir()] == [dump.RECORD]


def test_verdicts_that_were_none_are_taken_from_the_record():
  """Nobody is asked for them: the others have their verdicts, also where there are no others."""
  scorer = Scorer(workers=1, timeout_s=5.0, verifier_file=None, on_error="stop", wrong_score=-1.0)
  scorer.known = {(5, 0): "timeout", (5, 1): "error"}
  job = lambda n: Job("math_dapo", "Answer: 4", "4", key=(5, n))
  with scorer:
    found = scorer.score([job(0), job(1)])
    assert [(s.flags, s.score, s.accuracy) for s in found] == [(("timeout",), -1.0, 0.0), (("error",), -1.0, 0.0)]
    assert [s.score for s in scorer.score([job(1), job(2)])] == [-1.0, 1.0]


# ---- the rest ----


@pytest.fixture(scope="session")
def made(model, tmp_path_factory):  # noqa: F811
  """The workdir of a run that had ended at step 4 and went on; it has kept the checkpoints of 3 and 5."""
  folder = tmp_path_factory.mktemp("long") / "run"
  loop.train(small(model, folder, **LONG | {"steps": 4}))
  loop.train(small(model, folder, **LONG))
  assert steps_in(folder_of(folder)) == [3, 5]
  return folder


@pytest.mark.slow
def test_over_a_restart_an_evaluation_groups_that_wait_and_missing_verdicts(made, tmp_path):
  """Verifiers that would find a verdict today are not asked where there was none."""
  row = lines(made)[-1]
  assert row["groups_reused"] > 0 and lines(made)[4]["eval/accuracy"] >= 0 and row["unverified"]
  verifier = made.parent / "verifier.py"
  broken = verifier.read_text()
  verifier.write_text(SOME)
  try:
    found, said = again(made, 5, tmp_path / "out")
  finally:
    verifier.write_text(broken)
  assert found["equal"] and found["checkpoint"] == 3 and "steps 4 to 5: all" in said
  assert "the run was started anew after step 4" in said and "its contents are others than then" in said


@pytest.mark.slow
def test_from_the_beginning(made, tmp_path):
  """No checkpoint is older than step 3; the evaluation before training is not made again."""
  found, said = again(made, 2, tmp_path)
  assert found["equal"] and found["checkpoint"] == 0 and "from the beginning" in said


@pytest.mark.slow
def test_other_responses(made, tmp_path):
  found, said = again(made, 4, tmp_path, **{"rollout.temperature": 0.5})
  assert found["equal"] and not found["same_responses"] and "what is compared is of different ones" in said
  assert found["metrics"]["entropy"]["changed"] < found["metrics"]["entropy"]["replayed"]
  assert "changed" in found["metrics"]["accuracy"]
  assert lines(tmp_path, dump.CHANGED) != lines(tmp_path, dump.TOKENS)


@pytest.mark.slow
def test_an_attempt_that_was_rolled_back_and_the_one_after(model, tmp_path):  # noqa: F811
  """The alarm's step as it was, under the first settings; and again under those of the rollback."""
  more = BRIEF | {
    "dynamic_sampling.enabled": False, "steps": 9, "alarms.action": "rollback", "alarms.hold_steps": 3,
    "alarms.acting": ("entropy_explosion",), "alarms.rollback_steps": 1, "alarms.max_rollbacks": 1,
    "checkpoint.keep": 4,
  }  # fmt: skip
  cfg = small(model, tmp_path / "run", **more)
  cfg.alarms.rollback_overrides = {"algorithm": {"weight_clip": (1.0, 1.0)}}
  with pytest.raises(ValueError, match="stopped after 1 rollbacks at step 3"):
    loop.train(cfg)
  first, said = again(tmp_path / "run", 3, tmp_path / "first", attempt=1)
  assert first["equal"] and "attempt 1 of 2, which the alarm entropy_explosion ended at step 3 (back to step 2)" in said
  assert "entropy_explosion" in first["metrics"]["alarms"]["replayed"]
  second, _ = again(tmp_path / "run", 3, tmp_path / "second")
  now, then = (found["metrics"]["weight_std"]["replayed"] for found in (second, first))
  assert second["equal"] and now == 0 < then
  shutil.rmtree(folder_of(tmp_path / "run") / "2")  # so that the border is gone over
  third, said = again(tmp_path / "run", 3, tmp_path / "third")
  assert third["equal"] and third["checkpoint"] == 1
  assert "from step 3 on, as the run did: algorithm.weight_clip: [1.0, 1.2] -> [1.0, 1.0]" in said


@pytest.mark.slow
def test_responses_that_were_begun(model, tmp_path, monkeypatch):  # noqa: F811
  """rollout.unfinished=continue: a checkpoint holds them, and they are gone on with."""
  generate = NativeEngine.generate

  def cut_off(self, prompts, *args, pending=(), **how):
    """Three tokens of the last group, where no group is gone on with."""
    groups = generate(self, prompts, *args, pending=pending, **how | {"watch": None})
    for i, r in enumerate(groups[-1] if not pending else []):
      few = {name: getattr(r, name)[:3] for name in ("tokens", "logp", "raw_logp")}
      groups[-1][i] = type(r)(**vars(r) | few | {"stop_reason": "unfinished"})
    return groups

  monkeypatch.setattr(NativeEngine, "generate", cut_off)
  loop.train(small(model, tmp_path / "run", **BRIEF, **{"rollout.unfinished": "continue"}))
  first, second = lines(tmp_path / "run")
  assert first["groups_unfinished"] == second["groups_continued"] == 1
  assert again(tmp_path / "run", 2, tmp_path / "out")[0]["equal"]


@pytest.mark.slow
def test_a_run_of_eight_devices_on_one(replayed, tmp_path):
  """By the program: another process, with one device. Rounding is another, and that is said."""
  folder = replayed[0]
  env = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
  command = [sys.executable, "launch/replay.py", f"--run={folder / 'run'}", "--step=2", f"--out={tmp_path}"]
  done = subprocess.run([*command], cwd=ROOT, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / dump.RECORD).read_text())
  assert not found["equal"] and "sums are taken in another order" in done.stdout
  (compared,) = found["compared"]
  assert found["metrics"]["tokens_generated"]["recorded"] == found["metrics"]["tokens_generated"]["replayed"]
  loss = found["metrics"]["grad_norm"]
  close(loss["replayed"], loss["recorded"], terms=62_000, scale=loss["recorded"])


@pytest.mark.slow
@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (["--step=3"], "--run=DIR: name the run"),
    (["--run=RUN"], "--step=N: name the step"),
    (["--run=RUN", "--step=0"], "--step"),
    (["--run=RUN", "--step=9"], "--step=9: no metrics of it in"),
    (["--run=RUN", "--step=1", "--config.workdir=x"], "--config.workdir: the run is that of --run"),
    (["--run=RUN", "--step=1", "--config.algorithm.clip=1"], "--config.algorithm.clip: no such field"),
    (["--run=RUN", "--step=1", "--config.seed=1"], "the state of the run is that of its own seed"),
  ],
)
def test_mistakes_on_the_command_line(tmp_path, arguments, said):
  left(tmp_path, rows=steps(1), **{"model.preset": "tiny", "model.alphabet": "ab"})
  command = [sys.executable, "launch/replay.py", *(a.replace("RUN", str(tmp_path)) for a in arguments)]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  (line,) = done.stderr.strip().splitlines()
  assert done.returncode == 2 and line.startswith("error: ") and said in line
