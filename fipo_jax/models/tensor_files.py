"""safetensors files: memory-mapped for reading, or ranges of them where they lie in a bucket; streamed for writing.

A file is 8 bytes of header length (little endian), a JSON header {name: {dtype, shape, data_offsets}}, then the data.
Large models are several files and an index that says which tensor is where.
Source: github.com/huggingface/safetensors, README.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import ml_dtypes
import numpy as np

from fipo_jax import paths

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
DTYPE_NAMES = {str(dtype): name for name, dtype in DTYPES.items()}
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# One tensor to write: its name, its shape, and how to get it when its turn comes.
Tensor = tuple[str, tuple[int, ...], Callable[[], np.ndarray]]


class RemoteTensor:
  """A tensor of a file in a bucket. Indexing reads the rows that are meant, in one range, and cuts columns from them.

  Devices of a host that hold other columns of the same rows ask one after the other: the last rows are kept.
  """

  def __init__(self, file, start: int, dtype: np.dtype, shape: tuple[int, ...], last: dict):
    """start: of its data in the file, bytes. last: of all tensors of a model, so that one range is in memory."""
    self.file, self.start, self.dtype, self.shape, self._last = file, start, dtype, shape, last

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, index) -> np.ndarray:
    """index: a slice of step 1, or a tuple of them."""
    rows, *columns = index if isinstance(index, tuple) else (index,)
    first, last, _ = rows.indices(self.shape[0])
    width = self.dtype.itemsize * math.prod(self.shape[1:])
    key = (str(self.file), self.start + first * width, self.start + max(last, first) * width)
    if key not in self._last:
      self._last.clear()  # before the next one is there
      data = np.frombuffer(paths.read_range(self.file, *key[1:]), self.dtype)
      self._last[key] = data.reshape(-1, *self.shape[1:])
    return self._last[key][(slice(None), *columns)]


def open_all(directory) -> dict[str, np.ndarray | RemoteTensor]:
  """Name -> tensor that is read where it is indexed, over all weight files of a directory, local or gs://.

  Raises:
    FileNotFoundError: a file is not there. ValueError: a file or the index is damaged.
  """
  directory = paths.of(directory)
  if not paths.is_folder(directory):
    raise FileNotFoundError(f"{directory} is not a directory; expected a Hugging Face model directory.")
  single, index = directory / SINGLE, directory / INDEX
  if paths.is_file(index):
    weights = read_json(index).get("weight_map")
    if not isinstance(weights, dict):
      raise ValueError(f"{index}: weight_map is missing.")
    files = sorted({directory / name for name in weights.values()})
  elif paths.is_file(single):
    files = [single]
  else:
    raise FileNotFoundError(f"{directory} has neither {SINGLE} nor {INDEX}.")
  tensors: dict[str, np.ndarray | RemoteTensor] = {}
  last: dict = {}
  for file in files:
    tensors |= open_one(file, last)
  return tensors


def identity(directory) -> str:
  """What tells one model from another without reading its weights: config.json, tokenizer.json and all headers."""
  directory = paths.of(directory)
  found = [json.dumps(read_json(directory / "config.json"), sort_keys=True)]
  if paths.is_file(directory / "tokenizer.json"):
    found.append(paths.read_text(directory / "tokenizer.json"))
  for name, tensor in sorted(open_all(directory).items()):
    found.append(f"{name} {tensor.dtype} {tensor.shape}")
  return "\n".join(found)


def open_one(file, last: dict | None = None) -> dict[str, np.ndarray | RemoteTensor]:
  """Name -> tensor of one file; of them nothing is read yet. last: see `RemoteTensor`."""
  if not paths.is_file(file):
    raise FileNotFoundError(f"{file} does not exist, but {INDEX} names it.")
  size = paths.size(file)
  length = int.from_bytes(paths.read_range(file, 0, min(size, 8)), "little")
  if size < 8 or length > size - 8:
    raise ValueError(f"{file}: not a safetensors file, or cut off in its header ({size} bytes).")
  try:
    header = json.loads(paths.read_range(file, 8, 8 + length))
  except ValueError as error:
    raise ValueError(f"{file}: the safetensors header is not JSON ({error}).") from error
  header.pop("__metadata__", None)
  end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
  if size != end:
    raise ValueError(f"{file}: {size} bytes, but its header promises {end}; the file is truncated or damaged.")
  data = None if paths.is_remote(file) else np.memmap(file, np.uint8, "r")
  tensors = {}
  for name, entry in header.items():
    if entry["dtype"] not in DTYPES:
      raise ValueError(f"{file}: tensor {name} has dtype {entry['dtype']}; expected one of {sorted(DTYPES)}.")
    dtype, (start, stop) = DTYPES[entry["dtype"]], entry["data_offsets"]
    if stop - start != dtype.itemsize * math.prod(entry["shape"]):
      raise ValueError(f"{file}: tensor {name} has {stop - start} bytes, too many or few for its shape.")
    if data is None:
      tensors[name] = RemoteTensor(file, 8 + length + start, dtype, tuple(entry["shape"]), {} if last is None else last)
    else:
      tensors[name] = data[8 + length + start : 8 + length + stop].view(dtype).reshape(entry["shape"])
  return tensors


def write_all(directory, tensors: list[Tensor], dtype: str, max_shard_bytes: float) -> None:
  """Writes tensors in the given order, into one file or, when they exceed max_shard_bytes, several and an index."""
  width = DTYPES[DTYPE_NAMES[dtype]].itemsize
  shards: list[list[Tensor]] = [[]]
  filled = total = 0
  for tensor in tensors:
    size = width * math.prod(tensor[1])
    if shards[-1] and filled + size > max_shard_bytes:
      shards.append([])
      filled = 0
    shards[-1].append(tensor)
    filled, total = filled + size, total + size
  if len(shards) == 1:
    write_one(directory / SINGLE, shards[0], dtype)
    return
  where = {}
  for number, shard in enumerate(shards, start=1):
    name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
    write_one(directory / name, shard, dtype)
    where |= {tensor[0]: name for tensor in shard}
  index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
  paths.write(directory / INDEX, json.dumps(index, indent=2) + "\n")


def write_one(file, tensors: list[Tensor], dtype: str) -> None:
  """Writes one file; tensors are fetched one after the other and not kept."""
  code, offset = DTYPE_NAMES[dtype], 0
  header: dict = {"__metadata__": {"format": "pt"}}
  for name, shape, _ in tensors:
    size = DTYPES[code].itemsize * math.prod(shape)
    header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, offset + size]}
    offset += size
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8
  with paths.open_to_write(file) as stream:
    stream.write(len(text).to_bytes(8, "little"))
    stream.write(text)
    for _, _, fetch in tensors:
      stream.write(fetch().view(np.uint8).data)


def read_json(path) -> dict:
  """The JSON object in a file; ValueError when it is something else."""
  try:
    found = json.loads(paths.read_text(path))
  except ValueError as error:
    raise ValueError(f"{path}: not valid JSON ({error}).") from error
  if not isinstance(found, dict):
    raise ValueError(f"{path}: expected a JSON object, found {type(found).__name__}.")
  return found
