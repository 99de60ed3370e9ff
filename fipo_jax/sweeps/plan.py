"""What a sweep runs: a sweep file, or a config with axes, to a checked Sweep, and that to jobs with their flags."""

from __future__ import annotations

import dataclasses
import difflib
import operator
import os
import pathlib
import re
import runpy
import sys
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from fipo_jax import changes
from fipo_jax.sweeps import axes

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Rows of a sweep file; COMMON alone may be left out.
FIELDS = ("EXPERIMENT", "SEEDS", "ARMS", "BASELINE", "COMMON")
ARM = r"[\w+-][\w.+-]*"  # a folder's name, in a sweep file
# What a file of the user's may raise: it is a program.
USER_ERRORS = (
  ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, SyntaxError, TypeError,
  ValueError, OSError,
)  # fmt: skip


@dataclasses.dataclass
class Sweep:
  """A checked sweep. common: overrides of all arms, field -> text of its flag. arms: name -> its own ones."""

  name: str
  experiment: str
  seeds: tuple[int, ...]
  common: dict[str, str]
  arms: dict[str, dict[str, str]]
  baseline: str


@dataclasses.dataclass
class Job:
  """A process to run: its name in messages, its flags, its config. seed: -1 for a base model."""

  arm: str
  seed: int
  flags: list[str]
  cfg: ml_collections.ConfigDict

  @property
  def name(self) -> str:
    return f"{self.arm} seed {self.seed}" if self.seed >= 0 else self.arm

  @property
  def workdir(self) -> pathlib.Path:
    return pathlib.Path(self.cfg.workdir)

  @property
  def command(self) -> list[str]:
    return [sys.executable, str(ROOT / "launch/run.py"), *self.flags]


# A sweep file


def overrides_of(arguments: list[str]) -> dict[str, str]:
  """--config.FIELD=VALUE arguments as field -> value."""
  found = {}
  for argument in arguments:
    match = re.fullmatch(r"--config\.([\w.]+)=(.*)", argument, re.DOTALL)
    if not match:
      raise ValueError(f"unexpected argument {argument!r}: fields are given as --config.FIELD=VALUE.")
    found[match[1]] = match[2]
  return found


def read_sweep(path: str, extra: dict[str, str]) -> Sweep:
  """The sweep of a file with overrides for all runs added; everything that can be wrong with its form is refused."""
  if not os.path.isfile(path):
    raise ValueError(f"--sweep={path!r}: no such file.")
  rows = {k: v for k, v in run_file(path).items() if k.isupper() and not k.startswith("_")}
  for name in rows:
    if name not in FIELDS:
      raise ValueError(f"{path}: {name}: not a row of a sweep file; expected {', '.join(FIELDS)}.")
  for name in FIELDS[:4]:
    if name not in rows:
      raise ValueError(f"{path}: {name} is missing.")
  experiment, seeds, arms, baseline = (rows[name] for name in FIELDS[:4])
  common = rows.get("COMMON", {})
  if not isinstance(experiment, str) or not os.path.isfile(experiment):
    raise ValueError(f"{path}: EXPERIMENT={experiment!r}: no such file.")
  for seed in seeds if isinstance(seeds, tuple | list | range) else ():
    if type(seed) is not int or seed < 0:
      raise ValueError(f"{path}: SEEDS={seeds!r}: {seed!r} is no seed; expected integers from 0 on.")
  if not isinstance(seeds, tuple | list | range) or not seeds or len(set(seeds)) < len(seeds):
    raise ValueError(f"{path}: SEEDS={seeds!r}: expected at least one seed, each once, such as (0, 1, 2).")
  if not isinstance(arms, dict) or not arms:
    raise ValueError(f"{path}: ARMS={arms!r}: expected at least one arm, as name: overrides.")
  if not isinstance(baseline, str) or baseline not in arms:
    raise ValueError(f"{path}: BASELINE={baseline!r}: expected one of the arms {', '.join(map(repr, arms))}.")
  for arm, overrides in {"COMMON": common, **arms}.items():
    if not isinstance(arm, str) or not re.fullmatch(ARM, arm):
      raise ValueError(f"{path}: ARMS: {arm!r} names a folder; use letters, digits and . _ + -.")
    if not isinstance(overrides, dict):
      raise ValueError(f"{path}: {arm}={overrides!r}: expected overrides as field: value.")
    for field in overrides:
      if field in axes.OWN:
        raise ValueError(f"{path}: {arm}: {field} is set by the sweep; leave it out.")
  check_extra(extra, arms, "the sweep file")
  return Sweep(
    pathlib.Path(path).stem, experiment, tuple(seeds), {**texts(common), **extra},
    {arm: texts(overrides) for arm, overrides in arms.items()}, baseline,
  )  # fmt: skip


def check_extra(extra: dict[str, str], arms: dict[str, dict], source: str) -> None:
  for field in extra:
    if field in axes.OWN:
      raise ValueError(f"--config.{field}: set by the sweep; leave it out.")
    if own := [arm for arm, overrides in arms.items() if field in overrides]:
      raise ValueError(f"--config.{field}: arm {own[0]!r} has its own value; change {source} instead.")


def texts(overrides: dict[str, Any]) -> dict[str, str]:
  """Values as the config's flags read them: strings bare, everything else as Python writes it."""
  return {field: value if isinstance(value, str) else repr(value) for field, value in overrides.items()}


# A config with axes


def from_config(
  path: str, axis: list[str], extra: dict[str, str], *, zipped: bool = False, seeds: str = "1",
  baseline: str | None = None, name: str | None = None,
) -> Sweep:  # fmt: skip
  """The sweep of a config over --axis flags, or over its get_hyper where there are none.

  Args:
    axis: "FIELD=VALUE|VALUE" each; all combinations, or with `zipped` the first values, the second ones, and so on.
    extra: overrides for all runs.
    seeds: how many, or which, as axes.parse_seeds reads it.
    baseline: the name of an arm; None = the first.
    name: of the folder and the report; None = that of the file, and of the fields that --axis names.
  Raises:
    ValueError: for what is wrong with any of these, in one line.
  """
  if not os.path.isfile(path):
    raise ValueError(f"--config={path!r}: no such file.")
  seed_numbers = axes.parse_seeds(seeds)
  rows, source = (axis_arms(path, axis, zipped), "--axis") if axis else (hyper_arms(path, zipped), f"{path}: get_hyper")
  known = set(changes.flat(parsed([f"--config={path}"]).to_dict()))
  fields = list(dict.fromkeys(field for row in rows for field in row))
  for field in fields:
    if field in axes.OWN:
      do = "use --seeds" if field == "seed" else "leave it out"
      raise ValueError(f"{source}: {field} is set by the sweep; {do}.")
    check_known(field, known, source)
  for field in extra.keys() - set(axes.OWN):
    check_known(field, known, f"--config.{field}")
  arms = name_arms(path, [texts(row) for row in rows], extra, known, source)
  check_extra(extra, arms, source)
  if baseline is None:
    baseline = next(iter(arms))
  if baseline not in arms:
    near = difflib.get_close_matches(baseline, arms, n=1, cutoff=0.0)
    raise ValueError(f"--baseline={baseline}: no such arm; {near[0]}? There are {len(arms)}, --list names them.")
  if name is None:
    name = axes.sweep_name(pathlib.Path(path).stem, fields if axis else [], known)
  elif not re.fullmatch(ARM, name):
    raise ValueError(f"--name={name}: names a folder; use letters, digits and . _ + -.")
  return Sweep(name, path, seed_numbers, dict(extra), arms, baseline)


def axis_arms(path: str, axis: list[str], zipped: bool) -> list[dict[str, str]]:
  if "get_hyper" in run_file(path):
    print(f"{path}: its get_hyper is left aside, --axis is given", file=sys.stderr)
  return axes.combine([axes.parse_axis(text) for text in axis], zipped=zipped)


def hyper_arms(path: str, zipped: bool) -> list[dict[str, Any]]:
  """The arms that the file's get_hyper returns."""
  get_hyper = run_file(path).get("get_hyper")
  if zipped:
    raise ValueError("--zip pairs the values of several --axis flags; there is none.")
  if get_hyper is None:
    raise ValueError(
      f'--config={path}: nothing to compare; give --axis="FIELD=VALUE|VALUE", or define get_hyper(hyper) in the file.'
    )
  try:
    rows = list(get_hyper(axes.Hyper()))
    axes.check_arms(rows, "its result")
  except USER_ERRORS as e:
    raise ValueError(f"{path}: get_hyper: {type(e).__name__}: {said(e)}") from e
  if not rows:
    raise ValueError(f"{path}: get_hyper: expected at least one arm.")
  return [{axes.bare(field): value for field, value in row.items()} for row in rows]


def name_arms(
  path: str, rows: list[dict[str, str]], extra: dict[str, str], known: set[str], source: str
) -> dict[str, dict[str, str]]:
  """Each arm under the name of its folder. Raises ValueError for one that no config can hold, and for two alike."""
  configs = []
  for row in rows:
    try:
      configs.append(parsed([f"--config={path}", *(f"--config.{k}={v}" for k, v in {**extra, **row}.items())]))
    except ValueError as e:
      raise ValueError(f"{source}: {written(row)}: {e}") from e
  same: dict[str, dict[str, str]] = {}
  for row, cfg in zip(rows, configs, strict=True):
    before = same.setdefault(cfg.to_json(), row)
    if before is not row:
      raise ValueError(f"{source}: {written(before)} and {written(row)} are the same config; leave one out.")
  held = [{field: operator.attrgetter(field)(cfg) for field in row} for row, cfg in zip(rows, configs, strict=True)]
  return dict(zip(axes.folder_names(held, known), rows, strict=True))


def written(row: dict[str, str]) -> str:
  return ", ".join(f"{field}={value}" for field, value in row.items()) or "the config as it is"


# Jobs


def make_jobs(sweep: Sweep) -> list[Job]:
  """All runs, a whole seed before the next so that a stopped sweep is balanced; every config is validated."""
  known = set(changes.flat(parsed([f"--config={sweep.experiment}"]).to_dict()))
  for arm, overrides in sweep.arms.items():
    for field in sweep.common | overrides:
      check_known(field, known, f"arm {arm!r}")
  jobs = []
  for seed in sweep.seeds:
    for arm, overrides in sweep.arms.items():
      workdir = pathlib.Path("runs/sweeps") / sweep.name / arm / f"seed{seed}"
      values = {**sweep.common, **overrides, "seed": str(seed), "workdir": str(workdir)}
      arguments = [f"--config={sweep.experiment}", *(f"--config.{k}={v}" for k, v in values.items())]
      try:
        jobs.append(Job(arm, seed, arguments, checked(arguments)))
      except USER_ERRORS as e:
        raise ValueError(f"arm {arm!r}: {said(e)}") from e
  return jobs


def check_known(field: str, known: set[str], where: str) -> None:
  if field not in known:
    raise ValueError(f"{where}: {field}: no such field of the config{changes.nearest(field, sorted(known)) or '.'}")


def parsed(arguments: list[str]) -> ml_collections.ConfigDict:
  """The config that launch/run.py makes of these flags, by the same parser. Raises ValueError where that fails."""
  values, argv = flags.FlagValues(), ["run.py", *arguments]
  try:
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    holder.value.to_dict()  # a file that cannot be loaded only says so when something is asked for
  except (*USER_ERRORS, flags.Error) as e:
    raise ValueError(said(e)) from e
  return holder.value


def run_file(path: str) -> dict[str, Any]:
  """The names that a Python file defines. Raises ValueError naming the file where it fails."""
  try:
    return runpy.run_path(path)
  except USER_ERRORS as e:
    raise ValueError(f"{path}: {type(e).__name__}: {e}") from e


def said(error: BaseException) -> str:
  return str(error.args[0] if error.args else error)


def checked(arguments: list[str]) -> ml_collections.ConfigDict:
  """The config of these flags, validated as far as no model is needed."""
  # jax is slow to import: mistakes in the sweep file are told before.
  from fipo_jax import assemble, config

  cfg = parsed(arguments)
  config.validate(cfg)
  assemble.check_tables(cfg, {a.removeprefix("--config.").partition("=")[0] for a in arguments})
  if not cfg.eval.every:
    raise ValueError("eval.every=0: a sweep compares evaluations; use a number of iterations.")
  return cfg


def base_jobs(jobs: list[Job]) -> list[Job]:
  """A run for each base model that an experiment names and that is not there yet.

  Raises ValueError, as the runs themselves would, for one that is there but was made by another config.
  """
  from fipo_jax import workdir

  bases = {(job.cfg.model.base_experiment, pathlib.Path(job.cfg.model.path)) for job in jobs}
  missing = []
  for experiment, folder in sorted(bases):
    if experiment and folder.name == "export":
      arguments = [f"--config={experiment}", f"--config.workdir={folder.parent}"]
      job = Job("base model", -1, arguments, parsed(arguments))
      if (folder / "config.json").exists():
        workdir.check(job.cfg)
      else:
        missing.append(job)
  return missing
