"""The TPU's attention kernel, interpreted, against plain XLA: values, gradients, and cut over a mesh."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import close

from fipo_jax import config, describe
from fipo_jax.models import PRESETS, attention, attention_splash, make_model
from fipo_jax.models.attention_splash import Blocks, attend_splash, blocks_of
from fipo_jax.sharding import MESH_AXES, make_mesh

R, T, H, K, h = 2, 512, 4, 2, 64


def inputs(tokens=T, pad=30):
  """Rows of three segments and padding, queries of 4 heads over 2; and weights of a loss on what is real."""
  rng = np.random.default_rng(0)
  q, k, v = (jnp.asarray(rng.standard_normal((R, tokens, n, h)), jnp.float32) for n in (H, K, K))
  segments_RT = np.sort(rng.integers(1, 4, (R, tokens)), axis=1).astype(np.int32)
  segments_RT[:, tokens - pad :] = 0
  weights = rng.standard_normal((R, tokens, H, h)).astype(np.float32) * (segments_RT > 0)[..., None, None]
  return (q, k, v), segments_RT, weights


def results(attend, *row):
  """(values, gradients) of what is real."""
  qkv, segments_RT, weights = inputs(*row)

  def loss(q, k, v):
    out = attend(q, k, v, segments_RT, segments_RT) * (segments_RT > 0)[..., None, None]
    return jnp.sum(out * weights), out

  (_, out), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*qkv)
  return jax.tree.map(np.asarray, (out, gradients))


@functools.cache
def expected():
  return results(attention.attend_xla)


INTERPRETED = functools.partial(attend_splash, interpret=True)


def test_gradients_of_gathered_keys_are_scattered():
  """Each device gets its part of the sum, and not all of it: half of the bytes of an all-reduce."""
  (q, k, v), segments_RT, _ = inputs()
  mesh = make_mesh(dict(data=1, fsdp=1, context=4, tensor=1), jax.devices()[:4])
  with jax.set_mesh(mesh):
    loss = lambda *qkv: jnp.sum(INTERPRETED(*qkv, segments_RT, segments_RT) ** 2)
    text = str(jax.make_jaxpr(jax.grad(loss, argnums=(1, 2)))(q, k, v))
  assert text.count("all_gather[") >= 2 and text.count("reduce_scatter[") == 2 and "psum" not in text


@pytest.mark.parametrize("shape", [None, (1, 1, 2, 2), pytest.param((2, 1, 4, 1), marks=pytest.mark.slow)])
def test_equals_plain_attention(shape, monkeypatch):
  """On one device; with heads and tokens cut; with tokens cut in four: queries are, keys and values are gathered."""
  monkeypatch.setattr(attention_splash, "BLOCK", 128)  # several blocks, of which some are skipped
  monkeypatch.setattr(attention_splash, "BACKWARD_BLOCK", 256)
  if shape is None:
    got = results(INTERPRETED)
  else:
    mesh = make_mesh(dict(zip(MESH_AXES, shape, strict=True)), jax.devices()[: math.prod(shape)])
    with jax.set_mesh(mesh):
      got = results(INTERPRETED)
  close(got, expected(), terms=h + T)
  assert all(np.abs(x).max() > 0.1 for x in jax.tree.leaves(expected()))


@pytest.mark.parametrize("head_dim", [20, pytest.param(128, marks=pytest.mark.slow)])
def test_heads_of_any_size(head_dim):
  rng = np.random.default_rng(1)
  q, k, v = (jnp.asarray(rng.standard_normal((1, 128, n, head_dim)), jnp.float32) for n in (2, 1, 1))
  segments_RT = np.repeat([[1, 2]], 64, axis=1)
  got, want = (jax.jit(attend)(q, k, v, segments_RT, segments_RT) for attend in (INTERPRETED, attention.attend_xla))
  close(got, want, terms=head_dim + 128)


@pytest.mark.parametrize("shape", [None, (1, 1, 4, 1)])
def test_rows_of_any_length_are_padded(shape):
  """A prompt of 16 tokens; and 520 tokens over four devices, 130 each, padded there and not at the row's end."""
  row = (16, 3) if shape is None else (520, 0)
  want = results(attention.attend_xla, *row)
  if shape is None:
    got = results(INTERPRETED, *row)
  else:
    mesh = make_mesh(dict(zip(MESH_AXES, shape, strict=True)), jax.devices()[: math.prod(shape)])
    with jax.set_mesh(mesh):
      got = results(INTERPRETED, *row)
  close(got, want, terms=h + row[0])


def test_padding_is_a_segment_of_its_own():
  """What a row's padding looks at stays as it was, also where another device's part has been padded before it."""
  (q, k, v), segments_RT, _ = inputs(520, 300)
  want = jax.jit(attention.attend_xla)(q, k, v, segments_RT, segments_RT)
  with jax.set_mesh(make_mesh(dict(data=1, fsdp=1, context=4, tensor=1), jax.devices()[:4])):
    got = jax.jit(INTERPRETED)(q, k, v, segments_RT, segments_RT)
  close(got, want, terms=h + 520)


def test_long_rows_write_no_partial_gradients(monkeypatch):
  """Beyond PARTIAL_DQ the gradient of the queries is a kernel of its own: the same numbers."""
  monkeypatch.setattr(attention_splash, "BLOCK", 128)
  monkeypatch.setattr(attention_splash, "BACKWARD_BLOCK", 256)
  fused = traced()
  bytes_of_one_run = R * H * T * (T // 256) * h * 4  # all heads are one run, in float32
  monkeypatch.setattr(attention_splash, "PARTIAL_DQ", bytes_of_one_run - 1)
  apart = traced()
  assert "splash_mha_dq" not in fused and "splash_mha_dq" in apart
  close(results(INTERPRETED), expected(), terms=h + T)
  monkeypatch.setattr(attention_splash, "PARTIAL_DQ", bytes_of_one_run)
  assert traced() == fused


def traced():
  """The program of a gradient, as text."""
  qkv, segments_RT, _ = inputs()
  loss = lambda *x: jnp.sum(INTERPRETED(*x, segments_RT, segments_RT))
  return str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*qkv))


def test_blocks_of_rows():
  """As large as divide the row; a row is padded where only small ones do, by 896 tokens at most."""
  assert blocks_of(22_528, 1) == Blocks(22_528, 22_528, q=1024, kv=1024, back=2048, compute=1024)
  assert blocks_of(22_528, 4) == Blocks(5632, 22_528, q=512, kv=1024, back=2048, compute=1024)
  assert blocks_of(22_656, 1) == Blocks(23_040, 23_040, q=768, kv=768, back=1920, compute=640)  # 177 · 128
  assert blocks_of(16, 1) == Blocks(128, 128, q=128, kv=128, back=128, compute=128)
  for units in range(1, 200):
    for context in (1, 4):
      tokens = 128 * units * context
      b = blocks_of(tokens, context)
      assert 0 <= b.queries - tokens // context <= 896 and b.keys == context * b.queries
      assert b.queries % b.q == b.keys % b.kv == b.keys % b.back == b.back % b.compute == 0
      assert b.q in (b.queries, *range(512, 1025)) and b.back in (b.keys, *range(1024, 2049))


def test_what_a_length_costs_is_said(monkeypatch):
  """Once, at the start, with a length that would do; nothing where there is nothing to mend."""

  def said(tokens, attention, remat="full"):
    c = config.default()
    c.batch.row_tokens, c.model.attention, c.model.remat = tokens, attention, remat
    return describe.rows(c, make_model(dataclasses.replace(PRESETS["tiny"], attention=attention)))

  assert said(22_528, "splash") == said(22_528, "xla") == said(22_600, "xla", "none") == said(36, "xla") == ""
  pads = "attention pads them to 23,040; batch.row_tokens=23040 would do"
  assert said(22_656, "splash") == f"rows of 22,656 tokens: {pads}"
  assert said(22_600, "xla").endswith("instead of tiles; batch.row_tokens=22656 would do")
  assert said(22_600, "splash").endswith(f"instead of tiles; {pads}")
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert said(22_528, "auto").endswith("attention is XLA's: no kernel takes such rows, heads and numbers here")


@pytest.mark.parametrize(("tokens", "name"), [(16, "xla"), (127, "xla"), (128, "splash"), (22_600, "splash")])
def test_automatic_on_a_tpu(tokens, name, monkeypatch):
  """Prompts of less than a block are not worth the padding; no other length falls back."""
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  assert attention.automatic(tokens, 128, jnp.bfloat16) == name


def test_automatic_is_xla_on_a_cpu():
  qkv, segments_RT, _ = inputs()
  attend = jax.jit(attention.attend, static_argnames="implementation")
  got, plain = (attend(*qkv, segments_RT, segments_RT, implementation=name) for name in ("auto", "xla"))
  np.testing.assert_array_equal(got, plain)
