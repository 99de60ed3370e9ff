"""Arrays of a checkpoint that are read a layer at a time, from where they lie: the host never holds a whole one.

A checkpoint keeps an array in pieces, as devices held it when it was saved, and of a piece all must be decoded to have
any of it. Where pieces hold several layers, as many layers as memory is granted for are taken from each at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorstore
from etils import epath

from fipo_jax import paths


class StoredArray:
  """One array: `x[layer]` along its first axis, or `np.asarray(x)`, read when it is asked for.

  shape, dtype: of the array. passes: how often each piece will be decoded until all layers were asked for in `order`.
  is_fully_addressable: True, as of an array that this process holds.
  """

  is_fully_addressable = True

  def __init__(self, array: Any, room_bytes: float, order: Sequence[int]):
    """Args:
      array: an open TensorStore.
      room_bytes: for layers that are read ahead; at least one layer is.
      order: in which layers will be asked for.
    """
    self._array, self._order = array, list(order)
    self.shape, self.dtype = tuple(array.shape), np.dtype(array.dtype.numpy_dtype)
    self._piece = tuple(array.chunk_layout.read_chunk.shape)
    layer_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
    alone = not self._order or self._piece[0] == 1
    self._ahead = 1 if alone else max(1, min(len(self._order), int(room_bytes // max(layer_bytes, 1))))
    self.passes = 1 if alone else -(-len(self._order) // self._ahead)
    self._have: dict[int, np.ndarray] = {}

  def __getitem__(self, layer: int) -> np.ndarray:
    if layer not in self._have:
      at = self._order.index(layer)
      layers = self._order[at : at + self._ahead]
      self._have = {}  # before there is more
      self._have = dict(zip(layers, self._read(layers), strict=True))
    return self._have.pop(layer)

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    found = self._read(None)
    return found if dtype is None else found.astype(dtype)

  def _read(self, layers: Sequence[int] | None) -> np.ndarray:
    """These layers, or all of the array, piece by piece of the other axes."""
    axes = self.shape if layers is None else self.shape[1:]
    piece = self._piece if layers is None else self._piece[1:]
    out = np.empty(axes if layers is None else (len(layers), *axes), self.dtype)
    counts = [-(-size // step) for size, step in zip(axes, piece, strict=True)]
    for place in np.ndindex(*counts):
      part = tuple(slice(i * step, min((i + 1) * step, n)) for i, step, n in zip(place, piece, axes, strict=True))
      if layers is None:
        out[part] = self._array[part].read().result()
      else:
        out[(slice(None), *part)] = self._array[(np.asarray(layers), *part)].read().result()
    return out


def open_all(folder: epath.Path, shapes: dict, *, room_bytes: float, order: Callable[[int], Sequence[int]]) -> dict:
  """The tree of `shapes` (nested dicts, leaves with a shape) as `StoredArray`s.

  Args:
    folder: `state` of a step. shapes: of parameters. room_bytes: for what is read ahead, of all arrays together.
    order: number of layers -> the order in which they will be asked for; of arrays in "layers", others are read whole.
  Raises: OSError or ValueError, naming the array, for one that is missing or has another shape.
  """
  metadata = json.loads(paths.read(folder / "_METADATA"))
  flat = list(leaves(shapes))
  stacked = max(1, sum(path[0] == "layers" and len(x.shape) > 2 for path, x in flat))

  def one(path, x) -> StoredArray:
    name = ".".join(("params", *path))
    try:
      array = tensorstore.open(_spec(folder, name, metadata), open=True, read=True).result()
    except ValueError as error:
      raise ValueError(f"{folder}: {name} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if tuple(array.shape) != tuple(x.shape):
      raise ValueError(f"{folder}: {name} has shape {list(array.shape)}, the model expects {list(x.shape)}.")
    return StoredArray(array, room_bytes / stacked, order(array.shape[0]) if path[0] == "layers" else ())

  tree: dict = {}
  for path, x in flat:
    node = tree
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = one(path, x)
  return tree


def _spec(folder: epath.Path, name: str, metadata: dict) -> dict[str, Any]:
  """Where TensorStore finds an array that Orbax has written."""
  base = str(folder)
  base = f"{base if '://' in base else f'file://{base}'}/"
  inside = metadata.get("use_ocdbt", True)
  kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"} if inside else f"{base}{name}/"
  return {"driver": "zarr3" if metadata.get("use_zarr3") else "zarr", "kvstore": kvstore}


def leaves(tree: dict, path: tuple[str, ...] = ()):
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from leaves(value, (*path, key))
    else:
      yield (*path, key), value
