"""Sums over responses of packed rows: against their recurrence, and cut over a mesh."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import close

from fipo_jax import sharding
from fipo_jax.algorithms import segments as seg


def random_rows(rows=6, T=24, seed=0):
  rng = np.random.default_rng(seed)
  delta = rng.normal(size=(rows, T))
  counts = rng.random((rows, T)) < 0.7
  segments = np.cumsum(rng.random((rows, T)) < 0.15, axis=1).astype(np.int32) + 1
  segments[:, T - 4 :] = 0
  return delta, counts, segments


def slow_sum(x, segments, decay, reverse):
  """The recurrence of a discounted sum, a token at a time."""
  S = np.array(x, np.float64)
  step = 1 if reverse else -1
  for t in list(range(x.shape[1]))[::-step]:
    if 0 <= t + step < x.shape[1]:
      S[:, t] += decay * S[:, t + step] * (segments[:, t] == segments[:, t + step])
  return S


@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.97, 1.0])
def test_discounted_sum_equals_its_recurrence(decay, reverse):
  x, _, segments = random_rows(seed=4)
  slow = slow_sum(x, segments, decay, reverse)
  size = dict(terms=x.shape[1], scale=np.abs(x).max() * min(1 / (1 - decay + 1e-9), x.shape[1]) ** 0.5)
  with jax.enable_x64(True):
    ours = seg.discounted_sum(jnp.asarray(x), jnp.asarray(segments), decay=decay, reverse=reverse)
    assert ours.dtype == jnp.float64
    close(ours, slow, dtype=np.float64, **size)
  ours = seg.discounted_sum(jnp.asarray(x, jnp.float32), segments, decay=decay, reverse=reverse)
  assert ours.dtype == jnp.float32
  close(ours, slow, **size)
  narrow = seg.discounted_sum(jnp.asarray(x, jnp.bfloat16), segments, decay=decay, reverse=reverse)
  assert narrow.dtype == jnp.float32


def packed_rows(T=64):
  """Eight packed rows whose responses end inside shards, on their borders, and several shards further on."""
  lengths = [
    [64],  # the whole row: nothing may come round from its other end
    [8, 8, 24, 16, 8],  # every border on a shard's edge, for 2 to 8 shards
    [5, 40, 7, -12],  # longer than two shards of eight; padding
    [31, 2, 31],  # one token on each side of the middle
    [-64],
    [1] * 16 + [47, -1],
    [16, 33, -15],
    [3, 12, 17, 32],
  ]
  segments = np.zeros((len(lengths), T), np.int32)
  for row, runs in zip(segments, lengths, strict=True):
    start = 0
    for number, n in enumerate(runs, 1):
      row[start : start + abs(n)] = number if n > 0 else 0
      start += abs(n)
    assert start == T
  return np.random.default_rng(5).normal(size=segments.shape), segments


slow = functools.partial(pytest.param, marks=pytest.mark.slow)
MESHES = [
  {"context": 8},
  {"fsdp": 2, "context": 2, "tensor": 2},
  slow({"context": 2}),
  slow({"context": 4}),
  slow({"data": 2, "context": 4}),
]


def mesh(**sizes):
  return sharding.make_mesh(dict.fromkeys(sharding.MESH_AXES, 1) | sizes, jax.devices()[: math.prod(sizes.values())])


@jax.jit
def sums_and_gradients(x, segments):
  """(the gradient of a loss on a discounted sum, that sum), from the right and from the left."""

  def loss(x, reverse):
    S = seg.discounted_sum(x, segments, decay=0.93, reverse=reverse)
    return jnp.sum(jnp.sin(S)), S

  return [jax.grad(loss, has_aux=True)(x, reverse) for reverse in (True, False)]


@functools.cache
def whole_rows():
  x, segments = packed_rows()
  return sums_and_gradients(x.astype(np.float32), segments)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_a_cut_row_has_the_sum_and_the_gradient_of_the_whole_one(sizes):
  x, segments = packed_rows()
  made = mesh(**sizes)
  with jax.set_mesh(made):
    cut = sharding.to_mesh(made, (x.astype(np.float32), segments), "rows", "tokens")
    found = sums_and_gradients(*cut)
  for (gradient, ours), (whole_gradient, whole) in zip(found, whole_rows(), strict=True):
    assert ours.sharding.is_equivalent_to(sharding.named(made, "rows", "tokens"), 2)
    close(ours, whole, terms=x.shape[1])
    close(gradient, whole_gradient, terms=x.shape[1])
    assert np.abs(whole_gradient - np.cos(whole)).max() > 0.1  # gradients do cross tokens


def test_a_cut_row_in_float64_equals_the_recurrence():
  x, segments = packed_rows()
  made = mesh(context=8)
  both = lambda *cut: [seg.discounted_sum(*cut, decay=0.93, reverse=reverse) for reverse in (True, False)]
  with jax.enable_x64(True), jax.set_mesh(made):
    found = jax.jit(both)(*sharding.to_mesh(made, (x, segments), "rows", "tokens"))
  for ours, reverse in zip(found, (True, False), strict=True):
    assert ours.dtype == jnp.float64
    close(ours, slow_sum(x, segments, 0.93, reverse), terms=x.shape[1], dtype=np.float64)


def collectives(hlo: str) -> list[tuple[str, list[str]]]:
  """(operation, shapes of its results) of every collective in a compiled program's text."""
  pattern = r"= (\(.*?\)|\S+) ((?:ragged-)?all-[a-z-]+?|reduce-scatter|collective-[a-z]+|send|recv)(?:-start)?\("
  return [(name, re.findall(r"\w+\[[\d,]*\]", shape)) for shape, name in re.findall(pattern, hlo)]


def test_collectives_are_found_in_a_program():
  made = mesh(context=8)
  with jax.set_mesh(made):
    x = sharding.to_mesh(made, np.ones((4, 64), np.float32), "rows", "tokens")
    hlo = jax.jit(lambda x: jnp.cumsum(x, axis=1) / jnp.sum(x)).lower(x).compile().as_text()
  found = collectives(hlo)
  assert len(found) == len(re.findall(r"channel_id=", hlo)) > 0
  assert ("all-reduce", ["f32[]"]) in found


@pytest.mark.parametrize("reverse", [True, False])
def test_one_small_all_gather_is_all_that_shards_say(reverse):
  made = mesh(context=8)
  R, T = 6, 512
  arrays = [
    jax.ShapeDtypeStruct((R, T), dtype, sharding=sharding.named(made, "rows", "tokens"))
    for dtype in (jnp.float32, jnp.int32)
  ]
  with jax.set_mesh(made):
    f = jax.jit(functools.partial(seg.discounted_sum, decay=0.9, reverse=reverse))
    found = collectives(f.lower(*arrays).compile().as_text())
  assert found == [("all-gather", [f"f32[8,4,{R}]"])]  # shards, numbers, rows


def test_segment_total_by_hand():
  x = jnp.array([[1.0, 2.0, 4.0, 8.0], [1.0, 1.0, 1.0, 5.0]])
  segments = jnp.array([[1, 1, 2, 0], [1, 2, 3, 4]])
  total = jax.jit(seg.segment_total)
  np.testing.assert_array_equal(total(x, segments), [[3, 3, 4, 8], [1, 1, 1, 5]])
  np.testing.assert_array_equal(total(x > 1, segments), [[1, 1, 1, 1], [0, 0, 0, 1]])
  assert jax.jit(seg.sequence_count)(x > 1, segments) == 3  # the last of row 0 is padding


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_segment_totals_and_counts_of_cut_rows(sizes):
  _, segments = packed_rows()
  valid = np.random.default_rng(7).random(segments.shape) < 0.3
  slow = np.array([[(v & (s == k)).sum() for k in s] for v, s in zip(valid, segments, strict=True)])
  responses = sum(len(set(s[v & (s > 0)])) for v, s in zip(valid, segments, strict=True))
  made = mesh(**sizes)
  with jax.set_mesh(made):
    cut = sharding.to_mesh(made, (valid, segments), "rows", "tokens")
    totals, count = jax.jit(lambda *cut: (seg.segment_total(*cut), seg.sequence_count(*cut)))(*cut)
  np.testing.assert_array_equal(totals, slow)
  assert count == responses


def test_mistakes_are_named():
  x = jnp.zeros((1, 12), jnp.int32)
  for value in (-0.1, 1.5, float("nan")):
    with pytest.raises(ValueError, match="decay="):
      seg.discounted_sum(x, x, decay=value)
  with jax.set_mesh(mesh(context=8)), pytest.raises(ValueError, match=r"12 tokens .* context=8"):
    seg.discounted_sum(jnp.zeros((1, 12)), x, decay=0.5)
