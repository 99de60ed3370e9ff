"""Named evaluation sets: what they inherit, what they change, and each mistake in one line."""

import json
import pathlib
import runpy

import jax
import ml_collections
import numpy as np
import pyarrow.parquet
import pytest

from fipo_jax import config, prompts
from fipo_jax.data.tokenizer import characters
from fipo_jax.evaluation import program, sets
from fipo_jax.judges import verifier_of
from fipo_jax.parts import sampling_of
from tests.prompts_test import lines, numbered

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOKENIZER = characters("abcdefghijklmnopqrstuvwxyz0123456789 +-=?\n")


def make(named=None, **fields):
  c = config.default()
  plain = {"data.source": "file", "reward.verifier": "exact", "data.chat_template": False, "model.path": "model"}
  c.update_from_flattened_dict(plain | fields)
  if named is not None:
    c.eval.sets = named
  return c


def opened(c):
  prompts.check(c)
  _, found, notes, _ = prompts.open_data(c, TOKENIZER)
  return {s.name: [p.text for p in s.prompts] for s in found}, notes


def test_a_config_without_sets_has_one_as_it_was():
  c = make()
  (only,) = sets.of(c)
  assert (only.name, only.cfg, only.own, only.label("accuracy")) == ("", c, False, "accuracy")
  old = jax.random.fold_in(jax.random.fold_in(jax.random.key(c.seed), 0), 1)
  np.testing.assert_array_equal(jax.random.key_data(only.key()), jax.random.key_data(old))


def test_a_set_is_the_config_with_what_it_changes(tmp_path):
  c = make({
    "a": {"path": "a.jsonl", "samples_per_prompt": 4, "temperature": 0.0, "max_response_tokens": 100, "seed": 5,
          "verifier": "math_dapo", "instruction": "say {question}", "columns": {"question": "q"}},
    "b": {"prompts": 3},
  }, **{"data.columns.answer": "gold", "data.path": "t.jsonl", "reward.overlong_buffer_tokens": 512})  # fmt: skip
  a, b = sets.of(c)
  assert (a.own, b.own, a.label("accuracy")) == (True, False, "a/accuracy")
  assert (a.cfg.eval.prompts, b.cfg.eval.prompts, c.eval.prompts) == (0, 3, 30)  # all of a file that it names
  columns = a.cfg.data.columns.to_dict()
  assert columns == {"question": "q", "answer": "", "system": "", "id": ""}  # not the training file's
  assert b.cfg.data.columns.answer == "gold" and a.cfg.reward.overlong_buffer_tokens == 100
  assert a.cfg.data.instruction == "say {question}" and b.cfg.data.instruction == "{question}"
  drawn = [sampling_of(s.cfg, TOKENIZER, evaluation=True) for s in (a, b)]
  assert [(d.temperature, d.max_tokens) for d in drawn] == [(0.0, 100), (1.0, 20_480)]
  assert len({tuple(np.asarray(jax.random.key_data(s.key()))) for s in (a, b, *sets.of(make()))}) == 3
  assert c.eval.sets.a.seed == 5 and c.seed == 0 and c.reward.overlong_buffer_tokens == 512


def test_who_judges_is_the_sets_own_choice(tmp_path):
  (tmp_path / "mine.py").write_text("def verify(response, answer, extras):\n  return 1.0\n")
  c = make({"a": {"verifier": "math_symbolic"}, "b": {"verifier": "file"}, "c": {}},
           **{"reward.file": str(tmp_path / "mine.py"), "data.path": "t.jsonl"})  # fmt: skip
  assert [verifier_of(s.cfg, None) for s in sets.of(c)] == ["math_symbolic", "file", "file"]


def test_sets_of_files_beside_those_held_out(tmp_path):
  """Of a training file the first records that any set holds out are not trained on; a set's own file is read whole."""
  c = make({
    "few": {"prompts": 2}, "more": {"prompts": 4, "instruction": "q {question}"},
    "file": {"path": numbered(tmp_path / "own.jsonl", "own", 3)},
    "sums": {"source": "reasoning_gym", "name": "chain_sum", "short_question": True, "prompts": 2, "data_seed": 9},
  }, **{"data.path": numbered(tmp_path / "train.jsonl", "t", 9), "data.max_prompt_tokens": 60})  # fmt: skip
  found, notes = opened(c)
  assert found["few"] == ["t0", "t1"] and found["more"] == ["q t0", "q t1", "q t2", "q t3"]
  assert found["file"] == ["own0", "own1", "own2"] and len(found["sums"]) == 2
  stream = prompts.open_data(c, TOKENIZER)[0]
  assert sorted(p.text for p in stream.take(5)) == ["t4", "t5", "t6", "t7", "t8"] and stream.len_epoch == 5
  alone, notes = prompts.open_sets(c, TOKENIZER)  # where what is trained on is not there
  assert [s.name for s in alone] == ["file", "sums"] and [p.text for p in alone[0].prompts] == found["file"]


def test_prompts_of_a_whole_file_that_are_too_long_are_counted(tmp_path):
  rows = [{"prompt": "a" * n, "answer": "1"} for n in (3, 30, 4)]
  path = tmp_path / "own.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  c = make({"own": {"path": str(path)}},
           **{"data.path": numbered(tmp_path / "t.jsonl", "t", 3), "data.max_prompt_tokens": 9})  # fmt: skip
  found, notes = opened(c)
  assert found["own"] == ["aaa", "aaaa"]
  assert "eval.sets.own: 1 of 3 prompts are longer than data.max_prompt_tokens=9 and left out" in notes


@pytest.mark.parametrize(("named", "fields", "message"), [
  ({"a": 3}, {}, r"eval.sets.a=3: expected fields of a set"),
  ({"a/b": {}}, {}, "the name 'a/b' holds '/'"),
  ({"a": {"pth": "x"}}, {}, r"eval.sets.a.pth='x': no field of a set; path\?"),
  ({"a": {"temperature": "hot"}}, {}, "eval.sets.a.temperature='hot': does not fit eval.temperature"),
  ({"a": {"top_p": 0.0}}, {}, "eval.sets.a: eval.top_p=0.0: must lie in"),
  ({"a": {"columns": {"qestion": "x"}}}, {}, "eval.sets.a.columns=.*: does not fit data.columns: .*'qestion'"),
  ({"a": {"prompts": 0}}, {}, "eval.sets.a.prompts=0: must be greater than 0; 0, for all, is for sets of files"),
  ({"a": {"path": "gone.jsonl"}}, {}, "eval.sets.a.path='gone.jsonl': gone.jsonl: no such file"),
  ({"a": {"source": "jsonl"}}, {}, "eval.sets.a.path='': eval.sets.a.source='jsonl' needs a file"),
  ({"a": {"source": "reasoning_gym", "prompts": 0}}, {}, "eval.sets.a.prompts=0: .* makes as many as it is told to"),
  ({"a": {"source": "files"}}, {}, "eval.sets.a.source='files': expected one of"),
  ({"a": {"max_response_tokens": 30_000}}, {}, "max_response_tokens=30000: longer than rollout.max_.*=20480, which"),
  ({"a": {}}, {"eval.main": "b"}, "eval.main='b': no such set in eval.sets; there are a"),
  (None, {"eval.main": "b"}, "eval.main='b': no such set in eval.sets; there are none"),
  ({"a": {}}, {"eval.path": "p.jsonl"}, "eval.path='p.jsonl': not read beside eval.sets"),
  ({"a": {}}, {"checkpoint.best_by": "b/accuracy"}, "checkpoint.best_by='b/accuracy': no such set; there are 'a'"),
  ({"a": {}}, {"checkpoint.best_by": "a/pass@8"}, "best_by='a/pass@8': expected one of accuracy, pass@32, cons@32"),
  (None, {"checkpoint.best_by": "truncated"}, "checkpoint.best_by='truncated': expected one of accuracy"),
])  # fmt: skip
def test_mistakes_are_one_line(tmp_path, monkeypatch, named, fields, message):
  monkeypatch.chdir(tmp_path)
  numbered(tmp_path / "p.jsonl", "p", 99)
  with pytest.raises((ValueError, OSError), match=message):
    prompts.check(make(named, **{"data.path": "p.jsonl"} | fields))


def test_the_main_set_comes_first_and_the_others_by_name():
  names = lambda c: [s.name for s in sets.of(c)]
  c = make({"c": {}, "b": {}, "a": {}}, **{"eval.main": "b"})
  assert names(c) == ["b", "a", "c"] and names(make({"c": {}, "b": {}})) == ["b", "c"]
  assert names(sets.chosen(c, ["c", "b"])) == ["b", "c"] and names(sets.chosen(c, ["c", "a"])) == ["a", "c"]
  assert names(ml_collections.ConfigDict(json.loads(c.to_json()))) == ["b", "a", "c"]


def test_sets_are_chosen_by_name():
  c = make({"aime24": {"prompts": 3}, "own": {}})
  assert [s.name for s in sets.of(sets.chosen(c, ["own"]))] == ["own"] and sets.chosen(c, []) is c
  with pytest.raises(ValueError, match=r"--sets=aime: no such set in eval.sets; aime24\?"):
    sets.chosen(c, ["aime"])
  with pytest.raises(ValueError, match="--sets=x: no such set in eval.sets; there are none"):
    sets.chosen(make(), ["x"])


def test_the_published_files_are_read_as_they_are(tmp_path, monkeypatch):
  """experiments/evaluate_math.py on small files in the layouts of AIME, AMC, MATH-500 and GSM8K."""
  monkeypatch.chdir(tmp_path)
  folder = tmp_path / "data"
  folder.mkdir()
  dapo = {"data_source": "math_dapo", "prompt": [{"role": "user", "content": "solve a"}], "ability": "MATH",
          "reward_model": {"ground_truth": "33", "style": "rule"}, "extra_info": {"index": "7"}}  # fmt: skip
  tables = {
    "aime-2024": [dapo] * 32, "amc23": [{"id": 0, "question": "b", "answer": 27.0, "url": ""}],
    "gsm8k-test": [{"question": "c", "answer": "so 3 + 4 = 7\n#### 1,007"}],
  }  # fmt: skip
  for name, rows in tables.items():
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{name}.parquet")
  lines(folder / "aime-2025.jsonl", [{"problem": "d", "answer": "070", "id": "1"}])
  lines(folder / "math-500.jsonl", [{"problem": "e", "solution": "x", "answer": "\\frac{1}{2}", "level": 1}])
  for form, samples in (("samples", [32, 32, 32, 1, 4]), ("greedy", [1] * 5)):
    c = runpy.run_path(str(ROOT / "experiments/evaluate_math.py"))["get_config"](form)
    c.data.chat_template = False
    c, weights = program.choose(c, run="", step=None, model="somewhere")
    prompts.check_sets(c)
    found, _ = prompts.open_sets(c, characters("".join(map(chr, range(32, 127))) + "\n"))
    assert [s.cfg.eval.samples_per_prompt for s in found] == samples and weights.kind == "directory"
    assert [[p.answer for p in s.prompts] for s in found] == [["33"], ["070"], ["27"], ["1,007"], ["\\frac{1}{2}"]]
    assert [verifier_of(s.cfg, s.prompts[0]) for s in found] == ["math_dapo"] + ["math_symbolic"] * 4
    asked = [s.prompts[0].text for s in found]
    assert asked[0] == "solve a" and [text[0] for text in asked[1:]] == [*"dbce"]
    assert all("Answer: X" in text for text in asked[1:])
    drawn = {(s.cfg.eval.temperature, s.cfg.eval.top_p) for s in found}
    assert drawn == {(1.0, 0.7) if form == "samples" else (0.0, 1.0)}
  with pytest.raises(ValueError, match="expected samples or greedy"):
    runpy.run_path(str(ROOT / "experiments/evaluate_math.py"))["get_config"]("gredy")
