"""The table of objectives: from a group's rewards to advantages, and from log-probabilities to a loss.

An objective's name alone makes it what its paper says: it reads only the config fields that its function takes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fipo_jax.algorithms import advantages, losses
from fipo_jax.algorithms.controls import CONTROLS, control
from fipo_jax.algorithms.gae import credit
from fipo_jax.algorithms.terms import KL_ESTIMATES, Terms, with_terms
from fipo_jax.types import Batch, TokenLoss

__all__ = [
  "CONTROLS", "ESTIMATORS", "KL_ESTIMATES", "OBJECTIVES", "Terms", "check_given", "control", "credit",
  "make_advantages", "make_objective",
]  # fmt: skip


class Objective(NamedTuple):
  """loss: (logp_RT, batch, hyperparameters) -> TokenLoss. advantages: rewards [P, G] -> [P, G]."""

  loss: Callable[..., TokenLoss]
  advantages: Callable[..., np.ndarray]


OBJECTIVES: dict[str, Objective] = {
  "fipo": Objective(losses.fipo, advantages.group_relative),
  "dapo": Objective(losses.dapo, advantages.group_relative),
  "grpo": Objective(losses.grpo, advantages.group_relative),
  "dr_grpo": Objective(losses.dr_grpo, advantages.group_centred),
  "gspo": Objective(losses.gspo, advantages.group_relative),
  "cispo": Objective(losses.cispo, advantages.group_relative),
  "rloo": Objective(losses.rloo, advantages.leave_one_out),
  "reinforce_pp": Objective(losses.reinforce_pp, advantages.batch_normalised),
  "ppo": Objective(losses.ppo, advantages.rewards_themselves),
  "sft": Objective(losses.sft, advantages.rewards_themselves),
}


# Estimators by their own names, for `algorithm.advantage`: any of them serves any objective.
ESTIMATORS: dict[str, Callable[..., np.ndarray]] = {
  "group_relative": advantages.group_relative,
  "group_centred": advantages.group_centred,
  "leave_one_out": advantages.leave_one_out,
  "batch_normalised": advantages.batch_normalised,
}


def check_given(name: str, given: Collection[str], *, estimator: str = "", samples: int = 2) -> None:
  """Raises ValueError when the loss or the estimator of an objective asks for a keyword that nobody gives it.

  With a default it would run, and the field that was meant to set it would do nothing. The estimator is tried on a
  group of `samples`, so that what it cannot take is known before the first rollout.
  Args: given: keywords that the config gives.
  """
  for function in (_row(name).loss, _estimator(name, estimator)):
    if missing := sorted(_hyperparameters(function) - set(given)):
      raise ValueError(
        f"algorithm.name={name!r}: {function.__name__} asks for {missing[0]!r}, which no field of the config gives; "
        "make a field for it, or take it out."
      )
  try:
    found = make_advantages(name, estimator)(np.eye(2, samples))
  except Exception as e:
    raise ValueError(f"algorithm.name={name!r}: its advantages fail for {samples} samples a prompt: {e}") from e
  if found.shape != (2, samples):
    raise ValueError(f"algorithm.name={name!r}: its advantages have shape {found.shape} for rewards [2, {samples}].")


def make_objective(name: str, *, terms: Terms | None = None, **hyperparameters) -> Callable[..., TokenLoss]:
  """Binds an objective's hyperparameters: the returned value is what the train step calls.

  Hyperparameters this objective does not have, but another does, are left out: one config section
  serves every row. The objective is traced once on a single token, so that a value out of range is
  refused here.

  Args:
    terms: what is added to the loss, see `terms.with_terms`.
  Returns: (logp_RT, batch, entropy_RT=None, values_RT=None) -> TokenLoss.
  Raises:
    ValueError: the name is not in OBJECTIVES, a hyperparameter belongs to no objective, or a value
      is out of range.
  """
  function = _row(name).loss
  known = set().union(*(_hyperparameters(row.loss) for row in OBJECTIVES.values()))
  if unknown := sorted(set(hyperparameters) - known):
    raise ValueError(
      f"{unknown[0]}={hyperparameters[unknown[0]]!r}: no objective has this hyperparameter."
    )
  objective = with_terms(functools.partial(function, **_own(function, hyperparameters)), terms or Terms())
  one = jax.ShapeDtypeStruct((1, 1), jnp.float32)
  number = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  batch = Batch(number, number, number, *[one] * 9)
  jax.eval_shape(objective, one, batch, one, one)
  return objective


def make_advantages(name: str, estimator: str = "", **hyperparameters) -> Callable[[np.ndarray], np.ndarray]:
  """Binds an advantage estimator: rewards [P, G] -> advantages [P, G], float64.

  Args: estimator: a row of ESTIMATORS; "" = the objective's own.
  Hyperparameters that it does not have are left out. Raises ValueError when a name is not in its table.
  """
  function = _estimator(name, estimator)
  return functools.partial(function, **_own(function, hyperparameters))


def _estimator(name: str, estimator: str) -> Callable[..., np.ndarray]:
  if estimator and estimator not in ESTIMATORS:
    raise ValueError(f"algorithm.advantage={estimator!r}; choose one of {', '.join(ESTIMATORS)}, or '' for its own.")
  own = _row(name).advantages
  if estimator and own is advantages.rewards_themselves:
    raise ValueError(f"algorithm.advantage={estimator!r}: algorithm.name={name!r} has no advantages of groups; use ''.")
  return ESTIMATORS[estimator] if estimator else own


def _row(name: str) -> Objective:
  if name not in OBJECTIVES:
    raise ValueError(f"objective={name!r}; choose one of {', '.join(OBJECTIVES)}.")
  return OBJECTIVES[name]


def _own(function, hyperparameters: dict) -> dict:
  return {k: v for k, v in hyperparameters.items() if k in _hyperparameters(function)}


def _hyperparameters(function) -> set[str]:
  parameters = inspect.signature(function).parameters.values()
  return {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
