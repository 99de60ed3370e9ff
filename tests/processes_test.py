"""Many processes on this machine, over loopback and gloo: one run, agreed on before it starts, and ended together."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from fipo_jax import assemble, config, processes, sharding
from fipo_jax.data.tokenizer import characters
from fipo_jax.models import hf
from launch import run
from tests.loop_test import flags_of, lines, without_time

ROOT = pathlib.Path(__file__).resolve().parent.parent
ALPHABET = "0123456789 +-=\n:AnswerChckoy"
# Right by a coin that only the text decides; leaves a mark of the process that had it verified.
VERIFIER = """
import os, pathlib
def verify(response, answer, extras):
  with open(pathlib.Path(__file__).parent / f"verified-{os.getppid()}", "a") as file:
    file.write("x")
  return float(sum(map(ord, response)) % 2)
"""


@pytest.fixture(scope="session")
def model(tmp_path_factory):
  """A directory with a model of two layers and 48 units."""
  folder = tmp_path_factory.mktemp("model") / "export"
  shutil.copytree(ROOT / "tests/golden/qwen2/tied_mqa", folder)
  characters(ALPHABET).save(folder)
  return folder


def settings(model, workdir, **more):
  verifier = pathlib.Path(workdir).parent / "verifier.py"
  verifier.write_text(VERIFIER)
  return {
    "workdir": str(workdir), "model.path": str(model), "model.base_experiment": "", "reward.file": str(verifier),
    "steps": 3, "data.size": 64, "rollout.max_response_tokens": 12, "rollout.slots": 4, "log.samples": 1,
    "rollout.samples_per_prompt": 4, "batch.prompts": 4, "batch.minibatch_prompts": 2, "batch.row_tokens": 36,
    "batch.micro_rows": 8, "eval.prompts": 8, "eval.every": 0, "checkpoint.every": 1, "log.report": False,
    "reward.workers": 1, "compile_cache": "",  # conftest's, if any
  } | more  # fmt: skip


def launch(values, *more, devices=1, cwd=ROOT):
  program = [sys.executable, str(ROOT / "launch/run.py"), f"--config={ROOT}/experiments/quickstart.py"]
  return subprocess.Popen(
    [*program, *flags_of(values), *more], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
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
def alone(model, tmp_path_factory):
  """The workdir of a run of three steps in one process with four devices."""
  workdir = tmp_path_factory.mktemp("alone") / "run"
  ends([launch(settings(model, workdir), devices=4)], code=0)
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
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5, err_msg=name)
      else:
        assert a[name] == b[name], name
  said = lambda w: [(r["step"], r["prompt"], r["response"]) for r in lines(w, "samples.jsonl") if r["step"] <= steps]
  assert said(workdir) == said(other)


def kill_one(victim, model, workdir, **more):
  """Starts a run of two processes, kills one after its first step, and sees the other end with its name."""
  job = launch_all(2, 2, settings(model, workdir, **more))
  until(lambda: steps_logged(workdir) >= 1, job)
  job[victim].kill()
  began = time.monotonic()
  (_, said), = ends([job[1 - victim]], code=1, timeout=90)
  assert time.monotonic() - began < 60
  errors = [line for line in said.splitlines() if line.startswith("error: ")]
  assert len(errors) == 1 and f"process {victim} ({socket.gethostname()})" in errors[0] and "resumes" in errors[0]
  job[victim].communicate()
  assert not (workdir / "result.json").exists()


def check_run_of_many(number, devices, model, alone, tmp_path, **more):
  workdir = tmp_path / "run"
  of = lambda steps: settings(model, workdir, steps=steps, **more)
  for path in tmp_path.glob("verified-*"):
    path.unlink()
  first, *others = ends(launch_all(number, devices, of(2)), code=0)
  gloo = ("[Gloo]", "connected to", "peer ranks")  # its threads write over each other's lines
  ours = lambda line: line.strip() and not any(part in line for part in gloo)
  said = [[line for line in out.splitlines() if ours(line)] for out, _ in (first, *others)]
  assert any("step 2/2" in line for line in said[0]) and said[1:] == [[]] * (number - 1)
  check_same(workdir, alone, 2)
  # Each had its share verified.
  shares = sorted(path.stat().st_size for path in tmp_path.glob("verified-*"))
  assert len(shares) == number and shares[-1] - shares[0] <= 0.2 * shares[-1]
  # What they saved is, on the eight devices here, bit for bit what they exported.
  c = run.load_experiment(str(ROOT / "experiments/quickstart.py"))
  c.update_from_flattened_dict(of(2) | {"data.size": 64})
  config.validate(c)
  mesh = sharding.make_mesh(c.mesh)
  tokenizer, built = assemble.open_model(c)
  saver = assemble.open_checkpointer(c)
  state, _ = saver.restore(2, assemble.open_steps(c, built, mesh)[2])
  saver.close()
  exported = hf.load(workdir / "export", built, mesh)
  jax.tree.map(np.testing.assert_array_equal, *(jax.tree.map(np.asarray, t) for t in (state.params, exported)))
  # One process goes on with it.
  ends([launch(of(3), devices=4)], code=0)
  check_same(workdir, alone, 3)


def test_two_processes_of_which_one_was_killed_are_one_run(model, alone, tmp_path):
  """Kill, restart, and go on with one process. Moments in the host's memory change no bit: each process has its own."""
  more = {"optimizer.offload": True}
  kill_one(1, model, tmp_path / "run", steps=2, **more)
  check_run_of_many(2, 2, model, alone, tmp_path, **more)


@pytest.mark.slow
def test_two_processes_are_one_run(model, alone, tmp_path):
  check_run_of_many(2, 2, model, alone, tmp_path)


@pytest.mark.slow
def test_four_processes_are_one_run(model, alone, tmp_path):
  check_run_of_many(4, 1, model, alone, tmp_path)


@pytest.mark.slow
def test_the_first_process_killed_ends_the_others_and_a_restart_resumes(model, alone, tmp_path):
  workdir = tmp_path / "run"
  kill_one(0, model, workdir)
  ends(launch_all(2, 2, settings(model, workdir)), code=0)
  check_same(workdir, alone, 3)


@pytest.mark.slow
def test_sigterm_to_one_process_saves_and_stops_all(model, alone, tmp_path):
  workdir = tmp_path / "run"
  values = settings(model, workdir, **{"checkpoint.every": 10})
  job = launch_all(2, 2, values)
  until(lambda: steps_logged(workdir) >= 1, job)
  job[1].send_signal(signal.SIGTERM)
  (out, _), (_, err) = ends(job, code=75)
  assert "stopped as asked, saved after step" in out and "SIGTERM" in err
  assert steps_logged(workdir) < 3
  ends(launch_all(2, 2, values), code=0)
  check_same(workdir, alone, 3)


@pytest.mark.parametrize(
  "field, one, other", [("optimizer.learning_rate", 1e-4, 2e-4), pytest.param("seed", 0, 1, marks=pytest.mark.slow)]
)
def test_another_config_is_told_before_any_collective(model, tmp_path, field, one, other):
  values = settings(model, tmp_path / "run")
  job = launch_all(2, 1, values, each=lambda k: {field: (one, other)[k]})
  host = socket.gethostname()
  for _, err in ends(job, code=1, timeout=60):
    assert f"do not agree on the run: config.{field}: {one} on process 0 ({host}) of 2, {other} on process 1" in err
    assert "Traceback" not in err
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("step", [2, 0])
def test_folders_that_only_have_the_same_name_are_told_apart(model, tmp_path, step):
  """As on hosts with disks of their own: one of them has a checkpoint, or none has."""
  values = settings(model, tmp_path / "run") | {"workdir": "runs/one"}
  for k in range(2):
    (tmp_path / f"host{k}").mkdir()
  if step:
    (tmp_path / f"host0/runs/one/checkpoints/{step}").mkdir(parents=True)
    (tmp_path / f"host0/runs/one/checkpoints/{step}/_CHECKPOINT_METADATA").write_text("{}")
  job = launch_all(2, 1, values, cwd=lambda k: tmp_path / f"host{k}")
  for _, err in ends(job, code=1, timeout=60):
    assert "do not agree on the checkpoints: " in err and '"another folder" on process 1' in err
    assert (f"newest step: {step} on process 0" in err) == (step > 0)


def test_copies_of_a_file_that_differ_are_told(model, tmp_path):
  workdir = tmp_path / "run"
  for k in range(2):
    (tmp_path / f"host{k}").mkdir()
    (tmp_path / f"host{k}/verifier.py").write_text(f"def verify(response, answer, extras): return {k}.0\n")
  values = settings(model, workdir) | {"reward.file": "verifier.py"}
  for _, err in ends(launch_all(2, 1, values, cwd=lambda k: tmp_path / f"host{k}"), code=1, timeout=60):
    assert "do not agree on the files that they have read: reward.file: " in err


SCRIPT = """
import sys
from fipo_jax import processes
k, n, port, what = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
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
  ends(scripts(3, "nothing"), code=0, timeout=60)


def test_slurm_says_who_is_who():
  slurm = {"JOB_ID": 7, "STEP_NODELIST": "localhost", "NTASKS": 2}
  env = lambda k: {f"SLURM_{n}": str(v) for n, v in (slurm | {"PROCID": k, "LOCALID": 0}).items()}
  ends(scripts(2, "slurm", env=env), code=0, timeout=60)


def test_one_task_of_slurm_is_one_process(monkeypatch):
  for name, value in {"JOB_ID": 7, "STEP_NODELIST": "localhost", "NTASKS": 1, "PROCID": 0, "LOCALID": 0}.items():
    monkeypatch.setenv(f"SLURM_{name}", str(value))
  processes.start()
  assert (processes.count(), processes.exchange("a", "b"), processes.stop_asked()) == (1, ["b"], False)


def test_a_barrier_names_who_is_missing():
  (out, _), (_, err) = ends(scripts(2, "wait"), code=1, timeout=60)
  missing = f"process 1 ({socket.gethostname()}) of 2 did not arrive at 'save step 12' within 2 s"
  assert f"error: {missing}" in out
  assert f"error: process 0 ({socket.gethostname()}) of 2 ended: {missing}" in err


def test_who_fails_tells_the_others_why():
  (_, err), (out, _) = ends(scripts(2, "fail"), code=1, timeout=60)
  assert out == "error: disk full.\n"
  assert f"error: process 1 ({socket.gethostname()}) of 2 ended: disk full.\n" in err


def test_a_start_without_the_others():
  ((_, err),) = ends(scripts(2, "nothing", started=1), code=1, timeout=60)
  assert "error: the processes of this run (2, at 127.0.0.1:" in err and "did not all come together within 4 s" in err


def test_half_of_the_flags(model, tmp_path):
  ((_, err),) = ends([launch(settings(model, tmp_path / "run"), "--num_processes=2")], code=1, timeout=60)
  assert "error: --coordinator='' --num_processes=2 --process_id=-1: give all three" in err


def test_sigterm_only_asks_to_stop(capsys):
  before = signal.getsignal(signal.SIGTERM)
  try:
    processes.heed_sigterm()
    assert not processes.stop_asked()
    os.kill(os.getpid(), signal.SIGTERM)
    assert processes.stop_asked() and "finished and saved, then the run stops" in capsys.readouterr().err
  finally:
    signal.signal(signal.SIGTERM, before)
    processes._told_to_stop.clear()
