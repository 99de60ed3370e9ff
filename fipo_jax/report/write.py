"""Runs -> a page in a file, once or as long as they go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from fipo_jax import lines, paths
from fipo_jax.report import page, read, tokens

WATCHED = ("metrics", "samples", "tokens", "result.json", "starts.json", "rollbacks.json", "config.json")


def report(folders: Sequence, out=None, *, samples_mb: float = tokens.MOST_MB, watched: bool = False):
  """Writes the page of these runs; gives its path.

  Args:
    out: a file that ends in .html, or a folder for report.html; None is the folder of the one run.
    samples_mb: 10⁶ bytes of responses in the page at most.
    watched: whether the page loads itself again.
  Raises ValueError for mistakes, and as `read.run`.
  """
  path = target(folders, out)
  text = page.render([read.run(folder) for folder in folders], watched=watched, samples_mb=samples_mb)
  paths.write(path, text.encode("utf-8", "replace"))
  return path


def target(folders: Sequence, out=None):
  """The path of the page. Raises ValueError for none, or several runs without `out`."""
  if not folders:
    raise ValueError("no --run: name the folder of a run, --run=runs/quickstart; several are laid over each other.")
  if out is None and len(folders) > 1:
    raise ValueError(f"--out is missing: {len(folders)} runs have no folder in common; name a file or a folder.")
  path = paths.of(folders[0] if out is None else out)
  return path if path.name.endswith(".html") else path / "report.html"


def watch(
  folders: Sequence, out=None, *, samples_mb: float = tokens.MOST_MB, say: Callable[[str], None] = print,
  sleep: Callable[[float], None] = time.sleep,
):  # fmt: skip
  """Writes the page whenever the runs have written something, until all have ended; gives its path.

  Whoever stops it (KeyboardInterrupt) finds the last page, which no longer loads itself again.
  """
  path, before, waits = target(folders, out), None, False
  while not _begun(folders):
    if not waits:
      say(f"waiting for the first step of {', '.join(map(str, folders))}")
    waits = True
    sleep(page.RELOAD_S)
  try:
    while True:
      now, over = [_state(folder) for folder in folders], all(_over(folder) for folder in folders)
      if over:
        break
      if now != before:
        report(folders, out, samples_mb=samples_mb, watched=True)
      if before is None:
        say(f"{path}: written again as the run goes on; Ctrl-C ends that")
      before = now
      sleep(page.RELOAD_S)
  except KeyboardInterrupt:
    say("stopped watching; the run goes on")
  return report(folders, out, samples_mb=samples_mb)


def _begun(folders: Sequence) -> bool:
  """Whether all runs have something to draw. Raises FileNotFoundError for what is no run."""
  for folder in map(paths.of, folders):
    if not any(lines.exists(folder / f"{name}.jsonl") for name in ("metrics", "tokens")):
      if not paths.is_file(folder / "config.json"):
        read.run(folder)  # says what is wrong
      return False
  return True


def _over(folder) -> bool:
  """Whether a run has ended; of one that does not say when it began, too."""
  starts = read.starts(folder, [])
  return not starts or bool(starts[-1].get("ended"))


def _state(folder) -> list[tuple[str, int]]:
  """What is there that the page is made of, with sizes."""
  folder = paths.of(folder)
  parts = [entry for name in ("metrics", "samples") if paths.is_folder(folder / name)
           for entry in paths.entries(folder / name)]  # fmt: skip
  return parts + [(name, size) for name, size in paths.entries(folder) if name.startswith(WATCHED)]
