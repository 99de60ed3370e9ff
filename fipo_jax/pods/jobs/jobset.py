"""The JobSet that GKE starts, and what Kueue needs to queue it: as YAML that kubectl applies.

Rules of failure, by code (docs/pods.md): 2 and 130 fail the JobSet at once, 75 starts it again without counting, as a
disruption does; whatever else counts, up to --restarts.
Source: github.com/kubernetes-sigs/jobset at 08dfbdf, pkg/controllers/failure_policy.go, pkg/webhooks/jobset_webhook.go;
github.com/kubernetes/kubernetes, pkg/controller/job/pod_failure_policy.go, which words the messages.
"""

from __future__ import annotations

import math
import shlex
from typing import Any

import yaml

from fipo_jax import processes
from fipo_jax.pods.jobs.job import FATAL, STOPPED, Job

CONTAINER = "fipo"
REPLICATED = "slice"
KEPT_S = 86_400  # a finished JobSet stays for a day, to be looked at


def render(job: Job) -> str:
  """The manifest, and above it how it is used."""
  o = job.options
  space = f" -n {o.namespace}" if o.namespace else ""
  pods = f"jobset.sigs.k8s.io/jobset-name={job.name}"
  lines = [
    f"{job.slices} x {o.topology}: {job.slices * job.hosts} processes with {job.chip.vm_chips} chips each.",
    f"Grace {job.grace_s} s: {job.grace_why}.",
    *(f"Note: {note}." for note in job.notes),
    "",
    "Nodes, where the cluster has none yet (one pool per slice):",
    *(f"  {line}" for line in node_pool(job)),
    f"Start:  kubectl apply{space} -f THIS_FILE",
    f"Watch:  kubectl get{space} jobset {job.name} -w",
    f"        kubectl logs{space} -f -l {pods},batch.kubernetes.io/job-completion-index=0,"
    "jobset.sigs.k8s.io/job-index=0",
    f"Stop:   kubectl delete{space} jobset {job.name}     (SIGTERM: saved; the same file goes on)",
  ]  # fmt: skip
  return _commented(lines) + dump(manifest(job))


class _Plain(yaml.SafeDumper):
  """Writes a value again where it comes again, instead of a reference that people would have to follow."""

  def ignore_aliases(self, data) -> bool:
    return True


def dump(value: dict[str, Any]) -> str:
  """As YAML, in the order given: the same value is the same text."""
  return yaml.dump(value, Dumper=_Plain, sort_keys=False, width=1000)


def _commented(lines: list[str]) -> str:
  return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def node_pool(job: Job) -> list[str]:
  """gcloud's commands for the machines of a slice."""
  o, lines = job.options, []
  policy = f"{job.name}-slice"
  placed = f"--tpu-topology={job.size}"
  if job.chip.cloud == "tpu7x":
    lines.append(
      f"gcloud compute resource-policies create workload-policy {policy} --project={o.project} --region=REGION "
      f"--type=HIGH_THROUGHPUT --accelerator-topology={job.size}"
    )
    placed = f"--placement-policy={policy}"
  elif job.hosts > 1:
    placed += " --placement-type=COMPACT"
  rented = "--spot" if o.spot else ""
  if o.reservation:
    rented = f"--reservation-affinity=specific --reservation={o.reservation}"
  lines.append(
    f"gcloud container node-pools create {policy} --project={o.project} --cluster={o.cluster} --location=REGION "
    f"--node-locations={o.location} --machine-type={job.chip.machine} --num-nodes={job.hosts} {placed} {rented}".strip()
  )
  return lines


def manifest(job: Job) -> dict[str, Any]:
  """`JobSet` of jobset.x-k8s.io/v1alpha2."""
  o = job.options
  metadata: dict[str, Any] = {"name": job.name}
  if o.namespace:
    metadata["namespace"] = o.namespace
  if o.queue:
    metadata["labels"] = {"kueue.x-k8s.io/queue-name": o.queue}
  # One slice has the nodes of one pool, and no other's.
  metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": metadata,
    "spec": {
      "ttlSecondsAfterFinished": KEPT_S,
      "failurePolicy": {
        "maxRestarts": o.restarts,
        # None begins while one of the attempt before still works in the workdir.
        "restartStrategy": "BlockingRecreate",
        "rules": _rules(o.on_error),
      },
      "replicatedJobs": [{
        "name": REPLICATED,
        "replicas": job.slices,
        "template": {"spec": {
          "parallelism": job.hosts,
          "completions": job.hosts,
          "completionMode": "Indexed",
          "backoffLimit": 0,
          "podFailurePolicy": {"rules": _pod_rules(o.on_error)},
          "template": _pod(job),
        }},
      }],
    },
  }  # fmt: skip


def _fatal(on_error: str) -> list[int]:
  return sorted({*FATAL, *((processes.EXIT_ERROR,) if on_error == "fail" else ())})


def _pod_rules(on_error: str) -> list[dict[str, Any]]:
  """Which failures of a pod end its Job with a reason of their own; the first that fits counts."""
  codes = lambda values: {
    "action": "FailJob", "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": values}
  }  # fmt: skip
  disrupted = {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
  return [codes(_fatal(on_error)), codes([STOPPED]), disrupted]


def _rules(on_error: str) -> list[dict[str, Any]]:
  """What a failed Job means for the JobSet. What fits none restarts it, counted: 1, 76, and a killed process."""
  pattern = f"exit code ({'|'.join(map(str, _fatal(on_error)))}) matching"
  reason = {"onJobFailureReasons": ["PodFailurePolicy"]}
  return [
    {"name": "final", "action": "FailJobSet", **reason, "onJobFailureMessagePatterns": [pattern]},
    {"name": "stopped", "action": "RestartJobSetAndIgnoreMaxRestarts", **reason},
  ]


def _pod(job: Job) -> dict[str, Any]:
  o, chips = job.options, job.chip.vm_chips
  selector = {"cloud.google.com/gke-tpu-accelerator": job.chip.gke, "cloud.google.com/gke-tpu-topology": job.size}
  tolerations = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
  if o.spot:
    selector["cloud.google.com/gke-spot"] = "true"
    tolerations.append(
      {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    )
  if o.reservation:
    selector["cloud.google.com/reservation-name"] = o.reservation
  container: dict[str, Any] = {
    "name": CONTAINER,
    "image": o.image,
    "imagePullPolicy": "IfNotPresent",
    # The image's entry point stays what it is, and python its child.
    "args": list(arguments(job)),
    "resources": {"limits": {"google.com/tpu": chips}},
  }
  if o.privileged:
    # libtpu opens the machine's own device files, which belong to root.
    container["securityContext"] = {"privileged": True, "runAsUser": 0}
  volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]  # a container has 64 MB of it
  inside: list[dict[str, Any]] = [{"name": "shm", "mountPath": "/dev/shm"}]
  annotations = {}
  for number, mount in enumerate(job.mounts):
    name = f"mount-{number}"
    if mount.claim:
      volumes.append({"name": name, "persistentVolumeClaim": {"claimName": mount.claim}})
      inside.append({"name": name, "mountPath": mount.path})
      continue
    annotations["gke-gcsfuse/volumes"] = "true"
    bucket, _, folder = mount.source.removeprefix("gs://").partition("/")
    options = ["implicit-dirs", "metadata-cache:ttl-secs:-1", *([f"only-dir={folder}"] if folder else [])]
    attributes = {"bucketName": bucket, "mountOptions": ",".join(options)}
    csi = {"driver": "gcsfuse.csi.storage.gke.io", "readOnly": True, "volumeAttributes": attributes}
    volumes.append({"name": name, "csi": csi})
    inside.append({"name": name, "mountPath": mount.path, "readOnly": True})
  container["volumeMounts"] = inside
  spec: dict[str, Any] = {"restartPolicy": "Never", "terminationGracePeriodSeconds": job.grace_s}
  if o.host_network:
    spec |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
  if o.priority:
    spec["priorityClassName"] = o.priority
  if o.service_account:
    spec["serviceAccountName"] = o.service_account
  spec |= {"nodeSelector": selector, "tolerations": tolerations, "containers": [container], "volumes": volumes}
  return {**({"metadata": {"annotations": annotations}} if annotations else {}), "spec": spec}


def arguments(job: Job) -> tuple[str, ...]:
  """The container's: the command itself, or a shell that fetches the code first and becomes the command."""
  return ("bash", "-c", fetching(job)) if job.options.code else job.command


def fetching(job: Job) -> str:
  """Shell that unpacks --code, a tar in a bucket, with what the image has for gs://, and becomes the command."""
  read = f'from etils import epath; import sys; sys.stdout.buffer.write(epath.Path("{job.options.code}").read_bytes())'
  return (
    f"set -eo pipefail; mkdir -p /tmp/code; cd /tmp/code; python -c {shlex.quote(read)} | tar -xz; "
    f"exec {shlex.join(job.command)}"
  )


def kueue(job: Job) -> str:
  """What an administrator applies once, so that jobs with --queue wait for their slices: room for --slices of them."""
  o = job.options
  if not o.queue:
    raise ValueError("--queue='': --target=kueue needs the name of the queue.")
  if not o.namespace:
    raise ValueError("--namespace='': --target=kueue needs the namespace of the jobs, such as default.")
  flavor = f"{job.chip.gke}-{job.size}"
  labels = {"cloud.google.com/gke-tpu-accelerator": job.chip.gke, "cloud.google.com/gke-tpu-topology": job.size}
  quota = {"name": "google.com/tpu", "nominalQuota": job.slices * math.prod(job.shape)}
  version = "kueue.x-k8s.io/v1beta2"
  parts = [
    {"apiVersion": version, "kind": "ResourceFlavor", "metadata": {"name": flavor}, "spec": {"nodeLabels": labels}},
    {"apiVersion": version, "kind": "ClusterQueue", "metadata": {"name": f"{o.queue}-cluster"}, "spec": {
      "namespaceSelector": {}, "queueingStrategy": "BestEffortFIFO",
      "resourceGroups": [{"coveredResources": ["google.com/tpu"], "flavors": [{"name": flavor, "resources": [quota]}]}],
    }},
    {"apiVersion": version, "kind": "LocalQueue", "metadata": {"name": o.queue, "namespace": o.namespace},
     "spec": {"clusterQueue": f"{o.queue}-cluster"}},
  ]  # fmt: skip
  header = [
    f"Room for {job.slices} slices of {o.topology} at a time. Clusters made by xpk have kueue.x-k8s.io/v1beta1.",
    "Start:  kubectl apply -f THIS_FILE",
  ]
  return _commented(header) + "---\n".join(map(dump, parts))
