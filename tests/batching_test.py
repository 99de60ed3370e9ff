"""Packing: nothing lost, nothing mixed, one shape."""

import numpy as np
import pytest

from fipo_jax.train import batching
from fipo_jax.types import Prompt, Rollout


def rollout(prompt_length, response_length, seed=0, advantage=1.0, group=0):
  rng = np.random.default_rng([seed, prompt_length, response_length])
  prompt = Prompt(group, rng.integers(1, 99, prompt_length).astype(np.int32), "", "", "gym")
  tokens = rng.integers(1, 99, response_length).astype(np.int32)
  return Rollout(prompt, seed, tokens, -rng.random(response_length).astype(np.float32), "stop", advantage=advantage)


def test_mini_batches_hold_each_group_once_in_an_order_of_the_step():
  groups = [[rollout(2, 1, group=g)] for g in range(32)]
  ids = lambda **at: [[group[0].prompt.id for group in part] for part in batching.minibatches(groups, 4, **at)]
  parts = ids(seed=0, step=1)
  assert [len(part) for part in parts] == [8] * 4 and sorted(sum(parts, [])) == list(range(32))
  assert parts == ids(seed=0, step=1) and parts != ids(seed=0, step=2) and parts != ids(seed=1, step=1)
  waited = set(range(8))  # they come first: by chance a quarter of them is in the first part
  share = np.mean([len(waited.intersection(ids(seed=0, step=step)[0])) / 8 for step in range(100)])
  assert abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 * 24 / 31 / 800)  # standard deviations of a hypergeometric mean
  assert [len(part) for part in batching.minibatches(groups[:3], 4, seed=0, step=1)] == [1] * 3


def test_first_fit_by_hand():
  assert batching.first_fit([3, 9, 4, 6, 1], 10) == [[1, 4], [3, 2], [0]]


def test_first_fit_refuses_what_cannot_fit():
  with pytest.raises(ValueError, match="batch.row_tokens=10.*11 tokens"):
    batching.first_fit([3, 11], 10)


def test_every_response_is_found_at_its_place():
  groups = [[rollout(3 + g, 2 + 3 * i, seed=10 * g + i, advantage=g - i, group=g) for i in range(4)] for g in range(3)]
  packed = batching.pack(groups, row_tokens=24, micro_rows=2, num_micro=6)
  b, flat = packed.batch, [r for g in groups for r in g]
  assert b.mask.sum() == sum(len(r.tokens) for r in flat)
  assert (b.segments > 0).sum() == sum(len(r.tokens) + len(r.prompt.tokens) for r in flat)
  assert not b.segments[packed.used :].any()
  for r, p in zip(flat, packed.places, strict=True):
    at = (p.micro, p.row, slice(p.start, p.stop))
    np.testing.assert_array_equal(b.tokens[at], r.tokens)
    np.testing.assert_array_equal(b.sampler_logp[at], r.logp)
    assert (b.advantages[at] == r.advantage).all()
    whole = slice(p.start - len(r.prompt.tokens), p.stop)
    np.testing.assert_array_equal(b.tokens[p.micro, p.row, whole][: len(r.prompt.tokens)], r.prompt.tokens)
    np.testing.assert_array_equal(b.positions[p.micro, p.row, whole], np.arange(whole.stop - whole.start))
    assert len(set(b.segments[p.micro, p.row, whole])) == 1
    mine = sum(len(x.tokens) for x in groups[r.prompt.id])
    assert (b.group_tokens[at] == mine).all()


def test_micro_batches_are_about_equally_full():
  groups = [[rollout(2, n) for n in (20, 19, 18, 17, 16, 4, 3, 2)]]
  packed = batching.pack(groups, row_tokens=22, micro_rows=3, num_micro=3)
  full = packed.batch.mask.sum((1, 2))[: packed.used]
  assert packed.used == 2 and full.min() > 0.6 * full.max()


def test_no_row_has_more_segments_than_asked_for():
  groups = [[rollout(1, 1) for _ in range(10)]]
  pack = lambda **most: batching.pack(groups, row_tokens=20, micro_rows=1, num_micro=5, **most)
  assert pack().batch.segments.max(axis=(1, 2)).tolist() == [10, 0, 0, 0, 0]
  assert pack(segments=4).batch.segments.max(axis=(1, 2)).tolist() == [4, 4, 2, 0, 0]


def test_too_few_micro_batches_are_refused():
  with pytest.raises(ValueError, match="batch.micro_rows=1.*3 rows need 3 micro-batches, not 2"):
    batching.pack([[rollout(2, 8) for _ in range(3)]], row_tokens=10, micro_rows=1, num_micro=2)


def test_the_age_of_a_group_is_on_all_its_tokens():
  groups = [[rollout(2, 3), rollout(1, 5)], [rollout(3, 4)]]
  groups[0][0].age = groups[0][1].age = 2
  packed = batching.pack(groups, row_tokens=10, micro_rows=2, num_micro=2)
  for r, p in zip(sum(groups, []), packed.places, strict=True):
    assert (packed.batch.age[p.micro, p.row, p.start - len(r.prompt.tokens) : p.stop] == r.age).all()


def test_rows_are_dealt_round_the_micro_batches():
  packed = batching.pack([[rollout(1, 9) for _ in range(4)]], row_tokens=10, micro_rows=3, num_micro=3)
  assert packed.used == 2 and packed.batch.mask.sum((1, 2)).tolist() == [18, 18, 0]
