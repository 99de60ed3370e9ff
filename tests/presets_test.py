"""Every preset, through the config, against reference numbers of the code or equations it is named after."""

import pathlib

import golden_kinds
import numpy as np
import pytest
from golden_other_kinds import load
from tolerances import close

from fipo_jax import config, parts
from fipo_jax.algorithms import make_objective
from fipo_jax.algorithms.presets import PRESETS

GOLDEN = pathlib.Path(__file__).parent / "golden"


def objective(preset, **changes):
  cfg = config.default()
  cfg.algorithm.update(PRESETS[preset])
  for field, value in changes.items():
    cfg.algorithm[field] = value
  return make_objective(cfg.algorithm.name, **parts.hyperparameters(cfg))


def equal(ours, reference):
  """Within float64's rounding of sums over 100 tokens, of numbers of size 1 at least."""
  close(ours, reference, terms=100, dtype=np.float64, scale=np.maximum(1, np.abs(reference)))


def evaluate(preset, file, **changes):
  z = load(GOLDEN, file)
  loss, token, values, gradient_RT = golden_kinds.run(objective(preset, **changes), z, z["log_prob"].dtype)
  return z, z["response_mask"].astype(bool), loss, token, values, gradient_RT


@pytest.mark.parametrize(("preset", "file"), [
  ("official_32b", "fkl_p01_released_small.npz"), ("official_32b", "fkl_p03_sequence_drop.npz"),
  ("official_7b", "fkl_p02_two_sided_safety3.npz"),
])  # fmt: skip
def test_official_presets_are_the_published_code(preset, file):
  z, valid_RT, loss, token, values, gradient_RT = evaluate(preset, file)
  equal(token["future_kl"][valid_RT], z["future_kl"][valid_RT])
  equal(token["weight"][valid_RT], z["influence_weights"][valid_RT])
  np.testing.assert_array_equal(token["keep"].astype(bool), z["final_mask"].astype(bool) & valid_RT)
  equal(loss.total / (loss.count + 1e-8), z["pg_loss"])
  equal(gradient_RT / (loss.count + 1e-8), z["grad_log_prob"])
  named = dict(zip(z["metric_names"].tolist(), z["metric_values"], strict=True))
  for theirs in ("pg_clipfrac", "ppo_kl", "influence_weights_mean", "influence_weights_max"):
    assert abs(values[golden_kinds.METRICS[theirs]] - named[theirs]) < golden_kinds.METRIC * max(1, abs(named[theirs]))


def test_paper_preset_is_the_papers_equations():
  z, valid_RT, loss, token, *_ = evaluate("paper", "fkl_p03_sequence_drop.npz")
  equal(token["future_kl"][valid_RT], z["paper_future_kl"][valid_RT])
  equal(token["weight"][valid_RT], z["paper_f"][valid_RT])
  equal(loss.total / loss.count, z["paper_pg_loss"])
  # The case tells the two apart.
  assert abs(z["paper_pg_loss"] - z["pg_loss"]) > 1e-3


def test_msswift_preset_has_its_weights():
  z = load(GOLDEN, "fkl_p07_holes_empty_row.npz")
  want = load(GOLDEN, "msswift_p07_holes_empty_row.npz")["influence_weights"]
  changes = {"half_life_tokens": 8.0, "weight_clip": (0.8, 1.2)}  # of the case; the rest is the preset
  _, token, _, _ = golden_kinds.run(objective("msswift", **changes), z, z["log_prob"].dtype)
  valid_RT = z["response_mask"].astype(bool)
  equal(token["weight"][valid_RT], want[valid_RT])


def test_dapo_preset_is_the_published_loss():
  z, _, loss, _, _, gradient_RT = evaluate("dapo", "ppo_p01_dapo.npz")
  equal(loss.total / loss.count, z["pg_loss"])
  equal(gradient_RT / loss.count, z["grad_log_prob"])


def test_grpo_preset_weighs_responses_alike():
  z, valid_RT, loss, token, *_ = evaluate("grpo", "ppo_p01_dapo.npz")
  ratio = np.exp(np.clip(z["log_prob"] - z["old_log_prob"], -20, 20))
  each = np.maximum(-z["advantages"] * ratio, -z["advantages"] * np.clip(ratio, 0.8, 1.2))
  means = [row[on].mean() for row, on in zip(each, valid_RT, strict=True) if on.any()]
  equal(loss.total / loss.count, np.mean(means))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_choice(name):
  objective(name)
  cfg = config.default()
  cfg.model.path = "somewhere"
  cfg.algorithm.update(PRESETS[name])
  config.validate(cfg)


def test_the_default_config_is_the_script():
  ours = config.default().algorithm.to_dict()
  assert {k: ours[k] for k in PRESETS["official_32b"]} == PRESETS["official_32b"]
