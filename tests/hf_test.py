"""Hugging Face directories: round trips by the byte, sharded reading, and every way weights can be wrong."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fipo_jax.models import hf, make_model, tensor_files
from fipo_jax.sharding import make_mesh

GOLDEN = pathlib.Path(__file__).parent / "golden"
NAMES = ("qwen2/tied_mqa", "qwen2/untied_gqa", "qwen3/tied", "qwen3/untied_gqa", "qwen2_yarn/factor4")


def one_device():
  return make_mesh({"data": 1, "fsdp": 1, "context": 1, "tensor": 1}, jax.devices()[:1])


def load(directory):
  model = make_model(hf.read_config(directory))
  return model, hf.load(directory, model, one_device())


def copy(name, tmp_path):
  shutil.copytree(GOLDEN / name, tmp_path / name)
  return tmp_path / name


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_is_the_same_file(name, tmp_path):
  model, params = load(GOLDEN / name)
  hf.save(tmp_path / "out", params, model.config, template_dir=GOLDEN / name)
  assert (tmp_path / "out/model.safetensors").read_bytes() == (GOLDEN / name / "model.safetensors").read_bytes()
  ours, theirs = (json.loads((d / "config.json").read_text()) for d in (tmp_path / "out", GOLDEN / name))
  assert ours == theirs
  assert not list(tmp_path.glob(".*"))  # nothing half-made is left


def test_bfloat16_round_trip_is_bit_exact(tmp_path):
  source = copy("qwen2/untied_gqa", tmp_path)
  model, params = load(source)
  hf.save(tmp_path / "bf16", params, model.config, template_dir=source, dtype="bfloat16")
  assert json.loads((tmp_path / "bf16/config.json").read_text())["dtype"] == "bfloat16"
  _, wide = load(tmp_path / "bf16")
  assert wide["embed_VD"].dtype == np.float32
  hf.save(tmp_path / "again", wide, model.config, template_dir=tmp_path / "bf16")  # dtype from the template
  assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "bf16/model.safetensors").read_bytes()
  exact = load_file(source / "model.safetensors")
  for tensor, got in load_file(tmp_path / "again/model.safetensors").items():
    assert got.dtype == "bfloat16"
    np.testing.assert_array_equal(got, exact[tensor].astype(got.dtype))


def test_parameters_are_where_they_belong():
  _, params = load(GOLDEN / "qwen2/untied_gqa")
  tensors = load_file(GOLDEN / "qwen2/untied_gqa/model.safetensors")
  layer = "model.layers.1."
  q = tensors[layer + "self_attn.q_proj.weight"]  # [H h, D]
  np.testing.assert_array_equal(params["layers"]["attention"]["q_DHh"][1], q.T.reshape(64, 4, 16))
  np.testing.assert_array_equal(params["layers"]["mlp"]["down_DF"][1], tensors[layer + "mlp.down_proj.weight"])
  scale = tensors[layer + "post_attention_layernorm.weight"]
  np.testing.assert_array_equal(params["layers"]["mlp_norm"]["scale_D"][1], scale)
  np.testing.assert_array_equal(params["head_VD"], tensors["lm_head.weight"])


@pytest.mark.parametrize("mesh_shape", [(2, 2, 1, 2), (1, 4, 1, 2)])
def test_sharded_reading_and_writing(mesh_shape, tmp_path):
  model, whole = load(GOLDEN / "qwen2/untied_gqa")
  mesh = make_mesh(dict(zip(("data", "fsdp", "context", "tensor"), mesh_shape, strict=True)))
  params = hf.load(GOLDEN / "qwen2/untied_gqa", model, mesh)
  jax.tree.map(np.testing.assert_array_equal, params, whole)
  assert jax.tree.map(lambda x: x.sharding, params) == model.shardings(mesh)
  hf.save(tmp_path / "out", params, model.config)
  same = (GOLDEN / "qwen2/untied_gqa/model.safetensors").read_bytes()
  assert (tmp_path / "out/model.safetensors").read_bytes() == same


def test_each_shard_reads_only_its_part(monkeypatch):
  model = make_model(hf.read_config(GOLDEN / "qwen2/untied_gqa"))
  mesh = make_mesh({"data": 1, "fsdp": 4, "context": 1, "tensor": 2})
  sizes = []
  read = hf._shard
  monkeypatch.setattr(hf, "_shard", lambda *x: sizes.append((x[0][-1], read(*x).size)) or read(*x))
  hf.load(GOLDEN / "qwen2/untied_gqa", model, mesh)
  assert {size for name, size in sizes if name == "up_DF"} == {3 * 64 * 160 // 8}


def test_many_files_and_an_index(tmp_path):
  model, params = load(GOLDEN / "qwen2/untied_gqa")
  hf.save(tmp_path / "out", params, model.config, max_shard_bytes=200_000)
  index = json.loads((tmp_path / "out" / tensor_files.INDEX).read_text())
  files = sorted(set(index["weight_map"].values()))
  assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
  assert all((tmp_path / "out" / file).stat().st_size < 210_000 for file in files)
  _, again = load(tmp_path / "out")
  jax.tree.map(np.testing.assert_array_equal, again, params)
  merged = {k: v for file in files for k, v in load_file(tmp_path / "out" / file).items()}
  assert merged.keys() == index["weight_map"].keys()
  assert index["metadata"]["total_size"] == sum(v.nbytes for v in merged.values())
  (tmp_path / "out" / files[1]).unlink()
  with pytest.raises(FileNotFoundError, match=files[1]):
    load(tmp_path / "out")


def test_companions_travel(tmp_path):
  source = copy("qwen2/tied_mqa", tmp_path)
  (source / "tokenizer.json").write_text("{}")
  (source / "unrelated.txt").write_text("no")
  model, params = load(source)
  hf.save(tmp_path / "out", params, model.config, template_dir=source)
  assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_replaces_a_model_but_nothing_else(tmp_path):
  model, params = load(GOLDEN / "qwen2/tied_mqa")
  (tmp_path / "out").mkdir()
  (tmp_path / "out/notes.txt").write_text("mine")
  with pytest.raises(ValueError, match="is not a model; choose another"):
    hf.save(tmp_path / "out", params, model.config)
  assert (tmp_path / "out/notes.txt").read_text() == "mine"
  hf.save(tmp_path / "model", params, model.config)
  hf.save(tmp_path / "model", jax.tree.map(lambda x: x * 2, params), model.config)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), load(tmp_path / "model")[1], params)


def test_failed_save_keeps_the_old_model(tmp_path, monkeypatch):
  model, params = load(GOLDEN / "qwen2/tied_mqa")
  hf.save(tmp_path / "model", params, model.config)

  def full(*_):
    raise OSError("No space left on device")

  monkeypatch.setattr(tensor_files, "write_one", full)
  with pytest.raises(OSError, match="No space"):
    hf.save(tmp_path / "model", params, model.config)
  jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "model")[1], params)


def test_missing_weights(tmp_path):
  source = copy("qwen2/tied_mqa", tmp_path)
  (source / "model.safetensors").unlink()
  with pytest.raises(FileNotFoundError, match="neither model.safetensors nor"):
    load(source)


@pytest.mark.parametrize(
  ("keep", "message"), [(-1, "truncated or damaged"), (100, "cut off in its header"), (3, "cut off")]
)
def test_truncated_weights(keep, message, tmp_path):
  source = copy("qwen2/tied_mqa", tmp_path)
  data = (source / "model.safetensors").read_bytes()
  (source / "model.safetensors").write_bytes(data[:keep])
  with pytest.raises(ValueError, match=message):
    load(source)


def test_missing_tensor_and_wrong_shape(tmp_path):
  source = copy("qwen2/tied_mqa", tmp_path)
  tensors = load_file(source / "model.safetensors")
  name = "model.layers.1.mlp.up_proj.weight"
  save_file({k: v for k, v in tensors.items() if k != name}, source / "model.safetensors")
  with pytest.raises(ValueError, match=rf"tensor {name} is missing.*\[128, 48\]"):
    load(source)
  save_file(tensors | {name: tensors[name][:100].copy()}, source / "model.safetensors")
  with pytest.raises(ValueError, match=rf"tensor {name} has shape \[100, 48\], expected \[128, 48\]"):
    load(source)


def test_tensors_without_a_place_are_refused(tmp_path):
  source = copy("qwen3/untied_gqa", tmp_path)
  tensors = load_file(source / "model.safetensors")
  save = lambda more: save_file(tensors | more, source / "model.safetensors")
  save({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(10, np.float32)})
  load(source)
  bias = {f"model.layers.{i}.self_attn.q_proj.bias": np.ones(80, np.float32) for i in range(2)}
  save(bias)
  with pytest.raises(ValueError, match=r"tensor model.layers.0.self_attn.q_proj.bias has no place .* \(2 such tensors"):
    load(source)
  save({"model.layers.2.self_attn.q_norm.weight": np.ones(20, np.float32)})  # num_hidden_layers is too small
  with pytest.raises(ValueError, match=r"tensor model.layers.2.self_attn.q_norm.weight has no place in .* describes\."):
    load(source)


def test_a_tied_model_published_with_its_head(tmp_path):
  source = copy("qwen3/tied", tmp_path)
  tensors = load_file(source / "model.safetensors")
  table = tensors["model.embed_tokens.weight"]
  save_file(tensors | {"lm_head.weight": table.copy()}, source / "model.safetensors")
  _, params = load(source)
  np.testing.assert_array_equal(params["embed_VD"], table)
  table = table.copy()
  table[-1, -1] += 1
  save_file(tensors | {"lm_head.weight": table}, source / "model.safetensors")
  with pytest.raises(ValueError, match="tie_word_embeddings=true, but tensors lm_head.weight and .* differ"):
    load(source)


def test_unsupported_dtype(tmp_path):
  source = copy("qwen2/tied_mqa", tmp_path)
  tensors = load_file(source / "model.safetensors")
  save_file({k: v.astype(np.int8) for k, v in tensors.items()}, source / "model.safetensors")
  with pytest.raises(ValueError, match="dtype I8; expected one of"):
    load(source)


def test_save_refuses_a_foreign_template_and_dtype(tmp_path):
  model, params = load(GOLDEN / "qwen2/tied_mqa")
  with pytest.raises(ValueError, match="vocab_size=320 of the template, but 256"):
    hf.save(tmp_path / "out", params, model.config, template_dir=GOLDEN / "qwen2/untied_gqa")
  with pytest.raises(ValueError, match="dtype='int4' is unknown"):
    hf.save(tmp_path / "out", params, model.config, dtype="int4")
  assert not list(tmp_path.iterdir())
