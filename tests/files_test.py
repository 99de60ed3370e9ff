"""Files of questions: endings, folders, globs, lists, and what a file can be instead of what it should be."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from fipo_jax.data import files
from fipo_jax.data.rows import Columns


def lines(path, *names, opened=open):
  with opened(path, "wt") as file:
    file.writelines(json.dumps({"prompt": name, "answer": "1"}) + "\n" for name in names)
  return str(path)


def table(path, names):
  pyarrow.parquet.write_table(pyarrow.table({"problem": names, "answer": ["1"] * len(names)}), path)
  return str(path)


def read(path, kind=""):
  return files.read(path, Columns(), kind)


def questions(path, kind=""):
  return [record["question"] for record in read(path, kind)]


def test_each_kind_by_its_ending(tmp_path):
  assert questions(lines(tmp_path / "a.jsonl", "a", "b")) == ["a", "b"]
  assert questions(lines(tmp_path / "a.jsonl.gz", "g", opened=gzip.open)) == ["g"]
  assert questions(table(tmp_path / "a.parquet", ["p"])) == ["p"]
  from array_record.python import array_record_module

  writer = array_record_module.ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
  for name in ("r", "s"):
    writer.write(json.dumps({"prompt": name, "answer": "1"}).encode())
  writer.close()
  assert questions(str(tmp_path / "a.array_record")) == ["r", "s"]


def test_folders_globs_and_lists_are_read_in_name_order(tmp_path):
  for name in ("train-2", "train-0", "train-1"):
    table(tmp_path / f"{name}.parquet", [name])
  lines(tmp_path / "extra.jsonl", "extra")
  (tmp_path / "README.md").write_text("about")
  shards = ["train-0", "train-1", "train-2"]
  assert questions(str(tmp_path)) == ["extra", *shards]
  assert questions(str(tmp_path), "parquet") == questions(str(tmp_path / "train-*.parquet")) == shards
  found = read([str(tmp_path / "train-1.parquet"), str(tmp_path / "extra.jsonl")])
  assert [(r["id"], r["question"]) for r in found] == [(0, "extra"), (1, "train-1")]
  assert found.notes[0] == "2 files, from extra.jsonl to train-1.parquet"


def test_ids_count_all_lines_of_all_files(tmp_path):
  one, two = lines(tmp_path / "1.jsonl", "a"), lines(tmp_path / "2.jsonl", "b")
  with open(one, "a") as file:
    file.write("\n\n" + json.dumps({"prompt": "c", "answer": 2}))
  assert [(r["id"], r["question"]) for r in read([one, two])] == [(0, "a"), (3, "c"), (4, "b")]


def test_a_folder_of_several_splits_is_refused(tmp_path):
  table(tmp_path / "train-0.parquet", ["a"]), table(tmp_path / "test-0.parquet", ["b"])
  with pytest.raises(ValueError, match=r"holds files of several splits \(test, train\); name one, as .*train\*"):
    read(str(tmp_path))


def test_where_columns_were_found_is_said(tmp_path):
  rows = [{"problem": "a", "answer": "1"}, {"problem": "b", "solution": r"\boxed{2}"}]
  (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
  assert read(str(tmp_path / "a.jsonl")).notes == [
    "question from 'problem', answer from 'answer' in 1; "
    r"question from 'problem', answer from the last \boxed{} of 'solution' in 1 rows"
  ]
  assert read(lines(tmp_path / "b.jsonl", "a")).notes == []
  (tmp_path / "c.jsonl").write_text(json.dumps({"prompt": "q", "answer": "So.\n#### 1,200"}))
  (note,) = read(str(tmp_path / "c.jsonl")).notes
  assert note == "question from 'prompt', answer from what follows '####' in 'answer' in 1 row"


LINE = json.dumps({"prompt": "é", "answer": "1"}, ensure_ascii=False) + "\n"


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.jsonl", LINE.encode("utf-16"), "a.jsonl line 1: the file is UTF-16, not UTF-8; iconv -f UTF-16"),
    ("a.jsonl", LINE.encode("utf-16-be"), "line 1: the file is UTF-16"),
    ("a.jsonl", LINE.encode("latin-1"), "a.jsonl line 1: not valid JSON"),
    ("a.json", b"[\n" + LINE.encode() + b"]", "a.json line 1: a JSON array, it seems; one object per line .* jq -c"),
    ("a.json", b"[" + LINE.strip().encode() + b"]", "line 1: expected an object, got list: a JSON array, it seems"),
    ("a.jsonl", b"[" * 100_000, "line 1: a JSON array"),
    ("a.jsonl", b"PAR1 and more", "line 1: this is a Parquet file; use data.source='parquet'"),
    ("a.jsonl.gz", gzip.compress(LINE.encode() * 9, mtime=0)[:-9], "the gzip file is damaged or cut short"),
    ("a.csv", b"prompt,answer", "the ending says no kind of file; expected one of .jsonl, .json"),
    ("a.jsonl", b"\n \n", "a.jsonl: no records"),
    ("a.array_record", b"nothing", "not a readable ArrayRecord file"),
  ],
)
def test_other_contents_are_one_line_with_a_remedy(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=message) as error:
    read(str(tmp_path / name))
  assert "\n" not in str(error.value)


def test_a_byte_order_mark_and_dos_lines_are_nothing(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + LINE.replace("\n", "\r\n").encode() * 1)
  assert questions(str(tmp_path / "a.jsonl")) == ["é"]


def test_paths_that_name_nothing(tmp_path):
  for path in ("gone.jsonl", "*.jsonl", "gone/"):
    with pytest.raises(FileNotFoundError, match="no such file"):
      read(str(tmp_path / path))
  with pytest.raises(FileNotFoundError, match="a folder without files that end in .jsonl, "):
    read(str(tmp_path))
  with pytest.raises(ValueError, match="no column 'task' .data.columns.question. among .'problem', 'answer'"):
    files.read(table(tmp_path / "a.parquet", ["a"]), Columns(question="task"))


@pytest.mark.parametrize(
  "kind", ["string", "large_string", "dictionary", "string_view", "binary", "list", "large_list", "decimal", "int64"]
)
def test_types_that_columns_of_parquet_have(tmp_path, kind):
  text = pyarrow.array(["q"], pyarrow.string())
  message = [[{"role": "user", "content": "q"}]]
  of = pyarrow.struct({"role": pyarrow.string(), "content": pyarrow.string()})
  prompt = {
    "large_string": lambda: text.cast(pyarrow.large_string()), "dictionary": text.dictionary_encode,
    "string_view": lambda: text.cast(pyarrow.string_view()), "binary": lambda: text.cast(pyarrow.binary()),
    "list": lambda: pyarrow.array(message, pyarrow.list_(of)),
    "large_list": lambda: pyarrow.array(message, pyarrow.large_list(of)),
  }.get(kind, lambda: text)()  # fmt: skip
  answer = {
    "decimal": lambda: pyarrow.array(["7.00"]).cast(pyarrow.decimal128(5, 2)),
    "int64": lambda: pyarrow.array([7]),
    "dictionary": lambda: pyarrow.array(["7"]).dictionary_encode(),
  }.get(kind, lambda: pyarrow.array([7.0]))()
  pyarrow.parquet.write_table(pyarrow.table({"prompt": prompt, "answer": answer}), tmp_path / "a.parquet")
  (record,) = read(str(tmp_path / "a.parquet"))
  assert record.get("question", record.get("messages")) in ("q", message[0]) and record["answer"] == "7"
