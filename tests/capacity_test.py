"""How large the engine's programs are: bounds that hold for any lengths, and few shapes."""

import itertools

import pytest

from fipo_jax.rollout.capacity import (
  MOST_DECODE,
  MOST_PREFILL,
  PREFILL_TOKENS,
  SMALLEST_POOL,
  Capacity,
)


def capacities():
  for slots, prompt, response, page, layers, resizes in itertools.product(
    (1, 7, 64, 1216), (1, 40, 2048), (12, 20_480), (4, 64), (2, 64), (True, False)
  ):
    yield Capacity(slots, 2, prompt, response, page, 0, layers, resizes)


@pytest.mark.parametrize("width", [1, 2, 16])
@pytest.mark.parametrize("share", [0, 0.02, 0.1, 0.25, 0.5, 0.75, 1.0])  # of the need; 0: no bound
def test_shapes_hold_the_longest_and_keep_the_budget(share, width):
  """At the worst moment of a resizing, too: when the new array of one layer and kind is there beside the old one."""
  for c in capacities():
    full = (c.prompt - 1) // c.page if width > 1 else 0
    budget = int(share * c.slots * (c.longest + full)) and max(
      int(share * c.slots * (c.longest + full)), c.smallest_budget(width)
    )
    c = Capacity(c.slots, c.shards, c.prompt, c.response, c.page, budget, c.layers, c.resizes)
    shapes = c.shapes(width)
    assert len(shapes) == len(set(shapes)) <= MOST_DECODE
    slots = [s.slots for s in shapes]
    assert slots[0] == c.slots and slots == sorted(slots, reverse=True)
    whole = [s for s in shapes if s.slots == c.slots]
    assert whole == sorted(whole, key=lambda s: s.own) and (c.resizes or len(whole) == 1)
    assert whole[-1].own >= c.longest and all(s.own >= SMALLEST_POOL // c.page for s in whole[:-1])
    if not budget:
      assert whole[-1].own == c.slots * c.longest
    for s in shapes:
      assert s.shared >= full and s.tail >= 1 and (budget or s.slots == c.slots or s.own >= s.slots * c.longest)
      if budget:
        assert sum(s.pages.values()) + c.prefill_pages(width) <= budget
    if budget and c.resizes:
      for old, new in itertools.permutations(shapes, 2):
        # Keys of the first layer are new, all else is old; or all are new but the values of the last, twice there.
        for kind in (k for k in ("own", "shared") if old.pages[k] != new.pages[k]):
          twice = max(sum(old.pages.values()) + new.pages[kind] / (2 * c.layers),
                      sum(new.pages.values()) + old.pages[kind] / (2 * c.layers))  # fmt: skip
          assert twice <= budget + 1 or old.slots < new.slots, (old, new, budget)


def test_the_smallest_budget_is_enough_and_no_page_less():
  for c in capacities():
    least = c.smallest_budget(4)
    with_budget = lambda n, c=c: Capacity(c.slots, c.shards, c.prompt, c.response, c.page, n, c.layers, c.resizes)
    top = [s for s in with_budget(least).shapes(4) if s.slots == c.slots][-1]
    assert top.own >= c.longest
    less = [s for s in with_budget(least - 1).shapes(4) if s.slots == c.slots][-1]
    assert less.own < c.longest or less.tail < 1 or less.shared < (c.prompt - 1) // c.page


def test_few_lengths_of_prefill_take_any_prompt():
  for c in capacities():
    lengths = c.prefill_lengths
    assert len(lengths) <= MOST_PREFILL
    for tokens in (0, 1, c.prompt - 1, c.prompt + c.response - 1):
      n = c.prefill_length(tokens)
      assert tokens <= n <= c.prompt + c.response and n in lengths
      assert c.rows(n, 4) == 1 or c.rows(n, 4) * n <= PREFILL_TOKENS
    assert c.prefill_length(c.prompt - 1) <= -(-c.prompt // 128) * 128 + 128
