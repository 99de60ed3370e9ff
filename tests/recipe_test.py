"""The published recipes: docs/recipe.md, the experiments and a copy of the published figures agree in every number."""

import json
import pathlib
import re

import ml_collections
import pytest

from fipo_jax import command_line
from fipo_jax import config as config_lib
from fipo_jax.evaluation import published, sets

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/recipe.md").read_text()
FIGURES = json.loads((ROOT / "tests/recipe_figures.json").read_text())  # of the paper and its script, copied by hand
# Paths, and what the machine is: nothing that is learnt depends on it.
MACHINE = (
  "workdir", "model.path", "model.remat", "model.offload_inputs", "optimizer.offload", "mesh.", "batch.micro_rows",
  "rollout.tensor",
)  # fmt: skip


def load(name):
  return command_line.load_experiment(str(ROOT / f"experiments/{name}.py"))


def cell(c, field):
  """A field's value as the page writes it."""
  value = config_lib.at(c, field)
  if field == "rollout.top_k" and not value:
    return "off"
  if isinstance(value, bool):
    return "on" if value else "off"
  if isinstance(value, tuple):
    return f"[{', '.join(f'{x:g}' for x in value)}]"
  if isinstance(value, int):
    return f"{value:,}"
  return re.sub(r"e-0", "e-", f"{value:g}") if isinstance(value, float) else str(value)


def flat(c, prefix=""):
  found = {}
  for key, value in c.items():
    inside = isinstance(value, ml_collections.ConfigDict) and value
    found |= flat(value, f"{prefix}{key}.") if inside else {prefix + key: value}
  return found


def rows(text):
  """A Markdown table as dicts of its cells."""
  lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
  return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def tables():
  """Experiment, or a heading's first words -> the first table below."""
  found = {}
  for section in PAGE.split("\n## ")[1:]:
    heading = section.split("\n", 1)[0]
    name = re.search(r"experiments/(\w+)\.py", heading)
    if table := re.search(r"(?:^\|.*\n?)+", section, re.M):
      found[name[1] if name else heading] = rows(table[0])
  return found


@pytest.mark.parametrize("name", FIGURES["settings"])
def test_the_page_says_what_is_published_and_what_we_set(name):
  c, departures = load(name), set(re.findall(r"^(\d+)\. \*\*", PAGE, re.M))
  found = {row["field"].strip("`"): row for row in tables()[name]}
  theirs = {field: {k: row[k] for k in ("paper", "script") if k in row} for field, row in found.items()}
  assert theirs == FIGURES["settings"][name]
  for field, row in found.items():
    assert row["ours"] == cell(c, field), field
    published_here = row.get("script", row["paper"])
    assert (row["departure"] in departures) == (row["ours"] != published_here), field
    assert row["departure"] in departures | {""}, field


@pytest.mark.parametrize("name, like", [("dapo_qwen2_5_32b", "fipo_qwen2_5_32b"),
                                        ("dapo_qwen2_5_math_7b", "fipo_qwen2_5_math_7b")])  # fmt: skip
def test_a_baseline_differs_in_what_its_table_says(name, like):
  """And in fields that its objective does not read, or that follow from the table's."""
  own, other = flat(load(name)), flat(load(like))
  changed = {field for field in own if own[field] != other[field]}
  said = {row["field"].strip("`") for row in tables()[name]}
  unread = {f"algorithm.{f}" for f in ("weight_clip", "safety_threshold", "safety_mode", "sequence_reject_count",
                                       "participation_mask")}  # fmt: skip
  assert changed - unread - said <= {"workdir", "batch.row_tokens"} and said <= changed


def test_qwen3_is_the_recipe_of_32b_and_is_marked_ours():
  assert re.search(r"^## .*, ours: `experiments/fipo_qwen3_8b.py`$", PAGE, re.M)
  own, other = flat(load("fipo_qwen3_8b")), flat(load("fipo_qwen2_5_32b"))
  assert [f for f in own if own[f] != other[f] and not f.startswith(MACHINE)] == []


@pytest.mark.parametrize("name", ["fipo_qwen2_5_32b", "dapo_qwen2_5_32b", "fipo_qwen2_5_math_7b", "fipo_qwen3_8b"])
def test_the_best_checkpoint_is_by_32_samples_of_aime_2024(name):
  c = load(name)
  found = sets.of(c)
  assert [(s.name, s.cfg.eval.samples_per_prompt, s.cfg.eval.prompts, s.own) for s in found] == [
    ("aime24", 32, 0, True), ("aime25", 32, 0, True),
  ]  # fmt: skip
  assert sets.best_by(c) == "aime24/accuracy" and c.checkpoint.keep_best == 1
  sets.check_limits(c)
  assert "Answer:" in found[1].cfg.data.instruction and found[0].cfg.data.instruction == "{question}"
  assert c.alarms.action == "rollback" and tuple(c.alarms.acting) == ("collapse",)


def test_published_results_are_the_copy_and_the_page():
  ours = [[p.model, p.set_name, p.figure, round(100 * p.value, 2), p.source] for p in published.PUBLISHED]
  assert ours == FIGURES["results"]
  page = {
    (row["model"], row["set"], figure, float(row[figure]), row["source"])
    for row in tables()["What the paper reports"] for figure in ("avg@32", "cons@32", "pass@32") if row[figure]
  }  # fmt: skip
  assert page == {tuple(row) for row in FIGURES["results"]}


def test_published_figures_stand_beside_their_like_alone():
  for name in ("aime24", "AIME-2024", "aime_2024"):
    assert len(published.find(name, samples=32, problems=30)) == 13
  assert {p.value for p in published.find("aime25", samples=32, problems=30) if p.figure == "cons@32"} == {0.5, 0.47}
  assert not published.find("aime24", samples=16, problems=30)  # cons@16 is not cons@32
  assert not published.find("aime24", samples=32, problems=15)  # half a set
  assert not published.find("math500", samples=32, problems=30) and not published.find("", samples=32, problems=30)


def test_lines_beside_an_evaluation():
  curve = lambda value: {"value": value, "low": 0.0, "high": 1.0}
  found = {
    "problems": [{"accuracies": [1.0] * 32}] * 30, "metrics": {"accuracy": 0.5},
    "curves": {"pass@32": curve(0.8), "cons@32": curve(0.6), "pass@1": curve(0.5)},
  }  # fmt: skip
  avg, cons, passed = published.lines("aime25", found)
  assert avg.startswith("aime25 avg@32 0.500; published: 0.43 FIPO, Qwen2.5-32B (arXiv 2603.19835); 0.38 DAPO")
  assert cons.startswith("aime25 cons@32 0.600; published: 0.50 FIPO") and "0.67 FIPO" in passed
  assert published.lines("own", found) == []
