"""The command that tries a verifier, run as a user runs it."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def run(*arguments, lines=()):
  text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
  done = subprocess.run(
    [sys.executable, "launch/verify.py", *arguments], cwd=ROOT, input=text, capture_output=True, text=True, timeout=120
  )
  return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_lines_are_scored_and_disagreements_end_in_1(tmp_path):
  lines = [
    {"response": "Answer: 42", "answer": "42", "right": True},
    {"response": "no", "answer": 42.0},
    {"response": "Answer: b", "answer": ["a", "b"], "right": True},
    {"response": "<think></think><answer>x</answer>", "verifier": "format", "right": True},
    {"response": "Answer: (", "answer": "(", "verifier": "regex", "right": False},
  ]
  code, out, said = run("--verifier=exact", "-", lines=lines)
  assert code == 0 and [row["line"] for row in out] == [1, 2, 3, 4, 5]
  assert [row["accuracy"] for row in out] == [1.0, 0.0, 1.0, 1.0, 0.0]
  assert [row["pred"] for row in out[:4]] == ["42", None, "b", "x"]
  assert out[4]["flags"] == ["error"] and "not a regular expression" in out[4]["message"]
  assert all(row["seconds"] >= 0 for row in out) and "agrees" not in out[1]
  assert "5 lines" in said and "3 right, 1 without an answer, 1 errors, 0 time-outs; of 4" in said
  assert "0 disagree" in said
  lines[0]["right"] = False
  (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
  out = tmp_path / "out.jsonl"
  code, printed, said = run("--verifier=exact", f"--out={out}", str(tmp_path / "lines.jsonl"))
  assert code == 1 and printed == [] and "1 disagree" in said
  assert [json.loads(line).get("agrees") for line in out.read_text().splitlines()] == [False, None, True, True, True]


def test_a_file_of_ones_own(tmp_path):
  code = "def verify(response, answer, extras):\n  return extras['x'] if response else 1 / 0\n"
  (tmp_path / "mine.py").write_text(code)
  rows = [{"response": "a", "extras": {"x": 1.0}, "right": True}, {"response": ""}]
  code, out, said = run(f"--file={tmp_path / 'mine.py'}", "-", lines=rows)
  assert code == 0 and out[0]["flags"] == ["unread"] and "ZeroDivisionError" in out[1]["message"]
  assert "the first verification that failed" in said


@pytest.mark.parametrize(
  ("arguments", "lines", "code", "message"),
  [
    (["--verifier=magic", "-"], [], 2, "--verifier='magic': expected one of math_dapo"),
    (["--verifier=exact"], [], 2, "give one file of lines"),
    (["--verifier=exact", "--file=x.py", "-"], [], 2, "give one of them"),
    (["--verifier=exact", "--nonsense", "-"], [], 2, "nonsense"),
    (["--verifier=exact", "gone.jsonl"], [], 2, "gone.jsonl"),
    (["--file=gone.py", "-"], [], 2, "gone.py: no such file"),
    (["--verifier=exact", "-"], ["{\n"], 2, "- line 1: not valid JSON"),
    (["--verifier=exact", "-"], [{"response": "a"}, {"answer": "1"}], 2, "- line 2: expected an object with the text"),
    (["--verifier=exact", "-"], [{"response": "a", "right": "yes"}], 2, "'right' must be true, false or null"),
    (["-"], [{"response": "a"}], 2, "- line 1: no field 'verifier'"),
    (["-"], [{"response": "a", "verifier": "magic"}], 2, "- line 1: field 'verifier' is 'magic'"),
  ],
)
def test_mistakes_are_one_line(arguments, lines, code, message):
  found, _, said = run(*arguments, lines=lines)
  assert found == code and message in said and "Traceback" not in said and said.strip().count("\n") == 0


def test_every_line_has_a_verdict_whatever_their_number():
  """More than two batches: none is lost where one ends and the next begins."""
  code, out, said = run("--verifier=exact", "-", lines=[{"response": f"Answer: {i}", "answer": i} for i in range(1100)])
  assert code == 0 and [row["line"] for row in out] == list(range(1, 1101)) and "1100 lines" in said
  assert [row["pred"] for row in out] == [str(i) for i in range(1100)]
