"""Hugging Face directories in and out: safetensors, config.json (hf_config.py), and the files that travel with them.

Reading goes straight from the memory-mapped file into each device's shard: no tensor is ever whole on the host
unless a device holds it whole; from a bucket come the rows that a shard has, without a copy on a disk. Writing
streams one tensor at a time. Names, shapes and dtypes are those of the published files.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fipo_jax import paths
from fipo_jax.models import tensor_files
from fipo_jax.models.hf_config import published_config, read_config, template_config
from fipo_jax.models.transformer import Model, ModelConfig

__all__ = ["load", "read_config", "save"]

# Our parameter -> (published name, layout). "same": HF [out, in] is ours once [H, h] are joined or split;
# "flip": ours is the transpose. Names with {} have one tensor per layer, stacked by us on a leading axis.
NAMES: dict[tuple[str, ...], tuple[str, str]] = {
  ("embed_VD",): ("model.embed_tokens.weight", "same"),
  ("layers", "attention_norm", "scale_D"): ("model.layers.{}.input_layernorm.weight", "same"),
  ("layers", "attention", "q_DHh"): ("model.layers.{}.self_attn.q_proj.weight", "flip"),
  ("layers", "attention", "q_bias_Hh"): ("model.layers.{}.self_attn.q_proj.bias", "same"),
  ("layers", "attention", "k_DKh"): ("model.layers.{}.self_attn.k_proj.weight", "flip"),
  ("layers", "attention", "k_bias_Kh"): ("model.layers.{}.self_attn.k_proj.bias", "same"),
  ("layers", "attention", "v_DKh"): ("model.layers.{}.self_attn.v_proj.weight", "flip"),
  ("layers", "attention", "v_bias_Kh"): ("model.layers.{}.self_attn.v_proj.bias", "same"),
  ("layers", "attention", "q_scale_h"): ("model.layers.{}.self_attn.q_norm.weight", "same"),
  ("layers", "attention", "k_scale_h"): ("model.layers.{}.self_attn.k_norm.weight", "same"),
  ("layers", "attention", "o_DHh"): ("model.layers.{}.self_attn.o_proj.weight", "same"),
  ("layers", "mlp_norm", "scale_D"): ("model.layers.{}.post_attention_layernorm.weight", "same"),
  ("layers", "mlp", "gate_DF"): ("model.layers.{}.mlp.gate_proj.weight", "flip"),
  ("layers", "mlp", "up_DF"): ("model.layers.{}.mlp.up_proj.weight", "flip"),
  ("layers", "mlp", "down_DF"): ("model.layers.{}.mlp.down_proj.weight", "same"),
  ("final_norm", "scale_D"): ("model.norm.weight", "same"),
  ("head_VD",): ("lm_head.weight", "same"),
}
COMPANIONS = (
  "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
  "added_tokens.json", "chat_template.jinja", "chat_template.json", "generation_config.json", "LICENSE",
)  # fmt: skip
DERIVED = ("rotary_emb.inv_freq",)  # ends of names of tensors, in some old files, that config.json says as well
# config.json fields that say how the weights are stored; the second is the newer name.
STORAGE_FIELDS = ("torch_dtype", "dtype")


# ---- reading ----


def load(directory, model: Model, mesh) -> dict:
  """Reads parameters into shards on the mesh, one parameter after the other.

  Args:
    directory: holds model.safetensors, or the files named in model.safetensors.index.json; f32, f16 or bf16.
    model: says shapes and dtype; its param_dtype is what comes out.
  Raises:
    FileNotFoundError: no weights. ValueError: a file is broken, a tensor is missing, has another shape, or is one that
      this model has no place for.
  """
  tensors = tensor_files.open_all(directory)
  shapes, shardings = model.abstract(), model.shardings(mesh)
  _check_all_are_used(directory, tensors, shapes)
  for path, target in _leaves(shapes):  # all shapes first: nothing is allocated for a model that does not fit
    for name in _published_names(path, target.shape):
      expected = _published_shape(path, target.shape)
      if name not in tensors:
        raise ValueError(f"{directory}: tensor {name} is missing; the model expects shape {list(expected)}.")
      found = tensors[name].shape
      if found != expected:
        raise ValueError(f"{directory}: tensor {name} has shape {list(found)}, expected {list(expected)}.")

  def read(path, target, sharding):
    sources = [tensors[name] for name in _published_names(path, target.shape)]
    shard = lambda index: _shard(path, target, sources, index)
    return jax.make_array_from_callback(target.shape, sharding, shard)

  flat = [(path, read(path, target, _at(shardings, path))) for path, target in _leaves(shapes)]
  return _nest(flat)


def _check_all_are_used(directory, tensors, shapes) -> None:
  """Refuses tensors that would be left out and are none that follow from others."""
  used = {name for path, target in _leaves(shapes) for name in _published_names(path, target.shape)}
  head, table = NAMES["head_VD",][0], NAMES["embed_VD",][0]
  if head in tensors and head not in used:  # some tied models are published with both
    a, b = (tensors[name] for name in (head, table))
    if a.dtype != b.dtype or a.shape != b.shape or not _equal(a, b):
      raise ValueError(f"{directory}: tie_word_embeddings=true, but tensors {head} and {table} differ.")
  left = sorted(name for name in tensors if name not in used and name != head and not name.endswith(DERIVED))
  if left:
    more = f" ({len(left)} such tensors)" if len(left) > 1 else ""
    raise ValueError(f"{directory}: tensor {left[0]} has no place in the model that config.json describes{more}.")


def _equal(a, b, rows: int = 4096) -> bool:
  """Whether two large tables have the same bytes, some rows at a time."""
  part = lambda x, i: x[i : i + rows].view(np.uint8)
  return all(np.array_equal(part(a, i), part(b, i)) for i in range(0, len(a), rows))


def _shard(path, target, sources, index) -> np.ndarray:
  """The part `index` of one parameter, read from its published tensors ([out, in] each)."""
  stacked, bounds = path[0] == "layers", [range(size)[cut] for size, cut in zip(target.shape, index, strict=True)]
  inner = bounds[1:] if stacked else bounds
  out = np.empty([len(bound) for bound in bounds], target.dtype)
  layers = bounds[0] if stacked else [0]
  for slot, layer in enumerate(layers):
    part = sources[layer]
    if len(inner) == 3:  # [D, heads, h]: heads are cut whole, so a cut is a range of the joined axis
      size = target.shape[-1]
      joined = slice(inner[1].start * size, inner[1].stop * size)
      width = slice(inner[0].start, inner[0].stop)
      part = part[joined, width].T if NAMES[path][1] == "flip" else part[width, joined]
    elif _has_heads(path):  # bias [heads, h]
      part = part[inner[0].start * target.shape[-1] : inner[0].stop * target.shape[-1]]
    else:
      cuts = tuple(slice(bound.start, bound.stop) for bound in inner)
      part = part[cuts[::-1]].T if NAMES[path][1] == "flip" else part[cuts]
    where = out[slot] if stacked else out
    where[...] = part.reshape(where.shape)
  return out


# ---- writing ----


def save(
  directory, params, config: ModelConfig, *, template_dir=None, dtype: str | None = None, max_shard_bytes: float = 5e9
) -> None:
  """Writes a Hugging Face directory with the names, shapes and dtypes of the published models.

  Every process calls it; process 0 writes. One tensor at a time is brought to the host. The directory appears whole or
  not at all; an earlier model of that name is replaced only once the new one is complete. In a bucket, which renames
  nothing, its objects are then copied within it, config.json last: a folder without it is no model.

  Args:
    params: as of `Model.init` or `load`. config: theirs.
    template_dir: a Hugging Face directory whose config.json, tokenizer and generation files are carried over.
    dtype: float32, float16 or bfloat16; default: what the template's config.json says, else float32.
    max_shard_bytes: more than this is written as several files and an index.
  Raises:
    ValueError: the template is another model, the dtype is unknown, or the directory holds something else.
  """
  directory = paths.of(directory)
  template = None if template_dir is None else paths.of(template_dir)
  partial = directory.with_name(f".{directory.name}.partial")
  published = published_config(config) if template is None else template_config(template, config)
  known = next((published[field] for field in STORAGE_FIELDS if published.get(field)), "float32")
  dtype = known if dtype is None else dtype
  if dtype not in tensor_files.DTYPE_NAMES:
    raise ValueError(f"dtype={dtype!r} is unknown; choose from {sorted(tensor_files.DTYPE_NAMES)}.")
  field = next((field for field in STORAGE_FIELDS if field in published), "torch_dtype")
  published = {**published, field: dtype}
  foreign = paths.names(directory) and not paths.is_file(directory / "config.json")
  if foreign and not (paths.is_remote(partial) and paths.is_file(partial / "config.json")):  # was on its way there
    raise ValueError(f"{directory} exists and is not a model; choose another directory.")

  def tensors():  # in the order of their names, as the published files have them
    named = [
      (name, path, layer)
      for path, leaf in _leaves(params)
      for layer, name in enumerate(_published_names(path, leaf.shape))
    ]
    for name, path, layer in sorted(named):
      leaf = _at(params, path)
      yield name, _published_shape(path, leaf.shape), functools.partial(_fetch, path, leaf, layer, dtype)

  if jax.process_index():
    for _, _, fetch in tensors():  # takes part in the gathers, keeps nothing
      fetch()
    return
  paths.delete_folder(partial)
  paths.make_folder(partial)
  tensor_files.write_all(partial, list(tensors()), dtype, max_shard_bytes)
  for name in COMPANIONS if template is not None else ():
    if paths.is_file(template / name):
      paths.copy(template / name, partial / name)
  paths.write(partial / "config.json", json.dumps(published, indent=2) + "\n")
  _replace(partial, directory)


@functools.partial(jax.jit, static_argnums=2)
def _gathered(x, index, whole: NamedSharding):
  """An array, or one layer of a stack, on every device; compiled once per shape, and not per tensor."""
  x = x if index is None else jax.lax.dynamic_index_in_dim(x, index, keepdims=False)
  return jax.lax.with_sharding_constraint(x, whole)


def _fetch(path, leaf, layer: int, dtype: str) -> np.ndarray:
  """One published tensor on the host: [out, in], contiguous, in the file's dtype."""
  stacked, target = path[0] == "layers", np.dtype(dtype)
  if leaf.is_fully_addressable:
    host = np.asarray(leaf[layer] if stacked else leaf)
  else:
    host = np.asarray(_gathered(leaf, layer if stacked else None, NamedSharding(leaf.sharding.mesh, PartitionSpec())))
  if _has_heads(path):
    host = host.reshape(*host.shape[:-2], -1)
  host = host.T if NAMES[path][1] == "flip" else host
  return np.ascontiguousarray(host.astype(target, copy=False))


def _replace(partial, directory) -> None:
  if paths.is_remote(directory):
    paths.delete_folder(directory, first="config.json")
    paths.move_folder(partial, directory, last="config.json")
    return
  old = directory.with_name(f".{directory.name}.old")
  paths.delete_folder(old)
  if paths.is_folder(directory):
    directory.rename(old)
  partial.rename(directory)
  paths.delete_folder(old)


# ---- names and shapes ----


def _leaves(tree, path=()) -> Iterator[tuple[tuple[str, ...], jax.ShapeDtypeStruct]]:
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _leaves(value, (*path, key))
    else:
      yield (*path, key), value


def _at(tree, path):
  for key in path:
    tree = tree[key]
  return tree


def _nest(flat) -> dict:
  tree: dict = {}
  for path, value in flat:
    node = tree
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = value
  return tree


def _has_heads(path) -> bool:
  """Whether the last two axes are [heads, h], one axis in the files."""
  return path[-1].endswith(("Hh", "Kh"))


def _published_names(path, shape) -> list[str]:
  name = NAMES[path][0]
  return [name.format(layer) for layer in range(shape[0])] if "{}" in name else [name]


def _published_shape(path, shape) -> tuple[int, ...]:
  """Shape of one published tensor of this parameter: heads joined, [out, in]."""
  shape = shape[1:] if path[0] == "layers" else shape
  if _has_heads(path):
    shape = (*shape[:-2], shape[-2] * shape[-1])
  return shape[::-1] if NAMES[path][1] == "flip" else shape
