"""Attention of a token step as our samplers run it, by one kernel or another, compiled for TPUs that are not there.

    python -m experiments.results.compile.attention --topology=v5p-128 --kernels=ours,paged_attention
    python -m experiments.results.compile.attention --topology=v5p-128 --kernels=ragged --blocks=32,1

For each kernel: what XLA says of one layer on one device, and the loops of the compiler's last listing (a bundle is one
instruction of a core, a cycle where nothing waits): what is in them, in the order of the program. Which of them run how
often is for a reader of the kernel; attention.md has it. It needs libtpu and no TPU; tokamax only if it is named.
"""

from __future__ import annotations

import argparse
import dataclasses
import glob
import importlib
import json
import os
import re
import tempfile
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fipo_jax.models import cache_paged, cache_pallas
from fipo_jax.pods import chips

INSTRUCTIONS = {
  "copies": r"= dma\.hbm_to_vmem", "waits": r"dma\.done\.wait", "products": "vmatmul", "checks": r"shalt\.err",
}  # fmt: skip
HEAD, PAGES_PER_BLOCK = 128, 8  # the latter as fipo_jax/rollout/native.py


@dataclasses.dataclass(frozen=True)
class Case:
  """A device's part of a sampler, as `rollout.slots="auto"` sizes it, with one key/value head on a device.

  slots, pages: with pages of 64 tokens in bfloat16; heads: of queries; most: tokens of a sequence. small: a topology of
  the same chip, which compiles alike, as a device is all that is compiled for. cores: of a chip that is one device.
  """

  slots: int
  pages: int
  heads: int
  most: int
  small: str
  cores: int = 1


CASES = {
  "v5p-128": Case(160, 30_535, 5, 22_528, "v5p-8", cores=2),  # 32B, rollout.tensor=8
  "v6e-8": Case(120, 13_776, 7, 12_288, "v6e-8"),  # 7B, rollout.tensor=4
  "v7x-128": Case(152, 30_180, 5, 22_528, "v7x-8"),  # 32B, rollout.tensor=8
}


def by_layout(layout, case: Case, page: int, dtype: str, most_pages: int):
  """(program(pools, q, k, v, length, table, page, offset), abstract pools) of one of our layouts, one layer."""
  config = types.SimpleNamespace(num_layers=1, num_kv_heads=1, head_dim=HEAD)
  pages = {"own": case.pages * 64 // page, "shared": 0, "tail": 0}

  def program(pools, q, k, v, length, table, page, offset):
    return layout.attend(pools, 0, q, k, v, {"table": table, "length": length, "write": (page, offset)})

  return program, jax.eval_shape(lambda: layout.new(config, pages, page, dtype)), most_pages


def ours(case: Case, page: int, blocks, dtype="bfloat16"):
  most = -(-case.most // page) + 1
  return by_layout(cache_paged.layout(most, cores=case.cores), case, page, dtype, most)


def ours_int8(case: Case, page: int, blocks):
  return ours(case, page, blocks, "int8")


def paged_attention(case: Case, page: int, blocks):
  """JAX's oldest. blocks: [pages of a block]."""
  size = blocks[0] if blocks else PAGES_PER_BLOCK
  most = -(-case.most // page) + 1
  most += -most % size
  layout = cache_pallas.layout(most, size, megacore_mode="batch" if case.cores == 2 else None)
  return by_layout(layout, case, page, "bfloat16", most)


def ragged(case: Case, page: int, blocks, dtype="bfloat16"):
  """JAX's ragged_paged_attention. blocks: [pages of a block, queries of a block]; its table has none for our shapes."""
  from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

  of_keys, of_queries = blocks or (128, 32)  # what get_tuned_block_sizes returns where its table has no row

  def program(pools, q, k, v, length, table, page, offset):
    new = jnp.stack([k, v], axis=2).reshape(case.slots, 2, HEAD).astype(pools.dtype)
    pools = pools.at[page, offset].set(new, mode="drop", unique_indices=True)
    starts = jnp.arange(case.slots + 1, dtype=jnp.int32)
    sizes = dict(num_kv_pages_per_block=of_keys, num_queries_per_block=of_queries)
    count = jnp.full(1, case.slots, jnp.int32)
    return ragged_paged_attention(q, pools, length, table, starts, count, sm_scale=HEAD**-0.5, **sizes), pools

  pools = jax.ShapeDtypeStruct((case.pages * 64 // page, page, 2, HEAD), dtype)
  return program, pools, -(-case.most // page) + 1


def ragged_int8(case: Case, page: int, blocks):
  return ragged(case, page, blocks, "int8")


def tokamax(case: Case, page: int, blocks, dtype="bfloat16", along_lanes=False):
  """tokamax's batched ragged paged attention, decode alone. blocks: [tokens of a block, sequences, buffers].

  Its call makes three kernels, for decoding, prefill and both; of the others here are the smallest blocks.
  """
  folder = "tokamax._src.ops.batched_rpa.kernel."  # by name: no requirement of ours, which a test reads off the imports
  configs, wrapper = (importlib.import_module(folder + name) for name in ("configs", "wrapper"))
  layout = configs.KVLayout.SEQ_ALONG_LANE if along_lanes else configs.KVLayout.HEAD_ALONG_SUBLANE
  size, sequences, buffers = blocks or (512, 8, 3)  # the defaults of its operator
  decode = configs.BlockSizes(bq_sz=1, bq_c_sz=1, bkv_sz=size, batch_size=sequences, n_buffer=buffers)
  others = configs.BlockSizes(bq_sz=16, bq_c_sz=16, bkv_sz=256, batch_size=1, n_buffer=2)
  scales = dict(use_per_token_scale=True, scale_dtype=jnp.dtype("float32")) if along_lanes else {}
  shape = wrapper.get_kv_cache_shape(case.pages * 64 // page, page, 1, HEAD, jnp.dtype(dtype), layout, **scales)

  def program(pools, q, k, v, length, table, page, offset):
    one = jnp.ones((case.slots, 1), jnp.float32)
    per_token = dict(
      use_per_token_scale=True, per_token_scale_dtype=jnp.dtype("float32"), dynamic_k_scale=one, dynamic_v_scale=one
    ) if along_lanes else {}  # fmt: skip
    return wrapper.ragged_paged_attention(
      q, k.astype(dtype), v.astype(dtype), pools, length, table.reshape(-1),
      jnp.arange(case.slots + 1, dtype=jnp.int32), jnp.full(3, case.slots, jnp.int32), sm_scale=HEAD**-0.5,
      kv_layout=layout, decode_block_sizes=decode, prefill_block_sizes=others, **per_token,
    )  # fmt: skip

  return program, jax.ShapeDtypeStruct(shape, dtype), -(-case.most // page) + 1


def tokamax_int8(case: Case, page: int, blocks):
  return tokamax(case, page, blocks, "int8", along_lanes=True)


KERNELS = {f.__name__: f for f in (ours, ours_int8, paged_attention, ragged, ragged_int8, tokamax, tokamax_int8)}


def compiled(case: Case, program, pools, most_pages: int, device):
  """The program of one layer's attention on one device."""
  mesh = Mesh(np.array([device]), ("device",))
  put = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))
  S, number = case.slots, put((case.slots,), jnp.int32)
  new = put((S, 1, HEAD), jnp.bfloat16)
  q, table = put((S, case.heads, HEAD), jnp.bfloat16), put((S, most_pages), jnp.int32)
  pools = jax.tree.map(lambda x: put(x.shape, x.dtype), pools)
  with jax.set_mesh(mesh):
    return jax.jit(program, donate_argnums=0).lower(pools, q, new, new, number, table, number, number).compile()


def loops(listing: str) -> list[str]:
  """A line for each part of a kernel's last listing that copies, waits or multiplies: depth of its loop, bundles."""
  parts, depth = [], None
  for line in listing.splitlines():
    at = re.match(r"\s*(?:0x[0-9a-f]+|0)\s+(LB|PF|PB|LH|LE|CT)?\s*: (>*)\s?\{", line)
    if at and (depth is None or at[1] == "LB" or at[2] and len(at[2]) != depth):  # else, without >: a branch goes on
      depth = len(at[2])
      parts.append([depth, 0, ""])
    if at:
      parts[-1][1] += 1
    if parts:
      parts[-1][2] += line
  found = []
  for depth, bundles, text in parts:
    counts = {name: len(re.findall(kind, text)) for name, kind in INSTRUCTIONS.items()}
    if depth > 1 and any(counts.values()):
      found.append(f"  depth {depth}: {bundles} bundles, " + ", ".join(f"{n} {k}" for k, n in counts.items() if n))
  return found


def report(name: str, case: Case, page: int, blocks, device, folder: str) -> None:
  began = time.process_time()
  program, pools, most_pages = KERNELS[name](case, page, blocks)
  try:
    result = compiled(case, program, pools, most_pages, device)
  except (ValueError, NotImplementedError, TypeError, jax.errors.JaxRuntimeError) as error:  # what is found out here
    print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:300]}")
    return
  memory, text = result.memory_analysis(), result.as_text()
  on_chip = sum(int(n) for n in re.findall(r'"used_scoped_memory_configs":\[\{[^]]*?"size":"(\d+)"', text))
  print(json.dumps({
    "kernel": name, "pages_of_tokens": page, "blocks": blocks, "pool_mib": round(memory.alias_size_in_bytes / 2**20, 1),
    "temp_mib": round(memory.temp_size_in_bytes / 2**20, 2), "kernels_vmem_mib": round(on_chip / 2**20, 2),
    "kernels": len(re.findall("tpu_custom_call", text)), "table_kib": case.slots * most_pages * 4 / 2**10,
    "cpu_s": round(time.process_time() - began, 1),
  }))  # fmt: skip
  for path in sorted(glob.glob(os.path.join(folder, "*-final_bundles.txt"))):
    kernel = re.sub(r"^\d+-|-\d+-final_bundles.txt", "", os.path.basename(path))
    if "schedule-analysis" not in path and re.search("attend|attention|RPA", kernel):
      with open(path) as file:
        print("\n".join([kernel, *loops(file.read())]))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--topology", choices=CASES, default="v5p-128")
  parser.add_argument("--kernels", default="ours,ours_int8,paged_attention,ragged")
  parser.add_argument("--page_tokens", type=int, default=64)
  parser.add_argument("--blocks", default="", help="of kernels that take some, as their functions say")
  args = parser.parse_args()
  os.environ["JAX_PLATFORMS"] = "cpu"
  blocks = [int(n) for n in args.blocks.split(",") if n]
  case = CASES[args.topology]
  with tempfile.TemporaryDirectory() as folder:
    os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    device = chips.open_topology(case.small)[0]
    for name in args.kernels.split(","):
      report(name, case, args.page_tokens, blocks, device, folder)
      for path in os.listdir(folder):
        os.remove(os.path.join(folder, path))


if __name__ == "__main__":
  main()
