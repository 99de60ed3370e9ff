"""Sources: records from generators and files, and what they say of bad files."""

import decimal
import json
import pickle
import sys
import types

import pyarrow
import pyarrow.parquet
import pytest

from fipo_jax.data import SOURCES, rows, sources

CHAT = [{"role": "user", "content": "What is 2+2?"}]


def write_lines(path, *rows):
  path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
  return str(path)


def test_table():
  assert set(SOURCES) == {"reasoning_gym", "file", "jsonl", "parquet", "tfds", "chain_sum_solutions",
    "countdown_solutions",
  }


def test_reasoning_gym_record():
  records = sources.reasoning_gym("chain_sum", 5, 0, {"min_terms": 3, "max_terms": 3})
  assert len(records) == 5 and len(list(records)) == 5
  record = records[3]
  first, *rest = record["extras"]["entry"]["metadata"]["expression"].split()
  value = int(first)
  for op, number in zip(rest[::2], rest[1::2], strict=True):
    value += int(number) if op == "+" else -int(number)
  assert record["answer"] == str(value)
  assert record["question"] == record["extras"]["entry"]["question"]
  assert (record["id"], record["verifier"], record["extras"]["task"]) == (3, "gym", "chain_sum")
  assert pickle.loads(pickle.dumps(record)) == record
  with pytest.raises(IndexError):
    records[5]


def test_short_question():
  record = sources.reasoning_gym("chain_sum", 2, 0, short=True)[1]
  assert record["question"] == record["extras"]["entry"]["metadata"]["expression"] + " ="
  with pytest.raises(ValueError, match="'letter_counting' has none"):
    sources.reasoning_gym("letter_counting", 2, 0, short=True)


def test_a_short_question_never_says_the_solution():
  """Of countdown the library keeps the solution as the expression of the problem."""
  for record in sources.reasoning_gym("countdown", 5, 0, short=True):
    known = record["extras"]["entry"]["metadata"]
    assert record["question"] == f"{' '.join(map(str, known['numbers']))} -> {known['target']}:"
    assert known["expression"] == record["answer"]


def test_neighbouring_seeds_share_no_items():
  """The library makes item i from seed + i: without spreading, 99 of these 100 would be the same."""
  options = {"min_terms": 6, "max_terms": 6, "min_digits": 4, "max_digits": 4}
  one = {r["question"] for r in sources.reasoning_gym("chain_sum", 100, 0, options)}
  two = {r["question"] for r in sources.reasoning_gym("chain_sum", 100, 1, options)}
  again = {r["question"] for r in sources.reasoning_gym("chain_sum", 100, 0, options)}
  assert len(one) == 100 and one == again and not one & two


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("no_such_task", 1, 0), "no_such_task"),
    (("chain_sum", 0, 0), "data.size=0"),
    (("chain_sum", 1, -1), "data.seed=-1"),
    (("chain_sum", 1, 0, {"colour": 3}), "colour"),
    (("chain_sum", 1, 0, {"min_terms": 5, "max_terms": 2}), "max_terms"),
  ],
)
def test_reasoning_gym_mistakes(arguments, message):
  with pytest.raises(ValueError, match=message):
    sources.reasoning_gym(*arguments)


def test_jsonl_fields(tmp_path):
  path = write_lines(
    tmp_path / "a.jsonl",
    {"prompt": "1+1?", "answer": 2},
    "",
    {
      "prompt": CHAT,
      "reward_model": {"ground_truth": "4", "style": "rule"},
      "data_source": "math_dapo",
      "extra_info": {"index": 7},
    },
    {"prompt": "3?", "answer": "3", "verifier": "math_symbolic", "data_source": "other"},
    {"prompt": "imitate", "target": "this"},
  )
  one, two, three, four = sources.jsonl(path)
  assert one == {
    "id": 0,
    "question": "1+1?",
    "answer": "2",
    "verifier": None,
    "extras": {"data_source": None},
  }
  assert two == {
    "id": 2,
    "messages": CHAT,
    "answer": "4",
    "verifier": "math_dapo",
    "extras": {"index": 7, "data_source": "math_dapo"},
  }
  assert (three["verifier"], three["extras"]) == ("math_symbolic", {"data_source": "other"})
  assert (four["target"], four["answer"]) == ("this", "")


def test_jsonl_drops_and_counts_duplicates(tmp_path):
  a, b = {"prompt": "a", "answer": "1"}, {"prompt": CHAT, "answer": "4"}
  records = sources.jsonl(write_lines(tmp_path / "a.jsonl", a, a, b, a, b))
  assert [r["id"] for r in records] == [0, 2]
  assert records.notes == ["3 of 5 rows repeat a question; each is kept once"]


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ('{"prompt": "b", "answer"', "line 2: not valid JSON"),
    ("[1]", "line 2: expected an object, got list"),
    ({"answer": "1"}, "line 2: field 'prompt' is missing"),
    ({"prompt": "", "answer": "1"}, "line 2: field 'prompt' must be text or a list"),
    (
      {"prompt": [{"role": "user"}], "answer": "1"},
      "line 2: field 'prompt' must be text or a list",
    ),
    ({"prompt": "b"}, r"line 2: field 'answer' \(or reward_model.ground_truth\) is missing"),
    ({"prompt": "b", "answer": {"a": 1}}, "line 2: field 'answer' must be text, a number or a list"),
    ({"prompt": "b", "answer": [["1"], ["2", "3"]]}, "line 2: field 'answer' is a list of lists"),
    ({"prompt": "b", "answer": True}, "line 2: field 'answer' must be text, a number or a list of them, got True"),
    ('{"prompt": "b", "answer": NaN}', "line 2: field 'answer' .* is missing, it is nan"),
    ({"prompt": "b", "answer": " "}, "line 2: field 'answer' .* is missing, it is ' '"),
    ({"prompt": "b", "reward_model": {"ground_truth": []}}, r"line 2: field 'answer' .* is missing, it is \[\]"),
    ({"prompt": "b", "target": 3}, "line 2: field 'target' must be text"),
  ],
)
def test_bad_lines_are_named(tmp_path, line, message):
  path = write_lines(tmp_path / "bad.jsonl", {"prompt": "a", "answer": "1"}, line)
  with pytest.raises(ValueError, match="bad.jsonl " + message):
    sources.jsonl(path)


def test_unusable_jsonl_files(tmp_path):
  with pytest.raises(FileNotFoundError, match="none.jsonl"):
    sources.jsonl(str(tmp_path / "none.jsonl"))
  with pytest.raises(ValueError, match="empty.jsonl: no records"):
    sources.jsonl(write_lines(tmp_path / "empty.jsonl", ""))
  (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9", "answer": "1"}\n')
  with pytest.raises(ValueError, match="latin.jsonl line 1"):
    sources.jsonl(str(tmp_path / "latin.jsonl"))


def write_parquet(path, rows):
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  return str(path)


def test_parquet_in_the_layout_of_dapo(tmp_path):
  def row(question, answer):
    return {
      "data_source": "math_dapo",
      "prompt": [{"content": question, "role": "user"}],
      "ability": "MATH",
      "reward_model": {"ground_truth": answer, "style": "rule"},
      "extra_info": {"index": question},
    }

  path = write_parquet(tmp_path / "a.parquet", [row("q", "1"), row("q", "1"), row("r", "2")] * 3)
  records = sources.parquet(path)
  assert [(r["id"], r["answer"], r["verifier"]) for r in records] == [
    (0, "1", "math_dapo"),
    (2, "2", "math_dapo"),
  ]
  assert records[1]["messages"] == [{"role": "user", "content": "r"}]
  assert records[1]["extras"] == {"index": "r", "data_source": "math_dapo"}
  assert records.notes[-1] == "7 of 9 rows repeat a question; each is kept once"


def test_parquet_with_plain_columns(tmp_path):
  records = sources.parquet(write_parquet(tmp_path / "a.parquet", [{"prompt": "q", "answer": "1"}]))
  assert (records[0]["question"], records[0]["answer"]) == ("q", "1")


def test_unusable_parquet_files(tmp_path):
  with pytest.raises(FileNotFoundError, match="none.parquet"):
    sources.parquet(str(tmp_path / "none.parquet"))
  (tmp_path / "text.parquet").write_text("prompt,answer")
  with pytest.raises(ValueError, match="text.parquet: not a readable Parquet file"):
    sources.parquet(str(tmp_path / "text.parquet"))
  with pytest.raises(ValueError, match="no column 'prompt', 'question', 'problem' among .*data.columns.question"):
    sources.parquet(write_parquet(tmp_path / "b.parquet", [{"text": "q"}]))
  with pytest.raises(ValueError, match="c.parquet row 1: field 'answer'"):
    rows = [{"prompt": "q", "answer": "1"}, {"prompt": "r", "answer": None}]
    sources.parquet(write_parquet(tmp_path / "c.parquet", rows))


def test_tfds_reads_by_random_access_without_tensorflow(tmp_path):
  tfds = pytest.importorskip("tensorflow_datasets")

  class TinyQuestions(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      text = tfds.features.Text()
      features = tfds.features.FeaturesDict({"question": text, "answer": text})
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, download_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for i in range(3):
        yield i, {"question": f"{i} + 1", "answer": f"So #### it is\n#### {i + 1}"}

  TinyQuestions(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
  options = {"data_dir": str(tmp_path)}
  records = sources.tfds("tiny_questions", "train", **options)
  assert sorted((r["question"], r["answer"]) for r in records) == [
    ("0 + 1", "1"),
    ("1 + 1", "2"),
    ("2 + 1", "3"),
  ]
  assert sources.tfds("tiny_questions", "train", answer_after="", **options)[0]["answer"].startswith("So ####")
  with pytest.raises(ValueError, match="split 'test'"):
    sources.tfds("tiny_questions", "test", **options)
  with pytest.raises(ValueError, match="record 0: no field 'reply' among"):
    sources.tfds("tiny_questions", "train", answer="reply", **options)
  with pytest.raises(ValueError, match="name='no_such_set'"):
    sources.tfds("no_such_set", "train", **options)


@pytest.mark.parametrize(
  ("package", "call"),
  [
    ("tensorflow_datasets", lambda path: sources.tfds("x", "train")),
    ("reasoning_gym", lambda path: sources.reasoning_gym("chain_sum", 1, 0)),
    ("pyarrow", lambda path: sources.parquet(path)),
  ],
)
def test_missing_packages_are_named(tmp_path, monkeypatch, package, call):
  path = write_parquet(tmp_path / "a.parquet", [{"prompt": "q", "answer": "1"}])
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(ValueError, match="needs the package"):
    call(path)


def test_tfds_passes_the_split_on(monkeypatch):
  calls = []
  fake = types.SimpleNamespace(
    data_source=lambda name, **options: (
      calls.append((name, options)) or [{"q": b"\xc3\xa9", "a": 3}]
    ),
    core=types.SimpleNamespace(DatasetNotFoundError=KeyError),
  )
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
  record = sources.tfds("set/config:1.0.0", "train[:10%]", question="q", answer="a")[0]
  assert (record["question"], record["answer"]) == ("é", "3")
  assert calls[0][0] == "set/config:1.0.0" and calls[0][1]["split"] == "train[:10%]"


@pytest.mark.parametrize(
  ("given", "answer"),
  [
    (204.0, "204"), (-3.0, "-3"), (1e22, "1" + "0" * 22), (0.5, "0.5"), (7, "7"), ("033", "033"), ("204.0", "204.0"),
    (["1"], "1"), (["1", 2.0, None, "1"], ("1", "2")), (decimal.Decimal("12.00"), "12"),
  ],
)  # fmt: skip
def test_a_ground_truth_is_what_a_response_could_say(given, answer):
  assert rows.gold(given, "here") == answer


def test_published_names_of_the_dapo_check(tmp_path):
  rows = [{"prompt": f"p{i}", "answer": "1", "data_source": name}
          for i, name in enumerate(["math_dapo", "dapo_math_17k", "DAPO_Math", "aime2024", "gsm8k"])]  # fmt: skip
  found = [r["verifier"] for r in sources.jsonl(str(write_lines(tmp_path / "p.jsonl", *rows)))]
  assert found == ["math_dapo"] * 4 + [None]
