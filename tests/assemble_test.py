"""What a run is assembled from: data that share nothing, random streams, the schedule, how responses are drawn."""

import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from fipo_jax import assemble, config, parts
from fipo_jax.data.tokenizer import characters
from fipo_jax.models import PRESETS, make_model

GOLDEN = pathlib.Path(__file__).parent / "golden"


def make(**fields):
  c = config.default()
  c.update_from_flattened_dict(fields)
  return c


def test_no_two_uses_share_random_numbers():
  def key(step, stream, rollbacks):
    run = types.SimpleNamespace(cfg=make(), rollbacks=rollbacks)
    return tuple(np.asarray(jax.random.key_data(assemble.Run.key(run, step, stream))))

  streams = (parts.STREAM_ROLLOUT, parts.STREAM_EVAL, parts.STREAM_INIT, parts.STREAM_CONTROL)
  assert len({key(step, stream, 0) for step in range(4) for stream in streams}) == 16
  of = lambda stream: len({key(1, stream, rollbacks) for rollbacks in range(3)})
  # Each attempt after a rollback samples anew; evaluations stay comparable.
  assert of(parts.STREAM_ROLLOUT) == of(parts.STREAM_CONTROL) == 3 and of(parts.STREAM_EVAL) == 1


def test_responses_are_drawn_as_the_section_says():
  c = make(**{
    "rollout.temperature": 0.9, "rollout.min_tokens": 2, "rollout.top_k": 3, "rollout.max_response_tokens": 9,
    "rollout.stop_strings": ("end", "<|endoftext|>", "<|im_end|>"), "eval.temperature": 0.5, "eval.top_p": 0.75,
    "eval.repetition_penalty": 1.25,
  })  # fmt: skip
  run = types.SimpleNamespace(cfg=c, tokenizer=characters("ab"))
  train, held = (assemble.Run.sampling(run, evaluation=evaluation) for evaluation in (False, True))
  how = lambda s: (s.temperature, s.top_k, s.top_p, s.min_tokens, s.repetition_penalty)
  assert how(train) == (0.9, 3, 1.0, 2, 1.0) and how(held) == (0.5, 0, 0.75, 0, 1.25)
  for sampling in (train, held):
    # A special token is an id to stop at, once.
    assert (sampling.max_tokens, sampling.stop_ids, sampling.stop_strings) == (9, (2, 0), ("end",))


def test_the_schedule_ends_with_the_last_update():
  c = make(**{
    "steps": 5, "batch.prompts": 8, "batch.minibatch_prompts": 2, "optimizer.warmup_updates": 4,
    "optimizer.schedule": "cosine", "optimizer.learning_rate": 1.0,
  })  # fmt: skip
  rate = parts.open_optimizer(c, make_model(PRESETS["tiny"]))[1]
  np.testing.assert_allclose([float(rate(u)) for u in (0, 3, 12, 20)], [0.25, 1.0, 0.5, 0.0], atol=1e-6)


def test_nothing_is_said_by_zero_minus_one_or_an_empty_pair():
  off = {"dual_clip": 0.0, "delta_clamp": 0.0, "participation_ratio": 0.0, "weight_clip": ()}
  off["sequence_reject_count"] = -1
  h = parts.hyperparameters(make(**{f"algorithm.{name}": value for name, value in off.items()}))
  assert [h[name] for name in off] == [None] * 5
  h = parts.hyperparameters(make(**{"algorithm.sequence_reject_count": 0, "algorithm.dual_clip": 3.0}))
  assert (h["sequence_reject_count"], h["dual_clip"], h["delta_clamp"], h["weight_clip"]) == (0, 3.0, 20.0, (1.0, 1.2))


STARTS = """
import sys
import jax
from fipo_jax import assemble
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event.rpartition("/")[2]))
assemble.keep_programs(sys.argv[1])
jax.jit(lambda x: 2 * x)(1.0)  # compiled in a moment
print(*(name for name in found if name in ("cache_hits", "cache_misses")))
"""


def test_a_second_start_compiles_none(tmp_path):
  env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_PERSISTENT_CACHE")}
  start = lambda: subprocess.check_output([sys.executable, "-c", STARTS, str(tmp_path)], env=env, text=True).split()
  first, second = start(), start()
  assert set(first) == {"cache_misses"} and set(second) == {"cache_hits"} and len(first) == len(second)


NAMED = """
import sys
import jax
from fipo_jax import assemble, config
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event.rpartition("/")[2]))
c = config.default()
c.compile_cache = sys.argv[1]
for name, steps in (("old_name", ()), ("new_name", ()), ("new_name", (5, 6))):
  c.log.profile_steps = steps
  assemble.prepare_compiling(c)
  jax.clear_caches()

  def double(x):
    with jax.named_scope(name):
      return 2 * x

  found.clear()
  compiled = jax.jit(double).lower(1.0).compile()
  print(*(event for event in found if event in ("cache_hits", "cache_misses")), name in compiled.as_text())
"""


def test_a_trace_has_the_names_of_this_version(tmp_path):
  """A program that the cache has under other names is the same one, but for a trace."""
  env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_PERSISTENT_CACHE")}
  said = subprocess.check_output([sys.executable, "-c", NAMED, str(tmp_path)], env=env, text=True)
  assert said.splitlines() == ["cache_misses True", "cache_hits False", "cache_misses True"]


def test_yarn_makes_room_for_longer_sequences(tmp_path):
  """By the recipe of the model cards, max_position_embeddings stays what it was before YaRN."""
  published = json.loads((GOLDEN / "qwen2_yarn/factor4/config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps(published | {"max_position_embeddings": 32}))
  characters("ab").save(tmp_path)
  fields = {"model.path": str(tmp_path), "data.max_prompt_tokens": 60}
  opened = lambda tokens, longest=0: parts.open_model(
    make(**fields, **{"rollout.max_response_tokens": tokens, "model.max_position": longest})
  )[1].config
  assert opened(68).longest == 128
  with pytest.raises(ValueError, match=r"= 129 is beyond .*max_position_embeddings=32, to 128 with its YaRN; use"):
    opened(69)
  assert (opened(69, 200).max_position, opened(69, 200).yarn) == (200, opened(68).yarn)
  with pytest.raises(ValueError, match=r"= 128 is beyond .*max_position_embeddings=100; use"):
    opened(68, 100)  # who names a limit means it
