"""The table of mutants holds: every row still applies, compiles, and names tests that exist."""

import ast
import subprocess
import sys

import mutants
import pytest

TESTS = mutants.ROOT / "tests"


def test_every_row_applies():
  wrong = {m.name: reason for m in mutants.MUTANTS if (reason := mutants.rotten(m))}
  assert not wrong
  names = [m.name for m in mutants.MUTANTS]
  assert len(names) >= 60 and len(set(names)) == len(names)


def test_the_tests_that_rows_name_exist():
  for test in mutants.union(mutants.MUTANTS):
    file, _, function = test.partition("::")
    found = ast.parse((TESTS / file).read_text()).body
    names = {node.name for node in found if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
    assert names and (not function or function in names), f"{test} does not exist"


def test_a_row_that_no_longer_applies_is_told(tmp_path):
  (tmp_path / "a.py").write_text("x = 1\ny = 1\n")
  row = mutants.Mutant("", "a.py", "x = 1", "x = 2", "", "")
  assert mutants.rotten(row, tmp_path) == "" and mutants.mutated(row, tmp_path) == "x = 2\ny = 1\n"
  for change, says in (
    ({"old": "z = 1"}, "0 times"), ({"old": "= 1"}, "2 times"), ({"file": "b.py"}, "0 times"),
    ({"new": "x = 1"}, "nothing"), ({"new": "x = ("}, "does not compile"),
  ):  # fmt: skip
    assert says in mutants.rotten(row._replace(**change), tmp_path)


@pytest.mark.parametrize("code, failed, broken, verdict", [
  (1, ["a_test.py::test_x"], [], "noticed"),
  (0, [], [], "SURVIVED"),
  (1, [], ["a_test.py::test_x"], "NO VERDICT: pytest ended with 1, a_test.py::test_x is broken"),  # its fixture
  (2, [], ["a_test.py"], "NO VERDICT: pytest ended with 2, a_test.py is broken"),  # it cannot be imported
  (4, [], [], "NO VERDICT: pytest ended with 4"),  # there is no such test
  (None, [], [], "NO VERDICT: not done in 5 s"),
])  # fmt: skip
def test_only_a_failed_test_has_noticed(code, failed, broken, verdict):
  result = mutants.Result(code, failed, broken, 1.0, "not done in 5 s")
  assert result.verdict() == verdict
  row = mutants.Mutant("name", "", "", "", "", "why")
  said = mutants.table([(row, result)], result)
  assert said.startswith(f"1 mutants, {int(verdict != 'noticed')} not noticed") and f"| name | {verdict} |" in said


def test_each_test_runs_once_without_a_mutant():
  rows = [mutants.Mutant("", "", "", "", tests, "") for tests in ("a.py::x b.py::y", "b.py", "a.py::x", "a.py::z")]
  assert mutants.union(rows) == ["a.py::x", "b.py", "a.py::z"]


def test_rows_can_be_listed_and_no_row_is_a_mistake(capsys):
  assert mutants.main(["--list", "--only=future_kl_d"]) == 0
  said = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in said] == ["future_kl_decay", "future_kl_direction"]
  assert mutants.main(["--only=no such row"]) == 1 and "no row has this" in capsys.readouterr().out


@pytest.mark.slow
def test_a_mutant_is_noticed_and_put_back(tmp_path):
  """Two rows of one file, one after the other: the second is met by the file as it was."""
  script = [sys.executable, str(TESTS / "mutants.py"), "--only=future_kl_d", f"--out={tmp_path / 'table.md'}"]
  done = subprocess.run(script, capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stdout + done.stderr
  rows = (tmp_path / "table.md").read_text().splitlines()[4:]
  found = [row.split(" | ")[:2] for row in rows]
  assert found == [["| future_kl_decay", "noticed"], ["| future_kl_direction", "noticed"]]
