"""The report of runs: what is read of them, what is drawn, what is said, and that a page is whole in itself."""

import base64
import hashlib
import html.parser
import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from fipo_jax.report import compare, events, figures, page, read, summary, tokens, write

ROOT = pathlib.Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "tests/a_run"  # some lines of a real run
ROWS = [
  {"step": 0, "eval/accuracy": 0.1, "eval/response_tokens": 30.0},
  {"step": 1, "reward": 0.1, "accuracy": 0.2, "entropy": 1.5, "weight_mean": 1.0, "weight_std": 0.1,
   "seconds/rollout": 2.0, "seconds/update": 3.0, "seconds/step": 5.0, "minibatch/policy_kl": [0.0, 0.1]},
  {"step": 2, "reward": None, "accuracy": 0.3, "weight_mean": 1.01, "weight_std": 0.2, "nonfinite": ["reward"]},
  {"step": 3, "weight_mean": 1.02, "mine": 7.0},
]  # fmt: skip
SAMPLE = {
  "step": 2, "prompt": "1<2 & 3?", "response": "ab</pre>c", "answer": "6", "reward": 1.0, "accuracy": 1.0,
  "tokens": ["ab", "</pre>", "c"], "logp": [-0.5, -0.25, -1.0], "future_kl": [0.5, -2.0, 0.0],
  "weight": [1.1, 0.5, 1.0],
}  # fmt: skip


def lines(records):
  return "".join(json.dumps(record) + "\n" for record in records)


def write_run(folder, rows=ROWS, samples=None, **files):
  """A run's folder; files: name without .json -> content."""
  folder.mkdir(parents=True, exist_ok=True)
  if rows is not None:
    (folder / "metrics.jsonl").write_text(lines(rows))
  if samples is not None:
    (folder / "samples.jsonl").write_text(lines(samples))
  for name, content in files.items():
    (folder / f"{name}.json").write_text(json.dumps(content))
  return folder


class Page(html.parser.HTMLParser):
  """Texts, scripts by id, tags left open, and whatever would be loaded from elsewhere."""

  def __init__(self, text):
    super().__init__()
    self.open, self.words, self.scripts, self.ids, self.loads, self.policy = [], [], [], set(), [], ""
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.ids.add(attrs.get("id"))
    self.loads += [attrs[name] for name in ("src", "srcset", "data", "action") if name in attrs]
    self.loads += [attrs["href"]] if tag != "a" and "href" in attrs else []
    if attrs.get("http-equiv") == "Content-Security-Policy":
      self.policy = attrs["content"]
    if tag not in ("meta", "input", "link", "br"):
      self.open.append(tag)
    if tag == "script":
      self.scripts.append([attrs.get("type"), attrs.get("id"), ""])

  def handle_endtag(self, tag):
    while self.open and self.open[-1] == "option" and tag != "option":
      self.open.pop()
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] == "script":
      self.scripts[-1][2] += data
    else:
      self.words.append(data)

  def data(self, name):
    return next(json.loads(text) for kind, own, text in self.scripts if own == name and kind == "application/json")


def page_of(*folders, **more):
  return Page(page.render([read.run(folder) for folder in folders], **more))


def drawn(*folders):
  return figures.figures(compare.arms([read.run(folder) for folder in folders]))


def panels(found):
  return {panel["title"]: panel["keys"] for group in found["groups"] for panel in group["panels"]}


# ---- the page ----


def test_a_page_is_whole_in_itself_and_runs_its_own_scripts_alone():
  found = page_of(QUICKSTART)
  assert found.open == [] and found.loads == []
  programs = [text for kind, _, text in found.scripts if kind is None]
  hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in programs]
  assert len(programs) == 4 and re.findall(r"sha256-([^']+)", found.policy) == hashes
  assert found.policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe-eval" not in found.policy
  assert {"summary", "curves", "time", "events", "tokens"} <= found.ids
  text = " ".join(" ".join(found.words).split())
  assert "FIPO, seed 0: step 24 of 24, 96 updates" in text and "held out accuracy 0.3" in text


def test_what_a_run_says_is_data(tmp_path):
  said = "</script ></script><script>alert(1)</script><!-- \u2028 \u202e <img src=x onerror=alert(2)> \ud800"
  run = write_run(
    tmp_path / "<b>run", rows=[{"step": 1, "loss": 1.0, said: 2.0, "alarms": [said], "changed": [said]}],
    samples=[SAMPLE | {"tokens": [said], "prompt": said, "answer": said}],
    config={"seed": 1, "model": {"path": said}}, starts=[{"time": said, "host": said}, {"time": said, "step": 1}],
    result={"algorithm": said, "ended": said, "first_error": said, "reward_errors": 1, "steps": 1},
  )  # fmt: skip
  found = Page(write.report([run]).read_text())
  assert found.open == [] and found.loads == []
  assert len(found.scripts) == 6 and not any("<" in text for kind, _, text in found.scripts if kind)
  (sample,) = found.data("responses")["samples"]
  assert sample["tokens"] == [said.replace("\ud800", "?")] and sample["prompt"] == sample["tokens"][0]
  assert any("alert(2)" in word for word in found.words)
  others = [write_run(tmp_path / name, config={said: name}) for name in "ab"]  # a row of what differs
  found = page_of(*others)
  assert found.open == [] and found.loads == [] and len(found.scripts) == 6 and said in "".join(found.words)


def test_where_the_time_went_is_told_in_shares(tmp_path):
  spent = {"productive_s": 1500.0, "lost_s": 200.0, "starting_s": 50.0, "waiting_s": 240.0, "other_s": 10.0}
  goodput = spent | {"share": 0.75, "wall_s": 2000.0, "starts": 3, "lost_steps": 4}
  found = page_of(write_run(tmp_path / "run", result={"goodput": goodput, "steps": 3}))
  text = "|".join(found.words)
  assert "Since the first start: 33 min" in text and "iterations that were kept|25 min|75.0%" in text
  assert "without a process|4 min|12.0%" in text and "update|3 s|60.0%" in text


def test_parts_that_a_run_lacks_are_left_out(tmp_path):
  found = page_of(write_run(tmp_path / "run", rows=[{"step": 1, "other": 1}]))
  assert "tokens" not in found.ids and "differences" not in found.ids
  assert panels({"groups": found.data("figures")["groups"]}) == {"other": ["other"]}
  replayed = write_run(tmp_path / "replay", rows=None)
  (replayed / "tokens.jsonl").write_text(lines([SAMPLE]))
  found = page_of(replayed)
  assert "curves" not in found.ids and found.data("responses")["samples"][0]["weight"] == [1.1, 0.5, 1]


@pytest.mark.parametrize(
  "gone", [("time",), ("total/",), ("seconds/",), ("eval/",), ("minibatch/",), ("rollout/",), ("future_kl", "weight_")]
)
def test_runs_of_older_versions_are_read(tmp_path, gone):
  rows = [json.loads(line) for line in (QUICKSTART / "metrics.jsonl").read_text().splitlines()]
  samples = [json.loads(line) for line in (QUICKSTART / "samples.jsonl").read_text().splitlines()]
  old = lambda record: {key: value for key, value in record.items() if not key.startswith(gone)}
  fields = ("old_logp", "mask", "weighted_advantage", "stop_reason")
  run = write_run(
    tmp_path / "run", rows=[old(row) for row in rows],
    samples=[{k: v for k, v in s.items() if k not in fields} for s in samples],
  )  # fmt: skip
  found = page_of(run)
  keys = {key for track in found.data("figures")["tracks"] for key in track["columns"]}
  assert not any(key.startswith(gone) for key in keys) and "accuracy" in keys
  assert not set(fields) & set(found.data("responses")["samples"][0])
  assert summary.summary(read.run(run))[0] == ("run", "A RUN: step 24; under way")


# ---- reading ----


def test_half_written_lines_are_left_out_and_counted(tmp_path):
  run = write_run(tmp_path / "run", samples=[SAMPLE])
  for name in ("metrics", "samples"):
    with open(run / f"{name}.jsonl", "a") as file:
      file.write('{"step": 3, "lo')
  (run / "result.json").write_text("{")
  found = read.run(run)
  assert [row["step"] for row in found.rows] == [0, 1, 2, 3] and len(found.samples) == 1 and found.result == {}
  assert found.notes[:2] == [f"1 unreadable line of {name}.jsonl left out" for name in ("metrics", "samples")]
  assert found.notes[2].startswith("result.json is not JSON")
  assert dict(summary.summary(found))["files"] == "; ".join(found.notes)


def test_parts_are_joined_and_of_a_step_that_is_there_twice_the_later_line_counts(tmp_path):
  run = tmp_path / "run"
  write_run(run, rows=None)
  metrics = [ROWS[:2], [ROWS[1] | {"accuracy": 0.9}, *ROWS[2:3]]]
  for name, parts in {"metrics": metrics, "samples": [[SAMPLE], [SAMPLE]]}.items():
    (run / name).mkdir()
    for number, rows in enumerate(parts):
      (run / name / f"{number + 1:06d}.jsonl").write_text(lines(rows))
  found = read.run(run)
  assert [(row["step"], row.get("accuracy")) for row in found.rows] == [(0, None), (1, 0.9), (2, 0.3)]
  assert len(found.samples) == 2


def test_attempts_begin_where_the_run_went_back_to(tmp_path):
  run = write_run(tmp_path / "run", rollbacks=[{"alarm": "collapse", "step": 4, "to": 2}])
  gone = [{"step": s, "accuracy": 0.1, "alarms": ["collapse"] * (s == 4)} for s in (1, 2, 3, 4)]
  (run / "metrics.rollback1.jsonl").write_text(lines(gone))
  found = read.run(run)
  assert [[row["step"] for row in rows] for rows in found.attempts] == [[2, 3, 4]]
  assert [(e.step, e.kind) for e in events.events(found)] == [(4, "alarm"), (4, "rollback")]
  own, back = drawn(run)["tracks"]
  assert not own["rolled_back"] and back["rolled_back"] and back["columns"]["accuracy"]["y"] == [0.1] * 3


# ---- events ----


def test_events_are_in_order_and_an_alarm_that_goes_on_is_one_row(tmp_path):
  rows = [{"step": s, "loss": 1.0, "alarms": ["entropy_collapse"] * (s in (2, 3, 5))} for s in range(1, 6)]
  rows[3] |= {"changed": ["optimizer.learning_rate: 1 -> 2"], "skipped_updates": 0.25}
  starts = [{"time": "2026-01-01 00:00:00+00:00"}, {"time": "2026-01-02 03:04:05+00:00", "step": 3, "lost_steps": 2}]
  run = write_run(tmp_path / "run", rows=rows, starts=starts)
  found = events.events(read.run(run))
  assert [(e.step, e.kind) for e in found] == [
    (2, "alarm"), (3, "alarm"), (3, "restart"), (4, "changed"), (4, "skipped"), (5, "alarm"),
  ]  # fmt: skip
  assert found[2].said == "started again from step 3, 2 iterations made again, 2026-01-02 03:04"
  text = "|".join(page_of(run).words)
  assert "2 to 3|alarm|entropy_collapse" in text and "5|alarm|entropy_collapse" in text
  said = dict(summary.summary(read.run(run)))["events"]
  assert said == "alarm entropy_collapse at 3 steps, 2 to 5, 1 restart, 1 changed field, 1 step with skipped updates"


# ---- figures ----


def test_each_quantity_has_its_panel_and_what_no_panel_names_has_one_too(tmp_path):
  found = drawn(write_run(tmp_path / "run"))
  assert panels(found) == {
    "Accuracy": ["accuracy", "eval/accuracy"], "Response length": ["eval/response_tokens"], "Entropy": ["entropy"],
    "Accuracy against length": ["eval/response_tokens", "eval/accuracy"], "Future-KL weight f": ["weight_mean"],
    "Reward": ["reward"], "Policy KL by mini-batch": ["minibatch/policy_kl#1", "minibatch/policy_kl#2"],
    "Held-out accuracy": ["eval/accuracy"], "Seconds of a step by phase": ["seconds/rollout", "seconds/update"],
    "mine": ["mine"],
  }  # fmt: skip
  assert [group["name"] for group in found["groups"]][0] == "The paper's figures"


def test_columns_hold_what_exists_and_bands_the_spread_of_the_same_step(tmp_path):
  (track,) = drawn(write_run(tmp_path / "run"))["tracks"]
  assert track["step"] == [0, 1, 2, 3] and track["tokens"] is None and track["seconds"] == [0.0, 5.0, 5.0, 5.0]
  assert track["columns"]["accuracy"] == {"y": [0.2, 0.3], "at": [1, 2]}
  assert track["columns"]["weight_mean"] == {
    "y": [1.0, 1.01, 1.02], "at": [1, 2, 3], "bands": [[[0.9, 0.81, None], [1.1, 1.21, None]]],
  }  # fmt: skip
  assert track["columns"]["minibatch/policy_kl#2"] == {"y": [0.1], "at": [1]}
  assert "weight_std" not in track["columns"]


def test_held_out_accuracy_has_its_interval_and_named_sets_a_panel(tmp_path):
  row = {"step": 1, "eval/accuracy": 0.5, "eval/a/accuracy": 0.5, "eval/a/accuracy_se": 0.1, "eval/b/accuracy": 0.2}
  found = drawn(write_run(tmp_path / "run", rows=[row]))
  assert panels(found)["Accuracy by set"] == ["eval/a/accuracy", "eval/b/accuracy"]
  assert found["tracks"][0]["columns"]["eval/a/accuracy"]["bands"] == [[[0.304], [0.696]]]


def test_wall_clock_counts_from_the_first_start_and_tokens_from_the_first_step(tmp_path):
  rows = [{"step": s, "loss": 1.0, "time": 1000.0 + 10 * s, "tokens_generated": 7} for s in (1, 2)]
  (track,) = drawn(write_run(tmp_path / "run", rows=rows, starts=[{"began": 990.0}]))["tracks"]
  assert track["seconds"] == [20.0, 30.0] and track["tokens"] == [7, 14]
  rows[1] |= {"total/tokens_generated": 100}
  (track,) = drawn(write_run(tmp_path / "run", rows=rows))["tracks"]
  assert track["tokens"] == [7, 100]


def test_many_mini_batches_and_many_steps_are_thinned_with_their_ends(tmp_path, monkeypatch):
  monkeypatch.setattr(figures, "MOST_ROWS", 10)
  rows = [{"step": s, "loss": 1.0, "minibatch/loss": list(range(64)), "alarms": ["x"] * (s == 7)} for s in range(1, 51)]
  found = drawn(write_run(tmp_path / "run", rows=rows))
  (track,) = found["tracks"]
  assert track["step"] == [1, 6, 7, 11, 16, 21, 26, 31, 36, 41, 46, 50] and found["thinned"] == 5
  assert panels(found)["Loss by mini-batch"] == [f"minibatch/loss#{n}" for n in (1, 14, 26, 39, 51, 64)]


def test_the_newest_rollout_is_drawn_over_its_seconds(tmp_path):
  timeline = lambda s: [[0.5, 1.0, 10.0 * s, 0.2], [1.0, 0.5, 5.0, 0.1]]
  rows = [{"step": s, "loss": 1.0, "rollout/occupancy": 0.5, "rollout/timeline": timeline(s)} for s in (1, 2)]
  found = drawn(write_run(tmp_path / "run", rows=rows))
  panel = next(p for g in found["groups"] for p in g["panels"] if p["kind"] == "own")
  assert panel["title"] == "The rollout of step 2" and panel["x"] == [0.5, 1.0]
  assert panel["y"] == [[1.0, 0.5], [0.2, 0.1], [1.0, 0.25]]


# ---- several runs ----


def test_runs_that_differ_by_seed_alone_are_an_arm_with_a_band(tmp_path):
  config = {"optimizer": {"learning_rate": 1e-4}, "log": {"samples": 4}}
  values = {"a_seed0": (0, 0.2), "a_seed1": (1, 0.4), "b": (0, 0.9)}
  for name, (seed, accuracy) in values.items():
    own = config | {"seed": seed, "workdir": name, "optimizer": {"learning_rate": 2e-4 if name == "b" else 1e-4}}
    rows = [{"step": 1, "accuracy": accuracy, "entropy": 1.0}, {"step": 2, "accuracy": accuracy}]
    write_run(tmp_path / name, rows=rows if name != "a_seed1" else rows[:1], config=own)
  runs = [read.run(tmp_path / name) for name in values]
  arms = compare.arms(runs)
  assert [(arm.name, len(arm.runs)) for arm in arms] == [("a (2 seeds)", 2), ("b", 1)]
  assert compare.differences(arms) == [("optimizer.learning_rate", ["0.0001", "0.0002"])]
  found = figures.figures(arms)
  column = found["tracks"][0]["columns"]["accuracy"]
  assert column == {"y": [0.3, 0.2], "bands": [[[0.2, 0.2], [0.4, 0.2]]]} and found["tracks"][0]["seeds"] == 2
  assert panels(found) == {"Accuracy": ["accuracy"], "Entropy": ["entropy"]}
  text = "|".join(Page(page.render(runs)).words)
  assert "What differs" in text and "optimizer.learning_rate|0.0001|0.0002" in text and "a_seed1" in text


def test_a_field_that_a_version_lacks_is_a_difference_and_runs_without_a_config_stay_apart(tmp_path):
  old, new = (write_run(tmp_path / n, config={"seed": 0} | more) for n, more in (("old", {}), ("new", {"steps": 2})))
  bare = [write_run(tmp_path / name / "run") for name in ("x", "y")]
  arms = compare.arms([read.run(run) for run in (old, new, *bare)])
  assert [arm.name for arm in arms] == ["old", "new", "run #1", "run #2"]
  assert compare.differences(arms) == [("steps", ["absent", "2", "absent", "absent"])]


def test_panels_of_several_arms_have_a_key_each(tmp_path):
  for name, seed in (("a", 1), ("b", 2)):
    write_run(tmp_path / name, config={"steps": seed})
  found = panels(drawn(tmp_path / "a", tmp_path / "b"))
  assert found["Accuracy: accuracy"] == ["accuracy"] and found["Accuracy: eval/accuracy"] == ["eval/accuracy"]
  assert found["Policy KL by mini-batch"] == ["minibatch/policy_kl#2"]


# ---- summary ----


def test_the_summary_says_what_a_person_would():
  said = dict(summary.summary(read.run(QUICKSTART)))
  assert 9 <= len(said) <= 12
  assert said["run"] == "FIPO, seed 0: step 24 of 24, 96 updates"
  assert said["a step"].startswith("32 prompts × 8 responses of up to 80 tokens")
  assert re.fullmatch(
    r"accuracy 0\.\d{3} \[0\.\d{3}, 0\.\d{3}\] → 0\.\d{3} \[0\.\d{3}, 0\.\d{3}\] \(\+0\.\d{3}; steps 0 and 24\), "
    r"length \d\d\.\d → \d\d\.\d tokens; n = 256 prompts, 95% intervals by Wilson", said["held out"],
  )  # fmt: skip
  assert said["events"] == "no alarms" and "went into iterations that were kept" in said["time"]


def test_intervals_are_wilsons_for_single_samples_and_over_prompts_for_several():
  # Agresti and Coull 1998, table: 0 of 10 -> [0, 0.278]; and a proportion of one half
  assert summary.interval(0.0, 0.0, 10, 10) == pytest.approx((0.0, 0.2775), abs=1e-3)
  assert summary.interval(0.5, 0.1, 100, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
  assert summary.interval(0.5, 0.1, 100, 400) == pytest.approx((0.304, 0.696))
  assert summary.interval(0.5, None, None, None) is None


def test_sets_have_a_line_each_and_failures_one(tmp_path):
  row = {f"eval/{name}accuracy": 0.5 for name in ("", "a/", "b/")}
  result = {"reward_errors": 2, "reward_timeouts": 1, "first_error": "boom\nhere"}
  said = dict(summary.summary(read.run(write_run(tmp_path / "run", rows=[{"step": 3} | row], result=result))))
  assert "held out" not in said and said["held out a"] == said["held out b"] == "accuracy 0.500"
  assert said["verifier"] == "2 errors, 1 time-outs; the first: boom here"


# ---- tokens ----


def test_differences_of_log_probs_are_taken_before_they_are_rounded():
  given = {"step": 1, "tokens": ["a", "b"], "logp": [-12.34567, -1.0], "old_logp": [-12.34523, None],
           "sampler_logp": [-12.34524, -1.0]}  # fmt: skip
  record = tokens.compact(json.dumps(given).encode())
  assert record["shift"] == [-0.00044, None] and record["gap"] == [1e-05, None] and record["old_logp"][0] == -12.35
  assert "logp" not in record and "sampler_logp" not in record


def test_numbers_of_tokens_are_short_and_columns_as_long_as_the_text():
  given = SAMPLE | {"logp": [-1.23456789, None], "entropy": None, "weight": [None] * 3}
  record = tokens.compact(json.dumps(given).encode())
  assert record["logp"] == [-1.235, None, None] and record["reward"] == 1 and record["tokens"] == SAMPLE["tokens"]
  assert "entropy" not in record and "weight" not in record and "shift" not in record
  assert tokens.number(1.23456e-5) == 1.2e-05 and tokens.number(True) is None and tokens.number(float("nan")) is None


@pytest.mark.parametrize("sample", [{"step": 1}, {"step": 1, "response": "plain <b>", "tokens": None},
                                    {"step": 1, "tokens": ["a", "b"], "weight": [1.1], "future_kl": None}])  # fmt: skip
def test_samples_may_lack_anything(tmp_path, sample):
  run = write_run(tmp_path / "run", samples=[sample])
  (found,) = page_of(run).data("responses")["samples"]
  assert found["step"] == 1 and len(found["tokens"]) in (1, 2)


def test_responses_are_taken_by_whole_steps_evenly_and_within_the_bound(tmp_path):
  assert tokens.halving(9) == [8, 0, 4, 2, 6, 1, 3, 5, 7] and tokens.halving(1) == [0] and tokens.halving(0) == []
  samples = [SAMPLE | {"step": step} for step in range(1, 101) for _ in range(2)]
  run = read.run(write_run(tmp_path / "run", samples=samples))
  found = tokens.tokens([run], 0.005)
  steps = [s["step"] for s in found["samples"]]
  assert found["total"] == 200 and found["steps"] == 100 and len(json.dumps(found["samples"])) < 6000
  assert steps[0] == 1 and steps[-1] == 100 and steps[0::2] == steps[1::2] and 50 in steps
  assert len(tokens.tokens([run], 1.0)["samples"]) == 200
  assert [s["step"] for s in tokens.tokens([run], 1e-6)["samples"]] == [100]


# ---- size ----


def long_run(folder, steps=500):
  """A run of many steps, its rows those of a real one again and again, with four responses a step."""
  rows = [json.loads(line) for line in (QUICKSTART / "metrics.jsonl").read_text().splitlines()]
  samples = [json.loads(line) for line in (QUICKSTART / "samples.jsonl").read_text().splitlines()]
  steps = range(1, steps + 1)
  vary = lambda row, s: {k: v * (1 + s / 7919) if type(v) is float else v for k, v in row.items()} | {"step": s}
  write_run(
    folder, rows=[rows[0], *(vary(rows[1 + s % (len(rows) - 1)], s) for s in steps)],
    samples=[samples[(4 * s + n) % len(samples)] | {"step": s} for s in steps for n in range(4)],
  )  # fmt: skip
  for name in ("config", "result", "starts"):
    shutil.copy(QUICKSTART / f"{name}.json", folder)
  return folder


def test_a_page_of_five_hundred_steps_is_below_five_megabytes(tmp_path):
  content = pathlib.Path(write.report([long_run(tmp_path / "run")])).read_bytes()
  assert 2e6 < len(content) < 5e6
  data = Page(content.decode()).data("figures")
  assert data["thinned"] == 1 and len(data["tracks"][0]["step"]) == 501


# ---- writing ----


def test_where_the_page_goes(tmp_path):
  run = write_run(tmp_path / "run")
  assert write.report([run]) == run / "report.html"
  assert write.report([run], tmp_path / "a/b") == tmp_path / "a/b/report.html"
  assert write.report([run, run], tmp_path / "c/two.html") == tmp_path / "c/two.html"
  assert sorted(p.name for p in run.iterdir()) == ["metrics.jsonl", "report.html"]


def test_a_watched_page_loads_itself_again_until_the_run_has_ended(tmp_path):
  run, said, seen = write_run(tmp_path / "run", rows=None, config={"seed": 0}, starts=[{"began": 1.0}]), [], []

  def sleep(_):
    found = (run / "report.html").read_text() if (run / "report.html").exists() else ""
    seen.append((re.search(r'data-reload="(\d*)"', found) or [None, None])[1])
    if len(seen) == 1:
      write_run(run, rows=ROWS[:2])
    elif len(seen) == 2:
      write_run(run, rows=ROWS)
    elif len(seen) == 3:
      assert "step 3" in found
      write_run(run, rows=None, starts=[{"began": 1.0, "ended": 2.0}])

  assert write.watch([run], say=said.append, sleep=sleep) == run / "report.html"
  assert seen == [None, "15", "15"] and 'data-reload=""' in (run / "report.html").read_text()
  assert said[0] == f"waiting for the first step of {run}" and "written again as the run goes on" in said[1]


def test_who_stops_watching_finds_a_page_that_stays(tmp_path):
  run, said = write_run(tmp_path / "run", starts=[{"began": 1.0}]), []

  def sleep(_):
    raise KeyboardInterrupt

  write.watch([run], say=said.append, sleep=sleep)
  assert 'data-reload=""' in (run / "report.html").read_text() and said[-1] == "stopped watching; the run goes on"


def command(*flags):
  program = [sys.executable, ROOT / "launch/report.py", *flags]
  done = subprocess.run(program, capture_output=True, text=True, check=False)
  return done.returncode, done.stdout, done.stderr


def test_mistakes_are_one_line_and_code_2(tmp_path):
  run, gone = write_run(tmp_path / "run"), tmp_path / "gone"
  with pytest.raises(ValueError, match="^no --run: name the folder of a run, "):
    write.report([])
  with pytest.raises(ValueError, match="^--out is missing: 2 runs"):
    write.watch([run, run])
  with pytest.raises(FileNotFoundError, match=f"^--run={gone}: no metrics.jsonl there; name "):
    write.watch([gone])
  for flags, message in (([f"--run={gone}"], "no metrics.jsonl there"), ([run], f"a run is named by --run={run}")):
    code, _, said = command(*flags)
    assert code == 2 and message in said and said.startswith("error: ") and said.count("\n") == 1, said
  assert not (run / "report.html").exists()


def test_the_command_writes_the_page_and_the_package_needs_no_jax(tmp_path):
  run = write_run(tmp_path / "run", samples=[SAMPLE])
  assert command(f"--run={run}", f"--out={tmp_path / 'out'}") == (0, f"{tmp_path / 'out/report.html'}\n", "")
  code = f"from fipo_jax.report import write; import sys; print(write.report([{str(run)!r}]), 'jax' in sys.modules)"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
  assert (done.returncode, done.stdout) == (0, f"{run / 'report.html'} False\n"), done.stderr
