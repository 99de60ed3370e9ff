"""Checkpoints: exact, atomic, restored onto another mesh."""

import errno
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from fipo_jax import processes, sharding
from fipo_jax.models import make_model
from fipo_jax.train import state
from fipo_jax.train.checkpoint import Checkpointer, folder_of, steps_in
from fipo_jax.train.optimizer import make_optimizer, schedule
from tests.step_test import TINY

MODEL = make_model(TINY)
OPTIMIZER = make_optimizer(
  schedule(learning_rate=1e-2, warmup_updates=0, total_updates=10, kind="constant"),
  name="adamw", b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1, clip_norm=1.0,
)  # fmt: skip


def abstract(**shape):
  devices = jax.devices()[: shape.get("fsdp", 1)]
  mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "context": 1, "tensor": 1} | shape, devices)
  return state.abstract(MODEL, OPTIMIZER, mesh)


def make(abstract_state, seed):
  params = jax.device_put(MODEL.init(jax.random.key(seed)), state.layout(abstract_state).params)
  return jax.jit(lambda p: state.create(p, OPTIMIZER), out_shardings=state.layout(abstract_state))(params)


def same(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_round_trip_onto_another_mesh_and_host_facts(tmp_path):
  one, four = abstract(), abstract(fsdp=4)
  s, host = make(one, 3), {"seconds": 1.25, "data": {"position": [1, 2]}, "before": {"accuracy": 0.5}}
  saver = Checkpointer(tmp_path, keep=2)
  assert saver.latest() is None
  saver.save(7, s, host)
  saver.close()
  loader = Checkpointer(tmp_path, keep=2)
  assert loader.latest() == 7
  restored, facts = loader.restore(7, four)
  same(s, restored)
  assert facts == host
  embed = restored.params["embed_VD"]
  assert embed.sharding.is_equivalent_to(four.params["embed_VD"].sharding, embed.ndim)
  loader.close()


def test_arrays_of_the_host(tmp_path):
  """Beside the JSON, where there are any; a step without is as those that earlier versions wrote."""
  s, tokens = make(abstract(), 0), np.arange(5, dtype=np.int32)
  saver = Checkpointer(tmp_path, keep=2)
  saver.save(1, s, {"surplus": {"groups": [{"step": 1}], "tokens": tokens}, "seconds": 2.0})
  saver.save(2, s, {"surplus": [], "seconds": 3.0})
  saver.close()
  loader = Checkpointer(tmp_path, keep=2)
  facts = loader.restore(1, abstract())[1]
  np.testing.assert_array_equal(facts["surplus"].pop("tokens"), tokens)
  assert facts == {"surplus": {"groups": [{"step": 1}]}, "seconds": 2.0}
  assert loader.restore(2, abstract())[1] == {"surplus": [], "seconds": 3.0}
  loader.close()
  folders = [{p.name for p in (tmp_path / "checkpoints" / n).iterdir() if p.is_dir()} for n in "12"]
  assert [f & {"state", "host", "waiting"} for f in folders] == [{"state", "host", "waiting"}, {"state", "host"}]
  assert "tokens" not in next((tmp_path / "checkpoints/1/host").iterdir()).read_text()


def test_only_the_newest_are_kept(tmp_path):
  s = make(abstract(), 0)
  saver = Checkpointer(tmp_path, keep=2)
  for step in (1, 2, 3):
    saver.save(step, s, {})
  saver.close()
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == ["2", "3"]


def test_the_best_are_kept_besides(tmp_path):
  """By accuracy, the later of equals; steps without one are never among the best, nor does a restart forget."""
  s = make(abstract(), 0)
  for step, accuracy in enumerate([0.25, 0.75, None, 0.75, 0.5, None, None], start=1):
    saver = Checkpointer(tmp_path, keep=2, best=2)
    saver.save(step, s, {}, accuracy)
    saver.close()
    assert len(steps_in(folder_of(tmp_path))) <= 4
  assert steps_in(folder_of(tmp_path)) == [2, 4, 6, 7]
  loader = Checkpointer(tmp_path, keep=1, best=0)
  assert loader.steps() == [2, 4, 6, 7]
  loader.save(8, s, {})
  loader.close()
  assert steps_in(folder_of(tmp_path)) == [8]
  assert {p.name for p in (tmp_path / "checkpoints").iterdir()} <= {"8", "deleted", "metadata", "_METADATA"}
  assert not any((tmp_path / "checkpoints/deleted").iterdir())


def test_some_are_kept_for_good(tmp_path):
  """Multiples of `every`, besides the newest and the best, by whichever start."""
  s = make(abstract(), 0)
  for steps in ((1, 2, 3), (4, 5, 6, 7)):
    saver = Checkpointer(tmp_path, keep=1, best=1, every=3)
    for step in steps:
      saver.save(step, s, {}, 0.5 if step == 2 else None)
    saver.close()
  assert steps_in(folder_of(tmp_path)) == [2, 3, 6, 7]


def test_looking_changes_nothing(tmp_path):
  """A step is read while another process saves the next one; where there is no folder, none is made."""
  s = make(abstract(), 3)
  saver = Checkpointer(tmp_path, keep=2)
  saver.save(1, s, {"n": 1})
  saver.close()
  (tmp_path / "checkpoints/2.orbax-checkpoint-tmp-123").mkdir()
  seen = lambda: sorted((str(p), p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
  before = seen()
  reader = Checkpointer(tmp_path, keep=1, read_only=True)
  restored, host = reader.restore(1, abstract(fsdp=2))
  reader.close()
  same(s, restored)
  assert host == {"n": 1} and seen() == before
  assert Checkpointer(tmp_path / "none", keep=1, read_only=True).latest() is None
  assert not (tmp_path / "none").exists()


def test_a_folder_elsewhere(tmp_path):
  saver = Checkpointer(tmp_path / "run", keep=1, folder=str(tmp_path / "elsewhere"))
  saver.save(3, make(abstract(), 0), {})
  saver.close()
  assert steps_in(folder_of("anything", str(tmp_path / "elsewhere"))) == [3]
  assert str(folder_of("anything", "gs://bucket/run")) == "gs://bucket/run"


def test_a_torn_step_is_not_seen(tmp_path):
  """A kill during a save leaves a temporary directory: the step before it is the newest, and the next start tidies."""
  s = make(abstract(), 0)
  saver = Checkpointer(tmp_path, keep=3)
  saver.save(1, s, {"n": 1})
  saver.close()
  torn = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp-123"
  (torn / "state").mkdir(parents=True)
  loader = Checkpointer(tmp_path, keep=3)
  assert loader.latest() == 1
  assert loader.restore(1, abstract())[1] == {"n": 1}
  loader.close()
  assert not torn.exists()


def test_a_state_may_be_donated_right_after_save(tmp_path):
  s = make(abstract(), 5)
  copy = jax.tree.map(np.array, s)
  saver = Checkpointer(tmp_path, keep=1)
  saver.save(1, s, {})
  jax.jit(lambda t: jax.tree.map(lambda x: x * 0, t), donate_argnums=0)(s)
  saver.close()
  same(copy, Checkpointer(tmp_path, keep=1).restore(1, abstract())[0])


def test_another_shape_is_refused(tmp_path):
  saver = Checkpointer(tmp_path, keep=1)
  saver.save(1, make(abstract(), 0), {})
  saver.close()
  wrong = jax.tree.map(lambda x: jax.ShapeDtypeStruct((3, *x.shape), x.dtype, sharding=x.sharding), abstract())
  with pytest.raises(ValueError):
    Checkpointer(tmp_path, keep=1).restore(1, wrong)


def test_of_equally_good_steps_the_later_is_kept(tmp_path):
  saver = Checkpointer(tmp_path, keep=1, best=1)
  for step, accuracy in enumerate([0.5, 0.5, None, 0.25], start=1):
    saver.save(step, {"x": np.zeros(2)}, {}, accuracy)
  saver.close()
  assert steps_in(folder_of(tmp_path)) == [2, 4]


FULL = """
import resource, sys
import jax, numpy as np
from fipo_jax.train.checkpoint import Checkpointer
saver = Checkpointer(sys.argv[1], keep=2)
saver.save(1, {"x": np.zeros(2)}, {"step": 1})
saver.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
  saver.save(2, {"x": np.random.default_rng(0).random(1_000_000)}, {"step": 2})
  saver.wait()
except OSError as error:
  sys.exit(f"error: {error}")
"""


def test_what_cannot_be_written_in_the_background_is_one_line(tmp_path):
  """A file may not grow beyond 100 kB, which is met while a thread of Orbax writes; the step before is whole."""
  folders = [str(pathlib.Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]  # Bazel's
  done = subprocess.run(
    [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=600, check=False,
    env=os.environ | {"PYTHONPATH": os.pathsep.join(folders), "JAX_PLATFORMS": "cpu"},
  )  # fmt: skip
  assert done.returncode == 1, done.stderr
  said = [line for line in done.stderr.splitlines() if "WARNING" not in line]
  assert len(said) == 1 and said[0].startswith(f"error: checkpoints cannot be written to {tmp_path}/checkpoints: ")
  assert said[0].endswith("the same command goes on from step 1.") and steps_in(folder_of(tmp_path)) == [1]


def test_a_lost_process_is_not_blamed_on_a_disk_or_a_checkpoint(tmp_path, monkeypatch):
  """Where the system has refused nothing, news of a process are waited for first: they end this one, with its code."""
  waited = []
  monkeypatch.setattr(processes, "await_reason", lambda: waited.append(1))
  saver, shapes = Checkpointer(tmp_path, keep=1), abstract()
  saver.save(1, make(shapes, 0), {"step": 1})
  saver.wait()
  full = OSError(errno.ENOSPC, "No space left on device")
  for error, waits in ((full, 0), (ValueError("No space left on device"), 0), (ValueError("Gloo AllGather failed"), 1)):
    waited.clear()
    with pytest.raises(OSError, match="cannot be written"), saver._said_once():
      raise error
    assert len(waited) == waits
  waited.clear()
  with pytest.raises(ValueError, match="checkpoint .* cannot be read"):
    saver.restore(1, jax.tree.map(lambda x: jax.ShapeDtypeStruct((*x.shape, 2), x.dtype), shapes))
  assert waited
  saver.close()
