"""Sampling against NumPy oracles, and its frequencies against the probabilities it reports."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import close, limit

from fipo_jax.rollout import sampling as sampling_lib
from fipo_jax.rollout.sampling import Sampling


def oracle_restrict(logits, top_k, top_p, min_p=0.0):
  """Sorting, in float64: ties with the last kept token stay in."""
  out = np.array(logits, np.float64)
  for row in out:
    if 0 < top_k < row.size:
      row[row < np.sort(row)[-top_k]] = -np.inf
    if top_p < 1:
      p = np.exp(row - row.max())
      p /= p.sum()
      order = np.argsort(-row, kind="stable")
      before = np.cumsum(p[order]) - p[order]
      row[row < row[order][before < top_p].min()] = -np.inf
    p = np.exp(row - row.max())
    row[p < min_p * p.max()] = -np.inf
  return out


def oracle(logits, config, count=None, seen=None):
  """[S, V] log-probabilities of the distribution drawn from, all features in order, in float64."""
  out = np.array(logits, np.float64)
  if config.repetition_penalty != 1:
    factor = np.where(out > 0, 1 / config.repetition_penalty, config.repetition_penalty)
    out = np.where(seen, out * factor, out)
  if config.min_tokens:
    for slot in np.flatnonzero(np.asarray(count) < config.min_tokens):
      out[slot, list(config.stop_ids)] = -np.inf
  if config.temperature:
    out = oracle_restrict(out / config.temperature, config.top_k, config.top_p, config.min_p)
  return log_softmax(out)


def log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def keys(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


sample = jax.jit(sampling_lib.sample, static_argnums=2)  # as in the decode loop
SLOTS, VOCAB = 1000, 300  # a program for each config; not a multiple of the block
EVERYTHING = Sampling(
  temperature=1.3,
  top_k=40,
  top_p=0.9,
  min_p=0.02,
  repetition_penalty=1.4,
  min_tokens=4,
  stop_ids=(2, 7),
)


def history(slots, vocab, seed=0):
  """Counts and seen tokens as `sample` takes them: about a third of the vocabulary seen, counts 0 to 7."""
  rng = np.random.default_rng(seed)
  return {
    "count_S": jnp.array(rng.integers(0, 8, slots), jnp.int32),
    "seen_SV": jnp.array(rng.random((slots, vocab)) < 0.3),
  }


@pytest.mark.parametrize(
  "top_k,top_p", [(0, 1.0), (1, 1.0), (7, 1.0), (0, 0.7), (0, 0.05), (20, 0.6), (999, 0.999)]
)
def test_restrict_matches_sorting(top_k, top_p):
  logits = np.random.default_rng(top_k).normal(size=(16, 300)).astype(np.float32) * 3
  got = np.asarray(sampling_lib.restrict(jnp.array(logits), top_k=top_k, top_p=top_p))
  want = oracle_restrict(logits, top_k, top_p)
  np.testing.assert_array_equal(np.isinf(got), np.isinf(want))
  np.testing.assert_array_equal(got[~np.isinf(want)], logits[~np.isinf(want)])


def kept_tokens(logits_SV, **limits):
  return np.isfinite(np.asarray(sampling_lib.restrict(logits_SV, **limits)))[0].tolist()


def test_restrict_by_hand():
  logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))

  def kept(**kw):
    return kept_tokens(logits, **kw)

  assert kept(top_p=0.45) == [True, False, False, False]
  assert kept(top_p=0.55) == [True, True, False, False]
  assert kept(top_k=3) == [True, True, True, False]
  assert kept(top_k=3, top_p=0.9) == [True, True, True, False]  # 0.8 / 0.95 does not reach 0.9
  assert kept(top_k=2, top_p=0.6) == [True, False, False, False]  # 0.5 / 0.8 does


def test_ties_stay_in_and_signs_do_not_matter():
  logits = jnp.array([[-5.0, 1.0, 1.0, 1.0, -0.0, -7.0]])
  assert kept_tokens(logits, top_k=2) == [False, True, True, True, False, False]
  assert kept_tokens(logits, top_k=5) == [True] * 5 + [False]


WARM, LOW_K, NUCLEUS, RELATIVE = (
  Sampling(temperature=0.6), Sampling(temperature=1.7, top_k=9), Sampling(top_p=0.8), Sampling(min_p=0.1)
)  # fmt: skip


@pytest.mark.parametrize(
  "config",
  [
    Sampling(),
    WARM,
    LOW_K,
    NUCLEUS,
    Sampling(temperature=1.3, top_k=50, top_p=0.7),
    RELATIVE,
    Sampling(temperature=0.7, repetition_penalty=1.5),
    Sampling(repetition_penalty=0.6),
    Sampling(min_tokens=4, stop_ids=(0, 3, 299)),
    EVERYTHING,
  ],
)
def test_both_logp_match_an_oracle(config):
  logits = np.random.default_rng(3).normal(size=(SLOTS, VOCAB)).astype(np.float32) * 2
  given = history(SLOTS, VOCAB)
  token, logp, raw_logp = sample(jnp.array(logits), keys(SLOTS), config, **given)
  want = oracle(logits, config, given["count_S"], given["seen_SV"])
  want = want[np.arange(SLOTS), np.asarray(token)]
  want_raw = log_softmax(logits.astype(np.float64))[np.arange(SLOTS), np.asarray(token)]
  assert token.dtype == jnp.int32 and logp.dtype == raw_logp.dtype == jnp.float32
  assert np.isfinite(want).all()
  size = np.abs(logits).max() * 1.5 / min(config.temperature, 1)  # what is subtracted, after penalty and temperature
  close(logp, want, terms=VOCAB, scale=size, room=1)  # a sum of positive terms
  close(raw_logp, want_raw, terms=VOCAB, scale=size, room=1)
  assert np.array_equal(logp, raw_logp) == (config == Sampling())


def draws(n, logits, config, seed, count, seen):
  """(tokens, log-probs) of n draws from one row of logits, SLOTS at a time."""
  rows = [np.broadcast_to(x, (SLOTS, *np.shape(x))) for x in (logits, np.int32(count), seen)]
  parts = [
    sample(rows[0], some, config, count_S=rows[1], seen_SV=rows[2])[:2] for some in keys(n, seed).reshape(-1, SLOTS)
  ]
  return [np.concatenate(x) for x in zip(*parts, strict=True)]


@pytest.mark.parametrize("config", [Sampling(), WARM, LOW_K, NUCLEUS, RELATIVE, EVERYTHING])
def test_frequencies(config):
  """χ² of 10,000 draws over a vocabulary that is not a multiple of the block; threshold at p ≈ 1e-6."""
  n, vocab = 10_000, VOCAB
  logits = np.random.default_rng(5).normal(size=vocab).astype(np.float32) * 2
  logits[[2, 11, 299]] = 4.0  # so that the stop ids matter
  seen = np.asarray(history(1, vocab)["seen_SV"])
  token, _ = draws(n, logits, config, seed=7, count=2, seen=seen[0])
  p = np.exp(oracle(logits[None], config, np.array([2]), seen))[0]
  count = np.bincount(token, minlength=vocab)
  assert count[p == 0].sum() == 0
  big = p * n >= 5
  observed = np.append(count[big], count[~big].sum())
  expected = np.append(p[big] * n, max(p[~big].sum() * n, 1e-9))
  if expected[-1] < 5:
    observed, expected = observed[:-1], expected[:-1]
  free = len(observed) - 1
  assert ((observed - expected) ** 2 / expected).sum() < free + 5 * np.sqrt(2 * free) + 15


@pytest.mark.parametrize("config", [LOW_K, NUCLEUS, RELATIVE, EVERYTHING])
def test_probabilities_of_all_that_can_be_drawn_sum_to_one(config):
  """Draws until every token was seen that the oracle allows: exp(logp) over them is the whole distribution."""
  logits = np.random.default_rng(8).normal(size=VOCAB).astype(np.float32) * 2
  given = history(1, VOCAB, seed=3)
  count, seen = (np.asarray(given[name]) for name in ("count_S", "seen_SV"))
  allowed = np.flatnonzero(np.isfinite(oracle(logits[None], config, count, seen)[0]))
  token, logp = draws(4000, logits, config, seed=0, count=count[0], seen=seen[0])
  drawn, where = np.unique(token, return_index=True)
  np.testing.assert_array_equal(drawn, allowed)
  assert 1 < len(drawn) < VOCAB
  close(np.exp(logp.astype(np.float64))[where].sum(), 1, terms=len(drawn))


def plain_sample(logits, uniform, block=128):
  """Straightforward plain sampling in float64 from the same random numbers: token, and whether it was a close call."""
  weight = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
  levels = [weight]
  while len(levels) < uniform.shape[1]:
    padded = np.pad(levels[-1], ((0, 0), (0, -levels[-1].shape[1] % block)))
    levels.append(padded.reshape(len(padded), -1, block).sum(-1))
  token, near = [], []
  for slot, u in enumerate(uniform.astype(np.float64)):
    index, closest = 0, 1.0
    for level, share in zip(levels[::-1], u, strict=True):
      inside = level[slot, index * block : (index + 1) * block]
      cumulative = np.cumsum(inside) / inside.sum()
      closest = min(closest, np.abs(cumulative[:-1] - share).min(initial=1.0))
      index = index * block + int(np.argmax(cumulative > share))
    token.append(index)
    near.append(closest < limit(terms=block, room=1))
  return np.array(token), np.array(near)


@pytest.mark.parametrize("vocab", [5, 128, 300, 16_384, 16_500, 40_000])
def test_with_everything_off_a_draw_is_the_plain_one(vocab):
  """Token by token, with one level of blocks and with two, whether or not the last block is full."""
  slots = 64
  logits = np.random.default_rng(vocab).normal(size=(slots, vocab)).astype(np.float32) * 2
  token, logp, raw_logp = sample(jnp.array(logits), keys(slots, 3), Sampling(top_k=vocab))
  levels = 2 if vocab <= 128**2 else 3
  uniform = np.array(jax.vmap(lambda key: jax.random.uniform(key, (levels,)))(keys(slots, 3)))
  want, near = plain_sample(logits, uniform)
  assert near.mean() < 0.1
  np.testing.assert_array_equal(np.asarray(token)[~near], want[~near])
  np.testing.assert_array_equal(np.asarray(logp), np.asarray(raw_logp))
  want_logp = log_softmax(logits.astype(np.float64))[np.arange(slots), np.asarray(token)]
  close(logp, want_logp, terms=vocab, scale=np.abs(logits).max(), room=1)  # a sum of positive terms


def program(config, vocab=300, **given):
  return sample.lower(jnp.zeros((2, vocab)), keys(2), config, **given).as_text()


def exponentials(text, vocab=300):
  """How many exponentials of a whole vocabulary: of its full blocks, here."""
  return sum("exponential" in x and f"x{vocab // 128}x128x" in x for x in text.splitlines())


def test_features_that_are_off_leave_no_trace_in_the_program():
  off = Sampling(
    top_k=300, min_p=0.0, repetition_penalty=1.0, min_tokens=0, stop_ids=(1, 2), stop_strings=("a",)
  )
  plain = program(Sampling())
  assert program(off) == plain
  assert exponentials(plain) == 1
  for on in [
    dict(temperature=0.5),
    dict(min_p=0.1),
    dict(repetition_penalty=1.1),
    dict(min_tokens=1, stop_ids=(1,)),
  ]:
    assert exponentials(program(Sampling(**on), **history(2, 300))) == 2  # raw_logp needs its own


def test_no_sort_in_the_program():
  for config in (Sampling(), EVERYTHING, Sampling(temperature=0.0)):
    text = program(config, **history(2, 300))
    assert "stablehlo.sort" not in text and "top_k" not in text


def test_min_p_by_hand():
  logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))

  def kept(logits=logits, **kw):
    return kept_tokens(logits, **kw)

  assert kept(min_p=0.05) == [True] * 4  # at least 0.025
  assert kept(min_p=0.2) == [True, True, True, False]  # at least 0.1
  assert kept(min_p=0.4) == [True, True, False, False]  # at least 0.2
  assert kept(min_p=0.9) == [True, False, False, False]
  assert kept(logits / 2, min_p=0.2) == [True] * 4  # 0.05 is √0.1 = 0.32 of 0.5 at temperature 2
  assert kept(jnp.array([[3.0, 1.0, 3.0]]), min_p=1.0) == [True, False, True]  # ties stay in
  assert kept(logits, top_k=3, min_p=0.05) == [True, True, True, False]


def test_min_p_comes_after_top_p():
  """Before it, 0.4 of the remaining 0.7 would reach top_p alone."""
  logits = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
  assert kept_tokens(logits, top_p=0.55) == [True, True, False, False]
  assert kept_tokens(logits, top_p=0.55, min_p=0.6) == [True, True, False, False]


def test_temperature_comes_before_min_p():
  logits = jnp.broadcast_to(jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05])), (400, 4))
  token, _, _ = sample(logits, keys(400), Sampling(min_p=0.2))
  assert set(np.asarray(token).tolist()) == {0, 1, 2}
  token, _, _ = sample(logits, keys(400), Sampling(temperature=2.0, min_p=0.2))
  assert set(np.asarray(token).tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
  "penalty,want", [(2.0, [1.0, -4.0, 0.0, 1.0, -1.0]), (0.5, [4.0, -1.0, 0.0, 1.0, -1.0])]
)
def test_repetition_penalty_by_hand(penalty, want):
  """Seen tokens lose whatever their sign; a penalty below 1 is a reward; tokens not seen stay."""
  logits = jnp.array([[2.0, -2.0, 0.0, 1.0, -1.0]])
  seen = jnp.array([[True, True, True, False, False]])
  config = Sampling(repetition_penalty=penalty)
  np.testing.assert_array_equal(sampling_lib.adjust(logits, config, seen_SV=seen), [want])
  _, logp, raw_logp = sample(logits, keys(1), dataclasses.replace(config, top_k=1), seen_SV=seen)
  best = max(want)
  close(logp, [-np.log(want.count(best))], scale=5)  # ties stay in top-k
  assert raw_logp[0] < -0.3


def test_penalty_leaves_an_impossible_token_impossible():
  logits = jnp.array([[-jnp.inf, 1.0]])
  config = Sampling(repetition_penalty=1.3, min_tokens=1, stop_ids=(0,))
  got = sampling_lib.adjust(logits, config, jnp.zeros(1, jnp.int32), jnp.array([[True, False]]))
  np.testing.assert_array_equal(got, logits)


def test_min_tokens_by_hand():
  """Stop ids 1 and 3 hold 0.9 of the probability; before two tokens they hold none, and the rest is renormalised."""
  n = 200
  p = np.array([0.04, 0.5, 0.06, 0.4])
  logits = jnp.broadcast_to(jnp.log(jnp.array(p, jnp.float32)), (4 * n, 4))
  count = jnp.tile(jnp.arange(4, dtype=jnp.int32), n)
  config = Sampling(min_tokens=2, stop_ids=(1, 3, 99))  # 99: not in this vocabulary
  token, logp, raw_logp = (
    np.asarray(x) for x in sample(logits, keys(4 * n), config, count_S=count)
  )
  early = np.asarray(count) < 2
  assert set(token[early]) == {0, 2} and set(token[~early]) == {0, 1, 2, 3}
  close(np.exp(logp), p[token] * np.where(early, 10, 1), terms=4)
  close(np.exp(raw_logp), p[token], terms=4)


def test_min_tokens_of_the_whole_response_keeps_stop_ids_out():
  logits = jnp.array([[9.0, 0.0, 0.0]])
  config = Sampling(temperature=0.0, max_tokens=5, min_tokens=5, stop_ids=(0,))
  for count, want in [(0, 1), (4, 1), (5, 0)]:
    assert sample(logits, keys(1), config, count_S=jnp.array([count]))[0] == want


def test_greedy_takes_the_maximum_and_reports_temperature_one():
  logits = np.random.default_rng(1).normal(size=(8, 50)).astype(np.float32)
  logits[0, [3, 9]] = 11.0
  config = Sampling(temperature=0.0, top_k=3, min_p=0.5)
  token, logp, raw_logp = sample(jnp.array(logits), keys(8), config)
  np.testing.assert_array_equal(np.asarray(token), logits.argmax(-1))
  assert token[0] == 3
  close(logp, log_softmax(logits.astype(np.float64)).max(-1), terms=50, scale=11)
  np.testing.assert_array_equal(np.asarray(logp), np.asarray(raw_logp))


@pytest.mark.parametrize(
  "vocab,tied,want",
  [
    (4, [1, 2], 1),
    (256, [127, 128], 127),
    (
      300,
      [200, 290],
      200,
    ),  # 200: in the last block's window, which starts early, but not in the block
    (300, [299], 299),
    (300, [260, 290], 260),
    (20_000, [17_000, 19_999], 17_000),
  ],
)
def test_greedy_ties_go_to_the_smallest_id(vocab, tied, want):
  logits = np.random.default_rng(vocab).normal(size=(3, vocab)).astype(np.float32)
  logits[1, tied] = logits[0].max() + 10
  token, _, _ = sample(jnp.array(logits), keys(3), Sampling(temperature=0.0))
  assert token.tolist() == [logits[0].argmax(), want, logits[2].argmax()]


def test_greedy_looks_at_the_penalised_logits():
  logits = np.array([[3.0, 2.0, 1.0, 4.0]], np.float32)
  config = Sampling(temperature=0.0, repetition_penalty=2.0, min_tokens=3, stop_ids=(3,))
  given = {"count_S": jnp.array([2]), "seen_SV": jnp.array([[True, False, False, False]])}
  token, logp, raw_logp = sample(jnp.array(logits), keys(1), config, **given)
  assert token.tolist() == [1]  # 1.5, 2, 1, -inf
  close(logp, [-np.log(1 + np.exp(-0.5) + np.exp(-1))], terms=4, scale=4)
  close(raw_logp, log_softmax(logits.astype(np.float64))[:, 1], terms=4, scale=4)


@pytest.mark.parametrize("config", [Sampling(), EVERYTHING])
def test_a_slot_depends_on_its_own_key_and_logits_only(config):
  logits = np.random.default_rng(2).normal(size=(SLOTS, VOCAB)).astype(np.float32)
  given = {name: np.asarray(x) for name, x in history(SLOTS, VOCAB).items()}
  order = np.random.default_rng(4).permutation(SLOTS)
  whole = sample(logits, keys(SLOTS), config, **given)
  some_of = lambda some: {name: x[some] for name, x in given.items()}
  moved = sample(logits[order], keys(SLOTS)[order], config, **some_of(order))
  for got, want in zip(moved, whole, strict=True):
    np.testing.assert_array_equal(got, np.asarray(want)[order])
  few = order[:5]  # another program, which may add up in another order
  token, *logps = sample(logits[few], keys(SLOTS)[few], config, **some_of(few))
  np.testing.assert_array_equal(token, np.asarray(whole[0])[few])
  close(logps, [np.asarray(x)[few] for x in whole[1:]], terms=VOCAB, room=1)
  other = sample(logits, keys(SLOTS, 1), config, **given)
  assert not np.array_equal(other[0], whole[0])


draw = jax.jit(
  lambda logits, uniform: sampling_lib.draw(logits, *sampling_lib.blocks(logits), uniform)
)


@pytest.mark.parametrize("vocab", [700, 20_000])
def test_draw_never_takes_weight_zero(vocab):
  late = vocab - 60  # in the last block, which is not a full one
  weight = np.zeros((4, vocab), np.float32)
  weight[:, [130, 131, late]] = [1.0, 1.0, 2.0]
  u = np.array([0.0, 0.3, 0.5, np.nextafter(np.float32(1), np.float32(0))], np.float32)
  uniform = np.repeat(u[:, None], sampling_lib.draw_levels(vocab), axis=1)
  assert draw(jnp.log(weight), uniform).tolist() == [130, 130, late, late]


def test_rounding_never_draws_weight_zero():
  """Random numbers right at the steps: sums in another order may rise at a weight of 0."""
  rng = np.random.default_rng(0)
  weight = rng.random((20_000, 100), dtype=np.float32) * (rng.random((20_000, 100)) < 0.3)
  weight[:, 50] += 0.1  # some positive
  share = np.cumsum(weight, axis=1, dtype=np.float64) / weight.sum(
    1, keepdims=True, dtype=np.float64
  )
  step = share[np.arange(20_000), rng.integers(0, 100, 20_000)]
  uniform = np.clip(step, 0, np.nextafter(np.float32(1), np.float32(0))).astype(np.float32)
  index = jax.jit(sampling_lib._invert)(weight, uniform)
  assert (weight[np.arange(20_000), np.asarray(index)] > 0).all()


def test_draw_levels():
  assert [sampling_lib.draw_levels(v) for v in (1, 128, 129, 128**2, 128**2 + 1, 151_936)] == [
    2
  ] * 4 + [3] * 2


def test_the_last_block_never_gives_a_token_of_the_one_before():
  """300 tokens: the last block is 256 to 299, and its window of 128 starts at 172, in the block before."""
  logits = jnp.zeros((1, 300)).at[0, 172:256].set(8.0)
  for within, want in [(0.0, 256), (0.5, 278), (0.999, 299)]:
    uniform = jnp.array([[0.9999999, within]], jnp.float32)
    assert int(draw(logits, uniform)[0]) == want


def test_certain_and_lopsided_distributions():
  logits = jnp.array([[-jnp.inf, 0.0, -jnp.inf], [1e4, 0.0, -1e4], [-1e30, -1e30, -1e30]])
  token, logp, _ = sample(logits, keys(3), Sampling())
  assert token[0] == 1 and token[1] == 0
  close(logp, [0.0, 0.0, -np.log(3)])


def test_bfloat16_logits_give_float32_logp():
  logits = np.random.default_rng(6).normal(size=(4, 64)).astype(jnp.bfloat16)
  token, logp, _ = sample(jnp.array(logits), keys(4), Sampling())
  want = log_softmax(logits.astype(np.float64))[np.arange(4), np.asarray(token)]
  close(logp, want, terms=64, scale=10)


def test_a_missing_history_is_named():
  logits = jnp.zeros((2, 8))
  with pytest.raises(ValueError, match="sampling.min_tokens=1 needs count_S"):
    sample(logits, keys(2), Sampling(min_tokens=1), **_without("count_S"))
  with pytest.raises(ValueError, match="sampling.repetition_penalty=1.2 needs seen_SV"):
    sample(logits, keys(2), Sampling(repetition_penalty=1.2), **_without("seen_SV"))


def _without(name):
  return {key: x for key, x in history(2, 8).items() if key != name}


@pytest.mark.parametrize(
  "bad",
  [
    dict(temperature=-1.0),
    dict(temperature=float("nan")),
    dict(top_k=-1),
    dict(top_p=0.0),
    dict(top_p=1.5),
    dict(max_tokens=0),
    dict(min_p=-0.1),
    dict(min_p=1.1),
    dict(min_p=float("nan")),
    dict(repetition_penalty=0.0),
    dict(repetition_penalty=-1.0),
    dict(repetition_penalty=float("inf")),
    dict(min_tokens=-1),
    dict(min_tokens=129),
    dict(min_tokens=4, max_tokens=3),
    dict(stop_strings="word"),
    dict(stop_strings=("word", "")),
    dict(stop_strings=(7,)),
  ],
)
def test_bad_fields_are_named(bad):
  with pytest.raises(ValueError, match=f"^sampling.{next(iter(bad))}=[^\\n]+$"):
    Sampling(**bad)


def test_limits_are_fine():
  Sampling(min_p=1.0, min_tokens=128, max_tokens=128, repetition_penalty=0.1, stop_strings=["a b"])


def test_lists_become_hashable():
  assert hash(Sampling(stop_ids=[1, np.int32(2)])) == hash(Sampling(stop_ids=(1, 2)))
  assert Sampling(stop_strings=["a", "b"]) == Sampling(stop_strings=("a", "b"))
  assert len({Sampling(stop_strings=["a"]), Sampling(stop_strings=("a",)), Sampling()}) == 2
