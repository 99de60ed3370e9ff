"""Every experiment file gives a complete, locked, valid config."""

import pathlib

import pytest

from fipo_jax import command_line, config, prompts
from fipo_jax.data import SOURCES

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted(p.relative_to(ROOT) for p in (ROOT / "experiments").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_valid(path, monkeypatch, tmp_path):
  monkeypatch.chdir(ROOT)
  c = command_line.load_experiment(str(path))
  config.validate(c)
  if SOURCES[c.data.source].is_file:  # the user's to name
    with pytest.raises(ValueError, match="data.path=''"):
      prompts.check(c)
    (tmp_path / "prompts.parquet").touch()
    c.data.path = str(tmp_path / "prompts.parquet")
    for named in c.eval.sets.values():
      named.path = c.data.path
  prompts.check(c)
  assert c.is_locked
  assert set(c.keys()) == set(config.default().keys())


def test_there_are_experiments():
  assert len(FILES) >= 7
