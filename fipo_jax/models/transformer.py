"""The decoder of Qwen2, Qwen2.5 and Qwen3: a record of pure functions over a plain tree of parameters.

Flax NNX describes the layers and stays inside this folder: `Model` takes and returns nested dicts of arrays. Layers are
stacked on a leading axis L and run under one `lax.scan`, so the program's size does not depend on depth.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from fipo_jax.models import attention, attention_cudnn, attention_splash, layers, tiles
from fipo_jax.models.rotary import Yarn, rotation
from fipo_jax.sharding import HOST, RULES, constrain, named

# Names of values that the backward pass may find where the forward pass left them.
INPUT, CONTEXT = "input", attention_splash.KEPT  # of a layer; what attention made


def _with_context(policy):
  """The policy, and what attention made is kept: by its name, or as the kernel's result."""
  named = jax.checkpoint_policies.save_only_these_names(CONTEXT)

  def keep(primitive, *inputs, **params):
    kept = primitive is attention_cudnn.KERNEL or named(primitive, *inputs, **params)
    return kept or policy(primitive, *inputs, **params)

  return keep


# What the backward pass of a layer may keep of the forward pass, beside its input.
REMAT = {
  "none": jax.checkpoint_policies.everything_saveable,
  "dots": _with_context(jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
  "context": _with_context(jax.checkpoint_policies.nothing_saveable),
  "full": jax.checkpoint_policies.nothing_saveable,
}
TILED = ("context", "full")  # rows of it under which a layer's products run tile by tile and keep nothing
UNROLL = 4  # layers of one turn of the loop under remat "none"
DTYPES = ("float32", "bfloat16")
FAMILIES = ("qwen2", "qwen3")  # model_type of config.json; how they differ: layers.Attention
# Fields of ModelConfig that are ours to choose and no part of a published model: config.model has them, too.
NUMERICS = ("dtype", "param_dtype", "remat", "offload_inputs", "attention", "tile_tokens", "sum_dtype")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Sizes and numerics of one decoder.

  family: a name of FAMILIES. max_position: max_position_embeddings of config.json. yarn: scaling of rotary angles.
  dtype: of matmuls and activations (norms, softmax, rotary angles and logits are float32 always). param_dtype: of
  the stored parameters. init_std: of random matrices. remat: a row of REMAT. offload_inputs: whether the inputs of
  layers wait for the backward pass in the host's memory; remat "context" or "full". attention: a name of
  `attention.NAMES`. tile_tokens, sum_dtype: of `tiles.by_tiles`; "": the compute dtype. value_head: whether a scalar
  head (0 at first) sits beside the output matrix.
  """

  vocab_size: int
  num_layers: int
  d_model: int
  d_mlp: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  rope_theta: float
  norm_eps: float
  tie_embeddings: bool
  max_position: int
  init_std: float = 0.02
  family: str = "qwen2"
  yarn: Yarn | None = None
  dtype: str = "float32"
  param_dtype: str = "float32"
  remat: str = "none"
  offload_inputs: bool = False
  attention: str = "xla"
  tile_tokens: int = 0
  sum_dtype: str = ""
  value_head: bool = False

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise ValueError(f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}.")
    if self.head_dim % 2:
      raise ValueError(f"head_dim={self.head_dim} must be even: rotary embedding turns pairs of channels.")
    for field, allowed in (
      ("dtype", DTYPES), ("param_dtype", DTYPES), ("remat", REMAT), ("attention", attention.NAMES),
      ("sum_dtype", ("", *DTYPES)), ("family", FAMILIES),
    ):
      if getattr(self, field) not in allowed:
        raise ValueError(f"model.{field}={getattr(self, field)!r} is unknown; choose from {sorted(allowed)}.")
    if self.sum_dtype not in ("", self.dtype) and self.remat not in TILED:
      raise ValueError(
        f"model.sum_dtype={self.sum_dtype!r}: under model.remat={self.remat!r} gradients are added up in model.dtype="
        f"{self.dtype!r}; use model.remat='full' or 'context', or sum_dtype=''."
      )
    if self.offload_inputs and self.remat not in TILED:
      raise ValueError(f"model.offload_inputs=True needs model.remat='full' or 'context', not {self.remat!r}.")

  @property
  def longest(self) -> int:
    """Positions that the model can be used at: max_position, or as many as YaRN is made for where those are more."""
    return max(self.max_position, self.yarn.longest if self.yarn else 0)


class ValueHead(nnx.Module):
  """A linear map from a hidden state to one number, 0 at first."""

  def __init__(self, config: ModelConfig):
    self.w_D = nnx.Param(jnp.zeros(config.d_model, config.param_dtype), axes=("embed",))
    self.bias_1 = nnx.Param(jnp.zeros(1, config.param_dtype), axes=("value",))


class Decoder(nnx.Module):
  """All parameters of the model: embedding, stacked layers, final norm, a head when it is not tied, a value head."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    normal, table = nnx.initializers.normal(config.init_std), (config.vocab_size, config.d_model)
    self.embed_VD = nnx.Param(normal(rngs.params(), table, config.param_dtype), axes=("vocab", "embed"))
    keys = jax.random.split(rngs.params(), config.num_layers)
    self.layers = jax.vmap(lambda key: layers.Block(config, nnx.Rngs(key)))(keys)
    self.final_norm = layers.RMSNorm(config, rngs)
    if not config.tie_embeddings:
      self.head_VD = nnx.Param(normal(rngs.params(), table, config.param_dtype), axes=("vocab", "embed"))
    if config.value_head:
      self.value_head = ValueHead(config)


@functools.lru_cache
def _skeleton(config: ModelConfig):
  """(structure, abstract parameters with metadata) of the decoder; no arrays are made."""
  return nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))))


@functools.lru_cache
def _parts(config: ModelConfig, form: str = "stored"):
  """Structures of one layer, its matrices in a form of `layers.Attention`, and of the final norm."""
  block = functools.partial(layers.Block, form=form)
  structure = lambda kind: nnx.split(nnx.eval_shape(lambda: kind(config, nnx.Rngs(0))))[0]
  return structure(block), structure(layers.RMSNorm)


@functools.lru_cache
def _layer(config: ModelConfig, form: str):
  """(shapes, logical axes) of one layer, its matrices in a form of `layers.Attention`."""
  state = nnx.state(nnx.eval_shape(lambda: layers.Block(config, nnx.Rngs(0), form)))
  axes = jax.tree.map(lambda x: x.get_metadata()["axes"], state, is_leaf=lambda x: isinstance(x, nnx.Variable))
  return nnx.to_pure_dict(state), nnx.to_pure_dict(axes)


def _form(params) -> str:
  """The form of the layers' matrices: `Model.unstack` makes them flat."""
  return "flat" if isinstance(params["layers"], tuple) else "stored"


@dataclasses.dataclass(frozen=True)
class Model:
  """Pure functions of one configuration; hashable, so it can be a static argument of `jax.jit`.

  Parameters are a nested dict: embed_VD, layers/{attention_norm, attention, mlp_norm, mlp}/... with a leading L,
  final_norm/scale_D, head_VD unless tied, and value_head/{w_D, bias_1} if there is one. They may be float32 masters or
  already in the compute dtype (`cast`).
  """

  config: ModelConfig

  def init(self, key) -> dict:
    """Random parameters: matrices from N(0, init_std²), biases 0, norm scales 1. Jittable."""
    return nnx.to_pure_dict(nnx.state(Decoder(self.config, nnx.Rngs(key))))

  def abstract(self) -> dict:
    """The tree of shapes and dtypes of the parameters."""
    return nnx.to_pure_dict(_skeleton(self.config)[1])

  def logical_axes(self) -> dict:
    """The tree of logical axis names, one tuple per parameter."""

    def names(path, variable):
      stacked = ("layers",) if path[0].key == "layers" else ()
      return stacked + variable.get_metadata()["axes"]

    is_leaf = lambda x: isinstance(x, nnx.Variable)
    return nnx.to_pure_dict(jax.tree_util.tree_map_with_path(names, _skeleton(self.config)[1], is_leaf=is_leaf))

  def matrix_axes(self) -> dict:
    """The tree of ((input axes), (output axes)) of the layers' matrices; None for embedding, head, biases and norms.

    Which side is called input follows the residual stream: `embed` is the one, everything else the other.
    """

    def sides(axes):
      if axes[0] != "layers" or "embed" not in axes:
        return None
      inner = range(1, len(axes))
      return tuple(i for i in inner if axes[i] == "embed"), tuple(i for i in inner if axes[i] != "embed")

    return jax.tree.map(sides, self.logical_axes(), is_leaf=lambda x: isinstance(x, tuple))

  def shardings(self, mesh) -> dict:
    """The tree of NamedShardings of the parameters on this mesh.

    Raises:
      ValueError: a mesh axis does not divide the parameter axis it cuts.
    """

    def place(path, shape, axes):
      for size, axis in zip(shape.shape, axes, strict=True):
        for mesh_axis in RULES.get(axis, ()):
          if size % mesh.shape[mesh_axis]:
            raise ValueError(
              f"mesh.{mesh_axis}={mesh.shape[mesh_axis]} must divide {axis}={size} of {jax.tree_util.keystr(path)}"
              + (", as must rollout.tensor, which takes its place in sampling." if mesh_axis == "tensor" else ".")
            )
      return named(mesh, *axes)

    return jax.tree_util.tree_map_with_path(place, self.abstract(), self.logical_axes())

  def cast(self, params) -> dict:
    """Parameters in the compute dtype: give the same outputs, bit for bit, as does a file of that dtype."""
    return jax.tree.map(lambda x: x.astype(self.config.dtype), params)

  def hidden(self, params, tokens_RT, positions_RT, segments_RT):
    """Final-normed hidden states of packed rows; a token sees its own segment up to itself.

    Args:
      tokens_RT, positions_RT, segments_RT: int32; segment 0 is padding (its states are finite and mean nothing).
    Returns:
      hidden_RTD in the compute dtype.
    """
    with jax.named_scope("embed"):
      x_RTD = layers.activation(layers.lookup(params["embed_VD"], tokens_RT, self.config.dtype), None)
    cos, sin = self._rotation(positions_RT)
    block, norm = _parts(self.config)

    def attend(q, k, v):
      return attention.attend(q, k, v, segments_RT, segments_RT, implementation=self.config.attention), None

    def body(x, tree):
      return nnx.merge(block, tree)(x, cos, sin, attend)

    if self.config.remat in TILED:
      body = self._tiled(attend, cos, sin)
    if self.config.remat != "none":
      body = jax.checkpoint(body, policy=self._policy(), prevent_cse=False)
    # What is kept for the backward pass costs a copy in and out of a loop; what is computed again has none.
    x_RTD, _ = jax.lax.scan(body, x_RTD, params["layers"], unroll=UNROLL if self.config.remat == "none" else 1)
    return nnx.merge(norm, params["final_norm"])(x_RTD)

  def head(self, params):
    """The output matrix head_VD [V, D] in the compute dtype (the embedding, when tied): logits = hidden · head."""
    table = params["embed_VD"] if self.config.tie_embeddings else params["head_VD"]
    return table.astype(self.config.dtype)

  @jax.named_scope("logits")
  def logits(self, params, hidden):
    """Float32 logits [..., V] of hidden states [..., D]; whole, so only for few tokens at a time."""
    precision = jax.lax.Precision.HIGHEST if hidden.dtype == jnp.float32 else None
    product = dict(preferred_element_type=jnp.float32, precision=precision)
    return jnp.einsum("vd,...d->...v", constrain(self.head(params), "vocab", None), hidden, **product)

  @jax.named_scope("values")
  def values(self, params, hidden):
    """Float32 values [...] of hidden states [..., D] by the value head: hidden · w + bias."""
    head = params["value_head"]
    value = jnp.einsum("...d,d->...", hidden, head["w_D"].astype(hidden.dtype), preferred_element_type=jnp.float32)
    return value + head["bias_1"][0].astype(jnp.float32)

  def policy(self) -> Model:
    """The same model without its value head: what samples, and what is exported."""
    return Model(dataclasses.replace(self.config, value_head=False))

  def policy_params(self, params) -> dict:
    """Their part of this model's parameters."""
    return {name: tree for name, tree in params.items() if name != "value_head"}

  def prefill(self, params, tokens_RT, positions_RT, segments_RT):
    """Keys and values of rows, for decoding to go on from.

    Args:
      params: stacked, or `unstack`ed. tokens_RT, positions_RT, segments_RT: as `hidden`.
    Returns:
      (k, v) [L, R, T, K, h] in the compute dtype, keys after rotation; unstacked: a tuple of (k, v) [R, T, K, h].
    """
    x_RTD = layers.activation(layers.lookup_whole(params["embed_VD"], tokens_RT, self.config.dtype), None)
    cos, sin = self._rotation(positions_RT)
    block = _parts(self.config, _form(params))[0]

    def attend(q, k, v):
      return attention.attend(q, k, v, segments_RT, segments_RT, implementation=self.config.attention), (k, v)

    def layer(x, numbered):
      return nnx.merge(block, numbered[0])(x, cos, sin, attend)

    return self._over_layers(layer, x_RTD, params["layers"])[1]

  def unstack(self, params) -> dict:
    """The same parameters with `layers` as a tuple, one tree per layer, of `layers.flatten`.

    A program that names its layers copies none.
    """
    stacked = params["layers"]
    one = lambda i: layers.flatten(jax.tree.map(lambda x: x[i], stacked))
    return params | {"layers": tuple(one(i) for i in range(self.config.num_layers))}

  def unstacked_axes(self) -> dict:
    """The tree of logical axis names of `unstack`ed parameters."""
    return self.logical_axes() | {"layers": (_layer(self.config, "flat")[1],) * self.config.num_layers}

  def decode(self, params, token_S, position_S, cache, attend):
    """One token per slot.

    Args:
      params: stacked, or `unstack`ed: then the program holds every layer by itself, and needs no slices of a stack.
      token_S, position_S: int32.
      cache: a pytree carried through the layers.
      attend: (cache, layer number, q_SHh, k_SKh, v_SKh) -> (context_SHh, cache); the number is a Python int when
        the parameters are unstacked, else a traced one.
    Returns:
      (hidden_SD, cache).
    """
    x_SD = layers.activation(layers.lookup_whole(params["embed_VD"], token_S, self.config.dtype), None)
    cos, sin = self._rotation(position_S)
    block, norm = _parts(self.config, _form(params))

    def layer(carry, numbered):
      (x, cache), (tree, number) = carry, numbered
      x, cache = nnx.merge(block, tree)(x, cos, sin, lambda q, k, v: attend(cache, number, q, k, v))
      return (x, cache), None

    (x_SD, cache), _ = self._over_layers(layer, (x_SD, cache), params["layers"])
    return nnx.merge(norm, params["final_norm"])(x_SD), cache

  def _over_layers(self, layer, carry, trees):
    """`jax.lax.scan` of layer(carry, (parameters, number)); where they are unstacked, by name: results in a tuple."""
    if not isinstance(trees, tuple):
      return jax.lax.scan(layer, carry, (trees, jnp.arange(self.config.num_layers)))
    results = []
    for number, tree in enumerate(trees):
      carry, result = layer(carry, (tree, number))
      results.append(result)
    return carry, tuple(results)

  def _rotation(self, positions):
    return rotation(positions, self.config.head_dim, self.config.rope_theta, self.config.yarn)

  def most_segments(self, tokens: int) -> int | None:
    """The most segments that attention takes in a row of so many tokens, on the mesh of `jax.set_mesh`; None: any."""
    return attention_cudnn.MOST_SEGMENTS if self.attention_of(tokens) == "cudnn" else None

  def attention_of(self, tokens: int) -> str:
    """Which attention rows of so many tokens get, on the mesh of `jax.set_mesh`."""
    c = self.config
    return attention.automatic(tokens, c.head_dim, jnp.dtype(c.dtype)) if c.attention == "auto" else c.attention

  def _policy(self):
    if not self.config.offload_inputs:
      return REMAT[self.config.remat]
    offload = jax.checkpoint_policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[], names_which_can_be_offloaded=[INPUT], offload_src="device", offload_dst=HOST
    )
    return _with_context(offload) if self.config.remat == "context" else offload

  def _tiled(self, attend, cos, sin):
    """One layer as two functions of single tokens with attention in between; few products are fast to compile."""
    block, (shapes, axes) = _parts(self.config, "joined")[0], _layer(self.config, "joined")
    axes_before, axes_after = layers.halves(axes)
    tiled = functools.partial(
      tiles.by_tiles, tile_tokens=self.config.tile_tokens, sum_dtype=self.config.sum_dtype or self.config.dtype
    )
    # Parameters that a half does not use are shapes.
    whole = lambda half: nnx.merge(block, {name: shapes[name] | half.get(name, {}) for name in shapes})

    def before(half, xs, given):
      return whole(half).before(*xs, *given)

    def after(half, xs, given):
      del given
      return (whole(half).after(*xs),)

    tokens = ("rows", "tokens")
    x_axes, angles = (*tokens, None), (*tokens, None, None)
    heads, kv_heads = (*tokens, "heads", None), (*tokens, "kv_heads", None)

    def body(x, tree):
      x = checkpoint_name(x, INPUT)
      first, second = layers.halves(layers.join(tree))
      q, k, v = tiled(
        before, first, (x,), (cos, sin), axes=(axes_before, (x_axes,), (angles, angles), (heads, kv_heads, kv_heads))
      )
      context, _ = attend(q, k, v)
      (x,) = tiled(after, second, (x, context), (), axes=(axes_after, (x_axes, heads), (), (x_axes,)))
      return x, None

    return body
