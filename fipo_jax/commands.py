"""What programs of launch/ share: the flags of many processes and of a checkpoint, and their end.

Whatever a user can mend ends in one line on stderr and an exit code of `processes` (docs/exit_codes.md). With
FIPO_TRACEBACK=1 in the environment it is a traceback.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from typing import NamedTuple

from absl import flags, logging

from fipo_jax import command_line, console, processes

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # disks that are full or broken: no mistake of the command line


class Processes(NamedTuple):
  """Flags of a program that may be one process of many."""

  coordinator: flags.FlagHolder
  num_processes: flags.FlagHolder
  process_id: flags.FlagHolder


def define_processes() -> Processes:
  """Defines them; where they are not given, the environment's JAX_COORDINATOR_ADDRESS, ... count."""
  address = os.environ.get("JAX_COORDINATOR_ADDRESS", "")
  number, own = os.environ.get("JAX_NUM_PROCESSES", 0), os.environ.get("JAX_PROCESS_ID", -1)
  return Processes(
    flags.DEFINE_string("coordinator", address, "Of many processes: host:port of process 0."),
    flags.DEFINE_integer("num_processes", number, "How many there are."),
    flags.DEFINE_integer("process_id", own, "Which one this is, from 0."),
  )


def join(given: Processes) -> None:
  """Starts JAX, and waits for the other processes."""
  prepare_devices(given.num_processes.value)
  processes.start(given.coordinator.value, given.num_processes.value, given.process_id.value)


def prepare_devices(num_processes: int = 1) -> None:
  """Before JAX starts, on several devices."""
  if int(os.environ.get("JAX_NUM_CPU_DEVICES", 1)) > 1 or num_processes > 1:
    # XLA's concurrent CPU schedule lets devices enter collectives of one program in different orders: a deadlock.
    flag = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


def step_of(value: str | None) -> int | str | None:
  """--step as a number, 'best' or None. Raises command_line.Mistake."""
  if value in (None, "best"):
    return value
  if not value.isdecimal():
    raise command_line.Mistake(f"--step={value}: expected the number of a checkpoint, or 'best'.")
  return int(value)


def parser(program: str, *checks: Callable[[], object]) -> Callable[[list[str]], list[str]]:
  """absl's parser for a program with a config, whose docstring this is; a mistake ends it, in one line.

  checks: of the flags, when all are read; each may raise ValueError.
  """

  def parse(argv):
    try:
      rest = command_line.parse(argv, program)
      for check in checks:
        check()
      return rest
    except ValueError as e:
      command_line.fail(str(e))

  return parse


def no_arguments(argv: list[str]) -> None:
  """Ends the program if there is more than flags."""
  if len(argv) > 1:
    command_line.fail(f"unexpected argument {argv[1]!r}: fields are given as --config.FIELD=VALUE.")


def on_cpu() -> None:
  """For programs that need no accelerator: JAX does not look for one, and libraries are quiet."""
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  if "jax" in sys.modules:
    sys.modules["jax"].config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
  logging.set_verbosity(logging.WARNING)


def code_of(error: Exception) -> int:
  """How a program ends by an error that has a line of its own."""
  if isinstance(error, processes.Missing):
    return processes.EXIT_LOST
  full = isinstance(error, OSError) and error.errno in FULL
  return processes.EXIT_ERROR if full or processes.begun() else processes.EXIT_MISTAKE


def alone(call: Callable[[], object]) -> None:
  """Runs a program that is one process."""
  try:
    call()
  except (ValueError, OSError) as e:
    if os.environ.get("FIPO_TRACEBACK"):
      raise
    command_line.fail(str(e), code=code_of(e))


def together(call: Callable[[], object]) -> None:
  """Runs a program that may be one process of many: none of them is left waiting for another that has ended."""
  try:
    call()
    processes.finish()
    processes.heed_no_more()
  except processes.Stopped as e:
    console.say(str(e))
    processes.finish()
    processes.heed_no_more()
    sys.exit(processes.EXIT_STOPPED)
  except (ValueError, OSError) as e:
    if os.environ.get("FIPO_TRACEBACK"):
      raise
    leave(str(e), code=code_of(e))
  except Exception as e:
    if processes.count() == 1:
      raise
    # Whatever it is, the others must not wait for this process.
    processes.await_reason()  # a collective fails when a process is lost; who it was is known a little later
    traceback.print_exc()
    leave(f"{type(e).__name__}: {e}"[:500], code=processes.EXIT_ERROR)


def leave(message: str, *, code: int) -> None:
  """Ends this process at once, in one line, and tells the others."""
  message = " ".join(message.split())
  processes.say("error: " + message)
  processes.leave(message, code)
  # A background save or a worker must not keep a failed run alive; everything written so far is on disk.
  os._exit(code)
