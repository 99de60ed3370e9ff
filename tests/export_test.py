"""Any checkpoint as a Hugging Face directory, read by layers: the same bytes, in bounded memory."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from fipo_jax import config, export, sharding
from fipo_jax.data.tokenizer import characters
from fipo_jax.models import PRESETS, hf, make_model
from fipo_jax.train import checkpoint, state, stored_arrays
from fipo_jax.train.checkpoint import Checkpointer
from fipo_jax.train.optimizer import make_optimizer, schedule

ROOT = pathlib.Path(__file__).resolve().parent.parent
ALPHABET = "0123456789 +-="
CONFIG = dataclasses.replace(
  PRESETS["tiny"], vocab_size=characters(ALPHABET).vocab_size, num_layers=12, d_model=32, d_mlp=96, num_heads=2,
  num_kv_heads=2, head_dim=16,
)  # fmt: skip


def saved(folder, *, model=CONFIG, ways=4, large=checkpoint.LARGE, steps=(1, 2)):
  """A run with checkpoints of random weights, cut over devices; returns its config and the parameters of each step."""
  m = make_model(model)
  rate = schedule(learning_rate=1e-2, warmup_updates=0, total_updates=10, kind="constant")
  optimizer = make_optimizer(rate, name="adamw", b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1, clip_norm=1.0)
  mesh = sharding.make_mesh({"data": 1, "fsdp": ways, "context": 1, "tensor": 1}, jax.devices()[:ways])
  layout = state.layout(state.abstract(m, optimizer, mesh))
  before, checkpoint.LARGE = checkpoint.LARGE, large
  saver, params = Checkpointer(folder, keep=len(steps), best=1), {}
  for step in steps:
    params[step] = jax.jit(m.init, out_shardings=layout.params)(jax.random.key(step))
    s = jax.jit(lambda p: state.create(p, optimizer), out_shardings=layout)(params[step])
    saver.save(step, s, {"seconds": 1.0}, accuracy=1.0 / step)
  saver.close()
  checkpoint.LARGE = before
  hf.save(folder / "model", m.policy_params(params[steps[0]]), m.policy().config)
  characters(ALPHABET).save(folder / "model")
  c = config.default()
  c.workdir, c.model.path, c.compile_cache = str(folder), str(folder / "model"), ""
  c.data.max_prompt_tokens, c.rollout.max_response_tokens = 16, 32
  return c, params


def same_files(a, b):
  names = sorted(p.name for p in a.glob("*.safetensors"))
  assert names and names == sorted(p.name for p in b.glob("*.safetensors"))
  for name in (*names, "config.json"):
    assert (a / name).read_bytes() == (b / name).read_bytes(), name


@pytest.mark.parametrize(("large", "room", "passes"), [
  pytest.param(checkpoint.LARGE, 3.8e5, 4, id="whole"), pytest.param(0, 2e4, 1, id="layers"),
])  # fmt: skip
def test_an_export_has_the_bytes_of_the_model_in_memory(tmp_path, capsys, large, room, passes):
  """Pieces that hold all layers, as earlier versions saved them, are read again for each few layers that fit."""
  model = dataclasses.replace(CONFIG, value_head=True)  # which an export leaves out
  c, params = saved(tmp_path, model=model, large=large)
  policy = make_model(model).policy()
  for step, asked in ((1, "best"), (2, None), (1, 1)):
    hf.save(tmp_path / "want", make_model(model).policy_params(params[step]), policy.config, template_dir=c.model.path)
    assert export.export(c, str(tmp_path / "out"), step=asked, room_bytes=room) == step
    same_files(tmp_path / "out", tmp_path / "want")
  assert (tmp_path / "out/tokenizer.json").exists()
  said = capsys.readouterr().out
  assert said.count("it is read") == (3 if passes > 1 else 0) and (passes == 1 or f"read {passes} times" in said)


def test_a_preset_brings_its_tokenizer_and_dtype_is_a_choice(tmp_path):
  c, params = saved(tmp_path, steps=(3,))
  c.model.path, c.model.preset, c.model.alphabet = "", "tiny", ALPHABET
  with pytest.raises(ValueError, match=r"embed_VD has shape \[18, 32\], the model expects \[18, 160\]"):
    export.export(c, str(tmp_path / "out"))
  c.model.path, c.model.preset, c.model.alphabet = str(tmp_path / "model"), "", ""
  export.export(c, str(tmp_path / "out"), dtype="bfloat16")
  config_json = json.loads((tmp_path / "out/config.json").read_text())
  assert config_json["torch_dtype"] == "bfloat16"
  got = hf.load(tmp_path / "out", make_model(CONFIG), sharding.make_mesh(c.mesh, jax.devices()[:1]))
  want = np.asarray(params[3]["embed_VD"]).astype(jax.numpy.bfloat16).astype(np.float32)
  np.testing.assert_array_equal(np.asarray(got["embed_VD"]), want)


def test_layers_are_read_ahead_in_the_order_in_which_they_are_asked_for(tmp_path):
  saved(tmp_path, steps=(1,))
  shapes = make_model(CONFIG).policy().abstract()
  order = sorted(range(12), key=str)
  folder, gate = checkpoint.folder_of(tmp_path) / "1/state", 4 * CONFIG.d_model * CONFIG.d_mlp
  matrices = sum(len(x.shape) > 2 for x in jax.tree.leaves(shapes["layers"]))  # which share the room
  tree = stored_arrays.open_all(folder, shapes, room_bytes=3 * gate * matrices, order=lambda n: order)
  x = tree["layers"]["mlp"]["gate_DF"]
  assert x.passes == 4 and x.shape == shapes["layers"]["mlp"]["gate_DF"].shape
  first = x[0]
  assert [*x._have] == [1, 10]
  np.testing.assert_array_equal(np.stack([first, *(x[i] for i in order[1:])]), np.asarray(x)[order])


@pytest.mark.slow
def test_mistakes_are_one_line(tmp_path):
  def refused(says, *arguments):
    done = subprocess.run(
      [sys.executable, "launch/export.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and says in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1

  refused("no run there; expected a folder with config.json", f"--run={tmp_path}", "--out=x")
  refused("--step=last: expected the number of a checkpoint, or 'best'", f"--run={tmp_path}", "--out=x", "--step=last")


LIMITED = """
import resource, sys
sys.path.insert(0, {root!r})
import jax, tensorstore
from fipo_jax import export, saved
jax.config.update("jax_platforms", "cpu")
cfg = saved.get_config({run!r} + "/config.json")
cfg.workdir = {run!r}
export.export(cfg, {warm!r}, step=1, room_bytes=1e6)  # what a small one needs is not counted
pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages + {more}, resource.RLIM_INFINITY))
export.export(cfg, {out!r}, step=2, room_bytes=1e6)
"""


@pytest.mark.slow
def test_an_export_fits_a_memory_limit_far_below_the_model(tmp_path):
  """RLIMIT_AS leaves an eighth of the model beside what the program had: a whole stack of layers would not fit."""
  model = dataclasses.replace(CONFIG, num_layers=24, d_model=640, d_mlp=2048, num_heads=5, num_kv_heads=1, head_dim=128)
  c, params = saved(tmp_path, model=model, ways=8, large=0)
  (tmp_path / "config.json").write_text(c.to_json())
  size = sum(x.nbytes for x in jax.tree.leaves(params[2]))
  stack = max(x.nbytes for x in jax.tree.leaves(params[2]))
  more = size // 8
  assert stack > 1.5 * more
  script = LIMITED.format(
    root=str(ROOT), run=str(tmp_path), warm=str(tmp_path / "warm"), out=str(tmp_path / "out"), more=more
  )
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=900, cwd=tmp_path,
                        env={**os.environ, "JAX_PLATFORMS": "cpu"})  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  hf.save(tmp_path / "want", params[2], make_model(model).policy().config, template_dir=c.model.path)
  same_files(tmp_path / "out", tmp_path / "want")
