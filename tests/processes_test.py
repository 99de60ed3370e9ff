"""Many processes on this machine, over loopback and gloo: one run, agreed on before it starts, and ended together."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from fipo_jax import loop, parts, processes, sharding
from fipo_jax.models import hf
from tests import loop_test
from tests.loop_test import ROOT, flags_of, lines, model, rounding, small, without_time  # noqa: F401

# Right by a coin that only the text decides; leaves a mark of the process that had it verified.
VERIFIER = """
import os, pathlib
def verify(response, answer, extras):
  with open(pathlib.Path(__file__).parent / f"verified-{os.getppid()}", "a") as file:
    file.write("x")
  return float(sum(map(ord, response)) % 2)
"""


def settings(model, workdir, **more):  # noqa: F811
  return loop_test.settings(model, workdir, verifier=VERIFIER, **{"checkpoint.every": 1} | more)


def environment(devices):
  """Of a launched process, which then finds the programs in the cache that were compiled for as many devices here."""
  # run.py sets this flag itself; set twice, it would give the programs other names.
  own = "--xla_cpu_enable_concurrency_optimized_scheduler"
  flags = [flag for flag in os.environ["XLA_FLAGS"].split() if not flag.startswith(own)]
  return {
    **os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "XLA_FLAGS": " ".join(flags)
  }  # fmt: skip


def launch(values, *more, devices=1, cwd=ROOT):
  program = [sys.executable, str(ROOT / "launch/run.py"), f"--config={ROOT}/experiments/quickstart.py"]
  return subprocess.Popen(
    [*program, *flags_of(values), *more], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    env=environment(devices),
  )  # fmt: skip


def free_port():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def launch_all(number, devices, values, *, each=lambda k: {}, cwd=lambda k: ROOT):
  """One run of so many processes; each(k), cwd(k): what is different for process k."""
  where = f"--coordinator=127.0.0.1:{free_port()}"
  return [
    launch(
      values | each(k), where, f"--num_processes={number}", f"--process_id={k}", devices=devices, cwd=cwd(k)
    )  # fmt: skip
    for k in range(number)
  ]


def ends(job, *, code, timeout=300):
  """(stdout, stderr) of each process, all of which end with this exit code."""
  said = [p.communicate(timeout=timeout) for p in job]
  assert [p.returncode for p in job] == [code] * len(job), said
  return said


def until(condition, job, timeout=300):
  deadline = time.monotonic() + timeout
  while not condition():
    assert all(p.poll() is None for p in job), [p.communicate() for p in job if p.poll() is not None]
    assert time.monotonic() < deadline
    time.sleep(0.005)


def steps_logged(workdir):
  path = workdir / "metrics.jsonl"
  return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(scope="session")
def alone(model, tmp_path_factory):  # noqa: F811
  """The workdir of a run of three steps in this process, with its eight devices."""
  workdir = tmp_path_factory.mktemp("alone") / "run"
  loop.train(small(model, workdir))
  return workdir


def check_same(workdir, other, steps):
  """Metrics and samples of two runs. Sums over devices are added up in another order by another backend."""
  ours, theirs = (without_time(lines(w))[:steps] for w in (workdir, other))
  assert len(ours) == len(theirs) == steps
  for a, b in zip(ours, theirs, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      if name.startswith("weight_") and name.endswith("_fraction"):
        continue  # in the first mini-batch Future-KL is 0 but for rounding, whose signs are counted
      if isinstance(a[name], (float, list)) and name != "alarms":
        x, y = (np.array(value, float) for value in (a[name], b[name]))
        # Means over a mini-batch of 8 responses of about 12 tokens, most of log-probabilities.
        allowed = 0.0 if name == "learning_rate" else rounding(tokens=96) / 96 * np.maximum(1, abs(y))
        assert (abs(x - y) <= allowed).all(), (name, x, y, allowed)
      else:
        assert a[name] == b[name], name
  said = lambda w: [(r["step"], r["prompt"], r["response"]) for r in lines(w, "samples.jsonl") if r["step"] <= steps]
  assert said(workdir) == said(other)


def check_output(*outputs):
  """The first process alone has said something."""
  gloo = ("[Gloo]", "connected to", "peer ranks")  # its threads write over each other's lines
  ours = lambda line: line.strip() and not any(part in line for part in gloo)
  first, *others = ([line for line in out.splitlines() if ours(line)] for out in outputs)
  assert first and others == [[]] * len(others)


def check_shares(folder, number):
  """Each process had its share of the responses verified."""
  shares = sorted(path.stat().st_size for path in folder.glob("verified-*"))
  assert len(shares) == number and shares[-1] - shares[0] <= 0.2 * shares[-1]


def check_saved_is_exported(cfg, step):
  """What many processes saved and exported is the same on the eight devices here, bit for bit."""
  mesh = sharding.make_mesh(cfg.mesh)
  _, built = parts.open_model(cfg)
  saver = parts.open_checkpointer(cfg)
  state, _ = saver.restore(step, parts.open_steps(cfg, built, mesh)[2])
  saver.close()
  exported = hf.load(f"{cfg.workdir}/export", built, mesh)
  jax.tree.map(np.testing.assert_array_equal, *(jax.tree.map(np.asarray, t) for t in (state.params, exported)))


def kill_one(victim, job, workdir, steps):
  """Kills one of two processes after so many steps, and sees the other end with its name; what both have said."""
  until(lambda: steps_logged(workdir) >= steps, job)
  job[victim].kill()
  # Long before the others would have given up waiting for it at a barrier.
  ((_, said),) = ends([job[1 - victim]], code=processes.EXIT_LOST, timeout=processes.WAIT_S / 2)
  errors = [line for line in said.splitlines() if line.startswith("error: ")]
  assert len(errors) == 1 and f"process {victim} ({socket.gethostname()})" in errors[0] and "resumes" in errors[0]
  job[victim].communicate()
  assert not (workdir / "result.json").exists()


def test_two_processes_of_which_one_is_killed_are_one_run(model, alone, tmp_path):  # noqa: F811
  """One process goes on, and two start on what it has finished: each is the run of one process.

  Moments in the host's memory change no bit; each process has its own.
  """
  workdir, values = tmp_path / "run", settings(model, tmp_path / "run", **{"optimizer.offload": True})
  kill_one(1, launch_all(2, 4, values), workdir, steps=2)
  check_same(workdir, alone, 2)
  check_shares(tmp_path, 2)
  cfg = small(model, workdir, verifier=VERIFIER)
  loop.train(cfg)
  check_same(workdir, alone, 3)
  exported = (workdir / "export/model.safetensors").read_bytes()
  check_output(*(out for out, _ in ends(launch_all(2, 4, values), code=0)))
  check_same(workdir, alone, 3)
  assert (workdir / "export/model.safetensors").read_bytes() == exported
  check_saved_is_exported(cfg, 3)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
def test_many_processes_are_one_run(model, alone, tmp_path, number):  # noqa: F811
  workdir = tmp_path / "run"
  values = settings(model, workdir, steps=2)
  check_output(*(out for out, _ in ends(launch_all(number, 8 // number, values), code=0)))
  check_same(workdir, alone, 2)
  check_shares(tmp_path, number)
  check_saved_is_exported(small(model, workdir, verifier=VERIFIER, steps=2), 2)
  ends(launch_all(number, 8 // number, values | {"steps": 3}), code=0)
  check_same(workdir, alone, 3)


@pytest.mark.slow
def test_the_first_process_killed_ends_the_others_and_a_restart_resumes(model, alone, tmp_path):  # noqa: F811
  workdir = tmp_path / "run"
  values = settings(model, workdir)
  kill_one(0, launch_all(2, 4, values), workdir, steps=1)
  ends(launch_all(2, 4, values), code=0)
  check_same(workdir, alone, 3)


@pytest.mark.slow
def test_sigterm_to_one_process_saves_and_stops_all(model, alone, tmp_path):  # noqa: F811
  workdir = tmp_path / "run"
  values = settings(model, workdir, **{"checkpoint.every": 10})
  job = launch_all(2, 4, values)
  until(lambda: steps_logged(workdir) >= 1, job)
  job[1].send_signal(signal.SIGTERM)
  (out, _), (_, err) = ends(job, code=75)
  assert "stopped as asked, saved after step" in out and "SIGTERM" in err
  assert steps_logged(workdir) < 3
  ends(launch_all(2, 4, values), code=0)
  check_same(workdir, alone, 3)


@pytest.mark.parametrize(
  "field, one, other", [("optimizer.learning_rate", 1e-4, 2e-4), pytest.param("seed", 0, 1, marks=pytest.mark.slow)]
)
def test_another_config_is_told_before_any_collective(model, tmp_path, field, one, other):  # noqa: F811
  values = settings(model, tmp_path / "run")
  job = launch_all(2, 1, values, each=lambda k: {field: (one, other)[k]})
  host = socket.gethostname()
  for _, err in ends(job, code=processes.EXIT_MISTAKE, timeout=300):
    assert f"do not agree on the run: config.{field}: {one} on process 0 ({host}) of 2, {other} on process 1" in err
    assert "Traceback" not in err
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("step", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_folders_that_only_have_the_same_name_are_told_apart(model, tmp_path, step):  # noqa: F811
  """As on hosts with disks of their own: one of them has a checkpoint, or none has."""
  values = settings(model, tmp_path / "run") | {"workdir": "runs/one"}
  for k in range(2):
    (tmp_path / f"host{k}").mkdir()
  if step:
    (tmp_path / f"host0/runs/one/checkpoints/{step}").mkdir(parents=True)
    (tmp_path / f"host0/runs/one/checkpoints/{step}/_CHECKPOINT_METADATA").write_text("{}")
  job = launch_all(2, 1, values, cwd=lambda k: tmp_path / f"host{k}")
  for _, err in ends(job, code=processes.EXIT_MISTAKE, timeout=300):
    assert "do not agree on the checkpoints: " in err and '"another folder" on process 1' in err
    assert (f"newest step: {step} on process 0" in err) == (step > 0)


def test_copies_of_a_file_that_differ_are_told(model, tmp_path):  # noqa: F811
  workdir = tmp_path / "run"
  for k in range(2):
    (tmp_path / f"host{k}").mkdir()
    (tmp_path / f"host{k}/verifier.py").write_text(f"def verify(response, answer, extras): return {k}.0\n")
  values = settings(model, workdir) | {"reward.file": "verifier.py"}
  for _, err in ends(launch_all(2, 1, values, cwd=lambda k: tmp_path / f"host{k}"), code=2, timeout=300):
    assert "do not agree on the files that they have read: reward.file: " in err


SCRIPT = """
import os, signal, sys, time
from fipo_jax import processes
k, n, port, what = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if what.startswith("told"):
  processes.heed_signals()
try:
  processes.start(*(() if what == "slurm" else (f"127.0.0.1:{port}", n, k)), wait_s=4)
  assert (processes.index(), processes.count(), processes.is_first()) == (k, n, k == 0)
  for i in range(3):
    assert processes.exchange("letters", "abc"[k] * i) == [letter * i for letter in "abc"[:n]]
  assert processes.from_first("a value", {"k": [k]}) == {"k": [0]}
  processes.agree("the same", {"a": 1})
  try:
    processes.agree("the seed", {"a": 1, "seed": min(k, 1)})
    raise SystemExit("they agree")
  except ValueError as e:
    assert "do not agree on the seed: seed: 0 on process 0 (" in str(e) and ", 1 on process" in str(e)
  if what == "told":
    processes.begin()
    asked, answers = processes.StopPoll(), []
    for i in range(20):
      if k == 1 and i == 10:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
      answers.append(asked())
    assert answers[0] is False and answers[9] is False and answers[-1] is True, answers
    assert len(set(processes.exchange("answers", str(answers)))) == 1
  if what == "told early":
    if k == 1:
      os.kill(os.getpid(), signal.SIGTERM)
    processes.barrier("never" if k else "the next step", 100)
  if what == "wait" and k:
    processes.exchange("something else", "")  # it never comes to the barrier
  if what == "wait":
    processes.barrier("save step 12", 2)
  if what == "fail" and k == 1:
    raise ValueError("disk full.")
  if what == "fail":
    processes.barrier("the next step", 100)
  processes.finish()
except (ValueError, OSError) as e:
  print("error:", e)
  processes.leave(str(e))
  sys.stdout.flush()
  import os; os._exit(1)
"""


def scripts(number, what, started=None, env=lambda k: {}):
  port = free_port()
  return [
    subprocess.Popen(
      [sys.executable, "-c", SCRIPT, str(k), str(number), str(port), what],
      cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
      env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_PORT": str(port)} | env(k),
    )
    for k in range(started or number)
  ]  # fmt: skip


def test_processes_exchange_values():
  ends(scripts(3, "nothing"), code=0, timeout=300)


RESIZES = """
import dataclasses, sys
import jax, numpy as np
from fipo_jax import processes
processes.start(sys.argv[3], int(sys.argv[2]), int(sys.argv[1]))
from fipo_jax.models import PRESETS, make_model
from fipo_jax.rollout import ENGINES, Sampling, device
from fipo_jax.rollout.capacity import Shape
from fipo_jax.sharding import make_mesh
mesh = make_mesh(dict(data=2, fsdp=1, context=1, tensor=1))
engine = ENGINES["native"](
  make_model(PRESETS["tiny"]), mesh, slots=8, pad_id=0, max_prompt_tokens=12, max_response_tokens=24, page_tokens=4
)
with jax.set_mesh(mesh):
  made = device.Device(engine, Sampling(max_tokens=24), 4)
  made.allocate(Shape(4, 3, 2, 1))
  made.reshape(Shape(4, 7, 5, 1), np.full((2, 5), 2, np.int32).reshape(-1))
shapes = {kind: made.pools[kind][0]["k"].shape[0] for kind in ("own", "shared", "tail")}
assert shapes == {"own": 14, "shared": 10, "tail": 2}, shapes
"""


def test_a_cache_of_two_processes_is_resized():
  """Where pages go is in arrays of which a process sees its own part alone."""
  address = f"127.0.0.1:{free_port()}"
  jobs = [
    subprocess.Popen(
      [sys.executable, "-c", RESIZES, str(k), "2", address], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      text=True, env=environment(1),
    )
    for k in range(2)
  ]  # fmt: skip
  ends(jobs, code=0, timeout=300)


def test_slurm_says_who_is_who():
  slurm = {"JOB_ID": 7, "STEP_NODELIST": "localhost", "NTASKS": 2}
  env = lambda k: {f"SLURM_{n}": str(v) for n, v in (slurm | {"PROCID": k, "LOCALID": 0}).items()}
  ends(scripts(2, "slurm", env=env), code=0, timeout=300)


@pytest.mark.parametrize(
  ("more", "refused"),
  [
    ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, "SLURM starts 1 of this run's tasks on a node with 8 GPUs"),
    ({"SLURM_STEP_TASKS_PER_NODE": "8,4", "SLURM_NODEID": "1"}, "--ntasks-per-node=8, or set JAX_LOCAL_DEVICE_IDS=0,1"),
    ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, ""),
    ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "JAX_LOCAL_DEVICE_IDS": "0,1,2,3,4,5,6,7"}, ""),
    ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "JAX_PLATFORMS": "cpu"}, ""),
  ],
)
def test_slurm_may_not_leave_gpus_idle(monkeypatch, more, refused):
  """Each task gets one GPU from JAX: one task on a node of eight would be paid for eight times."""
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  for name, value in ({"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_GPUS_ON_NODE": "8"} | more).items():
    monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match=re.escape(refused)) if refused else contextlib.nullcontext():
    processes._check_tasks()


def test_one_task_of_slurm_is_one_process(monkeypatch):
  for name, value in {"JOB_ID": 7, "STEP_NODELIST": "localhost", "NTASKS": 1, "PROCID": 0, "LOCALID": 0}.items():
    monkeypatch.setenv(f"SLURM_{name}", str(value))
  processes.start()
  assert (processes.count(), processes.exchange("a", "b"), processes.stop_asked()) == (1, ["b"], False)


def test_a_barrier_names_who_is_missing():
  (out, _), (_, err) = ends(scripts(2, "wait"), code=1, timeout=300)
  missing = f"process 1 ({socket.gethostname()}) of 2 did not arrive at 'save step 12' within 2 s"
  assert f"error: {missing}" in out
  assert f"error: process 0 ({socket.gethostname()}) of 2 ended: {missing}" in err


def test_who_fails_tells_the_others_why():
  (_, err), (out, _) = ends(scripts(2, "fail"), code=1, timeout=300)
  assert out == "error: disk full.\n"
  assert f"error: process 1 ({socket.gethostname()}) of 2 ended: disk full.\n" in err


def test_all_hear_at_the_same_look_that_one_was_told_to_stop():
  """The signal comes after JAX has joined the processes, which would take it for a service of its own."""
  for _, err in ends(scripts(2, "told"), code=0, timeout=300):
    assert "Traceback" not in err


def test_told_to_stop_before_training_all_end():
  """With the code of the one that was told: what comes first decides what a scheduler does."""
  (_, other), (_, told) = ends(scripts(2, "told early"), code=processes.EXIT_STOPPED, timeout=300)
  assert "SIGTERM: stopped before training began; nothing was changed" in told
  assert "ended: SIGTERM: stopped before training began" in other


def test_a_start_without_the_others():
  ((_, err),) = ends(scripts(2, "nothing", started=1), code=processes.EXIT_LOST, timeout=300)
  assert "error: the processes of this run (2, at 127.0.0.1:" in err and "did not all come together within 4 s" in err


def test_half_of_the_flags():
  with pytest.raises(ValueError, match="--coordinator='' --num_processes=2 --process_id=-1: give all three"):
    processes.start("", 2, -1)


LATE = """
import os, signal, sys
from fipo_jax import processes
processes.heed_signals()
class Late:
  def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGTERM):
    kill(pid, number)  # Python has put the system's handlers back
late = Late()
processes.heed_no_more()
sys.exit(75)
"""


def test_an_exit_code_stands_while_python_ends():
  assert subprocess.run([sys.executable, "-c", LATE], cwd=ROOT).returncode == 75


SIGNALS = """
import os, signal, sys, threading, time
from fipo_jax import processes
processes.heed_signals()
if "begun" in sys.argv:
  processes.begin()
print("ready", flush=True)
while "asked" not in sys.argv or not processes.stop_asked():
  time.sleep(0.01)
print("stopped", flush=True)
"""


@pytest.mark.parametrize(
  ("arguments", "signals", "code", "said"),
  [
    (["begun", "asked"], ["TERM"], 0, "SIGTERM: sampling stops at its next look, an update is finished; then the run"),
    (["begun", "asked"], ["INT"], 0, "Ctrl-C: sampling stops at its next look, an update is finished; then the run"),
    ([], ["TERM"], 75, "SIGTERM: stopped before training began; nothing was changed"),
    ([], ["INT"], 75, "Ctrl-C: stopped before training began; nothing was changed"),
    (["begun"], ["INT", "INT"], 130, "Ctrl-C again: ended at once, not saved"),
    (["begun"], ["TERM", "TERM"], 75, "SIGTERM again: ended at once, not saved"),
  ],
)
def test_signals(arguments, signals, code, said):
  """Also where the main thread sleeps in a call that no handler interrupts."""
  job = subprocess.Popen([sys.executable, "-c", SIGNALS, *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE)  # fmt: skip
  assert job.stdout.readline() == "ready\n"
  err = ""
  for name in signals:
    job.send_signal(getattr(signal, f"SIG{name}"))
    if len(signals) > 1 and not err:
      err = job.stderr.readline()
  out, rest = job.communicate(timeout=60)
  assert job.returncode == code and said in err + rest
  assert ("stopped" in out) == (code == 0)
  assert ("Thread 0x" in rest) == (signals == ["TERM", "TERM"])  # the stacks of all threads
