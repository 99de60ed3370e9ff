"""Lines for people: a long phase says that it goes on, the innermost alone; bars have the lines above them."""

import threading

import pytest

from fipo_jax import console


@pytest.fixture
def said(monkeypatch):
  lines, heard = [], threading.Event()

  def sink(text):
    lines.append(text)
    heard.set()

  monkeypatch.setattr(console, "GOES_ON_S", (0.01, 0.02))
  monkeypatch.setattr(console, "_print", sink)
  return lines, heard


def test_a_long_phase_goes_on_and_the_innermost_says_so(said):
  lines, heard = said
  with console.phase("outer"):
    with console.phase("inner"):
      assert heard.wait(60)
    assert {line.split(":")[0] for line in lines} == {"inner"}
    heard.clear()
    assert heard.wait(60)  # now the outer one is the innermost
  assert "outer: goes on, 0 s so far" in lines and "inner: goes on, 0 s so far" in lines


def test_a_short_phase_says_nothing_and_bars_speak_for_themselves(said, monkeypatch):
  lines, heard = said
  monkeypatch.setattr(console, "GOES_ON_S", (3600.0,))
  with console.phase("short"):
    pass
  monkeypatch.setattr(console, "GOES_ON_S", (0.0, 0.01))
  above = []
  with console.lines_to(above.append, quiet=True), console.phase("shown as a bar"):
    assert not heard.wait(0.2)
    console.say("a line")
  assert lines == [] and above == ["a line"]
  console.say("after")
  assert lines == ["after"]


def test_a_phase_ends_also_with_an_error(said):
  with pytest.raises(KeyError), console.phase("broken"):
    raise KeyError
  assert console._phases == []
