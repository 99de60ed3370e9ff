"""README and docs/: each command is one that works, each name in them the name of something, each link leads somewhere.

Fast: each line of a code block is known by a rule; commands of ours are read by their own parsers, with the experiments
and fields that they name (`dry_run`); files, fields, flags, links and anchors exist. Slow: what takes seconds is run as
it is written, from a copy of what a clone would have.
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pages
import pytest

from fipo_jax import changes, command_line, config
from tests.loop_test import model, settings  # noqa: F401

ROOT = pages.ROOT
PYTHON = r"(?:VLLM_\S+ )?(?:\.venv/bin/)?python(?:3)? "

# Lines of code blocks, by what is done with them. The first rule that fits counts; a line that fits none is an error.
#   dry      a program of ours: read by its own parser, and run for real where REAL says so
#   make     a target of the Makefile
#   test     pytest, on files that exist; script: of experiments/, likewise
#   others   a program of others, or what a shell does; whoever writes such a line has tried it
#   text     no command: a formula, data, what a program prints, code that another test runs or that is a fragment
RULES = (
  ("dry", rf"{PYTHON}(?:launch|fipo_jax)/"),
  ("dry", rf"{PYTHON}tests/(?:golden_check|configuration_test|mutants)\.py"),
  ("make", r"make "),
  ("test", rf"{PYTHON}-m pytest"),
  ("script", rf"(?:{PYTHON}|sh |bash |)experiments/\S+\.(?:py|sh)\b"),
  ("others", r"(?:gcloud|kubectl|docker|bazel|sbatch|tensorboard|pip install|VLLM_SERVER_DEV_MODE=1 vllm serve) ?"),
  ("others", r'sh -c "\$\(sed -n 1p lines\.txt\)"'),
  ("variables", r"[A-Z]+=\S+(?:\s+[A-Z]+=\S+)*$"),
  ("text", r'\{"prompt"|"rope_scaling"'),
  ("text", r"def verify\(|return float\(|c\.[a-z_.]+ = "),
  ("text", r"[FfA]\[t\] (?:=|→)|wall = "),
  ("text", r"prompts -> rollout|data/ +rollout/"),
  ("text", r"rollout/\{|old_logp/|update: jvp"),
  ("text", r"(?:accuracy|length) +[\d.]+ ->"),
  ("text", r"INFO: |//:tests/|Executed "),
)

# What a page leaves open, and what stands there for a test. --run and --model want something that is there.
PLACES = (
  (r"--config=(?:experiments/)?(?:\.\.\.|X\.py|experiments/\.\.\.|experiments/X\.py)(?=\s|$)",
   "--config=experiments/quickstart.py"),
  (r"--run=gs://\S+", "--run=runs/quickstart"), (r"--run=DIR", "--run=runs/quickstart"),
  (r"--process_id=K", "--process_id=0"),
)  # fmt: skip

# Programs of ours that are run for real in the slow test, where the page says nothing that is only an example.
REAL = (
  r"launch/verify\.py --verifier", r"launch/evaluate\.py --compare experiments/", r"launch/plan\.py --table",
  r"launch/evaluate\.py --run=runs/quickstart", r"launch/export\.py", r"launch/sweep\.py .*--emit",
  r"launch/plan\.py --config=\S+32b\.py --topology=v5p-128 ", r"launch/run\.py --run=DIR",
  r"launch/pod\.py .*slurm", r"launch/pod\.py .*--image=IMAGE",
  r"launch/report\.py --run=runs/quickstart ", r"launch/replay\.py --run=runs/quickstart",
)  # fmt: skip

# Names of others that look like ours.
FOREIGN = {
  "data.train_batch_size", "data.gen_batch_size", "algorithm.adv_estimator", "rollout.tensor_model_parallel_size",
}
# Programs of others, and of the tests, that are named in the text with flags of their own.
OTHERS = ("gcloud", "git ", "kubectl", "pytest", "python tests/", "ssh", "tensorboard", "uv ", "xprof")
SECTIONS = {name for name, value in config.default().to_dict().items() if isinstance(value, dict)}
FIELDS = changes.flat(config.default().to_dict())
FREE = [name for name, value in FIELDS.items() if value == {}]


def kind(line: pages.Line) -> str:
  return next((kind for kind, rule in RULES if re.match(rule, line.text)), "")


def filled(text: str, variables: dict[str, str]) -> str:
  for pattern, value in PLACES:
    text = re.sub(pattern, value, text)
  return re.sub(r"\$([A-Z]+)", lambda found: variables.get(found[1], found[0]), text)


def written(page: str) -> list[pages.Line]:
  """Commands of a page: in blocks, and in backticks where they begin as one."""
  spans = [span for span in pages.quoted(page) if re.match(rf"(?:{PYTHON})?(?:launch|fipo_jax)/\w+\.py -|make ", span)]
  spans = [span if span.startswith(("make", "python", ".venv")) else f"python {span}" for span in spans]
  inline = [pages.Line(f"{page}: in the text", span) for span in spans]
  return [line for block in pages.blocks(page) for line in block] + inline


def words(line: pages.Line, variables: dict[str, str]) -> list[str]:
  """What `dry_run` gets: program and arguments, without what the shell does beside."""
  found = shlex.split(filled(line.text, variables), comments=True)
  found = found[: found.index(">")] if ">" in found else found
  while not found[0].endswith(".py"):
    found.pop(0)
  return found


def whole(found: list[str]) -> bool:
  """Whether a command line is more than an example of some flags: "launch/plan.py --results=..."."""
  return not any(word.endswith("=...") for word in found)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder like a clone's, with a run in it; for what only reads."""
  folder = tmp_path_factory.mktemp("clone")
  for name in ("experiments", "fipo_jax", "launch", "tests", "docs"):
    (folder / name).symlink_to(ROOT / name)
  (folder / "runs/quickstart").mkdir(parents=True)
  for name, text in pages.files("docs/extending.md").items():
    (folder / name).write_text(text)
  (folder / "data").mkdir()
  sets = ("dapo-math-17k.parquet", "aime-2024.parquet", "aime-2025.jsonl")
  for name in ("prompts.jsonl", "sums.parquet", *sets, *(f"data/{name}" for name in sets)):
    (folder / name).touch()  # what the reader brings
  c = command_line.load_experiment(str(ROOT / "experiments/quickstart.py"))
  (folder / "runs/quickstart/config.json").write_text(c.to_json())
  return folder


@pytest.fixture(scope="module")
def read(place):
  """(line, words, answer of `dry_run`) of each command of ours, each only once; and one for each program."""
  lines, seen = [], set()
  for page in pages.PAGES:
    variables = {}
    for line in written(page):
      if kind(line) == "variables":
        variables |= dict(word.split("=", 1) for word in shlex.split(line.text))
      elif kind(line) == "dry" and whole(found := words(line, variables)) and tuple(found) not in seen:
        seen.add(tuple(found))
        lines.append((line, found))
  programs = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "launch").glob("*.py"))
  lines += [(pages.Line(p, p), [p, "--help"]) for p in programs if p != "launch/interpreter.py"]
  ours = [(line, found) for line, found in lines if found[0].startswith(("launch/", "fipo_jax/"))]
  done = subprocess.run(
    [sys.executable, str(ROOT / "tests/dry_run.py")], input=json.dumps([found for _, found in ours]), cwd=place,
    capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return [(line, found, answer) for (line, found), answer in zip(ours, json.loads(done.stdout), strict=True)]


def test_every_line_of_a_block_is_known():
  unknown = [f"{line.where}: {line.text}" for page in pages.PAGES for line in written(page) if not kind(line)]
  assert unknown == [], "no rule of RULES fits"


def test_commands_are_read_by_their_programs(read):
  wrong = [(line.where, line.text, answer["error"]) for line, _, answer in read if answer["error"]]
  wrong = [said for said in wrong if "Try --helpfull" not in said[2]]  # absl's --help, which ends with 1
  assert wrong == []
  assert len(read) > 40


def test_make_and_pytest_find_what_they_are_told():
  targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
  for page in pages.PAGES:
    for line in written(page):
      if kind(line) == "make":
        named = [w for w in shlex.split(line.text, comments=True)[1:] if "=" not in w]
        assert named and set(named) <= targets, f"{line.where}: {line.text}"
      if kind(line) in ("test", "script"):
        assert all((ROOT / w).exists() for w in line.text.split() if w.startswith(("tests/", "experiments/"))), line


@pytest.mark.parametrize("page", pages.PAGES)
def test_files_and_fields_in_backticks_exist(page):
  missing = []
  for span in pages.quoted(page):
    if "no such field" in span:
      continue
    if path := re.match(r"(?:python )?((?:fipo_jax|launch|experiments|tests|docs)/[\w./-]*)", span):
      missing += [span] if not (ROOT / path[1].rstrip(".")).exists() else []
    for name in re.findall(r"--(?:config|allow)[.=]([a-z_]+\.[a-z_.]+)", span):
      missing += [span] if not is_field(name) else []
    field = re.match(r"([a-z_]+)\.([a-z_]+)(\.[a-z_.]+)?(?=$|[=\s,])", span)
    if field and field[1] in SECTIONS and field[0] not in FOREIGN and not re.search(r"\.(md|py|json\w*)$", span):
      missing += [span] if not is_field(field[0]) else []
  assert missing == []


def is_field(name: str) -> bool:
  name = name.rstrip(".")
  return name in FIELDS or any(f.startswith(f"{name}.") for f in FIELDS) or any(name.startswith(f"{f}.") for f in FREE)


def test_flags_in_backticks_exist(read):
  flags = {flag for _, _, answer in read for flag in answer["flags"]} | {"--dtype", "--max-model-len"}  # of vLLM
  missing = {
    (page, flag[1]) for page in pages.PAGES for span in pages.quoted(page)
    for flag in re.finditer(r"(?:^|\s)(--[a-z_][\w-]*)", span)
    if not {flag[1], flag[1].replace("--no", "--", 1)} & flags and not span.startswith(OTHERS)
  }  # fmt: skip
  assert missing == set() and len(flags) > 60


@pytest.mark.parametrize("page", pages.PAGES)
def test_links_lead_somewhere(page):
  broken = []
  for link in pages.links(page):
    if not link.startswith(("http://", "https://")):
      file, _, anchor = link.partition("#")
      target = (ROOT / page).parent / file if file else ROOT / page
      there = target.exists() and (not anchor or anchor in pages.anchors(target.resolve().relative_to(ROOT).as_posix()))
      broken += [] if there else [link]
  assert broken == []


def test_each_page_says_who_needs_it_and_readme_is_short():
  for page in pages.PAGES[1:]:
    assert re.match(r"# [^\n]+\n\nFor \w", pages.text_of(page)), page
  readme = pages.text_of("README.md")
  assert len(readme.splitlines()) <= 130
  assert {link.partition("#")[0] for link in pages.links("README.md")} >= set(pages.PAGES[1:])


def test_a_strangers_three_questions_are_answered_in_readme():
  text = " ".join(pages.text_of("README.md").split())
  for question in ("Where do I add a reward?", "What does a run cost?", "Why did my run stop?"):
    assert f"**{question}**" in text
  codes = text.split("Why did my run stop?")[1].split("##")[0]
  from fipo_jax import processes

  for code in (processes.EXIT_ERROR, processes.EXIT_MISTAKE, processes.EXIT_STOPPED, processes.EXIT_LOST):
    assert re.search(rf"\b{code}\b", codes)


def bill() -> list[str]:
  """Seconds of an iteration and chip-hours of 100, as README says them."""
  text = " ".join(pages.text_of("README.md").split())
  return list(re.search(r"takes ([\d,]+) s an iteration, ([\d,]+) chip-hours", text).groups())


def test_the_bill_is_one_on_all_pages():
  seconds, hours = bill()
  assert f"**{seconds} s an iteration, {hours} chip-hours per 100 steps**" in " ".join(
    pages.text_of("docs/performance.md").split()
  )


# ---- for real ----


def tracked(folder: pathlib.Path) -> pathlib.Path:
  """What a clone would have, with files that are new and not ignored; and Pythons that are this one."""
  listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
  for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
    if (ROOT / name).is_file():
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(ROOT / name, folder / name)
  for name in ("bin/python", ".venv/bin/python"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (folder / name).chmod(0o755)
  return folder


@pytest.fixture(scope="module")
def clone(tmp_path_factory, model):  # noqa: F811
  """A clone in which a small run of the quickstart has ended."""
  folder = tracked(tmp_path_factory.mktemp("clone") / "project")
  own = settings(model, folder / "runs/quickstart")
  own |= {"checkpoint.every": 1, "checkpoint.keep": 3, "checkpoint.keep_best": 1, "eval.every": 1}
  flags = [f"--config.{name}={value}" for name, value in own.items()]
  done = subprocess.run(
    [sys.executable, "launch/run.py", "--config=experiments/quickstart.py", *flags], cwd=folder, capture_output=True,
    text=True, env=environment(folder),
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return folder


def environment(folder: pathlib.Path) -> dict[str, str]:
  return os.environ | {"JAX_PLATFORMS": "cpu", "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


def real() -> list[pages.Line]:
  found = {}
  for page in pages.PAGES:
    for line in written(page):
      if kind(line) == "dry" and "in the text" not in line.where and any(re.search(rule, line.text) for rule in REAL):
        found.setdefault(line.text, line)
  return list(found.values())


@pytest.mark.slow
@pytest.mark.parametrize("line", real(), ids=lambda line: line.where)
def test_what_takes_seconds_is_run_as_it_is_written(clone, line):
  variables = {"BUCKET": "bucket", "IMAGE": "registry/fipo_jax:1"}
  done = subprocess.run(
    ["bash", "-c", filled(line.text, variables)], cwd=clone, capture_output=True, text=True, env=environment(clone)
  )
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
  if "launch/plan.py --config" in line.text:
    seconds, hours = bill()
    assert f"iteration  {seconds} s" in done.stdout and f"{hours} chip-hours" in done.stdout


@pytest.mark.slow
def test_lines_that_are_emitted_are_commands_of_ours(clone):
  """What `sh -c "$(sed -n 1p lines.txt)"` would run after --emit."""
  (line,) = [line for line in real() if "--emit" in line.text]
  subprocess.run(["bash", "-c", line.text], cwd=clone, env=environment(clone), check=True)
  base, *arms = [words(pages.Line("", text), {}) for text in (clone / "lines.txt").read_text().splitlines()]
  assert all(found[0].endswith("launch/run.py") for found in (base, *arms))
  assert [any(f"algorithm.name={name}" in word for word in found) for name, found in zip(
    ("fipo", "dapo", "grpo"), arms, strict=True)] == [True] * 3  # fmt: skip
