"""The same job for other schedulers: one command for gcluster or xpk, a startup script for TPU VMs, one for sbatch."""

from __future__ import annotations

import shlex

from fipo_jax import processes
from fipo_jax.pods.jobs.job import SIGNALLED, STOPPED, Job
from fipo_jax.pods.jobs.jobset import fetching

SHELL = "#!/bin/bash\n"


def restarted(on_error: str) -> list[int]:
  """Exit codes after which the run is started again."""
  return sorted({STOPPED, processes.EXIT_LOST, *SIGNALLED, *(() if on_error == "fail" else (processes.EXIT_ERROR,))})


def _command(job: Job) -> str:
  """For a shell that becomes it: no trap, no child, so that SIGTERM and exit codes pass."""
  return fetching(job) if job.options.code else f"exec {shlex.join(job.command)}"


def _script(lines: list[str], words: list[str]) -> str:
  said = "".join(f"# {line}".rstrip() + "\n" for line in lines)
  return f"{SHELL}{said}exec {' \\\n  '.join(words)}\n"


def _said(job: Job) -> list[str]:
  return [f"Grace {job.grace_s} s: {job.grace_why}.", *(f"Note: {note}." for note in job.notes)]


def gcluster(job: Job) -> str:
  """Source: cluster-toolkit 1047080, docs/gcluster_job_guide.md, cmd/job/submit.go, and its migration guide."""
  o = job.options
  words = [
    "gcluster job submit", f"--name {job.name}", f"--project {o.project} --cluster {o.cluster} --location {o.location}",
    f"--image {o.image}", f"--compute-type {job.accelerator_type}", f"--topology {job.size}",
    f"--num-slices {job.slices}", f"--restarts {o.restarts}", f"--grace-period {job.grace_s}s",
    f"--restart-on-exit-codes {','.join(map(str, restarted(o.on_error)))}", "--gke-ttl-after-finished 24h",
  ]  # fmt: skip
  if job.chip.cloud == "tpu7x":
    words.append("--gke-disable-parallel-containers")  # one process has the chips of a machine
  words += [f"--queue {o.queue}"] * bool(o.queue) + [f"--priority {o.priority}"] * bool(o.priority)
  words += [f"--service-account {o.service_account}"] * bool(o.service_account)
  constraints = {"cloud.google.com/gke-spot": "true"} if o.spot else {}
  constraints |= {"cloud.google.com/reservation-name": o.reservation} if o.reservation else {}
  words += [f"--node-constraint {name}={value}" for name, value in constraints.items()]
  for mount in job.mounts:
    mode = "rw" if mount.claim else "ro"
    words.append("--mount " + shlex.quote(f"{mount.claim or mount.source};{mount.path};{mode}"))
  words.append(f"--command {shlex.quote(_command(job))}")
  lines = [
    *_said(job),
    "Restarts count, also those after 75: the flag only says which codes are no failure for good.",
    "Before v1.103 the parts of --mount are separated by : instead of ;.",
    f"Watch: gcluster job logs {job.name}     Stop: gcluster job cancel {job.name}",
  ]
  return _script(lines, words)


def xpk(job: Job) -> str:
  """Source: xpk 367c838, src/xpk/parser/workload.py."""
  o = job.options
  words = [
    "xpk workload create", f"--workload {job.name}", f"--project {o.project} --cluster {o.cluster} --zone {o.location}",
    f"--docker-image {o.image}", f"--tpu-type={job.accelerator_type}", f"--num-slices={job.slices}",
    f"--max-restarts={o.restarts}", f"--termination-grace-period-seconds={job.grace_s}",
    f"--restart-on-exit-codes={','.join(map(str, restarted(o.on_error)))}",
  ]  # fmt: skip
  words += [f"--priority={o.priority}"] * bool(o.priority) + ["--spot"] * o.spot
  words += [f"--reservation={o.reservation}"] * bool(o.reservation)
  words.append(f"--command {shlex.quote(_command(job))}")
  lines = [
    *_said(job),
    "Restarts count, also those after 75; 42 and 127 to 255 restart whatever is listed, so 130 does too.",
    f"Stop: xpk workload delete --workload {job.name} --cluster {o.cluster}",
  ]
  return _script(lines, words)


def queued_resource(job: Job, startup: str) -> list[str]:
  """gcloud's commands: the slices with the startup script; a look at them; their end."""
  o, name = job.options, job.name
  where = f"--project={o.project} --zone={o.location}"
  nodes = f"--node-id={name}" if job.slices == 1 else f"--node-count={job.slices} --node-prefix={name}"
  rented = " --spot" if o.spot else " --reserved" if o.reservation else ""
  reservation = f" --reservation={o.reservation}" if o.reservation else ""
  account = f" --service-account={o.service_account}" if o.service_account else ""
  node = name if job.slices == 1 else f"{name}-0"
  ssh = f"gcloud compute tpus tpu-vm ssh {node} --worker=all {where}"
  alpha = " alpha" if o.reservation else ""  # which alone takes a reservation's name
  return [
    f"gcloud{alpha} compute tpus queued-resources create {name} {nodes} {where} "
    f"--accelerator-type={job.accelerator_type} --runtime-version={job.chip.runtime}{rented}{reservation}{account} "
    f"--metadata-from-file=startup-script={startup}",
    f"gcloud compute tpus queued-resources describe {name} {where}",
    f'{ssh} --command="tail -n 5 /var/log/{name}.log"',
    f'{ssh} --command="sudo touch /var/lib/{name}.stop; sudo docker kill --signal=TERM {name}"',
    f"gcloud compute tpus queued-resources delete {name} --force {where}",
  ]


def tpu_vm(job: Job) -> str:
  """A startup script: systemd runs it at every start of a VM, so a host that was repaired comes back by itself.

  Every host decides alike, for all processes of a run end with one code. Containers get the machine's network, in which
  JAX finds the others.
  """
  o = job.options
  if not job.chip.runtime:
    raise ValueError(f"--topology={o.topology}: there are no TPU VMs of it; use --target=jobset.")
  create, look, log, stop, delete = queued_resource(job, "THIS_FILE")
  registry = o.image.split("/")[0] if "." in o.image.split("/")[0] else ""
  again = "|".join(str(code) for code in restarted(o.on_error) if code != STOPPED)
  lines = [
    *_said(job), "",
    f"Start:  {create}", f"Watch:  {look}", f"        {log}", f"Stop:   {stop}", f"End:    {delete}",
    "A Spot slice that was taken away does not come back: delete it, and create it again.",
  ]  # fmt: skip
  said = "".join(f"# {line}".rstrip() + "\n" for line in lines)
  login = f"gcloud auth configure-docker {registry} --quiet\n" if registry else ""
  inner = ["bash", "-c", fetching(job)] if o.code else list(job.command)
  run = shlex.join(["docker", "run", "--rm", f"--name={job.name}", "--privileged", "--user=0", "--network=host",
                    "--shm-size=16g", o.image, *inner])  # fmt: skip
  return f"""{SHELL}{said}
exec >> /var/log/{job.name}.log 2>&1
stop=/var/lib/{job.name}.stop
failures=0
{login}until docker pull {shlex.quote(o.image)}; do echo "waiting for the image"; sleep 30; done
# Before the machine goes down: docker's own grace is 10 s.
trap 'ending=1; docker stop --time={job.grace_s} {job.name}' TERM
while [ -z "$ending" ] && [ ! -e "$stop" ]; do
  docker rm --force {job.name} 2> /dev/null
  {run} &
  child=$!
  wait $child; code=$?
  while kill -0 $child 2> /dev/null; do wait $child; code=$?; done  # a signal had ended the first wait
  echo "$(date --iso-8601=seconds) ended with exit code $code"
  case $code in
    {STOPPED}) ;;  # saved; after maintenance it goes on
    {again})
      failures=$((failures + 1))
      if [ $failures -gt {o.restarts} ]; then
        echo "more than {o.restarts} restarts: given up"
        exit $code
      fi ;;
    *) exit $code ;;
  esac
  sleep 10
done
"""


def slurm(job: Job) -> str:
  """For sbatch: one process a node, which has all its GPUs; the job goes back to the queue after 75, 76 and the like.

  Without JAX_LOCAL_DEVICE_IDS JAX takes the one GPU whose number is SLURM_LOCALID (jax/_src/clusters/cluster.py).
  """
  o = job.options
  again = "|".join(str(code) for code in restarted(o.on_error) if code != STOPPED)
  python = job.command if o.image else (".venv/bin/python", *job.command[1:])
  container = [f"--container-image={o.image}"] if o.image else []  # of the plugin pyxis
  srun = shlex.join(["srun", "--kill-on-bad-exit=1", *container, *python])
  time = f"#SBATCH --time={o.time}\n" if o.time else ""
  partition = f"#SBATCH --partition={o.queue}\n" if o.queue else ""
  said = "".join(f"# {note}\n" for note in job.notes)
  return f"""{SHELL}#SBATCH --job-name={job.name}
#SBATCH --nodes={job.hosts}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={o.gpus}
#SBATCH --exclusive
{partition}{time}#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={job.name}-%j.log
#SBATCH --signal=TERM@{job.grace_s}
{said}# Grace {job.grace_s} s before the time limit: {job.grace_why}.
# Start, from the folder of the repository:  sbatch THIS_FILE
# Stop, saved:                               touch {job.name}-JOB.stop; scancel --signal=TERM JOB

export JAX_LOCAL_DEVICE_IDS={",".join(map(str, range(o.gpus)))}
mine={job.name}-$SLURM_JOB_ID
{srun}
code=$?
echo "ended with exit code $code"
case $code in
  {STOPPED}) if [ -e "$mine.stop" ]; then exit $code; fi ;;
  {again})
    echo "$code" >> "$mine.failures"
    if [ "$(wc -l < "$mine.failures")" -gt {o.restarts} ]; then
      echo "more than {o.restarts} restarts: given up"
      exit $code
    fi ;;
  *) exit $code ;;
esac
scontrol requeue "$SLURM_JOB_ID"
"""
