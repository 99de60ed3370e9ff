"""What the dtype of sums over devices does to gradients, on what an experiment samples first."""

from __future__ import annotations

import dataclasses
import functools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fipo_jax import assemble, config, metrics, parts
from fipo_jax.algorithms import make_objective
from fipo_jax.collect import collect
from fipo_jax.models import logprobs, make_model
from fipo_jax.sharding import make_mesh, to_mesh
from fipo_jax.train import batching
from fipo_jax.types import Batch

SUMS_DEVICES, SUMS_ROWS = (8, 64), 64  # rows of an update are dealt to so many devices
SUMS_NUMBERS = 2**22  # of larger models every so many-th number of each parameter
SUMS_LEAST = 10_000  # but so many of each that has them
SUMS_KINDS = {
  "embed_VD": "embedding", "head_VD": "head", "q_DHh": "q, k, v", "k_DKh": "q, k, v", "v_DKh": "q, k, v",
  "o_DHh": "attention out", "gate_DF": "gate, up", "up_DF": "gate, up", "down_DF": "down",
}  # fmt: skip


def sums(cfg, updates: int) -> dict:
  """What a sum over devices in bfloat16 does to gradients, beside sums in float32, on a run's first rollout.

      error = |g - exact| / |exact|;   flipped: share of numbers with another sign;   adam: error of the last update

  The gradient of each row is taken by one device, in float32; what 8 or 64 devices would make of them is computed from
  those: "float32" adds in it, "bfloat16" rounds what a device sends and rounds the sum once (so XLA's CPU backend),
  "bfloat16 ring" also after each device (so a ring that carries bfloat16 numbers). All are rounded to bfloat16 at the
  end, as the trainer's are. "halves": how far the gradients of two halves of the rows are apart, over that of all: what
  a mini-batch's choice of samples does. "compute": what bfloat16 products do, on the first eight rows. "one device":
  what eight devices differ from one in, by the real programs, on those rows.

  Raises ValueError: no config, one that the run would refuse, or too few rows in its first rollout.
  """
  if cfg is None:
    raise ValueError("--config=None: sums needs an experiment, such as experiments/qwen2_5_cpu.py.")
  cfg.model.dtype, cfg.model.remat, cfg.model.sum_dtype = "bfloat16", "full", "float32"
  cfg.batch.micro_rows, cfg.eval.every, cfg.log.report = jax.device_count(), 0, False
  with tempfile.TemporaryDirectory() as folder:
    cfg.workdir = folder
    config.validate(cfg)
    batches = rows_of_a_rollout(run := assemble.build(cfg), updates)
  # Numbers that bfloat16 has, held in float32: their gradients are not rounded.
  narrow = lambda x: jax.device_put(np.asarray(x).astype(jnp.bfloat16).astype(np.float32), jax.devices()[0])
  params, run.state = jax.tree.map(narrow, run.state.params), None
  take, kinds = picked(params)
  gradient = jax.jit(lambda p, row, dtype: take(jax.grad(_total(run, dtype))(p, row)), static_argnums=2)
  adam = optax.scale_by_adam(b1=cfg.optimizer.b1, b2=cfg.optimizer.b2, eps=cfg.optimizer.eps)
  found, moments = {}, {}
  for rows in batches:
    tokens = sum(float(row.mask.sum()) for row in rows)
    of_rows = [jax.device_get(gradient(params, row, "bfloat16")) for row in rows]
    for number in SUMS_DEVICES:
      each = len(rows) // number
      parts = [_sum(of_rows[i : i + each]) for i in range(0, len(rows), each)]
      made, steps = {way: _scaled(g, 1 / tokens) for way, g in added(parts).items()}, {}
      for way, g in made.items():
        steps[way], moments[number, way] = adam.update(g, moments.get((number, way)) or adam.init(g))
      found[str(number)] = {
        way: apart(g, made["exact"], steps[way], steps["exact"], kinds) for way, g in made.items() if way != "exact"
      }
  halves = [_sum(of_rows[i::2]) for i in (0, 1)]
  found["halves"] = _error(*halves, kinds, over=_scaled(made["exact"], tokens))
  wide = _sum([jax.device_get(gradient(params, row, "float32")) for row in rows[:8]])
  found["compute"] = _error(_sum(of_rows[:8]), wide, kinds)
  if jax.device_count() >= 8:
    found["one device"] = _across(run, params, rows[:8], take, kinds)
  numbers = sum(x.size for x in made["exact"])
  return {"rows": len(rows), "updates": len(batches), "numbers": numbers, "tokens": int(tokens)} | found



def rows_of_a_rollout(run, updates: int) -> list[list[Batch]]:
  """SUMS_ROWS packed rows [1, T] for each of so many updates, from the first rollout of a run, with old log-probs."""
  with jax.set_mesh(run.mesh), run.scorer, metrics.Progress(run.cfg.workdir, 1, 0) as progress:
    groups, _ = collect(run, 1, progress)
    need, b = updates * SUMS_ROWS, run.cfg.batch
    packed = batching.pack(groups, row_tokens=b.row_tokens, micro_rows=1, num_micro=sum(map(len, groups)))
    if packed.used < need:
      raise ValueError(
        f"batch.prompts={b.prompts}: {packed.used} rows of responses, not {need}; use more prompts, or shorter rows."
      )
    chosen = np.random.default_rng(0).permutation(packed.used)[:need]
    micro = lambda x: x[chosen].reshape(-1, b.micro_rows, b.row_tokens)
    batch = jax.tree.map(micro, packed.batch)
    logp = run.steps.score(run.state.params, run.place(batch), need // b.micro_rows)["logp"]
    batch = dataclasses.replace(batch, old_logp=np.asarray(logp))
  row = lambda i: jax.tree.map(lambda x: x.reshape(need, 1, -1)[i], batch)
  return [[row(i) for i in range(first, first + SUMS_ROWS)] for first in range(0, need, SUMS_ROWS)]



def added(parts: list) -> dict:
  """The sum of lists of float32 arrays, one list per device, in each way of `sums`; "exact": in float64."""
  narrow = lambda arrays: [x.astype(jnp.bfloat16).astype(np.float32) for x in arrays]
  sent = [narrow(part) for part in parts]
  return {
    "exact": _sum([[x.astype(np.float64) for x in part] for part in parts]),
    "float32": narrow(_sum(parts)),
    "bfloat16": narrow(_sum(sent)),
    "bfloat16 ring": functools.reduce(lambda a, b: narrow(_sum([a, b])), sent),
  }



def apart(got, exact, step, exact_step, kinds) -> dict[str, dict[str, float]]:
  """By kind of parameter: error, cosine and flipped of a gradient, and the error of Adam's update."""
  error, adam, found = _error(got, exact, kinds), _error(step, exact_step, kinds), {}
  for kind, of in kinds.items():
    a, b = (np.concatenate([x[i] for i in of]).astype(np.float64) for x in (got, exact))
    cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    flipped = float(f"{np.mean(a * b < 0):.3g}")
    found[kind] = {"error": error[kind], "cosine": round(cosine, 8), "flipped": flipped, "adam": adam[kind]}
  return found



def picked(params):
  """(tree -> flat arrays of some numbers of each leaf, kind of parameter -> their places; "all" of them)."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  stride = max(1, -(-sum(x.size for _, x in leaves) // SUMS_NUMBERS)) | 1  # odd, as few sizes are
  strides = [min(stride, max(1, x.size // SUMS_LEAST)) for _, x in leaves]
  kinds: dict[str, list[int]] = {"all": list(range(len(leaves)))}
  for i, (path, _) in enumerate(leaves):
    name = path[-1].key
    kinds.setdefault(SUMS_KINDS.get(name, "biases" if "bias" in name else "norms"), []).append(i)
  return lambda tree: [x.reshape(-1)[::k] for x, k in zip(jax.tree.leaves(tree), strides, strict=True)], kinds



def _sum(parts: list) -> list:
  return functools.reduce(lambda a, b: [x + y for x, y in zip(a, b, strict=True)], parts)



def _scaled(arrays: list, factor: float) -> list:
  return [x * factor for x in arrays]



def _error(got, exact, kinds, over=None) -> dict[str, float]:
  """|got - exact| / |over| by kind of parameter; over, None: exact."""
  size = lambda arrays, of: np.sqrt(sum(np.sum(np.square(arrays[i], dtype=np.float64)) for i in of))
  less = [np.asarray(a, np.float64) - b for a, b in zip(got, exact, strict=True)]
  return {kind: float(f"{size(less, of) / size(over or exact, of):.3g}") for kind, of in kinds.items()}



def _total(run, dtype: str, sum_dtype: str = "float32"):
  """(parameters, rows [R, T]) -> the loss, summed over tokens."""
  cfg, model = run.cfg, make_model(dataclasses.replace(run.model.config, dtype=dtype, sum_dtype=sum_dtype))
  objective = make_objective(cfg.algorithm.name, terms=parts.open_terms(cfg), **parts.hyperparameters(cfg))

  def total(params, rows):
    hidden = model.hidden(params, rows.tokens, rows.positions, rows.segments)
    # All in the head's dtype, as its gradient is then; XLA's CPU backend takes no wide operand beside a narrow one.
    table = params["embed_VD" if model.config.tie_embeddings else "head_VD"]
    logp, entropy = logprobs.token_logprobs(
      hidden.astype(table.dtype), table, rows.tokens, rows.segments, temperature=cfg.rollout.temperature,
      logits_mib=cfg.model.logits_mib, sum_dtype=sum_dtype,
    )  # fmt: skip
    return objective(logp, rows, entropy, None).loss.total

  return total



def _across(run, params, rows, take, kinds) -> dict[str, dict[str, float]]:
  """The gradient of rows on eight devices against that on one, both with narrow parameters, by dtype of the sums."""
  rows, found, one = jax.tree.map(lambda *x: np.concatenate(x), *rows), {}, []
  for number, sum_dtype in ((1, "float32"), (8, "float32"), (8, "bfloat16")):
    mesh = make_mesh({"data": 1, "fsdp": number, "context": 1, "tensor": 1}, jax.devices()[:number])
    place = run.model.shardings(mesh)
    with jax.set_mesh(mesh):
      narrow = jax.tree.map(lambda x, s: jax.device_put(np.asarray(x).astype(jnp.bfloat16), s), params, place)
      grad = jax.jit(jax.grad(_total(run, "bfloat16", sum_dtype)), out_shardings=place)
      got = take(jax.device_get(grad(narrow, to_mesh(mesh, rows, "rows", "tokens"))))
      got = [np.asarray(x, np.float32) for x in got]
    if number == 1:
      one = got
    else:
      found[sum_dtype] = _error(got, one, kinds)
  return found

