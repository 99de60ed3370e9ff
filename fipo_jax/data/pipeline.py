"""Records to prompts, in a shuffled, endless, exactly resumable order (Grain).

Of a run's many processes each reads the source by itself and has the same stream: a prompt is small next to its
responses, and nobody waits for another host's file.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from fipo_jax.data.sources import Record
from fipo_jax.data.tokenizer import Tokenizer
from fipo_jax.types import Prompt


class PromptStream:
  """An endless stream of prompts: every epoch holds each record once, in an order of its own.

  All records are rendered and measured once, at construction, so that a prompt over the limit, or one the
  vocabulary cannot write, is reported before the run starts, not in the middle of it.

  len_epoch: prompts in an epoch.  dropped_long: records left out, being longer than the limit.
  drawn: prompts handed out so far.  verifiers: every verifier the records name, and the id of its first record.
  """

  def __init__(
    self,
    records: Sequence[Record],
    tokenizer: Tokenizer,
    *,
    seed: int,
    max_prompt_tokens: int,
    on_long_prompt: str,
    chat_template: bool,
    instruction: str,
    default_verifier: str,
    shuffle: bool = True,
  ):
    """Args:
      records: random access to records (see `sources`).
      seed: of the shuffle.  shuffle: False keeps the records' own order in every epoch.
      max_prompt_tokens: longest prompt, in tokens.  on_long_prompt: "drop" or "error" for longer ones.
      chat_template, instruction, default_verifier: see `render`.
    Raises: ValueError for a record that cannot be rendered, or when no prompt is left.
    """
    make = _Maker(tokenizer, chat_template, instruction, default_verifier)
    kept, self.dropped_long, self._fingerprint, self.verifiers = _scan(
      records, make, max_prompt_tokens, on_long_prompt
    )
    self.len_epoch = len(kept)
    self.drawn = 0
    self._identity = {"seed": seed, "shuffle": shuffle, "records": self._fingerprint}
    self._records, self._make = _Subset(records, kept), make
    dataset = grain.MapDataset.source(self._records).seed(seed)
    if shuffle:
      dataset = dataset.shuffle()
    # No reader threads: a prompt costs microseconds next to its responses, and order and counts stay plain.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    self._iterator = iter(dataset.repeat().map(make).to_iter_dataset(options))

  def take(self, count: int) -> list[Prompt]:
    """The next `count` prompts."""
    prompts = [next(self._iterator) for _ in range(count)]
    self.drawn += count
    return prompts

  def find(self, ids: set[int]) -> dict[int, Prompt]:
    """The prompts with these ids, by id; looks through all records if there are any to find."""
    made = map(self._make, (self._records[i] for i in range(self.len_epoch if ids else 0)))
    return {prompt.id: prompt for prompt in made if prompt.id in ids}

  def spread(self, number: int) -> list[Prompt]:
    """So many prompts (all, if there are fewer), evenly over the records; draws nothing."""
    count = min(number, self.len_epoch)
    return [self._make(self._records[i * self.len_epoch // count]) for i in range(count)]

  def state(self) -> dict[str, Any]:
    """Where the stream stands, as JSON; `restore` continues with exactly the same prompts."""
    position = json.loads(json.dumps(self._iterator.get_state()))
    return {**self._identity, "drawn": self.drawn, "position": position}

  def restore(self, state: dict[str, Any]) -> None:
    """Goes where `state()` was taken. Raises: ValueError when the data or their order are not the same."""
    for key, mine in self._identity.items():
      if key not in state or state[key] != mine:
        raise ValueError(
          f"the saved data position has {key}={state.get(key)}, this run has {mine}: prompts, their limit or the "
          "seed changed since; start a new workdir, or restore the old data settings."
        )
    self._iterator.set_state(state["position"])
    self.drawn = state["drawn"]


def prompts(
  records: Sequence[Record],
  tokenizer: Tokenizer,
  *,
  max_prompt_tokens: int,
  on_long_prompt: str,
  chat_template: bool,
  instruction: str,
  default_verifier: str,
  count: int | None = None,
) -> list[Prompt]:
  """The first `count` prompts (all, when None) in the records' order: an evaluation set.

  Raises: ValueError as `PromptStream`, and when fewer than `count` are left within the limit.
  """
  make = _Maker(tokenizer, chat_template, instruction, default_verifier)
  kept, dropped, _, _ = _scan(records, make, max_prompt_tokens, on_long_prompt)
  if count is not None and (count < 1 or count > len(kept)):
    raise ValueError(
      f"evaluation asks for {count} prompts; the source has {len(kept)} within "
      f"max_prompt_tokens={max_prompt_tokens} ({dropped} longer)."
    )
  return [make(records[int(i)]) for i in kept[:count]]


def render(record: Record, tokenizer: Tokenizer, *, chat_template: bool, instruction: str) -> str:
  """The text a record puts to the model.

  A question is put into `instruction` at "{question}"; messages already say what they want and are left alone.
  With `chat_template` both go through the tokenizer's template, else messages are joined by blank lines.
  """
  if "messages" in record:
    messages = record["messages"]
  else:
    content = instruction.replace(
      "{question}", record["question"]
    )  # LaTeX braces rule out str.format
    messages = [{"role": "user", "content": content}]
  if chat_template:
    return tokenizer.render(messages)
  return "\n\n".join(message["content"] for message in messages)


def check_vocab(tokenizer: Tokenizer, vocab_size: int) -> None:
  """Raises ValueError when the tokenizer has ids the model has no embedding for.

  A model with more rows than the tokenizer has ids is usual (padding) and fine.
  """
  needed = max(tokenizer.vocab_size, max(tokenizer.stop_ids) + 1, tokenizer.pad_id + 1)
  if needed > vocab_size:
    raise ValueError(
      f"model.vocab_size={vocab_size} is smaller than the tokenizer's {needed} ids; "
      "use the tokenizer that belongs to the model."
    )


class _Maker:
  """Record to Prompt, with all settings bound."""

  def __init__(
    self, tokenizer: Tokenizer, chat_template: bool, instruction: str, default_verifier: str
  ):
    if "{question}" not in instruction:
      raise ValueError(f"data.instruction={instruction!r} must contain '{{question}}'.")
    self._tokenizer, self._chat_template = tokenizer, chat_template
    self._instruction, self._default_verifier = instruction, default_verifier

  def __call__(self, record: Record) -> Prompt:
    text = render(
      record,
      self._tokenizer,
      chat_template=self._chat_template,
      instruction=self._instruction,
    )
    extras = dict(record["extras"])
    if "target" in record:
      extras["target"] = record["target"]
    return Prompt(
      id=record["id"],
      tokens=np.asarray(self._tokenizer.encode(text), dtype=np.int32),
      text=text,
      answer=record["answer"],
      verifier=record["verifier"] or self._default_verifier,
      extras=extras,
    )


class _Subset:
  """The records at some indices, as a Grain source."""

  def __init__(self, records: Sequence[Record], indices: np.ndarray):
    self._records, self._indices = records, indices

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> Record:
    return self._records[int(self._indices[index])]


def _scan(
  records: Sequence[Record], make: _Maker, max_prompt_tokens: int, on_long_prompt: str
) -> tuple[np.ndarray, int, str, dict[str, int]]:
  """(indices within the limit, how many were not, fingerprint of the kept texts, verifier -> first record's id)."""
  if on_long_prompt not in ("drop", "error"):
    raise ValueError(f"data.on_long_prompt={on_long_prompt!r} must be 'drop' or 'error'.")
  if max_prompt_tokens < 1:
    raise ValueError(f"data.max_prompt_tokens={max_prompt_tokens} must be at least 1.")
  kept, shortest, checksum, verifiers = [], None, 0, {}
  for index in range(len(records)):
    prompt = make(records[index])
    length = len(prompt.tokens)
    if not length:
      raise ValueError(
        f"prompt {prompt.id} is empty once rendered; the model needs at least one token."
      )
    shortest = length if shortest is None else min(shortest, length)
    if length <= max_prompt_tokens:
      kept.append(index)
      checksum = zlib.crc32(f"{prompt.text}\0{prompt.answer}\0".encode(), checksum)
      verifiers.setdefault(prompt.verifier, prompt.id)
    elif on_long_prompt == "error":
      raise ValueError(
        f"prompt {prompt.id} has {length} tokens, more than data.max_prompt_tokens={max_prompt_tokens}; raise the "
        f"limit or set data.on_long_prompt='drop'. It begins {prompt.text[:60]!r}."
      )
  if not kept:
    reason = (
      "the source has no records."
      if shortest is None
      else f"all {len(records)} are longer than data.max_prompt_tokens={max_prompt_tokens}; the shortest has "
      f"{shortest} tokens."
    )
    raise ValueError(f"no prompt left: {reason}")
  return (
    np.asarray(kept, dtype=np.int64),
    len(records) - len(kept),
    f"{len(kept)}-{checksum:08x}",
    verifiers,
  )
