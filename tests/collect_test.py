"""Dynamic sampling: sizes of draws, groups that wait, ages, counters, and the end of the data. A scripted sampler."""

import base64
import contextlib
import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from fipo_jax import collect, config, host_arrays
from fipo_jax.data.tokenizer import characters
from fipo_jax.rewards.score import Scored
from fipo_jax.rollout import Sampling, stored
from fipo_jax.rollout.http import EngineError
from fipo_jax.rollout.usage import Usage
from fipo_jax.types import Prompt, Rollout
from tests.tolerances import close


class Stream:
  """Prompts 0, 1, 2, ... over and over."""

  def __init__(self, size):
    self.len_epoch, self.next = size, 0

  def take(self, n):
    ids = [(self.next + i) % self.len_epoch for i in range(n)]
    self.next += n
    return [Prompt(i, np.array([1, 2, i], np.int32), f"p{i}", "42", "none") for i in ids]


class Engine:
  """Groups of G rollouts of 3 and 5 tokens; which ones are mixed is up to `mixed`."""

  def __init__(self, mixed):
    self.mixed, self.asked, self.usage = mixed, [], Usage()

  def generate(self, prompts, samples, *, key, sampling, progress, watch=None, pending=()):
    self.asked.append(len(prompts))
    return [
      [Rollout(p, g, np.arange(3 + 2 * (g % 2), dtype=np.int32), np.zeros(3 + 2 * (g % 2), np.float32), "stop",
               accuracy=float(g == 0) if self.mixed(p.id) else 1.0) for g in range(samples)]
      for p in prompts
    ]  # fmt: skip


def make(mixed, *, want=4, size=1000, **fields):
  """A run with dynamic_sampling fields; without a margin unless a test is about it."""
  cfg = config.default()
  cfg.batch.prompts, cfg.rollout.samples_per_prompt = want, 2
  cfg.update_from_flattened_dict({f"dynamic_sampling.{k}": v for k, v in fields.items()})
  return types.SimpleNamespace(
    cfg=cfg, engine=Engine(mixed), stream=Stream(size), surplus=[], pending=[], begun=[], step=0, host={"counters": {}},
    sampling=lambda **_: Sampling(), timers=lambda _: contextlib.nullcontext(),
    key=lambda *_: jax.random.key(0), verified=False, scorer=types.SimpleNamespace(first_error=""),
  )  # fmt: skip


@pytest.fixture(autouse=True)
def plain(monkeypatch):
  """The sampler has filled in accuracies; rewards follow them. Draws have no margin, so that they can be counted."""
  monkeypatch.setattr(collect, "MARGIN", 1)
  monkeypatch.setattr(collect, "MARGIN_ENDED_EARLY", 1)
  monkeypatch.setattr(collect, "LARGEST_ENDED_EARLY", 2)

  def begin_score(run, groups):
    def finish():
      for r in (r for g in groups for r in g):
        r.score = r.reward = r.accuracy

    return finish

  monkeypatch.setattr(collect, "begin_score", begin_score)


def sample(run, step):
  progress = types.SimpleNamespace(task=lambda _: None)
  groups, values = collect.sample_groups(run, step, progress)
  run.ages = [{r.age for r in g} for g in groups]
  return [g[0].prompt.id for g in groups], values


def test_half_of_the_groups_are_informative():
  run = make(lambda i: i % 2 == 0)
  ids, values = sample(run, 1)
  assert ids == [0, 2, 4, 6] and run.engine.asked == [4, 4]  # 4 asked, 2 found; then 2 / 0.5 = 4
  assert (values["prompts_drawn"], values["groups_informative"], values["keep_rate"]) == (8, 4, 0.5)
  assert values["token_efficiency"] == 0.5
  ids, values = sample(run, 2)
  assert ids == [8, 10, 12, 14] and run.engine.asked == [4, 4, 8]  # the measured rate sizes the first draw


def test_surplus_waits_and_is_used_first():
  run = make(lambda i: i >= 4 or i == 0)  # the first draw finds 1, the second too many
  ids, values = sample(run, 1)
  assert run.engine.asked == [4, 8] and ids == [0, 4, 5, 6]  # 3 missing / 0.25 = 12, but at most two batches
  assert values["groups_waiting"] == 5 and values["groups_dropped"] == 0
  ids, values = sample(run, 2)
  assert ids == [7, 8, 9, 10] and run.engine.asked == [4, 8]  # nothing had to be sampled
  assert (values["groups_reused"], values["prompts_drawn"], values["tokens_generated"]) == (4, 0, 0)
  assert run.ages == [{1}] * 4 and [r.age for s, g in run.surplus for r in g] == [0, 0]  # when it was finished
  assert values["total/groups_trained"] == 8 and np.isnan(values["keep_rate"])
  generated = 12 * 8
  close(values["token_efficiency"], 8 * 8 / generated, dtype=np.float64)
  ids, values = sample(run, 3)  # the one left is two iterations old now
  assert 11 not in ids and values["groups_dropped"] == 1 and values["groups_reused"] == 0


def test_surplus_is_thrown_away_without_an_age():
  run = make(lambda i: i >= 4 or i == 0, max_age=0)
  _, values = sample(run, 1)
  assert values["groups_waiting"] == 0 and values["groups_dropped"] == 5 and run.surplus == []


def test_a_waiting_prompt_is_not_drawn_again():
  run = make(lambda i: True, size=6, max_age=3)
  run.surplus = [(1, g) for g in run.engine.generate(run.stream.take(1), 2, key=0, sampling=0, progress=0)]
  run.stream.next = 0
  ids, _ = sample(run, 2)
  assert ids == [0, 1, 2, 3]


def test_small_data_trains_on_what_there_is_or_ends():
  ids, values = sample(make(lambda i: i < 2, size=6), 1)
  assert ids == [0, 1] and values["prompts_drawn"] == 6
  run = make(lambda i: i < 2, size=6, on_exhausted="stop")
  said = r"all 6 prompts were drawn: 2 of 4 groups .* 6 prompts \(accuracy 0.833\)"
  with pytest.raises(collect.DataExhausted, match=said):
    sample(run, 1)
  assert [g[0].prompt.id for _, g in run.surplus] == [0, 1]  # nothing found is lost
  with pytest.raises(collect.DataExhausted, match="max_draws=3: 0 of 4 groups"):
    sample(make(lambda i: False, size=100, max_draws=3), 1)


def test_a_draw_whose_surplus_may_wait_asks_for_a_tenth_more(monkeypatch):
  monkeypatch.setattr(collect, "MARGIN", 1.1)
  waits, thrown = make(lambda i: True, want=20), make(lambda i: True, want=20, max_age=0)
  sample(waits, 1), sample(thrown, 1)
  assert waits.engine.asked == [22] and thrown.engine.asked == [20] and len(waits.surplus) == 2


def test_off_takes_everything_once():
  run = make(lambda i: False, enabled=False)
  ids, values = sample(run, 1)
  assert ids == [0, 1, 2, 3] and run.engine.asked == [4] and values["groups_informative"] == 4


def test_what_was_sampled_and_trained_is_described():
  prompt = Prompt(0, np.zeros(4, np.int32), "", "", "none")
  one = lambda n, accuracy, reward, stop: Rollout(
    prompt, 0, np.zeros(n, np.int32), np.zeros(n, np.float32), stop, accuracy=accuracy, score=2 * accuracy - 1,
    reward=reward, advantage=reward, pred="1" if accuracy else None,
  )  # fmt: skip
  cut = [one(6, 0.0, -1.5, "length"), one(4, 1.0, 0.5, "length")]
  groups = [[one(2, 1.0, 1.0, "stop"), *cut, one(8, 0, -1.0, "stop")]]
  seen = collect.describe_sampled(groups)
  assert (seen["accuracy"], seen["truncated"]) == (0.5, 0.5)
  assert (seen["truncated_correct"], seen["truncated_wrong"]) == (0.25, 0.25)
  assert (seen["response_length"], seen["response_length_median"], seen["response_length_p25"]) == (5.0, 5.0, 3.5)
  assert (seen["overlong_penalty"], seen["no_answer"], seen["tokens_generated"]) == (-0.25, 0.5, 20)
  trained = collect.describe_trained(groups)
  close(trained["advantage_length_weighted"], (2 * 1 - 6 * 1.5 + 4 * 0.5 - 8) / 20, terms=4, dtype=np.float64)
  assert trained["sequence_tokens_max"] == 12 and trained["advantage_min"] == -1.5


def through_files(waiting, tmp_path):
  """Stored and read as a checkpoint does it: JSON in one file, arrays in another."""
  rest, arrays = host_arrays.split({"waiting": stored.encode(waiting)})
  np.savez(tmp_path / "arrays.npz", **arrays)
  with np.load(tmp_path / "arrays.npz") as file:
    return stored.decode(host_arrays.join(json.loads(json.dumps(rest)), dict(file))["waiting"])


def test_waiting_groups_survive(tmp_path):
  engine = Engine(lambda i: True)
  groups = engine.generate(Stream(9).take(2), 3, key=0, sampling=0, progress=0)
  groups[0][1].flags, groups[0][1].pred, groups[0][1].age, groups[0][1].key = ("timeout",), "7", 3, (1, 2)
  groups[0][2].logp = np.array([-0.1, -2.0, -1e-9], np.float32)
  groups[1][0].tokens = np.arange(7, dtype=np.int32)  # each its own length
  groups[1][0].logp = groups[1][0].raw_logp = np.linspace(-1, 0, 7, dtype=np.float32)
  again = through_files([(4, groups[0]), (5, groups[1])], tmp_path)
  assert [s for s, _ in again] == [4, 5]
  for old, (_, new) in zip(groups, again, strict=True):
    for a, b in zip(old, new, strict=True):
      for field in dataclasses.fields(Rollout):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if field.name == "prompt":
          assert (x.id, x.text, x.answer, x.verifier, x.extras) == (y.id, y.text, y.answer, y.verifier, y.extras)
          np.testing.assert_array_equal(x.tokens, y.tokens)
        elif field.name not in ("advantage", "text"):
          np.testing.assert_array_equal(x, y)
  assert again[0][1][0].tokens.dtype == np.int32 and again[0][1][0].logp.dtype == np.float32
  assert again[0][1][0].tokens.base is None  # one group does not keep the memory of all
  assert stored.encode([]) == {} and stored.decode({}) == []


def test_groups_without_a_token_survive(tmp_path):
  prompt = Prompt(3, np.array([1], np.int32), "p", "42", "none")
  nothing = np.zeros(0, np.float32)
  begun = [Rollout(prompt, g, nothing.astype(np.int32), nothing, "unfinished", raw_logp=nothing) for g in range(2)]
  assert all(x.size for x in host_arrays.split(stored.encode([(7, begun)]))[1].values())  # Orbax takes no other
  ((step, group),) = through_files([(7, begun)], tmp_path)
  assert step == 7 and [len(r.tokens) for r in group] == [0, 0] and group[0].prompt.tokens.tolist() == [1]


def test_groups_of_earlier_versions_are_read():
  """Arrays as base64 inside a record each, texts beside them."""
  text = lambda *x, dtype: base64.b64encode(np.array(x, dtype).tobytes()).decode()
  rollout = {
    "sample": 1, "tokens": text(5, 6, dtype=np.int32), "logp": text(-0.5, -1, dtype=np.float32), "stop_reason": "stop",
    "text": "ab", "accuracy": 1.0, "score": 1.0, "reward": 0.5, "flags": ["timeout"], "pred": "7", "age": 2,
    "raw_logp": text(-0.25, -2, dtype=np.float32), "key": [1, 2],
  }  # fmt: skip
  prompt = {"id": 3, "tokens": text(1, 2, 3, dtype=np.int32), "text": "p", "answer": "7", "verifier": "gym",
            "extras": {}}  # fmt: skip
  ((step, (r,)),) = stored.decode([{"step": 4, "prompt": prompt, "rollouts": [rollout]}])
  assert (step, r.prompt.tokens.tolist(), r.tokens.tolist(), r.logp.tolist()) == (4, [1, 2, 3], [5, 6], [-0.5, -1])
  assert (r.raw_logp.tolist(), r.key, r.flags, r.age, r.text) == ([-0.25, -2], (1, 2), ("timeout",), 2, "ab")


def test_groups_that_wait_get_back_what_scoring_reads():
  """Extras are not in the checkpoint: whatever they hold, it is as the source has it."""
  prompt = Prompt(3, np.array([1], np.int32), "p", "42", "none", {"terms": (1, {2})})
  begun = [(7, [Rollout(prompt, g, np.arange(2), np.zeros(2), "unfinished") for g in range(2)])]
  again = stored.decode(stored.encode(begun))
  assert again[0][1][0].prompt.extras == {}
  ((step, group),) = stored.with_prompts(again, lambda ids: {i: prompt for i in ids})
  assert step == 7 and all(r.prompt.extras == {"terms": (1, {2})} for r in group)


def test_a_failed_step_goes_the_same_way_again():
  """The second draw fails, then the first of the next process: of each what there was is known, and not asked again."""
  run = make(lambda i: i % 2 == 0)
  generate = run.engine.generate

  def fails(prompts, samples, **options):
    groups = generate(prompts, samples, **options)
    if len(run.engine.asked) == 1:
      return groups
    raise EngineError("gone", [groups[0], *([dataclasses.replace(r, stop_reason="unfinished") for r in g]
                                            for g in groups[1:])])  # fmt: skip

  run.engine.generate = fails
  with pytest.raises(EngineError, match="gone"):
    sample(run, 1)
  waiting = lambda groups: [(n, g[0].prompt.id, all(r.finished for r in g)) for n, g in groups]
  had = [(0, 0, True), (0, 1, True), (0, 2, True), (0, 3, True), (1, 4, True), (1, 5, False), (1, 6, False),
         (1, 7, False)]  # fmt: skip
  assert waiting(run.begun) == had
  again = make(lambda i: i % 2 == 0)
  again.begun = run.begun
  asked, generate = [], again.engine.generate

  def goes_on(prompts, samples, *, pending, **options):
    asked.append([g[0].prompt.id for g in pending if not all(r.finished for r in g)])
    if len(asked) == 1:
      raise EngineError("gone again", [])
    new = {g[0].prompt.id: g for g in generate([g[0].prompt for g in pending], samples, **options)}
    return [g if all(r.finished for r in g) else new[g[0].prompt.id] for g in pending]

  again.engine.generate = goes_on
  with pytest.raises(EngineError, match="gone again"):
    sample(again, 1)
  assert waiting(again.begun) == had
  again.stream = Stream(1000)
  straight = make(lambda i: i % 2 == 0)
  assert sample(again, 1) == sample(straight, 1)
  assert asked[1:] == [[], [5, 6, 7]] and not again.begun


def test_many_processes_score_their_share(monkeypatch):
  """Process 1 of 3 verifies jobs 1, 4, 7; the others' scores come by exchange, in their places."""
  asked = []

  def score(jobs):
    asked.extend(jobs)
    return [Scored(float(j), 1.0, f"{j}", ("timeout",)) for j in jobs]

  def exchange(what, text):
    others = [[dataclasses.astuple(s) for s in score(range(k, 8, 3))] for k in range(3)]
    assert text == json.dumps(others[1])
    return [json.dumps(part) for part in others]

  monkeypatch.setattr(collect.processes, "count", lambda: 3)
  monkeypatch.setattr(collect.processes, "index", lambda: 1)
  monkeypatch.setattr(collect.processes, "exchange", exchange)
  def submit(jobs):
    found = score(jobs)
    return types.SimpleNamespace(result=lambda: found)

  made = []
  job = lambda i: made.append(i) or i
  scores = collect.begin_verify(types.SimpleNamespace(scorer=types.SimpleNamespace(submit=submit)), job, 8)()
  assert made == [1, 4, 7]
  assert [s.score for s in scores] == list(range(8)) and scores[3].pred == "3" and asked[:3] == [1, 4, 7]


class Streaming(Engine):
  """Finishes one group per look, shortest prompt id first; a stopped one comes back with one token per sample."""

  def __init__(self, mixed):
    super().__init__(mixed)
    self.continued = []

  def generate(self, prompts, samples, *, key, sampling, progress, watch=None, pending=()):
    self.continued += [[(r.prompt.id, r.sample, len(r.tokens)) for r in g] for g in pending]
    whole = super().generate([g[0].prompt for g in pending] + list(prompts), samples, key=0, sampling=0, progress=0)
    for i, group in enumerate(whole):
      if watch([group]):
        rest = [[dataclasses.replace(r, tokens=r.tokens[:1], logp=r.logp[:1], stop_reason="unfinished") for r in g]
                for g in whole[i + 1 :]]  # fmt: skip
        return whole[: i + 1] + rest
    return whole


@pytest.mark.parametrize("how", ["continue", "restart"])
def test_sampling_stops_when_there_is_enough_and_goes_on_in_the_next_step(how):
  """Half are informative and want is 2 of 8 drawn: the look after the second one ends it; nothing is lost."""
  run = make(lambda i: i % 2 == 0, want=2, max_age=3)
  run.cfg.rollout.unfinished = how
  run.engine, run.host["keep_rate"] = Streaming(run.engine.mixed), 0.25
  ids, values = sample(run, 1)
  assert ids == [0, 2] and values["groups_unfinished"] == 0 and run.engine.asked == [4]  # at most two batches
  run.engine.mixed = lambda i: True
  ids, values = sample(run, 2)
  # Prompts 4 and 5 are judged at the look that brings 6, which is complete by then too.
  assert ids == [4, 5] and [g[0].prompt.id for _, g in run.pending] == [7] and values["groups_unfinished"] == 1
  assert [g[0].prompt.id for _, g in run.surplus] == [6]
  run.surplus, kept = [], 1 if how == "continue" else 0
  again = stored.decode(stored.encode(run.pending))
  assert [len(r.tokens) for _, g in again for r in g] == [kept, kept] and not again[0][1][0].finished
  ids, values = sample(run, 5)  # beyond max_age: unfinished groups have no age limit
  assert ids[0] == 7 and run.engine.continued[-1] == [(7, 0, kept), (7, 1, kept)] and values["groups_continued"] == 1


@pytest.mark.parametrize("how", ["continue", "restart"])
@pytest.mark.parametrize("enabled", [True, False])
def test_where_sampling_ends_early_a_draw_has_enough_for_slots_that_stay_full(monkeypatch, how, enabled):
  """Half as many again, up to three batches; what is not finished comes first in the next step."""
  monkeypatch.setattr(collect, "MARGIN_ENDED_EARLY", 1.5)
  monkeypatch.setattr(collect, "LARGEST_ENDED_EARLY", 3)
  run = make(lambda i: True, want=4, enabled=enabled)
  run.cfg.rollout.unfinished, run.engine = how, Streaming(run.engine.mixed)
  ids, values = sample(run, 1)
  assert ids == [0, 1, 2, 3] and run.engine.asked == [6] and values["draws"] == 1
  assert [g[0].prompt.id for _, g in run.surplus + run.pending] == [4, 5]
  if enabled:
    run.host["keep_rate"] = 0.25
    sample(run, 2)
    assert run.engine.asked[1] == 3 * 4  # with the one that goes on; 18 would be needed


def test_ages_count_from_the_first_token():
  """Three groups come over several iterations, one of them without a token yet: as old as what was sampled first."""
  run = make(lambda i: True, want=2, max_age=1)
  run.engine = Streaming(run.engine.mixed)
  cut = lambda g, n: [dataclasses.replace(r, tokens=r.tokens[:n], stop_reason="unfinished") for r in g]
  some = run.engine.generate(run.stream.take(4), 2, key=0, sampling=0, progress=0, watch=lambda _: False)
  run.pending = [(2, cut(some[0], 0)), (3, cut(some[1], 1)), (1, cut(some[2], 2)), (1, cut(some[3], 1))]
  ids, values = sample(run, 4)
  assert ids == [2, 3] and run.ages == [{3}, {3}]  # the oldest first
  assert [(s, g[0].prompt.id, g[0].age) for s, g in run.surplus] == [(3, 1, 1), (4, 0, 0)]
  ids, values = sample(run, 5)
  assert ids == [1, 0] and run.ages == [{2}, {1}] and values["groups_dropped"] == 0  # beyond max_age, once


def test_a_continued_group_that_was_passed_over_ages():
  run = make(lambda i: True, want=1, max_age=2)
  (group,) = run.engine.generate(run.stream.take(1), 2, key=0, sampling=0, progress=0)
  for r in group:
    r.age = 3
  run.surplus = [(1, group)]  # finished in step 4
  ids, values = sample(run, 6)
  assert ids == [1] and values["groups_dropped"] == 1


def test_surplus_of_just_the_largest_age_is_used():
  run = make(lambda i: True, want=1, max_age=2)
  run.surplus = [(1, g) for g in run.engine.generate(run.stream.take(1), 2, key=0, sampling=0, progress=0)]
  assert sample(run, 3)[0] == [0] and run.ages == [{2}]


def test_finish_waits_for_all():
  run = make(lambda i: True, want=2)
  run.engine, run.host["keep_rate"] = Streaming(run.engine.mixed), 0.5
  sample(run, 1)
  assert run.pending == [] and len(run.surplus) == 2


def test_a_group_is_judged_by_accuracy_and_not_by_reward():
  """A penalty for length tells wrong responses apart, but not what is right; partial credit may even both out."""
  group = lambda accuracies, rewards: [
    Rollout(None, 0, (), (), "stop", accuracy=a, score=r, reward=r) for a, r in zip(accuracies, rewards, strict=True)
  ]
  assert not collect.informative(group([0.0, 0.0], [-1.0, -1.5]))
  assert collect.informative(group([0.0, 1.0], [0.5, 0.5]))


def test_the_keep_rate_remembers_half_of_the_past():
  run = make(lambda i: i % 2 == 0)
  sample(run, 1)
  run.engine.mixed = lambda i: True
  sample(run, 2)
  assert run.host["keep_rate"] == 0.5 * 0.5 + 0.5 * 1.0


def test_begun_groups_wait_where_the_surplus_is_enough():
  run = make(lambda i: True, want=2, max_age=3)
  groups = run.engine.generate(run.stream.take(3), 2, key=0, sampling=0, progress=0)
  run.engine.asked.clear()
  begun = [dataclasses.replace(r, stop_reason="unfinished") for r in groups[2]]
  run.surplus, run.pending = [(1, g) for g in groups[:2]], [(1, begun)]
  ids, values = sample(run, 2)
  assert ids == [0, 1] and run.engine.asked == [] and run.pending == [(1, begun)] and values["groups_unfinished"] == 1


BEGIN_SCORE = collect.begin_score  # the fixture puts another in its place


def test_a_reward_is_the_score_and_the_penalty_for_length():
  run = make(lambda i: True)
  run.cfg.rollout.max_response_tokens, run.cfg.reward.overlong_buffer_tokens = 8, 4
  run.tokenizer = characters("abc")
  run.scorer = types.SimpleNamespace(
    submit=lambda jobs: types.SimpleNamespace(
      result=lambda: [Scored(score=0.5, accuracy=1.0, pred=job.response, flags=("timeout",)) for job in jobs]
    )
  )
  prompt = Prompt(0, np.array([4], np.int32), "a", "42", "math_dapo")
  group = [Rollout(prompt, g, np.full(n, 5, np.int32), np.zeros(n), "stop") for g, n in enumerate((4, 6, 8))]
  BEGIN_SCORE(run, [group])()
  assert [(r.reward, r.score, r.accuracy) for r in group] == [(0.5, 0.5, 1.0), (0.0, 0.5, 1.0), (-0.5, 0.5, 1.0)]
  assert [(r.text, r.pred, r.flags) for r in group] == [("b" * n, "b" * n, ("timeout",)) for n in (4, 6, 8)]


def test_only_what_is_verified_here_is_decoded(monkeypatch):
  """Process 1 of 2: others' responses get their verdicts, and no text."""
  run, decoded = make(lambda i: True), []
  run.tokenizer = types.SimpleNamespace(decode=lambda tokens: decoded.append(len(tokens)) or "b" * len(tokens))
  score = lambda jobs: [Scored(score=1.0, accuracy=1.0, pred=job.response) for job in jobs]
  run.scorer = types.SimpleNamespace(submit=lambda jobs: types.SimpleNamespace(result=lambda: score(jobs)))
  monkeypatch.setattr(collect.processes, "count", lambda: 2)
  monkeypatch.setattr(collect.processes, "index", lambda: 1)
  monkeypatch.setattr(collect.processes, "exchange", lambda what, text: [text, text])
  prompt = Prompt(0, np.array([4], np.int32), "a", "42", "math_dapo")
  group = [Rollout(prompt, g, np.full(n, 5, np.int32), np.zeros(n), "stop") for g, n in enumerate((3, 4, 5, 6))]
  BEGIN_SCORE(run, [group])()
  assert decoded == [4, 6] and [r.text for r in group] == ["", "bbbb", "", "bbbbbb"]
  assert [r.accuracy for r in group] == [1.0] * 4


def test_a_demonstration_ends_with_the_end_token():
  run = make(lambda i: True, want=2)
  run.tokenizer, run.cfg.rollout.max_response_tokens = characters("abc"), 4
  prompt = lambda i, target: Prompt(i, np.array([4], np.int32), "a", "", "none", {"target": target})
  run.stream.take = lambda n: [prompt(0, "cab"), prompt(1, "cabcab")]
  first, cut = [group[0] for group in collect.demonstrations(run)]
  assert first.tokens.tolist() == [6, 4, 5, run.tokenizer.stop_ids[0]] and cut.tokens.tolist() == [6, 4, 5, 6]
  assert first.advantage == cut.advantage == 1.0 and len(first.logp) == 4


def test_what_was_rescued_belongs_to_one_checkpoint(tmp_path):
  assert stored.rescued(tmp_path, [3, 0]) == {}
  (tmp_path / "rescued.json").write_text(json.dumps({"after": [3, 0], "host": {"pending": [1]}}))
  assert stored.rescued(tmp_path, [3, 0]) == {"pending": [1]}  # of an earlier version
  stored.rescue(tmp_path, [3, 0], {"pending": {"groups": [2], "tokens": np.arange(3)}, "surplus": {}})
  found = stored.rescued(tmp_path, [3, 0])
  assert found["pending"]["groups"] == [2] and found["pending"]["tokens"].tolist() == [0, 1, 2] and not found["surplus"]
  assert [path.name for path in tmp_path.iterdir()] == ["rescued.npz"]
  assert stored.rescued(tmp_path, [4, 0]) == stored.rescued(tmp_path, [3, 1]) == {}  # a later one, another attempt


class Slow(Streaming):
  """Says how many verdicts were there when each look came."""

  def __init__(self, mixed, verdicts):
    super().__init__(mixed)
    self.verdicts, self.seen = verdicts, []

  def generate(self, prompts, samples, *, watch=None, **more):
    def look(groups):
      self.seen.append(len(self.verdicts))
      return watch(groups)

    return super().generate(prompts, samples, watch=look, **more)


@pytest.mark.parametrize(("how", "seen"), [("finish", [0, 0, 0, 0]), ("continue", [0, 0, 1, 2])])
def test_sampling_waits_only_for_verdicts_that_decide_when_it_ends(monkeypatch, how, seen):
  run, verdicts = make(lambda i: True, want=4, max_age=0), []
  run.cfg.rollout.unfinished, run.engine = how, Slow(run.engine.mixed, verdicts)
  monkeypatch.setattr(collect, "begin_score", lambda run, groups: lambda: verdicts.extend(groups))
  sample(run, 1)
  assert run.engine.seen == seen and len(verdicts) == 4


@pytest.mark.parametrize("flag", ["error", "timeout"])
def test_a_first_batch_without_a_verdict_stops_and_says_why(monkeypatch, flag):
  run = make(lambda i: True, want=2)
  run.scorer.first_error = "KeyError: 'grader table'" if flag == "error" else ""

  def begin_score(run, groups):
    for r in (r for g in groups for r in g):
      r.flags = (flag,)
    return lambda: None

  good = collect.begin_score
  monkeypatch.setattr(collect, "begin_score", begin_score)
  error = "4 verifications 4 raised and 0 .*; the first error: KeyError: 'grader table'"
  said = {"error": error, "timeout": "4 took more"}
  with pytest.raises(ValueError, match=f"none of the first 4 responses could be verified; of .*{said[flag]}"):
    sample(run, 1)
  monkeypatch.setattr(collect, "begin_score", good)
  sample(run, 1)
  monkeypatch.setattr(collect, "begin_score", begin_score)
  _, values = sample(run, 2)  # later it is counted, and the alarm's matter
  assert values[f"reward_{flag}s"] == 4 and values[f"total/reward_{flag}s"] == 4


def test_the_end_of_the_data_says_what_could_not_be_verified():
  run = make(lambda i: False, size=4, want=2)
  run.scorer.first_error, run.verified = "KeyError: 'grader table'", True
  generate = run.engine.generate

  def fails(prompts, samples, **more):
    groups = generate(prompts, samples, **more)
    groups[0][1].flags = ("error",)
    return groups

  run.engine.generate = fails
  with pytest.raises(collect.DataExhausted, match=r"of 8 verifications 2 raised and 0 .* 'grader table'\). Use"):
    sample(run, 1)
