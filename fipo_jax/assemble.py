"""Config -> Run: everything a run holds, built once, checked before anything expensive, resumed if there is a past."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from fipo_jax import (
  alarms,
  console,
  dashboards,
  describe,
  metrics,
  paths,
  processes,
  prompts,
  rollback,
  sharding,
  workdir,
)
from fipo_jax import config as config_lib
from fipo_jax.algorithms import (
  ESTIMATORS,
  OBJECTIVES,
  Terms,
  check_given,
  control,
  credit,
  make_advantages,
  make_objective,
)
from fipo_jax.data import pipeline
from fipo_jax.data.tokenizer import Tokenizer, characters
from fipo_jax.evaluation import sets as sets_lib
from fipo_jax.evaluation.sets import EvalSet
from fipo_jax.models import PRESETS, hf, make_model
from fipo_jax.models.transformer import NUMERICS, Model
from fipo_jax.rewards import VERIFIERS, golds
from fipo_jax.rewards.score import Scorer
from fipo_jax.rollout import ENGINES, Engine, stored
from fipo_jax.rollout.sampling import Sampling
from fipo_jax.train import checkpoint as checkpoint_lib
from fipo_jax.train import compiler_options
from fipo_jax.train import state as state_lib
from fipo_jax.train import step as step_lib
from fipo_jax.train.checkpoint import Checkpointer
from fipo_jax.train.optimizer import OPTIMIZERS, make_optimizer, schedule
from fipo_jax.types import Prompt

# Streams of randomness: folded into key(seed) after the step, so that no two uses share numbers.
STREAM_ROLLOUT, STREAM_EVAL, STREAM_INIT, STREAM_CONTROL = 0, sets_lib.STREAM, 2, 3


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
    return jax.random.fold_in(key, self.rollbacks) if self.rollbacks and stream != STREAM_EVAL else key

  def policy_params(self):
    """The present weights without a value head: what samples and is exported."""
    return self.model.policy_params(self.state.params)

  def place(self, batch):
    """Host arrays [M, R, T] -> the mesh."""
    return sharding.to_mesh(self.mesh, batch, None, "rows", "tokens")

  def sampling(self, *, evaluation: bool) -> Sampling:
    """How responses are drawn: in training, or on the held-out prompts."""
    return sampling_of(self.cfg, self.tokenizer, evaluation=evaluation)


def sampling_of(cfg, tokenizer: Tokenizer, *, evaluation: bool) -> Sampling:
  """How responses are drawn by a config: that of a run, or of an evaluation set.

  A stop string that is one special token becomes a stop id: it can be kept out before min_tokens.
  """
  c = cfg.eval if evaluation else cfg.rollout
  own = dict(repetition_penalty=c.repetition_penalty) if evaluation else dict(min_tokens=c.min_tokens)
  ids = {text: tokenizer.special_id(text) for text in cfg.rollout.stop_strings}
  special = [i for i in ids.values() if i is not None]
  return Sampling(
    temperature=c.temperature, top_k=c.top_k, top_p=c.top_p, min_p=c.min_p,
    max_tokens=cfg.rollout.max_response_tokens,
    stop_ids=tuple(dict.fromkeys([*tokenizer.stop_ids, *special])),
    stop_strings=tuple(text for text, i in ids.items() if i is None), **own,
  )  # fmt: skip


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
  tokenizer, model = open_model(cfg)
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
  given, samples = {*hyperparameters(cfg), "std_ddof"}, cfg.rollout.samples_per_prompt
  check_given(cfg.algorithm.name, given, estimator=cfg.algorithm.advantage, samples=samples)
  for each in (rollback.overridden(cfg), cfg):  # what an alarm would change to is checked now
    make_objective(each.algorithm.name, terms=open_terms(each), **hyperparameters(each))
  steps, optimizer, abstract = open_steps(cfg, model, mesh)
  checkpointer = open_checkpointer(cfg, read_only=read_only)
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
    scorer, about_golds = open_scorer(cfg, stream, sets, check=not step and not read_only)
  try:
    for note in about_golds:
      console.say(note)
    with console.phase("loading the model" if cfg.model.path or step else "making the model"):
      if step:
        state, host = checkpointer.restore(step, abstract)
      else:
        state, host = fresh_state(cfg, model, optimizer, abstract, mesh), {"seconds": 0.0, "counters": {}}
    if not read_only:
      host |= stored.rescued(cfg.workdir, [step, rollbacks])
    same_data = "data" not in host or resume_data(stream, host["data"], allow)
    surplus, pending, begun = (stored.decode(host.pop(name, {})) for name in ("surplus", "pending", "begun"))
    if begun:
      tokens = sum(len(r.tokens) for _, group in begun for r in group)
      what = "only the rest is sampled" if same_data else "not used, for the prompts are others"
      console.say(f"of step {step + 1} {tokens} tokens were sampled before: {what}")
      begun = begun if same_data else []
    engine = open_engine(cfg, model, mesh, tokenizer)
    limits = alarms.Limits(**{f.name: cfg.alarms[f.name] for f in dataclasses.fields(alarms.Limits)})
    watch = alarms.Watch(limits, cfg.model.dtype)
    if "watch" in host:
      watch.restore(host["watch"])
    return Run(
      cfg, mesh, model, tokenizer, state, steps, advantages=open_advantages(cfg), credit=open_credit(cfg),
      control=open_control(cfg), reference=open_reference(cfg, model, mesh), engine=engine,
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
  make_objective(cfg.algorithm.name, terms=open_terms(cfg), **hyperparameters(cfg))
  steps, _, _ = open_steps(cfg, run.model, run.mesh)
  changed = dict(
    steps=steps, advantages=open_advantages(cfg), credit=open_credit(cfg), control=open_control(cfg),
    host=dict(run.host), timers=metrics.Timers(),
  )  # fmt: skip
  if bool(cfg.algorithm.reference_kl_coef) != (run.reference is not None):
    changed["reference"] = open_reference(cfg, run.model, run.mesh)
  if cfg.rollout != run.cfg.rollout:
    changed["engine"] = open_engine(cfg, run.model, run.mesh, run.tokenizer)
  if cfg.reward != run.cfg.reward:
    changed["scorer"], _ = open_scorer(cfg, run.stream, run.sets, check=False)
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


def open_checkpointer(cfg, *, read_only: bool = False) -> Checkpointer:
  """The checkpoints of a run."""
  c = cfg.checkpoint
  return Checkpointer(
    cfg.workdir, keep=c.keep, best=c.keep_best, every=c.keep_every, folder=c.folder, read_only=read_only
  )


def with_model(cfg: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The config of a run that has trained; where its model.path is gone, tokenizer and sizes are those of its export."""
  is_model = lambda folder: paths.is_file(paths.of(folder) / "config.json")
  own = paths.of(cfg.workdir) / "export"
  if not cfg.model.path or is_model(cfg.model.path) or not is_model(own):
    return cfg
  console.say(f"model.path={cfg.model.path!r}: not there; tokenizer and sizes are read from {own}")
  cfg = cfg.copy_and_resolve_references()
  cfg.model.path = str(own)
  return cfg


def open_model(cfg) -> tuple[Tokenizer, Model]:
  """Tokenizer and model of model.path, or of model.preset with a character tokenizer; no weights yet."""
  if cfg.model.path:
    with paths.field("model.path", cfg.model.path):
      model_config, tokenizer = hf.read_config(cfg.model.path), Tokenizer.load(cfg.model.path)
  else:
    tokenizer = characters(cfg.model.alphabet)
    model_config = dataclasses.replace(PRESETS[cfg.model.preset], vocab_size=tokenizer.vocab_size)
  pipeline.check_vocab(tokenizer, model_config.vocab_size)
  if cfg.model.max_position:
    model_config = dataclasses.replace(model_config, max_position=cfg.model.max_position)
  longest = cfg.model.max_position or model_config.longest
  if (need := cfg.data.max_prompt_tokens + cfg.rollout.max_response_tokens) > longest:
    yarn = f", to {longest} with its YaRN" if longest > model_config.max_position else ""
    raise ValueError(
      f"data.max_prompt_tokens + rollout.max_response_tokens = {need} is beyond the model's "
      f"max_position_embeddings={model_config.max_position}{yarn}; use shorter limits, model.max_position, or YaRN: "
      "rope_scaling in its config.json."
    )
  numerics = {name: cfg.model[name] for name in NUMERICS}
  return tokenizer, make_model(
    dataclasses.replace(model_config, **numerics, value_head=cfg.algorithm.name == "ppo")
  )


def verifier_of(cfg, prompt: Prompt) -> str:
  """Which verifier judges the responses to a prompt: the config's, else what its record says."""
  r = cfg.reward
  return "file" if r.file and r.verifier != "weighted" else r.verifier or prompt.verifier


def open_scorer(cfg, stream, sets: list[EvalSet], *, check: bool) -> tuple[Scorer, list[str]]:
  """The verification processes, and what there is to say about them and the golds.

  stream: None where nothing is trained. check: verify the golds, too; a user's function is called once in any case.
  Raises: ValueError for a broken verifier file, an unknown verifier in a record, golds that can never be met.
  """
  r = cfg.reward
  scorer = Scorer(
    workers=r.workers, timeout_s=r.timeout_s, verifier_file=r.file or None, on_error=r.on_error,
    wrong_score=r.wrong_score, env=tuple(r.env), network=r.network, processes=r.processes, memory_mb=r.memory_mb,
    write_mb=r.write_mb, response_characters=r.response_characters, weights=r.weights.to_dict(),
  )  # fmt: skip
  if cfg.algorithm.name == "sft":
    return scorer, []
  named_by = lambda prompts: {p.verifier: p.id for p in reversed(prompts)}
  notes = []
  if stream:
    field = "mixture" if cfg.data.mixture else "path" if cfg.data.path else "name"
    where = f"data.{field}={cfg.data[field] if field != 'mixture' else [*cfg.data.mixture]!r}"
    unnamed = [p for s in sets if not s.name for p in s.prompts]
    notes += _judges(cfg, {**stream.verifiers, **named_by(unnamed)}, where)
  for s in sets:
    if s.name or not stream:
      notes += _judges(s.cfg, named_by(s.prompts), f"eval.sets.{s.name}" if s.name else "eval")
  scorer.start()  # a broken verifier file is found now, not after the first rollout
  if processes.is_first():
    try:
      judged = [(p, verifier_of(s.cfg, p)) for s in sets for p in s.prompts]
      if stream:
        others = stream.spread(max(golds.SAMPLE - len(judged), 0) if check else 1)
        judged += [(p, verifier_of(cfg, p)) for p in others]
      notes += golds.check(scorer, judged[: golds.SAMPLE])
    except BaseException:
      scorer.close()
      raise
  return scorer, notes


def _judges(cfg, named: dict[str, int], where: str) -> list[str]:
  """What there is to say of who judges prompts whose records name these verifiers (name -> id of a record).

  Raises: ValueError where nobody does.
  """
  r, notes = cfg.reward, []
  if r.verifier or r.file:
    by_file = r.file and r.verifier != "weighted"
    others = {r.verifier, *named} if by_file else {*named} - {r.verifier}
    if unused := sorted(others - {""}):
      judge = f"reward.file={r.file}" if by_file else f"reward.verifier={r.verifier!r}"
      notes.append(f"{judge} judges all prompts; not used: {', '.join(unused)}")
  else:
    for name, record in named.items():
      if not name:
        raise ValueError(f"{where} record {record} (from 0) names no verifier, and reward.verifier='': set one.")
      if name not in VERIFIERS:
        raise ValueError(
          f"{where} record {record} (from 0): field 'verifier' is {name!r}, expected one of "
          f"{', '.join(map(repr, VERIFIERS))}; or set reward.verifier or reward.file."
        )
  return notes


def open_engine(cfg, model: Model, mesh, tokenizer) -> Engine:
  """The configured row of ENGINES."""
  r, text = cfg.rollout, functools.partial(tokenizer.decode, skip_special=False)
  limits = dict(max_prompt_tokens=cfg.data.max_prompt_tokens, max_response_tokens=r.max_response_tokens)
  own = {
    "native": dict(
      slots=r.slots, pad_id=tokenizer.pad_id, page_tokens=r.page_tokens, cache_tokens=r.cache_tokens,
      cache_dtype=r.cache_dtype, attention=r.attention, continuous_decode_steps=r.continuous_decode_steps, text=text,
    ),
    "http": dict(
      urls=tuple(r.urls), dialect=r.dialect, timeout_s=r.timeout_s, retry_s=r.retry_s, concurrency=r.concurrency,
      export_dir=str(paths.absolute(cfg.workdir) / "served"), template_dir=cfg.model.path or None,
      api_key=os.environ.get("FIPO_API_KEY", ""), model_name=r.model_name, text=text,
      say=console.say,
    ),
  }.get(r.engine, {})  # fmt: skip
  return ENGINES[r.engine](model.policy(), sharding.for_rollout(mesh, r.tensor), **limits, **own)


def open_steps(cfg, model, mesh) -> tuple[step_lib.Steps, Any, state_lib.TrainState]:
  """The trainer's programs, the optimizer and the state's shapes; nothing is computed."""
  if model.config.offload_inputs:
    sharding.check_host(mesh, "model.offload_inputs")
  objective = make_objective(cfg.algorithm.name, terms=open_terms(cfg), **hyperparameters(cfg))
  optimizer, rate = open_optimizer(cfg, model)
  abstract = state_lib.abstract(model, optimizer, mesh, offload=cfg.optimizer.offload)
  steps = step_lib.make_steps(
    model, objective, optimizer, rate, abstract, mesh,
    temperature=cfg.rollout.temperature, logits_mib=cfg.model.logits_mib,
    entropy_gradient=cfg.algorithm.entropy_coef > 0,
    compiler_options=compiler_options.options_of(mesh, cfg.compiler_options),
  )  # fmt: skip
  return steps, optimizer, abstract


def open_optimizer(cfg, model) -> tuple[Any, Callable]:
  """The Optax chain and its learning-rate schedule."""
  o = cfg.optimizer
  rate = schedule(
    learning_rate=o.learning_rate, warmup_updates=o.warmup_updates, kind=o.schedule,
    total_updates=cfg.steps * (cfg.batch.prompts // cfg.batch.minibatch_prompts),
  )  # fmt: skip
  chain = make_optimizer(
    rate, name=o.name, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay, clip_norm=o.clip_norm,
    momentum_dtype=o.momentum_dtype or cfg.model.param_dtype, matrix_axes=model.matrix_axes(),
    scales={"value_head": o.value_learning_rate / o.learning_rate} if model.config.value_head else None,
  )  # fmt: skip
  return chain, rate


def hyperparameters(cfg) -> dict[str, Any]:
  """The config's algorithm fields as the objectives take them: its (), 0 and -1 for "none" become None."""
  a = cfg.algorithm
  weight_clip = tuple(a.weight_clip) or None
  return dict(
    clip_low=a.clip_low, clip_high=a.clip_high, dual_clip=a.dual_clip or None, gspo_clip_low=a.gspo_clip_low,
    gspo_clip_high=a.gspo_clip_high, cispo_ratio_cap=a.cispo_ratio_cap,
    max_response_tokens=cfg.rollout.max_response_tokens,
    delta_clamp=a.delta_clamp or None, half_life_tokens=a.half_life_tokens, participation_mask=a.participation_mask,
    participation_ratio=a.participation_ratio or None,
    # An ablation multiplies its weights into the advantages; the loss itself then has none.
    weight_clip=weight_clip if a.control == "none" else (1.0, 1.0), raw_cap=a.raw_cap, safety_mode=a.safety_mode,
    safety_threshold=a.safety_threshold, loss_norm=a.loss_norm,
    sequence_reject_count=None if a.sequence_reject_count < 0 else a.sequence_reject_count,
  )  # fmt: skip


def open_terms(cfg) -> Terms:
  """What the loss holds beside the objective."""
  a = cfg.algorithm
  return Terms(
    reference_kl=a.reference_kl, reference_kl_coef=a.reference_kl_coef, entropy_coef=a.entropy_coef,
    sampler_ratio_cap=a.sampler_ratio_cap or None, value_clip=a.value_clip or None,
    value_coef=a.value_coef if a.name == "ppo" else 0.0,
  )  # fmt: skip


def open_advantages(cfg) -> Callable:
  """Rewards [P, G] -> advantages [P, G], as objective or config say."""
  ddof = cfg.algorithm.advantage_std_ddof
  return make_advantages(cfg.algorithm.name, cfg.algorithm.advantage, std_ddof=None if ddof < 0 else ddof)


def open_control(cfg) -> Callable | None:
  """The jitted ablation of algorithm.control; None for none."""
  a, h = cfg.algorithm, hyperparameters(cfg)
  if a.control == "none":
    return None
  names = (
    "delta_clamp", "dual_clip", "participation_ratio", "half_life_tokens", "participation_mask", "raw_cap",
    "safety_mode", "safety_threshold",
  )  # fmt: skip
  own = {name: h[name] for name in names} | {"weight_clip": tuple(a.weight_clip) or None}
  return jax.jit(functools.partial(control, kind=a.control, **own))


def open_credit(cfg) -> Callable | None:
  """The jitted advantages of a value head, for ppo; None for objectives whose advantages the host has computed."""
  a = cfg.algorithm
  if a.name != "ppo":
    return None
  return jax.jit(functools.partial(credit, discount=a.discount, gae_lambda=a.gae_lambda))


def open_reference(cfg, model: Model, mesh) -> Any:
  """The starting weights once more, in the compute dtype: the policy that a KL term holds on to."""
  if not cfg.algorithm.reference_kl_coef:
    return None
  with jax.set_mesh(mesh):
    return jax.jit(model.cast, donate_argnums=0)(fresh_params(cfg, model, mesh))


def fresh_state(cfg, model, optimizer, abstract, mesh) -> state_lib.TrainState:
  """State at step 0."""
  with jax.set_mesh(mesh):
    params = fresh_params(cfg, model, mesh)
    layout = state_lib.layout(abstract)
    return jax.jit(lambda p: state_lib.create(p, optimizer), donate_argnums=0, out_shardings=layout)(params)


def fresh_params(cfg, model: Model, mesh) -> Any:
  """The weights of model.path, or random ones for model.preset; a value head is 0."""
  shardings = model.shardings(mesh)
  if not cfg.model.path:
    key = jax.random.fold_in(jax.random.key(cfg.seed), STREAM_INIT)
    return jax.jit(model.init, out_shardings=shardings)(key)
  with paths.field("model.path", cfg.model.path):
    params = hf.load(cfg.model.path, model.policy(), mesh)
  if model.config.value_head:
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), model.abstract()["value_head"])
    params["value_head"] = jax.device_put(zeros, shardings["value_head"])
  return params
