"""Plays what stands between a JobSet's manifest and its processes: JobSet's controller, Kubernetes' Job controller, and
the kubelets, whose containers are processes of this machine.

It obeys what the manifest says, as the sources have it, and knows nothing of the program that it starts:

  pods     SIGTERM, terminationGracePeriodSeconds later SIGKILL; a container's end takes all its processes along
  Jobs     podFailurePolicy (the first rule that fits, In and NotIn, DisruptionTarget), backoffLimit; a failed Job first
           ends its other pods, and is said to have failed when all are gone
  JobSet   failurePolicy (the first rule that any failed Job fits: reasons, patterns in RE2's syntax), maxRestarts,
           restartStrategy, success when all Jobs have completed

Sources: kubernetes-sigs/jobset 08dfbdf, pkg/controllers/{failure_policy,jobset_controller,success_policy}.go;
kubernetes/kubernetes, pkg/controller/job/pod_failure_policy.go, and job_controller.go as its documentation tells it
(kubernetes.io/docs/concepts/workloads/controllers/job: terminal conditions wait for all pods since 1.31).
What GKE's webhook injects for TPUs is replaced by JAX's own variables, and a chip by `devices` of the CPU.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
SYNC_S = 1.0  # the Job controller looks at what has failed in batches of so long (syncJobBatchPeriod)
NAMESPACE = "default"


@dataclasses.dataclass
class Pod:
  """index: in its Job. code: exit code as a container runtime says it, 128 + signal; None: it runs, or may do so."""

  name: str
  index: int
  process: subprocess.Popen
  output: pathlib.Path
  code: int | None = None
  disrupted: bool = False
  unseen_until: float = 0.0
  kill_at: float | None = None
  ended_at: float = 0.0

  @property
  def failed(self) -> bool:
    return self.code not in (None, 0)

  def signal(self, number: int) -> None:
    """To the container's first process, as kubelet sends it."""
    if self.code is None:
      os.kill(self.process.pid, number)

  def kill_all(self) -> None:
    """What a process namespace that loses its first process does: nothing of it is left."""
    try:
      os.killpg(self.process.pid, signal.SIGKILL)
    except ProcessLookupError:
      pass


@dataclasses.dataclass
class Job:
  """attempt: JobSet's restarts when it was made. target: why it fails (reason, message), while pods still end."""

  name: str
  attempt: int
  pods: list[Pod]
  target: tuple[str, str] | None = None
  failed_at: float | None = None
  complete: bool = False
  deleted: bool = False
  synced_at: float = 0.0


class JobSet:
  """A manifest and what has become of it. state: "running" | "failed" | "completed"; message: why.

  Args:
    folder: where the output of pods goes. places: beginnings of arguments -> what they are here, such as
      {"gs://bucket": "/tmp/x"}. devices: of the CPU, of each process. environment: of all processes. ptrace: see
      `stick`.
  """

  def __init__(self, manifest: Mapping[str, Any], folder: pathlib.Path, *, places: Mapping[str, str], devices: int,
               environment: Mapping[str, str]):  # fmt: skip
    self.name, self.spec = manifest["metadata"]["name"], manifest["spec"]
    self.folder, self.places, self.devices, self.environment = folder, places, devices, environment
    self.jobs: list[Job] = []
    self.restarts = self.counted = 0
    self.suspended = False
    self.state, self.message = "running", ""
    self.events: list[str] = []
    self.ended: list[tuple[int, str, str, dict[str, int | None]]] = []  # attempt, rule, message, codes by pod
    self._port = self.starts = 0  # starts: how often all pods were made; restarts of a JobSet that is resumed are none

  # ---- what happens by itself ----

  def reconcile(self) -> None:
    """One look of every controller."""
    for job in self.jobs:
      for pod in job.pods:
        self._kubelet(pod)
      self._sync(job)
    self.jobs = [job for job in self.jobs if not (job.deleted and all(p.code is not None for p in job.pods))]
    previous = [job for job in self.jobs if job.attempt < self.restarts or job.deleted]
    own = [job for job in self.jobs if job not in previous]
    if self.state != "running":
      for job in own:
        if job.failed_at is None and not job.complete:
          self._delete(job)
      return
    for job in previous:
      self._delete(job)
    if self.suspended:
      for job in own:
        self._delete(job)  # a suspended Job ends its pods
      return
    if failed := [job for job in own if job.failed_at is not None]:
      self._failure_policy(failed)
    elif own and all(job.complete for job in own) and len(own) == self._expected():
      self.state, self.message = "completed", "jobset completed successfully"
    elif not (previous and self.spec["failurePolicy"].get("restartStrategy") == "BlockingRecreate"):
      self._create()

  def _kubelet(self, pod: Pod) -> None:
    if pod.code is not None or time.monotonic() < pod.unseen_until:
      return
    if pod.kill_at is not None and time.monotonic() > pod.kill_at:
      pod.kill_at = None
      pod.signal(signal.SIGKILL)
    pid, status = os.waitpid(pod.process.pid, os.WNOHANG)
    if pid and not os.WIFSTOPPED(status):  # stopped: held by `stick`
      pod.code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
      pod.process.returncode, pod.ended_at = pod.code, time.monotonic()
      pod.kill_all()

  def _sync(self, job: Job) -> None:
    if job.failed_at is not None or job.complete or time.monotonic() < job.synced_at + SYNC_S:
      return
    job.synced_at = time.monotonic()
    spec = self._job_spec()
    failed = [pod for pod in job.pods if pod.failed]
    if not job.target and failed:
      matches = [match_pod_failure_policy(spec.get("podFailurePolicy"), pod, self._container()) for pod in failed]
      if message := next((m for m, _ in matches if m), None):
        job.target = ("PodFailurePolicy", message)
      elif sum(counted for _, counted in matches) > spec["backoffLimit"]:
        job.target = ("BackoffLimitExceeded", "Job has reached the specified backoff limit")
    if job.target:
      for pod in job.pods:
        self._terminate(pod)
      if all(pod.code is not None for pod in job.pods):
        job.failed_at = time.monotonic()
    elif all(pod.code == 0 for pod in job.pods):
      job.complete = True

  def _failure_policy(self, failed: list[Job]) -> None:
    rule, job = first_rule(self.spec["failurePolicy"].get("rules", []), failed, self._replicated()["name"])
    action, name = (rule["action"], rule["name"]) if rule else ("RestartJobSet", "default")
    message = job.target[1]
    codes = {pod.name: pod.code for j in self.jobs for pod in j.pods}
    self.ended.append((self.restarts, name, message, codes))
    self._say(f"{job.name} failed ({job.target[0]}: {message}); rule {name}: {action}")
    if action == "FailJobSet":
      self.state, self.message = "failed", message
    elif action == "RestartJobSet" and self.counted >= self.spec["failurePolicy"]["maxRestarts"]:
      self.state, self.message = "failed", "jobset failed due to reaching max number of restarts"
    elif action in ("RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"):
      self.restarts += 1
      self.counted += action == "RestartJobSet"
    else:
      raise ValueError(f"action {action!r} is not played here")

  def _create(self) -> None:
    there = {job.name for job in self.jobs}
    replicated, hosts = self._replicated(), self._job_spec()["parallelism"]
    assert hosts == self._job_spec()["completions"] and self._job_spec()["completionMode"] == "Indexed"
    if not there:
      self.starts += 1
      with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        self._port = free.getsockname()[1]  # a pod has an address of its own, where ports are free
    for number in range(replicated["replicas"]):
      name = f"{self.name}-{replicated['name']}-{number}"
      if name in there:
        continue
      pods = [self._start(f"{name}-{k}", number * hosts + k, k) for k in range(hosts)]
      self.jobs.append(Job(name, self.restarts, pods))

  def _start(self, name: str, process_id: int, index: int) -> Pod:
    container = self._container_spec()
    arguments = [self._here(a) for a in (*container.get("command", ()), *container["args"])]
    if arguments[0] == "python":
      arguments[0] = sys.executable
    total = self._replicated()["replicas"] * self._job_spec()["parallelism"]
    given = {e["name"]: e["value"] for e in container.get("env", ())}
    env = {
      **self.environment, **given, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(self.devices),
      "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{self._port}", "JAX_NUM_PROCESSES": str(total),
      "JAX_PROCESS_ID": str(process_id),
    }  # fmt: skip
    output = self.folder / f"{name}.{self.starts}.log"
    with open(output, "wb") as file:
      process = subprocess.Popen(arguments, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=file,
                                 stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
    return Pod(name, index, process, output)

  def _terminate(self, pod: Pod) -> None:
    if pod.code is None and pod.kill_at is None:
      pod.kill_at = time.monotonic() + self.pod_spec()["terminationGracePeriodSeconds"]
      pod.signal(signal.SIGTERM)

  def _delete(self, job: Job) -> None:
    job.deleted = True
    for pod in job.pods:
      self._terminate(pod)

  # ---- what is done to it ----

  def evict(self, pod: Pod) -> None:
    """A drain, maintenance, preemption by priority: the condition, SIGTERM, the grace."""
    pod.disrupted = True
    self._terminate(pod)

  def lose_node(self, pod: Pod, unseen_s: float) -> None:
    """HostError: no notice. That the pod is gone is known to nobody until its node has been silent for so long."""
    pod.disrupted = True
    pod.signal(signal.SIGKILL)
    pod.unseen_until = time.monotonic() + unseen_s

  def suspend(self, yes: bool) -> None:
    """As Kueue does when it takes the chips away, and gives them back."""
    self.suspended = yes
    self._say("suspended" if yes else "resumed")

  def stick(self, pod: Pod) -> bool:
    """Stops the main thread alone, as one that waits for ever; the others go on. False: not allowed here."""
    import ctypes

    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long] * 4
    seize, interrupt = 0x4206, 0x4207
    return ptrace(seize, pod.process.pid, 0, 0) == 0 and ptrace(interrupt, pod.process.pid, 0, 0) == 0

  # ---- looks ----

  @property
  def pods(self) -> list[Pod]:
    return [pod for job in self.jobs for pod in job.pods]

  @property
  def running(self) -> list[Pod]:
    return [pod for pod in self.pods if pod.code is None]

  def until(self, condition: Callable[[], bool], timeout: float = 900, what: str = "") -> None:
    """Reconciles until the condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
      self.reconcile()
      assert time.monotonic() < deadline, f"{what}: {self.events}, {[(p.name, p.code) for p in self.pods]}"
      time.sleep(0.02)

  def run(self, timeout: float = 900) -> None:
    """To its end."""
    self.until(lambda: self.state != "running" and not self.running, timeout, "the end")

  def said(self, start: int | None = None) -> str:
    """The output of all pods of a start, from 1; None: the present one."""
    number = self.starts if start is None else start
    return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob(f"*.{number}.log")))

  def close(self) -> None:
    """Ends whatever is still there."""
    for pod in self.pods:
      pod.kill_all()
      if pod.code is None:
        pod.process.wait()

  def pod_spec(self) -> Mapping[str, Any]:
    return self._job_spec()["template"]["spec"]

  def _replicated(self) -> Mapping[str, Any]:
    (only,) = self.spec["replicatedJobs"]
    return only

  def _job_spec(self) -> Mapping[str, Any]:
    return self._replicated()["template"]["spec"]

  def _container_spec(self) -> Mapping[str, Any]:
    (only,) = self.pod_spec()["containers"]
    return only

  def _container(self) -> str:
    return self._container_spec()["name"]

  def _expected(self) -> int:
    return self._replicated()["replicas"]

  def _here(self, argument: str) -> str:
    for beginning, place in self.places.items():
      argument = argument.replace(beginning, place)
    return argument

  def _say(self, text: str) -> None:
    self.events.append(text)


def match_pod_failure_policy(policy: Mapping[str, Any] | None, pod: Pod, container: str) -> tuple[str | None, bool]:
  """The message of a FailJob rule, and whether the failure counts towards backoffLimit; the first rule that fits."""
  for number, rule in enumerate((policy or {}).get("rules", ())):
    message = ""
    if codes := rule.get("onExitCodes"):
      own = codes.get("containerName") in (None, container) and pod.code != 0
      listed = pod.code in codes["values"]
      if own and listed == {"In": True, "NotIn": False}[codes["operator"]]:
        message = (
          f"Container {container} for pod {NAMESPACE}/{pod.name} failed with exit code {pod.code} matching "
          f"{rule['action']} rule at index {number}"
        )
    elif any(c["type"] == "DisruptionTarget" and c.get("status", "True") == "True" and pod.disrupted
             for c in rule.get("onPodConditions", ())):  # fmt: skip
      message = (
        f"Pod {NAMESPACE}/{pod.name} has condition DisruptionTarget matching {rule['action']} rule at index {number}"
      )
    if message:
      return {"FailJob": (message, True), "Ignore": (None, False), "Count": (None, True)}[rule["action"]]
  return None, True


def first_rule(rules, failed: list[Job], replicated: str) -> tuple[Mapping[str, Any] | None, Job]:
  """The first rule that a failed Job fits, with the earliest of those Jobs; none: the earliest of all."""
  by_time = sorted(failed, key=lambda job: job.failed_at)
  for rule in rules:
    for job in by_time:
      reason, message = job.target
      reasons, patterns = rule.get("onJobFailureReasons"), rule.get("onJobFailureMessagePatterns")
      targets = rule.get("targetReplicatedJobs")
      # RE2 and re agree on what our patterns use: letters, groups, alternatives.
      if (
        (not reasons or reason in reasons) and (not targets or replicated in targets)
        and (not patterns or any(re.search(p, message) for p in patterns))
      ):  # fmt: skip
        return rule, job
  return None, by_time[0]


def decide(manifest: Mapping[str, Any], code: int, disrupted: bool = False) -> str:
  """What becomes of a JobSet, of which one pod ends so: "done", "ends", "again", "again, counted"."""
  if not code:
    return "done"
  spec = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
  pod = Pod("x-slice-0-0", 0, None, None, code, disrupted)
  (container,) = spec["template"]["spec"]["containers"]
  message, counted = match_pod_failure_policy(spec["podFailurePolicy"], pod, container["name"])
  assert counted and spec["backoffLimit"] == 0
  job = Job("x-slice-0", 0, [pod], ("PodFailurePolicy", message) if message else ("BackoffLimitExceeded", ""), 1.0)
  rule, _ = first_rule(manifest["spec"]["failurePolicy"]["rules"], [job], "slice")
  action = rule["action"] if rule else "RestartJobSet"
  return {
    "FailJobSet": "ends", "RestartJobSetAndIgnoreMaxRestarts": "again", "RestartJobSet": "again, counted"
  }[action]  # fmt: skip
