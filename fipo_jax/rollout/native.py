"""The sampler that needs nothing but JAX: continuous batching over the jitted programs of `decode`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fipo_jax import console, processes
from fipo_jax.models import cache_paged, cache_pallas
from fipo_jax.models.cache import CACHES, bytes_per_token
from fipo_jax.models.transformer import Model
from fipo_jax.rollout import device, serving
from fipo_jax.rollout.capacity import Capacity
from fipo_jax.rollout.sampling import Sampling
from fipo_jax.rollout.usage import Usage
from fipo_jax.sharding import RULES, named_tree
from fipo_jax.types import Prompt, Rollout

PAGES_PER_BLOCK = 8  # of the cache that the TPU kernel works on at a time

class NativeEngine:
  """Samples with the trainer's own model code on the trainer's mesh.

  `slots` sequences are decoded side by side; one that ends makes room for the next prompt without leaving the program.
  A prompt is prefilled once for all its samples, who share its full pages. The cache is as large as the pages in use
  need, and at the end, when the queue is empty, half or a quarter of the slots take over what is left.

  A sample's randomness is derived from (key, prompt.id, sample, position) alone. Padding to other lengths can still
  move the last bit of a logit, so equal tokens in another batch are as good as certain in float32, likely in bfloat16.
  """

  def __init__(
    self, model: Model, mesh, *, slots: int | str, max_prompt_tokens: int, max_response_tokens: int, pad_id: int,
    page_tokens: int = 64, cache_tokens: int = 0, cache_dtype: str = "", attention: str = "auto",
    continuous_decode_steps: int = 0, text: Callable | None = None,
  ):  # fmt: skip
    """See the class.

    Args:
      slots: sequences decoded at a time, a multiple of the shards (data x fsdp); "auto": from the device's free memory.
      max_prompt_tokens, max_response_tokens: longest prompt taken; limit that `Sampling.max_tokens` must respect.
      pad_id: token id that fills padding; any id of the vocabulary.
      page_tokens: tokens of a page of the cache.
      cache_tokens: bound on the tokens in all pages, over the mesh; what exceeds it waits, and when responses fill it
        some are put back and continued later. 0: as many as the slots can need (with slots="auto": as fit).
      cache_dtype: "int8", or "" for the model's compute dtype.
      attention: layout of the cache: "xla", "pallas" (TPU), "paged_attention" (TPU, JAX's own kernel), or "auto":
        on a TPU where the model allows it `proven`.
      continuous_decode_steps: tokens between two decisions of `decode.run`, 1, 2, 4, .. 64; 0: `decided_every`.
      text: token ids -> text, special tokens included, for `Sampling.stop_strings`.
    Raises:
      ValueError: a size is out of range, or pad_id is not in the vocabulary.
    """
    sizes = {"max_prompt_tokens": max_prompt_tokens, "max_response_tokens": max_response_tokens}
    for name, value in (sizes | {"page_tokens": page_tokens}).items():
      if value < 1:
        raise ValueError(f"rollout.{name}={value} must be at least 1.")
    if slots != "auto" and (isinstance(slots, str) or slots < 1):
      raise ValueError(f"rollout.slots={slots!r}: expected a number of at least 1, or 'auto'.")
    if cache_tokens < 0:
      raise ValueError(f"rollout.cache_tokens={cache_tokens}: must be 0 (as many as are needed) or more.")
    if cache_dtype not in ("", "int8", "bfloat16", "float32"):
      raise ValueError(f"rollout.cache_dtype={cache_dtype!r}: expected '' (the compute dtype), 'int8' or 'bfloat16'.")
    if continuous_decode_steps and (device.STEPS % continuous_decode_steps or continuous_decode_steps < 1):
      raise ValueError(
        f"rollout.continuous_decode_steps={continuous_decode_steps}: expected 0, or a divisor of {device.STEPS}."
      )
    if not 0 <= pad_id < model.config.vocab_size:
      raise ValueError(f"pad_id={pad_id} is not in the vocabulary of {model.config.vocab_size} tokens.")
    self.model, self.mesh, self.pad_id, self.page, self.text = model, mesh, pad_id, page_tokens, text
    self.max_prompt_tokens, self.max_response_tokens = max_prompt_tokens, max_response_tokens
    self.cache_dtype = cache_dtype or model.config.dtype
    self.shards = math.prod(mesh.shape[axis] for axis in RULES["rows"])
    self.token_bytes = bytes_per_token(model.config, self.cache_dtype)
    self.decide = continuous_decode_steps or decided_every(self.shards, max_response_tokens)
    slots = 0 if slots == "auto" else slots  # until there are parameters
    self.slots, self.cache_tokens = slots, cache_tokens
    if slots % self.shards:
      raise ValueError(
        f"rollout.slots={slots} must be a multiple of data*fsdp={self.shards}; "
        f"try {-(-slots // self.shards) * self.shards}."
      )
    self.params, self.usage = None, Usage()
    kernel = pallas_fits(model.config, self.cache_dtype, page_tokens) and mesh.devices.flat[0].platform == "tpu"
    if attention not in ("auto", "xla", "pallas", "paged_attention"):
      raise ValueError(f"rollout.attention={attention!r}: expected 'auto', 'xla', 'pallas' or 'paged_attention'.")
    self._chosen = attention != "auto"
    self.attention = attention = attention if self._chosen else proven(self.cache_dtype) if kernel else "xla"
    self.unstacked = attention == "xla"  # layers by name; else a scan over them, and a program that depth does not grow
    self.layout = self._layout()
    self.programs: dict[tuple, set] = {}  # of each way of sampling, see `Device`
    if slots:
      self._check_bound(width=2)
    self._adopt = jax.jit(self._resident, out_shardings=self._shardings())

  def update(self, params) -> None:
    """Takes the policy's parameters: in the compute dtype, layer by layer, whole on every row group of the mesh.

    One program casts and reshards; the caller's arrays stay his own.
    """
    self.release()  # never two copies
    with jax.set_mesh(self.mesh):
      self.params = self._adopt(params)
    if not self.slots:
      self._size_from_memory()
    elif not self.cache_tokens and self.mesh.local_devices[0].memory_stats():
      self._bound_by_memory()

  def release(self) -> None:
    """Lets go of the parameters; see Engine."""
    self.params = None

  def generate(
    self, prompts: Sequence[Prompt], samples_per_prompt: int, *, key, sampling: Sampling, progress=None, watch=None,
    pending: Sequence[list[Rollout]] = (), limits: Sequence[int] | None = None,
  ) -> list[list[Rollout]]:  # fmt: skip
    """Samples responses; see Engine.

    Args:
      limits: max_tokens of each prompt, where that is less than the sampling's.
    Raises:
      ValueError: a prompt is empty, too long, or has ids outside the vocabulary; max_tokens is above the limit; or
        there was no `update` since the start or the last `release`.
    """
    self._check(prompts, samples_per_prompt, sampling, pending)
    with jax.set_mesh(self.mesh):
      call = serving.Call(
        device.Device(self, sampling, samples_per_prompt), self.capacity, prompts, samples_per_prompt, key, sampling,
        pending, limits, pad_id=self.pad_id, text=self.text, token_bytes=self.token_bytes,
      )  # fmt: skip
      self.usage = call.usage
      if call.samples:
        call.serve(progress or (lambda done, total: None), watch)
    return call.groups

  @property
  def capacity(self) -> Capacity:
    """What the engine may hold; known once there are slots."""
    budget = self.cache_tokens // self.page // self.shards
    return Capacity(
      self.slots // self.shards, self.shards, self.max_prompt_tokens, self.max_response_tokens, self.page, budget,
      self.model.config.num_layers, resizes=self.layout.resize is not None,
    )  # fmt: skip

  def _resident(self, params):
    if self.unstacked:
      return self.model.unstack(self.model.cast(params))
    # A layer at a time, or the whole model is gathered before any of it is cut again.
    place = jax.tree.map(lambda s: NamedSharding(s.mesh, PartitionSpec(*s.spec[1:])), self._shardings()["layers"])
    layer = lambda tree: jax.tree.map(jax.lax.with_sharding_constraint, self.model.cast(tree), place)
    return self.model.cast({k: v for k, v in params.items() if k != "layers"}) | {
      "layers": jax.lax.map(layer, params["layers"])
    }

  def _layout(self):
    """The cache's; two cores under one device share the slots of a shard, if these can be dealt out, halved or not."""
    if self.unstacked:
      return CACHES["xla"]
    most_pages = -(-(self.max_prompt_tokens + self.max_response_tokens) // self.page) + 1
    size = self.slots // self.shards
    two_cores = self.mesh.devices.flat[0].device_kind in ("TPU v4", "TPU v5")
    if self.attention == "paged_attention" and not self._chosen and size * most_pages > cache_pallas.MOST_NUMBERS:
      console.say(f"rollout.attention='pallas': {size} slots of {most_pages} pages are too many for JAX's own kernel")
      self.attention = "pallas"
    if self.attention == "pallas":
      return cache_paged.layout(most_pages, cores=2 if two_cores else 1)
    if size * most_pages > cache_pallas.MOST_NUMBERS:
      raise ValueError(
        f"rollout.page_tokens={self.page}: {size} slots of {most_pages} pages are more than the "
        f"{cache_pallas.MOST_NUMBERS} page numbers of rollout.attention='paged_attention'; use larger pages, or "
        "rollout.attention='pallas'."
      )
    two_cores = two_cores and size > 0 and size % 8 == 0
    return cache_pallas.layout(most_pages, PAGES_PER_BLOCK, megacore_mode="batch" if two_cores else None)

  def _shardings(self):
    """Whole along the axes that also spread slots: a weight cut by them would be gathered anew for every token."""
    shardings = self.model.shardings(self.mesh)  # which refuses a mesh that does not divide the model
    if self.unstacked:
      shardings = named_tree(self.mesh, self.model.unstacked_axes())
    return jax.tree.map(_without_row_axes, shardings)

  def _check_bound(self, width: int) -> None:
    """ValueError where the cache could not hold the longest sequence."""
    need = self.capacity.smallest_budget(width) * self.page * self.shards
    if self.cache_tokens and self.cache_tokens < need:
      raise ValueError(
        f"rollout.cache_tokens={self.cache_tokens} must hold a longest prompt with its response, and that prompt for "
        f"others, on each of {self.shards} shards; use at least {need}, or 0."
      )

  def _size_from_memory(self):
    """slots="auto": most of what is free on a device goes to pages; slots so that responses of half the limit fit."""
    tokens, free = self._tokens_that_fit()
    per_slot = self.max_prompt_tokens + self.max_response_tokens // 2
    slots = max(1, min(256, tokens // per_slot))
    self.slots = self.shards * (slots - slots % 8 if slots > 8 else slots)  # can be halved, and cut by mesh.tensor
    self.layout = self._layout()
    self._check_fit("auto", tokens, free)
    self.cache_tokens = self.cache_tokens or self.shards * tokens

  def _bound_by_memory(self):
    """Slots that are given: where their longest responses would not all fit on a device, as many pages as do."""
    tokens, free = self._tokens_that_fit()
    c = self.capacity
    if (need := (c.slots * c.longest + c.prefill_pages(2)) * self.page) <= tokens:
      return
    self._check_fit(self.slots, tokens, free)
    self.cache_tokens = self.shards * tokens
    console.say(
      f"cache: {self.slots} slots of the longest responses would need {need * self.shards} tokens, but "
      f"{self.cache_tokens} fit in 0.7 of the {free / 2**30:.1f} GiB that are free on a device: what exceeds them waits"
    )

  def _tokens_that_fit(self) -> tuple[int, int]:
    """(tokens of a shard's cache that fit in 0.7 of a device's free memory, its bytes), the least of all processes."""
    devices = self.mesh.local_devices
    stats = devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
      free = stats["bytes_limit"] - stats["bytes_in_use"]
    else:
      free = _free_host_memory() // len(devices)
    free = min(map(int, processes.exchange("free memory", str(free))))
    return int(0.7 * free) * self.mesh.shape["tensor"] // self.token_bytes, free

  def _check_fit(self, slots, tokens: int, free: int) -> None:
    """ValueError where not even one longest response fits."""
    if tokens < (least := self.capacity.smallest_budget(2) * self.page):
      room = f"{free / 2**30:.2f} GiB are free on a device, {tokens} tokens of cache, but"
      if free < 0:
        room = f"weights and trainer state are {-free / 2**30:.2f} GiB more than a device has, and"
      raise ValueError(
        f"rollout.slots={slots!r}: {room} one longest response needs {least} tokens of cache; use a larger "
        "rollout.tensor, rollout.cache_dtype='int8', optimizer.offload=True, or a shorter limit."
      )

  def _check(self, prompts, samples_per_prompt, sampling, pending):
    if self.params is None:
      raise ValueError("the engine has no parameters; call update(params) before generate.")
    if samples_per_prompt < 1:
      raise ValueError(f"samples_per_prompt={samples_per_prompt} must be at least 1.")
    if sampling.max_tokens > self.max_response_tokens:
      raise ValueError(
        f"sampling.max_tokens={sampling.max_tokens} must be at most "
        f"rollout.max_response_tokens={self.max_response_tokens}."
      )
    if sampling.stop_strings and self.text is None:
      raise ValueError(f"sampling.stop_strings={sampling.stop_strings}: this engine was given no way to make text.")
    vocab = self.model.config.vocab_size
    for prompt in [*prompts, *(group[0].prompt for group in pending)]:
      n = len(prompt.tokens)
      if not 1 <= n <= self.max_prompt_tokens:
        raise ValueError(
          f"prompt id={prompt.id} has {n} tokens; need 1 to rollout.max_prompt_tokens={self.max_prompt_tokens}: "
          "raise the limit or filter the prompts."
        )
      if not (0 <= np.min(prompt.tokens) and np.max(prompt.tokens) < vocab):
        raise ValueError(
          f"prompt id={prompt.id} has a token id outside 0..{vocab - 1}, the model's vocabulary; "
          "do tokenizer and model belong together?"
        )


def decided_every(shards: int, max_response_tokens: int) -> int:
  """Tokens between two decisions of the decode loop, if nobody says how many.

  One shard alone asks nobody: 1. Several exchange how they stand, and a slot idles for half a block after each of its
  responses: the largest power of two up to a 64th of the longest, which is 3% of the slots' time where the mean is a
  quarter of that, and at most 16. By then the exchange is small: one reduction over 64 v7x chips took 216 µs of a step
  of 5.4 ms (vllm-project/tpu-inference#3509), so once in 16 steps 0.3%.
  """
  return 1 if shards == 1 else 1 << (min(16, max(1, max_response_tokens // 64)).bit_length() - 1)


def proven(cache_dtype: str) -> str:
  """The TPU kernel that is used if nobody says which: JAX's own, which runs on many chips, where it can do it.

  Ours reads int8 pages as such and long tables, fetches no page that is not there and needs no scatter, but it has
  only been compiled and simulated. Once it has run on a chip it should be the one for all.
  """
  return "pallas" if cache_dtype == "int8" else "paged_attention"


def pallas_fits(config, cache_dtype: str, page_tokens: int) -> bool:
  """Whether the TPU kernel takes this model and cache."""
  return config.head_dim % 128 == 0 and page_tokens % {"bfloat16": 8, "int8": 32}.get(cache_dtype, math.inf) == 0


def _free_host_memory() -> int:
  with open("/proc/meminfo") as file:
    for line in file:
      if line.startswith("MemAvailable:"):
        return int(line.split()[1]) * 1024
  raise ValueError("rollout.slots='auto': this system does not say how much memory is free; give a number.")


def _without_row_axes(sharding: NamedSharding) -> NamedSharding:
  """The same layout, but whole along every mesh axis that `rows` uses."""

  def keep(part):
    axes = tuple(a for a in ((part,) if isinstance(part, str) else part or ()) if a not in RULES["rows"])
    return axes if len(axes) > 1 else axes[0] if axes else None

  return NamedSharding(sharding.mesh, PartitionSpec(*(keep(part) for part in sharding.spec)))
