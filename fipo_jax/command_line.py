"""Command lines: which experiment, which overrides, and each mistake in one line.

`--config` names an experiment file or the config.json of a run, `--run=DIR` the run in a folder; overrides are
`--config.FIELD=VALUE`, read by ml_collections.
"""

from __future__ import annotations

import copy
import os
import pathlib
import re
import sys

import ml_collections
from absl import app, flags
from ml_collections import config_flags

from fipo_jax import changes, config, paths, processes

ROOT = pathlib.Path(__file__).resolve().parent.parent
HELP = ("-h", "-help", "--help", "--helpfull", "--helpshort", "-helpfull", "-helpshort")


# What flags, and fields that an experiment does not have, end in; their messages stand for themselves.
PLAIN = (AttributeError, KeyError, TypeError, ValueError, OSError, flags.Error)


FIELDS = "\nFields of the config, as --config.FIELD=VALUE, are listed with units and reasons in fipo_jax/config.py."


class Mistake(ValueError):
  """A command line that cannot be."""


def given(argv: list[str]) -> dict[str, str]:
  """Flags of a command line that is not parsed yet: name -> what follows its first "=", "" where there is none."""
  return {name: value for a in argv[1:] if a.startswith("-") for name, _, value in [a.lstrip("-").partition("=")]}


def prepare(argv: list[str], program: str) -> list[str]:
  """The command line as absl and ml_collections read it. program: its docstring, for --help, which ends it with code 0.

  Raises: Mistake.
  """
  _help(argv, program, FIELDS)
  found, named = [], False
  for argument in argv:
    name, _, value = argument.lstrip("-").partition("=")
    if argument.startswith("-") and name == "run":
      folder = paths.of(value)
      if not paths.is_file(folder / "config.json"):
        raise Mistake(f"--run={value}: no run there; expected a folder with config.json.")
      found += [_experiment(str(folder / "config.json")), f"--config.workdir={value}"]
      named = True
    elif argument.startswith("-") and name == "config" and "=" in argument:
      found.append(_experiment(value))
      named = True
    else:
      found.append(argument)
      named |= name == "config"
  if not named:
    raise Mistake("no --config: name an experiment, such as --config=experiments/quickstart.py, or --run=DIR.")
  return found


def _experiment(path: str) -> str:
  """The flag that makes ml_collections load it."""
  if paths.is_remote(path):
    if not path.endswith(".json") or not paths.is_file(paths.of(path)):
      raise Mistake(f"--config={path}: no such file; of a bucket, expected the config.json of a run.")
    return f"--config={pathlib.Path(__file__).with_name('saved.py')}:{path}"
  file = path if os.path.exists(path) else path.split(":")[0]  # what follows a colon goes to get_config
  if not os.path.isfile(file):
    near = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "experiments").glob("*.py"))
    raise Mistake(f"--config={path}: no such file; there are {', '.join(near)}.")
  if file.endswith(".json"):
    return f"--config={pathlib.Path(__file__).with_name('saved.py')}:{os.path.abspath(file)}"
  if not file.endswith(".py"):
    raise Mistake(f"--config={path}: expected an experiment (a .py file with get_config) or the config.json of a run.")
  return f"--config={path}"


def parse(argv: list[str], program: str) -> list[str]:
  """Parses all flags; returns what is no flag. Raises: Mistake, in one line, for whatever is wrong with them."""
  argv = prepare(argv, program)
  _check_overrides(argv)
  try:
    app.define_help_flags()
    sys.argv[:] = argv  # where ml_collections looks for overrides
    rest = flags.FLAGS(argv)
    # A file that cannot be loaded only says so when a field of it is asked for.
    if not flags.FLAGS.config.workdir:
      raise Mistake("workdir='': name the folder that the run writes to.")
    return rest
  except Exception as e:  # an experiment is a program, and raises what it likes
    raise Mistake(_said(e)) from e


def plain(argv: list[str]) -> list[str]:
  """absl's parser for programs that need no config: a mistake in the flags is one line, and ends the program.

  Where a config is given all the same, it is read as by `parse`.
  """
  program = sys.modules["__main__"].__doc__ or ""
  _help(argv, program)
  try:
    if any(name.partition(".")[0] == "config" for name in given(argv)):
      return parse(argv, program)
    app.define_help_flags()
    return flags.FLAGS(argv)
  except (Mistake, flags.Error) as error:
    fail(_said(error))


def _help(argv: list[str], program: str, more: str = "") -> None:
  """On --help prints the program's docstring and flags, and ends it with code 0."""
  if any(argument in HELP for argument in argv[1:]):
    print(f"{program.strip()}\n\nFlags:")
    print(flags.FLAGS.module_help(sys.modules["__main__"]).strip() or flags.FLAGS.main_module_help())
    if more:
      print(more)
    sys.exit(0)


def fail(message: str, *, code: int = processes.EXIT_MISTAKE) -> None:
  """Ends the program with what is wrong, said in one line."""
  processes.say("error: " + " ".join(message.split()))
  sys.exit(code)


def experiment() -> str:
  """The file that --config names, after `parse`."""
  return config_flags.get_config_filename(flags.FLAGS["config"])


def in_repository() -> str:
  """The same as an image has it: relative to the repository. Raises Mistake for one that is elsewhere."""
  path = experiment()
  file, colon, rest = path.partition(":")
  try:
    inside = pathlib.Path(file).resolve().relative_to(ROOT)
  except ValueError:
    raise Mistake(
      f"--config={path}: not in the repository, so the image does not have it; put it into experiments/."
    ) from None
  if rest.endswith(".json"):
    raise Mistake(f"--config={rest}: name the experiment; the pod has no copy of that file.")
  return f"{inside}{colon}{rest}"


def as_given() -> tuple[str, ...]:
  """Fields of the config as the command line has them. Raises Mistake for --config.FIELD VALUE."""
  found = [a for a in sys.argv[1:] if a.lstrip("-").startswith("config.")]
  if short := [a for a in found if "=" not in a]:
    raise Mistake(f"{short[0]}: write it as {short[0]}=VALUE.")
  return tuple("--" + a.lstrip("-") for a in found)


def overrides() -> dict[str, object]:
  """The fields that were set on the command line, after `parse`."""
  return config_flags.get_override_values(flags.FLAGS["config"])


def check_fields(flag: str, names: list[str]) -> None:
  """Raises Mistake for a name that is neither a field nor a section of the config."""
  known = changes.flat(config.default().to_dict())
  for name in names:
    if name not in known and not any(field.startswith(f"{name}.") for field in known):
      raise Mistake(f"{flag}={name}: no such field{changes.nearest(name, known) or '.'}")


def _check_overrides(argv: list[str]) -> None:
  default = config.default()
  known = changes.flat(default.to_dict())
  for argument in argv[1:]:
    if not argument.startswith(("--config.", "-config.")):
      continue
    name, given, value = argument.lstrip("-").removeprefix("config.").partition("=")
    if name in known:
      wanted = known[name]
      if given and type(wanted) is int and not _is_whole(value):
        raise Mistake(f"--config.{name}={value}: expected a whole number, such as {wanted or 1}.")
      continue
    if any(field.startswith(f"{name}.") for field in known):
      raise Mistake(f"--config.{name}: a section; name one of its fields, as --config.{name}.FIELD=VALUE.")
    free = [field for field, value in known.items() if name.startswith(f"{field}.") and value == {}]
    if not free:
      raise Mistake(f"--config.{name}: no such field{changes.nearest(name, known) or '.'}")


def _is_whole(text: str) -> bool:
  try:
    int(text)
  except ValueError:
    return False
  return True


def _said(error: BaseException) -> str:
  """The first line that tells what is wrong, without the class of a library's error."""
  lines = [line.strip() for line in str(error.args[0] if error.args else error).splitlines() if line.strip()]
  if any(line.startswith("Traceback ") for line in lines):  # ml_collections puts that of get_config into its message
    return re.sub(r"^(ValueError|\w*Error(?=: --config)): ", "", lines[-1])
  text = " ".join(lines)[:400] or type(error).__name__
  return text if isinstance(error, PLAIN) else f"the experiment cannot be read: {type(error).__name__}: {text}"


def load_experiment(path: str) -> ml_collections.ConfigDict:
  """The config of an experiment file; a relative path is looked for here and in the project."""
  file = next((file for file in (pathlib.Path(path), ROOT / path) if file.is_file()), None)
  if file is None:
    raise ValueError(f"model.base_experiment={path!r}: no such file, here or in {ROOT}.")
  module = {"__file__": str(file), "__name__": "experiment"}
  exec(compile(file.read_text(), str(file), "exec"), module)  # a config is a program
  return copy.deepcopy(module["get_config"]())
