"""On a GPU machine without network that is fed by a command runner: takes pieces, joins them, trains within minutes.

    python3 experiments/gpu/machine.py probe                           what it has, for pack.py --probe
    python3 experiments/gpu/machine.py take --pieces=DIR --store=STORE a part of what pack.py made, and manifest.json
    python3 experiments/gpu/machine.py run --store=STORE --out=DIR --minutes=8 [--algorithm=dapo] [--config.FIELD=VALUE]

STORE is a folder that outlives a command and is not part of what the runner copies. `run` goes through its stages and
skips what STORE has: unpack, evaluate the model, train, evaluate what came out, compare. When the minutes end, training
is told to stop, saves, and is evaluated as far as it came; the same command goes on from there. Small results are
copied to --out whatever happened. Only the standard library and numpy are needed until `unpack` has installed the rest.
Exit codes: 0 all done; 75 not yet, the same command goes on; others are of the stage that failed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
STOPPED = 75  # as fipo_jax.processes
BROUGHT_MIB = 15.0  # of a file that is brought back
KEPT = ("metrics.jsonl", "samples.jsonl", "config.json", "result.json", "starts.json")  # of the run's folder


def probe() -> dict:
  """Python, packages and GPUs of this machine."""
  name = lambda d: d.metadata["Name"].lower().replace("_", "-").replace(".", "-")
  gpus = shutil.which("nvidia-smi") and subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
  return {
    "python": f"{sys.version_info.major}.{sys.version_info.minor}", "gpus": (gpus or "none").strip(),
    "free_gib": round(shutil.disk_usage("/tmp").free / 2**30, 1), "cores": os.cpu_count(),
    "packages": {name(d): d.version for d in importlib.metadata.distributions() if d.metadata["Name"]},
  }  # fmt: skip


def hash_of(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def take(pieces: pathlib.Path, store: pathlib.Path) -> list[str]:
  """Moves the pieces that are whole into STORE; the names of those that are still missing.

  Raises: ValueError for a piece that is not what the manifest says, or a manifest of another package.
  """
  store.mkdir(parents=True, exist_ok=True)
  text, kept = (pieces / "manifest.json").read_text(), store / "manifest.json"
  if kept.exists() and kept.read_text() != text:
    raise ValueError(f"--store={store}: holds pieces of another package; name another folder.")
  kept.write_text(text)
  said = json.loads(text)["pieces"]
  for piece in said:
    path = pieces / piece["name"]
    if not path.exists():
      continue
    if hash_of(path) != piece["sha256"]:
      raise ValueError(f"{path}: {path.stat().st_size} of {piece['bytes']} bytes, or others; hand it over again.")
    shutil.move(path, store / piece["name"])
  if (store / "unpacked").exists():
    return []
  return [piece["name"] for piece in said if not (store / piece["name"]).exists()]


def join(store: pathlib.Path) -> pathlib.Path:
  """One file of all pieces, which it takes the place of. Raises: ValueError for what is missing or not the whole."""
  manifest, whole = json.loads((store / "manifest.json").read_text()), store / "all.tar"
  if not whole.exists():
    if missing := [p["name"] for p in manifest["pieces"] if not (store / p["name"]).exists()]:
      raise ValueError(f"--store={store}: {', '.join(missing)} missing; take them first.")
    with (store / "joining").open("wb") as file:
      for piece in manifest["pieces"]:
        with (store / piece["name"]).open("rb") as part:
          shutil.copyfileobj(part, file)
    (store / "joining").rename(whole)
    for piece in manifest["pieces"]:
      (store / piece["name"]).unlink()
  if hash_of(whole) != manifest["sha256"]:
    raise ValueError(f"{whole}: not what was packed; delete --store={store} and begin again.")
  return whole


def unpack(store: pathlib.Path) -> None:
  """Makes STORE/model, a Hugging Face directory, and STORE/site, the packages; once."""
  if (store / "unpacked").exists():
    return
  whole = join(store)
  with tarfile.open(whole) as tar:
    tar.extractall(store, filter="data")
  if wheels := sorted(map(str, store.glob("wheels/*.whl"))):
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    options = ["--no-deps", "--no-compile", "--upgrade", "--target", str(store / "site")]
    subprocess.run([*install, *options, *wheels], check=True)
  if (store / "weights.json").exists():  # else the package is of wheels alone
    subprocess.run([sys.executable, __file__, "model", f"--store={store}"], check=True, env=environment(store))
  (store / "unpacked").touch()
  for path in (whole, store / "weights.bin"):
    path.unlink(missing_ok=True)


def write_model(store: pathlib.Path) -> None:
  """STORE/model/*.safetensors from weights.bin, tensor by tensor."""
  import ml_dtypes  # noqa: F401 - numpy knows bfloat16 by it
  import numpy as np

  from experiments.gpu import pack
  from fipo_jax.models import tensor_files

  index, data, at = json.loads((store / "weights.json").read_text()), np.memmap(store / "weights.bin", mode="r"), 0
  tensors = []
  for name, of in index.items():
    shape, dtype, numbers = tuple(of["shape"]), np.dtype(of["dtype"]), int(np.prod(of["shape"]))
    if of["blocks"]:
      scales = (*shape[:-1], shape[-1] // pack.BLOCK)
      read = lambda at=at, shape=shape, n=numbers, scales=scales, dtype=dtype: pack.dequantise(
        data[at : at + n].view(np.int8).reshape(shape),
        data[at + n : at + n + 2 * int(np.prod(scales))].view(np.float16).reshape(scales),
      ).astype(dtype)
      at += numbers + 2 * int(np.prod(scales))
    else:
      size = numbers * dtype.itemsize
      read = lambda at=at, shape=shape, size=size, dtype=dtype: data[at : at + size].view(dtype).reshape(shape)
      at += size
    tensors.append((name, shape, read))
  dtypes = {of["dtype"] for of in index.values()}
  tensor_files.write_all(store / "model", tensors, "bfloat16" if dtypes == {"bfloat16"} else "float32", 5e9)


def environment(store: pathlib.Path) -> dict[str, str]:
  path = [str(store / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")]
  return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONUNBUFFERED": "1"}


class Stages:
  """Commands of the repository that run until a deadline, with all they say in STORE/log.txt."""

  def __init__(self, store: pathlib.Path, end: float, grace_s: float):
    self.store, self.end, self.grace_s = store, end, grace_s
    self.log = (store / "log.txt").open("a")

  def left(self) -> float:
    return self.end - time.monotonic()

  def run(self, name: str, limit_s: float, *command: str, env: dict[str, str] | None = None) -> int:
    """Its exit code; at the limit it gets SIGTERM, and after the grace SIGKILL, which counts as stopped, too."""
    started = time.monotonic()
    self.log.write(f"---- {name}: {' '.join(command)}\n")
    self.log.flush()
    child = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=self.log, stderr=subprocess.STDOUT,
                             env=environment(self.store) | (env or {}))  # fmt: skip
    try:
      code = child.wait(max(limit_s, 1))
    except subprocess.TimeoutExpired:
      child.send_signal(signal.SIGTERM)
      try:
        code = child.wait(self.grace_s)
      except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        code = STOPPED
        print(f"{name}: killed after --grace_s={self.grace_s:g}; what its last checkpoint has is left", flush=True)
    print(f"{name}: exit code {code} after {time.monotonic() - started:.0f} s, {self.left():.0f} s left", flush=True)
    return code


def run(given, overrides: list[str]) -> int:
  """All stages, as far as the minutes go."""
  store = given.store
  began = time.monotonic()
  stages = Stages(store, began + 60 * given.minutes, given.grace_s)
  unpack(store)
  print(f"unpacked: {stages.left():.0f} s left", flush=True)
  fields = [f"--config.compile_cache={store / 'xla'}", *overrides]
  fields += [f"--config.algorithm.name={given.algorithm}"] if given.algorithm else []
  config, work = f"--config={given.experiment}", store / "run"
  before, seconds = store / "before.json", store / "evaluation_s"
  if not before.exists():
    started = time.monotonic()
    command = ("launch/evaluate.py", config, f"--model={store / 'model'}", f"--out={before}", *fields)
    if code := stages.run("before", stages.left(), *command):
      return code
    seconds.write_text(f"{time.monotonic() - started:.1f}")
  if not (work / "result.json").exists():
    limit = stages.left() - float(seconds.read_text()) - given.grace_s
    code = stages.run("train", limit, "launch/run.py", config, f"--config.model.path={store / 'model'}",
                      f"--config.workdir={work}", *fields)  # fmt: skip
    if code not in (0, STOPPED):
      return code
  step = max((int(p.name) for p in work.glob("checkpoints/*") if p.name.isdigit()), default=0)
  if not step:
    print("no checkpoint yet; the same command goes on", flush=True)
    return STOPPED
  after = store / f"after_step{step}.json"
  if not after.exists():
    command = ("launch/evaluate.py", config, f"--run={work}", f"--step={step}", f"--out={after}", *fields)
    if code := stages.run("after", stages.left(), *command):
      return code
  compared = ("launch/evaluate.py", "--compare", str(before), str(after), f"--out={store / f'compare_step{step}.json'}")
  if code := stages.run("compare", max(stages.left(), 60), *compared):
    return code
  return 0 if (work / "result.json").exists() else STOPPED


def bring(store: pathlib.Path, out: pathlib.Path) -> None:
  """Copies what is small to --out, the log and the run's records; what is larger than may come back is said."""
  out.mkdir(parents=True, exist_ok=True)
  files = [*store.glob("*.json"), *store.glob("*_samples.jsonl"), *(store / "run" / name for name in KEPT)]
  with tarfile.open(out / "records.tar.gz", "w:gz") as tar:
    for path in sorted(p for p in files if p.exists() and p.name not in ("weights.json", "manifest.json")):
      tar.add(path, path.name)
  for path in [*store.glob("compare_*.json"), store / "log.txt", store / "run" / "metrics.jsonl"]:
    if path.exists():
      shutil.copy(path, out / path.name)
  for path in out.iterdir():
    if (size := path.stat().st_size / 2**20) > BROUGHT_MIB:
      print(f"{path}: {size:.0f} MiB, more than the {BROUGHT_MIB:g} that a runner may bring back")


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("what", choices=("probe", "take", "model", "run"))
  parser.add_argument("--pieces", type=pathlib.Path)
  parser.add_argument("--store", type=pathlib.Path)
  parser.add_argument("--out", type=pathlib.Path)
  parser.add_argument("--minutes", type=float, default=8)
  parser.add_argument("--grace_s", type=float, default=45, help="to finish an update and save, when training must stop")
  parser.add_argument("--algorithm", default="")
  parser.add_argument("--experiment", default="experiments/real_gpu.py")
  given, overrides = parser.parse_known_args(argv)
  needed = {"probe": (), "take": ("pieces", "store"), "model": ("store",), "run": ("store", "out")}[given.what]
  for name in needed:
    if getattr(given, name) is None:
      parser.error(f"--{name}: {given.what} needs it.")
  if wrong := [a for a in overrides if given.what != "run" or not a.startswith("--config.")]:
    parser.error(f"{wrong[0]}: unknown; fields are given to run as --config.FIELD=VALUE.")
  given.store = given.store and given.store.resolve()
  try:
    if given.what == "probe":
      print(json.dumps(probe(), indent=1))
    elif given.what == "take":
      missing = take(given.pieces, given.store)
      print(f"{given.store}: {f'still missing: {chr(44).join(missing)}' if missing else 'complete'}")
    elif given.what == "model":
      write_model(given.store)
    else:
      try:
        return run(given, overrides)
      finally:
        bring(given.store, given.out)
  except ValueError as e:
    parser.error(str(e))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
