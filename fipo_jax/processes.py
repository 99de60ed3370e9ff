"""Many processes that are one run: they find each other, agree, exchange small values, and end together.

A pod runs the same program on every host. What devices compute they compute together; what hosts decide by themselves
(config, step, prompts) must be the same everywhere, and is compared here before a collective could hang. Values travel
through the key-value store of `jax.distributed`, never through devices, so any thread may exchange them.

A process that ends, or from which nothing has been heard for SILENT_S, ends the others, each with the same line. With
one process every function here answers at once, and nothing of JAX is touched.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import ctypes
import faulthandler
import glob
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

START_S = 300.0  # for all processes to come
WAIT_S = 600.0  # at a barrier: hosts load files and compile at different speeds
WORK_S = 7200.0  # for results of work, such as a slow verifier: whoever dies meanwhile is noticed by itself
SAID_AFTER_S = 5.0  # of waiting for others: who they are is said
BEAT_S = 3.0  # between two signs of life
SILENT_S = 30.0  # without one: longer than a host stalls, short enough to restart within a minute
RESUMES = "the same command on all hosts resumes from the newest checkpoint."

# How every program of this project ends.
EXIT_DONE = 0
EXIT_ERROR = 1  # on the way: a full disk, servers that are gone, a first batch that fails whole, an alarm's stop
EXIT_MISTAKE = 2  # a mistake of the user, found at the start: nothing was done
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: told to stop, and saved; start me again
EXIT_LOST = 76  # another process was lost or has stalled; start all again
EXIT_INTERRUPTED = 130  # a second Ctrl-C: ended at once

_job: _Job | None = None  # None: one process
place: Callable[[], str] = lambda: ""  # where this process is, as `stalls` has it: said with each sign of life
before_end: Callable[[str], None] | None = None  # what is done with the reason when this process ends by news of it
_told_to_stop = threading.Event()
_begun = threading.Event()


class Missing(OSError):
  """Processes did not come to where others wait for them."""


class Stopped(Exception):
  """The run was told to stop; it is saved, and the same command goes on with it."""


class Stopping(Exception):
  """The run was told to stop, and sampling has ended for that; what was sampled is to be saved."""


def start(coordinator: str = "", num_processes: int = 0, process_id: int = -1, *, wait_s: float = START_S) -> None:
  """Joins the processes of this run; to be called before anything touches a device.

  Without arguments they come from the environment: Cloud TPU pods, GKE JobSets, SLURM, Open MPI. Where that names no
  others, and with num_processes=1, nothing happens.

  Args:
    coordinator: host:port of process 0, which must be free there. num_processes, process_id: how many, and which.
    wait_s: seconds for all to come.
  Raises:
    ValueError: the arguments are incomplete. Missing: not all came.
  """
  global _job
  if coordinator or num_processes or process_id >= 0:
    if num_processes == 1:
      return
    if not (":" in coordinator and num_processes > 1 and 0 <= process_id < num_processes):
      raise ValueError(
        f"--coordinator={coordinator!r} --num_processes={num_processes} --process_id={process_id}: give all three, "
        "the coordinator as host:port, the id from 0 to num_processes - 1; or none, on Cloud TPU, GKE or SLURM."
      )
    given = dict(coordinator_address=coordinator, num_processes=num_processes, process_id=process_id)
  elif _in_environment() > 1:
    _check_tasks()
    given = {}
  else:
    return
  import jax
  from jax._src import distributed  # its key-value store has no public name

  jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from `heed_signals`
  incomplete = (
    f"the processes of this run{f' ({num_processes}, at {coordinator})' if given else ''} did not all come together "
    f"within {wait_s:g} s: start the same command on every host, each with its own process id."
  )
  _last_words(incomplete)
  try:
    jax.distributed.initialize(**given, initialization_timeout=int(wait_s))
  except (RuntimeError, ValueError) as e:
    raise Missing(f"{incomplete} JAX says: {_first_line(e)}") from e
  state = distributed.global_state
  _job = _Job(state.client, state.process_id, state.num_processes)
  _job.hosts = _job.exchange("hosts", socket.gethostname(), wait_s)
  _job.watch()


def index() -> int:
  """Number of this process, from 0."""
  return _job.me if _job else 0


def count() -> int:
  """How many processes the run has."""
  return _job.count if _job else 1


def is_first() -> bool:
  """Whether this is process 0, which alone writes and prints."""
  return index() == 0


def exchange(what: str, text: str, timeout_s: float = WORK_S) -> list[str]:
  """Every process gives a text and gets those of all, in the order of the processes.

  The exchanges of one `what` are made in the same order everywhere; those of different ones may overlap, in threads.
  Raises Missing, naming who did not come in time.
  """
  return _job.exchange(what, text, timeout_s) if _job else [text]


def barrier(what: str, timeout_s: float = WAIT_S) -> None:
  """Returns when all processes are here. Raises Missing, naming who did not come in time."""
  exchange(what, "here", timeout_s)


def from_first(what: str, value: Any) -> Any:
  """The value, as JSON has it, that process 0 gives."""
  return json.loads(exchange(what, json.dumps(value if is_first() else None), WAIT_S)[0])


def agree(what: str, facts: Mapping[str, Any], timeout_s: float = WAIT_S) -> None:
  """Returns if all processes have the same facts, name by name.

  Raises: ValueError on all of them, naming the facts that differ, who has which, and what to do.
  """
  if not _job:
    return
  everyone = [json.loads(text) for text in exchange(f"agreement on {what}", json.dumps(facts), timeout_s)]
  differ = []
  for name in dict.fromkeys(name for one in everyone for name in one):
    holders = collections.defaultdict(list)
    for k, one in enumerate(everyone):
      holders[json.dumps(one.get(name, "(absent)"))].append(k)
    if len(holders) > 1:
      differ.append(f"{name}: " + ", ".join(f"{value} on {names(ks)}" for value, ks in holders.items()))
  if differ:
    more = f" (and {len(differ) - 3} more)" if len(differ) > 3 else ""
    raise ValueError(
      f"the processes of this run do not agree on {what}: {'; '.join(differ[:3])}{more}. Start all with the same "
      "command, code and files."
    )


def said() -> dict[int, str]:
  """By process, what it said last as a sign of life: a number, which counts, and its `place`; {} of one process."""
  return dict(_job._said) if _job else {}


def names(ks) -> str:
  """Processes by number and host, for messages."""
  ks = list(ks)
  total, hosts = (_job.count, _job.hosts) if _job else (1, ["?"])
  named = ", ".join(f"{k} ({hosts[k]})" for k in ks[:4]) + (f" and {len(ks) - 4} more" if len(ks) > 4 else "")
  return f"process{'es' if len(ks) > 1 else ''} {named} of {total}"


# ---- the end ----


def end(reason: str, code: int) -> None:
  """Ends all processes with this code, for the same reason; from any thread."""
  if _job:
    _job._end(reason, code=code)
  say(f"error: {reason}")
  if before_end:
    before_end(reason)
  os._exit(code)


def say(text: str) -> None:
  """To stderr, if that can be written: what ends a process, or watches it, must not fail with the disk of its log."""
  with contextlib.suppress(OSError, ValueError):
    print(text, file=sys.stderr, flush=True)


def leave(message: str, code: int = EXIT_ERROR) -> None:
  """Tells the others that this process ends, and why; process 0 waits a moment until they know.

  They end too, with the same code.
  """
  if _job:
    _job.leave(f"{names([_job.me])} ended: {message}", code)


def await_reason() -> None:
  """After a failed collective: waits for the news of a lost process, which end this one; returns if there are none."""
  if _job:
    time.sleep(SILENT_S + 4 * BEAT_S)


def finish() -> None:
  """The good end: waits for all, then leaves JAX's service."""
  global _job
  if _job:
    _polls.submit(bool).result()  # what was asked last is answered everywhere
    barrier("the end of the run")
    _job.over.set()
    _job = None
    import jax

    jax.distributed.shutdown()


# ---- the beginning, and being told to stop ----


def begin(training: bool = True) -> None:
  """Training begins: what fails from now on is no mistake of the user's that was found at the start. False: not yet."""
  (_begun.set if training else _begun.clear)()


def begun() -> bool:
  """Whether `begin` was called."""
  return _begun.is_set()


def heed_signals() -> None:
  """From now on SIGTERM, as preemption and schedulers send it, and Ctrl-C only make `stop_asked` true.

  To be called first of all: a process that is the first of its container gets no signal that it does not handle.
  Before training has begun there is nothing to save, and all processes end at once, with code 75. A second signal ends
  them at once and saves nothing: SIGTERM with the stacks of all threads and code 75, Ctrl-C with 130. A thread sees to
  that, for the main one may be within a program of the devices for minutes. SIGUSR1 prints the stacks of all threads.
  For the main thread.
  """
  faulthandler.register(signal.SIGUSR1, all_threads=True)
  reader, writer = socket.socketpair()
  writer.setblocking(False)
  heed_signals.keep = writer  # the system knows only its number
  signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: None)
  threading.Thread(target=_heed, args=(reader,), daemon=True).start()


def heed_no_more() -> None:
  """All is saved and said, and the exit code stands: as Python ends it puts the system's own handlers back, and a
  SIGTERM, which schedulers send to whoever is left, would make it 143. Before `heed_signals` nothing is done."""
  if hasattr(heed_signals, "keep"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _heed(reader: socket.socket) -> None:
  while data := reader.recv(1):
    interrupted = data[0] == signal.SIGINT
    name = "Ctrl-C" if interrupted else "SIGTERM"
    if data[0] not in (signal.SIGINT, signal.SIGTERM):
      continue
    if _told_to_stop.is_set():
      if not interrupted:
        faulthandler.dump_traceback(all_threads=True)
      _end_at_once(f"{name} again: ended at once, not saved", EXIT_INTERRUPTED if interrupted else EXIT_STOPPED)
    _told_to_stop.set()
    if not begun():
      _end_at_once(f"{name}: stopped before training began; nothing was changed", EXIT_STOPPED)
    say(
      f"{name}: sampling stops at its next look, an update is finished; then the run is saved and ends. Once more ends "
      "it at once"
    )


def _end_at_once(said: str, code: int) -> None:
  say(said)
  leave(said, code)
  os._exit(code)


def stop_asked() -> bool:
  """Whether any process was told to stop; all ask at the same points of the run, and get the same answer.

  (JAX's own `reached_preemption_sync_point` agrees on a step after the present one, and an iteration takes minutes.)
  """
  return _any_told("stop")


class StopPoll:
  """`stop_asked` for where it is asked often: each call answers what the processes have exchanged since the one before.

  So nobody waits for the others in the middle of sampling; all get the same answer, one look later.
  """

  def __init__(self):
    self._asked: concurrent.futures.Future[bool] | None = None

  def __call__(self) -> bool:
    if not _job:
      return _told_to_stop.is_set()
    answer = self._asked.result() if self._asked else False
    self._asked = _polls.submit(_any_told, "stop while sampling")
    return answer


_polls = concurrent.futures.ThreadPoolExecutor(1)  # one thread: all processes exchange in the same order


def _any_told(what: str) -> bool:
  return "true" in exchange(what, "true" if _told_to_stop.is_set() else "false", WORK_S)


# ---- inside ----


class _Job:
  """This process among the others."""

  def __init__(self, client, me: int, count: int):
    self.client, self.me, self.count = client, me, count
    self.hosts = ["?"] * count
    self.over = threading.Event()
    self._numbers: collections.Counter[str] = collections.Counter()
    self._lock = threading.Lock()
    self._said: dict[int, str] = {}  # last sign of life, by process
    self._reason, self._code = "", EXIT_ERROR  # why this process ends, and how

  def exchange(self, what: str, text: str, timeout_s: float) -> list[str]:
    with self._lock:
      number = self._numbers[what]
      self._numbers[what] += 1
    folder = lambda n: f"fipo/{what.replace('/', '_')}/{n}"
    self.client.key_value_set(f"{folder(number)}/{self.me}", f"={text}")
    here = threading.Event()
    threading.Thread(target=self._say_whom_it_waits_for, args=(what, folder(number), here), daemon=True).start()
    try:
      self.client.wait_at_barrier(folder(number), int(timeout_s * 1000))
    except RuntimeError as e:
      found = self._read(folder(number))
      missing = [k for k in range(self.count) if k not in found]
      if not missing:
        raise Missing(f"{names([self.me])} came too late to {what!r}: {_first_line(e)}") from e
      raise Missing(
        f"{names(missing)} did not arrive at {what!r} within {timeout_s:g} s; look at the output there, then start "
        "the same command on all hosts."
      ) from e
    finally:
      here.set()
    found = self._read(folder(number))
    if number:  # whoever is here has read the one before
      self.client.key_value_delete(f"{folder(number - 1)}/{self.me}")
    return [found[k][1:] for k in range(self.count)]

  def _say_whom_it_waits_for(self, what: str, folder: str, here: threading.Event) -> None:
    if here.wait(SAID_AFTER_S):
      return
    try:
      found = self._read(folder)
    except RuntimeError:
      return
    missing = [k for k in range(self.count) if k not in found]
    if missing and self.me == min(found, default=-1):
      print(f"waiting at {what!r} for {names(missing)}", flush=True)

  def _read(self, folder: str) -> dict[int, str]:
    return {int(key.rsplit("/", 1)[1]): text for key, text in self.client.key_value_dir_get(folder)}

  def watch(self) -> None:
    """Starts giving signs of life and looking for those of the others, each in a thread."""
    gone = f"{names([0])}, which holds the processes together, is gone, or " if self.me else ""
    _last_words(f"{gone}{names([self.me])} was aborted for the reason above; {RESUMES}")
    threading.Thread(target=self._beat, daemon=True).start()
    threading.Thread(target=self._look, daemon=True).start()

  def _beat(self) -> None:
    number = 0
    while not self.over.wait(BEAT_S if number else 0):
      number += 1
      try:
        self._say(f"ended: {self._code} {self._reason}" if self._reason else f"{number} {place()}")
        self._said = self._read("fipo/alive")
      except RuntimeError:  # no answer is no sign of life, of anyone
        continue

  def _say(self, text: str) -> None:
    self.client.key_value_set(f"fipo/alive/{self.me}", text, allow_overwrite=True)

  def _look(self) -> None:
    """Counts looks and not seconds, so that a machine that stood still itself accuses nobody."""
    before: dict[int, str] = {}
    silent: collections.Counter[int] = collections.Counter()
    while not self.over.wait(BEAT_S) and not self._reason:
      now = self._said
      if ended := next((text for text in now.values() if text.startswith("ended: ")), ""):
        code, reason = ended.removeprefix("ended: ").split(" ", 1)
        self._end(reason, code=int(code))
      for k in range(self.count):
        silent[k] = silent[k] + 1 if now.get(k) == before.get(k) else 0
      before = now
      lost = [k for k in range(self.count) if silent[k] * BEAT_S >= SILENT_S]
      if self.me in lost:  # what this process says does not arrive either
        self._end(f"{names([0])} has not answered {names([self.me])} for {SILENT_S:g} s; {RESUMES}")
      if lost:
        self._end(f"nothing was heard of {names(lost)} for {SILENT_S:g} s; {RESUMES}", lost)

  def _end(self, reason: str, lost=(), code: int = EXIT_LOST) -> None:
    say(f"error: {reason}")
    if before_end:
      before_end(reason)
    self.leave(reason, code, lost)
    os._exit(self._code)

  def leave(self, reason: str, code: int, lost=()) -> None:
    """Says why, and as process 0, on whom the store depends, waits until the others have said that they end too."""
    if not self._reason:
      self._reason, self._code = reason, code
    try:
      self._say(f"ended: {self._code} {self._reason}")
      for _ in range(5 if self.me == 0 else 0):
        said = self._read("fipo/alive")
        if all(said.get(k, "").startswith("ended: ") for k in range(self.count) if k not in lost):
          break
        time.sleep(BEAT_S)
    except RuntimeError:
      pass  # there is nobody to tell


def _first_line(error: BaseException) -> str:
  return str(error).strip().split("\n")[0][:300]


def _in_environment() -> int:
  """How many processes the environment names; 1 where JAX knows nothing of it."""
  from jax._src import clusters

  kinds = clusters.ClusterEnv._cluster_types
  try:
    here = next((kind for kind in kinds if not kind.opt_in_only_method and kind.is_env_present()), None)
    return here.get_process_count() if here else 1
  except Exception as e:
    raise ValueError(
      f"the environment does not say how many processes this run has ({_first_line(e)}); give --num_processes=1, or "
      "--coordinator, --num_processes and --process_id."
    ) from e


def _check_tasks() -> None:
  """ValueError where SLURM starts fewer tasks on a node than it has GPUs: JAX gives each task one of them.

  Source: jax/_src/clusters/cluster.py, local_device_ids = [SLURM_LOCALID] unless JAX_LOCAL_DEVICE_IDS is set.
  """
  env = os.environ
  if "SLURM_LOCALID" not in env or env.get("JAX_LOCAL_DEVICE_IDS") or env.get("JAX_PLATFORMS", "").startswith("cpu"):
    return
  groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", env.get("SLURM_STEP_TASKS_PER_NODE", ""))  # as in 8(x2),4
  tasks = [int(n) for n, times in groups for _ in range(int(times or 1))]
  node = int(env.get("SLURM_NODEID", 0))
  gpus = int(env.get("SLURM_GPUS_ON_NODE") or len(glob.glob("/dev/nvidia[0-9]*")))
  if node < len(tasks) and tasks[node] < gpus:
    raise ValueError(
      f"SLURM starts {tasks[node]} of this run's tasks on a node with {gpus} GPUs, and each would use one: give srun "
      f"--ntasks-per-node={gpus}, or set JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(gpus)))} for one task a node."
    )


def _last_words(text: str) -> None:
  """What the process says if it is aborted. JAX does that from a thread of its own, with a stack trace: when not all
  processes come, and at once when process 0 is gone."""
  said = f"error: {text}\n".encode()

  @ctypes.CFUNCTYPE(None, ctypes.c_int)
  def on_abort(_):
    if _job and _job._reason:  # it was ending by itself, and has said why; process 0 was a little faster
      os._exit(_job._code)
    os.write(2, said)
    os._exit(EXIT_LOST)

  _last_words.keep = on_abort  # C holds no reference
  ctypes.CDLL(None).signal(signal.SIGABRT, on_abort)
