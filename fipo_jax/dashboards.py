"""The metrics of a run where teams look at them: TensorBoard's event files, and Weights & Biases.

    workdir/tensorboard/    a new event file per start, by tensorboardX, to gs:// too; tensorboard --logdir=WORKDIR
    workdir/wandb.json      the run that W&B knows this one as; it goes on with it

Both get what metrics.jsonl gets, under its names: one without a "/" after its group (`GROUPS`), so that a board has ten
sections and not a hundred; docs/metrics.md explains them all. Only process 0 writes. A board that fails is said in a
line and ends no run: metrics.jsonl has everything.
"""

from __future__ import annotations

import fnmatch
import importlib
import importlib.util
import itertools
import json
import math
import numbers
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from fipo_jax import console, paths, processes

# Group -> patterns of the names in it; the first group that fits.
GROUPS = {
  "reward": ("accuracy", "score*", "reward*", "overlong_penalty", "no_answer"),
  "length": ("response_length*", "truncated*", "prompt_length*", "sequence_tokens_max"),
  "policy": ("entropy", "policy_kl", "*clip_fraction", "*_ratio_*", "rejected_*", "reference_kl", "sampler_*",
             "waited_fraction", "nll"),
  "future_kl": ("future_kl_*", "weight_*", "raw_weight_*", "participation_fraction"),
  "advantage": ("advantage_*", "accuracy_trained", "value_*", "returns_mean"),
  "update": ("loss", "grad_norm", "learning_rate", "*_updates", "row_fill", "rows_used"),
  "sampling": ("draws", "prompts_drawn", "groups_*", "keep_rate", "token*"),
  "machine": ("*_memory_*", "*_tflops", "goodput", "grace_s"),
}  # fmt: skip
FLUSH_S = 120.0  # between two flushes to a bucket: each writes the whole file anew
FILE_BYTES = 16 << 20  # of an event file in a bucket, after which the next one is begun

_files = itertools.count(1)  # event files of one second need names of their own, in order


def tag(name: str) -> str:
  """A metric's name on a board: "entropy" is "policy/entropy"; what has a group already keeps its name."""
  if "/" in name:
    return name
  fits = lambda patterns: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
  return f"{next((group for group, patterns in GROUPS.items() if fits(patterns)), 'other')}/{name}"


def shown(values: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
  """(numbers, texts) by tag: what a board can show of a step.

  Of values per mini-batch the first and the last: Future-KL is 0 in the one by construction, and how far the policy has
  moved is seen in the other. Lists of texts (alarms, changes) are texts. A number that is not finite was not measured,
  and other lists (the timeline of a rollout) are the report's.
  """
  scalars, texts = {}, {}
  for name, value in values.items():
    if hasattr(value, "tolist"):  # of NumPy or JAX
      value = value.tolist()
    if isinstance(value, numbers.Real):
      scalars[tag(name)] = float(value)
    elif isinstance(value, Sequence) and value and all(isinstance(v, str) for v in value):
      texts[f"run/{name}"] = value if isinstance(value, str) else "  \n".join(value)
    elif name.startswith("minibatch/") and isinstance(value, Sequence) and value:
      scalars |= {f"{name}/first": float(value[0]), f"{name}/last": float(value[-1])}
  return {name: value for name, value in scalars.items() if math.isfinite(value)}, texts


def check(log) -> None:
  """ValueError when a board that the config's section `log` names cannot be had here."""
  if log.wandb and processes.is_first() and importlib.util.find_spec("wandb") is None:
    raise ValueError(f"log.wandb={log.wandb!r}: wandb is not installed; `pip install wandb`, or log.wandb=''.")


class Board(Protocol):
  """One place that shows metrics. name: for messages."""

  name: str

  def write(self, step: int, values: Mapping[str, Any]) -> None: ...

  def flush(self) -> None: ...

  def close(self) -> None: ...


class Boards:
  """The boards of a run behind one `write`; one that fails is said, and left out until the next start."""

  def __init__(self, boards: Sequence[Board] = ()):
    self._boards = list(boards)

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Adds a step."""
    self._each(lambda board: board.write(step, values))

  def flush(self) -> None:
    """Has everything written leave this process; called before a checkpoint, so that no step that is kept is lost."""
    self._each(lambda board: board.flush())

  def close(self) -> None:
    """The end of the run, or of this start of it."""
    self._each(lambda board: board.close())
    self._boards = []

  def _each(self, use) -> None:
    for board in list(self._boards):
      try:
        use(board)
      except Exception as error:  # noqa: BLE001 - of disks, buckets and clients, each with errors of its own
        self._boards.remove(board)
        console.say(f"{board.name} fails, and the run goes on without it: {_line(error)}")


def open_boards(cfg, *, step: int, rollbacks: int, back: bool = False) -> Boards:
  """The boards that a run's config asks for.

  Args: step: iterations done; what boards have of later ones is replaced. rollbacks: how often the run was taken back.
    back: whether the user has it go on from an older step.
  Raises: ValueError with one line for a board that cannot be opened.
  """
  boards: list[Board] = []
  if processes.is_first() and cfg.log.tensorboard:
    boards.append(TensorBoard(paths.of(cfg.workdir) / "tensorboard", step + 1 if step else 0))
  if processes.is_first() and cfg.log.wandb:
    config = json.loads(cfg.to_json())
    boards.append(WandB(cfg.log.wandb, cfg.workdir, step, config=config, rollbacks=rollbacks, back=back))
  return Boards(boards)


class _Object:
  """An event file in a bucket, which is written anew as a whole at each flush.

  (tensorboardX's own fails for ever once an answer of the bucket was lost: it insists on the generation it knows.)
  """

  def __init__(self, path: str):
    self.path, self.content = path, bytearray()

  def write(self, data: bytes) -> None:
    self.content += data

  def flush(self) -> None:
    paths.write(self.path, bytes(self.content), patient=False)

  def close(self) -> None:
    """Comes after a flush."""


class _Bucket:
  """What tensorboardX makes event files of a bucket with."""

  open = staticmethod(_Object)
  directory_check = staticmethod(lambda path: None)


class TensorBoard:
  """An event file that begins by taking back what earlier ones have of the steps from `first_step` on.

  Locally each step is on the disk before the next begins. To gs:// the whole file is written, every `FLUSH_S` seconds
  and before checkpoints; where that fails, again at the next time.
  """

  name = "TensorBoard"

  def __init__(self, folder, first_step: int):
    # Its import takes half a second, and the run's first line should not wait for it.
    from tensorboardX import event_file_writer, record_writer, summary
    from tensorboardX.proto import event_pb2, summary_pb2

    record_writer.register_writer_factory("gs", _Bucket)
    self._event, self._summary, self._text = event_pb2.Event, summary_pb2.Summary, summary.text
    # Its writer with a queue would wait for ever once the thread behind it has met a full disk.
    self._open = event_file_writer.EventsWriter
    self._folder, self._remote, self._failed = folder, paths.is_remote(folder), False
    try:
      paths.make_folder(folder)
      self._next_file()
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._write(self._event(wall_time=time.time(), step=first_step, session_log=start))
      self._writer.flush()
    except Exception as error:
      raise ValueError(
        f"log.tensorboard=True: no event file can be written to {folder}: {_line(error)}; mend it, or "
        "log.tensorboard=False."
      ) from error
    self._flushed = time.monotonic()

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    scalars, texts = shown(values)
    record = self._summary(value=[self._summary.Value(tag=name, simple_value=value) for name, value in scalars.items()])
    for name, text in texts.items():
      record.MergeFrom(self._text(name, text))
    self._write(self._event(wall_time=time.time(), step=step, summary=record))
    if not self._remote or time.monotonic() - self._flushed >= FLUSH_S:
      self.flush()

  def flush(self) -> None:
    self._flushed = time.monotonic()
    try:
      self._writer.flush()
    except Exception as error:
      if not self._remote:
        raise
      if not self._failed:
        console.say(f"TensorBoard: {self._folder} cannot be written now, and is tried again: {_line(error)}")
      self._failed = True
      return
    if self._failed:
      console.say(f"TensorBoard: {self._folder} is written again")
    self._failed = False
    if self._remote and self._bytes > FILE_BYTES:
      self._next_file()

  def close(self) -> None:
    self._writer.close()

  def _next_file(self) -> None:
    own = f".{os.getpid()}.{next(_files):06d}"  # after the second and the host; files are read in the order of names
    self._writer, self._bytes = self._open(os.path.join(str(self._folder), "events"), own), 0

  def _write(self, event) -> None:
    self._writer.write_event(event)
    self._bytes += event.ByteSize()


class WandB:
  """A run of Weights & Biases, the same one at each start.

  W&B never changes a step that it has. What a resumed run computes again is the same to the last bit, so those steps
  are not sent again. Where they will be others, after a rollback or when the user goes back, another W&B run begins,
  in the same group.
  """

  name = "W&B"

  def __init__(self, project: str, workdir, step: int, *, config: dict, rollbacks: int, back: bool):
    wandb = importlib.import_module("wandb")
    record = paths.of(workdir) / "wandb.json"
    known = json.loads(paths.read_text(record)) if paths.is_file(record) else {}
    if known.get("project") != project:
      known = {}
    if not known or known["rollbacks"] != rollbacks or back:
      known = {
        "project": project, "id": uuid.uuid4().hex[:12], "number": known.get("number", 0) + 1, "rollbacks": rollbacks
      }  # fmt: skip
      paths.write(record, json.dumps(known) + "\n")
    name = os.path.basename(os.path.abspath(str(workdir)))
    try:
      self._run = wandb.init(
        project=project, id=known["id"], resume="allow", config=config, group=name,
        name=name if known["number"] == 1 else f"{name}.{known['number']}",
        dir=None if paths.is_remote(workdir) else str(workdir),
        settings=wandb.Settings(console="off"),  # the terminal is ours
      )  # fmt: skip
    except Exception as error:
      raise ValueError(
        f"log.wandb={project!r}: W&B refuses or cannot be reached: {_line(error)}; `wandb login`, WANDB_MODE=offline "
        "in the environment, or log.wandb=''."
      ) from error
    self._first = self._run.starting_step
    if self._first > step + 1:
      console.say(f"W&B keeps what it has of steps {step + 1} to {self._first - 1}, which are computed again")

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    if step < self._first:
      return
    scalars, texts = shown(values)
    self._run.log(scalars | texts, step=step)

  def flush(self) -> None:
    """Nothing to do: a process of W&B's own has what was logged."""

  def close(self) -> None:
    self._run.finish()


def _line(error: BaseException) -> str:
  return " ".join(str(error).split())[:300] or type(error).__name__
