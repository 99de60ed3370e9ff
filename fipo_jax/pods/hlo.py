"""Reads what a compiled program does from its text: arithmetic, kernels, collectives, loops by their turns."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation of the program.

  kind: as XLA names it. shape, bytes: of its result on one chip. group: chips that take part. times: how often it runs,
  in one turn of the loop of unknown length that it is in. depth: how many such loops are around it. asynchronous:
  whether it has a start and a done, with room for work between them. where: the line that asked for it.
  """

  kind: str
  shape: str
  bytes: int
  group: int
  times: int
  depth: int = 0
  asynchronous: bool = False
  where: str = ""

  @property
  def wire_bytes(self) -> float:
    """Bytes that one chip sends in one run of it, by the usual ring algorithms.

        all-gather, all-to-all: (n - 1) / n of the result    reduce-scatter: n - 1 results
        all-reduce: 2 (n - 1) / n of the result              permute: the result
    """
    n = self.group
    share = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1, "all-gather": (n - 1) / n}
    return self.bytes * share.get(self.kind, 1 if "permute" in self.kind else (n - 1) / n)


@dataclasses.dataclass(frozen=True)
class Reading:
  """flops: of matrix products, once for every run of them. kernels: {name: runs} of kernels written by hand.

  hbm_bytes: read and written by everything outside of fusions, what stays on the chip's core aside; an estimate, as it
  takes each operand to be read once. host_bytes: moved to the host's memory and back; host_beside of them with some
  computation, long or short, between their start and their done. cycles: the compiler's own estimate of what a core
  takes for everything but kernels and collectives; 0 where it says none. Good for comparing programs of one chip.
  """

  flops: float
  hbm_bytes: float
  kernels: dict[str, int]
  collectives: list[Collective]
  host_bytes: float = 0.0
  host_beside: float = 0.0
  cycles: float = 0.0

  def innermost(self) -> list[Collective]:
    """Collectives of the deepest loop of unknown length (of tokens; without one, of the whole program)."""
    deepest = max((c.depth for c in self.collectives), default=0)
    return sorted((c for c in self.collectives if c.depth == deepest), key=lambda c: (-c.times * c.bytes, c.kind))

  def wire(self) -> dict[str, float]:
    """Bytes that a chip sends, by kind of collective."""
    total = collections.Counter()
    for c in self.collectives:
      total[c.kind] += c.times * c.wire_bytes
    return dict(total)

  def asynchronous_share(self) -> float:
    """Of the bytes sent; 1 where nothing is sent."""
    total = sum(c.times * c.wire_bytes for c in self.collectives)
    return sum(c.times * c.wire_bytes for c in self.collectives if c.asynchronous) / total if total else 1.0


@dataclasses.dataclass(frozen=True)
class _Line:
  name: str
  shape: str
  op: str
  rest: str  # operands and attributes


_KINDS = (
  "ragged-all-to-all", "all-gather", "all-reduce", "all-to-all", "reduce-scatter", "collective-permute",
  "collective-broadcast",
)  # fmt: skip
_CYCLES, _NO_ESTIMATE = re.compile(r'"estimated_cycles":"?(\d+)'), 1e12  # on v7x some operations say 9e18
_HOST = "S(5)"  # in a shape: the host's memory
_MOVES = ("copy", "dynamic-slice", "copy-start", "dynamic-slice-start", "dynamic-update-slice-start", "async-start")
_WORK = ("fusion", "convolution", "dot", "while")
# What moves no bytes, or is counted where it is called.
_FREE = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "call", "conditional", "after-all",
         "iota", "partition-id", "replica-id")  # fmt: skip
_LINE = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d\w*)\[([\d,]*)\]")  # a token has no size
_PLACED = re.compile(_SHAPE.pattern + r"(\{[^}]*\})?")
_CALLED = re.compile(r"(?:calls|to_apply|(?:branch|called)_computations|\w+_computation)=\{?((?:%?[\w.\-]+(?:, %)?)+)")


def read(text: str) -> Reading:
  """What the compiled program does. A loop whose number of turns is not fixed counts as one turn."""
  bodies, entry = _computations(text)
  flops, hbm, cycles, kernels, found = 0.0, 0.0, 0.0, collections.Counter(), collections.Counter()
  host = collections.Counter()  # bytes: whether something is computed beside them

  @functools.cache
  def table(name):
    return {line.name: line for line in bodies.get(name, ())}

  def visit(name, times, depth, asynchronous, fused=False):
    nonlocal flops, hbm, cycles
    stage = _stage_of_a_collective(name, bodies.get(name, ()))
    asynchronous |= stage == "start"
    for at, line in enumerate(bodies.get(name, ())):
      if not fused and line.op not in _FREE and not line.op.endswith("-done"):
        hbm += times * _traffic(line, table(name), table)
      if not fused and (said := _CYCLES.search(line.rest)) and float(said[1]) < _NO_ESTIMATE:
        cycles += times * float(said[1])
      kind, is_start = line.op.removesuffix("-start"), line.op.endswith("-start")
      if line.op in _MOVES and _crosses(line, table(name)):
        host[is_start and _works_beside(bodies[name], at)] += times * _moved(line.shape)
      if kind in _KINDS and stage in ("", "start"):
        found[_collective(line, kind, is_start, depth, asynchronous or is_start)] += times
      elif line.op == "while":
        parts = [re.search(rf"{key}=%?([\w.\-]+)", line.rest)[1] for key in ("condition", "body")]
        turns = re.search(r"known_trip_count\W+n\W+(\d+)", line.rest)
        turns = int(turns[1]) if turns else _turns(bodies, parts[0], line, table(name))
        for part in parts:
          visit(part, times * (1 if turns is None else turns), depth + (turns is None), asynchronous, fused)
      elif line.op in ("convolution", "dot"):
        flops += times * _flops(line, table(name))
      elif line.op == "custom-call" and "tpu_custom_call" in line.rest:
        kernels[_kernel(line)] += times
      elif not line.op.endswith("-done"):
        for names in _CALLED.findall(line.rest):
          for called in re.findall(r"[\w.\-]+", names):
            visit(called, times, depth, asynchronous or is_start, fused or line.op not in ("call", "conditional"))

  visit(entry, 1, 0, False)
  found = [dataclasses.replace(c, times=n) for c, n in found.items()]
  return Reading(flops, hbm, dict(kernels), found, float(host.total()), float(host[True]), cycles)


def _stage_of_a_collective(name: str, lines: list[_Line]) -> str:
  """"start", "step" or "done" of a collective that goes on beside other work, such as the turns of a loop; else "".

  So v5e, which has no SparseCores: each stage holds the collective once more, and it runs once.
  """
  targets = re.findall(r'custom_call_target="AsyncCollective(\w+)"', " ".join(line.rest for line in lines))
  if targets:
    return targets[0].lower()
  return "step" if name.startswith("async_collective_fusion") else ""


def _crosses(line: _Line, table: dict[str, _Line]) -> bool:
  """Whether a copy has one end in the host's memory. A start's shape holds both ends."""
  if line.op.endswith("-start"):
    return _HOST in line.shape
  source = table.get(re.match(r"%?([\w.\-]+)", line.rest)[1])
  return source is not None and (_HOST in line.shape) != (_HOST in source.shape)


def _works_beside(lines: list[_Line], start: int) -> bool:
  """Whether there is work between an operation's start and its done."""
  mine = re.compile(rf"%?{re.escape(lines[start].name)}\b(?!\.)")
  for line in lines[start + 1 :]:
    if line.op.endswith("-done") and mine.match(line.rest):
      return False
    if line.op in _WORK or "tpu_custom_call" in line.rest:
      return True
  return False


def _moved(shape: str) -> int:
  """Bytes that a copy to or from the host moves: of a slice, the slice; scalars are where it lies."""
  return min((_bits(dtype) * _count(dims) // 8 for dtype, dims in _SHAPE.findall(shape) if dims), default=0)


def _computations(text: str) -> tuple[dict[str, list[_Line]], str | None]:
  bodies, name, entry = {}, None, None
  for line in text.splitlines():
    if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
      name = header[2]
      bodies[name], entry = [], name if header[1] else entry
    elif re.match(r"\}(, execution_thread=\S+)?$", line):  # text of a kernel may begin with a brace, too
      name = None
    elif name and (match := _LINE.match(line)):
      bodies[name].append(_Line(*match.groups()))
  return bodies, entry


def _collective(line: _Line, kind: str, start: bool, depth: int, asynchronous: bool) -> Collective:
  shapes = _SHAPE.findall(line.shape)
  if start and kind in ("all-gather", "collective-permute", "all-to-all") and len(shapes) > 1:
    shapes = shapes[1:2]  # what it reads, what it writes, and flags
  size = sum(_bits(dtype) * _count(dims) for dtype, dims in shapes) // 8
  where = re.search(r'op_name="([^"]*)"', line.rest)
  where = "/".join(where[1].split("/")[-4:]) if where else ""
  shape = " ".join(f"{d}[{n}]" for d, n in shapes)
  return Collective(kind, shape, size, _group(line.rest), 0, depth, asynchronous, where)


def _group(attributes: str) -> int:
  """Chips of one group: {{0,1},{2,3}}, [groups,chips]<=[...] or mesh['a'=4,'b'=2] {'a'}; of a permute 2."""
  if match := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
  if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
    return int(match[2])
  if match := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
    return match[1].count(",") + 1
  return 2


def _flops(line: _Line, table: dict[str, _Line]) -> float:
  """2 x elements of the result x length of what is summed over."""
  left, right = re.findall(r"%([\w.\-]+)", line.rest)[:2]
  result = _dims(line.shape)
  if line.op == "dot":
    dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.rest)[1]
    shape = _dims(table[left].shape)
    return 2.0 * math.prod(result) * math.prod(shape[int(d)] for d in dims.split(",") if d)
  # A product is a convolution here: of its window only the places that fall on data cost anything.
  data, kernel, out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.rest).groups()
  window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", line.rest) or ["", ""])[1]))
  sizes = dict(zip(data, _dims(table[left].shape), strict=True))
  places = dict(zip(out, result, strict=True))
  flops = 2.0 * places["b"] * places["f"] * _dims(table[right].shape)[kernel.index("i")]
  for axis in (a for a in out if a.isdigit()):
    part = lambda name, default: window[name].split("x")[int(axis)] if name in window else default  # noqa: B023
    low = int(part("pad", "0_0").split("_")[0])
    stride, gap, spread = (int(part(name, 1)) for name in ("stride", "lhs_dilate", "rhs_dilate"))
    last = (sizes[axis] - 1) * gap
    flops *= sum(
      0 <= at <= last and at % gap == 0
      for o in range(places[axis]) for k in range(int(part("size", 1)))
      for at in (o * stride + k * spread - low,)
    )  # fmt: skip
  return flops


def _traffic(line: _Line, table, tables) -> float:
  """Bytes that one instruction reads and writes; of what is sliced or updated in place, only the slice."""
  operands = [table[name] for name in re.findall(r"%([\w.\-]+)", line.rest.split("), ")[0]) if name in table]
  if line.op in ("copy-start", "async-start", "slice-start"):
    return float(sum(_hbm(x.shape) for x in operands))
  if line.op == "dynamic-slice":
    return 2.0 * _hbm(line.shape)
  if line.op == "dynamic-update-slice":
    return 2.0 * _hbm(operands[1].shape)
  called = re.search(r"calls=%?([\w.\-]+)", line.rest)
  if line.op != "fusion" or not called:
    return float(_hbm(line.shape) + sum(_hbm(x.shape) for x in operands))
  inner = tables(called[1])
  users = collections.defaultdict(list)
  for x in inner.values():
    for place, name in enumerate(re.findall(r"%([\w.\-]+)", x.rest.split("), ")[0])):
      users[name].append((place, x))
  total, in_place = 0.0, 0
  for x in inner.values():
    if x.op != "parameter":
      continue
    of, uses = operands[int(x.rest.split(")")[0])], users[x.name]
    while len(uses) == 1 and uses[0][1].op in ("bitcast", "copy"):
      uses = users[uses[0][1].name]
    if uses and all(u.op == "dynamic-slice" and place == 0 for place, u in uses):
      total += sum(_hbm(u.shape) for _, u in uses)
    elif uses and all(u.op == "dynamic-update-slice" and place == 0 for place, u in uses):
      in_place += _hbm(of.shape)
    else:
      total += _hbm(of.shape)
  updates = 0
  for x in inner.values():
    if x.op == "dynamic-update-slice":
      update = re.findall(r"%([\w.\-]+)", x.rest)[1]
      updates += _bytes(inner[update].shape) if update in inner else 0
  return total + max(0, _hbm(line.shape) - in_place) + updates


def _bytes(shape: str) -> int:
  return sum(_bits(dtype) * _count(dims) for dtype, dims in _SHAPE.findall(shape)) // 8


def _hbm(shape: str) -> int:
  """Bytes of those parts of a shape that lie in the chip's memory: S(n) is memory of a core."""
  return sum(_bits(dtype) * _count(dims) for dtype, dims, at in _PLACED.findall(shape) if "S(" not in at) // 8


def _kernel(line: _Line) -> str:
  name = re.search(r'kernel_name\W+(\w+)', line.rest) or re.search(r'op_name="[^"]*?/?([\w.\-]+)"', line.rest)
  return name[1] if name else line.name


def _dims(shape: str) -> list[int]:
  return [int(n) for n in _SHAPE.search(shape)[2].split(",") if n]


def _count(dims: str) -> int:
  return math.prod(int(n) for n in dims.split(",") if n)


def _bits(dtype: str) -> int:
  return 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])


def _turns(bodies, condition, loop: _Line, table: dict[str, _Line]) -> int | None:
  """Turns of a loop whose condition is `counter < constant` and no more, from where its counter begins."""
  inside = bodies.get(condition, ())
  lines = [line for line in inside if line.op not in ("parameter", "get-tuple-element")]
  constants = [number for x in lines if (number := _integer(x)) is not None]
  plain = all(line.op in ("constant", "compare", "fusion") for line in lines)
  if not plain or len(lines) != 2 or len(constants) != 1:
    return None
  counters = [int(re.search(r"index=(\d+)", x.rest)[1]) for x in inside
              if x.op == "get-tuple-element" and x.shape.startswith("s32[]")]  # fmt: skip
  first = table.get(re.match(r"%?([\w.\-]+)", loop.rest)[1])
  if len(counters) == 1 and first and first.op == "tuple":
    first = table.get(re.findall(r"%([\w.\-]+)", first.rest)[counters[0]])
    while first and first.op in ("copy", "bitcast"):
      first = table.get(re.search(r"%([\w.\-]+)", first.rest)[1])
    return constants[0] - (_integer(first) or 0 if first else 0)
  return constants[0]


def _integer(line: _Line) -> int | None:
  """The value of a constant that is one."""
  if line.op != "constant" or not line.shape.startswith("s32[]"):
    return None
  value = re.match(r"(-?\d+)\)", line.rest)
  return int(value[1]) if value else None
