"""config.json of Hugging Face directories: read, and written as the published models have it.

What would change the numbers and is not here is refused by name, in one line.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

from fipo_jax import paths
from fipo_jax.models import tensor_files
from fipo_jax.models.rotary import Yarn
from fipo_jax.models.transformer import FAMILIES, NUMERICS, ModelConfig

ROPE = ("rope_parameters", "rope_scaling")  # where rotary scaling stands: transformers 5, and published files
# Field of either -> field of Yarn. Others than these and what names the kind are refused.
YARN_FIELDS = {
  "factor": "factor", "original_max_position_embeddings": "original_max_position",
  "attention_factor": "attention_factor", "beta_fast": "beta_fast", "beta_slow": "beta_slow", "mscale": "mscale",
  "mscale_all_dim": "mscale_all_dim", "truncate": "truncate",
}  # fmt: skip
# Field -> (values that change nothing beside being absent or null, what they mean).
SUPPORTED: dict[str, tuple[tuple, str]] = {
  "use_sliding_window": ((False,), "full attention"),
  "hidden_act": (("silu",), "'silu'"),
  "partial_rotary_factor": ((1,), "1"),
  "original_max_position_embeddings": ((), "a field inside rope_scaling or rope_parameters"),
}
SUPPORTED_OF = {"qwen2": {}, "qwen3": {"attention_bias": ((False,), "false")}}
# What a field is to be -> (its types in JSON, in words).
KINDS = {
  int: (int, "a whole number"), float: (int | float, "a number"), bool: (bool, "a boolean"), str: (str, "a name"),
}  # fmt: skip


def read_config(directory) -> ModelConfig:
  """The ModelConfig of a Hugging Face directory; numerics (`transformer.NUMERICS`) are left at their defaults.

  Raises:
    FileNotFoundError: no config.json. ValueError: not JSON, a field is missing, or a model this code is not.
  """
  path = paths.of(directory) / "config.json"
  if not paths.is_file(path):
    raise FileNotFoundError(f"{path} does not exist; expected a Hugging Face model directory.")
  published = tensor_files.read_json(path)
  try:
    return _config(published)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def published_config(config: ModelConfig) -> dict:
  """config.json as the published files of this family have it."""
  heads = {"head_dim": config.head_dim}
  if config.family == "qwen3":
    own = {"architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "rope_scaling": None} | heads
  else:
    own = {"architectures": ["Qwen2ForCausalLM"]}
    own |= heads if config.head_dim * config.num_heads != config.d_model else {}
  own |= {"rope_scaling": {"rope_type": "yarn"} | _written(config.yarn)} if config.yarn else {}
  fields = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": config.d_model,
    "initializer_range": config.init_std,
    "intermediate_size": config.d_mlp,
    "max_position_embeddings": config.max_position,
    "max_window_layers": config.num_layers,
    "model_type": config.family,
    "num_attention_heads": config.num_heads,
    "num_hidden_layers": config.num_layers,
    "num_key_value_heads": config.num_kv_heads,
    "rms_norm_eps": config.norm_eps,
    "rope_theta": config.rope_theta,
    "sliding_window": None,
    "tie_word_embeddings": config.tie_embeddings,
    "torch_dtype": "float32",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": config.vocab_size,
  }
  return dict(sorted((own | fields).items()))


def template_config(template, config: ModelConfig) -> dict:
  """The template's config.json with this model's longest sequence; all other sizes must be equal."""
  theirs = read_config(template)
  for field in dataclasses.fields(ModelConfig):
    name = field.name
    if name in NUMERICS or name == "max_position":
      continue
    if getattr(theirs, name) != getattr(config, name):
      raise ValueError(
        f"{template}: {name}={getattr(theirs, name)} of the template, but {getattr(config, name)} of the model to save."
      )
  published = tensor_files.read_json(template / "config.json")
  for name in ROPE:
    if config.yarn and config.max_position != theirs.max_position and published.get(name):
      # What is not said of YaRN follows from max_position_embeddings, which will be another.
      said = {field: value for field, value in published[name].items() if value is not None}
      published[name] = _written(config.yarn) | said
  return published | {"max_position_embeddings": config.max_position}


def _written(yarn: Yarn) -> dict:
  """Fields of rope_scaling: what YaRN needs, and what is not as it is by default."""
  defaults = {field.name: field.default for field in dataclasses.fields(Yarn)}
  values = {field: getattr(yarn, name) for field, name in YARN_FIELDS.items()}
  return {field: value for field, value in values.items() if value != defaults[YARN_FIELDS[field]]}


def _config(published: dict) -> ModelConfig:
  need = functools.partial(_need, published)
  if (family := need("model_type", str)) not in FAMILIES:
    raise ValueError(f"model_type={family!r} is not supported; only 'qwen2' and 'qwen3' are.")
  for field, (values, what) in (SUPPORTED | SUPPORTED_OF[family]).items():
    found = published.get(field)
    if found is not None and found not in values:
      raise ValueError(f"{field}={_shown(found)} is not supported; only {what} is.")
  for kind in published.get("layer_types") or ():
    if kind != "full_attention":
      raise ValueError(f"layer_types has {kind!r}, which is not supported; only 'full_attention' is.")
  theta, yarn = _rotary(published)
  own_heads = family == "qwen3" or published.get("head_dim")  # transformers has 128 for a qwen3 that does not say
  return ModelConfig(
    vocab_size=need("vocab_size"),
    num_layers=need("num_hidden_layers"),
    d_model=need("hidden_size"),
    d_mlp=need("intermediate_size"),
    num_heads=need("num_attention_heads"),
    num_kv_heads=need("num_key_value_heads"),
    head_dim=need("head_dim") if own_heads else need("hidden_size") // need("num_attention_heads"),
    rope_theta=theta,
    norm_eps=float(need("rms_norm_eps", float)),
    tie_embeddings=need("tie_word_embeddings", bool),
    max_position=need("max_position_embeddings"),
    init_std=float(_need({"initializer_range": 0.02} | published, "initializer_range", float)),
    family=family,
    yarn=yarn,
  )


def _rotary(published: dict) -> tuple[float, Yarn | None]:
  """(θ, YaRN or None) of rope_parameters or rope_scaling; θ may stand at the top level."""
  given = {name: published[name] for name in ROPE if published.get(name)}
  if len(given) == 2 and given[ROPE[0]] != given[ROPE[1]]:
    raise ValueError(f"{ROPE[0]} and {ROPE[1]} are both given and differ; keep one, with all that is meant.")
  name, rope = next(iter(given.items()), (ROPE[0], {}))
  if not isinstance(rope, dict):
    raise ValueError(f"{name}={_shown(rope)}: expected an object.")
  kind = rope.get("rope_type") or rope.get("type") or "default"
  if kind not in ("default", "yarn"):
    raise ValueError(f"rotary scaling {kind!r} is not supported; only 'default' and 'yarn' are.")
  known = {"rope_type", "type", "rope_theta", *(YARN_FIELDS if kind == "yarn" else ())}
  for field, value in rope.items():
    if field not in known and not (field == "partial_rotary_factor" and value in (None, 1)):
      raise ValueError(f"{name}.{field}={_shown(value)} is not supported with rotary scaling {kind!r}.")
  theta = _need(rope if rope.get("rope_theta") is not None else published, "rope_theta", float)
  longest = _need(published, "max_position_embeddings")
  return float(theta), _yarn(rope, longest, name + ".") if kind == "yarn" else None


def _yarn(rope: dict, longest: int, of: str) -> Yarn:
  """Whatever transformers takes where a field is absent or null; but a factor must be named, and null is a ratio."""
  kinds = {"truncate": bool, "original_max_position_embeddings": int}
  found = [field for field in YARN_FIELDS if rope.get(field) is not None or (field == "factor" and field not in rope)]
  said = {field: _need(rope, field, kinds.get(field, float), of) for field in found}
  original = said.setdefault("original_max_position_embeddings", longest)
  said["factor"] = float(said.get("factor", longest / max(original, 1)))
  return Yarn(**{YARN_FIELDS[field]: value for field, value in said.items()})


def _need(fields: dict, field: str, kind: type = int, of: str = "") -> Any:
  if (value := fields.get(field)) is None:
    raise ValueError(f"the field {of + field!r} is missing.")
  of_kind, what = KINDS[kind]
  if not isinstance(value, of_kind) or isinstance(value, bool) != (kind is bool):
    raise ValueError(f"{of}{field}={_shown(value)}: expected {what}.")
  return value


def _shown(value) -> str:
  return repr(value) if isinstance(value, str) else json.dumps(value)
