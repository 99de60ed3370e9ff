"""The base model of an experiment that names how it is made: model.base_experiment."""

from __future__ import annotations

from fipo_jax import command_line, config, console, loop, paths, processes, workdir


def make(cfg) -> None:
  """Runs model.base_experiment, whose export is model.path; one that is finished is only checked to be the same."""
  folder = paths.of(cfg.model.path)
  if folder.name != "export":
    raise ValueError(f"model.path={cfg.model.path!r}: with model.base_experiment it must end in /export.")
  base = command_line.load_experiment(cfg.model.base_experiment)
  base.workdir = str(folder.parent)
  config.validate(base)
  there = paths.is_file(folder / "config.json")
  processes.agree("the base model", {str(folder): "is there" if there else "is missing"})
  if there:
    workdir.check(base)
    return
  console.say(f"making the base model {cfg.model.path} with {cfg.model.base_experiment}")
  loop.train(base)
