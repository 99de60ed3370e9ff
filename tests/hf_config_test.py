"""config.json of Hugging Face directories: both styles, what is written, and what is refused."""

import dataclasses
import json
import pathlib

import pytest

from fipo_jax.models import PRESETS, hf, hf_config
from fipo_jax.models.rotary import Yarn

GOLDEN = pathlib.Path(__file__).parent / "golden"


def changed(tmp_path, name, **fields):
  """A folder with that golden config.json alone, some of its fields changed; `...` leaves one out."""
  config = json.loads((GOLDEN / name / "config.json").read_text()) | fields
  (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
  return tmp_path


def test_rope_theta_in_both_styles(tmp_path):
  assert hf.read_config(GOLDEN / "qwen2/tied_mqa").rope_theta == 10000.0
  assert hf.read_config(changed(tmp_path, "qwen2/tied_mqa", rope_parameters=..., rope_theta=5e5)).rope_theta == 5e5


@pytest.mark.parametrize("name", ["qwen2/untied_gqa", "qwen3/untied_gqa", "qwen2_yarn/factor4"])
def test_written_config_reads_back(name, tmp_path):
  config = hf.read_config(GOLDEN / name)
  assert config.head_dim != config.d_model // config.num_heads or config.family == "qwen2"
  for change in ({}, {"head_dim": 6}, {"yarn": Yarn(2.5, 64, attention_factor=1.25, beta_slow=2.0, truncate=False)}):
    changed = dataclasses.replace(config, **change)
    (tmp_path / "config.json").write_text(json.dumps(hf_config.published_config(changed)))
    assert hf.read_config(tmp_path) == changed


def test_written_config_has_the_fields_of_the_published_ones():
  """Those of Qwen/Qwen3-8B and Qwen/Qwen2.5-7B, but for token ids and a version, which only their files can know."""
  common = {
    "architectures", "attention_dropout", "hidden_act", "hidden_size", "initializer_range", "intermediate_size",
    "max_position_embeddings", "max_window_layers", "model_type", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "rms_norm_eps", "rope_theta", "sliding_window", "tie_word_embeddings", "torch_dtype",
    "use_cache", "use_sliding_window", "vocab_size",
  }  # fmt: skip
  assert hf_config.published_config(PRESETS["qwen2_5_7b"]).keys() == common
  written = hf_config.published_config(PRESETS["qwen3_8b"])
  assert written.keys() == common | {"attention_bias", "head_dim", "rope_scaling"}
  assert written["architectures"] == ["Qwen3ForCausalLM"] and written["rope_scaling"] is None
  card = dataclasses.replace(PRESETS["qwen3_8b"], yarn=Yarn(4.0, 32768))
  scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
  assert hf_config.published_config(card) == written | {"rope_scaling": scaling}


@pytest.mark.parametrize(("rope", "yarn"), [
  ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, Yarn(4.0, 32)),
  ({"type": "yarn", "factor": 4, "original_max_position_embeddings": 32, "mscale": None}, Yarn(4.0, 32)),
  ({"type": "yarn", "factor": 4.0}, Yarn(4.0, 128)),
  ({"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 64}, Yarn(2.0, 64)),
  ({"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.5, "beta_fast": 16, "beta_slow": 2, "mscale": 0.5,
    "mscale_all_dim": 0.25, "truncate": False}, Yarn(2.0, 128, 1.5, 16, 2, 0.5, 0.25, False)),
  ({"rope_type": "default"}, None), (None, None),
], ids=str)  # fmt: skip
def test_yarn_in_both_styles(rope, yarn, tmp_path):
  new = None if rope is None else rope | {"rope_theta": 1e6}
  config = hf.read_config(changed(tmp_path, "qwen2_yarn/factor4", rope_parameters=new, rope_theta=1e6))
  assert (config.yarn, config.rope_theta, config.max_position) == (yarn, 1e6, 128)
  published = changed(tmp_path, "qwen2_yarn/factor4", rope_parameters=..., rope_scaling=rope, rope_theta=1e6)
  assert hf.read_config(published) == config


def test_yarn_says_how_long_a_sequence_may_be(tmp_path):
  card = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
  read = lambda **fields: hf.read_config(changed(tmp_path, "qwen2_yarn/factor4", **fields)).longest
  assert read(rope_parameters=..., rope_scaling=card, rope_theta=1e6, max_position_embeddings=32) == 128
  assert read(max_position_embeddings=200) == 200  # more than the factor says
  assert read(rope_parameters={"rope_theta": 1e6}) == 128


@pytest.mark.parametrize("rope", [
  {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}, {"type": "yarn", "factor": None, "rope_theta": 1e6},
])  # fmt: skip
def test_yarn_outlives_another_longest_sequence(rope, tmp_path):
  """It says nothing of the original length, or of the factor: these are not to follow what model.max_position says."""
  template = changed(tmp_path, "qwen2_yarn/factor4", rope_parameters=rope)
  config = hf.read_config(template)
  again = hf_config.template_config(template, config)
  assert again["rope_parameters"] == rope
  longer = dataclasses.replace(config, max_position=1000)
  (tmp_path / "config.json").write_text(json.dumps(hf_config.template_config(template, longer)))
  assert hf.read_config(tmp_path) == longer


@pytest.mark.parametrize(
  ("name", "fields", "message"),
  [
    ("qwen2/tied_mqa", {"model_type": "llama"}, "model_type='llama' is not supported; only 'qwen2' and 'qwen3'"),
    ("qwen3/tied", {"model_type": "qwen3_moe"}, "model_type='qwen3_moe' is not supported"),
    ("qwen2/tied_mqa", {"use_sliding_window": True}, "use_sliding_window=true is not supported; only full attention"),
    ("qwen3/tied", {"use_sliding_window": True}, "use_sliding_window=true"),
    ("qwen3/tied", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "'sliding_attention'"),
    ("qwen2/tied_mqa", {"layer_types": ["linear_attention", "full_attention"]}, "'linear_attention'"),
    ("qwen2/tied_mqa", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ("qwen3/tied", {"attention_bias": True}, "attention_bias=true is not supported; only false is"),
    ("qwen3/tied", {"head_dim": ...}, "field 'head_dim' is missing"),
    ("qwen3/tied", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
    ("qwen2/tied_mqa", {"num_hidden_layers": ...}, "field 'num_hidden_layers' is missing"),
    ("qwen2/tied_mqa", {"rope_parameters": ...}, "field 'rope_theta' is missing"),
    ("qwen2/tied_mqa", {"rope_parameters": {"rope_theta": None}}, "field 'rope_theta' is missing"),
    ("qwen2/tied_mqa", {"hidden_size": "48"}, "hidden_size='48': expected a whole number"),
    ("qwen2/tied_mqa", {"rms_norm_eps": [1e-6]}, r"rms_norm_eps=\[1e-06\]: expected a number"),
    ("qwen2/tied_mqa", {"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes': expected a boolean"),
    ("qwen2/tied_mqa", {"model_type": 2}, "model_type=2: expected a name"),
    ("qwen2/tied_mqa", {"rope_parameters": {"rope_type": "dynamic"}}, "rotary scaling 'dynamic' is not supported"),
    ("qwen3/tied", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rotary scaling 'llama3'"),
    ("qwen3/tied", {"rope_parameters": ..., "rope_scaling": {"type": "linear", "factor": 2.0}}, "scaling 'linear'"),
    ("qwen3/tied", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_parameters and rope_scaling are both"),
    ("qwen3/tied", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_parameters.full_attention="),
    ("qwen3/tied", {"rope_parameters": "yarn"}, "rope_parameters='yarn': expected an object"),
    ("qwen2_yarn/factor4", {"original_max_position_embeddings": 32}, "only a field inside rope_scaling"),
    *(
      ("qwen2_yarn/factor4", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4} | rope}, message)
      for rope, message in (
        ({}, "field 'rope_parameters.factor' is missing"),
        ({"factor": "4"}, "rope_parameters.factor='4': expected a number"),
        ({"factor": True}, "factor=true: expected a number"),
        ({"factor": 4.0, "truncate": 1}, "truncate=1: expected a boolean"),
        ({"factor": 0.25}, "factor=0.25 must be at least 1"),
        ({"factor": 0}, "factor=0.0 must be at least 1"),
        ({"factor": 4.0, "original_max_position_embeddings": 0}, "embeddings=0 must be at least 1"),
        ({"factor": 4.0, "mrope_section": [1, 2]}, r"mrope_section=\[1, 2\] is not supported"),
      )
    ),
  ],
)
def test_refused_configs(name, fields, message, tmp_path):
  source = changed(tmp_path, name, **fields)
  with pytest.raises(ValueError, match=message) as refused:
    hf.read_config(source)
  assert str(refused.value).startswith(f"{source}/config.json: ") and "\n" not in str(refused.value)


def test_missing_or_broken_config(tmp_path):
  with pytest.raises(FileNotFoundError, match="config.json does not exist"):
    hf.read_config(tmp_path)
  (tmp_path / "config.json").write_text("{oops")
  with pytest.raises(ValueError, match="not valid JSON"):
    hf.read_config(tmp_path)
