"""docs/exit_codes.md: each of its rows is made to happen to launch/run.py, and ends as the row says."""

import pathlib
import re
import signal

import pytest

from fipo_jax import processes
from tests.loop_test import ROOT, model  # noqa: F401
from tests.processes_test import launch, launch_all, settings, steps_logged, until

DOCUMENT = ROOT / "docs/exit_codes.md"
# The user's function is called once at the start, where it would be a mistake to raise.
RAISES_LATER = """
import pathlib
def verify(response, answer, extras):
  mark = pathlib.Path(__file__).with_suffix(".called")
  if mark.exists():
    raise RuntimeError("no judge today")
  mark.touch()
  return 0.0
"""


def table(text: str) -> dict[str, tuple[int, str]]:
  """Situation -> (code, the line printed, in which … is anything)."""
  rows = re.findall(r"^\| ([^|]+) \| (\d+) \| (?:`([^`]*)`)? *\|$", text, re.M)
  return {situation: (int(code), line) for situation, code, line in rows}


def says(pattern: str, text: str) -> bool:
  """Whether a line is the pattern, in which … is anything; "" is nothing of ours."""
  if not pattern:
    return "error: " not in text
  return re.search(f"^{'.*'.join(map(re.escape, pattern.split('…')))}$", text, re.M) is not None


def ended(job) -> tuple[int, str]:
  """The exit code as a shell has it, 128 and the signal where one ended the process; and all that was printed."""
  out, err = job.communicate(timeout=300)
  return (job.returncode if job.returncode >= 0 else 128 - job.returncode), out + err


class Runs:
  """Runs of a small model in a folder of their own."""

  def __init__(self, model, folder):  # noqa: F811
    self.model, self.workdir = model, folder / "run"

  def values(self, **more):
    return settings(self.model, self.workdir, **{"log.tensorboard": False} | more)

  def start(self, *flags, **more):
    return launch(self.values(**more), *flags)

  def training(self, number=1, **more):
    """Processes of a run that has finished its first step of many."""
    values = self.values(steps=500, **{"checkpoint.every": 100} | more)
    jobs = [launch(values)] if number == 1 else launch_all(number, 1, values)
    until(lambda: steps_logged(self.workdir) >= 1, jobs)
    return jobs

  def told(self, *names, number=1):
    """Signals to the last process of a run in training, the second when the first is heeded."""
    jobs = self.training(number)
    for name in names:
      jobs[-1].send_signal(getattr(signal, f"SIG{name}"))
      if name != names[-1]:
        said = jobs[-1].stderr.readline()
        while "Once more ends it at once" not in said:
          said = jobs[-1].stderr.readline()
    return jobs[0]


def starting(runs, name):
  job = runs.start()
  assert job.stdout.readline().startswith("fipo_jax: ")  # it heeds signals, and training has not begun
  job.send_signal(getattr(signal, f"SIG{name}"))
  return job


def at_once(runs):
  job = runs.start()
  job.send_signal(signal.SIGTERM)
  return job


def finished(runs):
  assert ended(runs.start(steps=1))[0] == 0
  return runs.start(steps=1)


def another(runs):
  assert ended(runs.start(steps=1))[0] == 0
  return runs.start(**{"seed": 9})


def full(runs):
  runs.workdir.mkdir(parents=True)
  (runs.workdir / "config.tmp").symlink_to("/dev/full")
  return runs.start()


def raises(runs):
  values = runs.values() | {"reward.file": str(runs.workdir.parent / "raises.py")}
  pathlib.Path(values["reward.file"]).write_text(RAISES_LATER)
  return launch(values)


def lost(runs, name):
  first, second = runs.training(2)
  second.send_signal(getattr(signal, f"SIG{name}"))
  code, said = ended(first)
  second.kill()
  second.communicate()
  first.communicate = lambda timeout: (said, "")
  return first


HOW = {
  "trained to its last step": lambda runs: runs.start(steps=1),
  "started again when it had finished": finished,
  "the disk is full": full,
  "no response of the first batch got a verdict": raises,
  "a field that is not there": lambda runs: runs.start("--config.optimizer.lr=1"),
  "a value that cannot be": lambda runs: runs.start(steps=0),
  "a model that is not there": lambda runs: launch(runs.values() | {"model.path": "/nowhere/export"}),
  "the workdir of another run": another,
  "SIGTERM before training": lambda runs: starting(runs, "TERM"),
  "Ctrl-C before training": lambda runs: starting(runs, "INT"),
  "SIGTERM in training": lambda runs: runs.told("TERM"),
  "Ctrl-C in training": lambda runs: runs.told("INT"),
  "SIGTERM to another process": lambda runs: runs.told("TERM", number=2),
  "another process was killed": lambda runs: lost(runs, "KILL"),
  "another process is frozen": lambda runs: lost(runs, "STOP"),
  "aborted by a library": lambda runs: runs.told("ABRT"),
  "killed, as by a lack of memory": lambda runs: runs.told("KILL"),
  "a fault in a library": lambda runs: runs.told("SEGV"),
  "SIGTERM before Python has begun": at_once,
}
FAST = ("a field that is not there", "SIGTERM before training", "SIGTERM before Python has begun")


@pytest.mark.parametrize("situation", [s if s in FAST else pytest.param(s, marks=pytest.mark.slow) for s in HOW])
def test_it_ends_as_the_table_says(model, tmp_path, situation):  # noqa: F811
  wanted, line = table(DOCUMENT.read_text())[situation]
  code, said = ended(HOW[situation](Runs(model, tmp_path)))
  print(code, said)
  assert code == wanted and says(line, said), (code, said)


def test_the_table_has_every_situation_and_every_code():
  rows = table(DOCUMENT.read_text())
  assert list(rows) == list(HOW)
  codes = {value for name, value in vars(processes).items() if name.startswith("EXIT_")}
  codes -= {processes.EXIT_INTERRUPTED}  # processes_test::test_signals
  assert {code for code, _ in rows.values()} == codes | {128 + n for n in (6, 9, 11, 15)}


def test_says():
  assert says("error: …disk full…", "a\nerror: x: disk full.\nb") and not says("error: disk full", "error: disk full.")
  assert says("", "Killed") and not says("", "error: x")
