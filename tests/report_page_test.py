"""The report as a reader sees it: in a headless Chromium, from a file."""

import json
import time

import browser
import pytest
import report_test

from fipo_jax.report import write

PROGRAM = browser.find()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no chromium here; Debian has it as a package")
PANEL = "#groups .panel"
WINDOWS = ((400, False), (1280, False), (1280, True))  # the others are wider, or lighter


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
  with browser.started(PROGRAM, tmp_path_factory.mktemp("profile")) as found:
    yield found


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
  return write.report([report_test.QUICKSTART], tmp_path_factory.mktemp("page"))


def opened(chromium, path, **how):
  """Opens a page, and waits for the figures at its top."""
  chromium.open(path, **how)
  chromium.run("sessionStorage.clear()")
  chromium.run("document.querySelector('#groups .panel')?.scrollIntoView()")
  chromium.wait(f"!document.querySelector('{PANEL}') || document.querySelector('{PANEL}').dataset.lines")
  return chromium


def shown_tokens(chromium):
  return chromium.run("[...document.querySelectorAll('.t')].map(t => t.textContent)")


def place(chromium, what):
  """Left, top, width, height of an element."""
  return chromium.run(
    f"(b => [b.left, b.top, b.width, b.height])(document.querySelector({json.dumps(what)}).getBoundingClientRect())"
  )


def choose(chromium, name, value):
  """Sets a filter as its user would."""
  chromium.run(
    f"(() => {{ const f = document.forms.filters.elements[{name!r}]; f.value = {json.dumps(value)};"
    "f.dispatchEvent(new Event('input', {bubbles: true})); })()"
  )


def test_it_opens_without_errors_and_draws_its_curves(chromium, quickstart):
  page = opened(chromium, quickstart)
  assert page.run(f"document.querySelector('{PANEL}').dataset.lines") == "2"
  # each panel of a group that comes into sight is drawn, with pixels in its canvas
  page.run("document.getElementById('g-Future-KL').scrollIntoView()")
  page.wait("[...document.querySelectorAll('#g-Future-KL .panel')].slice(0, 3).every(p => p.dataset.lines > 0)")
  painted = """[...document.querySelectorAll('#g-Future-KL .panel')].slice(0, 3).map(panel => {
    const below = root => root ? [...root.querySelectorAll('*')].flatMap(e => [e, ...below(e.shadowRoot)]) : [];
    const canvas = below(panel).find(e => e.tagName === 'CANVAS');
    const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    return new Set(Array.from({length: pixels.length / 4}, (_, i) => pixels[4 * i] + 256 * pixels[4 * i + 1])).size;
  })"""
  page.wait(f"{painted}.every(colours => colours > 5)")
  assert page.errors == []


@pytest.mark.parametrize(
  ("width", "dark"), [(400, True), *(pytest.param(*case, marks=pytest.mark.slow) for case in WINDOWS)]
)
def test_it_fits_the_window_and_follows_the_colours_of_the_system(chromium, quickstart, width, dark):
  page = opened(chromium, quickstart, width=width, dark=dark)
  assert page.run("document.documentElement.scrollWidth") <= width
  back = page.run("getComputedStyle(document.body).backgroundColor")
  assert back == ("rgb(16, 20, 27)" if dark else "rgb(246, 247, 249)")
  assert page.errors == []


def test_the_axis_switches_and_one_cursor_and_one_zoom_are_for_all(chromium, quickstart):
  page = opened(chromium, quickstart)
  at = lambda n: page.run(f"document.querySelectorAll('{PANEL}')[{n}].querySelector('.at').textContent")
  value = lambda n: page.run(f"document.querySelectorAll('{PANEL}')[{n}].querySelector('.keys b').textContent")
  last = value(3)
  page.run(f"document.querySelectorAll('{PANEL} .plot')[0].focus()")
  for _ in range(3):
    page.key("ArrowLeft")
  page.wait(f"document.querySelectorAll('{PANEL}')[3].querySelector('.at').textContent.startsWith('step ')")
  assert at(0) == at(3) and value(3) != last
  assert page.run("document.getElementById('whole').hidden")
  page.key("+")
  page.wait("!document.getElementById('whole').hidden")
  page.key("0")
  page.wait("document.getElementById('whole').hidden")
  rows = [json.loads(line) for line in (report_test.QUICKSTART / "metrics.jsonl").read_text().splitlines()]
  for axis, expected in (("tokens", f"tokens {rows[-1]['total/tokens_generated']:,.0f}"), ("seconds", "")):
    page.run(f"document.querySelector('#axis input[value={axis}]').click()")
    page.run(f"document.querySelectorAll('{PANEL} .plot')[0].focus()")
    page.key("ArrowLeft")  # shows the last place
    page.wait(f"!document.querySelector('{PANEL} .at').textContent.startsWith('of ')")  # the note of the panel
    assert at(0).startswith(expected or ("seconds", "minutes")), at(0)
  page.run("document.querySelector('#axis input[value=step]').click()")
  assert page.errors == []


@pytest.mark.slow
def test_a_drag_zooms_and_a_key_hides_its_line(chromium, quickstart):
  page = opened(chromium, quickstart)
  left, top, width, height = place(page, f"{PANEL} .plot")
  page.mouse("mouseMoved", left + width * 0.4, top + height / 2)
  page.wait(f"document.querySelector('{PANEL} .at').textContent.startsWith('step ')")
  page.mouse("mousePressed", left + width * 0.4, top + height / 2)
  for share in (0.5, 0.6, 0.7):
    page.mouse("mouseMoved", left + width * share, top + height / 2)
  page.mouse("mouseReleased", left + width * 0.7, top + height / 2)
  page.wait("!document.getElementById('whole').hidden")
  page.run("document.getElementById('whole').click()")
  page.run(f"document.querySelector('{PANEL} .keys button').click()")
  page.wait(f"document.querySelector('{PANEL}').dataset.lines === '1'")
  assert page.run(f"document.querySelector('{PANEL} .keys button').getAttribute('aria-pressed')") == "false"
  page.run(f"document.querySelector('{PANEL} .keys button').click()")
  assert page.errors == []


def test_filters_colours_and_readings_of_tokens(chromium, quickstart):
  page = opened(chromium, quickstart)
  count = lambda: page.run("document.getElementById('count').textContent")
  assert count() == "16 of 16 responses." and len(shown_tokens(page)) > 10
  choose(page, "right", "0")
  wrong = page.run("document.querySelectorAll('#list li').length")
  assert 0 < wrong < 16 and page.run("document.querySelector('#list button').textContent").startswith("✗ step")
  choose(page, "right", "")
  choose(page, "from", "24")
  assert count().startswith("4 of 16")
  choose(page, "longest", "1")
  assert count().startswith("0 of 16") and shown_tokens(page) == []
  page.run("document.querySelector('#filters [type=reset]').click()")
  page.wait("document.getElementById('count').textContent.startsWith('16 of')")
  choose(page, "to", "1")  # where numbers are large
  painted = "[...document.querySelectorAll('.t')].map(t => t.className + t.style.getPropertyValue('--a')).join()"
  seen = set()
  for colour in ("future_kl", "weight", "weighted", "shift", "entropy", "gap", "mask"):
    choose(page, "colour", colour)
    seen.add(page.run(painted))
  assert len(seen) >= 6  # a mask of ones, as gaps of none, may look alike
  page.run("document.querySelector('.text').focus()")
  page.key("ArrowRight")
  said = page.run("document.getElementById('readout').textContent")
  assert said.startswith("token 1 of")
  assert all(name in said for name in ("F ", "f ", "A·f ", "shift ", "entropy ", "sampler gap ", "in the loss yes"))
  page.run("document.getElementById('beside').click()")  # all of a step are of one prompt
  assert page.run("document.querySelectorAll('#texts .view').length") == 4
  page.run("document.getElementById('beside').click()")
  top = page.run("[...document.querySelectorAll('#top tbody td:nth-of-type(2)')].map(t => Number(t.textContent))")
  assert len(top) > 5 and top == sorted(top, reverse=True)
  page.run("document.querySelector('#top button').click()")
  assert page.run("document.querySelectorAll('.t.here').length") == 1
  assert page.errors == []


@pytest.mark.slow
def test_the_same_prompt_is_laid_side_by_side_across_steps(chromium, tmp_path):
  samples = [{"step": step, "set": name, "prompt": f"{name} {n}", "tokens": [f"at {step}"], "sampler_logp": [-1.0]}
             for step in (10, 20, 30) for name in ("aime", "own") for n in (1, 2)]  # fmt: skip
  trained = [{"step": step, "prompt": f"new {step}", "tokens": ["x"], "future_kl": [1.0]} for step in (10, 20, 30)]
  run = report_test.write_run(tmp_path / "run", samples=sorted(samples + trained, key=lambda s: s["step"]))
  page = opened(chromium, write.report([run]))
  choose(page, "set", "aime")
  assert page.run("document.getElementById('count').textContent") == "6 of 15 responses."
  page.run("document.getElementById('beside').click()")
  heads = page.run("[...document.querySelectorAll('#texts .view h4')].map(h => h.textContent)")
  assert [h.split(" · ")[0] for h in heads] == ["step 10", "step 20", "step 30"] and all("aime" in h for h in heads)
  assert len(set(page.run("[...document.querySelectorAll('#texts .prompt')].map(h => h.textContent)"))) == 1
  choose(page, "set", "training")
  assert page.run("document.querySelectorAll('#texts .view').length") == 1 and page.errors == []


HOSTILE = [
  "<script>document.title = 'hacked'</script>", "</script><script>document.title = 'hacked'</script>",
  "<img src=x onerror=\"document.title = 'hacked'\">", "<style>body { display: none }</style>", "<!--", "-->", "]]>",
  "\u202eevil\u202c", "\u2066isolated", "\u200f", "\u0000\u0007\u001b[31m", "\ud800", "javascript:alert(1)", "${1}",
  "$title", "\u2028", "</pre></section><h1>hacked</h1>", "&lt;b&gt;", "\U000e0041",
]  # fmt: skip


def test_what_a_model_says_is_inert(chromium, tmp_path):
  sample = {"step": 1, "tokens": HOSTILE, "prompt": "".join(HOSTILE), "answer": HOSTILE[0], "set": HOSTILE[2],
            "future_kl": [1.0] * len(HOSTILE), "weight": [1.1] * len(HOSTILE), "stop_reason": HOSTILE[2]}  # fmt: skip
  rows = [{"step": 1, "accuracy": 0.5, HOSTILE[0]: 2.0, "alarms": [HOSTILE[2]], "changed": [HOSTILE[1]]}]
  run = report_test.write_run(tmp_path / "run", rows=rows, samples=[sample], config={"algorithm": {"name": HOSTILE[2]}})
  page = opened(chromium, write.report([run]))
  page.run("document.querySelector('details').open = true; document.getElementById('tokens').scrollIntoView()")
  page.run("document.querySelector('.text').focus()")
  page.key("ArrowRight")
  assert page.run("document.title") == "run" and page.run("document.body.innerText").count("hacked") >= 3
  assert page.run("['h1', 'img'].map(tag => document.querySelectorAll(tag).length)") == [1, 0]
  assert page.run("getComputedStyle(document.body).display") == "block"
  said = shown_tokens(page)
  assert len(said) == len(HOSTILE) and said[0] == HOSTILE[0] and said[13] == "${1}"
  assert said[7] == "⟨U+202E⟩evil⟨U+202C⟩" and said[9] == "⟨U+200F⟩" and said[10].startswith("⟨U+0000⟩⟨U+0007⟩⟨U+001B⟩")
  assert said[15] == "⟨U+2028⟩" and said[18] == "⟨U+E0041⟩"
  unseen = "/[\\u200b-\\u200f\\u202a-\\u202e\\u2060-\\u206f]/"
  assert not page.run(f"{unseen}.test(document.getElementById('tokens').textContent)")
  assert page.errors == []


@pytest.mark.slow
def test_twenty_thousand_tokens_are_drawn_as_they_are_wanted(chromium, tmp_path):
  n = 20_000
  numbers = [((i * 37) % 101 - 50) / 50 for i in range(n)]
  columns = dict.fromkeys(("logp", "old_logp", "sampler_logp", "entropy", "future_kl", "weight"), numbers)
  sample = {"step": 1, "tokens": [f"w{i} " for i in range(n)], "reward": 1.0, "advantage": 0.5, **columns}
  page = opened(chromium, write.report([report_test.write_run(tmp_path / "run", samples=[sample])]))
  begun = time.monotonic()
  assert 0 < len(shown_tokens(page)) < 4000
  page.run("document.querySelector('.text').scrollTo(0, 1e9)")
  page.wait("document.querySelectorAll('.t').length >= 800")
  page.run("document.querySelector('.view canvas').scrollIntoView()")
  left, top, width, _ = place(page, ".view canvas")
  for kind in ("mousePressed", "mouseReleased"):
    page.mouse(kind, left + 0.75 * width, top + 5)
  page.wait("document.querySelector('.t.here')?.dataset.i > 14000")
  assert "token 15" in page.run("document.getElementById('readout').textContent")
  choose(page, "colour", "entropy")
  assert time.monotonic() - begun < 60 and page.errors == []


@pytest.mark.slow
def test_runs_are_laid_over_each_other(chromium, tmp_path):
  runs = []
  for name, seed, rate in (("a_seed0", 0, 1.0), ("a_seed1", 1, 1.0), ("b", 0, 2.0)):
    value = lambda s, shift=0.02 * seed + 0.1 * rate: 0.1 * s + shift
    rows = [{"step": s, "accuracy": value(s), "alarms": ["x"] * (s == 2)} for s in range(1, 6)]
    config = {"seed": seed, "optimizer": {"learning_rate": rate}}
    runs.append(report_test.write_run(tmp_path / name, rows=rows, config=config))
  page = opened(chromium, write.report(runs, tmp_path / "out.html"))
  keys = page.run(f"[...document.querySelector('{PANEL}').querySelectorAll('.keys button')].map(k => k.textContent)")
  assert keys == ["a (2 seeds) 0.61", "b 0.7"] and page.run(f"document.querySelector('{PANEL}').dataset.lines") == "2"
  assert page.run("document.getElementById('arms').textContent") == "a (2 seeds): mean, lowest to highestb"
  assert page.run("document.getElementById('kinds').textContent") == "alarm" and page.errors == []


@pytest.mark.slow
def test_a_watched_page_loads_itself_again_and_keeps_its_axis(chromium, tmp_path, monkeypatch):
  monkeypatch.setattr("fipo_jax.report.page.RELOAD_S", 3)
  page = opened(chromium, write.report([report_test.QUICKSTART], tmp_path, watched=True))
  chosen = "document.querySelector('#axis input[value=seconds]')"
  page.wait(f"document.querySelector('#sentence a') && (window.before = true, {chosen}.click(), true)")
  page.wait(f"!window.before && document.readyState === 'complete' && {chosen}.checked")
  page.wait("document.getElementById('reload').textContent.includes('loads again every 3 s')")
  page.open(write.report([report_test.QUICKSTART], tmp_path))
  assert page.run("document.getElementById('reload').textContent") == ""
