"""The layers of a Qwen2 or Qwen3 block in Flax NNX.

Matrices are stored width first ([D, ...], also those that write back to the residual stream), so that sharding `embed`
over `fsdp` cuts rows and never the lanes of a tile. Every parameter carries its logical axes (`axes=`), which
`Model.logical_axes` reads. Leading axes are free: the same code runs [R, T, D] rows and [S, D] decode slots.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from fipo_jax.models.rotary import rotate
from fipo_jax.models.tiles import over_tiles
from fipo_jax.sharding import (
  constrain,
  enter,
  exchange,
  gather,
  index_along,
  leave,
  local,
  sum_over,
)


def matmul(equation: str, x, w):
  """Einsum of activations and a matrix in x's dtype; float32 means float32, also where hardware would use fewer bits.

      y = x w,   d_x = d_y wᵀ,   d_w = xᵀ d_y        over the axes that the equation names; all three in x's dtype

  Args:
    equation: such as "...d,df->...f", where ... are the leading axes of x and y (rows and tokens, or slots).
    x: [..., inputs]. w: the matrix, in any float dtype.

  Its gradients are written out for the order of their operands: left to JAX, the gradient of a matrix that is stored
  input first is a transposed product, which XLA's CPU backend ran at a quarter of the speed (bfloat16).
  """
  names, out = equation.split("->")
  ins = names.split(",")
  lead = "tuvw"[: x.ndim - len(ins[0].replace("...", ""))]
  return _matmul(x, w.astype(x.dtype), *(part.replace("...", lead) for part in (*ins, out)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _matmul(x, w, of_x: str, of_w: str, of_y: str):
  return _einsum(of_x, x, of_w, w, of_y)


def _matmul_forward(x, w, of_x, of_w, of_y):
  return _einsum(of_x, x, of_w, w, of_y), (x, w)


def _matmul_backward(of_x, of_w, of_y, saved, d_y):
  x, w = saved
  d_x = _einsum(of_y, d_y, of_w, w, of_x)
  # First the operand that has the first axis of w, so that the product comes out in w's order.
  d_w = _einsum(of_x, x, of_y, d_y, of_w) if of_w[0] in of_x else _einsum(of_y, d_y, of_x, x, of_w)
  return d_x, d_w


_matmul.defvjp(_matmul_forward, _matmul_backward)


def _einsum(of_a, a, of_b, b, of_c):
  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return jnp.einsum(f"{of_a},{of_b}->{of_c}", a, b, precision=precision)


def activation(x, *inner: str | None):
  """Pins an activation: rows (and tokens, when there are any) first, then the named inner axes."""
  lead = ("rows", "tokens")[: x.ndim - len(inner)]
  return constrain(x, *lead, *inner)


@jax.named_scope("embed")
def lookup_whole(table_VD, tokens, dtype):
  """Rows of an embedding that no mesh axis but `vocab`'s cuts, in the compute dtype: while decoding."""
  return constrain(table_VD.astype(dtype), "vocab", None).at[tokens].get(mode="clip")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(table_VD, tokens_RT, dtype):
  """Rows of the embedding in the compute dtype; the gradients of repeated tokens add up in float32.

  The table stays where it is, for it is far larger than the rows: each device looks up its part of the width for the
  tokens of all devices along `embed`, and they exchange what they have. The gradient goes the same way back.
  """
  return _lookup(table_VD, tokens_RT, dtype)[0]


ADDED = 1024  # rows of a gradient at a time: a TPU's compiler takes 30 times as long for all of them at once
_TABLE, _IDS, _LOOKED_UP = ("vocab", "embed"), ("rows", "tokens"), ("rows", "tokens", None)


def _lookup(table_VD, tokens_RT, dtype):
  def part(table_VD, tokens_RT):
    here, index = _rows_here(table_VD, tokens_RT)
    x = jnp.where(here[..., None], table_VD.at[index].get(mode="clip").astype(dtype), 0)
    return exchange(sum_over(x, "vocab"), 0, 2, "embed")

  return local(part, (_TABLE, _IDS), _LOOKED_UP)(table_VD, tokens_RT), (table_VD, tokens_RT)


def _lookup_gradient(dtype, saved, d_rows_RTD):
  del dtype

  def part(table_VD, tokens_RT, d_rows_RTD):
    here, index = _rows_here(table_VD, tokens_RT)
    wide = jnp.promote_types(table_VD.dtype, jnp.float32)
    d_rows = exchange(d_rows_RTD, 2, 0, "embed")
    index = jnp.where(here, index, table_VD.shape[0])
    add = lambda rows, _, table: ((), table.at[rows[0]].add(rows[1].astype(wide), mode="drop"))
    one_row = (index.reshape(1, -1), d_rows.reshape(1, -1, d_rows.shape[-1]))
    _, d_table_VD = over_tiles(add, one_row, (), jnp.zeros(table_VD.shape, wide), ADDED)
    return sum_over(d_table_VD, "slices", "tokens").astype(table_VD.dtype)

  return local(part, (_TABLE, _IDS, _LOOKED_UP), _TABLE)(*saved, d_rows_RTD), None


def _rows_here(table_VD, tokens_RT):
  """Of the tokens of all devices along `embed`: whether their rows are in this device's table, and which they are."""
  first = index_along("vocab") * table_VD.shape[0]
  index = gather(tokens_RT, 0, "embed") - first
  return (index >= 0) & (index < table_VD.shape[0]), index


lookup.defvjp(_lookup, _lookup_gradient)


class RMSNorm(nnx.Module):
  """Root-mean-square normalisation, in float32; the scale is rounded to the dtype of x, as every weight is.

      y = x / √(mean(x²) + ε) · scale
  """

  def __init__(self, config, rngs: nnx.Rngs):
    del rngs
    self.epsilon = config.norm_eps
    self.scale_D = nnx.Param(jnp.ones((config.d_model,), config.param_dtype), axes=(None,))

  def __call__(self, x):
    return rms_norm(x, self.scale_D[...], self.epsilon)


def rms_norm(x, scale, epsilon: float):
  """`RMSNorm` of the last axis of x by a scale of its size."""
  wide = x.astype(jnp.float32)
  wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
  return (wide * scale.astype(x.dtype).astype(jnp.float32)).astype(x.dtype)


class Attention(nnx.Module):
  """The projections around grouped-query attention, by `ModelConfig.family`; no bias on the output.

      qwen2   q, k, v = x W + bias                          then q and k are rotated
      qwen3   q, k = norm(x W) of each head, v = x W        one scale for all heads; then q and k are rotated

  form: how the matrices are arranged: "stored", as in the parameters; "joined", by `join`; "flat", by `flatten`. The
  latter two have one matrix of q, k and v, of each key/value head its g = H / K queries, its key and its value.
  """

  def __init__(self, config, rngs: nnx.Rngs, form: str = "stored"):
    D, H, K, h = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
    normal, dtype = nnx.initializers.normal(config.init_std), config.param_dtype
    self.head_dim, self.epsilon, self.form = h, config.norm_eps, form
    self.kv_heads = K
    self.biased, self.normed = config.family == "qwen2", config.family == "qwen3"
    matrix = lambda shape, *axes: nnx.Param(normal(rngs.params(), shape, dtype), axes=axes)
    bias = lambda shape, *axes: nnx.Param(jnp.zeros(shape, dtype), axes=axes)
    if form == "joined":
      self.qkv_DKxh = matrix((D, K, H // K + 2, h), "embed", "kv_heads", None, None)
    elif form == "flat":
      self.qkv_YD = matrix(((H + 2 * K) * h, D), "kv_heads", "embed")
    else:
      self.q_DHh = matrix((D, H, h), "embed", "heads", None)
      self.k_DKh = matrix((D, K, h), "embed", "kv_heads", None)
      self.v_DKh = matrix((D, K, h), "embed", "kv_heads", None)
    if form == "flat":
      self.o_DX = matrix((D, H * h), "embed", "heads")
    else:
      self.o_DHh = matrix((D, H, h), "embed", "heads", None)
    if self.biased and form != "stored":
      self.qkv_bias_Kxh = bias((K, H // K + 2, h), "kv_heads", None, None)
    elif self.biased:
      self.q_bias_Hh = bias((H, h), "heads", None)
      self.k_bias_Kh = bias((K, h), "kv_heads", None)
      self.v_bias_Kh = bias((K, h), "kv_heads", None)
    if self.normed:
      self.q_scale_h = nnx.Param(jnp.ones((h,), dtype), axes=(None,))
      self.k_scale_h = nnx.Param(jnp.ones((h,), dtype), axes=(None,))

  def project(self, x, cos, sin):
    """Normalised [..., D] -> queries [..., H, h], keys and values [..., K, h]; q and k rotated.

    From the product to the rotated q and k nothing is rounded. In the compute dtype a compiler may skip a rounding in
    one program and not in another: trainer and sampler then have other queries (experiments/results/sampler_gap.md).
    """
    x, dtype = enter(x, "heads"), x.dtype

    def biased(y, name):
      y = y.astype(jnp.float32)
      return y + getattr(self, name)[...].astype(dtype).astype(jnp.float32) if self.biased else y

    if self.form != "stored":
      if self.form == "flat":
        qkv = matmul("...d,yd->...y", x, self.qkv_YD[...])
        qkv = qkv.reshape(*x.shape[:-1], self.kv_heads, -1, self.head_dim)
      else:
        qkv = matmul("...d,dkze->...kze", x, self.qkv_DKxh[...])
      qkv = biased(qkv, "qkv_bias_Kxh")
      q = qkv[..., :-2, :].reshape(*x.shape[:-1], -1, self.head_dim)
      k, v = qkv[..., -2, :], qkv[..., -1, :]
    else:
      q = biased(matmul("...d,dhe->...he", x, self.q_DHh[...]), "q_bias_Hh")
      k = biased(matmul("...d,dke->...ke", x, self.k_DKh[...]), "k_bias_Kh")
      v = biased(matmul("...d,dke->...ke", x, self.v_DKh[...]), "v_bias_Kh")
    if self.normed:  # a scale is every head's: its gradient adds up over the devices that have them
      q = rms_norm(q, enter(self.q_scale_h[...], "heads").astype(dtype), self.epsilon)
      k = rms_norm(k, enter(self.k_scale_h[...], "kv_heads").astype(dtype), self.epsilon)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    q, k, v = q.astype(dtype), k.astype(dtype), v.astype(dtype)
    return (activation(q, "heads", None), activation(k, "kv_heads", None), activation(v, "kv_heads", None))

  def output(self, context):
    """[..., H, h] -> [..., D]."""
    if self.form == "flat":
      return leave(matmul("...x,dx->...d", context.reshape(*context.shape[:-2], -1), self.o_DX[...]), "heads")
    return leave(matmul("...he,dhe->...d", context, self.o_DHh[...]), "heads")


class MLP(nnx.Module):
  """SwiGLU.

      y = (silu(x Wgate) ⊙ x Wup) Wdown

  form, as of `Attention`: "joined" has one matrix of gate and up, "flat" has them output first.
  """

  def __init__(self, config, rngs: nnx.Rngs, form: str = "stored"):
    normal, shape = nnx.initializers.normal(config.init_std), (config.d_model, config.d_mlp)
    self.form = form
    matrix = lambda shape, *axes: nnx.Param(normal(rngs.params(), shape, config.param_dtype), axes=axes)
    if form == "joined":
      self.gate_up_DxF = matrix((shape[0], 2, shape[1]), "embed", None, "mlp")
    elif form == "flat":
      self.gate_FD, self.up_FD = (matrix(shape[::-1], "mlp", "embed") for _ in range(2))
    else:
      self.gate_DF, self.up_DF = (matrix(shape, "embed", "mlp") for _ in range(2))
    self.down_DF = matrix(shape, "embed", "mlp")

  def __call__(self, x):
    x = enter(x, "mlp")
    if self.form == "joined":
      both = matmul("...d,dzf->...zf", x, self.gate_up_DxF[...])
      gate, up = both[..., 0, :], both[..., 1, :]
    elif self.form == "flat":
      gate, up = (matmul("...d,fd->...f", x, w[...]) for w in (self.gate_FD, self.up_FD))
    else:
      gate = matmul("...d,df->...f", x, self.gate_DF[...])
      up = matmul("...d,df->...f", x, self.up_DF[...])
    return leave(matmul("...f,df->...d", activation(jax.nn.silu(gate) * up, "mlp"), self.down_DF[...]), "mlp")


class Block(nnx.Module):
  """One decoder layer: x + attention(norm(x)), then + mlp(norm(.))."""

  def __init__(self, config, rngs: nnx.Rngs, form: str = "stored"):
    self.attention_norm = RMSNorm(config, rngs)
    self.attention = Attention(config, rngs, form)
    self.mlp_norm = RMSNorm(config, rngs)
    self.mlp = MLP(config, rngs, form)

  def __call__(self, x, cos, sin, attend):
    """Runs the layer; `attend(q, k, v) -> (context, kept)` decides what is looked at and what is kept.

    Returns:
      (x, kept): the residual stream, and whatever attend kept (a cache, or None).
    """
    context, kept = attend(*self.before(x, cos, sin))
    return self.after(x, context), kept

  @jax.named_scope("attention")
  def before(self, x, cos, sin):
    """The residual stream [..., D] -> q [..., H, h], k and v [..., K, h], of one device's heads inside `local`."""
    return self.attention.project(self.attention_norm(x), cos, sin)

  def after(self, x, context):
    """The residual stream x [..., D] with what attention found, context [..., H, h], and what the MLP makes of both."""
    with jax.named_scope("attention"):
      x = activation(x + self.attention.output(context), None)
    with jax.named_scope("mlp"):
      return activation(x + self.mlp(self.mlp_norm(x)), None)


def halves(tree: dict) -> tuple[dict, dict]:
  """The parameters (or whatever is arranged like them) of a `Block` that `before` uses, and those that `after` does."""
  attention = dict(tree["attention"])
  output = {"o_DHh": attention.pop("o_DHh")}
  return (
    {"attention_norm": tree["attention_norm"], "attention": attention},
    {"attention": output, "mlp_norm": tree["mlp_norm"], "mlp": tree["mlp"]},
  )


def join(tree: dict) -> dict:
  """Parameters of one layer with q, k, v and gate, up as one matrix each: a few rows then meet fewer, larger products.

      qkv[d, k] = (q[d, k g], ..., q[d, k g + g - 1], k[d, k], v[d, k]),  g = H / K;   gate_up[d] = (gate[d], up[d])
  """
  m = tree["mlp"]
  mlp = {"gate_up_DxF": jnp.stack([m["gate_DF"], m["up_DF"]], axis=1), "down_DF": m["down_DF"]}
  return tree | {"attention": _join_qkv(tree["attention"]), "mlp": mlp}


def _join_qkv(attention: dict) -> dict:
  a = dict(attention)
  K = a["k_DKh"].shape[1]
  grouped = lambda q: q.reshape(*q.shape[:-2], K, -1, q.shape[-1])
  one = lambda x: x[..., None, :]
  stacked = lambda q, k, v: jnp.concatenate([grouped(a.pop(q)), one(a.pop(k)), one(a.pop(v))], axis=-2)
  joined = {"qkv_DKxh": stacked("q_DHh", "k_DKh", "v_DKh")}
  if "q_bias_Hh" in a:
    joined["qkv_bias_Kxh"] = stacked("q_bias_Hh", "k_bias_Kh", "v_bias_Kh")
  return joined | a


def flatten(tree: dict) -> dict:
  """Parameters of one layer as matrices of two axes, output first, with q, k and v joined as in `join`.

      qkv_YD, Y = K (g + 2) h;   o_DX, X = H h;   gate_FD;   up_FD;   down_DF

  A few rows meet them while decoding. XLA's CPU backend ran such products 1.1 to 1.5 times as fast as with matrices
  stored input first, and copied a matrix of three axes anew for every token.
  """
  a, m = _join_qkv(tree["attention"]), tree["mlp"]
  qkv, o = a.pop("qkv_DKxh"), a.pop("o_DHh")
  a |= {"qkv_YD": qkv.reshape(qkv.shape[0], -1).T, "o_DX": o.reshape(o.shape[0], -1)}
  return tree | {"attention": a, "mlp": {"gate_FD": m["gate_DF"].T, "up_FD": m["up_DF"].T, "down_DF": m["down_DF"]}}
