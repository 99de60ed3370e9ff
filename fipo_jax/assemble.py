"""Config -> Run: everything a run holds, built once, checked before anything expensive, resumed if there is a past."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Collection
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from fipo_jax import (
  alarms,
  console,
  dashboards,
  describe,
  judges,
  metrics,
  parts,
  paths,
  processes,
  prompts,
  rollback,
  sharding,
  workdir,
)
from fipo_jax import config as config_lib
from fipo_jax.algorithms import ESTIMATORS, OBJECTIVES, check_given, make_objective
from fipo_jax.data import pipeline
from fipo_jax.data.tokenizer import Tokenizer
from fipo_jax.evaluation.sets import EvalSet
from fipo_jax.models import PRESETS
from fipo_jax.models.transformer import Model
from fipo_jax.rewards import VERIFIERS
from fipo_jax.rewards.score import Scorer
from fipo_jax.rollout import ENGINES, Engine, stored
from fipo_jax.rollout.sampling import Sampling
from fipo_jax.train import checkpoint as checkpoint_lib
from fipo_jax.train import compiler_options
from fipo_jax.train import state as state_lib
from fipo_jax.train import step as step_lib
from fipo_jax.train.checkpoint import Checkpointer
from fipo_jax.train.optimizer import OPTIMIZERS


@dataclasses.dataclass
class Run:
  """What a run holds. step: iterations done. host: JSON-able facts that survive in checkpoints.

  advantages: rewards [P, G] -> [P, G]. credit: None, or the mini-batches of a step -> the same with GAE advantages.
  control: None, or (batch, logp_MRT, key) -> (batch, metrics) of an ablation.
  sets: what it is evaluated on, the first one's metrics without a name before them.
  reference: parameters of the reference policy in the compute dtype, None when the loss has no KL to it.
  surplus: informative groups that wait for a batch, with the step that sampled them.
  pending: groups with responses that are not finished yet, with the step that began them.
  begun: what an earlier process had sampled of the coming step when it was stopped, or its engine failed: groups, with
  the number of the draw; and of the present step, for the case that it comes to that.
  rollbacks: how often the run was taken back to a checkpoint.
  changes: what differs from the config that made the steps so far. verified: whether this process has seen a verdict.
  spent: its time so far, on process 0.
  """

  cfg: ml_collections.ConfigDict
  mesh: Mesh
  model: Model
  tokenizer: Tokenizer
  state: state_lib.TrainState
  steps: step_lib.Steps
  advantages: Callable
  credit: Callable | None
  control: Callable | None
  reference: Any
  engine: Engine
  stream: pipeline.PromptStream
  sets: list[EvalSet]
  scorer: Scorer
  checkpointer: Checkpointer
  step: int
  host: dict[str, Any]
  timers: metrics.Timers
  surplus: stored.Waiting
  pending: stored.Waiting
  watch: alarms.Watch
  rollbacks: int
  begun: stored.Waiting = dataclasses.field(default_factory=list)
  changes: list[str] = dataclasses.field(default_factory=list)
  verified: bool = False
  spent: workdir.Spent | None = None

  def key(self, step: int, stream: int) -> jax.Array:
    """The random key of one use: fold_in(fold_in(key(seed), step), stream); others after each rollback."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.cfg.seed), step), stream)
    return jax.random.fold_in(key, self.rollbacks) if self.rollbacks and stream != parts.STREAM_EVAL else key

  def policy_params(self):
    """The present weights without a value head: what samples and is exported."""
    return self.model.policy_params(self.state.params)

  def place(self, batch):
    """Host arrays [M, R, T] -> the mesh."""
    return sharding.to_mesh(self.mesh, batch, None, "rows", "tokens")

  def sampling(self, *, evaluation: bool) -> Sampling:
    """How responses are drawn: in training, or on the held-out prompts."""
    return parts.sampling_of(self.cfg, self.tokenizer, evaluation=evaluation)


def build(cfg: ml_collections.ConfigDict, *, allow: Collection[str] = (), step: int | str | None = None) -> Run:
  """Builds the run of a validated config, restoring the newest checkpoint of its workdir if there is one.

  The workdir is the run's own from then on.
  Args:
    allow: fields that may differ from those of the run that is resumed, though they alter the training.
    step: resume from this checkpoint, a number or "best"; newer ones are set aside.
  Raises ValueError or OSError with one clear line for whatever the user can mend.
  """
  check_tables(cfg)
  check_alike(cfg)
  claimed = workdir.claim(cfg, allow, step)
  console.say(describe.code(claimed.provenance))
  for note in claimed.notes:
    console.say(note)
  rollbacks = len(rollback.records(cfg.workdir))
  return open_run(rollback.replay(cfg), step, rollbacks=rollbacks, allow=allow, changes=claimed.changes)


def open_run(
  cfg, step: int | str | None, *, rollbacks: int, allow: Collection[str] = (), changes: Collection[str] = (),
  read_only: bool = False,
) -> Run:  # fmt: skip
  """The run of a config as it stood after a step.

  Says what it finds as it finds it, all of it before the first compile.

  Args:
    step: as in `build`. rollbacks, changes: see `Run`.
    read_only: nothing in its workdir is written, moved or deleted; step is then a checkpoint, or 0 for the beginning.
  Raises as `build`.
  """
  checkpoint_lib.check_shared(checkpoint_lib.folder_of(cfg.workdir, cfg.checkpoint.folder))
  prepare_compiling(cfg)
  with console.phase("looking for devices"):
    mesh = sharding.make_mesh(cfg.mesh)
  config_lib.check_mesh(cfg, mesh.shape, sharding.for_rollout(mesh, cfg.rollout.tensor).shape)
  compiler_options.check(mesh, cfg.compiler_options)
  console.say(describe.mesh(mesh))
  tokenizer, model = parts.open_model(cfg)
  console.say(describe.model(cfg, model, tokenizer))
  with jax.set_mesh(mesh):
    if about_rows := describe.rows(cfg, model):
      console.say(about_rows)
  with console.phase("reading prompts"):
    stream, sets, notes, _ = prompts.open_data(cfg, tokenizer)
  for line in (*notes, *describe.prompts(cfg, stream, sets)):
    console.say(line)
  if cfg.algorithm.name != "sft" and cfg.batch.prompts > stream.len_epoch:
    raise ValueError(
      f"batch.prompts={cfg.batch.prompts} is more than the {stream.len_epoch} prompts there are; use at most that many."
    )
  check_inputs_alike(cfg, model, stream, sets)
  given, samples = {*parts.hyperparameters(cfg), "std_ddof"}, cfg.rollout.samples_per_prompt
  check_given(cfg.algorithm.name, given, estimator=cfg.algorithm.advantage, samples=samples)
  for each in (rollback.overridden(cfg), cfg):  # what an alarm would change to is checked now
    make_objective(each.algorithm.name, terms=parts.open_terms(each), **parts.hyperparameters(each))
  steps, optimizer, abstract = parts.open_steps(cfg, model, mesh)
  checkpointer = parts.open_checkpointer(cfg, read_only=read_only)
  if read_only:
    assert isinstance(step, int)
  elif step is not None:
    step = checkpointer.start_from(step)
    workdir.keep_logs(cfg, step)
  else:
    step = checkpointer.latest() or 0
  console.say(describe.schedule(cfg, stream))
  if not read_only:
    console.say(f"resumes from step {step}" if step else "a new run")
  with console.phase("trying the verifier"):
    scorer, about_golds = judges.open_scorer(cfg, stream, sets, check=not step and not read_only)
  try:
    for note in about_golds:
      console.say(note)
    with console.phase("loading the model" if cfg.model.path or step else "making the model"):
      if step:
        state, host = checkpointer.restore(step, abstract)
      else:
        state, host = parts.fresh_state(cfg, model, optimizer, abstract, mesh), {"seconds": 0.0, "counters": {}}
    if not read_only:
      host |= stored.rescued(cfg.workdir, [step, rollbacks])
    same_data = "data" not in host or resume_data(stream, host["data"], allow)
    surplus, pending, begun = (stored.decode(host.pop(name, {})) for name in ("surplus", "pending", "begun"))
    if begun:
      tokens = sum(len(r.tokens) for _, group in begun for r in group)
      what = "only the rest is sampled" if same_data else "not used, for the prompts are others"
      console.say(f"of step {step + 1} {tokens} tokens were sampled before: {what}")
      begun = begun if same_data else []
    engine = parts.open_engine(cfg, model, mesh, tokenizer)
    limits = alarms.Limits(**{f.name: cfg.alarms[f.name] for f in dataclasses.fields(alarms.Limits)})
    watch = alarms.Watch(limits, cfg.model.dtype)
    if "watch" in host:
      watch.restore(host["watch"])
    return Run(
      cfg, mesh, model, tokenizer, state, steps, advantages=parts.open_advantages(cfg), credit=parts.open_credit(cfg),
      control=parts.open_control(cfg), reference=parts.open_reference(cfg, model, mesh), engine=engine,
      stream=stream, sets=sets, scorer=scorer, checkpointer=checkpointer, step=step, host=host,
      timers=metrics.Timers(), surplus=surplus, pending=stored.with_prompts(pending, stream.find), watch=watch,
      rollbacks=rollbacks, begun=stored.with_prompts(begun, stream.find), changes=list(changes),
    )  # fmt: skip
  except BaseException:
    scorer.close()
    raise


def under(run: Run, cfg: ml_collections.ConfigDict) -> Run:
  """The same run, at the same step, under other fields of algorithm, optimizer, batch, rollout or reward.

  What those fields make is made again; state, prompts and whatever waits are shared. A scorer of its own is the
  caller's to close.
  Raises ValueError for fields that cannot be.
  """
  make_objective(cfg.algorithm.name, terms=parts.open_terms(cfg), **parts.hyperparameters(cfg))
  steps, _, _ = parts.open_steps(cfg, run.model, run.mesh)
  changed = dict(
    steps=steps, advantages=parts.open_advantages(cfg), credit=parts.open_credit(cfg), control=parts.open_control(cfg),
    host=dict(run.host), timers=metrics.Timers(),
  )  # fmt: skip
  if bool(cfg.algorithm.reference_kl_coef) != (run.reference is not None):
    changed["reference"] = parts.open_reference(cfg, run.model, run.mesh)
  if cfg.rollout != run.cfg.rollout:
    changed["engine"] = parts.open_engine(cfg, run.model, run.mesh, run.tokenizer)
  if cfg.reward != run.cfg.reward:
    changed["scorer"], _ = judges.open_scorer(cfg, run.stream, run.sets, check=False)
  return dataclasses.replace(run, cfg=cfg, **changed)


def prepare_compiling(cfg) -> None:
  """Where compiled programs are kept, and whether one that differs in the names of its stages alone is the same."""
  if cfg.compile_cache:
    keep_programs(cfg.compile_cache)
  # A trace would have the names of the version that filled the cache.
  jax.config.update("jax_compilation_cache_include_metadata_in_key", bool(cfg.log.profile_steps))


def keep_programs(folder: str) -> None:
  """Compiled programs are kept in this folder, also those that take a moment: a second start compiles none."""
  jax.config.update("jax_compilation_cache_dir", str(paths.of(os.path.expanduser(folder))))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def resume_data(stream, state: dict[str, Any], allow: Collection[str]) -> bool:
  """The stream goes where it stood; with other data, where the user has allowed that, it begins anew, and says so.

  Returns whether the data are the same.
  """
  try:
    stream.restore(state)
    return True
  except ValueError:
    if not any(name == "data" or name.startswith("data.") for name in allow):
      raise
    console.say("other prompts than before, as allowed: they are drawn from the beginning")
    return False


def check_tables(cfg, given: Collection[str] | None = None) -> None:
  """Names that must be rows of a table of variants, and sources; boards that can be had. given: see `prompts.check`,
  None = later."""
  dashboards.check(cfg.log)
  config_lib.one_of("algorithm.name", cfg.algorithm.name, tuple(OBJECTIVES))
  config_lib.one_of("algorithm.advantage", cfg.algorithm.advantage, ("", *ESTIMATORS))
  config_lib.one_of("rollout.engine", cfg.rollout.engine, tuple(ENGINES))
  config_lib.one_of("optimizer.name", cfg.optimizer.name, OPTIMIZERS)
  if cfg.reward.verifier not in ("", "weighted"):
    config_lib.one_of("reward.verifier", cfg.reward.verifier, (*VERIFIERS, "weighted"))
  if cfg.model.preset:
    config_lib.one_of("model.preset", cfg.model.preset, tuple(PRESETS))
  if given is not None:
    prompts.check(cfg, given)


def check_alike(cfg) -> None:
  """Processes of one run must have one config and one code: raises ValueError on all when they do not."""
  if processes.count() == 1:
    return
  flat = {"config": json.loads(cfg.to_json())}
  while nested := [name for name, value in flat.items() if isinstance(value, dict) and value]:
    flat |= {f"{name}.{key}": value for name in nested for key, value in flat.pop(name).items()}
  code = hashlib.sha256()
  for path in sorted((source := pathlib.Path(__file__).parent).rglob("*.py")):
    code.update(f"{path.relative_to(source)}\0{path.read_text()}\0".encode())
  flat |= {"source of fipo_jax": code.hexdigest()[:12], "version of jax": jax.__version__}
  processes.agree("the run", flat)


def check_inputs_alike(cfg, model: Model, stream, sets: list[EvalSet]) -> None:
  """Each process has read its own copy of the inputs: raises ValueError on all when copies differ."""
  if processes.count() == 1:
    return
  digest = lambda data: hashlib.sha256(data).hexdigest()[:12]
  processes.agree("the files that they have read", {
    "prompts": stream.state()["records"] if stream else "",
    "held-out prompts": digest("\0".join(p.text for s in sets for p in s.prompts).encode()),
    "model.path": digest(repr(model.config).encode()),
    "reward.file": digest(paths.read(cfg.reward.file)) if cfg.reward.file else "",
  })  # fmt: skip


