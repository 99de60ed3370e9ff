"""The published sizes, by name, and the way to a model: `make_model(PRESETS["qwen2_5_0_5b"])`.

Source: config.json of the Qwen2.5 and Qwen2.5-Math base models.
"""

from __future__ import annotations

from fipo_jax.models.transformer import Model, ModelConfig


def _qwen2_5(
  num_layers, d_model, d_mlp, num_heads, num_kv_heads, *, vocab_size=151936, tie_embeddings=True, norm_eps=1e-6,
  rope_theta=1e6, max_position=32768, init_std=0.02,
) -> ModelConfig:  # fmt: skip
  return ModelConfig(
    vocab_size=vocab_size,
    num_layers=num_layers,
    d_model=d_model,
    d_mlp=d_mlp,
    num_heads=num_heads,
    num_kv_heads=num_kv_heads,
    head_dim=d_model // num_heads,
    rope_theta=rope_theta,
    norm_eps=norm_eps,
    tie_embeddings=tie_embeddings,
    max_position=max_position,
    init_std=init_std,
  )


_UNTIED = {"vocab_size": 152064, "tie_embeddings": False}
_MATH = {"rope_theta": 1e4, "max_position": 4096}

PRESETS: dict[str, ModelConfig] = {
  # About 1M parameters, for quickstarts; narrow matrices learn sooner from a wider start.
  "tiny": _qwen2_5(3, 160, 480, 5, 5, vocab_size=256, rope_theta=1e4, max_position=4096, init_std=0.08),
  "qwen2_5_0_5b": _qwen2_5(24, 896, 4864, 14, 2),
  "qwen2_5_1_5b": _qwen2_5(28, 1536, 8960, 12, 2, max_position=131072),
  "qwen2_5_3b": _qwen2_5(36, 2048, 11008, 16, 2),
  "qwen2_5_7b": _qwen2_5(28, 3584, 18944, 28, 4, max_position=131072, **_UNTIED),
  "qwen2_5_14b": _qwen2_5(48, 5120, 13824, 40, 8, norm_eps=1e-5, max_position=131072, **_UNTIED),
  "qwen2_5_32b": _qwen2_5(64, 5120, 27648, 40, 8, norm_eps=1e-5, max_position=131072, **_UNTIED),
  "qwen2_5_72b": _qwen2_5(80, 8192, 29568, 64, 8, norm_eps=1e-5, max_position=131072, **_UNTIED),
  "qwen2_5_math_1_5b": _qwen2_5(28, 1536, 8960, 12, 2, **_MATH),
  "qwen2_5_math_7b": _qwen2_5(28, 3584, 18944, 28, 4, **_MATH, **_UNTIED),
}


def make_model(config: ModelConfig) -> Model:
  """The model of this configuration; holds no parameters."""
  return Model(config)
