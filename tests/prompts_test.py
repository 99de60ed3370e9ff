"""What a run trains on and is evaluated on: sources, held-out prompts apart, mixtures, fields that nobody reads."""

import collections
import json

import pytest

from fipo_jax import config, prompts
from fipo_jax.data import SOURCES
from fipo_jax.data.tokenizer import characters

TOKENIZER = characters("abcdefghijklmnopqrstuvwxyz0123456789 +-=?\n")


def make(**fields):
  c = config.default()
  c.update_from_flattened_dict({"data.source": "file", "reward.verifier": "math_dapo"} | fields)
  return c


def lines(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def numbered(path, name, n, **fields):
  return lines(path, [{"prompt": f"{name}{i}", "answer": str(i)} | fields for i in range(n)])


def opened(c):
  """Stream, prompts of the one set, and notes, but for what evaluation and training share (overlap_test.py)."""
  prompts.check(c)
  stream, sets, notes, _ = prompts.open_data(c, TOKENIZER)
  return stream, [p for s in sets for p in s.prompts], [note for note in notes if not note.startswith("overlap")]


def test_held_out_and_training_prompts_share_no_text(tmp_path):
  """The first records of a file are held out; a later one that reads like one of them is not trained on."""
  asked = ["a", "b", "c", [{"role": "user", "content": "a"}], "d"]
  path = lines(tmp_path / "data.jsonl", [{"prompt": prompt, "answer": "1"} for prompt in asked])
  stream, heldout, notes = opened(make(**{"data.path": path, "eval.prompts": 2}))
  assert [p.text for p in heldout] == ["a", "b"]
  assert sorted(p.text for p in stream.take(2)) == ["c", "d"] and stream.len_epoch == 2
  assert notes == ["1 prompts read like held-out ones and are left out; 2 remain"]


def test_held_out_files_may_be_of_another_kind(tmp_path):
  held = numbered(tmp_path / "held.jsonl", "h", 3)
  for fields in ({"data.source": "reasoning_gym", "data.options": {"max_terms": 2}, "data.short_question": True},
                 {"data.source": "jsonl", "data.path": numbered(tmp_path / "train", "t", 9)}):  # fmt: skip
    stream, heldout, _ = opened(make(**fields, **{"eval.path": held, "eval.prompts": 3}))
    assert [p.text for p in heldout] == ["h0", "h1", "h2"] and not {p.text for p in stream.take(5)} & {"h0", "h1", "h2"}


def test_every_field_of_a_row_exists_and_reaches_its_function(monkeypatch):
  for name, source in SOURCES.items():
    c = make(**{"data.source": name, "data.seed": 4, "eval.data_seed": 7, "data.size": 100, "eval.prompts": 30})
    got = []
    monkeypatch.setitem(SOURCES, name, type(source)(lambda got=got, **k: got.append(k), source.fields, source.heldout))
    for heldout in (False, True):
      SOURCES[name].records(prompts._values(c), heldout=heldout)
    assert got[0].keys() == got[1].keys() == source.fields.keys()
    if "seed" in got[0]:
      assert [(k["seed"], k["size"]) for k in got] == [(4, 100), (7, 30)]


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"data.name": "gsm8k"}, "data.name='gsm8k': not read by data.source='file'; leave it out"),
    ({"data.size": 5}, "data.size=5: not read by data.source='file'"),
    ({"data.short_question": True}, "data.short_question=True: not read"),
    ({"eval.split": "dev"}, "eval.split='dev': not read"),
    ({"data.source": "reasoning_gym", "data.columns.question": "q"}, "data.columns.question='q': not read"),
    ({"data.source": "reasoning_gym", "data.path": "x"}, "data.path='x': not read by data.source='reasoning_gym'"),
    ({"data.source": "tfds", "data.seed": 3}, "data.seed=3: not read by data.source='tfds'"),
    ({"data.source": "files"}, "data.source='files': expected one of 'reasoning_gym', 'file'"),
    ({"data.path": ""}, "data.path='': data.source='file' needs a file"),
    ({"data.path": ("gone.jsonl",)}, r"data.path=\('gone.jsonl',\): gone.jsonl: no such file"),
    ({"data.path": 3}, "data.path=3: expected a file, a folder, a glob, or several of them"),
    ({"data.path": "x.csv"}, "data.path='x.csv': x.csv: the ending says no kind of file"),
    ({"eval.path": "gone"}, "eval.path='gone': gone: no such file"),
    ({"data.mixture": {"a": {"path": "x"}}}, "data.mixture.a=.*: expected fields of data and a weight greater than 0"),
    ({"data.mixture": {"a": {"weight": 0}}}, "data.mixture.a=.*weight greater than 0"),
    ({"data.mixture": {"a": {"weight": 1, "pth": "x"}}}, r"data.mixture.a.pth: no field of a source; path\?"),
    ({"data.mixture": {"a": {"weight": 1, "system": "x"}}}, "data.mixture.a.system: no field of a source"),
    ({"data.mixture": {"a": {"weight": 1, "size": "x"}}}, "data.mixture.a.size='x': does not fit data.size"),
    ({"data.mixture": {"a": {"weight": 1, "path": ""}}}, "data.mixture.a.path='': data.source='file' needs a file"),
  ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, fields, message):
  monkeypatch.chdir(tmp_path)
  numbered(tmp_path / "p.jsonl", "p", 9)
  (tmp_path / "x.csv").touch()
  with pytest.raises((ValueError, OSError), match=message):
    prompts.check(make(**{"data.path": "p.jsonl"} | fields) if "source" not in str(fields) else make(**fields))


def test_what_an_experiment_set_for_another_source_is_said_and_no_mistake(tmp_path):
  """--config.data.source=... on an experiment that has set fields of its own source."""
  c = make(**{"data.path": numbered(tmp_path / "p.jsonl", "p", 9), "data.size": 64, "eval.prompts": 2})
  c.data.options = {"max_terms": 3}
  prompts.check(c, {"data.source", "data.path"})
  with pytest.raises(ValueError, match="data.size=64: not read"):
    prompts.check(c, {"data.source", "data.size"})
  assert prompts.open_data(c, TOKENIZER)[2][:-1] == [
    "data.options={'max_terms': 3}: not read by data.source='file'",
    "data.size=64: not read by data.source='file'",
  ]


def test_a_mixture_is_drawn_by_weight_and_resumes_exactly(tmp_path):
  parts = {name: {"weight": w, "path": numbered(tmp_path / f"{name}.jsonl", name, n)}
           for name, n, w in (("a", 40, 3), ("b", 10, 1))}  # fmt: skip
  parts["c"] = {"weight": 1, "source": "reasoning_gym", "size": 20, "short_question": True}
  c = make(**{"data.mixture": parts, "eval.prompts": 5})
  stream, heldout, _ = opened(c)
  assert [p.text for p in heldout[:4]] == ["a0", "a1", "a2", "b0"] and heldout[4].verifier == "gym"
  drawn = stream.take(500)
  kind = lambda p: p.text[0] if p.text[0] in "ab" else "c"
  assert collections.Counter(map(kind, drawn)) == {"a": 300, "b": 100, "c": 100}
  assert len({p.id for p in drawn}) == len({p.text for p in drawn}) == 37 + 9 + 20 == stream.len_epoch
  for name, n in (("a", 37), ("b", 9)):  # each epoch of a part holds each of its prompts once
    own = [p.text for p in drawn if kind(p) == name]
    assert sorted(own[:n]) == sorted(set(own)) and own[:n] != own[n : 2 * n]
  again = opened(c)[0]
  again.take(3)
  state = json.loads(json.dumps(again.state()))
  fresh = opened(c)[0]
  fresh.restore(state)
  assert [p.id for p in fresh.take(20)] == [p.id for p in drawn[3:23]]
  c.data.mixture.a.weight = 2
  with pytest.raises(ValueError, match="weights"):
    opened(c)[0].restore(state)


def test_the_systems_turn_and_instructions_in_messages(tmp_path):
  rows = [
    {"prompt": "q", "answer": "1"},
    {"prompt": "q", "answer": "1", "persona": "own"},
    {"prompt": [{"role": "system", "content": "theirs"}, {"role": "user", "content": "r"}], "answer": "1"},
  ]
  fields = {"data.path": lines(tmp_path / "p.jsonl", rows), "eval.every": 0, "data.chat_template": False}
  fields |= {"data.instruction": "solve {question}", "data.system": "be brief", "data.columns.system": "persona"}
  texts = lambda **more: sorted(p.text for p in opened(make(**fields, **more))[0].take(3))
  with pytest.raises(ValueError, match="line 1: no field 'persona'"):
    texts()
  rows[0]["persona"] = rows[2]["persona"] = None
  lines(tmp_path / "p.jsonl", rows)
  assert texts() == ["be brief\n\nsolve q", "own\n\nsolve q", "theirs\n\nr"]
  assert texts(**{"data.instruct_messages": True}) == ["be brief\n\nsolve q", "own\n\nsolve q", "theirs\n\nsolve r"]
