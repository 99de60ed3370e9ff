"""Runs in a bucket: the real client libraries against a real server process on loopback; see `gcs_server`."""

import contextlib
import gc
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from fipo_jax import (
  command_line,
  lease,
  lines,
  loop,
  metrics,
  paths,
  processes,
  rollback,
  sharding,
  workdir,
)
from fipo_jax import saved as saved_config
from fipo_jax.data import files, rows
from fipo_jax.models import hf, make_model, tensor_files
from fipo_jax.report import write
from fipo_jax.train import checkpoint
from fipo_jax.train.checkpoint import Checkpointer, steps_in
from tests import gcs_server, loop_test
from tests.checkpoint_test import abstract, make, same
from tests.loop_test import GOLDEN, ROOT, model, small, without_time  # noqa: F401
from tests.processes_test import ends, launch, launch_all


@pytest.fixture(scope="module")
def server():
  found = gcs_server.Server()
  with pytest.MonkeyPatch.context() as patch:
    for name, value in found.environment.items():
      patch.setenv(name, value)
    yield found
  found.close()


@pytest.fixture
def folder(server, request):
  """A folder of the bucket for one test."""
  return paths.of(f"gs://bucket/{request.node.name.replace('[', '-').replace(']', '')}")


def of_kind(method, part):
  """Requests of a method whose object has this in its name."""
  return lambda request: request.method == method and part in request.name


# ---- whole files ----


def test_files_of_a_bucket(server, folder):
  assert not paths.exists(folder) and paths.names(folder) == []
  paths.write(folder / "a/b.txt", "hello")
  paths.write(folder / "c.txt", b"0123456789")
  assert paths.entries(folder) == [("a", 0), ("c.txt", 10)]
  assert paths.is_folder(folder / "a") and paths.is_file(folder / "a/b.txt") and not paths.is_file(folder / "a")
  assert paths.read_text(folder / "a/b.txt") == "hello" and paths.size(folder / "c.txt") == 10
  assert paths.read_range(folder / "c.txt", 2, 5) == b"234" and paths.read_range(folder / "c.txt", 5, 5) == b""
  server.put(f"{folder.name}/d.txt", b"of another machine")  # after the folder was listed
  assert paths.names(folder) == ["a", "c.txt", "d.txt"] and paths.read(folder / "d.txt") == b"of another machine"
  assert paths.glob(f"{folder}/*.txt") == [f"{folder}/c.txt", f"{folder}/d.txt"]
  paths.copy(folder / "c.txt", folder / "e.txt")
  paths.delete(folder / "c.txt")
  paths.delete(folder / "c.txt")
  assert paths.names(folder) == ["a", "d.txt", "e.txt"]
  with pytest.raises(FileNotFoundError, match=f"^{folder}/c.txt: no such file or bucket.$"):
    paths.read(folder / "c.txt")


def test_long_ranges_are_asked_for_in_pieces(server, folder, monkeypatch):
  monkeypatch.setattr(paths, "PIECE", 1000)
  data = random.Random(0).randbytes(6000)
  paths.write(folder / "x", data)
  before = len(server.requests)
  assert paths.read_range(folder / "x", 100, 5100) == data[100:5100]
  assert len(server.requests) - before == 5


def test_what_is_written_piece_by_piece_is_there_at_its_end_or_not_at_all(folder):
  with paths.open_to_write(folder / "x") as file:
    file.write(b"a" * 100)
    assert not paths.exists(folder / "x")
  assert paths.read(folder / "x") == b"a" * 100
  with contextlib.suppress(KeyboardInterrupt), paths.open_to_write(folder / "y") as file:
    file.write(b"half")
    raise KeyboardInterrupt
  del file
  gc.collect()  # a thread of gcsfs closes, and so uploads, what is forgotten
  time.sleep(0.5)
  assert paths.names(folder) == ["x"]


REFUSALS = {
  403: "the bucket refuses it (403: ",
  401: "no credentials for the bucket (",
}


@pytest.mark.parametrize("status", REFUSALS)
def test_a_bucket_that_refuses_is_one_line(server, folder, status):
  asked = (
    lambda: paths.write(folder / "x", "x"), lambda: paths.read(folder / "x"), lambda: paths.exists(folder),
    lambda: paths.names(folder), lambda: paths.is_folder(folder), lambda: lease.Lease(folder),
    lambda: metrics.check_writable(folder), lambda: steps_in(folder), lambda: tensor_files.open_all(folder),
  )  # fmt: skip
  remedy = paths.ACCOUNT if status == 403 else paths.CREDENTIALS
  with server.failing(gcs_server.some(status)):
    for ask in asked:  # above all, "refused" must never be taken for "there is nothing"
      with pytest.raises(paths.BucketError) as caught:
        ask()
      said = str(caught.value)
      assert str(folder) in said and REFUSALS[status] in said and said.endswith(f"; {remedy}.") and "\n" not in said


def test_a_bucket_that_is_not_there(server):
  with pytest.raises(paths.BucketError, match=r"^workdir=gs://none/run cannot be written: no such bucket; make it, or"):
    with workdir.hold("gs://none/run"):
      raise AssertionError


def test_what_a_bucket_does_not_do_now_and_then_is_repeated_and_said_once(server, folder, capsys, monkeypatch):
  monkeypatch.setattr(paths, "_repeated", set())
  with server.failing(gcs_server.some(503, times=1)):
    paths.write(folder / "x", "1")
  with server.failing(gcs_server.some(503, times=1)):
    assert paths.read_text(folder / "x") == "1"
  said = capsys.readouterr().out
  assert said.count("\n") == 1 and said.startswith("gs://: a request failed (the tests say 503, 503) and is repeated")


def test_a_bucket_that_is_away_for_longer(folder, capsys, monkeypatch):
  """Longer than its client repeats requests by itself: whatever is asked is asked again."""
  monkeypatch.setattr(paths, "PAUSE_S", 0.0)
  answers = [ConnectionError("nobody there"), OSError("Forbidden: b/x"), ConnectionError("nobody there"), "found"]

  def act():
    answer = answers.pop(0)
    if isinstance(answer, Exception):
      raise answer
    return answer

  with pytest.raises(paths.BucketError, match="the bucket refuses it"):
    paths.repeated(folder, act)
  assert paths.repeated(folder, act) == "found"
  one, *again = capsys.readouterr().out.splitlines()
  assert one == f"{folder}: the bucket does not answer (nobody there); tried again for up to 300 s"
  assert len(again) == 2 and again[-1] == f"{folder}: the bucket answers again, after 0 s"
  monkeypatch.setattr(paths, "RETRY_S", 0.0)
  answers.append(ConnectionError("nobody there"))
  with pytest.raises(paths.BucketError) as caught:
    paths.repeated(folder, act)
  assert processes_code(caught.value) == processes.EXIT_ERROR


def processes_code(error):
  from fipo_jax import commands

  return commands.code_of(error)


# ---- lines in parts ----


def records(*steps, width=10):
  return [{"step": s, "text": "x" * width} for s in steps]


def grown(path, found, resume_step=0, **bound):
  log = metrics.JsonLines(path, resume_step, **bound)
  for record in found:
    log.write(record)
  log.close()


def steps_of(path):
  return [json.loads(line)["step"] for line in lines.read(path)]


@pytest.mark.parametrize("part_bytes", [1, 80, 1 << 18])
def test_parts_are_what_a_file_is(folder, tmp_path, monkeypatch, part_bytes):
  """The same steps, starts and ends, in a bucket and on a disk."""
  monkeypatch.setattr(lines, "PART_BYTES", part_bytes)
  monkeypatch.setattr(lines, "SAME_PART_S", 0.0)
  draw = random.Random(part_bytes)
  there, here = folder / "m.jsonl", tmp_path / "m.jsonl"
  step = 0
  for _ in range(5):
    more = [step + k for k in range(1, draw.randint(2, 5)) for _ in range(draw.randint(1, 2))]
    width = draw.choice([0, 50])
    for path in (there, here):
      grown(path, records(*more, width=width), resume_step=step)
    assert b"".join(lines.read(there)) == b"".join(lines.read(here)) == here.read_bytes()
    step = draw.choice(more)
  for path in (there, here):
    grown(path, [], resume_step=step)  # and ends before it writes
  assert b"".join(lines.read(there)) == here.read_bytes() and steps_of(there)[-1] == step
  assert not paths.exists(there) and not (tmp_path / "m").exists()
  grown(there, [])
  assert paths.names(folder / "m") == []


def test_a_part_is_written_whole_and_the_next_one_begins_when_it_is_full_or_too_young(server, folder, monkeypatch):
  monkeypatch.setattr(lines, "PART_BYTES", 100)
  log = metrics.JsonLines(folder / "m.jsonl", 0)
  line = len(json.dumps({"step": 1, "text": "x" * 10})) + 1
  for record in records(1, 2):
    log.write(record)
  assert paths.entries(folder / "m") == [("000001.jsonl", line), ("000002.jsonl", line)]  # within a second
  monkeypatch.setattr(lines, "SAME_PART_S", 0.0)
  for record in records(3, 4, 5):
    log.write(record)
  assert paths.entries(folder / "m") == [("000001.jsonl", line), ("000002.jsonl", 2 * line), ("000003.jsonl", 2 * line)]
  log.write(records(6)[0], flush=False)
  assert steps_of(folder / "m.jsonl") == [1, 2, 3, 4, 5]
  log.flush()
  assert steps_of(folder / "m.jsonl") == [1, 2, 3, 4, 5, 6]
  log.close()


def test_samples_are_there_when_the_line_of_their_step_is(folder):
  log = metrics.Log(folder, resume_step=0)
  log.sample(1, {"text": "a"})
  log.sample(1, {"text": "b"})
  log.write(1, {"loss": 0.5})
  assert len(list(lines.read(folder / "samples.jsonl"))) == 2 and steps_of(folder / "metrics.jsonl") == [1]


def test_a_bucket_that_fails_while_parts_are_cut_loses_no_line_that_is_kept(server, folder, monkeypatch):
  monkeypatch.setattr(lines, "PART_BYTES", 1)
  grown(folder / "m.jsonl", records(1, 2, 3, 4, 5))
  for allowed in range(4):
    left = [allowed]

    def refuses(request, left=left):
      if request.method in ("DELETE", "POST"):
        left[0] -= 1
        return 403 if left[0] < 0 else None
      return None

    with server.failing(refuses), pytest.raises(OSError, match="403"):
      lines.grow(folder / "m.jsonl", 2, 0)
      raise OSError("403: all passed")
    assert steps_of(folder / "m.jsonl")[:2] == [1, 2]
  grown(folder / "m.jsonl", records(3), resume_step=2)
  assert steps_of(folder / "m.jsonl") == [1, 2, 3]


def test_a_bound_in_a_bucket_drops_the_oldest(folder, monkeypatch, capsys):
  monkeypatch.setattr(lines, "SAME_PART_S", 0.0)
  path = folder / "s.jsonl"
  log = metrics.JsonLines(path, 0, most_bytes=4000)
  for record in records(*range(1, 200), width=30):
    log.write(record)
  log.close()
  kept = steps_of(path)
  assert kept == list(range(kept[0], 200)) and len(kept) > 20
  assert sum(size for _, size in paths.entries(folder / "s")) <= 4000
  assert capsys.readouterr().out.count("oldest lines are dropped") == 1
  grown(path, records(200, width=9000), resume_step=199, most_bytes=4000)  # larger than the bound by itself
  assert steps_of(path)[-1] == 200


def test_a_run_that_is_moved_goes_on_with_its_lines(folder, tmp_path):
  grown(tmp_path / "m.jsonl", records(1, 2, 3))
  paths.copy(tmp_path / "m.jsonl", folder / "m.jsonl")
  assert steps_of(folder / "m.jsonl") == [1, 2, 3] and lines.exists(folder / "m.jsonl")
  grown(folder / "m.jsonl", records(3, 4), resume_step=2)
  assert steps_of(folder / "m.jsonl") == [1, 2, 3, 4]
  for name in paths.names(folder / "m"):
    paths.make_folder(tmp_path / "back/m")
    paths.copy(folder / "m" / name, tmp_path / "back/m" / name)
  assert steps_of(tmp_path / "back/m.jsonl") == [1, 2, 3, 4]
  grown(tmp_path / "back/m.jsonl", records(5), resume_step=4)
  assert steps_of(tmp_path / "back/m.jsonl") == [1, 2, 3, 4, 5]
  lines.copy(folder / "m.jsonl", folder / "m.rollback1.jsonl")
  assert paths.read(folder / "m.rollback1.jsonl") == b"".join(lines.read(folder / "m.jsonl"))


# ---- the lease ----

HOLDER = """
import sys
from fipo_jax import lease, paths
lease.LEASE_S, lease.MARGIN_S, lease.RENEW_S, lease.REQUEST_S, lease.LOOK_S = 3.0, 1.0, 0.2, 5.0, 0.05
held = lease.Lease(paths.of(sys.argv[1]))
print("held", flush=True)
for line in sys.stdin:
  paths.write(paths.of(sys.argv[1]) / line.strip(), "x")
  print("written", flush=True)
held.release()
"""


@pytest.fixture
def short(monkeypatch):
  for name, value in {"LEASE_S": 3.0, "MARGIN_S": 1.0, "RENEW_S": 0.2, "LOOK_S": 0.05}.items():
    monkeypatch.setattr(lease, name, value)


def holder(folder):
  job = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, text=True, stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
  assert job.stdout.readline() == "held\n", job.stderr.read()
  return job


def test_a_lease_is_refused_while_its_holder_lives_and_taken_over_when_it_was_killed(folder, short, capsys):
  job = holder(folder)
  began = time.monotonic()
  with pytest.raises(ValueError, match=rf"workdir='{folder}': process {job.pid} on .*, is working in it; wait for its"):
    lease.Lease(folder)
  assert time.monotonic() - began < lease.LEASE_S  # a process of this machine that lives need not be waited for
  job.kill()
  job.wait()
  held = lease.Lease(folder)
  assert "had it, and has ended or renews it no more: taken over" in capsys.readouterr().out
  held.release()
  assert paths.names(folder) == []
  lease.Lease(folder).release()


def elsewhere(monkeypatch):
  """What follows is on another machine."""
  monkeypatch.setattr(lease, "_machine", lambda: "another")


def test_a_lease_of_another_machine_is_waited_for(folder, short, monkeypatch, capsys):
  """Its holder renews it: refused, after a while. It no longer does: taken over once it has run out."""
  held = lease.Lease(folder)
  elsewhere(monkeypatch)
  with pytest.raises(processes.Missing, match="is working in it; wait for its end") as caught:
    lease.Lease(folder)
  assert processes_code(caught.value) == processes.EXIT_LOST  # a scheduler tries again: it may be what it has replaced
  held._over.set()  # as if it were gone
  held._thread.join()
  generation = held._generation
  lease.Lease(folder).release()
  said = capsys.readouterr().out
  assert said.count("has it; waiting up to 3 s for its end") == 2 and said.count("taken over") == 1
  assert generation and paths.names(folder) == []
  paths.before_writing.clear()


def test_a_process_that_was_frozen_writes_nothing_into_the_run_of_another(server, folder, short, monkeypatch):
  job = holder(folder)
  os.kill(job.pid, signal.SIGSTOP)
  elsewhere(monkeypatch)
  held = lease.Lease(folder)
  os.kill(job.pid, signal.SIGCONT)
  out, err = job.communicate("late.txt\n", timeout=60)
  assert job.returncode == processes.EXIT_LOST and "written" not in out
  (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
  assert line.startswith(f"error: workdir={folder}: ") and "nothing more is written" in line
  assert paths.names(folder) == [".lease"]
  held.release()


def test_a_lease_that_cannot_be_renewed_ends_its_holder_before_another_may_have_it(server, folder):
  job = holder(folder)
  began = time.monotonic()
  with server.failing(gcs_server.some(503, of_kind("POST", ".lease"))):
    job.wait(60)
  err = job.stderr.read()
  assert job.returncode == processes.EXIT_LOST and 1.0 < time.monotonic() - began
  assert "the lease of this run was not renewed for " in err and "the tests say 503" in err


def test_a_renewal_whose_answer_is_lost_is_no_loss(server, folder, short):
  held = lease.Lease(folder)
  renewed = of_kind("POST", ".lease")
  with server.failing(after=gcs_server.some(503, renewed, times=1)):
    begun = len(server.requests)
    while len([r for r in server.requests[begun:] if r[:2] == ("POST", f"{folder.name}/.lease")]) < 5:
      time.sleep(0.05)
  assert held._thread.is_alive()
  held.release()
  assert paths.names(folder) == []


def test_a_held_workdir_is_held_once(folder, short):
  with workdir.hold(str(folder)):
    with workdir.hold(str(folder)):
      pass
    assert paths.names(folder) == [".lease"]
  assert paths.names(folder) == [] and not paths.before_writing


# ---- models, prompts ----


def test_weights_are_ranges_and_exports_are_the_same_bytes(server, folder, tmp_path):
  for path in GOLDEN.iterdir():
    paths.copy(path, folder / "model" / path.name)
  tiny = make_model(hf.read_config(folder / "model"))
  mesh = sharding.make_mesh({"data": 1, "fsdp": 4, "context": 1, "tensor": 1}, jax.devices()[:4])
  before = len(server.requests)
  there, here = hf.load(folder / "model", tiny, mesh), hf.load(GOLDEN, tiny, mesh)
  for a, b in zip(jax.tree.leaves(there), jax.tree.leaves(here), strict=True):
    np.testing.assert_array_equal(a, b)
  asked = [r for r in server.requests[before:] if r[1].endswith(".safetensors") and r[0] == "GET"]
  ranged = [r[2] for r in asked if r[2]]
  assert ranged and all(r[2] for r in asked if "alt=media" in r[1])
  sizes = [int(b) - int(a) + 1 for a, b in (r.removeprefix("bytes=").split("-") for r in ranged)]
  assert max(sizes) < paths.size(folder / "model/model.safetensors") / 3  # one at a time, never the file
  for where in (folder / "out", tmp_path / "out"):
    hf.save(where, there, tiny.config, template_dir=folder / "model", max_shard_bytes=20_000)
  names = paths.names(folder / "out")
  assert names == paths.names(tmp_path / "out") and len(names) > 3
  assert all(paths.read(folder / "out" / name) == (tmp_path / "out" / name).read_bytes() for name in names)
  assert tensor_files.identity(folder / "out") == tensor_files.identity(tmp_path / "out")
  assert paths.names(folder) == ["model", "out"]


@pytest.mark.parametrize("end", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_export_that_is_cut_off_is_no_model_and_is_made_again(server, folder, end):
  tiny = make_model(hf.read_config(GOLDEN))
  mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "context": 1, "tensor": 1}, jax.devices()[:1])
  params = hf.load(GOLDEN, tiny, mesh)
  hf.save(folder / "export", params, tiny.config, template_dir=GOLDEN)
  newer = jax.tree.map(lambda x: np.asarray(x) + 1, params)
  newer = jax.device_put(newer, jax.tree.map(lambda x: x.sharding, params))
  part = (".export.partial/config.json", "export/model.safetensors", "export/config.json")[end]
  refused = lambda r: r.method == "POST" and (r.name.endswith(part) or f"/o/{folder.name}/{part}" in r.name)
  with server.failing(gcs_server.some(403, refused)), pytest.raises(OSError, match="403"):
    hf.save(folder / "export", newer, tiny.config, template_dir=GOLDEN)
  if end == 0:  # the new one is not complete: the old one is there
    assert hf.read_config(folder / "export") == tiny.config
  else:
    with pytest.raises(FileNotFoundError):
      hf.read_config(folder / "export")
  hf.save(folder / "export", newer, tiny.config, template_dir=GOLDEN)
  for a, b in zip(jax.tree.leaves(hf.load(folder / "export", tiny, mesh)), jax.tree.leaves(newer), strict=True):
    np.testing.assert_array_equal(a, b)
  assert paths.names(folder) == ["export"]


def test_prompts_of_a_bucket(folder):
  asked = [{"prompt": f"{i} + 1 =", "answer": str(i + 1)} for i in range(6)]
  text = lambda part: "".join(json.dumps(r) + "\n" for r in part).encode()
  paths.write(folder / "p/a.jsonl", text(asked[:2]))
  paths.write(folder / "p/b.jsonl.gz", gzip.compress(text(asked[2:4])))
  with paths.open_to_write(folder / "p/c.parquet") as file:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(asked[4:]), file)
  for path in (f"{folder}/p", [f"{folder}/p/*.jsonl*", f"{folder}/p/c.parquet"]):
    assert [r["question"] for r in files.read(path, rows.Columns())] == [r["prompt"] for r in asked]
  with pytest.raises(FileNotFoundError, match="no such file"):
    files.expand(f"{folder}/p/*.json")
  with pytest.raises(ValueError, match="is not searched for in a bucket"):
    files.expand(f"{folder}/**/a.jsonl")
  with pytest.raises(ValueError, match="ArrayRecord files are read from a disk"):
    list(files.array_record(f"{folder}/x.array_record", rows.Columns()))


# ---- checkpoints ----


def restored(saver, step):
  got, host = saver.restore(step, abstract())
  assert host == {"step": step}
  same(got, make(abstract(), step))


def saved(folder, *steps, keep=2, accuracy=None, **more):
  saver = Checkpointer(folder, keep=keep, **more)
  for step in steps:
    saver.save(step, make(abstract(), step), {"step": step}, accuracy and accuracy[step])
    saver.wait()
  return saver


def test_checkpoints_of_a_bucket_are_kept_as_on_a_disk(server, folder):
  saver = saved(folder, 1, 2, 3, 4, keep=1, best=1, every=3, accuracy={1: 0.1, 2: 0.9, 3: 0.2, 4: 0.3})
  saver.close()
  assert steps_in(folder / "checkpoints") == [2, 3, 4] and paths.names(folder / "checkpoints") == ["2", "3", "4"]
  again = Checkpointer(folder, keep=1, best=1)
  assert again.start_from("best") == again.latest() == 2
  restored(again, 2)
  aside = paths.names(folder / "checkpoints/aside")
  assert [name.partition("-")[0] for name in aside] == ["3", "4"]
  assert paths.is_file(folder / "checkpoints/aside" / aside[1] / checkpoint.COMMIT)
  again.close()
  moved = [n for n in server.objects(f"{folder.name}/checkpoints/aside") if "state" in n]
  assert len(moved) > 5 and not server.objects(f"{folder.name}/checkpoints/4/")


@pytest.mark.parametrize("passes", [0, 1, 4])
def test_a_deletion_that_is_cut_off_leaves_no_torn_step(server, folder, passes):
  """Whoever deletes is killed after so many objects: the step is whole, or it is none."""
  saved(folder, 1, 2).close()
  left = [passes]

  def gone(request):
    if request.method == "DELETE" and "checkpoints/1/" in request.name:
      left[0] -= 1
      return 403 if left[0] < 0 else None
    return None

  saver = Checkpointer(folder, keep=2)
  with server.failing(gone), pytest.raises(OSError, match="403"):
    saver.delete(1)
  assert steps_in(folder / "checkpoints") == ([1, 2] if passes == 0 else [2])
  assert paths.names(folder / "checkpoints") == ["1", "2"]
  after = Checkpointer(folder, keep=2)
  assert after.steps() == steps_in(folder / "checkpoints")
  if passes:
    assert paths.names(folder / "checkpoints") == ["2"]  # what was left is tidied by the next start
  after.close()


def test_a_save_that_is_cut_off_is_not_seen_and_is_made_again(server, folder):
  saver = saved(folder, 1)
  commit = lambda r: r.method == "POST" and r.name.endswith(f"checkpoints/2/{checkpoint.COMMIT}")
  with server.failing(gcs_server.some(403, commit)), pytest.raises(OSError) as caught:
    saver.save(2, make(abstract(), 2), {"step": 2})
    saver.wait()
  said = str(caught.value)
  assert said.startswith(f"checkpoints cannot be written to {folder}/checkpoints: the bucket refuses it (403")
  assert said.endswith("the same command goes on from step 1.") and "\n" not in said
  assert steps_in(folder / "checkpoints") == [1] and "2" in paths.names(folder / "checkpoints")
  after = Checkpointer(folder, keep=2)
  assert after.latest() == 1 and paths.names(folder / "checkpoints") == ["1"]
  after.save(2, make(abstract(), 2), {"step": 2})
  after.wait()
  restored(after, 2)
  after.close()


def test_setting_aside_that_is_cut_off_loses_no_step(server, folder):
  saved(folder, 1, 2).close()
  copied = lambda r: "rewriteTo" in r.name and checkpoint.COMMIT in r.name and "checkpoints/2/comm" in r.name
  with server.failing(gcs_server.some(403, copied)), pytest.raises(OSError, match="403"):
    Checkpointer(folder, keep=2).start_from(1)
  assert steps_in(folder / "checkpoints") == [1, 2] and len(paths.names(folder / "checkpoints/aside")) == 1
  after = Checkpointer(folder, keep=2)
  assert paths.names(folder / "checkpoints") == ["1", "2"]  # the half copy is tidied
  restored(after, 2)
  after.close()


# ---- whole runs ----


def in_bucket(model, folder, tmp_path, **more):  # noqa: F811
  """Settings of a small run whose model and workdir are in the bucket."""
  for path in model.iterdir():
    paths.copy(path, folder / "model" / path.name)
  local = loop_test.settings(model, tmp_path / "run", **more)
  return local | {"workdir": f"{folder}/run", "model.path": f"{folder}/model"}


def same_run(folder, other):
  """Metrics, samples and exported weights, bit for bit."""
  there = [json.loads(line) for line in lines.read(folder / "metrics.jsonl")]
  assert without_time(there) == without_time(loop_test.lines(other))
  assert b"".join(lines.read(folder / "samples.jsonl")) == (other / "samples.jsonl").read_bytes()
  assert paths.read(folder / "export/model.safetensors") == (other / "export/model.safetensors").read_bytes()


NAMES = {"checkpoints", "config.json", "export", "metrics", "result.json", "samples", "starts.json", "tensorboard"}


def test_a_run_in_a_bucket(server, folder, model, tmp_path):  # noqa: F811
  values = in_bucket(model, folder, tmp_path, **loop_test.WHOLE, **{"checkpoint.every": 1, "checkpoint.keep": 1})
  c = small(model, tmp_path / "run")
  c.update_from_flattened_dict(values | {"log.report": True})
  before = len(server.requests)
  result = loop.train(c)
  run = folder / "run"
  assert set(paths.names(run)) - {"heartbeat.json"} == {*NAMES, "report.html"}
  written = {name.split("/")[0] for method, name, _ in server.requests[before:] if method != "GET" and name}
  assert written == {folder.name} and not (tmp_path / "run").exists()
  assert json.loads(paths.read(run / "result.json")) == json.loads(json.dumps(result))
  assert steps_of(run / "metrics.jsonl") == [0, 1, 2, 3] and steps_in(run / "checkpoints") == [3]
  assert {json.loads(line)["step"] for line in lines.read(run / "samples.jsonl")} == {1, 2, 3}
  assert hf.read_config(run / "export") == hf.read_config(GOLDEN)
  argument = command_line.prepare(["run.py", f"--run={run}"], "")[1:]
  assert argument == [f"--config={ROOT}/fipo_jax/saved.py:{run}/config.json", f"--config.workdir={run}"]
  assert command_line.prepare(["run.py", f"--config={run}/config.json"], "")[1:] == argument[:1]
  assert saved_config.get_config(f"{run}/config.json").to_dict() == c.to_dict()
  with pytest.raises(command_line.Mistake, match="--run=gs://bucket/none: no run there"):
    command_line.prepare(["run.py", "--run=gs://bucket/none"], "")
  write.report([run], tmp_path / "out")
  assert "step 3 of 3" in (tmp_path / "out/report.html").read_text()
  workdir.keep_logs(c, 2)
  assert paths.is_file(run / "metrics.before_step2.1.jsonl")
  rollback.roll_back(c, loop_test.types.SimpleNamespace(name="collapse", step=3))
  assert steps_in(run / "checkpoints") == [3] and paths.is_file(run / "metrics.rollback1.jsonl")  # there is no older
  assert rollback.records(str(run)) == [{"alarm": "collapse", "step": 3, "to": 3}]


EVERY_STEP = {
  "checkpoint.every": 1, "checkpoint.keep": 2, "eval.every": 3, "checkpoint.keep_best": 1, "log.samples": 4, "steps": 9,
}  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(model, tmp_path_factory):  # noqa: F811
  """The workdir of a run of nine steps on a disk."""
  folder = tmp_path_factory.mktemp("nine") / "run"
  loop.train(small(model, folder, **EVERY_STEP | {"checkpoint.every": 9}))
  return folder


# Requests at which a run is killed: what they are, and how many such ones pass before.
MOMENTS = (
  ("its config is written", of_kind("POST", "/config.json"), 0),
  ("weights are read", of_kind("GET", "model.safetensors"), 3),
  ("metrics", of_kind("POST", "run/metrics/"), 2),
  ("a checkpoint's arrays", of_kind("POST", "/state/"), 8),
  ("a checkpoint's last word", lambda r: r.method == "POST" and r.name.count("/") == 4 and COMMITS(r), 1),
  ("samples", of_kind("POST", "run/samples/"), 1),
  ("a deletion's first object", lambda r: r.method == "DELETE" and COMMITS(r), 0),
  ("a deletion", lambda r: r.method == "DELETE" and "/state/" in r.name, 2),
  ("its export", of_kind("POST", ".export.partial/model.safetensors"), 0),
  ("its export is moved", lambda r: "rewriteTo" in r.name and "export/config.json" in r.name, 0),
  ("its result", of_kind("POST", "/result.json"), 0),
)
COMMITS = lambda r: r.name.endswith(checkpoint.COMMIT)


def kills(job, meant, passing):
  """Kills the job at a request; when is 0: before it is served, 1: after."""
  left = [passing]

  def fault(request):
    if meant(request) and job.poll() is None:
      left[0] -= 1
      if left[0] < 0:
        job.kill()
        job.wait()
        return 503
    return None

  return fault


@pytest.mark.slow
def test_a_run_that_is_killed_at_many_moments_ends_as_one_that_was_not(server, folder, model, uninterrupted, tmp_path):  # noqa: F811
  """Every second kill comes after the bucket did what was asked. No torn checkpoint is ever chosen, for the run would
  not end the same; and those that are kept are as many as on a disk."""
  values = in_bucket(model, folder, tmp_path, **EVERY_STEP)
  run, killed = folder / "run", []
  for number, (what, meant, passing) in enumerate(MOMENTS):
    job = launch(values, devices=8)
    fault = kills(job, meant, passing)
    with server.failing(**{"after" if number % 2 else "fault": fault}):
      out, err = job.communicate(timeout=600)
    assert job.returncode == -signal.SIGKILL, (what, job.returncode, out, err)
    killed.append(what)
    steps = steps_in(run / "checkpoints")
    assert len(steps) <= 4
  assert len(killed) == len(MOMENTS) >= 10
  ((out, _),) = ends([launch(values, devices=8)], code=0, timeout=600)
  assert "had it, and has ended or renews it no more: taken over" in out
  same_run(run, uninterrupted)
  assert steps_in(run / "checkpoints")[-2:] == [8, 9] and len(steps_in(run / "checkpoints")) <= 3
  assert set(paths.names(run)) - {"heartbeat.json"} == NAMES


@pytest.mark.slow
def test_a_bucket_that_fails_now_and_then_and_is_slow_changes_nothing(server, folder, model, uninterrupted, tmp_path):  # noqa: F811
  draw = random.Random(0)

  def fault(request):
    time.sleep(draw.choice([0, 0, 0.02, 0.2]))
    return 503 if draw.random() < 0.01 else None

  values = in_bucket(model, folder, tmp_path, **EVERY_STEP) | {"compile_cache": f"{folder}/cache"}
  with server.failing(fault):
    ((out, err),) = ends([launch(values, devices=8)], code=0, timeout=600)
  assert out.count("is repeated; from now on that is not said") == 1
  same_run(folder / "run", uninterrupted)


@pytest.mark.slow
def test_a_run_whose_lease_another_takes_ends_and_goes_on_later(server, folder, model, uninterrupted, tmp_path):  # noqa: F811
  values = in_bucket(model, folder, tmp_path, **EVERY_STEP)
  job = launch(values | {"steps": 2000}, devices=8)
  while max(steps_in(folder / "run/checkpoints"), default=0) < 2:
    assert job.poll() is None, job.communicate()
    time.sleep(0.2)
  server.put(f"{folder.name}/run/.lease", json.dumps({"id": "x", "who": "process 7 on another"}).encode())
  out, err = job.communicate(timeout=120)
  assert job.returncode == processes.EXIT_LOST, (out, err)
  assert f"error: workdir={folder}/run: process 7 on another has the lease of this run; nothing more is written" in err
  paths.delete(folder / "run/.lease")
  logged = steps_of(folder / "run/metrics.jsonl")[-1]
  ((out, _),) = ends([launch(values | {"steps": logged + 2}, devices=8)], code=0, timeout=600)
  assert "resumes from step" in out and steps_of(folder / "run/metrics.jsonl")[-1] == logged + 2


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_processes_of_which_one_is_killed_are_one_run_in_a_bucket(server, folder, model, tmp_path, who):  # noqa: F811
  """As on a disk that both see: the bucket has one lease, process 0's, and each process writes its own shards."""
  values = in_bucket(model, folder, tmp_path, **EVERY_STEP)
  job = launch_all(2, 4, values)
  while max(steps_in(folder / "run/checkpoints"), default=0) < 3:
    assert all(p.poll() is None for p in job), [p.communicate() for p in job]
    time.sleep(0.2)
  job[who].kill()
  said = [p.communicate(timeout=300) for p in job]
  assert [p.returncode for p in job][1 - who] == processes.EXIT_LOST, said
  # Of process 0, which holds the others together, JAX itself tells.
  assert f"error: nothing was heard of process {who}" in said[1 - who][1] or who == 0
  before = len(server.requests)
  ends(launch_all(2, 4, values), code=0, timeout=600)
  ends(launch_all(2, 4, values | {"workdir": str(tmp_path / "local")}), code=0, timeout=600)
  same_run(folder / "run", tmp_path / "local")
  assert steps_in(folder / "run/checkpoints")[-2:] == [8, 9]
  assert any("/state/" in name for method, name, _ in server.requests[before:] if method == "POST")


@pytest.mark.slow
def test_a_program_that_the_bucket_refuses_ends_in_one_line(server, folder, model, tmp_path):  # noqa: F811
  values = in_bucket(model, folder, tmp_path, **EVERY_STEP)
  with server.failing(gcs_server.some(403, of_kind("POST", "run/"))):
    ((_, err),) = ends([launch(values, devices=8)], code=processes.EXIT_MISTAKE)
  (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
  assert line.startswith(f"error: workdir={folder}/run cannot be written: the bucket refuses it (403: ")
  with server.failing(gcs_server.some(403, of_kind("POST", "run/metrics/"))):
    ((_, err),) = ends([launch(values, devices=8)], code=processes.EXIT_ERROR)
  (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
  assert f"workdir={folder}/run cannot be written: the bucket refuses it (403: " in line
