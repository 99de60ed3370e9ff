"""experiments/gpu: what is cut is joined again, a torn piece is refused, stages that are done are not done again."""

import json
import pathlib
import sys
import tarfile

import ml_dtypes
import numpy as np
import pytest

from experiments.gpu import machine, pack
from fipo_jax.models import tensor_files

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def model(tmp_path):
  """A directory with a matrix, a matrix that is no whole number of blocks, and a vector."""
  rng, folder = np.random.default_rng(0), tmp_path / "hf"
  folder.mkdir()
  tensors = {"w": rng.normal(size=(48, 64)), "odd": rng.normal(size=(5, 7)), "b": rng.normal(size=3)}
  tensors = {name: x.astype(ml_dtypes.bfloat16) for name, x in tensors.items()}
  tensor_files.write_all(folder, [(name, x.shape, lambda x=x: x) for name, x in tensors.items()], "bfloat16", 1e9)
  (folder / "config.json").write_text("{}")
  return folder


def packed(model, out, mib=0.002):
  pack.main([f"--model={model}", f"--out={out}", f"--piece_mib={mib}"])
  return json.loads((out / "manifest.json").read_text())


def test_pieces_come_one_by_one_and_are_the_model_again(model, tmp_path, capsys):
  manifest = packed(model, tmp_path / "pieces")
  first, *others = manifest["pieces"]
  assert len(others) > 3 and {p["bytes"] for p in others[:-1]} == {first["bytes"]} == {int(0.002 * 2**20)}
  assert manifest == packed(model, tmp_path / "pieces")  # whenever it is made
  store = tmp_path / "store"
  for piece in (first, *others):
    hand = tmp_path / "hand"
    hand.mkdir(exist_ok=True)
    (hand / "manifest.json").write_bytes((tmp_path / "pieces/manifest.json").read_bytes())
    (tmp_path / "pieces" / piece["name"]).rename(hand / piece["name"])
    if piece is first:
      capsys.readouterr()
      machine.main(["take", f"--pieces={hand}", f"--store={store}"])
      assert f"still missing: {','.join(p['name'] for p in others)}" in capsys.readouterr().out
    else:
      missing = machine.take(hand, store)
  assert missing == []
  machine.unpack(store)
  found, given = tensor_files.open_all(store / "model"), tensor_files.open_all(model)
  assert found.keys() == given.keys() and (store / "model/config.json").read_text() == "{}"
  for name in ("odd", "b"):
    np.testing.assert_array_equal(found[name][:], given[name][:])
  w = np.asarray(given["w"][:], np.float32)
  apart = np.abs(np.asarray(found["w"][:], np.float32) - w).reshape(48, -1, pack.BLOCK)
  # half a step of int8, and the rounding of the result to bfloat16
  assert (apart <= np.abs(w).reshape(apart.shape).max(-1, keepdims=True) * (0.5 / 127 + 2**-8)).all()
  machine.unpack(store)
  assert machine.take(hand, store) == [] and not (store / "all.tar").exists()


def test_a_torn_piece_and_another_package_are_refused(model, tmp_path):
  manifest = packed(model, tmp_path / "pieces")
  torn = tmp_path / "pieces" / manifest["pieces"][1]["name"]
  torn.write_bytes(torn.read_bytes()[:-1] + b"x")
  with pytest.raises(ValueError, match="piece_001: 2097 of 2097 bytes, or others; hand it over again"):
    machine.take(tmp_path / "pieces", tmp_path / "store")
  with pytest.raises(ValueError, match="piece_001, piece_002.* missing; take them first"):
    machine.join(tmp_path / "store")  # the first was whole, and is there
  packed(model, tmp_path / "other", 0.003)
  machine.take(tmp_path / "other", tmp_path / "torn")
  (tmp_path / "torn/piece_000").write_bytes(b"x" * 3145)  # on the disk, since it was taken
  with pytest.raises(ValueError, match="all.tar: not what was packed; delete --store"):
    machine.join(tmp_path / "torn")
  packed(model, tmp_path / "pieces", 0.003)
  with pytest.raises(ValueError, match="holds pieces of another package"):
    machine.take(tmp_path / "pieces", tmp_path / "store")


def test_a_package_may_be_what_the_machine_lacks_alone(tmp_path, capsys):
  there = pack.needed((ROOT / "requirements.txt").read_text(), set())
  found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}", "packages": list(there)}
  (tmp_path / "probe.json").write_text(json.dumps(found))
  pack.main([f"--probe={tmp_path / 'probe.json'}", f"--out={tmp_path / 'pieces'}"])
  assert "0 wheels: none is missing" in capsys.readouterr().out
  assert machine.take(tmp_path / "pieces", tmp_path / "store") == []
  machine.unpack(tmp_path / "store")
  assert (tmp_path / "store/unpacked").exists() and not (tmp_path / "store/model").exists()
  with pytest.raises(SystemExit):
    pack.main([f"--out={tmp_path / 'pieces'}"])
  assert "--model and --probe: one of them is needed" in capsys.readouterr().err


def test_blocks_of_int8_numbers_are_themselves():
  rng = np.random.default_rng(1)
  q = rng.integers(-127, 128, (4, 64)).astype(np.int8)
  q[:, ::32] = 127
  scale = (2.0 ** rng.integers(-12, -4, (4, 2))).astype(np.float16)
  back, same = pack.quantise(pack.dequantise(q, scale))
  np.testing.assert_array_equal(back, q)
  np.testing.assert_array_equal(same, scale)
  assert not pack.dequantise(*pack.quantise(np.zeros((2, 32)))).any()


def test_only_what_the_machine_lacks_is_needed():
  text = "ml-collections~=1.1   # why\n# a comment\nnumpy~=2.5 # arrays\nno-such-package~=1.0 # elsewhere\n"
  assert pack.needed(text, {"numpy", "pyyaml", "absl-py"}).keys() == {"ml-collections"}
  assert {"ml-collections", "pyyaml", "absl-py", "numpy"} <= pack.needed(text, set()).keys()
  with pytest.raises(ValueError, match="the machine has Python 2.7 and this is 3"):
    pack.fetch_wheels({}, "2.7", pathlib.Path("nowhere"))


def stage_runs(tmp_path, monkeypatch, *, took=0.0, ends=(0,)):
  """`machine.main(run)` with stages that only write what they would; (exit code, stages that ran, files brought)."""
  store, ran = tmp_path / "store", []
  store.mkdir(exist_ok=True)
  (store / "unpacked").touch()
  codes = iter(ends)

  def command(self, name, limit_s, *command):
    ran.append(name)
    if name == "train":
      assert 0 < limit_s < 60 - 45 - took  # what evaluation took is left for the other one
      code = next(codes)
      (store / "run/checkpoints/7").mkdir(parents=True, exist_ok=True)
      (store / "run/metrics.jsonl").write_text("{}\n")
      if code == 0:
        (store / "run/result.json").write_text("{}")
      return code
    for out in (a.partition("=")[2] for a in command if a.startswith("--out=")):
      pathlib.Path(out).write_text("{}")
    return 0

  monkeypatch.setattr(machine.Stages, "run", command)
  code = machine.main(["run", f"--store={store}", f"--out={tmp_path / 'out'}", "--minutes=1", "--config.steps=2"])
  with tarfile.open(tmp_path / "out/records.tar.gz") as tar:
    return code, ran, sorted([*tar.getnames(), *(p.name for p in (tmp_path / "out").iterdir())])


def test_a_run_goes_on_where_the_minutes_ended(tmp_path, monkeypatch):
  code, ran, brought = stage_runs(tmp_path, monkeypatch, ends=(machine.STOPPED,))
  assert code == machine.STOPPED and ran == ["before", "train", "after", "compare"]
  assert {"before.json", "after_step7.json", "compare_step7.json", "log.txt", "metrics.jsonl"} <= set(brought)
  (tmp_path / "store/evaluation_s").write_text("5.0")
  code, ran, _ = stage_runs(tmp_path, monkeypatch, took=5.0, ends=(0,))
  assert code == 0 and ran == ["train", "compare"]  # the model was evaluated, and step 7 too
  code, ran, _ = stage_runs(tmp_path, monkeypatch)
  assert code == 0 and ran == ["compare"]


def test_what_failed_ends_it_and_what_there_is_is_brought(tmp_path, monkeypatch):
  code, ran, brought = stage_runs(tmp_path, monkeypatch, ends=(2,))
  assert code == 2 and ran == ["before", "train"] and "before.json" in brought and "metrics.jsonl" in brought


def test_a_stage_is_told_to_stop_at_its_limit_and_killed_after_the_grace(tmp_path, capsys):
  stages = machine.Stages(tmp_path, machine.time.monotonic() + 60, 30)
  heeds = "import signal, sys, time\nsignal.signal(15, lambda *a: sys.exit(75))\nprint('up')\ntime.sleep(60)"
  assert stages.run("heeds", 1.5, "-c", heeds) == 75
  stages.grace_s = 0.5
  deaf = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(60)"
  assert stages.run("deaf", 1.5, "-c", deaf) == machine.STOPPED
  said = capsys.readouterr().out
  assert "deaf: killed after --grace_s=0.5; what its last checkpoint has is left" in said
  assert "heeds: exit code 75 after" in said and "up" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("argv, says", [
  (["take", "--store=x"], "--pieces: take needs it."),
  (["run", "--store=x", "--out=y", "--steps=3"], "--steps=3: unknown; fields are given to run as --config.FIELD=VALUE"),
])  # fmt: skip
def test_mistakes_are_one_line(argv, says, capsys):
  with pytest.raises(SystemExit) as end:
    machine.main(argv)
  assert end.value.code == 2 and capsys.readouterr().err.splitlines()[-1].rstrip(".").endswith(says.rstrip("."))


def test_a_probe_says_python_and_packages():
  found = machine.probe()
  assert found["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
  assert "ml-dtypes" in found["packages"] and "absl-py" in found["packages"]
