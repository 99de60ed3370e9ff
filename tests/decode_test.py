"""The jitted wave programs against published greedy continuations and the trainer's own log-probs."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fipo_jax.models import PRESETS, hf, make_model
from fipo_jax.models.logprobs import token_logprobs
from fipo_jax.rollout import decode
from fipo_jax.rollout.sampling import Sampling
from fipo_jax.sharding import make_mesh

GOLDEN = pathlib.Path(__file__).parent / "golden" / "qwen2"
MODEL = make_model(
  dataclasses.replace(
    PRESETS["tiny"],
    vocab_size=40,
    num_layers=2,
    d_model=16,
    d_mlp=24,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
  )
)
PAD = 0


def random_params(std=0.4):
  leaves, tree = jax.tree.flatten(MODEL.abstract())
  keys = jax.random.split(jax.random.key(3), len(leaves))
  return tree.unflatten(
    [std * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
  )


def run(model, params, prompts, sampling, *, padded, entries, samples=1, used=None):
  """Left-pads the prompts, starts a wave and extends it, growing the cache as asked by `entries`."""
  prompt_RT = np.full((len(prompts), padded), PAD, np.int32)
  for r, prompt in enumerate(prompts):
    prompt_RT[r, padded - len(prompt) :] = prompt
  length_R = np.array([len(p) for p in prompts], np.int32)
  slots = len(prompts) * samples
  ids, numbers = np.divmod(np.arange(slots, dtype=np.uint32), samples)
  used = np.ones(slots, bool) if used is None else used
  wave = decode.start(
    model,
    sampling,
    params,
    prompt_RT,
    length_R,
    jax.random.key(9),
    ids,
    numbers,
    used,
    entries=entries[0],
    pad_id=PAD,
  )
  for size in entries:
    if size > wave.cache_k.shape[2]:
      wave = decode.grow(wave, entries=size)
    wave, done, unfinished = decode.extend(
      model, sampling, params, wave, np.int32(padded), pad_id=PAD
    )
  return wave, int(done), bool(unfinished)


@pytest.mark.parametrize("name", ["tied_mqa", "untied_gqa"])
def test_greedy_equals_the_published_implementation(name):
  """Prompts cut to ragged lengths, so that left padding, positions and a growing cache all matter."""
  model = make_model(hf.read_config(GOLDEN / name))
  params = hf.load(
    GOLDEN / name, model, make_mesh(dict(data=1, fsdp=1, context=1, tensor=1), jax.devices()[:1])
  )
  want = np.load(GOLDEN / name / "golden.npz")["greedy"]
  starts = [12, 15, 13][: len(want)]
  n = want.shape[1] - max(starts)
  sampling = Sampling(temperature=0.0, max_tokens=n)
  prompts = [row[:s] for row, s in zip(want, starts, strict=True)]
  wave, _, unfinished = run(model, params, prompts, sampling, padded=16, entries=(20, 16 + n))
  assert not unfinished
  for row, s, tokens in zip(want, starts, np.asarray(wave.tokens_SN), strict=True):
    np.testing.assert_array_equal(tokens, row[s : s + n])


def test_sampler_logp_equals_trainer_logp():
  """The trainer's packed forward over prompt and response gives the sampler's log-probs again, ragged lengths."""
  params = random_params()
  rng = np.random.default_rng(1)
  prompts = [rng.integers(1, 40, n) for n in (3, 8, 5)]
  sampling = Sampling(temperature=0.7, max_tokens=12, stop_ids=(7, 11, 19, 23))
  wave, _, _ = run(MODEL, params, prompts, sampling, padded=8, entries=(20,), samples=4)
  count_S, tokens_SN, logp_SN = map(np.asarray, (wave.count_S, wave.tokens_SN, wave.logp_SN))
  assert len(set(count_S)) > 2
  rows = np.zeros((12, 8 + 12), np.int32)
  segments = np.zeros_like(rows)
  for s, count in enumerate(count_S):
    full = np.concatenate([prompts[s // 4], tokens_SN[s, :count]])
    rows[s, : len(full)], segments[s, : len(full)] = full, 1
  positions = np.broadcast_to(np.arange(20, dtype=np.int32), rows.shape)
  hidden = jax.jit(MODEL.hidden)(params, rows, positions, segments)
  logp, _ = token_logprobs(hidden, MODEL.head(params), rows, segments, temperature=0.7)
  for s, count in enumerate(count_S):
    begin = len(prompts[s // 4])
    np.testing.assert_allclose(logp_SN[s, :count], logp[s, begin : begin + count], atol=1e-5)


def test_stopping_and_what_is_written_after_it():
  params = random_params()
  sampling = Sampling(max_tokens=12, stop_ids=(7, 11, 19, 23))
  used = np.arange(8) != 5
  wave, done, _ = run(
    MODEL, params, [[1, 2, 3], [4, 5]], sampling, padded=4, entries=(16,), samples=4, used=used
  )
  count_S, tokens_SN, logp_SN = map(np.asarray, (wave.count_S, wave.tokens_SN, wave.logp_SN))
  for s in range(8):
    ended = np.isin(tokens_SN[s], sampling.stop_ids)
    want = 0 if s == 5 else 1 + ended.argmax() if ended.any() else 12
    assert count_S[s] == want
    assert (tokens_SN[s, want:] == PAD).all() and (logp_SN[s, want:] == 0).all()
    assert (logp_SN[s, :want] < 0).all()
  assert done == sum(np.isin(tokens_SN, sampling.stop_ids).any(1)) + 1
  assert 0 < done < 8


def test_the_loop_ends_with_the_last_slot():
  params = random_params()
  every = Sampling(max_tokens=500, stop_ids=tuple(range(40)))
  wave, done, unfinished = run(MODEL, params, [[1], [2, 3]], every, padded=2, entries=(502,))
  assert (int(wave.step), done, unfinished) == (1, 2, False)
  some = Sampling(max_tokens=500, stop_ids=tuple(range(0, 40, 3)))
  wave, done, unfinished = run(MODEL, params, [[1], [2, 3]], some, padded=2, entries=(502,))
  assert (done, unfinished) == (2, False) and int(wave.step) == int(wave.count_S.max()) < 100


def test_growing_the_cache_changes_no_token():
  params, prompts = random_params(), [[1, 2, 3], [4, 5, 6, 7, 8]]
  sampling = Sampling(max_tokens=20)
  whole, _, _ = run(MODEL, params, prompts, sampling, padded=6, entries=(26,), samples=3)
  part, _, unfinished = run(MODEL, params, prompts, sampling, padded=6, entries=(11,), samples=3)
  assert (
    unfinished and int(part.step) == 6
  )  # five tokens fit, and the sixth need not be written yet
  grown, _, unfinished = run(
    MODEL, params, prompts, sampling, padded=6, entries=(11, 25), samples=3
  )
  assert not unfinished
  np.testing.assert_array_equal(grown.tokens_SN, whole.tokens_SN)
  np.testing.assert_allclose(grown.logp_SN, whole.logp_SN, atol=1e-5)


def test_samples_of_a_prompt_differ_and_depend_on_prompt_and_number_only():
  params, sampling = random_params(), Sampling(max_tokens=10)
  shared, _, _ = run(MODEL, params, [[1, 2, 3]], sampling, padded=4, entries=(14,), samples=6)
  assert len({tuple(row) for row in np.asarray(shared.tokens_SN)}) == 6
  picked = np.array([4, 0, 2, 5, 1, 3], np.uint32)
  wave = decode.start(
    MODEL, sampling, params, np.array([[PAD, 1, 2, 3]] * 6, np.int32), np.full(6, 3, np.int32), jax.random.key(9),
    np.zeros(6, np.uint32), picked, np.ones(6, bool), entries=14, pad_id=PAD,
  )  # fmt: skip
  wave, _, _ = decode.extend(MODEL, sampling, params, wave, np.int32(4), pad_id=PAD)
  np.testing.assert_array_equal(wave.tokens_SN, np.asarray(shared.tokens_SN)[picked])


def test_the_cache_is_updated_in_place():
  """Besides its arguments the decode loop needs less memory than one more cache would take."""
  sampling, S, M = Sampling(max_tokens=64), 8, 1024
  shapes = jax.eval_shape(
    lambda params: decode.start(
      MODEL, sampling, params, jnp.zeros((S, 4), jnp.int32), jnp.ones(S, jnp.int32), jax.random.key(0),
      jnp.zeros(S, jnp.uint32), jnp.zeros(S, jnp.uint32), jnp.ones(S, bool), entries=M, pad_id=PAD,
    ),
    MODEL.abstract(),
  )  # fmt: skip
  compiled = decode.extend.lower(
    MODEL, sampling, MODEL.abstract(), shapes, jnp.int32(4), pad_id=PAD
  ).compile()
  cache_bytes = 2 * np.prod(shapes.cache_k.shape) * 4
  assert compiled.memory_analysis().temp_size_in_bytes < 0.9 * cache_bytes
  assert compiled.memory_analysis().alias_size_in_bytes >= cache_bytes
