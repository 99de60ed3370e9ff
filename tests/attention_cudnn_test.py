"""What cuDNN is told of packed rows; and, on a GPU that has it, the kernel against plain XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fipo_jax.models import attention, attention_cudnn


def test_segments_as_sequences():
  segments_RT = np.zeros((2, 64), np.int32)  # 8 segments at most, and padding
  segments_RT[0, :40] = np.repeat([1, 2], [30, 10])
  segments_RT[1] = np.repeat([1, 2, 3], [1, 62, 1])
  lengths, starts = attention_cudnn._sequences(segments_RT)
  assert lengths.tolist() == [[30, 10, 24] + [-1] * 6, [1, 62, 1] + [-1] * 6]
  assert starts.tolist() == [[0, 30, 40] + [-1] * 7, [0, 1, 63] + [-1] * 7]


def test_what_it_does_not_take_is_refused():
  x, segments_RT = jnp.zeros((1, 64, 2, 64)), jnp.ones((1, 64), jnp.int32)
  with pytest.raises(ValueError, match="model.dtype=float32 must be bfloat16"):
    attention_cudnn.attend_cudnn(x, x, x, segments_RT, segments_RT)
  if jax.default_backend() != "gpu":
    assert not attention_cudnn.takes(jnp.bfloat16, 64)
  assert not attention_cudnn.takes(jnp.float32, 64)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU with cuDNN")
@pytest.mark.parametrize("h", [64, 128])
def test_equals_plain_attention(h):
  """Values and gradients of what is real, in bfloat16, within its rounding of float32's."""
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
