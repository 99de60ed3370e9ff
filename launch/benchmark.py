"""Speed of one part of the project on this machine: `python launch/benchmark.py --what=NAME`.

The last line is one JSON object. Times are medians of five runs after one that compiles.

    sampler     tok_s: tokens sampled per second; every response has the same length
    longtail    useful_tok_s: the same for responses of very different lengths; occupancy: share of slot steps used
    real_sampler  tok_s: a Hugging Face checkpoint (--model=DIR) in bfloat16
    gap         bfloat16, bfloat16_int8, float32, float32_int8: by compute dtype and cache, log-probs of the trainer
                against those of the sampler on what a checkpoint (--model=DIR) writes, and the weights that correct
                for it; no times
    step        tok_s: tokens of one optimizer step of DAPO on 16 rows of 512 tokens; peak_rss_mb is of interest, too
    train       tok_s, mfu, peak_gib: an experiment's own optimizer step (--config=FILE --config.FIELD=VALUE) on the
                devices there are, random weights and --micro_batches of full rows: what compile.py foretells
    sums        by number of devices, way of adding and kind of parameter: how far the sum of their gradients is from
                the exact one, on what an experiment (--config=FILE) samples first; no times
    future_kl   seconds, baseline_seconds, ratio: Future-KL by scan against the published form, a chunked matmul;
                through the loss and its gradient: loss_seconds
    rewards     math_dapo_s, math_symbolic_s: verdicts per second through the pool, on two processes;
                long_ratio: seconds of 32 responses of 80,000 characters per character, over those of 800
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import resource
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from launch import interpreter  # noqa: F401, I001 - first: it may end the program

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from ml_collections import config_flags

from fipo_jax import assemble, command_line, config, metrics
from fipo_jax.algorithms import future_kl as fkl
from fipo_jax.algorithms import losses, make_objective
from fipo_jax.algorithms.presets import PRESETS
from fipo_jax.algorithms.terms import sampler_weight
from fipo_jax.collect import collect
from fipo_jax.data.tokenizer import Tokenizer
from fipo_jax.models import hf, logprobs, make_model
from fipo_jax.models.transformer import ModelConfig
from fipo_jax.pods import chips, programs
from fipo_jax.rewards.score import Job, Scorer
from fipo_jax.rollout import ENGINES, Sampling
from fipo_jax.sharding import for_rollout, make_mesh, to_mesh
from fipo_jax.train import batching, state
from fipo_jax.types import Batch, Prompt

SMALL_QWEN2 = ModelConfig(
  vocab_size=4096,
  num_layers=4,
  d_model=256,
  d_mlp=1024,
  num_heads=4,
  num_kv_heads=2,
  head_dim=64,
  rope_theta=1e6,
  norm_eps=1e-6,
  tie_embeddings=True,
  max_position=4096,
)
RUNS = 5
LONGTAIL_PAGE, LONGTAIL_CACHE = 32, 6144  # tokens; without a bound 32 slots could need 10,240
GAP_SAMPLES = 4  # of each prompt
GAP_CAP = 2.0  # the example of algorithm.sampler_ratio_cap in config.py; no experiment sets one
GAP_RUNS = tuple((dtype, cache) for dtype in ("bfloat16", "float32") for cache in ("", "int8"))
GAP_TEXTS = (
  "Question: A farmer has 17 sheep and buys 3 more than twice as many. How many are there now?\nAnswer:",
  "Question: What is the remainder when 7^100 is divided by 13? Think step by step.\nAnswer:",
  "Let f(x) = x^3 - 3x + 1. We look for all local extrema. First, the derivative is",
  "Problem: Three fair dice are rolled. Find the probability that the sum is 10.\nSolution:",
  "# Returns the n-th Fibonacci number, n >= 0, without recursion.\ndef fibonacci(n):\n",
  "def is_balanced(text: str) -> bool:\n  \"\"\"Whether brackets (), [] and {} are balanced.\"\"\"\n",
  "-- The ten customers who spent most last year, with what they spent\nSELECT",
  "The train leaves at 9:40 and arrives at 13:05 after two stops of 6 minutes. To find the time it moved, we",
)


SUMS_DEVICES, SUMS_ROWS = (8, 64), 64  # rows of an update are dealt to so many devices
SUMS_NUMBERS = 2**22  # of larger models every so many-th number of each parameter
SUMS_LEAST = 10_000  # but so many of each that has them
SUMS_KINDS = {
  "embed_VD": "embedding", "head_VD": "head", "q_DHh": "q, k, v", "k_DKh": "q, k, v", "v_DKh": "q, k, v",
  "o_DHh": "attention out", "gate_DF": "gate, up", "up_DF": "gate, up", "down_DF": "down",
}  # fmt: skip


def small_engine(**options):
  """The native engine with random weights of the small model, and prompts of 64 tokens: (engine, prompts(n))."""
  model, prompt_tokens = make_model(SMALL_QWEN2), 64
  mesh = make_mesh({"data": -1, "fsdp": 1, "context": 1, "tensor": 1})
  engine = ENGINES["native"](
    model, mesh, slots=32, max_prompt_tokens=prompt_tokens, max_response_tokens=256, pad_id=0, **options
  )  # fmt: skip
  engine.update(jax.jit(model.init)(jax.random.key(0)))

  def prompts(n):
    tokens = np.random.default_rng(0).integers(3, SMALL_QWEN2.vocab_size, (n, prompt_tokens))
    return [Prompt(i, row.astype(np.int32), "", "", "none") for i, row in enumerate(tokens)]

  return engine, prompts


def timed(run, runs: int = 0) -> tuple[float, float]:
  """(median seconds of so many runs (0: RUNS) after one that compiles, seconds that the first took longer)."""
  times = []
  for seed in range(1 + (runs or RUNS)):
    begin = time.perf_counter()
    run(seed)
    times.append(time.perf_counter() - begin)
  seconds = statistics.median(times[1:])
  return seconds, times[0] - seconds


def sampler() -> dict:
  """32 prompts of 64 tokens, 256 new tokens each, temperature 1, nothing stops early."""
  engine, prompts = small_engine()
  sampling, batch = Sampling(max_tokens=256), prompts(32)
  seconds, compile_s = timed(lambda seed: engine.generate(batch, 1, key=jax.random.key(seed), sampling=sampling))
  u = engine.usage
  return {
    "tokens": u.tokens, "seconds": seconds, "tok_s": u.tokens / seconds, "occupancy": u.occupancy,
    "cache_over_held": u.peak_cache_bytes / u.held_bytes, "compile_s": compile_s,
  }  # fmt: skip


def longtail() -> dict:
  """256 prompts of 64 tokens in 32 slots; lengths mostly short, some at the limit of 256: 8 + geometric, mean 48."""
  engine, prompts = small_engine(page_tokens=LONGTAIL_PAGE, cache_tokens=LONGTAIL_CACHE)
  lengths = np.minimum(256, np.random.default_rng(1).geometric(1 / 48, size=256) + 8)
  sampling, batch = Sampling(max_tokens=256), prompts(256)
  run = lambda seed: engine.generate(batch, 1, key=jax.random.key(seed), sampling=sampling, limits=lengths)
  seconds, compile_s = timed(run)
  u = engine.usage
  return {
    "useful_tokens": int(lengths.sum()), "seconds": seconds, "useful_tok_s": float(lengths.sum() / seconds),
    "occupancy": u.occupancy, "cache_over_held": u.peak_cache_bytes / u.held_bytes,
    "prefill_tokens": u.prefill_tokens, "interrupted": u.interrupted,
    "first_sample_s": u.first_sample_s, "tail_ratio": float(lengths.max() / np.median(lengths)),
    "compile_s": compile_s,
  }  # fmt: skip


def real_sampler(model_dir: str) -> dict:
  """A Hugging Face checkpoint (--model) in bfloat16: 32 prompts of 64 tokens, 128 new tokens each."""
  if not model_dir:
    raise ValueError("--model='': real_sampler needs a Hugging Face directory, such as Qwen2.5-0.5B.")
  mesh = make_mesh({"data": -1, "fsdp": 1, "context": 1, "tensor": 1})
  model = make_model(dataclasses.replace(hf.read_config(model_dir), dtype="bfloat16", param_dtype="bfloat16"))
  engine = ENGINES["native"](model, mesh, slots=32, max_prompt_tokens=64, max_response_tokens=128, pad_id=0)
  engine.update(hf.load(model_dir, model, mesh))
  tokens = np.random.default_rng(0).integers(3, 50_000, (32, 64))
  batch = [Prompt(i, row.astype(np.int32), "", "", "none") for i, row in enumerate(tokens)]
  sampling = Sampling(max_tokens=128)
  run = lambda seed: engine.generate(batch, 1, key=jax.random.key(seed), sampling=sampling)
  seconds, compile_s = timed(run, runs=3)
  u = engine.usage
  return {
    "tokens": u.tokens, "seconds": seconds, "tok_s": u.tokens / seconds, "occupancy": u.occupancy,
    "prefill_s": u.prefill_seconds, "compile_s": compile_s,
  }  # fmt: skip


def gap(model_dir: str, tokens: int) -> dict:
  """A Hugging Face checkpoint (--model) samples 4 responses to 8 prompts; the trainer's program scores the same tokens.

  In bfloat16 and float32, with the cache in the compute dtype and in int8. Parameters are float32, as in a run.
  """
  if not model_dir:
    raise ValueError("--model='': gap needs a Hugging Face directory, such as Qwen2.5-0.5B.")
  sizes, tokenizer = hf.read_config(model_dir), Tokenizer.load(model_dir)
  mesh = make_mesh({"data": -1, "fsdp": 1, "context": 1, "tensor": 1})
  make = lambda dtype: make_model(dataclasses.replace(sizes, dtype=dtype, param_dtype="float32"))
  params, found = hf.load(model_dir, make("float32"), mesh), {}
  for dtype, cache in GAP_RUNS:
    name = f"{dtype}_{cache}" if cache else dtype
    found[name] = gap_of(*sampled_and_scored(make(dtype), params, mesh, tokenizer, cache, tokens))
    print(f"{name}: {json.dumps(found[name])}", flush=True)
  return found | {"tokens": tokens, "cap": GAP_CAP}


def sampled_and_scored(model, params, mesh, tokenizer, cache: str, tokens: int) -> tuple[list, list]:
  """Log-probabilities of each response's tokens, by the sampler with this cache and by the trainer: ([n], ..) twice."""
  prompts = [Prompt(i, np.asarray(tokenizer.encode(x), np.int32), x, "", "none") for i, x in enumerate(GAP_TEXTS)]
  longest = max(len(p.tokens) for p in prompts)
  engine = ENGINES["native"](
    model, mesh, slots=GAP_SAMPLES * len(prompts), max_prompt_tokens=longest, max_response_tokens=tokens,
    pad_id=tokenizer.pad_id, cache_dtype=cache,
  )  # fmt: skip
  engine.update(params)
  sampling = Sampling(max_tokens=tokens, stop_ids=tokenizer.stop_ids)
  groups = engine.generate(prompts, GAP_SAMPLES, key=jax.random.key(0), sampling=sampling)
  engine.release()
  rows = -(-8 // mesh.size) * mesh.size
  packed = batching.pack(
    groups, row_tokens=-(-(longest + tokens) // 128) * 128, micro_rows=rows, num_micro=GAP_SAMPLES * len(prompts)
  )  # fmt: skip
  steps, _, _ = assemble.open_steps(config.default(), model, mesh)
  with jax.set_mesh(mesh):
    logp = steps.score(params, to_mesh(mesh, packed.batch, None, "rows", "tokens"), packed.used)["logp"]
  logp = np.asarray(logp)
  scored = [logp[p.micro, p.row, p.start : p.stop] for p in packed.places]
  return [r.logp for group in groups for r in group], scored


def gap_of(sampled: list, scored: list) -> dict:
  """How far two programs' log-probabilities of the same tokens are apart, x = scored - sampled in nats.

      mean, p99, max of |x|;   bias = mean x;   k3 = mean(exp x - 1 - x);   weight = min(exp x, cap)

  response: mean over responses of |sum of x|. weight_mean, weight_clipped: of the weights that correct for it, the mean
  and the share at the cap.
  """
  apart = [np.asarray(t, np.float64) - s for s, t in zip(sampled, scored, strict=True)]
  weight = np.asarray(sampler_weight(np.concatenate(scored), np.concatenate(sampled), True, cap=GAP_CAP), np.float64)
  x = np.concatenate(apart)
  size = np.abs(x)
  found = {
    "mean": size.mean(), "p99": np.quantile(size, 0.99), "max": size.max(), "bias": x.mean(),
    "k3": (np.expm1(x) - x).mean(), "response": np.mean([abs(sum(a)) for a in apart]), "weight_mean": weight.mean(),
    "weight_clipped": (x > np.log(GAP_CAP)).mean(),
  }  # fmt: skip
  return {"sampled": len(x)} | {name: float(f"{value:.4g}") for name, value in found.items()}


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
  objective = make_objective(cfg.algorithm.name, terms=assemble.open_terms(cfg), **assemble.hyperparameters(cfg))

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


def step() -> dict:
  """One DAPO step of the small model in float32: 16 rows of 64 prompt and 448 response tokens, AdamW."""
  rows, prompt_tokens, micro_rows = 16, 64, 2
  cfg = config.default()
  cfg.algorithm.update(PRESETS["dapo"])
  cfg.batch.row_tokens, cfg.batch.micro_rows = prompt_tokens + 448, micro_rows
  mesh = make_mesh({"data": 1, "fsdp": -1, "context": 1, "tensor": 1})
  return optimizer_step(cfg, make_model(SMALL_QWEN2), mesh, rows // micro_rows, prompt_tokens)


def train(cfg, micro_batches: int) -> dict:
  """An experiment's step with random weights, in one process; MFU counts what the mathematics needs, no recomputation.

  Raises ValueError: no config, or one that the run would refuse, or of ppo: its value head is not timed.
  """
  if cfg is None:
    raise ValueError("--config=None: train needs an experiment, such as experiments/fipo_qwen2_5_32b.py.")
  if cfg.algorithm.name == "ppo":
    raise ValueError("algorithm.name='ppo': its step with a value head is not timed; use another.")
  programs.validate(cfg)
  model, mesh = make_model(programs.model_config(cfg)), make_mesh(cfg.mesh)
  config.check_mesh(cfg, mesh.shape, for_rollout(mesh, cfg.rollout.tensor).shape)
  result = optimizer_step(cfg, model, mesh, micro_batches, prompt_tokens=1)
  linear, attention, _ = programs.forward_flops(model, cfg.batch, mesh)
  tflop_s = 3 * (linear + attention) * micro_batches / result["seconds"] / 1e12
  device = mesh.devices.flat[0]
  peak = next((v for kind, v in chips.PEAK_TFLOP_S.items() if device.device_kind.startswith(kind)), None)
  memory = device.memory_stats() or {}
  return result | {
    "device": device.device_kind, "devices": mesh.size, "tflop_s_per_device": tflop_s,
    "mfu": tflop_s / peak if peak else None, "peak_gib": memory.get("peak_bytes_in_use", 0) / 2**30 or None,
  }  # fmt: skip


def optimizer_step(cfg, model, mesh, num_micro: int, prompt_tokens: int) -> dict:
  """Times the update program of a config on random weights and full rows of one sequence each."""
  steps, optimizer, abstract = assemble.open_steps(cfg, model, mesh)
  layout = state.layout(abstract)
  with jax.set_mesh(mesh):
    params = jax.jit(model.init, out_shardings=layout.params)(jax.random.key(0))
    create = jax.jit(lambda p: state.create(p, optimizer), donate_argnums=0, out_shardings=layout)
    current = create(params)
  del params
  rng, shape = np.random.default_rng(0), (num_micro, cfg.batch.micro_rows, cfg.batch.row_tokens)
  wide = lambda x: np.broadcast_to(x, shape)
  mask = wide(np.arange(shape[-1]) >= prompt_tokens).astype(np.float32)
  batch = Batch(
    tokens=rng.integers(3, model.config.vocab_size, shape).astype(np.int32),
    positions=wide(np.arange(shape[-1], dtype=np.int32)), segments=np.ones(shape, np.int32), mask=mask,
    advantages=mask * rng.normal(size=shape[:2])[..., None].astype(np.float32), old_logp=mask,
    sampler_logp=mask, group_tokens=8.0 * mask * (shape[-1] - prompt_tokens), age=np.zeros(shape, np.float32),
  )  # fmt: skip
  batch = to_mesh(mesh, batch, None, "rows", "tokens")
  with jax.set_mesh(mesh):
    logp = steps.score(current.params, batch, num_micro)["logp"]  # on policy: no objective turns rows away
  batch, loss = dataclasses.replace(batch, old_logp=logp, sampler_logp=logp, ref_logp=logp), None

  def run(_):
    nonlocal current, loss
    with jax.set_mesh(mesh):
      current, metrics = steps.update(current, batch, num_micro)
      jax.block_until_ready((current, metrics))
    loss = float(metrics["loss"].value())

  seconds, compile_s = timed(run)
  tokens = int(np.prod(shape))
  return {
    "rows": tokens // shape[-1], "tokens": tokens, "seconds": seconds, "tok_s": tokens / seconds,
    "compile_s": compile_s, "loss": loss,
  }  # fmt: skip


def future_kl() -> dict:
  """16 rows of 20,480 tokens in float32, half-life 32: ours and the chunked matmul of the published code, in turn."""
  rows, tokens, half_life, chunk = 16, 20_480, 32.0, 128
  rng = np.random.default_rng(0)
  delta_RT = jnp.asarray(0.02 * rng.standard_normal((rows, tokens)), jnp.float32)
  one_RT = jnp.ones((rows, tokens), jnp.int32)
  unit_RT = jnp.ones((rows, tokens), jnp.float32)
  advantages_RT = jnp.asarray(rng.standard_normal((rows, tokens)), jnp.float32)
  batch = Batch(one_RT, one_RT, one_RT, unit_RT, advantages_RT, -unit_RT, -unit_RT, unit_RT)

  def matmul(x_RT):
    """Per chunk of source tokens a dense [T, chunk] block of decays and a product, added to the running sum."""
    t = jnp.arange(tokens)[:, None]

    def one(i, F_RT):
      distance = i * chunk + jnp.arange(chunk) - t
      decay = jnp.where(distance >= 0, 2.0 ** (-jnp.maximum(distance, 0) / half_life), 0.0).astype(jnp.float32)
      return F_RT + jax.lax.dynamic_slice_in_dim(x_RT, i * chunk, chunk, axis=1) @ decay.T

    return jax.lax.fori_loop(0, tokens // chunk, one, jnp.zeros_like(x_RT))

  # Everything is an argument: what is constant would be computed by the compiler.
  scan = jax.jit(functools.partial(fkl.future_kl, half_life_tokens=half_life))
  loss = lambda logp_RT, batch: losses.fipo(logp_RT, batch, half_life_tokens=half_life).loss.total
  programs = {"seconds": scan, "baseline_seconds": jax.jit(matmul), "loss_seconds": jax.jit(jax.value_and_grad(loss))}
  scanned = (delta_RT, one_RT, one_RT)
  inputs = {"seconds": scanned, "baseline_seconds": (delta_RT,), "loss_seconds": (delta_RT - 1, batch)}
  results = {name: program(*inputs[name]) for name, program in programs.items()}
  apart = float(jnp.abs(results["seconds"] - results["baseline_seconds"]).max())
  if not apart < 1e-4:
    raise ValueError(f"Future-KL by scan and by matmul are {apart} nats apart; they must agree.")
  times = {name: [] for name in programs}
  for _ in range(RUNS):
    for name, program in programs.items():
      begin = time.perf_counter()
      jax.block_until_ready(program(*inputs[name]))
      times[name].append(time.perf_counter() - begin)
  medians = {name: statistics.median(t) for name, t in times.items()}
  temporaries = scan.lower(*scanned).compile().memory_analysis().temp_size_in_bytes
  return {
    "rows": rows, "tokens": tokens, **medians, "ratio": medians["baseline_seconds"] / medians["seconds"],
    "largest_difference": apart, "temporary_mb": temporaries / 2**20,
  }  # fmt: skip


def rewards() -> dict:
  """Verdicts through the pool of two processes; responses of 1,600 characters, no two answers alike."""
  thought = "Let us think step by step. " * 60
  forms = (r"{0}", r"\frac{{{0}}}{{7}}", r"{0}.5", r"2^{{{0}}}", r"{0}\pi", r"{0}\sqrt{{3}}", r"({0}, {0}]", r"{0}\%")
  answers = [forms[i % len(forms)].format(i % 97 + 2) for i in range(4000)]

  def jobs(verifier, number, characters=1600):
    text = (thought * (characters // len(thought) + 1))[:characters]
    return [Job(verifier, f"{text}\nAnswer: {a}", answers[i - i % 2]) for i, a in enumerate(answers[:number])]

  settings = dict(workers=2, timeout_s=10.0, verifier_file=None, on_error="score_wrong", wrong_score=-1.0)
  with Scorer(**settings) as scorer:
    scorer.score(jobs("math_symbolic", 8) + jobs("math_dapo", 8))  # imports
    once = lambda jobs: timed(lambda _: scorer.score(jobs))[0]
    found = {f"{name}_s": number / once(jobs(name, number)) for name, number in
             (("math_dapo", 4000), ("math_symbolic", 400))}  # fmt: skip
    short, long = (once(jobs("math_symbolic", 32, characters)) for characters in (800, 80_000))
    return found | {"long_ratio": long / short / 100, "long_s": long, "failed": scorer.errors + scorer.timeouts}


BENCHMARKS = {
  "rewards": rewards,
  "sampler": sampler,
  "longtail": longtail,
  "step": step,
  "future_kl": future_kl,
}


def define_flags() -> None:
  names = sorted([*BENCHMARKS, "gap", "real_sampler", "sums", "train"])
  flags.DEFINE_enum("what", None, names, "Which part.", required=True)
  flags.DEFINE_string("model", "", "Hugging Face directory, for real_sampler and gap.")
  flags.DEFINE_integer("tokens", 128, "Of a response, for gap.", lower_bound=1)
  help_ = "An experiment file, for train and sums; --config.FIELD=VALUE overrides."
  config_flags.DEFINE_config_file("config", None, help_)
  flags.DEFINE_integer("micro_batches", 4, "Of a step, for train.", lower_bound=1)
  flags.DEFINE_integer("updates", 1, "Of Adam, for sums.", lower_bound=1)


def main(argv) -> None:
  if len(argv) > 1:
    command_line.fail(f"unexpected argument {argv[1]!r}: options are given as --NAME=VALUE.")
  given = flags.FLAGS
  own = {
    "gap": lambda: gap(given.model, given.tokens),
    "real_sampler": lambda: real_sampler(given.model),
    "sums": lambda: sums(given.config, given.updates),
    "train": lambda: train(given.config, given.micro_batches),
  }
  try:
    result = (BENCHMARKS | own)[given.what]()
  except (ValueError, OSError) as e:
    if os.environ.get("FIPO_TRACEBACK"):
      raise
    command_line.fail(str(e))
  peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
  rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in result.items()}
  print(json.dumps({"what": given.what, **rounded, "peak_rss_mb": peak_rss_mb, "jax": jax.__version__}))


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command_line.plain)
