"""Golden kinds without a policy loss: advantages, rewards, validation, models and tokenizers.

See golden_check.py. What a kind needs is imported inside its check, so that one broken module fails
its own kind only.
"""

from __future__ import annotations

import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from prefilled import prefilled
from tolerances import limit

from fipo_jax.algorithms import advantages


def load(folder: pathlib.Path, name: str) -> dict:
  with np.load(folder / name, allow_pickle=False) as archive:
    return {key: archive[key] for key in archive.files}


def setting(config: dict, name: str, fallback):
  """A knob, or what the reference falls back to when it is absent or null."""
  return fallback if config.get(name) is None else config[name]


def check_grpo(report, folder, entry):
  z, config = load(folder, entry["file"]), entry["config"]
  rewards_B = z["token_level_rewards"].astype(np.float64).sum(1)
  keys = [str(k) for k in z["index"]]
  ddof = 1 if setting(config, "norm_adv_by_std_in_grpo", True) else None
  ours_B = np.zeros_like(rewards_B)
  for key in set(keys):
    rows = [i for i, other in enumerate(keys) if other == key]
    ours_B[rows] = advantages.group_relative(
      rewards_B[rows][None], std_ddof=ddof, epsilon=setting(config, "epsilon", 1e-6)
    )[0]
  mask_BT = z["response_mask"].astype(bool)
  ours_BT = np.where(mask_BT, ours_B[:, None], 0.0)
  size_B = np.array([keys.count(k) for k in keys])
  equal_B = np.array([np.ptp(rewards_B[[k == other for other in keys]]) == 0 for k in keys]) & (
    size_B > 1
  )
  fragile = bool(entry.get("fragile"))
  rows = {"single rows": size_B == 1, "groups": (size_B > 1) & ~(fragile & equal_B)}
  dtype = z["token_level_rewards"].dtype
  tight = float(limit(terms=len(keys), dtype=dtype))
  for group, chosen_B in rows.items():
    tolerance = (
      max(tight, float(limit(dtype=np.float32))) if group == "single rows" else tight
    )  # the reference divides those in float32
    chosen_BT = np.broadcast_to(chosen_B[:, None], mask_BT.shape)
    report.close(
      "advantages", ours_BT, z["advantages"], tolerance, where=chosen_BT, group=f"{group} {dtype}"
    )
  if equal_B.any():
    report.equal("equal rewards give 0", bool((ours_B[equal_B] == 0).all()), True)
    if fragile:
      report.departure(
        "groups of equal rewards: ours exactly 0, reference has rounding noise (marked fragile)"
      )


def check_overlong(report, folder, entry):
  from fipo_jax.rewards.score import overlong_penalty

  for i, case in enumerate(read_lines(folder / entry["file"])):
    name = f"line {i + 1}"
    n, longest, b = (case[k] for k in ("response_length", "max_response_length", "buffer_len"))
    reference = float(case["penalty"])
    try:
      ours = overlong_penalty(n, max_tokens=longest, buffer_tokens=b, factor=case["penalty_factor"])
    except ValueError as error:
      (report.departure if b == 0 else report.mismatch)(
        f"{name}: ours refuses buffer_tokens={b}: {error}"
      )
      continue
    if b == 0 and not np.isfinite(reference):
      report.equal(name, bool(np.isfinite(ours)), True)
      report.departure(
        f"{name}: reference {reference} at n={n}, buffer 0 (division by zero); ours {ours}"
      )
      continue
    tolerance = float(limit(dtype=np.float32))
    report.close(name, ours, reference, tolerance)
    report.equal(f"{name} overlong", bool(ours < 0), case["overlong"])
    report.close(f"{name} total", case["score"] + ours, float(case["total_reward"]), tolerance)


def check_verifier(report, folder, entry):
  from fipo_jax.rewards.math_dapo import verify_dapo

  for case in read_lines(folder / entry["file"]):
    name = str(case.get("id", "?"))
    strict = bool(case.get("strict_box_verify", False))
    try:
      score = verify_dapo(case["solution_str"], case["ground_truth"], strict_box=strict)
    except (TypeError, AttributeError, ValueError) as error:
      if "raises" not in case:
        report.mismatch(f"{name}: ours raises {type(error).__name__}: {error}")
      else:
        report.equal(name, "raises", "raises")
      continue
    if "raises" in case:
      report.equal(name, float(score.accuracy), 0.0)
      report.departure(f"{name}: reference raises {case['raises']}, ours scores it wrong")
      continue
    ours = {"score": float(score.score), "acc": bool(score.accuracy), "pred": score.pred}
    report.equal(
      name, ours, {"score": float(case["score"]), "acc": bool(case["acc"]), "pred": case["pred"]}
    )


def check_normalize(report, folder, entry):
  from fipo_jax.rewards.math_dapo import normalize

  for i, case in enumerate(read_lines(folder / entry["file"])):
    report.equal(f"line {i + 1}", normalize(case["text"]), case["normalized"])


def check_validation(report, folder, entry):
  from fipo_jax import evaluate

  case = json.loads((folder / entry["file"]).read_text(encoding="utf-8"))
  tolerance = float(limit(terms=1000, dtype=np.float64))  # draws of the bootstrap
  lists = [case[k] for k in ("data_sources", "sample_inputs", "pred", "acc")]
  ours = evaluate.validation_metrics(*lists, case["reward"])
  for source, variables in case.get("official", {}).items():
    for variable, metrics in variables.items():
      found = ours.get(source, {}).get(variable, {})
      report.equal(f"{source} {variable} names", sorted(found), sorted(metrics))
      for name, number in metrics.items():
        report.close(
          f"{source} {variable} {name}", found.get(name, np.nan), number, tolerance, group="bootstrap"
        )
  prompts: dict[str, dict[str, list[int]]] = {}
  for i, (source, prompt) in enumerate(zip(*lists[:2], strict=True)):
    prompts.setdefault(source, {}).setdefault(prompt, []).append(i)
  of = lambda rows: evaluate.exact_per_prompt([case["pred"][i] for i in rows], [case["acc"][i] for i in rows])
  means = lambda rows: {name: np.mean([row[name] for row in rows]) for name in rows[0] if name != "n_tied"}
  exact = {source: means([of(rows) for rows in by.values()]) for source, by in prompts.items()}
  for source, metrics in case.get("exact_mean_over_prompts", {}).items():
    for name, number in metrics.items():
      report.close(
        f"{source} {name}",
        exact.get(source, {}).get(name, np.nan),
        number,
        tolerance,
        group="exact definitions",
      )
  for row in case.get("exact_per_prompt", []):
    here = [
      i
      for i, pair in enumerate(zip(*lists[:2], strict=True))
      if pair == (row["data_source"], row["prompt"])
    ]
    found = evaluate.exact_per_prompt(
      [case["pred"][i] for i in here], [case["acc"][i] for i in here]
    )
    for name, number in found.items():
      report.close(
        f"{row['prompt']} {name}", number, row.get(name, number), tolerance, group="exact definitions"
      )


def check_qwen2(report, folder, entry):
  from fipo_jax import models, sharding
  from fipo_jax.models import hf
  from fipo_jax.models.logprobs import token_logprobs

  z = load(folder, entry["file"])
  model = models.make_model(hf.read_config(folder))
  mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "context": 1, "tensor": 1}, jax.devices()[:1])
  params = hf.load(folder, model, mesh)
  tokens_RT = jnp.asarray(z["token_ids"], jnp.int32)
  mask_RT = np.asarray(z["mask"]).astype(bool) if "mask" in z else np.ones(tokens_RT.shape, bool)
  segments_RT = jnp.asarray(mask_RT, jnp.int32)
  positions_RT = jnp.broadcast_to(jnp.arange(tokens_RT.shape[1], dtype=jnp.int32), tokens_RT.shape)

  @jax.jit
  def scored(params):
    hidden_RTD = model.hidden(params, tokens_RT, positions_RT, segments_RT)
    return model.logits(params, hidden_RTD), *token_logprobs(hidden_RTD, model.head(params), tokens_RT, segments_RT)

  logits_RTV, logp_RT, entropy_RT = map(np.asarray, scored(params))
  # A layer's inner sizes, one after another, in units of the largest logit.
  terms = model.config.num_layers * (3 * model.config.d_model + model.config.d_mlp + tokens_RT.shape[1])
  tolerance = float(limit(terms=terms, scale=np.abs(logits_RTV[mask_RT]).max()))
  if "logits" in z:
    report.close("logits", logits_RTV, z["logits"], tolerance, where=np.broadcast_to(
      mask_RT[..., None], z["logits"].shape), group="logits")  # fmt: skip
  follows_RT = mask_RT & (np.arange(mask_RT.shape[1]) > 0)
  if "token_logprob" in z:
    report.close(
      "token_logprob",
      logp_RT,
      z["token_logprob"],
      tolerance,
      where=follows_RT,
      group="log-probs, entropy",
    )
  if "entropy" in z:  # theirs is of the next token, ours of the token itself
    report.close("entropy", entropy_RT[:, 1:], z["entropy"][:, :-1], tolerance, where=follows_RT[:, 1:],
                 group="log-probs, entropy")  # fmt: skip
  if "greedy" in z:
    check_greedy(report, model, params, z["greedy"], z["token_ids"], tolerance)
  check_export(report, model, params, folder)


def check_export(report, model, params, folder):
  """Written again, with the folder as template and without: the same tensors, bit for bit, and the same model."""
  from fipo_jax.models import hf, tensor_files

  theirs, config = tensor_files.open_all(folder), tensor_files.read_json(folder / "config.json")
  for name, template in (("export", folder), ("export without a template", None)):
    with tempfile.TemporaryDirectory() as scratch:
      written = pathlib.Path(scratch) / "model"
      hf.save(written, params, model.config, template_dir=template)
      ours, again = tensor_files.open_all(written), tensor_files.read_json(written / "config.json")
      report.equal(f"{name}: names of tensors", sorted(ours), sorted(theirs), group="export")
      for tensor in sorted(ours.keys() & theirs.keys()):
        same = ours[tensor].shape == theirs[tensor].shape and bool((ours[tensor] == theirs[tensor]).all())
        report.equal(f"{name}: {tensor}", same, True, group="export")
      fields = config if template else ("architectures", "model_type")
      report.equal(name, [again.get(f) for f in fields], [config[f] for f in fields], group="export")
      report.equal(f"{name} read again", hf.read_config(written), model.config, group="export")


def check_greedy(report, model, params, greedy_SM, token_ids, tolerance):
  """Prefill of the common beginning, then cached steps fed the reference's tokens: each the argmax."""
  slots, longest = greedy_SM.shape
  shared = min(longest, token_ids.shape[1])
  differs = np.argwhere((greedy_SM[:, :shared] != token_ids[:, :shared]).any(0))
  given = int(differs[0, 0]) if differs.size else shared
  before = given - 1  # tokens in the cache before the first step
  positions = jnp.broadcast_to(jnp.arange(before, dtype=jnp.int32), (slots, before))
  ids = jnp.asarray(greedy_SM, jnp.int32)
  kv = prefilled(model, params, ids[:, :before], positions, jnp.ones_like(positions))
  room = [(0, 0), (0, 0), (0, longest - before), (0, 0), (0, 0)]
  cache = tuple(jnp.pad(x, room) for x in kv)

  @jax.jit
  def step(token_S, t, cache):
    def attend(cache, layer, q_SHh, k_SKh, v_SKh):
      (S, H, h), K = q_SHh.shape, k_SKh.shape[1]
      k, v = (x.at[layer, :, t].set(new) for x, new in zip(cache, (k_SKh, v_SKh), strict=True))
      q_SKgh = q_SHh.reshape(S, K, H // K, h) * h**-0.5
      scores = jnp.einsum("skgh,smkh->skgm", q_SKgh, k[layer], precision="highest")
      weights = jax.nn.softmax(jnp.where(jnp.arange(longest) <= t, scores, -jnp.inf), axis=-1)
      return jnp.einsum("skgm,smkh->skgh", weights, v[layer], precision="highest").reshape(S, H, h), (k, v)

    return model.decode(params, token_S, jnp.full(slots, t), cache, attend)

  for t in range(given, longest):
    hidden_SD, cache = step(ids[:, t - 1], jnp.int32(t - 1), cache)
    logits_SV = np.asarray(model.logits(params, hidden_SD))
    chosen_S = np.take_along_axis(logits_SV, greedy_SM[:, t : t + 1].astype(np.int64), 1)[:, 0]
    report.close(
      f"greedy token {t}",
      logits_SV.max(1) - chosen_S,
      np.zeros(slots),
      tolerance,
      group="greedy, cached decode",
    )


def check_tokenizer(report, folder, entry):
  from fipo_jax.data.tokenizer import Tokenizer

  tokenizer = Tokenizer.load(folder)
  for i, case in enumerate(read_lines(folder / entry["file"])):
    text = case.get("text")
    if "messages" in case:
      text = tokenizer.render(
        case["messages"], add_generation_prompt=case.get("add_generation_prompt", True)
      )
      if "rendered" in case:
        report.equal(f"line {i + 1} rendered", text, case["rendered"])
    if "ids" in case:
      report.equal(f"line {i + 1} ids", list(tokenizer.encode(text)), case["ids"])
    if "decoded" in case:
      report.equal(
        f"line {i + 1} decoded", tokenizer.decode(case["ids"], skip_special=False), case["decoded"]
      )


def read_lines(path: pathlib.Path) -> list[dict]:
  """JSON lines; split at line feeds only, since other line breaks occur inside strings."""
  return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
