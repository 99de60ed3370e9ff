"""What launch/pod.py writes for schedulers is what they read, does what the exit codes say, and is refused where it
cannot work.

    python tests/pod_test.py --write     writes the golden files anew
"""

import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models import jobset_v1alpha2_job_set

if __name__ == "__main__":
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from fipo_jax import command_line, processes
from fipo_jax.pods import chips
from fipo_jax.pods.jobs import TARGETS, job, jobset, scripts
from launch import pod as command
from tests import jobset_controller

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests/golden/jobs"
EXPERIMENT = "experiments/fipo_qwen2_5_32b.py"
TOPOLOGIES = ("v4-128", "v5e-256", "v5p-128", "v6e-256", "v7x-128")
IMAGE = "us-docker.pkg.dev/project/repo/fipo_jax:1"
GIVEN = (
  f"--config={EXPERIMENT}", "--topology=v5p-128", f"--image={IMAGE}", "--config.workdir=gs://bucket/runs/fipo-32b"
)  # fmt: skip
CODES = (0, 1, 2, 75, 76, 130, 134, 137, 139, 143)


def make(target="jobset", topology="v5p-128", slices=1, fields=(), **options):
  """A job of the 32B experiment, whose mesh is that of the slices."""
  os.chdir(ROOT)
  on_pod = TARGETS[target].on_pod
  if on_pod:
    devices = len(chips.describe_topology(topology, slices))
    options |= {"topology": topology, "slices": slices}
  else:
    devices = max(1, options["nodes"] * options["gpus"])
  more = {
    "mesh.data": str(slices), "mesh.fsdp": "-1", "batch.micro_rows": str(devices),
    "workdir": "gs://bucket/runs/fipo-32b",
  } | dict(fields)  # fmt: skip
  c = command_line.load_experiment(EXPERIMENT)
  c.update_from_flattened_dict({
    name: type(now)(value) if isinstance(now := job.config_lib.at(c, name), (int, str)) else value
    for name, value in more.items()
  })  # fmt: skip
  overrides = tuple(f"--config.{name}={value}" for name, value in more.items())
  image = {"image": IMAGE} if TARGETS[target].needs_image else {}
  made = job.Options(**image | options)
  job.check_read(made, target, TARGETS[target])
  return job.make_job(c, EXPERIMENT, overrides, made, on_pod=on_pod)


def rendered(target, **how):
  return TARGETS[target].render(make(target, **how))


# ---- manifests ----


@pytest.mark.parametrize("slices", [1, 4])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_manifest_is_valid_and_asks_for_every_chip(topology, slices):
  text = rendered("jobset", topology=topology, slices=slices, queue="lq", spot=True, priority="high",
                  mounts=("gs://models/qwen=/models", "pvc:own=/data"), fields={"checkpoint.every": 1})  # fmt: skip
  manifest = yaml.safe_load(text)
  # Unknown names are dropped on the way in: what comes back is what is known, with types.
  assert jobset_v1alpha2_job_set.JobsetV1alpha2JobSet.from_dict(manifest).to_dict() == manifest
  (replicated,) = manifest["spec"]["replicatedJobs"]
  inner = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **replicated["template"]}
  kubernetes_validate.validate(inner, "1.35", strict=True)
  check_what_no_schema_says(manifest)
  spec, kind = replicated["template"]["spec"], chips.CHIPS[chips.topology_of(topology)[0]]
  pods = replicated["replicas"] * spec["parallelism"]
  (container,) = spec["template"]["spec"]["containers"]
  devices = pods * container["resources"]["limits"]["google.com/tpu"] * kind.devices
  assert devices == len(chips.describe_topology(topology, slices)) and replicated["replicas"] == slices
  selector = spec["template"]["spec"]["nodeSelector"]
  assert selector["cloud.google.com/gke-tpu-accelerator"] == kind.gke
  assert selector["cloud.google.com/gke-spot"] == "true"


def check_what_no_schema_says(manifest):
  """Rules of JobSet's webhook and of Kubernetes' validation of Jobs, which no schema has."""
  rules = manifest["spec"]["failurePolicy"]["rules"]
  names = [rule["name"] for rule in rules]
  assert len(set(names)) == len(names)
  assert all(re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", name) for name in names)
  (replicated,) = manifest["spec"]["replicatedJobs"]
  spec = replicated["template"]["spec"]
  assert spec["template"]["spec"]["restartPolicy"] == "Never" and spec["backoffLimit"] == 0
  for rule in spec["podFailurePolicy"]["rules"]:
    if codes := rule.get("onExitCodes", {}).get("values"):
      assert codes == sorted(set(codes)) and 0 not in codes
  longest = f"{manifest['metadata']['name']}-{replicated['name']}-{replicated['replicas']}-{spec['completions']}-abcde"
  assert len(longest) <= 63 and re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", longest)


def test_validation_would_notice():
  manifest = yaml.safe_load(rendered("jobset"))
  rule = manifest["spec"]["failurePolicy"]["rules"][0]
  rule["onJobFailureReason"] = rule.pop("onJobFailureReasons")
  assert jobset_v1alpha2_job_set.JobsetV1alpha2JobSet.from_dict(manifest).to_dict() != manifest
  spec = manifest["spec"]["replicatedJobs"][0]["template"]
  spec["spec"]["template"]["spec"]["nodeSelectors"] = {}
  inner = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **spec}
  with pytest.raises(kubernetes_validate.ValidationError, match="nodeSelectors"):
    kubernetes_validate.validate(inner, "1.35", strict=True)


FILES = {
  **{f"jobset_{t}x{n}.yaml": ("jobset", dict(topology=t, slices=n)) for t in TOPOLOGIES for n in (1, 4)},
  "jobset_everything.yaml": ("jobset", dict(
    slices=2, spot=True, queue="multislice-queue", namespace="rl", priority="high", service_account="trainer",
    mounts=("gs://models/qwen=/models", "pvc:data=/data"), code="gs://bucket/code.tar.gz", on_error="fail",
    host_network=False, privileged=False, restarts=7, grace_s=900, name="everything",
    fields={"checkpoint.every": 1, "model.path": "/models/Qwen2.5-32B", "compile_cache": "gs://bucket/cache"},
  )),
  "kueue.yaml": ("kueue", dict(slices=2, queue="multislice-queue", namespace="rl")),
  "gcluster.sh": ("gcluster", dict(topology="v7x-128", mounts=("gs://models=/models",), priority="high", spot=True,
                                   fields={"checkpoint.every": 1})),
  "xpk.sh": ("xpk", dict(topology="v5e-256", slices=4, priority="high")),
  "tpu_vm.sh": ("tpu-vm", dict(slices=2, reservation="ours")),
  "tpu_vm_code.sh": ("tpu-vm", dict(code="gs://bucket/code.tar.gz", restarts=3)),
  "slurm.sh": ("slurm", dict(nodes=8, gpus=8, time="1-00:00:00", grace_s=600, fields={"workdir": "runs/fipo-32b"})),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_are_as_they_were(name):
  target, how = FILES[name]
  assert rendered(target, **how) == (GOLDEN / name).read_text(), "run: python tests/pod_test.py --write"


def test_shell_scripts_are_shell():
  for path in GOLDEN.glob("*.sh"):
    subprocess.run(["bash", "-n", path], check=True)


# ---- what exit codes do ----


def test_the_page_says_what_each_exit_code_does(tmp_path):
  """The table of docs/pods.md, column by column, by what is rendered."""
  table = {}
  for line in (ROOT / "docs/pods.md").read_text().splitlines():
    if cells := re.fullmatch(r"\| ([0-9, ]+) \| .*? \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|", line):
      table |= {int(code): cells.groups()[1:] for code in cells[1].split(", ")}
  manifest = yaml.safe_load(rendered("jobset"))
  listed = {
    name: set(map(int, re.search(r"--restart-on-exit-codes[ =]([0-9,]+)", rendered(name))[1].split(",")))
    for name in ("gcluster", "xpk")
  }  # fmt: skip
  listed["xpk"] |= {42, *range(127, 256)}
  by_list = lambda name, code: "done" if not code else "again, counted" if code in listed[name] else "ends"
  for code in CODES:
    found = (
      jobset_controller.decide(manifest, code), by_list("gcluster", code), by_list("xpk", code),
      by_script("tpu-vm", code, tmp_path / f"v{code}"),
    )  # fmt: skip
    assert by_script("slurm", code, tmp_path / f"s{code}") == found[3]
    assert table[code] == found, code
  assert table.keys() == set(CODES)


def test_a_pod_that_is_taken_away_does_not_count():
  manifest = yaml.safe_load(rendered("jobset"))
  assert jobset_controller.decide(manifest, 137, disrupted=True) == "again"
  assert jobset_controller.decide(manifest, 2, disrupted=True) == "ends"
  strict = yaml.safe_load(rendered("jobset", on_error="fail"))
  assert [jobset_controller.decide(strict, code) for code in (1, 75, 76)] == ["ends", "again", "again, counted"]


STAND_IN = """#!/bin/bash
echo "$(basename $0) $*" >> $CALLS
case "$(basename $0) $1" in
  "docker run"|"srun --kill-on-bad-exit=1") code=$(sed -n 1p $CODES); sed -i 1d $CODES; exit ${code:-0} ;;
esac
"""


def run_script(target, codes, folder, stop="", **how):
  """The script with stand-ins for docker and SLURM, of which the run ends with these codes: (its code, its calls)."""
  folder.mkdir()
  for name in ("docker", "srun", "scontrol", "gcloud", "sleep"):
    (folder / name).write_text(STAND_IN)
    (folder / name).chmod(0o755)
  (folder / "codes").write_text("".join(f"{code}\n" for code in codes))
  if stop:
    (folder / stop).touch()
  more = dict(nodes=2, gpus=4) if target == "slurm" else {}
  text = rendered(target, **more | how).replace("/var/log", str(folder)).replace("/var/lib", str(folder))
  env = os.environ | {
    "PATH": f"{folder}:{os.environ['PATH']}", "CALLS": f"{folder}/calls", "CODES": f"{folder}/codes",
    "SLURM_JOB_ID": "7",
  }  # fmt: skip
  done = subprocess.run(["bash", "-c", text], env=env, cwd=folder, timeout=60)
  return done.returncode, (folder / "calls").read_text()


def by_script(target, code, folder):
  """What the script does after one such end: a second run, or the queue, is again; after the third it gives up."""
  started = lambda calls: sum(line.startswith(("docker run", "scontrol requeue")) for line in calls.splitlines())
  first = 0 if target == "slurm" else 1
  ended, calls = run_script(target, [code, 0], folder)
  if started(calls) == first:
    assert ended == code
    return "ends" if code else "done"
  if target == "slurm":
    counted = (folder / "fipo-32b-7.failures").exists()
  else:
    again, calls = run_script(target, [code] * 3, folder.with_suffix(".x"), restarts=1)
    counted = started(calls) == 2
    assert counted == (again == code)
  return "again, counted" if counted else "again"


def test_scripts_end_when_they_are_told_to_and_give_up_after_enough_failures(tmp_path):
  code, calls = run_script("slurm", [76], tmp_path / "a", restarts=0)
  assert code == 76 and "requeue" not in calls
  code, calls = run_script("slurm", [75], tmp_path / "b", stop="fipo-32b-7.stop")
  assert code == 75 and "requeue" not in calls
  assert "touch fipo-32b-JOB.stop; scancel --signal=TERM JOB" in rendered("slurm", nodes=2, gpus=4)
  code, calls = run_script("tpu-vm", [75], tmp_path / "c", stop="fipo-32b.stop")
  assert code == 0 and "docker run" not in calls


def test_every_gpu_of_a_node_is_named_to_jax():
  text = rendered("slurm", nodes=8, gpus=8)
  assert "export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7\n" in text and "#SBATCH --ntasks-per-node=1\n" in text
  assert "#SBATCH --gpus-per-node=8\n" in text and "gpus-per-task" not in text  # else each task sees one, as number 0


def test_code_in_a_bucket_is_fetched_and_becomes_the_program(tmp_path):
  """The shell line of a pod with --code, with a local tar in place of the bucket's."""
  (tmp_path / "launch").mkdir()
  (tmp_path / "launch/run.py").write_text("import os, sys; print(os.getpid(), sys.argv[1:]); sys.exit(75)\n")
  subprocess.run(["tar", "-czf", tmp_path / "code.tar.gz", "-C", tmp_path, "launch"], check=True)
  made = make(code="gs://bucket/code.tar.gz")
  line = jobset.fetching(made).replace("gs://bucket/code.tar.gz", str(tmp_path / "code.tar.gz"))
  line = line.replace("/tmp/code", str(tmp_path / "there"))
  env = os.environ | {"PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}
  started = subprocess.Popen(["bash", "-c", line], stdout=subprocess.PIPE, text=True, env=env)
  out, _ = started.communicate(timeout=60)
  assert started.returncode == processes.EXIT_STOPPED
  assert out.startswith(f"{started.pid} ['--config={EXPERIMENT}'")  # the shell has become it


# ---- refusals ----


@pytest.mark.parametrize("how, says", [
  (dict(fields={"mesh.fsdp": 48}), "mesh.data=1, mesh.fsdp=48"),
  (dict(slices=4, fields={"mesh.data": 1, "mesh.fsdp": 256}), "mesh.data=1 must be a multiple of the 4 slices"),
  (dict(fields={"batch.micro_rows": 40}), "batch.micro_rows=40 must be a multiple of data*fsdp=64; try 64"),
  (dict(topology="v5p-127"), "topology='v5p-127' is unknown; did you mean"),
  (dict(fields={"workdir": "runs/x"}), "workdir='runs/x': a pod's disk dies with the pod"),
  (dict(fields={"checkpoint.folder": "/data/x"}), "checkpoint.folder='/data/x': a pod's disk dies"),
  (dict(fields={"workdir": "/m/x"}, mounts=("gs://b=/m",)), "workdir='/m/x': gs://b is mounted read-only"),
  (dict(fields={"compile_cache": "/x"}), "compile_cache='/x': a pod's disk dies"),
  (dict(spot=True), "checkpoint.every=5: a Spot slice has 15 s"),
  (dict(name="a" * 29), f"--name={'a' * 29}: 29 characters; use at most 28"),
  (dict(name="32b"), "--name=32b: 3 characters; use at most 28 of a-z, 0-9 and -, a letter first"),
  (dict(mounts=("bucket=/x",)), "--mounts=bucket=/x: expected gs://BUCKET"),
  (dict(on_error="hope"), "--on_error='hope': expected one of 'restart', 'fail'"),
  (dict(image=""), "--image='': --target=jobset needs the container image"),
  (dict(nodes=4), "--nodes=4: --target=jobset does not read it"),
  (dict(grace_s=60, measured="runs/x"), "--grace_s=60 and --measured=runs/x: give one of them"),
  (dict(measured="runs/none"), "--measured=runs/none: no run there"),
  (dict(target="xpk", mounts=("gs://b=/m",)), "does not read it"),
  (dict(target="tpu-vm", topology="v7x-128"), "--topology=v7x-128: there are no TPU VMs of it"),
  (dict(target="kueue"), "--queue='': --target=kueue needs the name"),
  (dict(fields={"checkpoint.best_by": "aime23/accuracy"}), "checkpoint.best_by='aime23/accuracy': no such set"),
  (dict(target="slurm", nodes=-1, gpus=8), "--nodes=-1 --gpus=8: say how many nodes"),
  (dict(fields={"batch.prompts": 500}), "batch.prompts=500 is not divisible by batch.minibatch_prompts=64"),
])  # fmt: skip
def test_what_cannot_work_is_refused(how, says):
  with pytest.raises(ValueError) as refused:
    rendered(**{"target": "jobset"} | how)
  assert says in str(refused.value) and "\n" not in str(refused.value)


def test_a_folder_on_a_claim_outlives_pods_and_what_only_the_image_has_is_said():
  files = {f"eval.sets.{name}.path": f"/data/{name}.parquet" for name in ("aime24", "aime25")}
  own = {"workdir": "/data/runs/own", "model.path": "/data/qwen", **files}
  made = make(fields=own, mounts=("pvc:own=/data",))
  assert made.workdir == "/data/runs/own" and made.name == "own" and not made.notes
  assert "--config.compile_cache=/data/runs/compile_cache" in made.command
  assert make().notes == (
    "model.path=Qwen2.5-32B; eval.sets.aime24.path=data/aime-2024.parquet; eval.sets.aime25.path=data/aime-2025.jsonl: "
    "read from the image in each pod, where nothing here has looked",
  )


def test_grace_is_that_of_a_run(tmp_path):
  file = tmp_path / "metrics.jsonl"
  file.write_text('{"step": 1}\n')
  with pytest.raises(ValueError, match="no step says grace_s"):
    make(measured=str(tmp_path))
  file.write_text('{"step": 1}\n{"step": 2, "grace_s": 300.5}\n{"step": 3, "grace_s": 200}\n')
  made = make(measured=str(tmp_path))
  assert made.grace_s == 601 and "2 x the longest of 2 iterations" in made.grace_why
  assert make().grace_s == job.GRACE_S and "the default" in make().grace_why


# ---- the command ----


def run_command(*arguments, code=0):
  done = subprocess.run([sys.executable, "launch/pod.py", *arguments], cwd=ROOT, capture_output=True, text=True,
                        env=os.environ | {"JAX_PLATFORMS": "cpu"})  # fmt: skip
  assert done.returncode == code, done.stderr
  return done


def test_the_command_writes_and_submits_when_told(tmp_path, monkeypatch):
  (tmp_path / "kubectl").write_text('#!/bin/bash\necho "kubectl $*"; exit 3\n')
  (tmp_path / "kubectl").chmod(0o755)
  monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
  out = tmp_path / "job.yaml"
  done = run_command(*GIVEN, f"--out={out}", "--submit", code=1)
  assert f"submitting: kubectl apply -f {out}\nkubectl apply -f {out}\n" in done.stdout
  manifest = yaml.safe_load(out.read_text())
  (container,) = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
  assert container["args"] == [
    "python", "launch/run.py", f"--config={EXPERIMENT}", "--config.workdir=gs://bucket/runs/fipo-32b",
    "--config.compile_cache=gs://bucket/runs/compile_cache",
  ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("more, says", [
  (["--config.bath.prompts=3"], "--config.bath.prompts: no such field"),
  (["--submit"], "--submit: needs --out=FILE"),
  (["--taget=xpk"], "Unknown command line flag 'taget'"),
  (["--config.algorithm.name=fippo"], "algorithm.name='fippo': expected one of"),
])  # fmt: skip
def test_mistakes_end_in_a_line(more, says):
  done = run_command(*GIVEN, *more, code=processes.EXIT_MISTAKE)
  (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
  assert says in line and "Traceback" not in done.stderr


PAGE_VALUES = {
  "PROJECT": "my-project", "REGION": "us-east5", "ZONE": "us-east5-a", "BUCKET": "my-bucket", "CLUSTER": "my-cluster",
  "IMAGE": IMAGE,
}  # fmt: skip


def page_lines(beginning):
  """Commands of docs/pods.md that begin so, as a shell reads them."""
  lines = [line.strip() for line in (ROOT / "docs/pods.md").read_text().splitlines() if line.startswith("    ")]
  fill = lambda line: re.sub(r"\$([A-Z]+)", lambda found: PAGE_VALUES[found[1]], line)
  return [shlex.split(fill(line)) for line in lines if line.startswith(beginning)]


@pytest.mark.slow
@pytest.mark.parametrize("words", page_lines("python launch/pod.py"))
def test_the_jobs_of_the_page_can_be_written(words, tmp_path):
  out = tmp_path / "job"
  run_command(*(w for w in words[2:] if not w.startswith("--out=")), f"--out={out}")
  assert out.read_text()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud's own parser reads the commands")
@pytest.mark.parametrize("line", [
  *map(shlex.join, page_lines("gcloud")),
  *jobset.node_pool(make(topology="v7x-128", reservation="ours", project="my-project")),
  *jobset.node_pool(make(spot=True, project="my-project", fields={"checkpoint.every": 1})),
  *scripts.queued_resource(make("tpu-vm", slices=2, reservation="ours", project="my-project"), "/dev/null"),
])  # fmt: skip
def test_gcloud_knows_the_flags(line):
  """It names those that it does not know before it asks for an account."""
  done = subprocess.run([*shlex.split(line), "--not-a-flag=1"], capture_output=True, text=True)
  assert "unrecognized arguments: --not-a-flag=1" in done.stderr, done.stderr
  assert done.stderr.count("unrecognized arguments") == 1 and "\n  --" not in done.stderr


def test_every_option_has_a_flag_a_word_and_a_reader():
  names = {field.name for field in dataclasses.fields(job.Options)}
  assert set(command.SAID) == names == {name for target in TARGETS.values() for name in target.reads}


if __name__ == "__main__":
  if sys.argv[1:] != ["--write"]:
    sys.exit("usage: python tests/pod_test.py --write")
  GOLDEN.mkdir(exist_ok=True)
  for file, (scheduler, options) in FILES.items():
    (GOLDEN / file).write_text(rendered(scheduler, **options))
