"""The table of objectives: from a group's rewards to advantages, and from log-probabilities to a loss.

An objective's name alone makes it what its paper says: it reads only the config fields that its function takes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fipo_jax.algorithms import advantages, losses
from fipo_jax.algorithms.controls import CONTROLS, control
from fipo_jax.algorithms.gae import credit
from fipo_jax.algorithms.terms import KL_ESTIMATES, Terms, with_terms
from fipo_jax.types import Batch, TokenLoss

__all__ = ["CONTROLS", "KL_ESTIMATES", "OBJECTIVES", "Terms", "control", "credit", "make_advantages", "make_objective"]


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


def make_advantages(name: str, **hyperparameters) -> Callable[[np.ndarray], np.ndarray]:
  """Binds the advantage estimator of an objective: rewards [P, G] -> advantages [P, G], float64.

  Hyperparameters that it does not have are left out. Raises ValueError when the name is not in OBJECTIVES.
  """
  function = _row(name).advantages
  return functools.partial(function, **_own(function, hyperparameters))


def _row(name: str) -> Objective:
  if name not in OBJECTIVES:
    raise ValueError(f"objective={name!r}; choose one of {', '.join(OBJECTIVES)}.")
  return OBJECTIVES[name]


def _own(function, hyperparameters: dict) -> dict:
  return {k: v for k, v in hyperparameters.items() if k in _hyperparameters(function)}


def _hyperparameters(function) -> set[str]:
  parameters = inspect.signature(function).parameters.values()
  return {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
