"""On a GPU machine that is at hand for minutes: how fast a train step, the sampler and a whole iteration are.

    python3 experiments/gpu/measure.py --store=STORE --out=DIR --minutes=8 [--only=NAME,...] [--tiny]

Each stage is a process with a limit and one JSON line as its result; STORE/measured.json keeps them, and what is there
is not measured again. One that fails is a line, and the next goes on (--only tries it again); one that the minutes cut
off is left for the same command later. --out gets measured.json, measured.md and the log, whatever happened. Random
weights do: STORE/model (of pack.py) is needed by `fipo` alone, and STORE/site by machines that lack packages. --tiny: a
rehearsal on a CPU.
Exit codes: 0 nothing is left to do; 75 not yet, the same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import shutil
import signal
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from experiments.gpu import machine  # noqa: E402 - needs the path

PEER = "experiments/gpu/torch_peer.py"
# JAX leaves a quarter of the memory alone otherwise; docs.nvidia.com/jax-toolbox, GPU performance, takes 0.8 to 0.9.
MEMORY = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
# For dense training, of the same page; docs.jax.dev/en/latest/gpu_performance_tips.html has triton_gemm_any. Those
# about collectives are of no use to one GPU.
XLA = {
  "cublas": "--xla_gpu_enable_triton_gemm=false --xla_gpu_enable_latency_hiding_scheduler=true",
  "triton": "--xla_gpu_triton_gemm_any=true --xla_gpu_enable_latency_hiding_scheduler=true",
  "streams": "--xla_gpu_enable_command_buffer= --xla_gpu_enable_triton_gemm=false",
  "buffered": "--xla_gpu_enable_while_loop_double_buffering=true --xla_gpu_enable_triton_gemm=false",
}
# Qwen2.5-1.5B, as in experiments/results/gpu_h100.md.
STEP = (
  "--config=experiments/fipo_qwen2_5_math_7b.py", "--config.model.path=Qwen2.5-1.5B", "--config.model.max_position=0",
  "--config.batch.row_tokens=22528", "--config.batch.micro_rows=1", "--config.mesh.data=1",
  "--config.model.sum_dtype=",  # float32 in that file, which remat=dots has not; one device adds up nothing
)  # fmt: skip
FIPO = ("--config=experiments/real_gpu.py", "--config.steps=3", "--config.checkpoint.every=3")
# Of a rehearsal.
TINY_STEP = (
  "--config.model.path=mini", "--config.model.dtype=float32", "--config.batch.row_tokens=128", "--config.mesh.fsdp=1",
  "--config.data.max_prompt_tokens=32", "--config.rollout.max_response_tokens=96",
  "--config.reward.overlong_buffer_tokens=32",
)  # fmt: skip
TINY_FIPO = (
  "--config=experiments/quickstart.py", "--config.steps=3", "--config.checkpoint.every=3", "--config.eval.every=0",
  "--config.batch.prompts=8", "--config.batch.minibatch_prompts=2", "--config.batch.micro_rows=8",
  "--config.rollout.slots=64", "--config.model.base_experiment=",
)  # fmt: skip
COLUMNS = ("tok_s", "mfu", "peak_gib", "of_bound", "seconds", "compile_s", "device")


@dataclasses.dataclass(frozen=True)
class Stage:
  """One process. limit_s: of it; it begins when half of that is left. needs: what must be in STORE."""

  name: str
  limit_s: float
  command: tuple[str, ...]
  env: dict[str, str] = dataclasses.field(default_factory=dict)
  needs: str = ""


def stages(store: pathlib.Path, tiny: bool, config: list[str]) -> list[Stage]:
  """All, what is most worth knowing first; config: fields of `fipo` that the user gives."""
  step = (*STEP, *(TINY_STEP if tiny else ()))
  size, sampled, slots = ("mini", "mini", 8) if tiny else ("Qwen2.5-1.5B", "Qwen2.5-0.5B", 256)
  length = ("--tokens=256", "--device=cpu") if tiny else ("--tokens=22528",)
  serve = ("--device=cpu",) if tiny else ()
  flags = lambda name: MEMORY | ({} if tiny else {"XLA_FLAGS": XLA[name]})  # a CPU's compiler has no use for them
  def train(name, remat, env):
    command = ("launch/benchmark.py", "--what=train", *step, f"--config.model.remat={remat}")
    return Stage(f"step_{name}", 240, command, env)

  peer = lambda name, limit_s, *options: Stage(f"peer_{name}", limit_s, (PEER, *options))
  generate = ("--what=generate", f"--model={sampled}", f"--slots={slots}", *serve)
  torch_step = ("--what=step", f"--model={size}", *length)
  run, fipo = store / "fipo", TINY_FIPO if tiny else FIPO
  found = [
    train("dots", "dots", MEMORY),
    train("context", "context", MEMORY),
    train("dots_cublas", "dots", flags("cublas")),
    peer("step_compiled", 300, *torch_step, "--compile"),
    Stage("sampler", 180, ("launch/benchmark.py", "--what=real_sampler", f"--model={sampled}", f"--slots={slots}")),
    peer("generate", 120, *generate),
    Stage("fipo_run", 360, ("launch/run.py", *fipo, f"--config.model.path={store / 'model'}",
                            f"--config.workdir={run}", *config), needs="model"),
    Stage("fipo", 120, ("launch/benchmark.py", "--what=phases", f"--run={run}"), needs="fipo/metrics.jsonl"),
    train("dots_triton", "dots", flags("triton")),
    train("dots_streams", "dots", flags("streams")),
    train("dots_buffered", "dots", flags("buffered")),
    peer("step", 240, *torch_step),
    peer("generate_compiled", 240, *generate, "--compile"),
  ]  # fmt: skip
  return [dataclasses.replace(s, limit_s=4 * s.limit_s) for s in found] if tiny else found  # a CPU may be busy


def result_of(text: str) -> dict | None:
  """The last line of JSON in what a stage said."""
  for line in reversed(text.splitlines()):
    if line.startswith("{"):
      try:
        return json.loads(line)
      except ValueError:
        continue
  return None


def measure(runner: machine.Stages, todo: list[Stage], again: bool = False) -> list[str]:
  """Runs what STORE/measured.json lacks, and again what failed; the names of what is left for a later command."""
  kept, left = runner.store / "measured.json", []
  found = json.loads(kept.read_text()) if kept.exists() else {}
  for stage in todo:
    if stage.name in found and not (again and found[stage.name]["exit_code"]):
      continue
    if stage.needs and not (runner.store / stage.needs).exists():
      print(f"{stage.name}: needs {stage.needs} in --store, which is not there", flush=True)
      continue
    if runner.left() < stage.limit_s / 2:
      left.append(stage.name)
      continue
    limit, at = min(stage.limit_s, runner.left()), runner.log.tell()
    env = {"JAX_COMPILATION_CACHE_DIR": str(runner.store / "xla"), **stage.env}
    code = runner.run(stage.name, limit, *stage.command, env=env)
    if code and runner.left() <= 0:
      left.append(stage.name)  # the minutes ended, not its limit
      continue
    with (runner.store / "log.txt").open(errors="replace") as log:
      log.seek(at)
      said = log.read()
    result = (not code and result_of(said)) or {}
    if code:
      result["error"] = why(code, said.splitlines()[1:], limit)
    found[stage.name] = {"exit_code": code, **result}
    partial = kept.with_name("measured.new")
    partial.write_text(json.dumps(found, indent=1))
    partial.rename(kept)
    print(f"{stage.name}: {line_of(found[stage.name])}", flush=True)
  return left


def why(code: int, lines: list[str], limit_s: float) -> str:
  """One line: the limit, what ran out of memory, or what was said last."""
  if code in (-signal.SIGTERM, machine.STOPPED):
    return f"stopped at its limit of {limit_s:.0f} s"
  memory = [line for line in lines if "RESOURCE_EXHAUSTED" in line or "OutOfMemory" in line]
  return (memory or [line for line in lines if line.strip()] or ["it said nothing"])[-1][:300]


def line_of(result: dict) -> str:
  if result["exit_code"]:
    return f"failed, exit code {result['exit_code']}: {result['error']}"
  return ", ".join(f"{k} {result[k]}" for k in COLUMNS if result.get(k) is not None) or "done"


def table(found: dict[str, dict]) -> str:
  """The results in Markdown, the phases of an iteration under them."""
  rows = [f"| stage | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
  for name, of in found.items():
    show = lambda x: "-" if x is None else f"{x:,.4g}" if isinstance(x, float) else str(x)
    cells = " | ".join(show(of.get(k)) for k in COLUMNS) if not of["exit_code"] else line_of(of).replace("|", "/")
    rows.append(f"| {name} | {cells} |")
  if (of := found.get("fipo")) and not of["exit_code"]:
    rows += ["", f"Step {of['step']} on {of['device']}, foretold for {of['foretold_for']}:", ""]
    rows += [f"- {p}: {of[f'{p}_s']:.3g} s, foretold {of[f'{p}_foretold_s']:.3g}" for p in ("rollout", "old_logp",
                                                                                              "update")]  # fmt: skip
  return "\n".join([*rows, ""])


def bring(store: pathlib.Path, out: pathlib.Path) -> None:
  out.mkdir(parents=True, exist_ok=True)
  if (kept := store / "measured.json").exists():
    (store / "measured.md").write_text(table(json.loads(kept.read_text())))
  for path in (kept, store / "measured.md", store / "log.txt", store / "fipo/metrics.jsonl"):
    if path.exists():
      shutil.copy(path, out / path.name)


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--store", type=pathlib.Path, required=True)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--minutes", type=float, default=8)
  parser.add_argument("--only", default="", help="names of stages, in the order of the list")
  parser.add_argument("--tiny", action="store_true", help="small shapes, for a rehearsal on a CPU")
  given, config = parser.parse_known_args(argv)
  if wrong := [a for a in config if not a.startswith("--config.")]:
    parser.error(f"{wrong[0]}: unknown; fields of the stage fipo_run are given as --config.FIELD=VALUE.")
  store = given.store.resolve()
  todo, only = stages(store, given.tiny, config), list(filter(None, given.only.split(",")))
  if wrong := [name for name in only if name not in {s.name for s in todo}]:
    parser.error(f"--only={wrong[0]}: unknown; choose from {', '.join(s.name for s in todo)}.")
  store.mkdir(parents=True, exist_ok=True)
  try:
    if (store / "manifest.json").exists():
      machine.unpack(store)
    runner = machine.Stages(store, time.monotonic() + 60 * given.minutes, grace_s=10)
    left = measure(runner, [s for s in todo if not only or s.name in only], again=bool(only))
  except ValueError as e:
    parser.error(str(e))
  finally:
    bring(store, given.out)
  print(f"left for the same command: {', '.join(left)}" if left else "nothing is left")
  return machine.STOPPED if left else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
