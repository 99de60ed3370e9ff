"""The table of objectives. An objective is a pure function (logp_RT, batch, hyperparameters) -> TokenLoss."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fipo_jax.algorithms import losses
from fipo_jax.types import Batch, TokenLoss

OBJECTIVES: dict[str, Callable[..., TokenLoss]] = {
  "fipo": losses.fipo,
  "dapo": losses.dapo,
  "grpo": losses.grpo,
  "gspo": losses.gspo,
  "sft": losses.sft,
}


def make_objective(name: str, **hyperparameters) -> Callable[[jax.Array, Batch], TokenLoss]:
  """Binds an objective's hyperparameters: the returned value is what the train step calls.

  Hyperparameters this objective does not have, but another does, are left out: one config section
  serves every row. The objective is traced once on a single token, so that a value out of range is
  refused here.

  Raises:
    ValueError: the name is not in OBJECTIVES, a hyperparameter belongs to no objective, or a value
      is out of range.
  """
  if name not in OBJECTIVES:
    raise ValueError(f"objective={name!r}; choose one of {', '.join(OBJECTIVES)}.")
  known = set().union(*map(_hyperparameters, OBJECTIVES.values()))
  if unknown := sorted(set(hyperparameters) - known):
    raise ValueError(
      f"{unknown[0]}={hyperparameters[unknown[0]]!r}: no objective has this hyperparameter."
    )
  function = OBJECTIVES[name]
  own = _hyperparameters(function)
  objective = functools.partial(function, **{k: v for k, v in hyperparameters.items() if k in own})
  one = jax.ShapeDtypeStruct((1, 1), jnp.float32)
  number = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  jax.eval_shape(objective, one, Batch(number, number, number, one, one, one, one, one))
  return objective


def _hyperparameters(function) -> set[str]:
  parameters = inspect.signature(function).parameters.values()
  return {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
