"""A verification process: receives jobs over a pipe, answers with scores. Started by `score.Scorer` only.

Messages to the worker:   (verifier, response, answer, extras)
Messages from the worker: ("ready",), then for each job ("started",) and one of
                          ("done", score, accuracy, pred), ("error", text); or once ("broken", text).
"""

from __future__ import annotations

import faulthandler
import importlib.util
import json
import math
import numbers
import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from fipo_jax.rewards import gym, math_dapo, math_symbolic
from fipo_jax.rewards.outcome import Score

# Name -> (function, what to import before the clock of a job starts). One row per row of VERIFIERS.
BUILT_IN: dict[str, tuple[Callable[..., Score], Callable[[], Any]]] = {
  "math_dapo": (math_dapo.verify, lambda: None),
  "math_dapo_strict_box": (math_dapo.verify_strict_box, lambda: None),
  "math_symbolic": (math_symbolic.verify, math_symbolic.load),
  "gym": (gym.verify, gym.load),
}
_NOWHERE = open(os.devnull, "w")  # held open for the life of the process
PRED_CHARACTERS = 2000  # what is sent back of an answer


def main(descriptor: int, settings: str) -> None:
  """Serves jobs until the pipe closes. Runs in the child; `settings` is JSON from the parent."""
  options = json.loads(settings)
  pipe = Connection(descriptor)
  verifiers = dict(BUILT_IN)
  try:
    if options["file"]:
      verifiers["file"] = (load_file(options["file"]), lambda: None)
    pipe.send(("ready",))
    while True:
      serve(pipe, verifiers, options["timeout_s"])
  except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone or done with us
    pass
  except ValueError as error:  # a missing package or a bad verifier file: no job can succeed
    pipe.send(("broken", str(error)))


def serve(pipe: Connection, verifiers: dict, timeout_s: float) -> None:
  """One job: receive, import what it needs, run, send the outcome."""
  name, response, answer, extras = pipe.recv()
  function, prepare = verifiers[name]
  prepare()
  pipe.send(("started",))
  # The parent keeps the deadline. This one works without the interpreter, and ends us should the parent have died.
  faulthandler.dump_traceback_later(2 * timeout_s + 5, exit=True, file=_NOWHERE)
  try:
    reply = ("done", *as_score(function(response, answer, extras)))
  except (Exception, SystemExit) as error:  # noqa: BLE001 - user code may raise anything; it is reported
    reply = ("error", describe(error))
  faulthandler.cancel_dump_traceback_later()
  pipe.send(reply)


def as_score(value: Any) -> tuple[float, float, str | None]:
  """(score, accuracy, pred) of a `Score` or a number; a bare number of 1 or more means right.

  Raises: TypeError for anything else, ValueError for NaN and infinities, or an accuracy outside [0, 1].
  """
  if isinstance(value, bool | numbers.Real):
    value = Score(score=float(value), accuracy=float(value >= 1))
  if not isinstance(value, Score):
    raise TypeError(f"verify returned {type(value).__name__}; a number or a Score would do")
  score, accuracy = float(value.score), float(value.accuracy)
  if not math.isfinite(score):
    raise ValueError(f"verify returned score={score}; it must be finite")
  if not 0.0 <= accuracy <= 1.0:
    raise ValueError(f"verify returned accuracy={accuracy}; it must be between 0 and 1")
  return score, accuracy, None if value.pred is None else str(value.pred)[:PRED_CHARACTERS]


def load_file(path: str) -> Callable[..., Any]:
  """The function `verify(response, answer, extras)` of a Python file.

  Raises: ValueError when the file does not run or has no such function.
  """
  spec = importlib.util.spec_from_file_location("user_verifier", path)
  module = importlib.util.module_from_spec(spec)
  sys.modules["user_verifier"] = module  # dataclasses and pickle look modules up
  try:
    spec.loader.exec_module(module)
  except (Exception, SystemExit) as error:  # user code may raise anything; it is reported
    raise ValueError(f"reward.file={path}: {describe(error)}") from error
  if not callable(getattr(module, "verify", None)):
    raise ValueError(f"reward.file={path}: no function verify(response, answer, extras) in it.")
  return module.verify


def describe(error: BaseException) -> str:
  """One line: the error, and where it was raised."""
  trace = error.__traceback__
  while trace is not None and trace.tb_next is not None:
    trace = trace.tb_next
  place = ""
  if trace is not None:
    code = trace.tb_frame.f_code
    place = f" at {os.path.basename(code.co_filename)}:{trace.tb_lineno} in {code.co_name}"
  return " ".join(f"{type(error).__name__}: {error}{place}".split())[:500]
