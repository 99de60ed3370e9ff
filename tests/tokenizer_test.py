"""Tokenizer files, chat templates, character tokenizers."""

import json
import os
import pathlib

import pytest
import tokenizers

from fipo_jax.data.tokenizer import Tokenizer, characters

# The published Qwen2.5 tokenizer has 11 MB: it is not kept here, name a folder with it and its cases.jsonl.
QWEN = pathlib.Path(os.environ.get("FIPO_QWEN_TOKENIZER", "missing"))

CHATML = (
  "{%- if messages[0]['role'] == 'system' %}\n"
  "    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n"
  "{%- endif %}\n"
  "{%- for message in messages %}\n"
  "    {%- if message.role == 'tool' %}\n"
  "        {{- raise_exception('no tools here') }}\n"
  "    {%- elif message.role != 'system' %}\n"
  "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
  "    {%- endif %}\n"
  "{%- endfor %}\n"
  "{%- if add_generation_prompt %}\n"
  "    {{- '<|im_start|>assistant\\n' }}\n"
  "{%- endif %}\n"
)


def folder(tmp_path, *, config=None, generation=None):
  characters("ab\n 1+=").save(tmp_path)
  saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(saved | (config or {})))
  if generation is None:
    (tmp_path / "generation_config.json").unlink()
  else:
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
  return tmp_path


def test_characters_by_hand():
  tokenizer = characters("ab\na")
  assert tokenizer.encode("ba\n") == [5, 4, 6]
  assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.stop_ids) == (7, 0, (2,))
  assert tokenizer.decode([5, 0, 4, 6, 2]) == "ba\n"
  assert tokenizer.decode([5, 2], skip_special=False) == "b<|im_end|>"
  assert tokenizer.encode("a<|im_end|>") == [4, 2]
  assert tokenizer.render([{"role": "user", "content": "ab"}]) == "ab"


def test_spaces_survive_a_round_trip():
  tokenizer = characters("0123456789 +-=\n")
  for text in ("", " ", "  1  +\n\n2 = ", "\n"):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_unknown_character_is_named():
  with pytest.raises(ValueError, match="no token for 'é' in 'aé'"):
    characters("a").encode("aé")


def test_empty_alphabet():
  with pytest.raises(ValueError, match="alphabet=''"):
    characters("")


def test_save_and_load(tmp_path):
  first = characters("0123 +=\nAnswer:")
  first.save(tmp_path)
  second = Tokenizer.load(tmp_path)
  text = "1 + 2 =\nAnswer: 3<|im_end|>"
  assert second.encode(text) == first.encode(text)
  assert second.decode(second.encode(text)) == "1 + 2 =\nAnswer: 3"
  assert (second.stop_ids, second.pad_id, second.vocab_size) == ((2,), 0, first.vocab_size)
  with pytest.raises(ValueError, match="no token for 'é'"):
    second.encode("é")


def test_chatml_template_as_transformers_renders_it(tmp_path):
  tokenizer = Tokenizer.load(folder(tmp_path, config={"chat_template": CHATML}))
  messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
  expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
  assert tokenizer.render(messages, add_generation_prompt=False) == expected
  assert tokenizer.render(messages) == expected + "<|im_start|>assistant\n"
  with pytest.raises(ValueError, match="no tools here"):
    tokenizer.render([{"role": "tool", "content": "x"}])


def test_template_file_wins_and_tojson_keeps_unicode(tmp_path):
  (folder(tmp_path) / "chat_template.jinja").write_text("{{ messages | tojson }}{{ eos_token }}")
  rendered = Tokenizer.load(tmp_path).render([{"role": "user", "content": "é<"}])
  assert rendered == '[{"role": "user", "content": "é<"}]<|im_end|>'


def test_template_blocks_leave_no_white_space(tmp_path):
  template = "  {% for m in messages %}\n{{ m.content }}\n  {% endfor %}\n"
  tokenizer = Tokenizer.load(folder(tmp_path, config={"chat_template": template}))
  assert tokenizer.render([{"content": "a"}, {"content": "b"}]) == "a\nb\n"


def test_template_is_sandboxed(tmp_path):
  tokenizer = Tokenizer.load(folder(tmp_path, config={"chat_template": "{{ messages.append(1) }}"}))
  with pytest.raises(ValueError, match="chat template failed"):
    tokenizer.render([{"role": "user", "content": "a"}])


@pytest.mark.parametrize(
  ("generation", "stop_ids"),
  [
    (None, (2,)), ({"eos_token_id": 0}, (2, 0)), ({"eos_token_id": [0, 2]}, (0, 2)),
    ({"eos_token_id": [0, 1]}, (2, 0, 1)),
  ],  # fmt: skip
)
def test_whatever_a_file_calls_an_end_token_ends_a_response(tmp_path, generation, stop_ids):
  tokenizer = Tokenizer.load(folder(tmp_path, generation=generation))
  assert tokenizer.stop_ids == stop_ids
  said = [note for note in tokenizer.notes if "end tokens differ: 2 ('<|im_end|>') in tokenizer_config.json" in note]
  assert len(said) == (stop_ids in ((2, 0), (2, 0, 1)))


def test_special_tokens_written_as_records(tmp_path):
  config = {"eos_token": {"content": "<|endoftext|>"}, "pad_token": None}
  tokenizer = Tokenizer.load(folder(tmp_path, config=config))
  assert (tokenizer.stop_ids, tokenizer.pad_id) == ((0,), 0)


@pytest.mark.parametrize(
  ("config", "generation", "message"),
  [
    ({"eos_token": None}, None, "no end token"),
    ({"eos_token": "<eos>"}, None, "'<eos>' is not in the vocabulary"),
    ({}, {"eos_token_id": []}, "eos_token_id="),
  ],
)
def test_bad_settings(tmp_path, config, generation, message):
  with pytest.raises(ValueError, match=message):
    Tokenizer.load(folder(tmp_path, config=config, generation=generation))


@pytest.mark.parametrize(
  ("template", "message"),
  [("{% if %}", "does not compile"), ([{"name": "tool_use", "template": "x"}], "none is named 'default'")],
)
def test_a_broken_template_is_an_error_where_it_is_used(tmp_path, template, message):
  tokenizer = Tokenizer.load(folder(tmp_path, config={"chat_template": template}))
  assert tokenizer.encode("ab") == [4, 5]
  with pytest.raises(ValueError, match=message):
    tokenizer.render([{"role": "user", "content": "a"}])


@pytest.mark.parametrize(
  ("leave", "said"),
  [
    (lambda core: core.enable_truncation(2), "truncation to 2 tokens"),
    (lambda core: core.enable_padding(length=9, pad_id=0, pad_token="<|endoftext|>"), "padding to 9 tokens"),
    (lambda core: core.enable_padding(pad_id=0, pad_token="<|endoftext|>"), "padding to the longest's tokens"),
  ],
)
def test_what_an_earlier_use_left_in_tokenizer_json_is_not_applied(tmp_path, leave, said):
  core = tokenizers.Tokenizer.from_file(str(folder(tmp_path) / "tokenizer.json"))
  leave(core)
  core.save(str(tmp_path / "tokenizer.json"))
  tokenizer = Tokenizer.load(tmp_path)
  assert tokenizer.encode("ab1") == [4, 5, 8] and tokenizer.encode_batch(["a", "ab1"]) == [[4], [4, 5, 8]]
  assert [said in note and "not applied to prompts" in note for note in tokenizer.notes] == [True]


def test_marks_of_training_frameworks_are_transparent(tmp_path):
  body = "{% set x = 'b' %}{{ x }}{% for m in messages %}{{ m.content }}{% endfor %}"
  marked = "{% set x = 'a' %}{%- generation -%}\n  " + body + "{% endgeneration %}\n{{ x }}"
  rendered = [
    Tokenizer.load(folder(tmp_path, config={"chat_template": template})).render([{"role": "user", "content": "1"}])
    for template in (marked, "{% set x = 'a' %}" + body + "{{ x }}")
  ]
  assert rendered == ["b1b"] * 2


def test_an_unknown_token_that_is_written_out_is_no_unknown_character(tmp_path):
  tokenizer = Tokenizer.load(folder(tmp_path, config={"unk_token": "<|endoftext|>"}))
  core = json.loads((tmp_path / "tokenizer.json").read_text())
  core["model"]["unk_token"] = "<|endoftext|>"
  (tmp_path / "tokenizer.json").write_text(json.dumps(core))
  tokenizer = Tokenizer.load(tmp_path)
  assert tokenizer.encode("a<|endoftext|>b") == [4, 0, 5]
  with pytest.raises(ValueError, match="no token for 'é' in 'a<|endoftext|>é'"):
    tokenizer.encode("a<|endoftext|>é")


def test_no_template(tmp_path):
  tokenizer = Tokenizer.load(folder(tmp_path, config={"chat_template": None}))
  with pytest.raises(ValueError, match="data.chat_template=False"):
    tokenizer.render([{"role": "user", "content": "a"}])


def test_missing_and_broken_files(tmp_path):
  with pytest.raises(FileNotFoundError, match="tokenizer.json"):
    Tokenizer.load(tmp_path)
  (tmp_path / "tokenizer.json").write_text("{")
  with pytest.raises(ValueError, match="not a tokenizer.json"):
    Tokenizer.load(tmp_path)
  folder(tmp_path)
  (tmp_path / "tokenizer_config.json").write_text("{")
  with pytest.raises(ValueError, match="tokenizer_config.json: not valid JSON"):
    Tokenizer.load(tmp_path)


@pytest.mark.skipif(
  not QWEN.is_dir(), reason="set FIPO_QWEN_TOKENIZER to a folder with Qwen2.5's files"
)
def test_qwen_cases():
  tokenizer = Tokenizer.load(QWEN)
  assert (tokenizer.vocab_size, tokenizer.stop_ids, tokenizer.pad_id) == (151665, (151645,), 151643)
  lines = (QWEN / "cases.jsonl").read_text(encoding="utf-8").splitlines()
  assert len(lines) >= 20
  for case in map(json.loads, lines):
    if "text" in case:
      assert tokenizer.encode(case["text"]) == case["ids"]
      assert tokenizer.decode(case["ids"], skip_special=False) == case["decoded"]
    else:
      rendered = tokenizer.render(case["messages"], case["add_generation_prompt"])
      assert rendered == case["rendered"]
      assert tokenizer.encode(rendered) == case["ids"]


def byte_level(normalizer=None):
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  core = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, merges=[]))
  core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  core.add_special_tokens(["<|endoftext|>"])
  if normalizer:
    core.normalizer = normalizer
  return Tokenizer(core, {"eos_token": "<|endoftext|>"}, {})


def test_a_bound_on_tokens_holds_also_for_what_a_normalizer_makes_longer():
  longest = "\U0001d160"  # one of those that NFC takes apart: 4 bytes become 12
  for tokenizer in (byte_level(), byte_level(tokenizers.normalizers.NFC())):
    for text in ("abc é", longest, "<|endoftext|>" * 3, "日本"):
      assert len(tokenizer.encode(text)) <= tokenizer.most_tokens(text)
  assert len(byte_level(tokenizers.normalizers.NFC()).encode(longest)) == 3 * len(byte_level().encode(longest))
  assert byte_level(tokenizers.normalizers.NFKC()).most_tokens("a") is None
  assert byte_level().most_tokens(" ") is None and characters("a").most_tokens("a") is None
