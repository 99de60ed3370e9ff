"""docs/extending.md: its examples are written from the page and do what the page says."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pages
import pytest

from fipo_jax import assemble, command_line, config, loop, parts
from fipo_jax.algorithms import ESTIMATORS, OBJECTIVES, check_given, make_advantages, make_objective
from fipo_jax.data import SOURCES
from fipo_jax.rollout import ENGINES, Sampling
from fipo_jax.types import Batch, Prompt
from tests.loop_test import ROOT, lines, model, settings  # noqa: F401

PAGE = "docs/extending.md"
TABLES = (OBJECTIVES, ESTIMATORS, SOURCES, ENGINES)
EXPERIMENTS = ("tripled", "plain", "median", "chance")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("extending")
  for name, text in pages.files(PAGE).items():
    (folder / name).write_text(text)
  return folder


@pytest.fixture
def load(folder):
  """Experiment -> its config; what it has added to the tables is gone afterwards."""
  before = [dict(table) for table in TABLES]
  yield lambda name: command_line.load_experiment(str(folder / f"{name}.py"))
  for table, rows in zip(TABLES, before, strict=True):
    table.clear()
    table.update(rows)


def test_the_page_has_an_example_of_each():
  assert sorted(pages.files(PAGE)) == sorted(["my_reward.py", "lines.jsonl", *(f"{name}.py" for name in EXPERIMENTS)])


def test_the_reward_agrees_with_its_lines(folder):
  """By the page's own command."""
  (command,) = re.findall(r"^    (python launch/verify.py .*)$", pages.text_of(PAGE), re.MULTILINE)
  words = [sys.executable, str(ROOT / "launch/verify.py"), *command.split()[2:], "--workers=1"]
  done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  found = [json.loads(line) for line in done.stdout.splitlines()]
  assert [line["agrees"] for line in found] == [True, True, True]
  assert [line["pred"] for line in found] == ["3.14", "13", None]


def test_the_source_is_read(load):
  c = load("tripled")
  config.validate(c)
  assemble.check_tables(c, {})
  value = lambda field: config.at(c, field)
  records, heldout = SOURCES["tripled"].records(value), SOURCES["tripled"].records(value, heldout=True)
  assert (len(records), len(heldout)) == (c.data.size, c.eval.prompts)
  for record in (records[0], records[1], heldout[0]):
    digits = record["question"].removesuffix(" =").split(" + ")
    assert len(digits) == 3 and sum(map(int, digits)) == int(record["answer"])
  assert records[5] == records[5] and [r["question"] for r in records] != [r["question"] for r in heldout]


def test_the_objective_is_its_equation(load):
  c = load("plain")
  assemble.check_tables(c, {})
  check_given("plain", {*parts.hyperparameters(c), "std_ddof"})
  random = np.random.default_rng(0)
  logp, old, advantages = random.normal(size=(3, 2, 5)).astype(np.float32)
  segments = np.array([[1, 1, 1, 2, 2], [1, 1, 0, 0, 0]])
  mask = np.array([[0, 1, 1, 0, 1], [0, 1, 0, 0, 0]], np.float32)
  batch = Batch(segments, segments, segments, mask, advantages, old, old, mask)
  objective = make_objective("plain", **parts.hyperparameters(c))
  loss = lambda x: (record := objective(x, batch).loss).total / record.count
  value, gradient = jax.jit(jax.value_and_grad(loss))(logp)
  np.testing.assert_allclose(value, -np.sum(advantages * logp * mask) / np.sum(mask), rtol=1e-6)
  np.testing.assert_allclose(gradient, -advantages * mask / np.sum(mask), rtol=1e-6)


def test_the_estimator_is_its_equation(load):
  c = load("median")
  assemble.check_tables(c, {})
  found = make_advantages(c.algorithm.name, c.algorithm.advantage)(np.array([[1.0, 1, -1, 0], [0, 0, 4, 0]]))
  np.testing.assert_array_equal(found, [[0.5, 0.5, -1.5, -0.5], [0, 0, 4, 0]])


def test_the_engine_keeps_its_promises(load, model):  # noqa: F811
  """Groups, the pending ones first; the same draw for the same key and prompt; a stop token is the last."""
  c = load("chance")
  c.model.path = str(model)
  tokenizer, network = parts.open_model(c)
  engine = parts.open_engine(c, network, jax.make_mesh((1,) * 4, ("data", "fsdp", "context", "tensor")), tokenizer)
  prompts = [Prompt(id, np.array([1], np.int32), "", "", "") for id in (3, 4)]
  sampling = Sampling(max_tokens=40, stop_ids=(2, 5))
  draw = lambda seed, **more: engine.generate(prompts, 3, key=jax.random.key(seed), sampling=sampling, **more)
  groups = draw(0)
  assert [[(r.prompt.id, r.sample) for r in g] for g in groups] == [[(p.id, n) for n in range(3)] for p in prompts]
  tokens = lambda groups: [r.tokens.tolist() for g in groups for r in g]
  assert tokens(groups) == tokens(draw(0)) != tokens(draw(1))
  assert tokens(groups[:1]) != tokens(groups[1:])
  assert tokens(draw(1, pending=groups))[:6] == tokens(groups)
  for r in (r for g in groups for r in g):
    ends = np.isin(r.tokens, sampling.stop_ids)
    assert r.stop_reason == ("stop" if ends[-1] else "length") and not ends[:-1].any() and len(r.tokens) <= 40
    assert len(r.logp) == len(r.tokens)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_experiment_trains(load, model, tmp_path, name):  # noqa: F811
  c = load(name)
  own = {"data.size": c.data.size, "steps": 2}
  c.update_from_flattened_dict(settings(model, tmp_path / "run") | own)
  result = loop.train(c)
  assert result["steps"] == 2 and result["updates"] == 4
  rows = lines(tmp_path / "run")
  assert [row["step"] for row in rows] == [1, 2] and all(np.isfinite(row["loss"]) for row in rows)
