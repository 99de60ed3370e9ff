"""Evaluation as a program: the figures of training, resumed, stopped, refused; and greedy as the published model."""

import itertools
import json
import pathlib
import types

import jax
import numpy as np
import pytest

from fipo_jax import config, loop, processes
from fipo_jax.data.tokenizer import characters
from fipo_jax.evaluation import fingerprint, program, published, sets
from fipo_jax.evaluation.samples import Samples
from fipo_jax.models import hf, make_model
from fipo_jax.rewards.score import Scorer
from fipo_jax.rollout.native import NativeEngine
from fipo_jax.sharding import make_mesh
from fipo_jax.train import checkpoint
from fipo_jax.types import Prompt
from tests.loop_test import ALPHABET, GOLDEN, lines, model, small  # noqa: F401

SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
SETS = {
  "own": {"prompts": 5, "samples_per_prompt": 2},
  "sums": {"source": "reasoning_gym", "name": "chain_sum", "short_question": True, "options": SUMS, "prompts": 4,
           "samples_per_prompt": 1, "temperature": 0.0, "max_response_tokens": 7, "verifier": "math_dapo"},
}  # fmt: skip


def options(**more):
  return {"steps": 2, "eval.every": 1, "eval.sets": SETS, "checkpoint.every": 1, "checkpoint.keep": 1,
          "checkpoint.keep_best": 1, "checkpoint.best_by": "own/pass@2", "log.samples": 0} | more  # fmt: skip


@pytest.fixture(scope="session")
def trained(model, tmp_path_factory):  # noqa: F811
  """A config with two named sets, and the workdir of its run of two steps."""
  workdir = tmp_path_factory.mktemp("sets") / "run"
  loop.train(small(model, workdir, **options()))
  return workdir


def evaluated(model, workdir, out, *, step=None, model_dir="", **more):  # noqa: F811
  cfg, weights = program.choose(small(model, workdir, **options(**more)), run=str(workdir), step=step, model=model_dir)
  return program.evaluate(cfg, weights, str(out))


def test_sets_are_measured_in_training_by_name_and_the_first_one_without(trained):
  for record in lines(trained):
    names = [name.removeprefix("eval/own/") for name in record if name.startswith("eval/own/")]
    assert {"accuracy", "pass@2", "response_tokens"} <= {*names}
    assert all(record[f"eval/{name}"] == record[f"eval/own/{name}"] for name in names)
    assert (record["eval/own/prompts"], record["eval/own/samples"], record["eval/sums/samples"]) == (5, 10, 4)
    assert record["eval/sums/response_tokens_max"] <= 7 and "eval/pass@1" not in record


def test_the_best_are_those_of_the_metric_that_is_named(trained):
  folder = checkpoint.folder_of(trained)
  of = {r["step"]: r["eval/own/pass@2"] for r in lines(trained)}
  measured = {s: checkpoint._measured(folder / str(s)) for s in checkpoint.steps_in(folder)}
  assert measured == {s: of[s] for s in measured} and 2 in measured
  assert checkpoint.choose(folder, "best") == max((1, 2), key=lambda s: (of[s], s))
  assert checkpoint.choose(folder) == checkpoint.choose(folder, 2) == 2
  with pytest.raises(ValueError, match="--step=7: no such checkpoint in .*; there are "):
    checkpoint.choose(folder, 7)


def test_it_finds_what_training_found_and_goes_on_where_it_was_cut(
  trained, model, tmp_path, monkeypatch, capsys  # noqa: F811
):
  first = evaluated(model, trained, tmp_path / "a.json")
  assert first == json.loads((tmp_path / "a.json").read_text())
  last = lines(trained)[-1]
  for name in SETS:
    got = first["sets"][name]["metrics"]
    assert {f"eval/{name}/{metric}": got[metric] for metric in got if "cons" not in metric}.items() <= last.items()
  assert first["model"]["step"] == 2 and first["overlap"]["own"]["same"] == []
  # Killed in the middle of a line: what is whole is kept, and the same comes out.
  file = tmp_path / "a_samples.jsonl"
  text = file.read_text().splitlines(keepends=True)
  assert len(text) == 1 + 5 + 4
  file.write_text("".join(text[:4]) + text[4][:20])
  asked, generate = [], NativeEngine.generate

  def counted(self, prompts, *arguments, **named):
    asked.append(len(prompts))
    return generate(self, prompts, *arguments, **named)

  monkeypatch.setattr(NativeEngine, "generate", counted)
  figure = published.Published("theirs", "own", "avg@2", 0.25, "somewhere")
  monkeypatch.setattr(published, "PROBLEMS", {"own": 5})
  monkeypatch.setattr(published, "PUBLISHED", (figure,))
  again = evaluated(model, trained, tmp_path / "a.json")
  assert "; published: 0.25 theirs (somewhere)" in capsys.readouterr().out
  assert asked == [2, 4] and again["sets"] == first["sets"]
  assert sorted(file.read_text().splitlines()[1:]) == sorted(line.rstrip("\n") for line in text[1:])
  with pytest.raises(ValueError, match="holds responses of another evaluation: .*top_p: 1.0 -> 0.5; name another"):
    evaluated(model, trained, tmp_path / "a.json", **{"eval.top_p": 0.5})


@pytest.mark.slow
def test_what_was_stopped_goes_on_and_an_export_is_its_checkpoint(trained, model, tmp_path, monkeypatch):  # noqa: F811
  many = {"eval.sets": {"own": {"prompts": 64, "samples_per_prompt": 2}}}  # of more than one look
  with monkeypatch.context() as stopping:
    answers = itertools.chain([False, False], itertools.repeat(True))
    stopping.setattr(processes.StopPoll, "__call__", lambda _: next(answers))
    with pytest.raises(processes.Stopped, match="of 64 prompts of own are in .*; the same command goes on"):
      evaluated(model, trained, tmp_path / "b.json", **many)
  assert not (tmp_path / "b.json").exists() and 1 < len((tmp_path / "b_samples.jsonl").read_text().splitlines()) < 65
  stopped = evaluated(model, trained, tmp_path / "b.json", **many)
  exported = evaluated(model, trained, tmp_path / "c.json", model_dir=str(trained / "export"), **many)
  assert stopped["sets"] == exported["sets"] and stopped["model"]["sha256"] == exported["model"]["sha256"]
  assert exported["model"]["weights"] == "directory" and "step" not in exported["model"]


def greedy_set(want, starts, n):
  cfg = config.default()
  cfg.eval.temperature, cfg.eval.top_p, cfg.eval.samples_per_prompt = 0.0, 1.0, 1
  cfg.rollout.max_response_tokens, cfg.reward.overlong_buffer_tokens, cfg.reward.verifier = n, 0, "exact"
  places = enumerate(zip(want, starts, strict=True))
  prompts = [Prompt(i, np.asarray(row[:s], np.int32), str(i), "1", "") for i, (row, s) in places]
  return sets.EvalSet("", cfg, True, tuple(prompts))


def test_greedy_is_the_published_implementations(tmp_path):
  """One sample at temperature 0, from the program's own call of the sampler to the file of responses."""
  m, mesh = make_model(hf.read_config(GOLDEN)), make_mesh(config.default().mesh)  # sizes as of the run: one program
  want = np.load(GOLDEN / "golden.npz")["greedy"]
  starts, n = [12, 15, 13][: len(want)], 7
  tokenizer = characters(ALPHABET)
  engine = NativeEngine(m, mesh, slots=8, max_prompt_tokens=16, max_response_tokens=12, pad_id=tokenizer.pad_id)
  params = hf.load(GOLDEN, m, mesh)
  engine.update(params)
  assert not np.isin(want, tokenizer.stop_ids).any()
  s = greedy_set(want, starts, n)
  file = Samples(tmp_path / "x_samples.jsonl", {"model": fingerprint.of(params)}, 10**6)
  with Scorer(workers=1, timeout_s=10.0, verifier_file=None, on_error="stop", wrong_score=-1.0) as scorer:
    groups = program.sample(program.Evaluator(s.cfg, tokenizer, engine, scorer), s, file)
  for row, start, (r,) in zip(want, starts, groups, strict=True):
    np.testing.assert_array_equal(r.tokens, row[start : start + n])
    assert r.stop_reason == "length" and r.accuracy == 0.0


def test_weights_are_told_apart_whatever_the_mesh():
  mesh = make_mesh({"data": 1, "fsdp": 4, "context": 1, "tensor": 1}, jax.devices()[:4])
  x = np.arange(48, dtype=np.float32).reshape(4, 12)
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
  assert fingerprint.of({"a": jax.device_put(x, rows)}) == fingerprint.of({"a": jax.numpy.asarray(x)})
  swapped = x.copy()
  swapped[0, [3, 4]] = x[0, [4, 3]]
  others = [{"a": swapped}, {"a": x.T}, {"a": -x}, {"b": x}, {"a": x.astype(np.float16)}]
  assert len({fingerprint.of(jax.tree.map(jax.numpy.asarray, t)) for t in [{"a": x}, *others]}) == 6


def test_progress_is_told_rarely_with_an_eta_of_what_is_left():
  now, told = [0.0], []
  tell = program.Progress("aime", 100, 20, say=told.append, clock=lambda: now[0])
  for second, done in ((1, 5), (6, 20), (9, 30), (20, 40), (200, 80)):
    now[0] = float(second)
    tell(done, 80)
  assert told == [
    "aime: 40 of 100 samples, 6 s, eta 18 s", "aime: 60 of 100 samples, 20 s, eta 20 s",
    "aime: 100 of 100 samples, 200 s, eta 0 s",
  ]  # fmt: skip


def test_texts_are_kept_up_to_a_bound(tmp_path, capsys):
  path = pathlib.Path(tmp_path / "s.jsonl")
  prompt = Prompt(0, np.zeros(1, np.int32), "p", "1", "")
  sample = dict(stop_reason="stop", pred=None, accuracy=1.0, score=1.0, reward=1.0, flags=(), tokens=np.zeros(3))
  text = "x\u2028\x85\r\f" * 20  # ends of lines that are none here
  file = Samples(path, {"a": 1}, 700)
  for i in range(4):
    r = types.SimpleNamespace(**sample, text=text, prompt=types.SimpleNamespace(**vars(prompt) | {"id": i}))
    file.append("s", [[r]])
  texts = [json.loads(line)["samples"][0]["response"] for line in path.read_bytes().split(b"\n")[1:-1]]
  assert texts[0] == text and texts[-1] is None and capsys.readouterr().out.count("log.samples_mb") == 1
  found = Samples(path, {"a": 1}, 700).groups("s", (prompt,))
  assert [len(r.tokens) for r in found[0]] == [3] and found[0][0].accuracy == 1.0 and [*found] == [0]
