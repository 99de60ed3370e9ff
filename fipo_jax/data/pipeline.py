"""Records to prompts, in a shuffled, endless, exactly resumable order (Grain).

Of a run's many processes each reads the source by itself and has the same stream: a prompt is small next to its
responses, and nobody waits for another host's file.
"""

from __future__ import annotations

import array
import dataclasses
import json
import math
import zlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import grain
import numpy as np

from fipo_jax.data.records import Mixture, Part, Record
from fipo_jax.data.tokenizer import Tokenizer
from fipo_jax.types import Prompt

SCANNED_AT_ONCE = 4096  # records


class PromptStream:
  """An endless stream of prompts: every epoch holds each record once, in an order of its own.

  All records are rendered and measured once, at construction, so that a prompt over the limit, or one the
  vocabulary cannot write, is reported before the run starts, not in the middle of it. Of a `Mixture` each source has
  epochs of its own, and prompts come from them by weight.

  len_epoch: prompts in an epoch.  dropped_long: records left out, being longer than the limit.
  excluded: records left out, being held out.  drawn: prompts handed out so far.  verifiers: every verifier the records
  name, and the id of its first record.
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
    system: str = "",
    instruct_messages: bool = False,
    shuffle: bool = True,
    exclude: Collection[str] = (),
    inspect: Callable[[Record], None] | None = None,
  ):
    """Args:
      records: random access to records (see `records`).
      seed: of the shuffle.  shuffle: False keeps the records' own order in every epoch.
      max_prompt_tokens: longest prompt, in tokens.  on_long_prompt: "drop" or "error" for longer ones.
      chat_template, instruction, default_verifier, system, instruct_messages: see `render`.
      exclude: texts of prompts that are left out.  inspect: called once with each record that is kept.
    Raises: ValueError for a record that cannot be rendered, or when no prompt is left.
    """
    make = _Maker(tokenizer, default_verifier, chat_template=chat_template, instruction=instruction, system=system,
                  instruct_messages=instruct_messages)  # fmt: skip
    found = _scan(records, make, max_prompt_tokens, on_long_prompt, frozenset(exclude), inspect)
    self.dropped_long, self.excluded, self.verifiers = found.long, found.excluded, found.verifiers
    self.len_epoch = len(found.kept)
    self.drawn = 0
    self._identity = {"seed": seed, "shuffle": shuffle, "records": found.fingerprint}
    if isinstance(records, Mixture):
      self._identity["weights"] = [round(weight, 9) for weight in records.weights]
    self._records, self._ids, self._make = Part(records, found.kept), found.ids, make
    # No reader threads: a prompt costs microseconds next to its responses, and order and counts stay plain.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    self._iterator = iter(_endless(records, found.kept, seed, shuffle).map(make).to_iter_dataset(options))

  def take(self, count: int) -> list[Prompt]:
    """The next `count` prompts."""
    prompts = [next(self._iterator) for _ in range(count)]
    self.drawn += count
    return prompts

  def find(self, ids: set[int]) -> dict[int, Prompt]:
    """The prompts with these ids, by id, as far as they are there."""
    places = np.flatnonzero(np.isin(self._ids, np.fromiter(ids, np.int64, len(ids))))
    return {prompt.id: prompt for prompt in (self._make(self._records[int(i)]) for i in places)}

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
  system: str = "",
  instruct_messages: bool = False,
  count: int | None = None,
  inspect: Callable[[Record], None] | None = None,
) -> list[Prompt]:
  """The first `count` prompts (all, when None) in the records' order: an evaluation set; inspect sees their records.

  Raises: ValueError as `PromptStream`, and when fewer than `count` are left within the limit.
  """
  make = _Maker(tokenizer, default_verifier, chat_template=chat_template, instruction=instruction, system=system,
                instruct_messages=instruct_messages)  # fmt: skip
  found = _scan(records, make, max_prompt_tokens, on_long_prompt)
  if count is not None and (count < 1 or count > len(found.kept)):
    raise ValueError(
      f"evaluation asks for {count} prompts; the source has {len(found.kept)} within "
      f"max_prompt_tokens={max_prompt_tokens} ({found.long} longer)."
    )
  chosen = [records[int(i)] for i in found.kept[:count]]
  for record in chosen if inspect else ():
    inspect(record)
  return [make(record) for record in chosen]


def render(
  record: Record,
  tokenizer: Tokenizer,
  *,
  chat_template: bool,
  instruction: str,
  system: str = "",
  instruct_messages: bool = False,
) -> str:
  """The text a record puts to the model.

  A question is put into `instruction` at "{question}"; messages already say what they want and are left alone, unless
  instruct_messages puts what the user said last into it, too. The record's own system text, else `system`, stands
  before, where messages do not begin with one ("" = none). With `chat_template` all go through the tokenizer's
  template, else they are joined by blank lines.
  """
  asked = lambda question: instruction.replace("{question}", question)  # LaTeX braces rule out str.format
  if "messages" in record:
    messages = list(record["messages"])
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if instruct_messages and users:
      messages[users[-1]] = messages[users[-1]] | {"content": asked(messages[users[-1]]["content"])}
  else:
    messages = [{"role": "user", "content": asked(record["question"])}]
  system = record.get("system", system)
  if system and messages[0]["role"] != "system":
    messages.insert(0, {"role": "system", "content": system})
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
  """Record to Prompt, with all settings bound. how: keywords of `render`."""

  def __init__(self, tokenizer: Tokenizer, default_verifier: str, **how: Any):
    if "{question}" not in how["instruction"]:
      raise ValueError(f"data.instruction={how['instruction']!r} must contain '{{question}}'.")
    self.tokenizer, self.default_verifier, self._how = tokenizer, default_verifier, how

  def text(self, record: Record) -> str:
    return render(record, self.tokenizer, **self._how)

  def __call__(self, record: Record) -> Prompt:
    text = self.text(record)
    extras = dict(record["extras"])
    if "target" in record:
      extras["target"] = record["target"]
    return Prompt(
      id=record["id"],
      tokens=np.asarray(self.tokenizer.encode(text), dtype=np.int32),
      text=text,
      answer=record["answer"],
      verifier=record["verifier"] or self.default_verifier,
      extras=extras,
    )


def _endless(records: Sequence[Record], kept: np.ndarray, seed: int, shuffle: bool) -> grain.MapDataset:
  """The kept records again and again, each epoch in an order of its own; of a mixture, each source by itself."""

  def epochs(places: np.ndarray, seed: int) -> grain.MapDataset:
    dataset = grain.MapDataset.source(Part(records, places)).seed(seed)
    return (dataset.shuffle() if shuffle else dataset).repeat()

  if not isinstance(records, Mixture):
    return epochs(kept, seed)
  cuts = np.searchsorted(kept, records.bounds)
  parts = [kept[start:stop] for start, stop in zip(cuts[:-1], cuts[1:], strict=True)]
  for name, part in zip(records.names, parts, strict=True):
    if not len(part):
      raise ValueError(f"data.mixture.{name}: no prompt is left of it; see data.max_prompt_tokens.")
  return grain.MapDataset.mix([epochs(part, seed + k) for k, part in enumerate(parts)], records.weights)


def _lengths(tokenizer: Tokenizer, texts: list[str], limit: int) -> list[int]:
  """Tokens of each text, or a bound on them where that is within the limit: most prompts are short."""
  bounds = [tokenizer.most_tokens(text) for text in texts]
  unsure = [k for k, bound in enumerate(bounds) if bound is None or bound > limit]
  for k, tokens in zip(unsure, tokenizer.encode_batch([texts[k] for k in unsure]), strict=True):
    bounds[k] = len(tokens)
  return bounds


@dataclasses.dataclass
class _Found:
  """kept: places of the records within the limit, and ids: theirs. fingerprint: of their texts and answers. verifiers:
  name -> id of its first record. long, excluded: how many were left out."""

  kept: np.ndarray
  ids: np.ndarray
  fingerprint: str
  verifiers: dict[str, int]
  long: int
  excluded: int


def _scan(
  records: Sequence[Record],
  make: _Maker,
  max_prompt_tokens: int,
  on_long_prompt: str,
  exclude: frozenset[str] = frozenset(),
  inspect: Callable[[Record], None] | None = None,
) -> _Found:
  """Renders and measures every record once, many at a time, for the tokenizer then uses all cores."""
  if on_long_prompt not in ("drop", "error"):
    raise ValueError(f"data.on_long_prompt={on_long_prompt!r} must be 'drop' or 'error'.")
  if max_prompt_tokens < 1:
    raise ValueError(f"data.max_prompt_tokens={max_prompt_tokens} must be at least 1.")
  kept, ids, verifiers = array.array("q"), array.array("q"), {}
  shortest, checksum, long, excluded = math.inf, 0, 0, 0
  for start in range(0, len(records), SCANNED_AT_ONCE):
    some = [records[i] for i in range(start, min(start + SCANNED_AT_ONCE, len(records)))]
    texts = [make.text(record) for record in some]
    for index, (record, text, length) in enumerate(
      zip(some, texts, _lengths(make.tokenizer, texts, max_prompt_tokens), strict=True), start
    ):
      if text in exclude:
        excluded += 1
        continue
      if not length:
        raise ValueError(f"prompt {record['id']} is empty once rendered; the model needs at least one token.")
      shortest = min(shortest, length)
      if length <= max_prompt_tokens:
        if inspect:
          inspect(record)
        kept.append(index)
        ids.append(record["id"])
        checksum = zlib.crc32(f"{text}\0{record['answer']}\0".encode(), checksum)
        verifiers.setdefault(record["verifier"] or make.default_verifier, record["id"])
        continue
      long += 1
      if on_long_prompt == "error":
        raise ValueError(
          f"prompt {record['id']} has {length} tokens, more than data.max_prompt_tokens={max_prompt_tokens}; raise the "
          f"limit or set data.on_long_prompt='drop'. It begins {text[:60]!r}."
        )
  if not kept:
    reason = "the source has no records."
    if excluded:
      reason = f"all {excluded} others read like held-out ones."
    if shortest < math.inf:
      reason = (
        f"all {long} are longer than data.max_prompt_tokens={max_prompt_tokens}; the shortest has {shortest} tokens."
      )
    raise ValueError(f"no prompt left: {reason}")
  places = np.asarray(kept, np.int64)
  return _Found(places, np.asarray(ids, np.int64), f"{len(places)}-{checksum:08x}", verifiers, long, excluded)
