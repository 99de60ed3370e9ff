"""docs/configuration.md is made from fipo_jax/config.py: values of `default()`, words of its comments.

    python tests/configuration_test.py --write      makes it anew
"""

import ast
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))

from ml_collections import ConfigDict  # noqa: E402

from fipo_jax import changes, config  # noqa: E402

PAGE = ROOT / "docs/configuration.md"
HEAD = """# Configuration: every field

For whoever wants to know what can be set, and to what. Made from `fipo_jax/config.py` by `python
tests/configuration_test.py --write`; a test holds them equal.

A run's config is complete: a field that is not here does not exist, and no code has a default of its own. An
experiment is a Python file whose `get_config()` takes `config.default()` and changes a handful of fields; any field
is also a flag of every command that takes `--config`:

    python launch/run.py --config=experiments/quickstart.py --config.workdir=runs/seed1 --config.seed=1

Defaults are those of FIPO on Qwen2.5-32B where the paper gives one. What must fit together (batches and rows, prompts
and limits, devices and mesh) is checked before anything is computed, and said in one line with a value that would do.
Tables of names ("a row of ...") lie in the `__init__.py` of the folder: [the code](code.md). Which fields may change
when a run goes on: [operating](operating.md#starting-again).
"""


def comments(source: str, name: str, prefix: str) -> dict[str, tuple[str, str]]:
  """Field -> (the comment lines above it, the comment behind it), in their order, of the function or class `name`.

  prefix: what fields begin with, and is taken off.
  """
  (body,) = [node for node in ast.walk(ast.parse(source)) if getattr(node, "name", "") == name]
  found, above = {}, []
  for line in source.splitlines()[body.lineno : body.end_lineno]:
    text, field = line.strip(), re.match(rf"\s*{re.escape(prefix)}([\w.]+)(?:: \w+)? = ", line)
    if text.startswith("#"):
      above.append(text.lstrip("# "))
    elif field:
      behind = re.search(r"  # (.*)$", line)
      found[field[1]] = (" ".join(above), behind[1] if behind else "")
      above = []
    elif not text:
      above = []
  return found


def words() -> dict[str, tuple[str, str]]:
  """What is said of each field and section."""
  limits = comments((ROOT / "fipo_jax/alarms.py").read_text(), "Limits", "")
  fields = comments((ROOT / "fipo_jax/config.py").read_text(), "default", "c.")
  return fields | {f"alarms.{name}": said for name, said in limits.items()}


def page() -> str:
  """A table per section. What stands above a field that has words of its own is of those that follow, and has a row."""
  default, said = config.default(), words()
  lines = [HEAD]
  for section in ["", *(name for name in said if name in default and isinstance(default[name], dict | ConfigDict))]:
    lines.append(f"\n## {section or 'the run'}\n")
    if section and any(said[section]):
      lines.append(f"{' '.join(filter(None, said[section]))}.\n")
    lines += ["| field | default | |", "|---|---|---|"]
    for field, (above, behind) in said.items():
      if field.startswith(f"{section}.") if section else field in default and "." not in field:
        value = config.at(default, field)
        if isinstance(value, ConfigDict):
          if len(value) or field == section or not section:
            continue  # a section has its own table, or its fields their own rows
          value = {}
        if above and behind:
          lines.append(f"| | | *{_cell(above)}* |")
        lines.append(f"| `{field}` | `{value!r}` | {_cell(behind or above)} |")
  return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
  return text.replace("|", r"\|")


def test_the_page_is_the_config():
  assert PAGE.read_text() == page(), "python tests/configuration_test.py --write"


def test_comments_above_and_behind():
  source = '''
class Limits:
  """Words."""

  # Shared.
  steps: int = 10  # how many
  # A group of
  # two lines
  low: float = 0.1
  high: float = 0.2  # nats (0 = off)

  def check(self):
    pass
'''
  found = comments(source, "Limits", "")
  assert found == {
    "steps": ("Shared.", "how many"), "low": ("A group of two lines", ""), "high": ("", "nats (0 = off)"),
  }  # fmt: skip


def test_every_field_has_its_row_and_its_words():
  rows = dict(re.findall(r"^\| `([\w.]+)` \| `.*?` \| (.*) \|$", PAGE.read_text(), re.MULTILINE))
  assert sorted(rows) == sorted(changes.flat(config.default().to_dict())) and len(rows) > 150
  assert [field for field, text in rows.items() if not text.strip()] == []


if __name__ == "__main__":
  if sys.argv[1:] != ["--write"]:
    sys.exit("usage: python tests/configuration_test.py --write")
  PAGE.write_text(page())
