"""Text to token ids and back, and chat messages to text, from the files of a Hugging Face model folder."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import tokenizers

from fipo_jax import paths

PAD, TURN_START, TURN_END, UNKNOWN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"
_SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


class Tokenizer:
  """A tokenizer.json with its chat template and its end tokens.

  vocab_size: one more than the largest id, added tokens included; a model needs at least so many rows.
  stop_ids: ids that end a response, the first is the one to train on: all that generation_config.json and
  tokenizer_config.json name. pad_id: fills unused places. notes: what was found in the files and is to be said.
  """

  def __init__(
    self,
    core: tokenizers.Tokenizer,
    config: dict[str, Any],
    generation: dict[str, Any],
    *,
    where: str = "tokenizer",
  ):
    self._core, self._config, self._generation, self._where = core, config, generation, where
    self.notes: list[str] = []
    self._leave_prompts_alone()
    self.vocab_size: int = max(core.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    self._specials = {
      name: _content(config[name]) for name in _SPECIAL_NAMES if config.get(name) is not None
    }
    self.stop_ids = self._find_stop_ids()
    pad = self._specials.get("pad_token")
    self.pad_id: int = self.stop_ids[0] if pad is None else self._special_id("pad_token")
    self._unknown_id = (
      core.token_to_id(self._specials["unk_token"]) if "unk_token" in self._specials else None
    )

  @functools.cached_property
  def _template(self) -> jinja2.Template | None:
    """Compiled when it is first needed: a broken template is no obstacle to plain prompts."""
    return _compile(self._config.get("chat_template"), self._where)

  @classmethod
  def load(cls, directory) -> Tokenizer:
    """Reads tokenizer.json, tokenizer_config.json, generation_config.json and chat_template.jinja.

    Only the first is required, but an end token must be named by one of the next two.
    Raises: FileNotFoundError without tokenizer.json; ValueError for a broken file or no end token.
    """
    folder = paths.of(directory)
    path = folder / "tokenizer.json"
    if not paths.is_file(path):
      raise FileNotFoundError(f"{path}: no such file; a model folder must hold tokenizer.json.")
    text = paths.read(path)
    try:
      core = tokenizers.Tokenizer.from_str(text.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception for a file it cannot parse
      raise ValueError(f"{path}: not a tokenizer.json ({error}).") from error
    config = _read_json(folder / "tokenizer_config.json")
    template = folder / "chat_template.jinja"
    if paths.is_file(template):
      config["chat_template"] = paths.read_text(template)
    return cls(core, config, _read_json(folder / "generation_config.json"), where=str(folder))

  def save(self, directory) -> None:
    """Writes tokenizer.json, tokenizer_config.json and generation_config.json; `load` reads them back."""
    folder = paths.of(directory)
    paths.write(folder / "tokenizer.json", self._core.to_str(pretty=True))
    for name, content in (
      ("tokenizer_config.json", self._config),
      ("generation_config.json", self._generation | {"eos_token_id": list(self.stop_ids)}),
    ):
      text = json.dumps(content, indent=2, ensure_ascii=False)
      paths.write(folder / name, text + "\n")

  def encode(self, text: str) -> list[int]:
    """Token ids of a text; special tokens written out in it are recognised, none is added.

    Raises: ValueError when the vocabulary cannot write a character of the text.
    """
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """The same for many texts, on all cores. Raises: ValueError for the first text that cannot be written."""
    encodings = self._core.encode_batch_fast(list(texts), add_special_tokens=False)
    found = [encoding.ids for encoding in encodings]
    if self._unknown_id is not None:
      for text, ids in zip(texts, found, strict=True):
        if self._unknown_id in ids:
          self._refuse_unknown(text)
    return found

  def most_tokens(self, text: str) -> int | None:
    """A bound on how many tokens a text has, without encoding it; None where there is none, or it may be unknown.

    A byte-level BPE has at most a token a byte, of the text as its normalizer leaves it: NFC makes UTF-8 at most three
    times as long (Unicode Technical Report 15).
    """
    return self._bytes * len(text.encode()) if self._bytes and text.strip() else None

  @functools.cached_property
  def _bytes(self) -> int:
    """Tokens that a byte may become; 0 where nothing is known of it."""
    if self._unknown_id is not None or not isinstance(self._core.model, tokenizers.models.BPE):
      return 0
    kinds = {None: 1, "NFC": 3}
    normalizer = self._core.normalizer
    return kinds.get(None if normalizer is None else type(normalizer).__name__, 0)

  def _refuse_unknown(self, text: str) -> None:
    """Raises ValueError for what the vocabulary lacks; an unknown token that is written out in the text is no such."""
    encoding = self._core.encode(text, add_special_tokens=False)  # tells where, which costs more
    for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
      if token == self._unknown_id and text[start:end] != self._specials["unk_token"]:
        raise ValueError(
          f"{self._where}: the vocabulary has no token for {text[start:end]!r} in {text[:80]!r}; "
          "extend the alphabet or change the prompt."
        )

  def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
    """Text of token ids; ids beyond the vocabulary (a model's padding rows) read as nothing."""
    return self._core.decode([int(i) for i in ids], skip_special_tokens=skip_special)

  def special_id(self, text: str) -> int | None:
    """The id of a special or otherwise added token that reads exactly so, None where there is none."""
    return next((i for i, token in self._core.get_added_tokens_decoder().items() if token.content == text), None)

  def render(self, messages: Sequence[dict[str, Any]], add_generation_prompt: bool = True) -> str:
    """Text of a conversation under the model's own chat template, ready to be answered.

    Args:
      messages: [{"role": "system" | "user" | "assistant", "content": str}, ...].
      add_generation_prompt: end with the opening of the assistant's turn.
    Raises: ValueError without a template, or when the template refuses the messages.
    """
    if self._template is None:
      raise ValueError(
        f"{self._where}: no chat template; set data.chat_template=False to use plain text prompts."
      )
    try:
      return self._template.render(
        messages=list(messages), add_generation_prompt=add_generation_prompt, **self._specials
      )
    except jinja2.TemplateError as error:
      raise ValueError(f"{self._where}: the chat template failed: {error}") from error

  def _leave_prompts_alone(self) -> None:
    """Truncation and padding belong to the call that stored them in tokenizer.json, not to the tokenizer."""
    stored = {"truncation": self._core.truncation, "padding": self._core.padding}
    if said := ", ".join(f"{kind} to {_length(how)} tokens" for kind, how in stored.items() if how):
      self.notes.append(f"{self._where}: tokenizer.json holds {said}, of an earlier use; not applied to prompts")
    self._core.no_truncation()
    self._core.no_padding()

  def _find_stop_ids(self) -> tuple[int, ...]:
    ids = self._generation.get("eos_token_id")
    own = (self._special_id("eos_token"),) if "eos_token" in self._specials else ()
    if ids is None:
      if not own:
        raise ValueError(
          f"{self._where}: no end token; add generation_config.json with eos_token_id, "
          "or eos_token in tokenizer_config.json."
        )
      return own
    listed = tuple(ids) if isinstance(ids, list) else (ids,)
    if not listed or not all(type(i) is int and i >= 0 for i in listed):
      raise ValueError(
        f"{self._where}: generation_config.json eos_token_id={ids!r} must be an id or a list of ids."
      )
    if not own or own[0] in listed:
      return tuple(dict.fromkeys(listed))
    self.notes.append(
      f"{self._where}: end tokens differ: {own[0]} ({self._specials['eos_token']!r}) in tokenizer_config.json, "
      f"{', '.join(map(str, listed))} in generation_config.json; each of them ends a response"
    )
    return tuple(dict.fromkeys((*own, *listed)))

  def _special_id(self, name: str) -> int:
    token = self._core.token_to_id(self._specials[name])
    if token is None:
      raise ValueError(f"{self._where}: {name}={self._specials[name]!r} is not in the vocabulary.")
    return token


def characters(alphabet: str) -> Tokenizer:
  """A tokenizer with one token per character of `alphabet`, for small models and tests.

  Ids 0-3 are <|endoftext|> (padding), <|im_start|>, <|im_end|> (end of response) and <unk>; the alphabet follows
  in order, each character once. The chat template is the user's text alone. A character outside the alphabet
  makes `encode` raise.
  """
  if not alphabet:
    raise ValueError("alphabet='' must hold at least one character.")
  specials = [PAD, TURN_START, TURN_END, UNKNOWN]
  vocab = {token: i for i, token in enumerate([*specials, *dict.fromkeys(alphabet)])}
  core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab=vocab, unk_token=UNKNOWN))
  core.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
  core.decoder = tokenizers.decoders.Fuse()
  core.add_special_tokens(specials)
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": None,
    "eos_token": TURN_END,
    "pad_token": PAD,
    "unk_token": UNKNOWN,
    "clean_up_tokenization_spaces": False,
    "chat_template": (
      "{%- for message in messages if message.role == 'user' %}{{ message.content }}{%- endfor %}"
    ),
  }
  generation = {"eos_token_id": [vocab[TURN_END]], "pad_token_id": vocab[PAD]}
  return Tokenizer(core, config, generation, where="character tokenizer")


def _length(how: dict[str, Any]) -> Any:
  """Of a stored truncation or padding."""
  return how.get("max_length") or how.get("length") or "the longest's"


def _content(token: Any) -> str:
  """Special tokens are written as strings or as {"content": ...} records."""
  return token["content"] if isinstance(token, dict) else token


def _read_json(path) -> dict[str, Any]:
  if not paths.is_file(path):
    return {}
  try:
    content = json.loads(paths.read_text(path))
  except ValueError as error:
    raise ValueError(f"{path}: not valid JSON ({error}).") from error
  if not isinstance(content, dict):
    raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}.")
  return content


class _Generation(jinja2.ext.Extension):
  """`{% generation %}`: where training frameworks mark the assistant's words. Its content is part of the text."""

  tags = {"generation"}

  def parse(self, parser):
    next(parser.stream)
    return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(source: Any, where: str) -> jinja2.Template | None:
  """Compiles a chat template with the environment its authors wrote it for.

  The sandbox matters: a template is code from a downloaded folder.
  """
  if source is None:
    return None
  if isinstance(source, list):  # several named templates
    named = {entry["name"]: entry["template"] for entry in source}
    if "default" not in named:
      raise ValueError(f"{where}: chat_template has {sorted(named)}, but none is named 'default'.")
    source = named["default"]

  def raise_exception(message: str):
    raise jinja2.TemplateError(message)

  def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
      value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )

  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
  )
  environment.filters["tojson"] = to_json
  environment.globals["raise_exception"] = raise_exception
  environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
  try:
    return environment.from_string(source)
  except jinja2.TemplateError as error:
    raise ValueError(f"{where}: chat_template does not compile: {error}") from error
