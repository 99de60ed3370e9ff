"""Runs this project's functions on golden cases and says how far they are from the reference.

    python tests/golden_check.py DIR [--kind KIND ...] [--all]

DIR and its sub-folders are searched. A golden folder is one with an `index.json` (one line per
case), with `config.json` and `golden.npz` (a model), or with `cases.jsonl` and `tokenizer.json` (a
tokenizer). Without an index, kinds are told from file names, and kinds that need a configuration
are skipped and named.

Errors are |ours − reference| / max(1, |reference|). Exit status: 0 all equal within tolerance, 1 a
mismatch, a case that cannot be read, or nothing that could be run, 2 wrong usage. The checks
themselves, kind by kind, are in
golden_kinds.py and golden_other_kinds.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import sys
import traceback
import zipfile

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import golden_kinds

PREFIXES = {  # file name -> kind, for folders without an index
  "fkl_": "future_kl", "ppo_": "vanilla", "gspo_": "gspo", "grpo_": "grpo", "agg_": "agg_loss",
  "overlong": "overlong", "math_dapo_verifier": "verifier", "math_dapo_normalize": "normalize",
  "validation": "validation", "msswift_": "msswift_weights",
}  # fmt: skip
NEED_CONFIG = ("future_kl", "vanilla", "gspo", "grpo", "msswift_weights")


@dataclasses.dataclass
class Line:
  """The largest error of one quantity class of one kind."""

  tolerance: float
  error: float = 0.0
  compared: int = 0
  where: str = ""


class Report:
  """Collects comparisons; a kind's check calls `close`, `equal` and `departure` with the case set in `case`."""

  def __init__(self):
    self.lines: dict[tuple[str, str], Line] = {}
    self.cases: dict[str, int] = {}
    self.mismatches: list[str] = []
    self.departures: list[str] = []
    self.skipped: list[str] = []
    self.kind = self.case = ""

  def close(
    self, name: str, ours, reference, tolerance: float, *, group="arrays", where=None, excuse=""
  ):
    """Holds numbers together. Where the reference alone is NaN: a departure if `excuse` says why, else a mismatch."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    if ours.shape != reference.shape:
      return self.mismatch(f"{name}: shape {ours.shape}, reference {reference.shape}")
    chosen = np.ones(ours.shape, bool) if where is None else np.asarray(where, bool)
    ours, reference = ours[chosen], reference[chosen]
    flawed = np.isnan(reference) & ~np.isnan(ours)
    if flawed.any() and excuse:
      self.departure(
        f"{name}: reference NaN at {flawed.sum()} of {flawed.size} places, ours finite ({excuse})"
      )
      ours, reference = ours[~flawed], reference[~flawed]
    same = (ours == reference) | (np.isnan(ours) & np.isnan(reference))
    with np.errstate(invalid="ignore", over="ignore"):
      error = np.where(same, 0.0, np.abs(ours - reference) / np.maximum(1, np.abs(reference)))
    error = np.where(np.isnan(error), np.inf, error)
    largest = float(error.max(initial=0.0))
    self._add(group, tolerance, largest, ours.size, name)
    if largest > tolerance:
      i = int(error.argmax())
      self.mismatch(
        f"{name}: ours {ours[i]!r}, reference {reference[i]!r}, error {largest:.3g} > {tolerance:g}"
      )

  def equal(self, name: str, ours, reference, *, where=None, group="exact"):
    """Holds masks, counts, strings and token lists to exact equality."""
    if isinstance(reference, np.ndarray):
      chosen = np.ones(reference.shape, bool) if where is None else np.asarray(where, bool)
      ours, reference = np.asarray(ours)[chosen].tolist(), reference[chosen].tolist()
    same = ours == reference
    self._add(group, 0.0, 0.0 if same else math.inf, 1, name)
    if not same:
      self.mismatch(f"{name}: ours {_short(ours)}, reference {_short(reference)}")

  def _add(self, group, tolerance, error, compared, name):
    line = self.lines.setdefault((self.kind, group), Line(tolerance))
    line.compared += compared
    line.tolerance = max(line.tolerance, tolerance)
    if error >= line.error:
      line.error, line.where = error, f"{self.case} {name}"

  def mismatch(self, text: str):
    self.mismatches.append(f"{self.kind} {self.case} {text}")

  def departure(self, text: str):
    self.departures.append(f"{self.kind} {self.case} {text}")

  def skip(self, text: str):
    self.skipped.append(text)


def find_cases(root: pathlib.Path, report: Report):
  """Yields (kind, folder, entry) for everything under root that looks golden; says what it skips."""
  folders = [root, *sorted(p for p in root.rglob("*") if p.is_dir())]
  for folder in folders:
    if (folder / "config.json").exists() and (folder / "golden.npz").exists():
      yield "qwen2", folder, {"file": "golden.npz"}
    if (folder / "cases.jsonl").exists() and (folder / "tokenizer.json").exists():
      yield "qwen2_tokenizer", folder, {"file": "cases.jsonl"}
    entries = []
    if (folder / "index.json").exists():
      entries = _read_index(folder / "index.json", report)
    listed = {entry["file"] for entry in entries}
    for entry in entries:
      yield entry.get("kind"), folder, entry
    for file in sorted(folder.iterdir()):
      kind = next((k for p, k in PREFIXES.items() if file.name.startswith(p)), None)
      if kind is None or not file.is_file() or file.name in listed:
        continue
      if kind in NEED_CONFIG:
        report.skip(f"{file}: kind {kind} needs its configuration, and no index.json line has it")
      else:
        yield kind, folder, {"file": file.name, "kind": kind}


def _read_index(path: pathlib.Path, report: Report) -> list[dict]:
  try:
    entries = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    report.mismatches.append(f"{path}: cannot be read: {error}")
    return []
  golden = isinstance(entries, list) and all(isinstance(e, dict) and "file" in e for e in entries)
  if not golden:
    report.skip(f"{path}: not a list of cases")
  return entries if golden else []


def run_case(kind: str, folder: pathlib.Path, entry: dict, report: Report):
  """One case; whatever it raises is a mismatch of that case, so that the others are still run."""
  report.kind, report.case = kind, str(folder.name + "/" + entry["file"])
  report.cases[kind] = report.cases.get(kind, 0) + 1
  try:
    golden_kinds.KINDS[kind](report, folder, entry)
  except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
    report.mismatch(f"could not be checked: {type(error).__name__}: {error}")
  except Exception:  # noqa: BLE001 - an error inside our function is a finding about this case, not the end of the run
    report.mismatch("raised:\n" + traceback.format_exc(limit=-3))


def show(report: Report, say_all: bool):
  print(
    f"{'kind':<17} {'cases':>5}  {'what':<24} {'compared':>9}  {'largest error':>13}  {'tolerance':>9}"
  )
  for (kind, group), line in sorted(report.lines.items()):
    where = f"   {line.where}" if line.error > 0 else ""
    counts = f"{kind:<17} {report.cases[kind]:>5}  {group:<24} {line.compared:>9}"
    print(f"{counts}  {line.error:>13.3g}  {line.tolerance:>9.3g}{where}")
  for title, texts in (("documented departures", report.departures), ("skipped", report.skipped)):
    if texts:
      print(f"{len(texts)} {title}:")
      for text in texts if say_all else texts[:40]:
        print(f"  {text}")
  if report.mismatches:
    print(f"{len(report.mismatches)} MISMATCHES:")
    for text in report.mismatches if say_all else report.mismatches[:40]:
      print(f"  {text}")


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("directory", metavar="DIR", type=pathlib.Path, help="folder of golden cases")
  parser.add_argument(
    "--kind", nargs="+", choices=sorted(golden_kinds.KINDS), help="only these kinds (default: all)"
  )
  parser.add_argument(
    "--all", action="store_true", help="print every line, not the first 40 of each sort"
  )
  arguments = parser.parse_args(argv)
  if not arguments.directory.is_dir():
    parser.error(f"DIR={arguments.directory} is not a folder; give one with golden cases.")
  report = Report()
  for kind, folder, entry in find_cases(arguments.directory, report):
    if arguments.kind and kind not in arguments.kind:
      continue
    if kind in golden_kinds.KINDS:
      run_case(kind, folder, entry, report)
    else:
      report.skip(f"{folder / entry['file']}: kind {kind!r} is not known here")
  show(report, arguments.all)
  ran = sum(report.cases.values())
  if not ran:
    print(
      f"nothing was run: no golden case {'of these kinds ' if arguments.kind else ''}in {arguments.directory}"
    )
  elif not report.mismatches:
    print(f"all {ran} cases within tolerance")
  return 1 if report.mismatches or not ran else 0


def _short(value) -> str:
  text = repr(value)
  return text if len(text) <= 160 else text[:160] + "..."


if __name__ == "__main__":
  sys.exit(main())
