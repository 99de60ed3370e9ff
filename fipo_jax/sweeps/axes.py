"""The arms of a sweep from its axes, given by --axis flags or by the get_hyper(hyper) of a config; names for them.

An arm is a dict: field of the config -> its value in that arm.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import re
from collections.abc import Iterable
from typing import Any

OWN = ("seed", "workdir")  # fields that the sweep itself sets
VALUE_CHARACTERS, NAME_CHARACTERS = 40, 150  # file systems allow 255 in the name of a folder


def parse_axis(text: str) -> list[dict[str, str]]:
  """"FIELD=VALUE|VALUE" as one arm a value. Raises ValueError for another form."""
  field, equals, values = text.partition("=")
  if not equals or not re.fullmatch(r"[\w.]+", field):
    raise ValueError(f'--axis={text}: expected "FIELD=VALUE|VALUE", such as "algorithm.half_life_tokens=8|32".')
  return [{bare(field): value} for value in values.split("|")]


def parse_seeds(text: str) -> tuple[int, ...]:
  """A number as that many seeds from 0 on; "3|5|7" as these. Raises ValueError for another form."""
  parts = text.split("|")
  if not all(re.fullmatch(r"[0-9]+", part) for part in parts):
    raise ValueError(f'--seeds={text}: expected how many (5 is 0 to 4), or which, such as "3|5|7".')
  seeds = tuple(range(int(text))) if len(parts) == 1 else tuple(map(int, parts))
  if not seeds or len(set(seeds)) < len(seeds):
    raise ValueError(f"--seeds={text}: expected at least one seed, each once.")
  return seeds


def combine(axes: list[list[dict[str, str]]], *, zipped: bool) -> list[dict[str, str]]:
  """The arms of several axes: every combination, the last axis fastest, or the first values, the second ones, ..."""
  try:
    return Hyper().zipit(axes) if zipped else Hyper().product(axes)
  except ValueError as e:
    raise ValueError(str(e).replace("hyper.zipit", "--zip").replace("hyper.product", "--axis")) from e


def bare(field: str) -> str:
  """The field without the "config." that names of flags begin with."""
  return field.removeprefix("config.")


class _Fixed(list):
  """One arm that a zip repeats as often as it has to."""


class Hyper:
  """What a config's get_hyper(hyper) makes its arms with; every function returns a list of them.

  The interface that configs written for ml_collections know, as far as values can be counted: a range to draw from
  (uniform, interval) is refused by name.
  """

  def sweep(self, name: str, values: Iterable[Any], length: int | None = None) -> list[dict[str, Any]]:
    """An arm for each value of one field, "config." before its name or not."""
    rows = [{bare(name): value.item() if hasattr(value, "item") else value} for value in values]  # NumPy's numbers
    if length not in (None, len(rows)):
      raise ValueError(f"hyper.sweep({name!r}): length={length}, but there are {len(rows)} values.")
    return rows

  def fixed(self, name: str, value: Any, length: int | None = None) -> list[dict[str, Any]]:
    """The same value in `length` arms; in one, which zipit repeats, if that is None."""
    row = self.sweep(name, [value])
    return _Fixed(row) if length is None else row * length

  def product(self, parts: Iterable[Iterable[dict]], name: str | None = None) -> list[dict[str, Any]]:
    """Every combination of an arm from each part, the last part fastest; of no parts one arm, the config as it is."""
    del name  # a label elsewhere; folders are named after values here
    return [_merged(rows, "product") for rows in itertools.product(*_lists(parts, "product"))]

  def zipit(self, parts: Iterable[Iterable[dict]], length: int | None = None) -> list[dict[str, Any]]:
    """The first arms of all parts together, the second ones, and so on. Raises ValueError for different lengths."""
    parts = _lists(parts, "zipit")
    counts = [len(part) for part in parts if not isinstance(part, _Fixed)] or [length or 1]
    if len(set(counts)) > 1 or length not in (None, counts[0]):
      wanted = f", length={length}" if length is not None else ""
      raise ValueError(f"hyper.zipit: lists of {', '.join(map(str, counts))} values{wanted}: expected equal lengths.")
    parts = [part * counts[0] if isinstance(part, _Fixed) else part for part in parts]
    return [_merged(rows, "zipit") for rows in zip(*parts, strict=True)]

  def chainit(self, parts: Iterable[Iterable[dict]]) -> list[dict[str, Any]]:
    """The arms of the first part, then those of the second, and so on."""
    return [row for part in _lists(parts, "chainit") for row in part]

  def discrete(self, values: Iterable[Any]) -> list[Any]:
    """The values themselves, for sweep; categorical is the same."""
    return list(values)

  categorical = discrete

  def boolean(self) -> list[bool]:
    return [False, True]

  def __getattr__(self, name: str):
    known = ", ".join(k for k in vars(Hyper) if not k.startswith("_"))
    raise AttributeError(f"hyper.{name}: arms must be countable; there are {known}.")


def _lists(parts: Iterable[Iterable[dict]], function: str) -> list[list[dict]]:
  """The parts as lists of arms. Raises TypeError for what is none, such as one part instead of a list of them."""
  parts = [part if isinstance(part, list) else list(part) for part in parts]
  for part in parts:
    check_arms(part, f"hyper.{function}")
  return parts


def check_arms(arms: list, where: str) -> None:
  for arm in arms:
    if not isinstance(arm, dict):
      raise TypeError(f"{where}: expected arms as hyper.sweep and the others return them, got {arm!r}.")


def _merged(rows: Iterable[dict[str, Any]], function: str) -> dict[str, Any]:
  arm: dict[str, Any] = {}
  for row in rows:
    if twice := arm.keys() & row.keys():
      raise ValueError(f"hyper.{function}: {min(twice)} is given twice.")
    arm |= row
  return arm


# Names


def folder_names(arms: list[dict[str, Any]], fields: set[str]) -> list[str]:
  """Names such as half_life_tokens=8,clip_high=0.28, no two of them alike, whatever case a file system heeds.

  A name depends on the arm and on the config's fields alone, so arms that are added later leave it as it is: only one
  that would be called the same makes both longer.

  Args:
    arms: each field -> the value that its config holds, so that 8 and 8.0 are one where the field is a float.
    fields: all fields of the config; a field is called by the end of its name that no other has.
  """
  names = [",".join(f"{_short(field, fields)}={_plain(value)}" for field, value in arm.items()) for arm in arms]
  names = [name or "default" for name in names]
  count = collections.Counter(name.casefold() for name in names)
  return [
    f"{name[:NAME_CHARACTERS]}-{_digest(arm)}" if len(name) > NAME_CHARACTERS or count[name.casefold()] > 1 else name
    for name, arm in zip(names, arms, strict=True)
  ]


def sweep_name(stem: str, swept: list[str], fields: set[str]) -> str:
  """That of the file and of the fields that are swept: a value or a seed more leaves it as it is."""
  name = "-".join([stem, *(_short(field, fields) for field in swept)])
  return f"{name[:NAME_CHARACTERS]}-{_digest(name)}" if len(name) > NAME_CHARACTERS else name


def _short(field: str, fields: set[str]) -> str:
  parts = field.split(".")
  for first in reversed(range(len(parts))):
    end = ".".join(parts[first:])
    if sum(f".{other}".endswith(f".{end}") for other in fields) == 1:
      return end
  return field


def _plain(value: Any) -> str:
  """A value in characters that no folder minds, with a few digits of its hash where something else had to go."""
  if isinstance(value, tuple | list):
    return "_".join(map(_plain, value)) or "empty"
  if isinstance(value, float) and value.is_integer():
    value = int(value) if abs(value) < 1e15 else value
  text = str(value)
  plain = re.sub(r"[^A-Za-z0-9_.+-]+", "_", text).strip("_")[-VALUE_CHARACTERS:]  # of a path its end tells more
  return (plain if plain == text else f"{plain}-{_digest(text)}") if text else "empty"


def _digest(value: Any) -> str:
  return hashlib.sha256(repr(value).encode()).hexdigest()[:6]
