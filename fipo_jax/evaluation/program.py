"""Evaluation as a program: the weights of a run, of a directory or of an experiment, on its sets, into one JSON.

    OUT.json            everything: specification, figures with intervals, each problem
    OUT_samples.jsonl   the responses, a line per prompt as it is finished; started again, the program goes on from it
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections

from fipo_jax import (
  assemble,
  collect,
  console,
  describe,
  judges,
  parts,
  paths,
  processes,
  prompts,
  saved,
  sharding,
  workdir,
)
from fipo_jax.evaluation import fingerprint, measure, published
from fipo_jax.evaluation import sets as sets_lib
from fipo_jax.evaluation.samples import Samples
from fipo_jax.evaluation.sets import EvalSet
from fipo_jax.train import checkpoint
from fipo_jax.types import Rollout

FORMAT = 1  # of the JSON; a reader refuses others
TOLD_S = (5.0, 60.0)  # between two lines of progress: the first, and the longest; each is twice the one before


@dataclasses.dataclass(frozen=True)
class Weights:
  """Whose weights are evaluated. kind: "checkpoint" of the config's workdir, "directory", "start" of the experiment.

  name: for the file of the result. step: of a checkpoint.
  """

  kind: str
  name: str
  step: int = 0


@dataclasses.dataclass
class Evaluator:
  """What sampling and scoring need of a `Run`, without its trainer."""

  cfg: ml_collections.ConfigDict
  tokenizer: Any
  engine: Any
  scorer: Any
  verified: bool = False


def choose(cfg, *, run: str, step: int | str | None, model: str) -> tuple[ml_collections.ConfigDict, Weights]:
  """The config to evaluate by, and its weights.

  Args:
    run: the folder of a run, whose newest checkpoint is meant, or "". Of another config its model is taken.
    step: a number or "best". model: a Hugging Face directory instead.
  Raises: ValueError for a run or a step that is not there.
  """
  cfg = cfg.copy_and_resolve_references()
  with cfg.unlocked():
    cfg.eval.every = cfg.eval.every or 1  # a run that never evaluates can be evaluated
    # Nothing is packed, so rows are no limit; the sampler is made for the longest of the sets.
    cfg.batch.row_tokens = max(cfg.batch.row_tokens, cfg.data.max_prompt_tokens + cfg.rollout.max_response_tokens)
  if model:
    if step is not None:
      raise ValueError(f"--step={step}: --model={model} has no steps; leave one of them out.")
    cfg.model.path, cfg.model.preset = model, ""
    cfg.model.base_experiment = ""
    return cfg, Weights("directory", paths.absolute(model).name)
  if not run and step is None:
    return cfg, Weights("start", "start")
  if run and paths.absolute(run) != paths.absolute(cfg.workdir):
    own = saved.get_config(f"{run}/config.json")
    cfg.workdir, cfg.checkpoint.folder = run, own.checkpoint.folder
    for name in ("path", "preset", "alphabet", "max_position", "base_experiment"):
      cfg.model[name] = own.model[name]
  found = checkpoint.choose(checkpoint.folder_of(cfg.workdir, cfg.checkpoint.folder), step)
  return parts.with_model(cfg), Weights("checkpoint", f"step_{found}", found)


def evaluate(cfg, weights: Weights, out: str = "") -> dict[str, Any]:
  """Evaluates, writes OUT.json and returns what it holds; what an earlier call has finished is not sampled again.

  Args: cfg, weights: of `choose`. out: "" for workdir/evaluations/NAME.json.
  Raises:
    ValueError, OSError: in one line, for what the user can mend. Stopped: the process was told to stop.
  """
  path = paths.of(out) if out else paths.of(cfg.workdir) / "evaluations" / f"{weights.name}.json"
  prompts.check_sets(cfg)
  made_by = workdir.provenance()
  console.say(describe.code(made_by))
  if cfg.compile_cache:
    assemble.keep_programs(cfg.compile_cache)
  with console.phase("looking for devices"):
    mesh = sharding.make_mesh(cfg.mesh)
  console.say(describe.mesh(mesh))
  longest = cfg.copy_and_resolve_references()
  longest.rollout.max_response_tokens = max(s.cfg.rollout.max_response_tokens for s in sets_lib.of(cfg))
  tokenizer, model = parts.open_model(longest)
  console.say(describe.model(cfg, model, tokenizer))
  with console.phase("reading prompts"):
    stream, sets, notes, overlap = read_prompts(cfg, tokenizer)
  for note in notes:
    console.say(note)
  assemble.check_inputs_alike(cfg, model, stream, sets)
  with console.phase("trying the verifiers"):
    scorer, about_golds = judges.open_scorer(cfg, stream if any(not s.own for s in sets) else None, sets, check=False)
  with scorer, jax.set_mesh(mesh):
    for note in about_golds:
      console.say(note)
    engine = parts.open_engine(longest, model, mesh, tokenizer)
    with console.phase("loading the model"):
      params = load(cfg, weights, model, mesh)
    facts = {"weights": weights.kind, "path": cfg.model.path or cfg.model.preset, "sha256": fingerprint.of(params)}
    if weights.kind == "checkpoint":
      facts |= {"run": str(cfg.workdir), "step": weights.step}
    engine.update(params)
    del params  # the engine has its own
    specification = {s.name: specify(s, tokenizer) for s in sets}
    file = Samples(
      path.with_name(f"{path.stem}_samples.jsonl"),
      {"model": facts["sha256"], "specification": specification, "seeds": {s.name: s.cfg.seed for s in sets}},
      round(cfg.log.samples_mb * 1e6),
    )
    who = Evaluator(cfg, tokenizer, engine, scorer)
    processes.begin()
    started = time.monotonic()
    found = {}
    for s in sets:
      groups = sample(who, s, file)
      with console.phase("intervals"):
        found[s.name] = {"specification": specification[s.name], **measure.measure(groups, s.name)}
      console.say(said(s, found[s.name]))
      for line in published.lines(s.name, found[s.name]):
        console.say(line)
    engine.release()
  result = {
    "format": FORMAT, "model": facts, "version": made_by, "sets": found, "overlap": overlap,
    "seeds": {s.name: s.cfg.seed for s in sets}, "seconds": round(time.monotonic() - started, 2),
    "devices": describe.mesh(mesh), "first_error": scorer.first_error or None, "samples": str(file.path),
    "config": json.loads(cfg.to_json()),
  }  # fmt: skip
  if processes.is_first():
    paths.write(path, as_text(result))
  console.say(f"evaluation: {path}")
  console.say(f"responses: {file.path}")
  return result


def as_text(result: dict[str, Any]) -> str:
  """JSON with a line per problem."""
  rows: list[str] = []

  def marked(found: dict[str, Any]) -> dict[str, Any]:
    start = len(rows)
    rows.extend(json.dumps(problem) for problem in found["problems"])
    return found | {"problems": [f"@row {i}@" for i in range(start, len(rows))]}

  marks = result | {"sets": {name: marked(found) for name, found in result["sets"].items()}}
  return re.sub(r'"@row (\d+)@"', lambda mark: rows[int(mark[1])], json.dumps(marks, indent=1)) + "\n"


def read_prompts(cfg, tokenizer) -> tuple[Any, list[EvalSet], list[str], dict[str, Any] | None]:
  """(training stream or None, sets, notes, what sets share with what is trained on or None where that is not known)."""
  try:
    stream, sets, notes, overlap = prompts.open_data(cfg, tokenizer)
    return stream, sets, notes, overlap.found()
  except (ValueError, OSError) as error:
    if not all(s.own for s in sets_lib.of(cfg)):
      raise  # they are held out of what is trained on
    sets, notes = prompts.open_sets(cfg, tokenizer)
    reason = " ".join(str(error).split())[:200]
    return None, sets, [*notes, f"overlap with what was trained on is not checked: {reason}"], None


def load(cfg, weights: Weights, model, mesh) -> Any:
  """The parameters of the policy on the mesh; nothing of an optimizer."""
  policy = model.policy()
  if weights.kind != "checkpoint":
    with jax.set_mesh(mesh):
      return model.policy_params(parts.fresh_params(cfg, model, mesh))
  place = lambda shape, to: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=to)
  folder = checkpoint.folder_of(cfg.workdir, cfg.checkpoint.folder)
  return checkpoint.read_params(folder, weights.step, jax.tree.map(place, policy.abstract(), policy.shardings(mesh)))


def specify(s: EvalSet, tokenizer) -> dict[str, Any]:
  """Everything beside the weights and the seed that figures of this set depend on; what a comparison holds equal."""
  c, sampling = s.cfg, parts.sampling_of(s.cfg, tokenizer, evaluation=True)
  digest = lambda text: hashlib.sha256(text.encode()).hexdigest()[:16]
  listed = lambda value: list(value) if isinstance(value, tuple) else value
  source = {"path": listed(c.eval.path)} if c.eval.path else {"source": c.data.source, "name": c.data.name}
  own_file = any(judges.verifier_of(c, p) in ("file", "weighted") for p in s.prompts) and c.reward.file
  texts = "\0".join(f"{p.id}\0{p.text}\0{p.answer}" for p in s.prompts)
  return {
    "prompts": {**source, "number": len(s.prompts), "sha256": digest(texts)},
    "samples_per_prompt": c.eval.samples_per_prompt,
    "sampling": {name: listed(value) for name, value in dataclasses.asdict(sampling).items()},
    "template": {name: c.data[name] for name in ("instruction", "instruct_messages", "system", "chat_template")},
    "limits": {"max_prompt_tokens": c.data.max_prompt_tokens, "max_response_tokens": c.rollout.max_response_tokens},
    "verifier": sorted({judges.verifier_of(c, p) for p in s.prompts}),
    "reward": {
      "file_sha256": hashlib.sha256(paths.read(own_file)).hexdigest()[:16] if own_file else "",
      "weights": c.reward.weights.to_dict(), "timeout_s": c.reward.timeout_s,
      "response_characters": c.reward.response_characters,
      "overlong_buffer_tokens": c.reward.overlong_buffer_tokens, "overlong_factor": c.reward.overlong_factor,
    },
    "numerics": {"engine": c.rollout.engine, "dtype": c.model.dtype, "cache_dtype": c.rollout.cache_dtype},
  }  # fmt: skip


def sample(who: Evaluator, s: EvalSet, file: Samples) -> list[list[Rollout]]:
  """The scored groups of a set in the order of its prompts; each goes into the file when it is complete.

  Raises: Stopped, when the process was told to; what is finished is in the file. ValueError: no response of the first
    ones could be verified.
  """
  done = file.groups(s.name, s.prompts)
  rest = [p for p in s.prompts if p.id not in done]
  label, n = s.name or "evaluation", s.cfg.eval.samples_per_prompt
  if done:
    console.say(f"{label}: {len(done)} of {len(s.prompts)} prompts are in {file.path} and are not sampled again")
  tell = Progress(label, len(s.prompts) * n, len(done) * n)
  under_way: list[concurrent.futures.Future] = []
  stopped, stop_asked = False, processes.StopPoll()

  def judge(groups: list[list[Rollout]]) -> None:
    collect.score(who, groups, s.cfg)
    file.append(s.name, groups)
    done.update({g[0].prompt.id: g for g in groups})

  with concurrent.futures.ThreadPoolExecutor(1) as pool:  # verdicts come beside the sampling of the others

    def watch(groups: list[list[Rollout]]) -> bool:
      nonlocal stopped
      for future in under_way:
        if future.done():
          future.result()  # what went wrong ends the evaluation now
      if groups:
        under_way.append(pool.submit(judge, groups))
      stopped = stop_asked()
      return stopped

    groups = []
    if rest:
      groups = who.engine.generate(
        rest, n, key=s.key(), sampling=parts.sampling_of(s.cfg, who.tokenizer, evaluation=True),
        progress=tell, watch=watch,
      )  # fmt: skip
    for future in under_way:
      future.result()
    if late := [g for g in groups if g[0].prompt.id not in done and all(r.finished for r in g)]:
      judge(late)  # an engine may end without a last look
  if stopped and len(done) < len(s.prompts):
    raise processes.Stopped(
      f"stopped as asked: {len(done)} of {len(s.prompts)} prompts of {label} are in {file.path}; the same command "
      "goes on"
    )
  return [done[p.id] for p in s.prompts]


class Progress:
  """Lines that say how far a set is, and when it will be done; rarer the longer it takes."""

  def __init__(self, label: str, total: int, done: int, say: Callable[[str], None] = console.say, clock=time.monotonic):
    self._label, self._total, self._before, self._say, self._clock = label, total, done, say, clock
    self._start = self._last = clock()
    self._every = TOLD_S[0]

  def __call__(self, done: int, _total: int) -> None:
    """done: samples of this call."""
    now = self._clock()
    if now - self._last < self._every or not done:
      return
    self._last, self._every = now, min(2 * self._every, TOLD_S[1])
    have = self._before + done
    left = (now - self._start) / done * (self._total - have)
    self._say(f"{self._label}: {have:,} of {self._total:,} samples, {now - self._start:.0f} s, eta {left:.0f} s")


def said(s: EvalSet, found: dict[str, Any]) -> str:
  """The figures of a set in a line."""
  metrics, intervals, n = found["metrics"], found["intervals"], s.cfg.eval.samples_per_prompt
  between = lambda pair: "" if None in pair else f" [{pair[0]:.3f}, {pair[1]:.3f}]"
  number = lambda metric: f"{metrics[metric]:.3f}{between(intervals[metric])}"
  parts = [f"avg@{n} {number('accuracy')}"]
  if n > 1:
    parts[0] += f", with samples drawn anew{between(intervals['accuracy_with_samples'])}"
    curves = found["curves"]
    parts += [f"pass@{n} {curves[f'pass@{n}']['value']:.3f}"]
    parts += [f"cons@{n} {curves[f'cons@{n}']['value']:.3f}"] if f"cons@{n}" in curves else []
  lengths = found["lengths"]
  parts += [f"length {lengths['mean']:.1f} (median {lengths['median']:.0f}, p90 {lengths['p90']:.0f})",
            f"truncated {metrics['truncated']:.3f}"]  # fmt: skip
  parts += [f"no answer {metrics['no_answer']:.3f}"] if "no_answer" in metrics else []
  for label, name in (("verifier errors", "reward_errors"), ("verifier time-outs", "reward_timeouts")):
    parts += [f"{metrics[name]:.0f} {label}"] if metrics[name] else []
  return f"{s.name or 'evaluation'}: {metrics['prompts']:.0f} problems x {n}: {'; '.join(parts)}"
