"""Stop strings: the first token that completes one, wherever the response is cut into pieces, at a linear cost."""

import itertools

import numpy as np
import pytest
import tokenizers

from fipo_jax.data.tokenizer import Tokenizer
from fipo_jax.rollout.stops import StopSearch


def letters(tokens):
  """Token 0 has no text, as the padding rows of a vocabulary."""
  return "".join(" abc"[t] if t else "" for t in tokens)


def expected(text, strings, min_tokens, tokens):
  """By definition, from the whole text of every beginning."""
  known = len(text(tokens[:min_tokens]).rstrip("\ufffd"))
  for n in range(min_tokens + 1, len(tokens) + 1):
    here = text(tokens[:n])
    if any(here.find(s, max(0, known - len(s) + 1)) >= 0 for s in strings):
      return n
  return None


def found(text, strings, min_tokens, tokens, sizes, begun=0):
  """Fed in pieces of these sizes; the first `begun` tokens were there before."""
  search, at = StopSearch(text, strings, min_tokens, tokens[:begun]), begun
  for size in itertools.cycle(sizes):
    if at >= len(tokens):
      return None
    keep = search.feed(tokens[at : at + size])
    if keep is not None:
      return at + keep
    at += size


@pytest.mark.parametrize("min_tokens", [0, 1, 7])
@pytest.mark.parametrize("strings", [("bca",), ("cc", "bab"), ("a",)])
def test_equals_the_definition(strings, min_tokens):
  rng, ends = np.random.default_rng(len(strings) + min_tokens), 0
  for _ in range(60):
    tokens = rng.integers(0, 4, 40)
    want = expected(letters, strings, min_tokens, tokens)
    ends += want is not None
    for sizes in ([1], [3], [7, 2], [40]):
      assert found(letters, strings, min_tokens, tokens, sizes) == want
    begun = int(rng.integers(0, 40 if want is None else want))  # else the response would have ended before
    assert found(letters, strings, min_tokens, tokens, [5], begun) == want
  assert ends > 10


def bytes_tokenizer():
  """Byte-level, as Qwen's: a character of two bytes is two tokens; one special token."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
  core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  core.decoder = tokenizers.decoders.ByteLevel()
  core.add_special_tokens(["<|end|>"])
  core.add_tokens(["<tool>"])
  return Tokenizer(core, {"eos_token": "<|end|>"}, {})


def test_characters_of_several_tokens_and_special_ones():
  tokenizer = bytes_tokenizer()
  text = lambda ids: tokenizer.decode(ids, skip_special=False)
  tokens = tokenizer.encode("größe €€ <|end|> öß ende")
  for strings in (("öß e",), ("€ <",), ("nd|> ö",), ("größe €",), ("ß",)):
    want = expected(text, strings, 0, tokens)
    assert strings[0] in text(tokens[:want]) and strings[0] not in text(tokens[: want - 1])
    for sizes in ([1], [2], [3], [64]):
      assert found(text, strings, 0, tokens, sizes) == want


def test_the_id_of_a_special_token():
  tokenizer = bytes_tokenizer()
  [end], [tool] = tokenizer.encode("<|end|>"), tokenizer.encode("<tool>")
  assert (tokenizer.special_id("<|end|>"), tokenizer.special_id("<tool>")) == (end, tool)
  assert tokenizer.special_id("<|end|> ") is tokenizer.special_id("a") is tokenizer.special_id("") is None


@pytest.mark.parametrize("pieces", [64, 20_000])
def test_the_cost_is_linear(pieces):
  """Tokens decoded for a response of 20,000: each about once, and those that a stop string may have begun in."""
  counted = 0

  def text(tokens):
    nonlocal counted
    counted += len(tokens)
    return "x" * len(tokens)

  assert found(text, ("Question:", "\n\n\n"), 0, np.ones(20_000, int), [pieces]) is None
  assert counted < 2 * 20_000
  counted = 0
  late = lambda tokens: text(tokens)[:-1] + "!" if 7 in tokens else text(tokens)
  assert found(late, ("!",), 0, np.where(np.arange(20_000) == 19_990, 7, 1), [pieces]) is not None
  assert counted < 2 * 20_000
