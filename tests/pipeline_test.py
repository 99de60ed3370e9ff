"""Prompt streams: order, resume, limits, rendering."""

import json

import numpy as np
import pytest

from fipo_jax.data.pipeline import PromptStream, check_vocab, prompts, render
from fipo_jax.data.tokenizer import characters

TOKENIZER = characters("abcdefghijklmnopqrstuvwxyz0123456789 +={}\n")
RENDERING = {
  "max_prompt_tokens": 20,
  "on_long_prompt": "drop",
  "chat_template": True,
  "instruction": "{question}",
  "default_verifier": "math_dapo",
}


def record(i, question=None, **fields):
  return {
    "id": i,
    "question": question or f"{i} + 1 =",
    "answer": str(i + 1),
    "verifier": None,
    "extras": {"row": i},
  } | fields


RECORDS = [record(i) for i in range(7)]


def stream(records=RECORDS, seed=0, **options):
  return PromptStream(records, TOKENIZER, seed=seed, **RENDERING | options)


def ids(found):
  return [p.id for p in found]


def test_a_prompt():
  (prompt,) = stream([record(3, verifier="gym", target="it is 4")]).take(1)
  assert prompt.text == "3 + 1 =" and prompt.answer == "4" and prompt.verifier == "gym"
  assert prompt.extras == {"row": 3, "target": "it is 4"}
  assert prompt.tokens.dtype == np.int32
  assert TOKENIZER.decode(prompt.tokens) == prompt.text
  assert RECORDS[3]["extras"] == {"row": 3}


def test_every_epoch_holds_each_record_once_in_its_own_order():
  data = stream()
  epochs = [ids(data.take(7)) for _ in range(4)]
  assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) > 1
  assert (data.drawn, data.len_epoch, data.dropped_long) == (28, 7, 0)


def test_the_seed_decides_the_order():
  assert ids(stream(seed=3).take(14)) == ids(stream(seed=3).take(14))
  assert ids(stream(seed=3).take(14)) != ids(stream(seed=4).take(14))


def test_unshuffled():
  assert ids(stream(shuffle=False).take(9)) == [0, 1, 2, 3, 4, 5, 6, 0, 1]


def test_resume_is_exact():
  data = stream()
  data.take(10)
  state = json.loads(json.dumps(data.state()))
  expected = ids(data.take(5))
  assert ids(data.take(5)) != expected
  data.restore(state)
  assert ids(data.take(5)) == expected and data.drawn == 15
  fresh = stream()
  fresh.restore(state)
  assert ids(fresh.take(5)) == expected


@pytest.mark.parametrize(
  "changed",
  [
    lambda: stream(seed=1),
    lambda: stream(shuffle=False),
    lambda: stream(RECORDS[:-1]),
    lambda: stream([record(i, answer="0") for i in range(7)]),
    lambda: stream(instruction="say {question}"),
  ],
)
def test_resume_refuses_other_data(changed):
  data = changed()
  with pytest.raises(ValueError, match="the saved data position has"):
    data.restore(stream().state())


def test_prompts_are_found_again_by_id():
  data = stream()
  data.take(3)
  found = data.find({2, 5, 99})
  assert set(found) == {2, 5} and found[5].extras == {"row": 5}
  assert data.find(set()) == {} and data.drawn == 3


def test_long_prompts_are_dropped_and_counted():
  records = [*RECORDS, record(7, "a" * 20), record(8, "b" * 21), record(9, "c" * 100)]
  data = stream(records)
  assert (data.len_epoch, data.dropped_long) == (8, 2)
  assert sorted(ids(data.take(8))) == list(range(8))


def test_a_long_prompt_can_be_an_error():
  with pytest.raises(
    ValueError, match="prompt 8 has 21 tokens, more than data.max_prompt_tokens=20"
  ):
    stream([*RECORDS, record(8, "b" * 21)], on_long_prompt="error")


def test_nothing_left():
  with pytest.raises(ValueError, match="all 7 are longer .*=3; the shortest has 7 tokens"):
    stream(max_prompt_tokens=3)
  with pytest.raises(ValueError, match="no prompt left: the source has no records"):
    stream([])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"on_long_prompt": "cut"}, "data.on_long_prompt='cut'"),
    ({"max_prompt_tokens": 0}, "data.max_prompt_tokens=0"),
    ({"instruction": "solve it"}, "data.instruction='solve it'"),
    ({"instruction": "É {question}"}, "no token for 'É'"),
  ],
)
def test_mistakes(options, message):
  with pytest.raises(ValueError, match=message):
    stream(**options)


def test_an_empty_prompt_is_refused():
  with pytest.raises(ValueError, match="prompt 4 is empty"):
    stream([record(4, messages=[{"role": "system", "content": "x"}])])


def test_verifiers_named():
  assert stream([record(0), record(1, verifier="gym")]).verifiers == {"math_dapo": 0, "gym": 1}


def test_rendering():
  question = record(0, "x {0} y")
  chat = record(1, messages=[{"role": "system", "content": "s"}, {"role": "user", "content": "u"}])
  instruction = "solve {question} with {}"

  def text(rec, chat_template):
    return render(rec, TOKENIZER, chat_template=chat_template, instruction=instruction)

  assert text(question, True) == text(question, False) == "solve x {0} y with {}"
  assert text(chat, True) == "u"
  assert text(chat, False) == "s\n\nu"


def test_evaluation_prompts_keep_their_order():
  records = [record(0, "a" * 30), *RECORDS[1:]]
  assert ids(prompts(records, TOKENIZER, count=3, **RENDERING)) == [1, 2, 3]
  assert ids(prompts(records, TOKENIZER, **RENDERING)) == [1, 2, 3, 4, 5, 6]
  with pytest.raises(ValueError, match=r"asks for 7 prompts; the source has 6 .*\(1 longer\)"):
    prompts(records, TOKENIZER, count=7, **RENDERING)


def test_check_vocab():
  check_vocab(TOKENIZER, TOKENIZER.vocab_size)
  check_vocab(TOKENIZER, TOKENIZER.vocab_size + 100)
  with pytest.raises(ValueError, match=f"model.vocab_size={TOKENIZER.vocab_size - 1} is smaller"):
    check_vocab(TOKENIZER, TOKENIZER.vocab_size - 1)


@pytest.mark.parametrize(("number", "ids"), [(3, [0, 3, 6]), (10, list(range(10))), (99, list(range(10))), (0, [])])
def test_spread_takes_evenly_and_draws_nothing(number, ids):
  prompts = stream([record(i) for i in range(10)])
  assert [p.id for p in prompts.spread(number)] == ids and prompts.drawn == 0


def test_only_prompts_that_may_be_too_long_are_encoded(monkeypatch):
  from tests.tokenizer_test import byte_level

  tokenizer, encoded = byte_level(), []
  real = type(tokenizer).encode_batch
  counted = lambda self, texts: (encoded.extend(texts), real(self, texts))[1]
  monkeypatch.setattr(type(tokenizer), "encode_batch", counted)
  records = [record(0, "x" * 20), record(1, "y" * 21), record(2, "é" * 10), record(3, "é" * 11)]
  options = RENDERING | {"chat_template": False}
  data = PromptStream(records, tokenizer, seed=0, **options)
  assert encoded == ["y" * 21, "é" * 11] and (data.len_epoch, data.dropped_long) == (2, 2)
