"""The published sizes, by name, and the way to a model: `make_model(PRESETS["qwen2_5_0_5b"])`.

Sources: config.json of the Qwen2.5 and Qwen2.5-Math base models, and of Qwen/Qwen3-0.6B to Qwen3-32B. Of the latter the
base models, Qwen3-8B-Base and so on, are made for 32,768 positions and otherwise the same.
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


def _qwen3(num_layers, d_model, d_mlp, num_heads, *, tie_embeddings=False) -> ModelConfig:
  return ModelConfig(
    vocab_size=151936,
    num_layers=num_layers,
    d_model=d_model,
    d_mlp=d_mlp,
    num_heads=num_heads,
    num_kv_heads=8,
    head_dim=128,
    rope_theta=1e6,
    norm_eps=1e-6,
    tie_embeddings=tie_embeddings,
    max_position=40960,
    family="qwen3",
  )


_UNTIED = {"vocab_size": 152064, "tie_embeddings": False}
_MATH = {"rope_theta": 1e4, "max_position": 4096}

PRESETS: dict[str, ModelConfig] = {
  # About 1M and 0.4M parameters, for quickstarts and miniatures; narrow matrices learn sooner from a wider start.
  "tiny": _qwen2_5(3, 160, 480, 5, 5, vocab_size=256, rope_theta=1e4, max_position=4096, init_std=0.08),
  "mini": _qwen2_5(3, 96, 288, 3, 3, vocab_size=256, rope_theta=1e4, max_position=4096, init_std=0.1),
  "qwen2_5_0_5b": _qwen2_5(24, 896, 4864, 14, 2),
  "qwen2_5_1_5b": _qwen2_5(28, 1536, 8960, 12, 2, max_position=131072),
  "qwen2_5_3b": _qwen2_5(36, 2048, 11008, 16, 2),
  "qwen2_5_7b": _qwen2_5(28, 3584, 18944, 28, 4, max_position=131072, **_UNTIED),
  "qwen2_5_14b": _qwen2_5(48, 5120, 13824, 40, 8, norm_eps=1e-5, max_position=131072, **_UNTIED),
  "qwen2_5_32b": _qwen2_5(64, 5120, 27648, 40, 8, norm_eps=1e-5, max_position=131072, **_UNTIED),
  "qwen2_5_72b": _qwen2_5(80, 8192, 29568, 64, 8, norm_eps=1e-5, max_position=131072, **_UNTIED),
  "qwen2_5_math_1_5b": _qwen2_5(28, 1536, 8960, 12, 2, **_MATH),
  "qwen2_5_math_7b": _qwen2_5(28, 3584, 18944, 28, 4, **_MATH, **_UNTIED),
  "qwen3_0_6b": _qwen3(28, 1024, 3072, 16, tie_embeddings=True),
  "qwen3_1_7b": _qwen3(28, 2048, 6144, 16, tie_embeddings=True),
  "qwen3_4b": _qwen3(36, 2560, 9728, 32, tie_embeddings=True),
  "qwen3_8b": _qwen3(36, 4096, 12288, 32),
  "qwen3_14b": _qwen3(40, 5120, 17408, 40),
  "qwen3_32b": _qwen3(64, 5120, 25600, 64),
}


def make_model(config: ModelConfig) -> Model:
  """The model of this configuration; holds no parameters."""
  return Model(config)
