"""Forecasts beside runs: what is counted, fitted and compared."""

import json

import numpy as np
import pytest
from tolerances import close

from fipo_jax import config as config_lib
from fipo_jax.pods import check
from fipo_jax.rollout.capacity import Shape

COSTS = {"looks": 0.0, "steps": 1e-3, "page_steps": 2e-5, "updates": 0.5, "flops": 1e-9}


def write_run(folder, slots, times=1.0, steps=6):
  """A run whose seconds are those of its own simulation; its lengths grow."""
  c = config_lib.default()
  c.model.preset, c.model.alphabet, c.model.remat, c.model.dtype = "tiny", "0", "none", "float32"
  c.data.max_prompt_tokens, c.rollout.max_response_tokens, c.rollout.slots = 16, 64, slots
  c.rollout.samples_per_prompt, c.batch.prompts, c.batch.minibatch_prompts = 4, 8, 4
  c.batch.row_tokens, c.batch.micro_rows, c.reward.overlong_buffer_tokens = 80, 4, 0
  folder.mkdir(exist_ok=True)
  (folder / "config.json").write_text(c.to_json())
  names = ("seconds/rollout", "seconds/old_logp", "seconds/update")
  records = []
  for n in range(1, steps + 1):
    lengths = {f"response_length_{k}": n * v for k, v in dict(min=1, p25=3, median=5, p75=7, max=10).items()}
    records.append({"step": n, "response_length": 5.2 * n, "prompt_length": 9, "keep_rate": 0.9, **lengths})
    records[-1] |= dict.fromkeys(names, 1.0) | {"tokens_generated": 1.0, "rollout/compile_s": 0.0}
  path = folder / "metrics.jsonl"
  save = lambda: path.write_text("".join(json.dumps(r) + "\n" for r in records))
  save()
  for record, step in zip(records, check.steps_of(str(folder)), strict=True):
    seconds = lambda kinds, step=step: times * sum(COSTS[k] * step.done[k] for k in kinds)
    record |= {"seconds/rollout": seconds(check.ROLLOUT), "seconds/old_logp": 0.1 * seconds(check.LEARNING)}
    record["seconds/update"] = 0.9 * seconds(check.LEARNING)
  records[-1] |= {"rollout/compile_s": 100.0, "seconds/rollout": 200.0}
  save()
  return str(folder)


def test_what_is_done_is_counted():
  counted = check.Counted()
  assert counted.token_steps(3, Shape(8, 20, 4, 2), np.zeros(1), np.zeros(1)) == 3.0
  counted.look(8), counted.look(8)
  assert counted.done == {"steps": 3, "page_steps": 72, "looks": 2}


def test_other_runs_are_foretold_by_the_first(tmp_path):
  """The second has other slots, and a machine that takes twice as long: half of its seconds is what was foretold."""
  folders = [write_run(tmp_path / "one", 16), write_run(tmp_path / "two", 8, times=2.0)]
  (one, two), costs = check.check(folders)
  assert (one.fitted, two.fitted, one.steps) == (True, False, 3)  # two begin, the last compiled
  assert one.error["rollout"] < 0.01 and one.error["update"] < 0.01
  close(two.error["update"], 0.5, dtype=np.float32)
  assert 0.4 < two.error["rollout"] < 0.6
  assert all(s >= 0 for s in costs.values())
  text = check.describe([one, two], costs)
  assert "| one (fitted) | 3 |" in text and "Median error of the 1 runs that were foretold: rollout" in text


def test_runs_that_say_too_little(tmp_path):
  with pytest.raises(ValueError, match="check=.*no run there"):
    check.check([str(tmp_path / "gone")])
  with pytest.raises(ValueError, match="check=.*one: 1 steps to fit on; a run of 5 or more"):
    check.check([write_run(tmp_path / "one", 16, steps=4)])
