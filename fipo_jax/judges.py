"""Who judges the responses to which prompts: the processes of the verifiers, and whether golds can be met."""

from __future__ import annotations

from fipo_jax import processes
from fipo_jax.evaluation.sets import EvalSet
from fipo_jax.rewards import VERIFIERS, golds
from fipo_jax.rewards.score import Scorer
from fipo_jax.types import Prompt


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
