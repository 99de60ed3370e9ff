"""Hostile answers through the real pool: each costs one sample its reward, and nothing else happens."""

import functools
import os
import time

import hostile
import pytest

from fipo_jax.data.sources import reasoning_gym
from fipo_jax.rewards.score import Job, Scorer

TIMEOUT_S = 4.0
GYM = ("string_insertion", "spiral_matrix", "countdown", "n_queens", "intermediate_integration")


@functools.cache
def task(name):
  return reasoning_gym(name, 1, 0)[0]


def jobs(canary, every=1):
  texts = hostile.corpus(canary)
  rows = [(name, gold, {}) for name, gold in hostile.GOLDS.items()]
  rows += [("gym", task(name)["answer"], task(name)["extras"]) for name in GYM]
  for i, text in enumerate(texts):
    shown = [f"Answer: {text}", f"\\boxed{{{text}}}", text]
    for j, (name, gold, extras) in enumerate(rows):
      if (i + j) % every == 0:
        yield Job(name, shown[2 if name == "regex" else (i + j) % 2], gold, extras)


def run(tmp_path, monkeypatch, every, workers=2):
  monkeypatch.setenv("SECRET_TOKEN", "the-secret-of-the-run")
  canary = tmp_path / "canary"
  monkeypatch.chdir(tmp_path)
  good = [Job("math_symbolic", "Answer: 1/2", "0.5"), Job("math_dapo", "Answer: 4", "4")]
  all_jobs = list(jobs(str(canary), every))
  with Scorer(
    workers=workers, timeout_s=TIMEOUT_S, verifier_file=None, on_error="stop", wrong_score=-1.0, memory_mb=2000
  ) as scorer:
    scorer.score([Job(name, "Answer: 1", "1", task(GYM[0])["extras"]) for name in ("math_symbolic", "gym")])  # imports
    pids = set()
    begin, found = time.monotonic(), []
    for at in range(0, len(all_jobs), 64):
      found += scorer.score(all_jobs[at : at + 64])
      pids |= {w.process.pid for w in scorer._workers}
    seconds = time.monotonic() - begin
    assert [s.accuracy for s in scorer.score(good)] == [1.0, 1.0]  # the run goes on
  paid = [(j.verifier, j.response[:80]) for j, s in zip(all_jobs, found, strict=True) if s.accuracy >= 1]
  assert paid == []
  worst = [s for j, s in zip(all_jobs, found, strict=True) if j.verifier == "gym" and s.score > 0.2]
  assert worst == []
  assert scorer.errors == 0  # of the verifiers; running out of time or memory is the response's
  said = " ".join(f"{s.pred} {s.message.split('prompt')[0]}" for s in found)
  assert "the-secret" not in said and "root:" not in said
  assert list(tmp_path.iterdir()) == []
  assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
  slow = [(j.verifier, j.response[:40]) for j, s in zip(all_jobs, found, strict=True) if "timeout" in s.flags]
  return all_jobs, found, seconds, slow


def test_a_part_of_the_corpus(tmp_path, monkeypatch):
  assert len(hostile.corpus("x")) >= 150
  all_jobs, _, _, slow = run(tmp_path, monkeypatch, every=11, workers=1)
  assert len(all_jobs) > 150 and len(slow) < 10, slow


@pytest.mark.slow
def test_the_whole_corpus_with_every_verifier(tmp_path, monkeypatch):
  all_jobs, _, _, slow = run(tmp_path, monkeypatch, every=1)
  assert len(all_jobs) > 1500 and len(slow) < 50, slow
