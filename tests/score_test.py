"""The scoring pool: order, deadlines, failures; the overlong penalty."""

import json
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest

from fipo_jax.rewards import worker
from fipo_jax.rewards.score import Job, Scored, Scorer, overlong_penalty

GOLDEN = pathlib.Path(__file__).parent / "golden"
ROOT = pathlib.Path(__file__).parent.parent

VERIFIER = """
import os, re, sys
def verify(response, answer, extras):
  if response == "hang":
    while True: pass
  if response == "regex":  # holds the interpreter's lock: no Python thread could stop it
    re.match("(a+)+$", "a" * 64 + "b")
  if response == "die":
    os._exit(3)
  if response == "leave":
    sys.exit("bye")
  if response == "raise":
    raise KeyError("lost")
  if response == "nan":
    return float("nan")
  if response == "text":
    return "1.0"
  if response == "score":
    from fipo_jax.rewards import Score
    return Score(score=0.25, accuracy=0.5, pred="half")
  if response == "number":
    return float(extras["number"])
  if response.endswith("z"):
    return len(response)
  if response == "memory":
    return float(len(bytearray(10**10)))
  if response == "gate" or response.startswith("meet"):  # waits until a file is there, or until four have met
    import time
    if response != "gate":
      open(response, "w").close()
    while len([name for name in os.listdir() if name[:4] == response[:4]]) < (1 if response == "gate" else 4):
      time.sleep(0.01)
  if response == "who":
    return os.getpid()
  return response == answer
"""


@pytest.fixture
def verifier_file(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(VERIFIER)
  return str(path)


def make(verifier_file=None, **options):
  defaults = {"workers": 2, "timeout_s": 60.0, "on_error": "score_wrong", "wrong_score": -1.0}
  return Scorer(verifier_file=verifier_file, **defaults | options)


def job(response, answer="right", **options):
  return Job("file", response, answer, prompt="What is it?", **options)


def test_results_keep_the_order_of_the_jobs():
  jobs = [Job("math_dapo", f"Answer: {i}", str(i - i % 2)) for i in range(40)]
  with make() as scorer:
    for _ in range(2):  # workers are reused
      found = scorer.score(jobs)
      assert [s.pred for s in found] == [str(i) for i in range(40)]
      assert [s.score for s in found] == [1.0, -1.0] * 20
    assert scorer.score([]) == []
    assert (scorer.timeouts, scorer.errors, scorer.first_error) == (0, 0, "")


def test_a_batch_of_trivial_jobs_costs_little():
  """CPU time of this process, which another's load does not change, against what pickling alone takes."""
  jobs = [Job("math_dapo", "Answer: 4" + " " * 5000, "4")] * 512
  start = time.process_time()
  for _ in range(20):
    for one in jobs:
      pickle.loads(pickle.dumps(one))
  pickling = time.process_time() - start
  with make() as scorer:
    scorer.start()
    start = time.process_time()
    scorer.score(jobs)
    assert time.process_time() - start < 100 * pickling


@pytest.mark.parametrize("response", ["hang", "regex"])
def test_a_hanging_verifier_is_killed_in_time(verifier_file, response):
  with make(verifier_file, timeout_s=0.5) as scorer:
    scorer.start()
    start = time.perf_counter()
    found = scorer.score([job("right"), job(response), job("right"), job("wrong")])
    assert 0.45 < time.perf_counter() - start < 4.0
    assert [s.flags for s in found] == [("unread",), ("timeout",), ("unread",), ("unread",)]
    assert [s.score for s in found] == [1.0, -1.0, 1.0, 0.0]
    assert "reward.timeout_s=0.5" in found[1].message
    assert (scorer.timeouts, scorer.errors) == (1, 0)
    assert scorer.score([job("right")] * 3) == [Scored(1.0, 1.0, None, ("unread",))] * 3  # and is replaced


def test_start_up_does_not_count_against_the_deadline():
  """Importing SymPy takes far longer than this deadline."""
  with make(workers=1, timeout_s=0.2) as scorer:
    (found,) = scorer.score([Job("math_symbolic", "Answer: 1/2", "1/2")])
  assert found == Scored(1.0, 1.0, "1/2")


def test_failures_are_flagged_and_counted(verifier_file):
  responses = ["raise", "die", "leave", "nan", "text", "right", "score"]
  with make(verifier_file, workers=1, wrong_score=-0.5) as scorer:
    found = scorer.score([job(r) for r in responses])
    assert [s.flags for s in found] == [("error",)] * 5 + [("unread",), ()]
    assert all((s.score, s.accuracy, s.pred) == (-0.5, 0.0, None) for s in found[:5])
    for scored, message in zip(
      found,
      (
        "KeyError: 'lost' at mine.py:13 in verify",
        "exit code 3",
        "SystemExit: bye",
        "score=nan",
        "returned str",
      ),
      strict=False,
    ):
      assert message in scored.message
    assert found[5:] == [Scored(1.0, 1.0, None, ("unread",)), Scored(0.25, 0.5, "half")]
    assert scorer.errors == 5
    assert "KeyError" in scorer.first_error and "What is it?" in scorer.first_error


@pytest.mark.parametrize("response", ["raise", "die"])
def test_stop_on_error_names_function_error_and_prompt(verifier_file, response):
  with make(verifier_file, on_error="stop") as scorer:
    with pytest.raises(ValueError, match=r"mine.py: .*(KeyError|exit code 3).*'What is it\?'"):
      scorer.score([job("right"), job(response)] + [job("right")] * 8)
    # Nothing of the abandoned batch leaks into the next.
    assert [s.score for s in scorer.score([job("wrong")] * 6)] == [0.0] * 6


def test_a_timeout_never_stops_the_run(verifier_file):
  with make(verifier_file, on_error="stop", timeout_s=0.3) as scorer:
    assert scorer.score([job("hang")])[0].flags == ("timeout",)


def test_extras_reach_the_verifier(verifier_file):
  with make(verifier_file, workers=1) as scorer:
    assert scorer.score([job("number", extras={"number": 0.75})])[0].score == 0.75
    with pytest.raises(ValueError, match="extras cannot be sent"):
      scorer.score([job("number", extras={"number": lambda: 1})])
    assert scorer.score([job("right")])[0].score == 1.0


@pytest.mark.parametrize(("characters", "seen"), [(0, 1_000_001), (20_000, 20_000)])
def test_a_verifier_sees_the_whole_response_or_as_much_of_its_end_as_the_config_says(verifier_file, characters, seen):
  with make(verifier_file, workers=1, response_characters=characters) as scorer:
    assert scorer.score([job("a" * 1_000_000 + "z")])[0].score == seen


def test_unknown_verifier(verifier_file):
  with make() as scorer:
    with pytest.raises(ValueError, match="verifier='magic' is not one of: math_dapo"):
      scorer.score([Job("magic", "", "")])
    with pytest.raises(ValueError, match="verifier='file' is not one of"):
      scorer.score([job("right")])


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ("x = 1", "no function verify"),
    ("import nothing_of_that_name", "ModuleNotFoundError"),
    ("import os; os._exit(5)", "exit code 5 before it was ready"),
  ],
)
def test_a_broken_verifier_file_stops_at_the_start(tmp_path, source, message):
  path = tmp_path / "broken.py"
  path.write_text(source)
  for call in (lambda s: s.start(), lambda s: s.score([job("right")])):
    with make(str(path)) as scorer, pytest.raises(ValueError, match=message):
      call(scorer)


def test_an_unreadable_verifier_file_stops_earlier(tmp_path):
  with pytest.raises(FileNotFoundError, match="none.py: no such file"):
    make(str(tmp_path / "none.py"))
  (tmp_path / "bad.py").write_text("def verify(:")
  with pytest.raises(ValueError, match="bad.py: not valid Python"):
    make(str(tmp_path / "bad.py"))


@pytest.mark.parametrize(
  "options",
  [{"workers": -1}, {"timeout_s": 0.0}, {"timeout_s": float("nan")}, {"on_error": "ignore"}],
)
def test_settings(options):
  with pytest.raises(ValueError, match=f"reward.{next(iter(options))}="):
    make(**options)


def test_closing_ends_the_workers_and_it_can_start_again():
  scorer = make()
  scorer.start()
  processes = [w.process for w in scorer._workers]
  scorer.close()
  assert all(p.poll() is not None for p in processes)
  assert scorer.score([Job("math_dapo", "Answer: 4", "4")])[0].score == 1.0
  scorer.close()


def test_workers_die_with_their_parent(tmp_path):
  code = (
    "import os, sys; from fipo_jax.rewards.score import Scorer\n"
    "s = Scorer(workers=2, timeout_s=1, verifier_file=None, on_error='stop', wrong_score=0)\n"
    "s.start(); s.score([]); print(*[w.process.pid for w in s._workers], flush=True); os._exit(0)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
  )
  pids = [int(pid) for pid in done.stdout.split()]
  assert len(pids) == 2
  deadline = time.monotonic() + 10
  while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not any(alive(pid) for pid in pids)


def test_folders_of_killed_runs_are_removed(tmp_path, monkeypatch):
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  gone = subprocess.Popen([sys.executable, "-c", ""])
  gone.wait()
  for name in (f"fipo-verify-{gone.pid}-abc", f"fipo-verify-{os.getpid()}-abc", "fipo-verify-mine-abc", "other"):
    (tmp_path / name / "in").mkdir(parents=True)
  with make() as scorer:
    scorer.score([Job("math_dapo", "Answer: 4", "4")])
  assert {p.name for p in tmp_path.iterdir()} == {f"fipo-verify-{os.getpid()}-abc", "fipo-verify-mine-abc", "other"}


def alive(pid):
  """A zombie whose new parent has not collected it yet does not count."""
  try:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  except FileNotFoundError:
    return False


def test_workers_never_import_jax(verifier_file):
  code = "import sys, fipo_jax.rewards.score, fipo_jax.rewards.worker; print('jax' in sys.modules)"
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
  )
  assert done.stdout.strip() == "False"


def test_out_of_memory_costs_one_sample(verifier_file):
  with make(verifier_file, workers=1, memory_mb=1000, on_error="stop") as scorer:
    found = scorer.score([job("memory"), job("right")])
    assert [s.flags for s in found] == [("timeout",), ("unread",)] and "reward.memory_mb=1000" in found[0].message
    assert (scorer.timeouts, scorer.errors) == (1, 0)


def test_the_first_error_is_said_at_once_and_only_once(verifier_file):
  heard = []
  with make(verifier_file, workers=1, say=heard.append) as scorer:
    scorer.score([job("raise"), job("die"), job("raise")])
  assert len(heard) == 1 and all(x in heard[0] for x in ("KeyError: 'lost'", "What is it?", "'right'", "'raise'"))


def test_batches_are_scored_side_by_side(verifier_file):
  """A batch that waits for a slow verdict does not hold up the next."""
  with make(verifier_file, workers=2) as scorer:
    slow, quick = scorer.submit([job("gate", "gate")]), scorer.submit([job("right")] * 20)
    assert [s.score for s in quick.result()] == [1.0] * 20 and not slow.done()
    pathlib.Path(verifier_file).with_name("gate").touch()
    assert slow.result()[0].score == 1.0


def test_many_slow_batches_share_all_workers(verifier_file):
  """None of four ends before all have begun: where they wait for one another, none ends at all."""
  with make(verifier_file, workers=4) as scorer:
    batches = [scorer.submit([job(f"meet{k}", f"meet{k}")]) for k in range(4)]
    assert [s.score for batch in batches for s in batch.result()] == [1.0] * 4


def test_closing_ends_what_waits(verifier_file):
  scorer = make(verifier_file, workers=1)
  scorer.start()
  waiting = [scorer.submit([job("hang")]), scorer.submit([job("right")])]
  scorer.close()
  for future in waiting:
    with pytest.raises(ValueError, match="the scorer was closed"):
      future.result(10)


def test_a_worker_is_replaced_after_its_jobs(verifier_file, monkeypatch):
  """The child reads the number of its own module: patched through the file that it loads."""
  pathlib.Path(verifier_file).write_text("from fipo_jax.rewards import worker; worker.JOBS = 3\n" + VERIFIER)
  with make(verifier_file, workers=1) as scorer:
    pids = [s.score for s in scorer.score([job("who")] * 7)]
  assert [pids.count(p) for p in dict.fromkeys(pids)] == [3, 3, 1] and worker.JOBS > 1000


def test_a_worker_is_not_as_large_as_the_process_that_started_it(verifier_file):
  """A trainer of many gigabytes must not have a process replaced after every verdict."""
  ours = np.ones(700_000_000, np.uint8)  # more than half of what a verification may have
  with make(verifier_file, workers=1, memory_mb=1200) as scorer:
    pids = {s.score for s in scorer.score([job("who")] * 4)}
  assert len(pids) == 1 and ours.all()


def test_several_golds(verifier_file):
  golds = ("1/3", "1/2")
  with make(workers=1) as scorer:
    found = scorer.score([Job("math_symbolic", f"Answer: {x}", golds) for x in ("0.5", "1/3", "1/4")])
  assert [s.accuracy for s in found] == [1.0, 1.0, 0.0]


def test_weights_make_one_verdict_of_several():
  form = "<think>a</think><answer>Answer: 7</answer>"
  with make(workers=1, weights={"format": 0.5, "regex": 2.0}) as scorer:
    found = scorer.score([Job("weighted", form, r"\d"), Job("weighted", form, "8"), Job("weighted", "7", "7")])
  assert [(s.score, s.accuracy, s.pred) for s in found] == [
    (2.5, 1.0, "7"), (-1.5, 0.0, "7"), (-2.0, 0.0, None)
  ]  # fmt: skip
  with pytest.raises(ValueError, match="reward.weights: 'magic' is not one of: math_dapo"):
    make(weights={"magic": 1.0})


def test_overlong_golden():
  lines = (GOLDEN / "overlong.jsonl").read_text().splitlines()
  assert len(lines) > 30
  for case in map(json.loads, lines):
    penalty = overlong_penalty(
      case["response_length"],
      max_tokens=case["max_response_length"],
      buffer_tokens=case["buffer_len"],
      factor=case["penalty_factor"],
    )
    assert penalty == case["penalty"]
    assert (penalty < 0) == case["overlong"]
    assert float(np.float32(case["score"]) + np.float32(penalty)) == case["total_reward"]


def test_overlong_by_hand():
  options = {"max_tokens": 100, "buffer_tokens": 20, "factor": 2.0}
  assert [overlong_penalty(n, **options) for n in (0, 80, 85, 100, 110)] == [0, 0, -0.5, -2, -3]
  assert overlong_penalty(100, **options | {"buffer_tokens": 0}) == 0.0
