"""The report of a run."""

import base64
import html.parser
import json
import os
import struct
import subprocess
import sys

import pytest

from fipo_jax import report


def write_run(folder, *, rows=None, samples=None, result=None):
  folder.mkdir(exist_ok=True)
  rows = rows if rows is not None else [
    {"step": 0, "eval/accuracy": 0.1, "eval/response_tokens": 30.0},
    {"step": 1, "reward": 0.1, "accuracy": 0.2, "response_length": 30.5, "entropy": 1.5,
     "weight_mean": 1.0, "weight_std": 0.1, "seconds/rollout": 2.0, "seconds/update": 3.0,
     "minibatch/policy_kl": [0.0, 0.1], "sampler_gap_mean": 0.001},
    {"step": 2, "reward": None, "accuracy": 0.3, "weight_mean": 1.01, "nonfinite": ["reward"]},
  ]  # fmt: skip
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  if samples is not None:
    (folder / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
  if result is not None:
    (folder / "result.json").write_text(json.dumps(result))
  return folder


FEW = [{"step": 1, "loss": 0.5}]
SAMPLE = {
  "step": 2, "prompt": "1<2 & 3?", "response": "ab</pre>c", "answer": "6", "reward": 1.0,
  "accuracy": 1.0, "tokens": ["ab", "</pre>", "c"], "logp": [-0.5, -0.25, -1.0],
  "future_kl": [0.5, -2.0, 0.0], "weight": [1.1, 0.5, 1.0],
}  # fmt: skip


class Page(html.parser.HTMLParser):
  """Spans with their text, images, and tags left open."""

  def __init__(self, text):
    super().__init__()
    self.spans, self.images, self.open, self.words = [], [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    if tag == "img":
      self.images.append(dict(attrs))
    elif tag not in ("meta", "input", "html"):
      self.open.append(tag)
    if tag == "span":
      self.spans.append((dict(attrs), ""))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.words.append(data)
    if self.open and self.open[-1] == "span":
      self.spans[-1] = (self.spans[-1][0], self.spans[-1][1] + data)


def png_size(data):
  assert data[:8] == b"\x89PNG\r\n\x1a\n"
  return struct.unpack(">II", data[16:24])


def test_report_of_a_whole_run(tmp_path):
  run = write_run(
    tmp_path / "run", samples=[SAMPLE], result={"seed": 3, "after": {"accuracy": 0.123456789}}
  )
  assert report.write_report(run) == run / "report.html"
  width, height = png_size((run / "report.png").read_bytes())
  assert width > 1000 and height > 500
  page = Page((run / "report.html").read_text())
  assert page.open == []
  kind, data = page.images[0]["src"].split(",")
  assert kind == "data:image/png;base64"
  assert base64.b64decode(data) == (run / "report.png").read_bytes()
  text = "\n".join(page.words)
  assert "after.accuracy\n0.123457" in text and "steps 0 to 2; 1 samples" in text
  assert "1<2 & 3?" in text
  assert {p.name for p in run.iterdir()} == {
    "metrics.jsonl", "samples.jsonl", "result.json", "report.png", "report.html"
  }  # fmt: skip


def test_where_the_time_went_is_told_in_shares(tmp_path):
  spent = {"productive_s": 1500.0, "lost_s": 200.0, "starting_s": 50.0, "waiting_s": 240.0, "other_s": 10.0}
  goodput = spent | {"share": 0.75, "wall_s": 2000.0, "starts": 3, "lost_steps": 4}
  page = Page(report.write_report(write_run(tmp_path / "run", result={"goodput": goodput})).read_text())
  words = "\n".join(page.words)
  assert page.open == [] and "2,000 s since the first of 3 start(s); 4 iterations were made again." in words
  assert "iterations that were kept\n1,500 s\n75.0%" in words and "without a process\n240 s\n12.0%" in words
  assert "goodput.share" not in words


def test_tokens_carry_their_numbers_and_colours(tmp_path):
  page = Page(
    report.write_report(write_run(tmp_path / "run", rows=FEW, samples=[SAMPLE])).read_text()
  )
  tokens = [span for span in page.spans if "title" in span[0]]
  assert [text for _, text in tokens] == ["ab", "</pre>", "c"]
  assert tokens[0][0]["title"] == "log p -0.5, F 0.5, f 1.1"
  # f = 1.1 is half of the full red, 0.5 beyond the full blue; F = 0.5 nats half, -2 beyond
  assert [attrs["style"] for attrs, _ in tokens] == [
    "--w:rgba(214,69,65,0.35);--f:rgba(214,69,65,0.35)",
    "--w:rgba(44,110,203,0.70);--f:rgba(44,110,203,0.70)",
    "--w:transparent;--f:transparent",
  ]


@pytest.mark.parametrize(
  "sample",
  [
    {"step": 1},
    {"step": 1, "response": "plain <b>", "tokens": None},
    {"step": 1, "tokens": ["a", "b"], "weight": [1.1], "future_kl": None, "logp": [None, -1.0]},
  ],
)
def test_samples_may_lack_anything(tmp_path, sample):
  page = Page(
    report.write_report(write_run(tmp_path / "run", rows=FEW, samples=[sample])).read_text()
  )
  assert page.open == []
  assert "".join(page.words).count("step 1") == 1


def test_each_quantity_has_its_panel(tmp_path):
  rows, bad = report.read_lines(write_run(tmp_path / "run") / "metrics.jsonl")
  assert bad == 0
  assert {title: sorted(lines) for title, _, lines in report.found_panels(rows)} == {
    "Reward and accuracy": ["accuracy", "eval/accuracy", "reward"],
    "Response length": ["eval/response_tokens", "response_length"],
    "Entropy": ["entropy"],
    "Future-KL weight: mean, and one standard deviation": ["weight_mean"],
    "Sampler against trainer": ["sampler_gap_mean"],
    "Time": ["seconds/rollout", "seconds/update"],
    "policy_kl, by mini-batch": ["mini-batch 1", "mini-batch 2"],
  }


def test_panels_hold_what_exists_only():
  rows = [
    {"step": 1, "loss": 1.0},
    {"step": 2},
    {"step": 3, "loss": None},
    {"step": 4, "loss": 2.0},
  ]
  assert report.found_panels(rows) == [("Loss", "", {"loss": ([1, 4], [1.0, 2.0], None)})]


def test_named_evaluation_sets_have_panels_of_their_own():
  rows = [{"step": 1, "eval/accuracy": 0.5, "eval/a/accuracy": 0.5, "eval/b/accuracy": 0.2, "eval/b/accuracy_se": 0.1}]
  panels = {title: sorted(lines) for title, _, lines in report.found_panels(rows)}
  assert panels == {
    "Reward and accuracy": ["eval/accuracy"], "Evaluation sets: accuracy": ["eval/a/accuracy", "eval/b/accuracy"],
  }  # fmt: skip


def test_mini_batches_are_a_line_each():
  rows = [{"step": 1, "minibatch/kl": [0.0, 1.0]}, {"step": 2, "minibatch/kl": [None, 3.0, 4.0]}]
  ((title, _, lines),) = report.found_panels([*rows, {"step": 3}, {"step": 4, "minibatch/kl": 5}])
  assert title == "kl, by mini-batch"
  assert lines == {
    "mini-batch 1": ([1], [0.0], None),
    "mini-batch 2": ([1, 2], [1.0, 3.0], None),
    "mini-batch 3": ([2], [4.0], None),
  }
  many = [{"step": 1, "minibatch/kl": list(range(64))}]
  ((_, _, lines),) = report.found_panels(many)
  assert [y for _, (y,), _ in lines.values()] == [0, 13, 25, 38, 50, 63]


def test_band_is_the_standard_deviation_of_the_same_step():
  rows = [{"step": 1, "weight_mean": 1.0}, {"step": 2, "weight_mean": 1.1, "weight_std": 0.2}]
  ((_, _, lines),) = report.found_panels(rows)
  assert lines == {"weight_mean": ([1, 2], [1.0, 1.1], [0.0, 0.2])}


def test_a_run_of_evaluations_alone_and_one_of_nothing_known_are_drawn(tmp_path):
  for name, rows in (("e", [{"step": 0, "eval/accuracy": 0.5}]), ("n", [{"step": 1, "other": 1}])):
    run = write_run(tmp_path / name, rows=rows)
    report.write_report(run)
    png_size((run / "report.png").read_bytes())


def test_half_written_lines_are_left_out_and_counted(tmp_path):
  run = write_run(tmp_path / "run", rows=[{"step": 1, "loss": 1.0}])
  with open(run / "metrics.jsonl", "a") as file:
    file.write('{"step": 2, "lo')
  assert "1 unreadable lines were left out" in report.write_report(run).read_text()


def test_many_samples_are_thinned_evenly():
  samples = [{"step": i} for i in range(500)]
  picked = [s["step"] for s in report.pick(samples, 5)]
  assert picked == [0, 125, 250, 374, 499]
  assert report.pick(samples[:5], 5) == samples[:5]


def test_out_is_made_and_the_run_left_alone(tmp_path):
  run = write_run(tmp_path / "run", rows=FEW)
  assert report.write_report(run, tmp_path / "a" / "b") == tmp_path / "a" / "b" / "report.html"
  assert [p.name for p in run.iterdir()] == ["metrics.jsonl"]


def test_user_mistakes_are_one_line(tmp_path, capsys):
  assert report.main([str(tmp_path / "gone")]) == 1
  assert capsys.readouterr().err == (
    f"workdir={tmp_path / 'gone'} has no metrics.jsonl; name the folder of a run.\n"
  )
  assert report.main([str(write_run(tmp_path / "empty", rows=[]))]) == 1
  assert "holds no line that can be read" in capsys.readouterr().err
  run = write_run(tmp_path / "run")
  (run / "result.json").write_text("{")
  assert report.main([str(run)]) == 1
  assert "result.json is not JSON" in capsys.readouterr().err
  assert not (run / "report.html").exists()


def test_runs_as_a_script_without_jax(tmp_path):
  """As a script, its folder must not hide Python's own `types`; and it needs no JAX."""
  run = write_run(tmp_path / "run", rows=FEW, samples=[SAMPLE])
  (tmp_path / "jax.py").write_text("raise ImportError('jax was imported')\n")
  inherited = filter(None, [os.environ.get("PYTHONPATH")])  # where Bazel keeps the packages
  done = subprocess.run(
    [sys.executable, report.__file__, run],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *inherited])},
    check=False,
  )
  assert (done.returncode, done.stdout.strip()) == (0, str(run / "report.html")), done.stderr


def test_attempts_that_were_rolled_back_and_alarms_are_drawn(tmp_path, monkeypatch):
  rows = [{"step": s, "accuracy": 0.5, "policy_kl": 0.001, "alarms": []} for s in (1, 2, 3)]
  run = write_run(tmp_path / "run", rows=[*rows[:2], rows[2] | {"changed": ["optimizer.learning_rate: 1 -> 2"]}])
  gone = [{"step": s, "accuracy": 0.1, "policy_kl": 0.01 * s, "alarms": ["collapse"] * (s == 4)} for s in (3, 4)]
  (run / "metrics.rollback1.jsonl").write_text("".join(json.dumps(r) + "\n" for r in gone))
  drawn = {}
  real = report.draw
  monkeypatch.setattr(report, "draw", lambda panels, **more: (drawn.update(more), real(panels, **more))[1])
  report.write_report(run)
  assert drawn["marks"] == [(4, "collapse"), (3, "changed: optimizer.learning_rate: 1 -> 2")]
  panels = {title: lines for title, _, lines in drawn["earlier"][0]}
  assert panels["Policy KL"]["policy_kl"][:2] == ([3, 4], [0.03, 0.04])
  plain = write_run(tmp_path / "plain", rows=rows)
  report.write_report(plain)
  assert (run / "report.png").read_bytes() != (plain / "report.png").read_bytes()
