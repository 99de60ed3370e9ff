"""Verdicts per second through the pool of processes."""

from __future__ import annotations

from fipo_jax.benchmarks.timing import timed
from fipo_jax.rewards.score import Job, Scorer


def rewards() -> dict:
  """Verdicts through the pool of two processes; responses of 1,600 characters, no two answers alike."""
  thought = "Let us think step by step. " * 60
  forms = (r"{0}", r"\frac{{{0}}}{{7}}", r"{0}.5", r"2^{{{0}}}", r"{0}\pi", r"{0}\sqrt{{3}}", r"({0}, {0}]", r"{0}\%")
  answers = [forms[i % len(forms)].format(i % 97 + 2) for i in range(4000)]

  def jobs(verifier, number, characters=1600):
    text = (thought * (characters // len(thought) + 1))[:characters]
    return [Job(verifier, f"{text}\nAnswer: {a}", answers[i - i % 2]) for i, a in enumerate(answers[:number])]

  settings = dict(workers=2, timeout_s=10.0, verifier_file=None, on_error="score_wrong", wrong_score=-1.0)
  with Scorer(**settings) as scorer:
    scorer.score(jobs("math_symbolic", 8) + jobs("math_dapo", 8))  # imports
    once = lambda jobs: timed(lambda _: scorer.score(jobs))[0]
    found = {f"{name}_s": number / once(jobs(name, number)) for name, number in
             (("math_dapo", 4000), ("math_symbolic", 400))}  # fmt: skip
    short, long = (once(jobs("math_symbolic", 32, characters)) for characters in (800, 80_000))
    return found | {"long_ratio": long / short / 100, "long_s": long, "failed": scorer.errors + scorer.timeouts}

