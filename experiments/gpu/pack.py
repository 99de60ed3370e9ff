"""Cuts a model and the packages that a machine lacks into pieces that can be handed to it one by one.

    python experiments/gpu/pack.py --model=DIR --out=PIECES [--probe=probe.json] [--piece_mib=55]

DIR is a Hugging Face directory; its matrices travel as int8, a float16 scale for each 32 numbers: 8.5 bits.
probe.json is what `machine.py probe` says there: packages of requirements.txt (and theirs) that it has not are fetched
as wheels for its Python. PIECES gets piece_000, ... and manifest.json with the hash of each and of the whole.
Started again, it makes the same pieces.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from fipo_jax.models import tensor_files  # noqa: E402

BLOCK = 32  # numbers that share a scale, along the last axis
BESIDE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
CHUNK = 2**20


def quantise(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(int8 like x, float16 scales [..., n / 32]) of a matrix whose rows are whole blocks.

  scale = max|x| / 127 of each block, rounded to float16;   q = round(x / scale)
  """
  blocks = x.astype(np.float32).reshape(*x.shape[:-1], -1, BLOCK)
  scale = (np.abs(blocks).max(axis=-1) / 127).astype(np.float16)
  q = np.round(blocks / np.where(scale == 0, 1, scale).astype(np.float32)[..., None])
  return np.clip(q, -127, 127).astype(np.int8).reshape(x.shape), scale


def dequantise(q: np.ndarray, scale: np.ndarray) -> np.ndarray:
  """float32 of `quantise`."""
  blocks = q.reshape(*q.shape[:-1], -1, BLOCK).astype(np.float32)
  return (blocks * scale.astype(np.float32)[..., None]).reshape(q.shape)


def pack_weights(model: pathlib.Path, out: pathlib.Path) -> str:
  """Writes weights.bin and weights.json, {name: shape, dtype, blocks}, of a directory's tensors; how exact they are."""
  index, worst, power, apart = {}, 0.0, 0.0, 0.0
  with (out / "weights.bin").open("wb") as file:
    for name, tensor in sorted(tensor_files.open_all(model).items()):
      x = np.asarray(tensor[:])
      blocks = x.ndim > 1 and x.shape[-1] % BLOCK == 0
      index[name] = {"shape": list(x.shape), "dtype": str(x.dtype), "blocks": blocks}
      if not blocks:
        file.write(x.tobytes())
        continue
      q, scale = quantise(x)
      file.write(q.tobytes() + scale.tobytes())
      error = dequantise(q, scale) - (wide := x.astype(np.float32))
      worst = max(worst, float(np.abs(error).max()))
      power, apart = power + float((wide.astype(float) ** 2).sum()), apart + float((error.astype(float) ** 2).sum())
  (out / "weights.json").write_text(json.dumps(index))
  return f"{len(index)} tensors; int8 is off by {(apart / power) ** 0.5 if power else 0:.2%} (rms), {worst:.1e} at most"


def needed(requirements: str, there: set[str]) -> dict[str, str]:
  """Package -> version here, of those in the text of a requirements file, and of what they need, that are not there."""
  found, todo = {}, [re.split(r"[~=<>! #\[]", line)[0] for line in requirements.splitlines() if line[:1].isalpha()]
  while todo:
    name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
    if name in there or name in found:
      continue
    try:
      here = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
      continue  # for another platform or Python
    found[name] = here.version
    todo += [re.split(r"[^A-Za-z0-9._-]", r)[0] for r in here.requires or () if "extra ==" not in r]
  return found


def fetch_wheels(packages: dict[str, str], python: str, out: pathlib.Path) -> None:
  """A wheel of each, downloaded or built. Raises ValueError: they would be of another Python than that machine's."""
  if python != (here := f"{sys.version_info.major}.{sys.version_info.minor}"):
    raise ValueError(f"--probe: the machine has Python {python} and this is {here}; run pack.py with python{python}.")
  out.mkdir()
  pinned = [f"{name}=={version}" for name, version in sorted(packages.items())]
  if pinned:
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*wheel, "--wheel-dir", str(out), *pinned], check=True)


def cut(whole: pathlib.Path, out: pathlib.Path, size: int) -> dict:
  """Cuts a file into piece_000, ... of at most `size` bytes; the manifest that joins them again."""
  out.mkdir(parents=True, exist_ok=True)
  for old in out.glob("piece_*"):
    old.unlink()
  pieces, of_all = [], hashlib.sha256()
  with whole.open("rb") as file:
    while file.peek(1):
      path, hashed, left = out / f"piece_{len(pieces):03}", hashlib.sha256(), size
      with path.open("wb") as piece:
        while left and (chunk := file.read(min(CHUNK, left))):
          left -= piece.write(chunk)
          hashed.update(chunk)
          of_all.update(chunk)
      pieces.append({"name": path.name, "bytes": size - left, "sha256": hashed.hexdigest()})
  manifest = {"bytes": whole.stat().st_size, "sha256": of_all.hexdigest(), "pieces": pieces}
  (out / "manifest.json").write_text(json.dumps(manifest, indent=1))
  return manifest


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", type=pathlib.Path, help="without it only what the machine of --probe lacks is packed")
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--probe", type=pathlib.Path)
  parser.add_argument("--piece_mib", type=float, default=55)
  given = parser.parse_args(argv)
  if given.piece_mib <= 0:
    parser.error(f"--piece_mib={given.piece_mib}: must be above 0; what one transfer may hold.")
  if not given.model and not given.probe:
    parser.error("--model and --probe: one of them is needed; there is nothing to pack.")
  with tempfile.TemporaryDirectory(dir=given.out.parent) as scratch:
    folder = pathlib.Path(scratch)
    if given.model:
      print(pack_weights(given.model, folder))
    if given.probe:
      probe = json.loads(given.probe.read_text())
      missing = needed((ROOT / "requirements.txt").read_text(), set(probe["packages"]))
      print(f"{len(missing)} wheels: {', '.join(f'{k} {v}' for k, v in sorted(missing.items())) or 'none is missing'}")
      try:
        fetch_wheels(missing, probe["python"], folder / "wheels")
      except ValueError as e:
        parser.error(str(e))
    plain = lambda info: (setattr(info, "mtime", 0), info)[1]  # the same bytes whenever it is made
    with tarfile.open(folder / "all.tar", "w") as tar:
      for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "all.tar"):
        tar.add(path, str(path.relative_to(folder)), filter=plain)
      for name in BESIDE if given.model else ():
        if (given.model / name).is_file():
          tar.add(given.model / name, f"model/{name}", filter=plain)
    manifest = cut(folder / "all.tar", given.out, int(given.piece_mib * 2**20))
  print(f"{given.out}: {manifest['bytes'] / 2**20:.1f} MiB in {len(manifest['pieces'])} pieces")


if __name__ == "__main__":
  main(sys.argv[1:])
