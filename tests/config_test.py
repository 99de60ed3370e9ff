"""Every mistake that a config can hold is refused in one line that names field, value and remedy."""

import pathlib
import re

import pytest

from fipo_jax import changes, config
from fipo_jax.algorithms import CONTROLS, KL_ESTIMATES, aggregation

ROOT = pathlib.Path(__file__).resolve().parent.parent


def valid():
  c = config.default()
  c.model.path = "somewhere"
  c.reward.overlong_buffer_tokens = 0
  return c


def test_default_with_a_model_is_valid():
  config.validate(valid())


@pytest.mark.parametrize(
  "field, value, says",
  [
    ("batch.prompts", 500, r"batch.prompts=500 is not divisible by batch.minibatch_prompts=64; try 50"),
    ("batch.minibatch_prompts", 1024, r"batch.minibatch_prompts=1024 is larger than batch.prompts=512; .*256"),
    ("batch.minibatch_prompts", 512, r"one optimizer step per rollout makes Future-KL identically zero.*256"),
    ("batch.row_tokens", 1000, r"batch.row_tokens=1000 is shorter .* 22528"),
    ("rollout.samples_per_prompt", 1, r"rollout.samples_per_prompt=1"),
    ("rollout.top_p", 0.0, r"rollout.top_p=0.0: must lie in"),
    ("rollout.temperature", 0.0, r"rollout.temperature=0.0: must be greater"),
    ("algorithm.loss_norm", "mean", r"algorithm.loss_norm='mean': expected one of 'global_token'"),
    ("algorithm.weight_clip", (1.2, 1.0), r"algorithm.weight_clip=\(1.2, 1.0\)"),
    ("algorithm.dual_clip", 0.5, r"algorithm.dual_clip=0.5: must be greater than 1, or 0"),
    ("optimizer.b2", 1.0, r"optimizer.b2=1.0"),
    ("optimizer.learning_rate", float("nan"), r"optimizer.learning_rate=nan"),
    ("model.path", "", r"model.path='' and model.preset='': give exactly one"),
    ("model.preset", "tiny", r"give exactly one"),
    ("data.instruction", "Solve it.", r"must contain \{question\}"),
    ("reward.file", "/no/such/file.py", r"reward.file='/no/such/file.py': no such file"),
    ("reward.overlong_buffer_tokens", 30_000, r"reward.overlong_buffer_tokens=30000 is larger"),
    ("eval.data_seed", 1, r"eval.data_seed=1 equals data.seed"),
    ("steps", 0, r"steps=0: must be greater than 0"),
    ("seed", -1, r"seed=-1: must be 0 or greater"),
    ("algorithm.loss_norm", "sequence_fixed", r"algorithm.loss_norm='sequence_fixed': expected one of"),
    ("algorithm.gae_lambda", 1.5, r"algorithm.gae_lambda=1.5: must lie in \[0, 1\]"),
    ("alarms.action", "panic", r"alarms.action='panic'"),
    ("alarms.acting", ("fire",), r"alarms.acting='fire'"),
    ("alarms.warmup_steps", 1, r"alarms.warmup_steps=1"),
    ("log.profile_steps", (99, 101), r"log.profile_steps=\(99, 101\): 101 is no iteration of 1 to steps=100"),
  ],
)
def test_refused(field, value, says):
  c = valid()
  node, name = c, field
  while "." in name:
    head, name = name.split(".", 1)
    node = node[head]
  node[name] = value
  with pytest.raises(ValueError, match=says) as e:
    config.validate(c)
  assert "\n" not in str(e.value)


def test_combinations_that_would_do_nothing_or_fail_late_are_refused():
  for fields, says in (
    ({"algorithm.name": "sft", "algorithm.reference_kl_coef": 0.1}, "algorithm.reference_kl_coef=0.1: supervised"),
    ({"algorithm.name": "sft", "algorithm.sampler_ratio_cap": 2.0}, "algorithm.sampler_ratio_cap=2.0: supervised"),
    ({"algorithm.name": "dapo", "algorithm.control": "past"}, "algorithm.control='past' changes the weight of fipo"),
    ({"algorithm.name": "ppo", "rollout.samples_per_prompt": 1}, "or dynamic_sampling.enabled=False"),
    ({"alarms.action": "rollback", "checkpoint.keep": 1}, "checkpoint.keep=1: .* keep 2 or more"),
    ({"checkpoint.keep_every": 12}, "checkpoint.keep_every=12 must be a multiple of checkpoint.every=5: .*; try 10"),
  ):
    c = valid()
    c.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=says):
      config.validate(c)


@pytest.mark.parametrize("overrides, says", [
  ({"model": {"dtype": "float32"}}, "rollback_overrides.model: cannot change"),
  ({"rollout": {"slots": 63}}, "rollback_overrides.rollout: cannot change"),
  ({"algorithm": {"name": "ppo"}}, "rollback_overrides.algorithm.name='ppo': cannot change"),
  ({"optimizer": {"learning_rat": 1.0}}, "does not fit the config"),
  ({"optimizer": {"learning_rate": "small"}}, "does not fit the config"),
  ({"optimizer": {"learning_rate": -1.0}}, "optimizer.learning_rate=-1.0: must be greater than 0"),
])  # fmt: skip
def test_what_a_rollback_would_change_is_checked_before_the_run(overrides, says):
  c = valid()
  c.alarms.rollback_overrides = overrides
  with pytest.raises(ValueError, match=says):
    config.validate(c)
  c.alarms.rollback_overrides = {"algorithm": {"weight_clip": (0.9, 1.1)}, "optimizer": {"learning_rate": 1e-7}}
  config.validate(c)


def test_single_update_is_allowed_when_the_experiment_says_so():
  c = valid()
  c.batch.minibatch_prompts = 512
  c.algorithm.allow_single_update = True
  config.validate(c)


def test_unknown_fields_do_not_exist():
  with pytest.raises((AttributeError, KeyError)):
    config.default().batch.promts = 3


def test_types_are_held():
  with pytest.raises(TypeError):
    config.default().batch.prompts = "many"


EIGHT = {"data": 1, "fsdp": 8, "context": 1, "tensor": 1}


def test_slots_are_a_number_or_auto():
  c = valid()
  for slots in ("auto", 8):
    c.rollout.slots = slots
    config.validate(c)
    config.check_mesh(c, EIGHT, EIGHT)
  for slots in (0, "all", 2.5):
    c.rollout.slots = slots
    with pytest.raises(ValueError, match=f"rollout.slots={slots!r}: expected a number greater than 0, or 'auto'"):
      config.validate(c)


def test_mesh_must_divide_rows_and_slots():
  c = valid()
  c.rollout.slots = 48
  with pytest.raises(ValueError, match=r"rollout.slots=48 must be a multiple of data\*fsdp=32; try 32"):
    config.check_mesh(c, EIGHT, {**EIGHT, "fsdp": 32})


def test_differences_name_fields_and_leave_resumable_ones_out():
  old = {"steps": 5, "a": {"b": 1, "c": 2}, "log": {"samples": 1}}
  new = {"steps": 9, "a": {"b": 1, "c": 3}, "log": {"samples": 2}}
  assert changes.differences(old, new, changes.RESUMABLE) == ["a.c: 2 -> 3"]


def test_choices_are_the_rows_of_their_tables():
  assert {*config.LOSS_NORMS, "sequence_fixed"} == set(aggregation.LOSS_NORMS)
  assert config.CONTROLS == CONTROLS and config.KL_ESTIMATES == tuple(KL_ESTIMATES)


def test_every_knob_is_read():
  """A field that no code reads is a lie to whoever sets it."""
  text = (ROOT / "fipo_jax/config.py").read_text()
  defaults, checks = text.split("  return c.lock()")
  code = checks + "".join(
    p.read_text() for folder in ("fipo_jax", "launch") for p in (ROOT / folder).rglob("*.py") if p.name != "config.py"
  )
  fields = re.findall(r"^  c\.([a-z_.]+) = ", defaults, re.M)
  assert len(fields) > 80
  fields = [f for f in fields if not f.startswith("mesh.")]  # make_mesh reads them all by axis name
  # Sections are bound to short names in places (`a = cfg.algorithm`), so the last part is what can be looked for.
  unread = [f for f in fields if not re.search(rf"\.{f.rsplit('.', 1)[-1]}\b", code)]
  assert not unread, f"fields that nothing reads: {unread}"


@pytest.mark.parametrize("field, value, may_change", [
  ("steps", 7, True), ("reward.workers", 9, True), ("checkpoint.keep", 9, True), ("log.samples", 9, True),
  ("alarms.hold_steps", 9, True), ("reward.wrong_score", -0.5, False), ("reward.overlong_factor", 0.5, False),
  ("seed", 7, False), ("optimizer.learning_rate", 0.5, False), ("checkpoint.folder", "x", True),
  ("mesh.fsdp", 2, True), ("batch.micro_rows", 6, True), ("eval.every", 3, True), ("rollout.urls", ("u",), True),
])  # fmt: skip
def test_what_a_run_computes_may_not_change_when_it_is_resumed(field, value, may_change):
  c = config.default()
  c.update_from_flattened_dict({field: value})
  found = changes.differences(config.default().to_dict(), c.to_dict(), changes.RESUMABLE)
  assert found == [] if may_change else [line.split(":")[0] for line in found] == [field]


def test_the_longest_response_just_fits_into_a_row():
  c = valid()
  c.batch.row_tokens = c.data.max_prompt_tokens + c.rollout.max_response_tokens
  config.validate(c)
  c.batch.row_tokens -= 1
  with pytest.raises(ValueError, match="batch.row_tokens=22527 is shorter .* use at least 22528"):
    config.validate(c)


def test_rows_and_slots_are_spread_over_slices_too():
  mesh = EIGHT | {"data": 2, "fsdp": 4}
  for field, value in (("batch.micro_rows", 12), ("rollout.slots", 20)):
    c = valid()
    c.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=rf"{field}={value} must be a multiple of data\*fsdp=8"):
      config.check_mesh(c, mesh, mesh)
