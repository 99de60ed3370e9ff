"""The layers of a Qwen2 block in Flax NNX.

Matrices are stored width first ([D, ...], also those that write back to the residual stream), so that sharding `embed`
over `fsdp` cuts rows and never the lanes of a tile. Every parameter carries its logical axes (`axes=`), which
`Model.logical_axes` reads. Leading axes are free: the same code runs [R, T, D] rows and [S, D] decode slots.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from fipo_jax.sharding import constrain


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
  product = lambda of_a, a, of_b, b, of_c: jnp.einsum(f"{of_a},{of_b}->{of_c}", a, b, precision=precision)
  if len(of_c) == 2 and of_b[0] == of_c[1] and a.ndim == 2 and jax.default_backend() == "cpu":
    # A few rows and a matrix that is stored output first: a CPU ran matrix times columns 1.4 times as fast.
    return product(of_b, b, of_a, a, of_c[::-1]).T
  return product(of_a, a, of_b, b, of_c)


def rotation(positions, head_dim: int, theta: float):
  """Cosines and sines of rotary position embedding, one angle per position and pair of channels.

      angle[p, i] = p · θ^(-2i / h),   i = 0 .. h/2 - 1

  Args:
    positions: [...] int32.
  Returns:
    (cos, sin), each [..., 1, h/2] float32; the 1 is the heads axis.
  Source: arXiv 2104.09864.
  """
  frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  angle = positions[..., None, None].astype(jnp.float32) * frequency
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x, cos, sin):
  """Applies rotary embedding in the half-split convention: channel i is paired with channel i + h/2.

      y[i] = x[i] cos - x[i + h/2] sin,   y[i + h/2] = x[i + h/2] cos + x[i] sin

  Args:
    x: [..., heads, h]. cos, sin: [..., 1, h/2] float32, of `rotation`.
  """
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(x.dtype)


def activation(x, *inner: str | None):
  """Pins an activation: rows (and tokens, when there are any) first, then the named inner axes."""
  lead = ("rows", "tokens")[: x.ndim - len(inner)]
  return constrain(x, *lead, *inner)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(table_VD, tokens, dtype):
  """Rows of the embedding in the compute dtype; the gradients of repeated tokens add up in float32.

  The narrowed table is gathered over `embed` first: left alone, the partitioner would rather replicate the looked-up
  rows of the whole batch.
  """
  return _lookup(table_VD, tokens, dtype)[0]


def _lookup(table_VD, tokens, dtype):
  narrow_VD = constrain(table_VD.astype(dtype), "vocab", None)
  return narrow_VD.at[tokens].get(mode="clip"), (table_VD, tokens)


def _lookup_gradient(dtype, saved, d_rows):
  del dtype
  table_VD, tokens = saved
  wide = jnp.promote_types(table_VD.dtype, jnp.float32)
  zeros_VD = constrain(jnp.zeros(table_VD.shape, wide), "vocab", None)
  d_table_VD = zeros_VD.at[tokens].add(d_rows.astype(wide), mode="drop").astype(table_VD.dtype)
  return constrain(d_table_VD, "vocab", "embed"), None


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
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
    return (wide * self.scale_D[...].astype(x.dtype).astype(jnp.float32)).astype(x.dtype)


class Attention(nnx.Module):
  """The projections around grouped-query attention: bias on q, k and v, none on the output."""

  def __init__(self, config, rngs: nnx.Rngs):
    D, H, K, h = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
    normal, zeros = nnx.initializers.normal(config.init_std), jnp.zeros
    dtype = config.param_dtype
    self.head_dim, self.theta = h, config.rope_theta
    self.q_DHh = nnx.Param(normal(rngs.params(), (D, H, h), dtype), axes=("embed", "heads", None))
    self.k_DKh = nnx.Param(normal(rngs.params(), (D, K, h), dtype), axes=("embed", "kv_heads", None))
    self.v_DKh = nnx.Param(normal(rngs.params(), (D, K, h), dtype), axes=("embed", "kv_heads", None))
    self.o_DHh = nnx.Param(normal(rngs.params(), (D, H, h), dtype), axes=("embed", "heads", None))
    self.q_bias_Hh = nnx.Param(zeros((H, h), dtype), axes=("heads", None))
    self.k_bias_Kh = nnx.Param(zeros((K, h), dtype), axes=("kv_heads", None))
    self.v_bias_Kh = nnx.Param(zeros((K, h), dtype), axes=("kv_heads", None))

  def project(self, x, cos, sin):
    """Normalised [..., D] -> queries [..., H, h], keys and values [..., K, h]; q and k rotated."""
    q = matmul("...d,dhe->...he", x, self.q_DHh[...]) + self.q_bias_Hh[...].astype(x.dtype)
    k = matmul("...d,dke->...ke", x, self.k_DKh[...]) + self.k_bias_Kh[...].astype(x.dtype)
    v = matmul("...d,dke->...ke", x, self.v_DKh[...]) + self.v_bias_Kh[...].astype(x.dtype)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    return (activation(q, "heads", None), activation(k, "kv_heads", None), activation(v, "kv_heads", None))

  def output(self, context):
    """[..., H, h] -> [..., D]."""
    return matmul("...he,dhe->...d", context, self.o_DHh[...])


class MLP(nnx.Module):
  """SwiGLU.

      y = (silu(x Wgate) ⊙ x Wup) Wdown
  """

  def __init__(self, config, rngs: nnx.Rngs):
    normal, shape = nnx.initializers.normal(config.init_std), (config.d_model, config.d_mlp)
    axes, dtype = ("embed", "mlp"), config.param_dtype
    self.gate_DF = nnx.Param(normal(rngs.params(), shape, dtype), axes=axes)
    self.up_DF = nnx.Param(normal(rngs.params(), shape, dtype), axes=axes)
    self.down_DF = nnx.Param(normal(rngs.params(), shape, dtype), axes=axes)

  def __call__(self, x):
    gate = matmul("...d,df->...f", x, self.gate_DF[...])
    up = matmul("...d,df->...f", x, self.up_DF[...])
    return matmul("...f,df->...d", activation(jax.nn.silu(gate) * up, "mlp"), self.down_DF[...])


class Block(nnx.Module):
  """One decoder layer: x + attention(norm(x)), then + mlp(norm(.))."""

  def __init__(self, config, rngs: nnx.Rngs):
    self.attention_norm = RMSNorm(config, rngs)
    self.attention = Attention(config, rngs)
    self.mlp_norm = RMSNorm(config, rngs)
    self.mlp = MLP(config, rngs)

  def __call__(self, x, cos, sin, attend):
    """Runs the layer; `attend(q, k, v) -> (context, kept)` decides what is looked at and what is kept.

    Returns:
      (x, kept): the residual stream, and whatever attend kept (a cache, or None).
    """
    q, k, v = self.attention.project(self.attention_norm(x), cos, sin)
    context, kept = attend(q, k, v)
    x = activation(x + self.attention.output(context), None)
    x = activation(x + self.mlp(self.mlp_norm(x)), None)
    return x, kept
