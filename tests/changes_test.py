"""What may change between two starts of a run, what an upgrade means, and which field was meant."""

import pytest

from fipo_jax import changes, config


def compared(old=None, new=None, without=(), extra=None):
  was, now = config.default(), config.default()
  was.update_from_flattened_dict(old or {})
  now.update_from_flattened_dict(new or {})
  before = was.to_dict()
  for field in without:
    section, name = field.split(".")
    del before[section][name]
  for field, value in (extra or {}).items():
    section, name = field.split(".")
    before[section][name] = value
  return changes.compare(before, now.to_dict())


@pytest.mark.parametrize(
  ("field", "value", "free"),
  [
    ("mesh.fsdp", 4, True), ("batch.micro_rows", 32, True), ("rollout.slots", "auto", True),
    ("rollout.continuous_decode_steps", 4, True),
    ("rollout.urls", ("http://a",), True), ("model.path", "moved", True), ("data.path", "moved", True),
    ("model.remat", "none", True), ("eval.prompts", 9, True), ("reward.timeout_s", 9.0, True), ("steps", 9, True),
    ("checkpoint.every", 9, True), ("alarms.action", "stop", True), ("rollout.timeout_s", 9.0, True),
    ("optimizer.learning_rate", 1.0, False), ("algorithm.clip_high", 0.3, False), ("batch.prompts", 64, False),
    ("batch.row_tokens", 30_000, False), ("seed", 3, False), ("data.size", 3, False),
    ("rollout.temperature", 0.5, False),
    ("reward.verifier", "exact", False), ("model.dtype", "float32", False), ("rollout.cache_dtype", "int8", False),
    ("data.columns.question", "q", False), ("dynamic_sampling.enabled", False, False),
  ],
)  # fmt: skip
def test_where_and_how_fast_may_change_and_what_alters_the_training_may_not(field, value, free):
  found = compared(new={field: value})
  assert list(found.free) == [field] * free and list(found.altering) == [field] * (not free)


def test_the_number_of_steps_alters_a_schedule_that_ends_with_them():
  cosine = {"optimizer.schedule": "cosine"}
  assert compared(old=cosine, new=cosine | {"steps": 12}).altering == {"steps": (100, 12)}
  assert compared(new={"steps": 12}).altering == {}


def test_a_field_that_the_old_config_lacks_has_the_value_that_the_old_code_acted_by():
  found = compared(without=["rollout.min_p"])
  assert (found.altering, found.free) == ({}, {})
  assert found.notes == ["rollout.min_p=0.0: not in the config of this run, which acted by it"]
  assert compared(new={"rollout.min_p": 0.1}, without=["rollout.min_p"]).altering == {"rollout.min_p": (0.0, 0.1)}


def test_an_older_version_acted_otherwise_than_todays_default_only_where_it_mattered():
  of = lambda source: {"data.source": source}
  file = compared(old=of("jsonl"), new=of("jsonl"), without=["data.answer_after"])
  assert file.altering == {"data.answer_after": ("", "####")}
  assert compared(old=of("reasoning_gym"), new=of("reasoning_gym"), without=["data.answer_after"]).altering == {}


def test_fields_that_are_gone():
  assert compared(extra={"data.question_field": "question"}).altering == {}
  assert list(compared(extra={"data.question_field": "task"}).altering) == ["data.question_field"]


def test_every_name_in_the_tables_is_a_field_or_a_section():
  known = changes.flat(config.default().to_dict())
  gone = {*changes.GONE}
  for name in (*changes.RESUMABLE, *changes.BEFORE):
    assert name in gone or any(changes.within(field, [name]) for field in known), name


@pytest.mark.parametrize(
  ("given", "meant"),
  [
    ("optimizer.lr", "optimizer.learning_rate"), ("lr", "optimizer.learning_rate"), ("stepz", "steps"),
    ("batch.promts", "batch.prompts"), ("algorithm.clip", "algorithm.clip_high"), ("model.dtyp", "model.dtype"),
    ("data.question_field", "data.columns.question"), ("temperature", "eval.temperature"),
  ],
)  # fmt: skip
def test_the_field_that_was_meant(given, meant):
  assert changes.nearest(given, list(changes.flat(config.default().to_dict()))) == f"; {meant}?"


def test_nothing_like_it():
  assert changes.nearest("optimizer.zzz", ["optimizer.learning_rate"]) == ""
