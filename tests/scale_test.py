"""One scaling of queries: what meets the keys is the same, bit for bit, in every attention over rows and over pages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cache_test import Scene

from fipo_jax.models import (
  attention,
  attention_cudnn,
  attention_splash,
  cache,
  cache_paged,
  cache_pallas,
)
from fipo_jax.models.scale import scaled

h = 128  # 1/√h is no power of 2: the product is rounded, and the factor would be
SCENE = Scene(h=h, K=2, H=4, steps=1, L=1, prompts=(9, 8), slots=((0, 5), (1, 2), None))


def queries(*shape):
  return jnp.asarray(np.random.default_rng(0).standard_normal((*shape, h)), jnp.bfloat16)


def once(q):
  """q / √h, rounded once, by NumPy."""
  return (np.asarray(q, np.float32) * np.float32(h**-0.5)).astype(jnp.bfloat16)


def met_by_xla(monkeypatch, q_RTHh):
  seen = []
  weighted = attention._weighted
  monkeypatch.setattr(attention, "_weighted", lambda q, *rest: seen.append(q) or weighted(q, *rest))
  rows(attention.attend_xla, q_RTHh)
  return seen[0].reshape(q_RTHh.shape)


def met_by_splash(monkeypatch, q_RTHh):
  monkeypatch.setattr(attention_splash, "_kernel", lambda *_: lambda q, k, v, segments: q)
  return rows(attention_splash.attend_splash, q_RTHh)


def met_by_cudnn(monkeypatch, q_RTHh):
  kernel = lambda q, k, v, *, scale, **_: q * jnp.asarray(scale, q.dtype)
  monkeypatch.setattr(attention_cudnn.cudnn, "dot_product_attention", kernel)
  return rows(attention_cudnn.attend_cudnn, q_RTHh)


def rows(attend, q_RTHh):
  k = queries(*q_RTHh.shape[:2], 2)
  segments = jnp.ones(q_RTHh.shape[:2], jnp.int32)
  return attend(q_RTHh, k, k, segments, segments)


@pytest.mark.parametrize("met", [met_by_xla, met_by_splash, met_by_cudnn])
def test_queries_of_rows(met, monkeypatch):
  q = queries(1, 64, 4)
  assert once(q).tolist() != np.asarray(q * jnp.bfloat16(h**-0.5)).tolist()  # the factor rounded, too
  np.testing.assert_array_equal(np.asarray(met(monkeypatch, q)), once(q))


def test_queries_of_pages(monkeypatch):
  """The kernel of a TPU takes them in float32, where they are the same numbers."""
  met = {}

  def page_sums(q_PKgh, *rest):
    met.setdefault("xla", q_PKgh)
    return sums(q_PKgh, *rest)

  def paged_attention(q_SHh, *_, **__):
    met["pallas"] = q_SHh
    return q_SHh

  sums = cache._page_sums
  monkeypatch.setattr(cache, "_page_sums", page_sums)
  def write_and_attend(q_SHh, new, new_scale, kv, scale, *_, **__):
    met["paged"] = q_SHh
    return q_SHh, kv, scale

  monkeypatch.setattr(cache_pallas, "paged_attention", paged_attention)
  monkeypatch.setattr(cache_paged, "write_and_attend", write_and_attend)
  q_SHh = queries(len(SCENE.slots), SCENE.H)
  layouts = cache.CACHES["xla"], cache_pallas.layout(8, 2, interpret=True), cache_paged.layout(8, interpret=True)
  for layout in layouts:
    pools, (pages,), _, k, v = SCENE.build(layout, "bfloat16")
    k, v = (jnp.asarray(x[0, 0], jnp.bfloat16) for x in (k, v))
    plan = layout.plan(jax.tree.map(jnp.asarray, pages), SCENE.width, pools)
    layout.attend(pools, 0, q_SHh, k, v, plan)
  want = once(q_SHh)
  assert met["pallas"].dtype == jnp.float32
  np.testing.assert_array_equal(np.asarray(met["pallas"]), want.astype(np.float32))
  np.testing.assert_array_equal(np.asarray(met["paged"]), want)
  owners = np.asarray(met["xla"], np.float32).reshape(-1, SCENE.H, h)  # a page has the queries of its owner, or of any
  of_slots = {row.tobytes() for row in want.astype(np.float32)}
  assert {row.tobytes() for row in owners} <= of_slots and len(owners) > 1


def test_gradients_keep_their_dtype():
  q = queries(3)
  gradient = jax.grad(lambda q: jnp.sum(scaled(q).astype(jnp.float32)))(q)
  assert gradient.dtype == jnp.bfloat16
