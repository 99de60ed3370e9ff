"""Every field of a run: its value, its unit, why. An experiment overrides a handful; `validate` refuses the rest early.

The record is complete and locked: a field that is not here does not exist, and code never falls back on a default of
its own. Jitted code never sees it; values are passed on by name.
"""

from __future__ import annotations

import dataclasses
import math
import os

import ml_collections

from fipo_jax import alarms, paths

DTYPES = ("float32", "bfloat16")
# Rows of tables that lie above this file; tests hold them equal. (sequence_fixed is dr_grpo's own.)
LOSS_NORMS = ("global_token", "sequence_mean", "sequence_sum", "group_token", "verl_microbatch")
CONTROLS = ("none", "constant", "permuted", "past")
KL_ESTIMATES = ("k1", "k2", "k3")
UNFINISHED = ("finish", "continue", "restart")


def default() -> ml_collections.ConfigDict:
  """The complete configuration; values are those of FIPO on Qwen2.5-32B where the paper gives one (Table 2)."""
  c = ml_collections.ConfigDict()
  c.seed = 0  # of everything random; streams are derived from it
  c.workdir = "runs/default"  # everything the run writes; an existing one is resumed
  c.steps = 100  # outer iterations: one rollout phase and batch.prompts / batch.minibatch_prompts updates each
  c.compiler_options = "chip"  # of update and score on TPUs: chip, as in train/compiler_options.py | none
  c.compile_cache = "~/.cache/fipo_jax/xla"  # folder of compiled programs, shared by runs; "" = none

  c.algorithm = ml_collections.ConfigDict()
  c.algorithm.name = "fipo"  # a row of OBJECTIVES
  # Fields that an objective's paper does not have are not read by it: its name alone makes it what the paper says.
  c.algorithm.clip_low = 0.2  # PPO clip range, [1 - low, 1 + high]; the one epsilon of grpo, dr_grpo, rloo, ppo, ...
  c.algorithm.clip_high = 0.28  # fipo, dapo
  c.algorithm.dual_clip = 10.0  # c: cap on the ratio where the advantage is negative; 0 = off; fipo, dapo
  c.algorithm.gspo_clip_low = 3e-4  # gspo: the range of a whole response's mean ratio
  c.algorithm.gspo_clip_high = 4e-4  # gspo: above 1; the paper's ranges
  c.algorithm.cispo_ratio_cap = 5.0  # cispo: cap on the importance ratio
  c.algorithm.delta_clamp = 20.0  # nats; bound on |logp - old_logp|; 0 = none
  c.algorithm.half_life_tokens = 32.0  # tau: a shift this far ahead counts half
  c.algorithm.participation_mask = "all"  # all | negative_only | off: which too likely tokens leave Future-KL
  c.algorithm.participation_ratio = 0.0  # the ratio above which they do; 0 = dual_clip
  c.algorithm.weight_clip = (1.0, 1.2)  # range of f; () = only raw_cap
  c.algorithm.raw_cap = 10.0  # cap on exp(Future-KL) where weight_clip is ()
  c.algorithm.safety_mode = "clamp"  # clamp to [0.8, 1] | reset to 1 | off: f of over-likely negatives
  c.algorithm.safety_threshold = 10.0  # ratio above which a negative token counts as over-likely
  c.algorithm.sequence_reject_count = 1  # more dual-clipped tokens than this drop the response; -1 = never
  c.algorithm.loss_norm = "global_token"  # a row of LOSS_NORMS; fipo, dapo, cispo, sft
  c.algorithm.advantage = ""  # a row of ESTIMATORS: how rewards become advantages; "" = the objective's own
  c.algorithm.advantage_std_ddof = 1  # advantages divided by the group's std with this ddof; -1 = not divided
  c.algorithm.control = "none"  # ablation of f: none | constant | permuted | past; fipo
  c.algorithm.reference_kl_coef = 0.0  # factor of the KL to the starting policy in the loss; 0 = off (its weights stay)
  c.algorithm.reference_kl = "k3"  # estimate of that KL: k1 | k2 | k3
  c.algorithm.entropy_coef = 0.0  # factor of the entropy bonus, per nat; 0 = off
  c.algorithm.sampler_ratio_cap = 0.0  # truncated importance sampling for the sampler's numerics, e.g. 2; 0 = off
  c.algorithm.discount = 1.0  # ppo: gamma of GAE, per token
  c.algorithm.gae_lambda = 1.0  # ppo: lambda of GAE; long chains of thought lose their reward below 1
  c.algorithm.value_coef = 0.5  # ppo: factor of the value loss
  c.algorithm.value_clip = 0.2  # ppo: units of reward an estimate may move per rollout; 0 = no bound
  c.algorithm.allow_single_update = False  # one update per rollout makes Future-KL identically zero

  c.model = ml_collections.ConfigDict()
  c.model.path = ""  # Hugging Face directory: config.json, safetensors, tokenizer
  c.model.base_experiment = ""  # experiment file that makes model.path when it does not exist yet
  c.model.preset = ""  # a row of PRESETS: start from random weights instead of model.path
  c.model.alphabet = ""  # characters of the tokenizer that goes with model.preset
  # Tokens; 0 = the checkpoint's max_position_embeddings, or what its YaRN makes of them; another number replaces it.
  c.model.max_position = 0
  c.model.dtype = "bfloat16"  # compute
  c.model.param_dtype = "float32"  # master weights; bf16 loses most updates at RL learning rates
  c.model.remat = "full"  # none | dots | context (splash, cudnn: all but attention) | full: what is recomputed
  c.model.offload_inputs = False  # the inputs of layers wait for the backward pass in the host's memory
  # Of a device at a time (remat context | full; rows of whole 128s); more take more memory. 0 = 1,024, GPUs 32,768.
  c.model.tile_tokens = 0
  # In which devices add up gradients of layers and head: float32 | bfloat16; "" = model.dtype. remat context | full.
  c.model.sum_dtype = ""
  c.model.attention = "auto"  # of rows: auto | xla | splash (TPU) | cudnn (GPU)
  c.model.logits_mib = 384.0  # MiB of a device for logits, the part of the head they need and its gradient

  c.mesh = ml_collections.ConfigDict()  # sizes; -1 = all devices left
  c.mesh.data = 1  # copies of the weights; the only axis that may cross slices
  c.mesh.fsdp = -1  # rows, and pieces of weights and moments
  c.mesh.context = 1  # pieces of a row
  c.mesh.tensor = 1  # heads, MLP width, vocabulary

  c.data = ml_collections.ConfigDict()
  c.data.source = "reasoning_gym"  # a row of SOURCES
  # A file, a folder, a glob, or several of them, for file, jsonl and parquet.
  c.data.path = ml_collections.FieldReference("", field_type=object)
  c.data.columns = ml_collections.ConfigDict()  # of files and tfds, "a.b" for a field of a record; see data/rows.py
  c.data.columns.question = ""  # "" = the first there is of prompt, question, problem
  c.data.columns.answer = ""  # "" = answer, final_answer, reward_model.ground_truth, or the last box of solution
  c.data.columns.system = ""  # what the system's turn says; "" = data.system
  c.data.columns.id = ""  # what you know a row by; kept in extras and samples
  c.data.answer_after = "####"  # of an answer that contains it, only what follows counts, as in GSM8K; "" = all of it
  c.data.name = "chain_sum"  # task or data set, for reasoning_gym and tfds
  c.data.split = "train"  # for tfds
  c.data.size = 10_000  # problems, for generated sources
  c.data.seed = 1  # of generated sources; evaluation must use another
  c.data.short_question = False  # the bare expression instead of the English question, for reasoning_gym
  c.data.options = ml_collections.ConfigDict(type_safe=False)  # of the generator, passed on as they are
  c.data.instruction = "{question}"  # what the user says; {question} is replaced
  c.data.instruct_messages = False  # whether that is also done with what the user says last in a list of messages
  c.data.system = ""  # what the system's turn says, where a record has none of its own; "" = no such turn
  c.data.chat_template = True  # render with the model's chat template; False = the instruction as it is
  c.data.max_prompt_tokens = 2048  # rendered, template included
  c.data.on_long_prompt = "drop"  # drop (and count) | error
  # Several sources, drawn by weight: name -> {"weight": 0.3, "path": "x.jsonl"} and whatever else of data differs.
  c.data.mixture = ml_collections.ConfigDict(type_safe=False)

  c.rollout = ml_collections.ConfigDict()
  c.rollout.engine = "native"  # a row of ENGINES
  c.rollout.samples_per_prompt = 16  # G
  c.rollout.max_response_tokens = 20_480  # its end token included
  c.rollout.temperature = 1.0  # logits are divided by it; log-probabilities are those at this temperature
  c.rollout.top_p = 1.0  # share of the probability that can be drawn; 1 = all
  c.rollout.top_k = 0  # 0 = off
  c.rollout.min_p = 0.0  # 0 = off
  c.rollout.min_tokens = 0  # no stop token is drawn before a response has so many
  c.rollout.stop_strings = ()  # texts that end a response, beside the tokenizer's stop tokens
  # finish all | continue: stop when enough groups are informative, go on with the rest under the next weights |
  # restart: the same, but from their first token, with the random numbers they had. None is ever dropped.
  c.rollout.unfinished = "finish"
  # Sequences decoded side by side; "auto" = from the free memory of a device.
  c.rollout.slots = ml_collections.FieldReference(64, field_type=object)
  c.rollout.tensor = 0  # devices that share one copy of the policy while sampling; 0 = mesh.tensor
  # Tokens that every slot decodes between two looks at who has ended and who may start: shards exchange how they stand
  # only then. 1, 2, 4, .. 64; 0 = 1 where nothing is exchanged, else by the length of responses, at most 16.
  c.rollout.continuous_decode_steps = 0
  c.rollout.page_tokens = 64  # tokens of a page of the cache
  c.rollout.cache_tokens = 0  # bound on the whole cache, over the mesh; 0 = as many as the slots can need
  c.rollout.cache_dtype = ""  # "" = the compute dtype | int8: half the memory, less exact log-probabilities
  c.rollout.attention = "auto"  # over the cache: auto | xla | pallas (TPU) | paged_attention (TPU, the kernel of JAX)
  c.rollout.urls = ()  # engine http: the servers, as http://host:8000
  c.rollout.dialect = "vllm"  # engine http: vllm | sglang
  c.rollout.timeout_s = 600.0  # engine http: of one response, or of loading weights
  c.rollout.retry_s = 300.0  # engine http: what failed is tried again so long; a restart of vLLM takes 1 to 3 minutes
  c.rollout.concurrency = 64  # engine http: requests under way
  c.rollout.model_name = ""  # engine http: as served; "" = leave it to the server

  c.reward = ml_collections.ConfigDict()
  c.reward.verifier = ""  # a row of VERIFIERS, or "weighted", for all prompts; "" = what each record says
  # Python file that defines verify(response, answer, extras); wins over verifier, or is a part of "weighted".
  c.reward.file = ""
  # Parts of the verifier "weighted" and their weights, such as {"math_dapo": 1.0, "format": 0.1} (or "file").
  c.reward.weights = ml_collections.ConfigDict(type_safe=False)
  # A verification has an environment without keys, no network, starts no programs and writes to reward.file's folder
  # and TMPDIR alone; the next five give reward.file what it needs.
  c.reward.env = ()  # names of environment variables that it gets
  c.reward.network = False  # it may open connections
  c.reward.processes = False  # it may start programs; they end with it
  c.reward.memory_mb = 4096  # 10⁶ bytes of address space, of each process; built-in verifiers have the same
  c.reward.write_mb = 64  # 10⁶ bytes of one file
  c.reward.response_characters = 0  # a verifier sees so many of a response's last characters; 0 = all
  c.reward.wrong_score = -1.0  # score of a response that could not be verified
  c.reward.timeout_s = 10.0  # hard deadline of one verification
  c.reward.workers = 0  # processes; 0 = one per core, at most 32
  c.reward.on_error = "score_wrong"  # score_wrong (and count) | stop
  c.reward.overlong_buffer_tokens = 4096  # the penalty grows over the last so many tokens; 0 = off
  c.reward.overlong_factor = 1.0  # penalty at the very limit

  c.dynamic_sampling = ml_collections.ConfigDict()
  c.dynamic_sampling.enabled = True  # draw again until batch.prompts groups have mixed accuracy
  c.dynamic_sampling.max_draws = 10  # per iteration; each a rollout of its own
  c.dynamic_sampling.max_age = 1  # iterations from its first token that a surplus group may wait; 0 = thrown away
  c.dynamic_sampling.on_exhausted = "train"  # train on what there is | stop (saved, evaluated, with a message)

  c.batch = ml_collections.ConfigDict()
  c.batch.prompts = 512  # groups per iteration
  c.batch.minibatch_prompts = 64  # groups per optimizer step: 8 steps
  c.batch.row_tokens = 22_528  # length of a packed row; at least prompt + response limits
  c.batch.micro_rows = 64  # rows whose activations exist at one time, over the whole mesh

  c.optimizer = ml_collections.ConfigDict()
  c.optimizer.name = "adamw"  # a row of OPTIMIZERS: adamw | muon
  c.optimizer.learning_rate = 1e-6  # after warm-up
  c.optimizer.value_learning_rate = 1e-5  # of ppo's value head; follows the same schedule
  c.optimizer.schedule = "constant"  # after warm-up: constant | cosine (to 0 at the last update)
  c.optimizer.warmup_updates = 80  # optimizer steps
  c.optimizer.b1 = 0.9  # decay of the first moment, per update
  c.optimizer.b2 = 0.999  # decay of the second
  c.optimizer.eps = 1e-8  # added to the root of the second moment
  c.optimizer.weight_decay = 0.1  # decoupled, times the learning rate; of all parameters, as the script
  c.optimizer.momentum_dtype = ""  # of the first moment: float32 | bfloat16; "" = model.param_dtype
  c.optimizer.offload = False  # moments stay in the host's memory between updates
  c.optimizer.clip_norm = 1.0  # bound on the global norm of an update's gradient
  c.optimizer.max_skipped_updates = 8  # non-finite updates are skipped; so many in a row end the run

  c.eval = ml_collections.ConfigDict()
  c.eval.every = 5  # iterations; also before the first and after the last; 0 = never
  c.eval.prompts = 30  # held-out problems; AIME has 30
  c.eval.data_seed = 0  # generated sources: seed of the held-out problems
  # Held-out files of any kind; "" = what data.source has: other seed, other split, or the first eval.prompts records.
  c.eval.path = ml_collections.FieldReference("", field_type=object)
  c.eval.split = "test"  # for tfds
  c.eval.samples_per_prompt = 32  # accuracy is their mean: avg@32
  c.eval.temperature = 1.0  # 0 = greedy
  c.eval.top_p = 0.7  # the script's validation
  c.eval.top_k = 0  # 0 = off
  c.eval.min_p = 0.0  # 0 = off
  c.eval.repetition_penalty = 1.0  # 1 = off
  # Several sets by name, each with what differs from data and eval: name -> {"path": "x.parquet", "prompts": 0 for all,
  # "samples_per_prompt": 32, "verifier": ..., "temperature": ..., "max_response_tokens": ...}; fields in
  # evaluation/sets.py. {} = one set, as above.
  c.eval.sets = ml_collections.ConfigDict(type_safe=False)
  c.eval.main = ""  # the set whose metrics are eval/accuracy, too, for alarms and report; "" = the first by name

  c.checkpoint = ml_collections.ConfigDict()
  c.checkpoint.every = 5  # iterations; the last one is always saved
  c.checkpoint.every_s = 0.0  # seconds after which an iteration is saved though it is none of those; 0 = never
  c.checkpoint.keep = 2  # the newest
  c.checkpoint.keep_every = 0  # besides them, for good: iterations that are multiples of it, to replay from; 0 = none
  c.checkpoint.keep_best = 0  # besides them: the best by best_by, of iterations that are evaluated
  c.checkpoint.best_by = "accuracy"  # or pass@N, cons@N, reward; of eval.main, or "NAME/accuracy" of a set by name
  c.checkpoint.folder = ""  # local or gs://, seen by every process; "" = workdir/checkpoints
  c.checkpoint.export = True  # write a Hugging Face directory at the end

  c.alarms = ml_collections.ConfigDict(dataclasses.asdict(alarms.Limits()))  # thresholds, with reasons in alarms.py
  c.alarms.action = "warn"  # warn | stop | rollback (to the last good checkpoint): on the alarms of acting
  c.alarms.acting = ("collapse", "entropy_collapse", "entropy_explosion", "length_runaway")  # the others only warn
  c.alarms.rollback_steps = 5  # a checkpoint is good when it is so many iterations older than the alarm
  c.alarms.max_rollbacks = 2  # after that an alarm stops the run
  # What a rollback changes, such as {"optimizer": {"learning_rate": 5e-7}}; otherwise only the random numbers differ.
  c.alarms.rollback_overrides = ml_collections.ConfigDict(type_safe=False)

  c.log = ml_collections.ConfigDict()
  c.log.samples = 4  # responses a step written to samples.jsonl, token by token; of an evaluation as many of each set
  c.log.samples_mb = 256  # 10⁶ bytes of samples.jsonl at most; beyond it the oldest half goes
  c.log.stall_s = 600.0  # seconds in which nothing moves until all stacks are written and the run ends; 0 = never
  c.log.stall_factor = 5.0  # of the longest that a phase stood still, in its median time, where that is more
  c.log.stall_first_s = 3600.0  # seconds for a phase that has never ended: it may load or compile a large model
  c.log.report = True  # plots and an HTML page at the end
  c.log.tensorboard = True  # TensorBoard's event files in workdir/tensorboard
  c.log.wandb = ""  # project of Weights & Biases that gets the metrics, too; "" = none
  # Iterations of which an xprof trace is written to workdir/profile, such as (5, 6); () = none. Programs are compiled
  # anew for it, as those in the compile cache may have the names of an older version.
  c.log.profile_steps = ()
  return c.lock()


def one_of(field: str, value, allowed) -> None:
  """ValueError unless value is one of allowed."""
  if value not in allowed:
    raise ValueError(f"{field}={value!r}: expected one of {', '.join(map(repr, allowed))}.")


def validate(c: ml_collections.ConfigDict) -> None:
  """Every cross-check that needs no device and no file contents. Raises ValueError with field, value and a remedy."""
  _check_paths(c)
  _check_ranges(c)
  _check_choices(c)
  _check_batch(c)
  _check_alarms(c)
  _check_source(c)


def _check_paths(c) -> None:
  several = lambda value: value if isinstance(value, list | tuple) else [value]
  for field in ("workdir", "compile_cache", "model.path", "data.path", "eval.path", "checkpoint.folder"):
    for path in several(at(c, field)):
      if isinstance(path, str) and "://" in path and not (paths.is_remote(path) and path[len("gs://") :].strip("/")):
        raise ValueError(f"{field}={path!r}: expected a local path, or gs://bucket/folder.")
  if "://" in c.reward.file:
    raise ValueError(f"reward.file={c.reward.file!r}: a program is run from a disk; copy it there, or into the image.")
  if c.rollout.engine == "http" and paths.is_remote(c.workdir):
    raise ValueError(
      f"workdir={c.workdir!r}: rollout.engine='http' puts weights there for servers, which read folders of a disk; use "
      "one that they share, or rollout.engine='native'."
    )


def _check_ranges(c) -> None:
  def positive(*fields):
    for field in fields:
      value = at(c, field)
      if not value > 0:
        raise ValueError(f"{field}={value!r}: must be greater than 0.")

  def not_negative(*fields):
    for field in fields:
      value = at(c, field)
      if not value >= 0 or not math.isfinite(value):
        raise ValueError(f"{field}={value!r}: must be 0 or greater.")

  positive(
    "steps", "rollout.samples_per_prompt", "rollout.max_response_tokens", "rollout.page_tokens", "batch.prompts",
    "rollout.timeout_s", "rollout.concurrency", "eval.repetition_penalty",
    "batch.minibatch_prompts", "batch.row_tokens", "batch.micro_rows", "data.max_prompt_tokens", "data.size",
    "model.logits_mib", "algorithm.half_life_tokens", "algorithm.raw_cap",
    "algorithm.safety_threshold", "reward.timeout_s", "reward.memory_mb", "dynamic_sampling.max_draws",
    "log.samples_mb",
    "optimizer.learning_rate", "optimizer.value_learning_rate", "optimizer.eps", "algorithm.cispo_ratio_cap",
    "optimizer.clip_norm", "optimizer.max_skipped_updates",
    "eval.prompts", "eval.samples_per_prompt", "checkpoint.every", "checkpoint.keep", "rollout.temperature",
  )  # fmt: skip
  not_negative(
    "seed", "checkpoint.keep_best", "checkpoint.keep_every", "rollout.cache_tokens", "rollout.retry_s",
    "rollout.min_tokens", "rollout.tensor",
    "model.tile_tokens", "algorithm.clip_low", "algorithm.clip_high", "algorithm.dual_clip", "rollout.top_k",
    "eval.top_k", "algorithm.delta_clamp", "algorithm.participation_ratio", "model.max_position",
    "eval.temperature", "reward.workers", "reward.write_mb", "reward.response_characters",
    "reward.overlong_buffer_tokens", "reward.overlong_factor", "optimizer.warmup_updates",
    "optimizer.weight_decay", "eval.every", "log.samples", "dynamic_sampling.max_age", "algorithm.gspo_clip_low",
    "algorithm.gspo_clip_high", "algorithm.reference_kl_coef", "algorithm.entropy_coef", "algorithm.sampler_ratio_cap",
    "algorithm.value_coef", "algorithm.value_clip", "checkpoint.every_s",
    "log.stall_s", "log.stall_factor", "log.stall_first_s",
  )  # fmt: skip
  if (every := c.checkpoint.keep_every) % c.checkpoint.every:
    near = max(round(every / c.checkpoint.every), 1) * c.checkpoint.every
    raise ValueError(
      f"checkpoint.keep_every={every} must be a multiple of checkpoint.every={c.checkpoint.every}: others are not "
      f"saved; try {near}."
    )
  for step in c.log.profile_steps:
    if not (isinstance(step, int) and 0 < step <= c.steps):
      raise ValueError(
        f"log.profile_steps={c.log.profile_steps}: {step!r} is no iteration of 1 to steps={c.steps}; () = no trace."
      )
  for field in ("rollout.top_p", "eval.top_p"):
    if not 0 < at(c, field) <= 1:
      raise ValueError(f"{field}={at(c, field)!r}: must lie in (0, 1].")
  for field in ("rollout.min_p", "eval.min_p"):
    if not 0 <= at(c, field) <= 1:
      raise ValueError(f"{field}={at(c, field)!r}: must lie in [0, 1]; 0 is off.")
  for field in ("optimizer.b1", "optimizer.b2"):
    if not 0 <= at(c, field) < 1:
      raise ValueError(f"{field}={at(c, field)!r}: must lie in [0, 1).")
  for field in ("algorithm.discount", "algorithm.gae_lambda"):
    if not 0 <= at(c, field) <= 1:
      raise ValueError(f"{field}={at(c, field)!r}: must lie in [0, 1].")
  a = c.algorithm
  if a.dual_clip and a.dual_clip <= 1:
    raise ValueError(f"algorithm.dual_clip={a.dual_clip}: must be greater than 1, or 0 to switch it off.")
  if len(a.weight_clip) not in (0, 2) or (a.weight_clip and not a.weight_clip[0] <= a.weight_clip[1]):
    raise ValueError(f"algorithm.weight_clip={a.weight_clip}: expected (low, high), or () for none.")


def _check_choices(c) -> None:
  one_of("algorithm.participation_mask", c.algorithm.participation_mask, ("all", "negative_only", "off"))
  one_of("algorithm.safety_mode", c.algorithm.safety_mode, ("clamp", "reset", "off"))
  one_of("algorithm.loss_norm", c.algorithm.loss_norm, LOSS_NORMS)
  one_of("algorithm.control", c.algorithm.control, CONTROLS)
  one_of("algorithm.reference_kl", c.algorithm.reference_kl, KL_ESTIMATES)
  for field in ("reference_kl_coef", "sampler_ratio_cap"):
    if c.algorithm.name == "sft" and c.algorithm[field]:
      raise ValueError(f"algorithm.{field}={c.algorithm[field]}: supervised training samples nothing; set it to 0.")
  if c.algorithm.control != "none" and c.algorithm.name != "fipo":
    raise ValueError(
      f"algorithm.control={c.algorithm.control!r} changes the weight of fipo; algorithm.name={c.algorithm.name!r} has "
      "none: use 'fipo', or control 'none'."
    )
  one_of("algorithm.advantage_std_ddof", c.algorithm.advantage_std_ddof, (-1, 0, 1))
  one_of("compiler_options", c.compiler_options, ("chip", "none"))
  one_of("model.dtype", c.model.dtype, DTYPES)
  one_of("model.param_dtype", c.model.param_dtype, DTYPES)
  one_of("model.remat", c.model.remat, ("none", "dots", "context", "full"))
  one_of("model.sum_dtype", c.model.sum_dtype, ("", *DTYPES))
  one_of("model.attention", c.model.attention, ("auto", "xla", "splash", "cudnn"))
  one_of("data.on_long_prompt", c.data.on_long_prompt, ("drop", "error"))
  one_of("reward.on_error", c.reward.on_error, ("score_wrong", "stop"))
  one_of("dynamic_sampling.on_exhausted", c.dynamic_sampling.on_exhausted, ("train", "stop"))
  one_of("rollout.unfinished", c.rollout.unfinished, UNFINISHED)
  one_of("rollout.attention", c.rollout.attention, ("auto", "xla", "pallas", "paged_attention"))
  one_of("rollout.cache_dtype", c.rollout.cache_dtype, ("", "int8", *DTYPES))
  one_of("rollout.continuous_decode_steps", c.rollout.continuous_decode_steps, (0, 1, 2, 4, 8, 16, 32, 64))
  if c.rollout.min_tokens > c.rollout.max_response_tokens:
    raise ValueError(
      f"rollout.min_tokens={c.rollout.min_tokens} is more than rollout.max_response_tokens="
      f"{c.rollout.max_response_tokens}; use at most that."
    )
  if c.rollout.engine == "http" and not c.rollout.urls:
    raise ValueError("rollout.urls=(): rollout.engine='http' needs the servers, as ('http://host:8000',).")
  one_of("optimizer.momentum_dtype", c.optimizer.momentum_dtype, ("", *DTYPES))
  one_of("optimizer.schedule", c.optimizer.schedule, ("constant", "cosine"))
  slots = c.rollout.slots
  if slots != "auto" and not (isinstance(slots, int) and slots > 0):
    raise ValueError(f"rollout.slots={slots!r}: expected a number greater than 0, or 'auto'.")


def _check_batch(c) -> None:
  b, g = c.batch, c.rollout.samples_per_prompt
  if b.minibatch_prompts > b.prompts:
    raise ValueError(
      f"batch.minibatch_prompts={b.minibatch_prompts} is larger than batch.prompts={b.prompts}; "
      f"use at most {b.prompts // 2 or 1}."
    )
  if b.prompts % b.minibatch_prompts:
    fits = [d for d in range(1, b.prompts + 1) if b.prompts % d == 0]
    near = min(fits, key=lambda d: abs(d - b.minibatch_prompts))
    raise ValueError(
      f"batch.prompts={b.prompts} is not divisible by batch.minibatch_prompts={b.minibatch_prompts}; try {near}."
    )
  if c.algorithm.name == "fipo" and b.prompts == b.minibatch_prompts and not c.algorithm.allow_single_update:
    raise ValueError(
      f"batch.minibatch_prompts={b.minibatch_prompts} equals batch.prompts: one optimizer step per rollout makes "
      f"Future-KL identically zero; use at most {max(1, b.prompts // 2)}, or algorithm.allow_single_update=True."
    )
  if c.algorithm.name not in ("sft", "ppo", "reinforce_pp") and g < 2:
    raise ValueError(f"rollout.samples_per_prompt={g}: a group needs at least 2 samples to have an advantage.")
  if c.algorithm.name != "sft" and g < 2 and c.dynamic_sampling.enabled:
    raise ValueError(
      f"rollout.samples_per_prompt={g}: dynamic sampling keeps groups with right and wrong samples; use 2 or more, or "
      "dynamic_sampling.enabled=False."
    )
  need = c.data.max_prompt_tokens + c.rollout.max_response_tokens
  if b.row_tokens < need:
    raise ValueError(
      f"batch.row_tokens={b.row_tokens} is shorter than data.max_prompt_tokens + rollout.max_response_tokens = "
      f"{need}; use at least {need}."
    )
  if c.reward.overlong_buffer_tokens > c.rollout.max_response_tokens:
    raise ValueError(
      f"reward.overlong_buffer_tokens={c.reward.overlong_buffer_tokens} is larger than "
      f"rollout.max_response_tokens={c.rollout.max_response_tokens}; use a smaller buffer, or 0 for none."
    )


def _check_alarms(c) -> None:
  a = c.alarms
  alarms.Limits(**{f.name: a[f.name] for f in dataclasses.fields(alarms.Limits)})
  one_of("alarms.action", a.action, ("warn", "stop", "rollback"))
  for name in a.acting:
    one_of("alarms.acting", name, alarms.NAMES)
  for field in ("rollback_steps", "max_rollbacks"):
    if not a[field] >= 0:
      raise ValueError(f"alarms.{field}={a[field]!r}: must be 0 or greater.")
  if a.action == "rollback" and (c.checkpoint.keep - 1) * c.checkpoint.every < a.rollback_steps:
    need = -(-a.rollback_steps // c.checkpoint.every) + 1
    raise ValueError(
      f"checkpoint.keep={c.checkpoint.keep}: alarms.action='rollback' needs one that is alarms.rollback_steps="
      f"{a.rollback_steps} older than an alarm; keep {need} or more, one every {c.checkpoint.every} iterations."
    )
  changed = c.copy_and_resolve_references()
  changed.alarms.rollback_overrides = ml_collections.ConfigDict()
  for section, fields in a.rollback_overrides.items():
    if section not in ("algorithm", "optimizer", "reward", "dynamic_sampling"):
      raise ValueError(f"alarms.rollback_overrides.{section}: cannot change within a run; algorithm and optimizer can.")
    if "name" in fields:
      raise ValueError(f"alarms.rollback_overrides.{section}.name={fields['name']!r}: cannot change within a run.")
  try:
    changed.update(a.rollback_overrides)
  except (KeyError, AttributeError, TypeError) as e:
    raise ValueError(f"alarms.rollback_overrides={a.rollback_overrides.to_dict()}: does not fit the config: {e}") from e
  if a.rollback_overrides:
    validate(changed)


def _check_source(c) -> None:
  if c.reward.verifier == "weighted" and not c.reward.weights:
    raise ValueError(
      "reward.weights={}: reward.verifier='weighted' needs its parts, such as {'math_dapo': 1.0, 'format': 0.1}."
    )
  if c.reward.weights and c.reward.verifier != "weighted":
    raise ValueError(
      f"reward.weights={c.reward.weights.to_dict()}: read by reward.verifier='weighted' alone, which is "
      f"{c.reward.verifier!r}."
    )
  if bool(c.model.path) == bool(c.model.preset):
    raise ValueError(
      f"model.path={c.model.path!r} and model.preset={c.model.preset!r}: give exactly one, a Hugging Face directory "
      "to train or a preset to start from random weights."
    )
  if c.model.preset and not c.model.alphabet:
    raise ValueError(f"model.alphabet='': model.preset={c.model.preset!r} needs the characters of its tokenizer.")
  if "{question}" not in c.data.instruction:
    raise ValueError(f"data.instruction={c.data.instruction!r}: must contain {{question}}.")
  if c.reward.file and not os.path.isfile(c.reward.file):
    raise ValueError(f"reward.file={c.reward.file!r}: no such file.")
  if c.data.source == "reasoning_gym" and c.eval.every and c.eval.data_seed == c.data.seed:
    raise ValueError(
      f"eval.data_seed={c.eval.data_seed} equals data.seed: the held-out problems would be training problems."
    )


def check_mesh(c, mesh_shape, rollout_shape) -> None:
  """Checks that need the mesh, and that of the rollouts: rows and slots must divide over the data axes."""
  for field, shape in (("batch.micro_rows", mesh_shape), ("rollout.slots", rollout_shape)):
    ways = shape["data"] * shape["fsdp"]
    value = at(c, field)
    if value != "auto" and value % ways and (field != "rollout.slots" or c.rollout.engine == "native"):
      raise ValueError(
        f"{field}={value} must be a multiple of data*fsdp={ways}; try {max(1, value // ways) * ways}."
      )
  if c.batch.row_tokens % (ways := mesh_shape["context"]):
    raise ValueError(
      f"batch.row_tokens={c.batch.row_tokens} must be a multiple of mesh.context={ways}; "
      f"try {-(-c.batch.row_tokens // ways) * ways}."
    )


def at(c, field: str):
  for key in field.split("."):
    c = c[key]
  return c
