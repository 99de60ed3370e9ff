"""Records merge before they divide, and `check_axes` holds arrays to their names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fipo_jax.types import Max, Mean, Min, Prompt, Rollout, check_axes


def test_means_merge_by_sums():
  merged = Mean(3.0, 1.0).merge(Mean(5.0, 3.0))
  assert merged.value() == 2.0  # and not the mean of 3 and 5/3
  assert np.isnan(Mean(0.0, 0.0).value())
  assert Mean(1.0, 2.0).merge(Mean(0.0, 0.0)).value() == 0.5


def test_peaks_and_floors_merge_and_start_empty():
  assert Max(2.0).merge(Max(5.0)).value() == 5.0 and Min(2.0).merge(Min(5.0)).value() == 2.0
  assert np.isnan(Max(-jnp.inf).value()) and np.isnan(Min(jnp.inf).value())
  assert (
    Max(-jnp.inf).merge(Max(-3.0)).value() == -3.0 and Min(jnp.inf).merge(Min(4.0)).value() == 4.0
  )


def test_records_are_trees_that_keep_their_type_through_jit():
  out = jax.jit(lambda m: m.merge(m))(Mean(jnp.array(1.0), jnp.array(2.0)))
  assert isinstance(out, Mean) and out.total == 2.0 and out.count == 4.0


def test_gradient_of_an_empty_mean_is_finite():
  assert jax.grad(lambda t: jnp.nan_to_num(Mean(t, 0.0).value()))(1.0) == 0.0


def test_truncated_follows_the_stop_reason():
  prompt = Prompt(0, np.zeros(1, np.int32), "", "", "gym")
  rollout = Rollout(prompt, 0, np.zeros(2, np.int32), np.zeros(2, np.float32), "length")
  assert rollout.truncated
  rollout.stop_reason = "stop"
  assert not rollout.truncated


def test_check_axes():
  assert check_axes(logp_RT=np.zeros((2, 3)), head_TV=np.zeros((3, 5))) == {"R": 2, "T": 3, "V": 5}
  with pytest.raises(ValueError, match=r"mask_RT: axis T has size 4, but 3 in logp_RT"):
    check_axes(logp_RT=np.zeros((2, 3)), mask_RT=np.zeros((2, 4)))
  with pytest.raises(ValueError, match=r"logp_RT: expected 2 axes"):
    check_axes(logp_RT=np.zeros(3))
