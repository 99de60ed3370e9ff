"""What cuDNN is told of packed rows; and, on a GPU that has it, the kernel against plain XLA."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from fipo_jax.models import PRESETS, attention, attention_cudnn, make_model, transformer


def test_segments_as_sequences():
  segments_RT = np.zeros((2, 64), np.int32)
  segments_RT[0, :40] = np.repeat([1, 2], [30, 10])
  segments_RT[1] = np.repeat([1, 2, 3], [1, 62, 1])
  lengths, starts = attention_cudnn._sequences(segments_RT)
  more = attention_cudnn.MOST_SEGMENTS - 2  # and padding
  assert lengths.tolist() == [[30, 10, 24] + [-1] * more, [1, 62, 1] + [-1] * more]
  assert starts.tolist() == [[0, 30, 40] + [-1] * (more + 1), [0, 1, 63] + [-1] * (more + 1)]


def test_heads_take_turns_where_the_workspace_would_be_large():
  assert attention_cudnn._groups((1, 2048, 28, 128), 4) == 1
  assert attention_cudnn._groups((1, 22_528, 40, 128), 8) == 8  # 3.5 GiB each, and no smaller turns
  assert attention_cudnn._groups((1, 4096, 40, 128), 8) == 4


def test_rows_get_no_more_segments_than_the_kernel_takes(monkeypatch):
  sizes = PRESETS["tiny"]
  most = lambda name: make_model(dataclasses.replace(sizes, attention=name)).most_segments(4096)
  assert (most("cudnn"), most("xla"), most("splash")) == (attention_cudnn.MOST_SEGMENTS, None, None)
  monkeypatch.setattr(attention, "automatic", lambda *row: {(4096, sizes.head_dim, jnp.dtype("float32")): "cudnn"}[row])
  assert most("auto") == attention_cudnn.MOST_SEGMENTS


def test_what_attention_made_is_kept_and_inputs_go_to_the_host():
  """By the policy of remat="context"; `none` of it under "full"."""
  config = dataclasses.replace(PRESETS["tiny"], remat="context", offload_inputs=True)
  (name,) = {e.primitive for e in jax.make_jaxpr(lambda x: checkpoint_name(x, "n"))(1.0).eqns}
  (sine,) = {e.primitive for e in jax.make_jaxpr(jnp.sin)(1.0).eqns}
  of = lambda config: (
    lambda policy: [policy(attention_cudnn.KERNEL), policy(name, name=transformer.CONTEXT),
                    type(policy(name, name=transformer.INPUT)).__name__, bool(policy(sine) is True)]
  )(make_model(config)._policy())  # fmt: skip
  assert of(config) == [True, True, "Offloadable", False]
  full = make_model(dataclasses.replace(config, remat="full"))._policy()
  assert full(attention_cudnn.KERNEL) is not True and full(name, name=transformer.CONTEXT) is not True


def test_what_it_does_not_take_is_refused():
  x, segments_RT = jnp.zeros((1, 64, 2, 64)), jnp.ones((1, 64), jnp.int32)
  with pytest.raises(ValueError, match="model.dtype=float32 must be bfloat16"):
    attention_cudnn.attend_cudnn(x, x, x, segments_RT, segments_RT)
  for h in (20, 136):
    x = jnp.zeros((1, 64, 2, h), jnp.bfloat16)
    with pytest.raises(ValueError, match=f"heads of {h} channels .* use 'xla'"):
      attention_cudnn.attend_cudnn(x, x, x, segments_RT, segments_RT)
  if jax.default_backend() != "gpu":
    assert not attention_cudnn.takes(jnp.bfloat16, 64)
  assert not attention_cudnn.takes(jnp.float32, 64)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU with cuDNN")
@pytest.mark.parametrize(("h", "workspace"), [(64, None), (128, None), (128, 1)])
def test_equals_plain_attention(h, workspace, monkeypatch):
  """Values and gradients of what is real, in bfloat16, within its rounding of float32's; heads at once or in turns."""
  if workspace:
    monkeypatch.setattr(attention_cudnn, "WORKSPACE", workspace)
  R, T, H, K = 3, 512, 8, 2
  rng = np.random.default_rng(0)
  q, k, v = (jnp.asarray(rng.standard_normal((R, T, n, h)), jnp.bfloat16) for n in (H, K, K))
  segments_RT = np.sort(rng.integers(1, 6, (R, T)), axis=1).astype(np.int32)
  segments_RT[0, -100:], segments_RT[1] = 0, 1
  real = (segments_RT > 0)[..., None, None]
  weights = rng.standard_normal((R, T, H, h)).astype(np.float32) * real

  def results(attend, dtype):
    def loss(q, k, v):
      out = jnp.where(real, attend(q, k, v, segments_RT, segments_RT).astype(jnp.float32), 0)
      return jnp.sum(out * weights), out

    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (_, out), gradients = grad(*(x.astype(dtype) for x in (q, k, v)))
    return [np.asarray(x, np.float32) for x in (out, *gradients)]

  got = results(attention_cudnn.attend_cudnn, jnp.bfloat16)
  for ours, exact in zip(got, results(attention.attend_xla, jnp.float32), strict=True):
    assert np.isfinite(ours).all()
    assert np.abs(ours - exact).max() < 0.03 * np.abs(exact).max()


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU with cuDNN")
def test_too_many_segments_are_seen():
  x, T = jnp.ones((1, 512, 2, 64), jnp.bfloat16), 512
  of = lambda n: attention_cudnn.attend_cudnn(x, x, x, *[jnp.repeat(jnp.arange(1, n + 1), T // n)[None]] * 2)
  assert jnp.isfinite(of(32)).all()
  assert jnp.isnan(of(64)).all()
