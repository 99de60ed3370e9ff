"""The player of the controllers obeys manifests as JobSet and Kubernetes do; here on a program of a few lines."""

import os
import signal
import time

import pytest
import yaml

from fipo_jax.pods.jobs import jobset
from tests import pod_test
from tests.jobset_controller import Job, JobSet, Pod, first_rule, match_pod_failure_policy

# Counts in a folder, and ends like our own: 75 everywhere when one is told to stop, 76 when another is gone.
PROGRAM = """
import os, pathlib, signal, sys, time
me, folder = int(os.environ["JAX_PROCESS_ID"]), pathlib.Path(sys.argv[1])
start = os.environ["JAX_COORDINATOR_ADDRESS"].split(":")[1]
signal.signal(signal.SIGTERM, lambda *_: (folder / f"{start}.stop").touch())
if len(sys.argv) > 2:
  print("error: a mistake"), sys.exit(2)
(folder / f"{start}.{me}").write_text(str(os.getpid()))
while True:
  time.sleep(0.01)
  try:
    others = [int((folder / f"{start}.{k}").read_text()) for k in range(int(os.environ["JAX_NUM_PROCESSES"]))]
  except (OSError, ValueError):  # not there yet
    continue
  if (folder / f"{start}.stop").exists():
    sys.exit(75)
  state = lambda pid: open(f"/proc/{pid}/stat").read().split()[2] if os.path.exists(f"/proc/{pid}") else "Z"
  gone = any(state(pid) in "ZT" for pid in others)
  count = folder / "count"
  done = int(count.read_text()) if count.exists() else 0
  if done >= 60:  # looked at after the others, who may be gone for that
    sys.exit(0)
  if gone:
    sys.exit(75 if (folder / f"{start}.stop").exists() else 76)  # the other may have been told meanwhile
  if me == 0:
    (folder / "new").write_text(str(done + 1))
    (folder / "new").replace(count)
"""


@pytest.fixture
def play(tmp_path, monkeypatch):
  """play(*more arguments, changes to the spec): a player of a manifest for two hosts, closed at the end."""
  monkeypatch.setattr("tests.jobset_controller.SYNC_S", 0.05)
  players = []

  def make(*more, slices=1, **changes):
    how = dict(topology="v5p-16") if slices == 1 else dict(topology="v5p-8")
    how |= {"slices": slices, "fields": {"rollout.tensor": 0}}
    manifest = yaml.safe_load(jobset.render(pod_test.make(grace_s=1, restarts=3, **how)))
    container = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    container["args"] = ["python", "-SE", "-c", PROGRAM, str(tmp_path), *more]
    manifest["spec"]["failurePolicy"] |= changes
    players.append(JobSet(manifest, tmp_path, places={}, devices=1, environment=os.environ))
    return players[-1]

  yield make
  for player in players:
    player.close()


def count(folder):
  return int((folder / "count").read_text()) if (folder / "count").exists() else 0


def counting(player, folder, more=3):
  """Until it has come further."""
  now = count(folder)
  player.until(lambda: count(folder) >= now + more, 30)


@pytest.mark.parametrize("slices", [1, 2])
def test_three_faults(play, tmp_path, slices):
  player = play(slices=slices)
  counting(player, tmp_path)
  player.pods[1].signal(signal.SIGKILL)
  player.until(lambda: player.restarts == 1, 30)
  assert player.counted == 1 and player.ended[-1][1] == "default"
  counting(player, tmp_path)
  assert not any(pod.code is not None for pod in player.pods)
  player.evict(player.pods[0])
  player.until(lambda: player.restarts == 2, 30)
  assert player.counted == 1 and player.ended[-1][1] == "stopped"
  counting(player, tmp_path)
  frozen = player.pods[1]
  frozen.signal(signal.SIGSTOP)
  player.until(lambda: player.restarts == 3 and frozen not in player.pods, 30)
  assert player.counted == 2 and frozen.code == 137  # by SIGKILL, when its grace was over
  counting(player, tmp_path)
  player.suspend(True)
  player.until(lambda: not player.pods, 30)
  player.suspend(False)
  player.run(30)
  assert (player.state, player.restarts, count(tmp_path)) == ("completed", 3, 60) and not player.running


def test_a_mistake_is_final_and_restarts_end(play, tmp_path):
  player = play("a mistake")
  player.run(30)
  assert (player.state, player.restarts) == ("failed", 0)
  assert "exit code 2 matching FailJob rule at index 0" in player.message
  assert "error: a mistake" in player.said(1)
  player = play(maxRestarts=1)
  for _ in range(2):
    counting(player, tmp_path)
    player.pods[0].signal(signal.SIGKILL)
    pods = player.pods
    player.until(lambda pods=pods: not any(pod in player.running for pod in pods), 30)
    player.until(lambda: player.state != "running" or len(player.running) == 2, 30)
  assert (player.state, player.counted) == ("failed", 1) and "max number of restarts" in player.message


def test_a_node_that_is_lost_holds_its_job_until_that_is_known(play, tmp_path):
  player = play()
  counting(player, tmp_path)
  lost = player.pods[1]
  began = time.monotonic()
  player.lose_node(lost, 1.5)
  player.until(lambda: player.restarts == 1, 30)
  assert time.monotonic() > began + 1.5 and player.counted == 1  # by the other's 76, which came first
  codes = player.ended[-1][3]
  assert sorted(codes.values()) == [76, 137]


def test_the_last_thread_alone_can_be_held(play, tmp_path):
  player = play()
  counting(player, tmp_path)
  if not player.stick(player.pods[0]):
    pytest.skip("no ptrace")
  now = count(tmp_path)
  late = time.monotonic() + 0.2
  player.until(lambda: time.monotonic() > late, 5)
  assert count(tmp_path) <= now + 1 and player.pods[0].code is None


def pod(code, disrupted=False):
  return Pod("p", 0, None, None, code, disrupted)


def rule(action, **more):
  return {"rules": [{"action": action, **more}]}


MATCHED = "failed with exit code 1 matching FailJob rule at index 0"
DISRUPTED = {"type": "DisruptionTarget", "status": "True"}


@pytest.mark.parametrize("policy, code, disrupted, message, counted", [
  (None, 1, False, None, True),
  (rule("FailJob", onExitCodes={"operator": "In", "values": [1]}), 1, False, MATCHED, True),
  (rule("FailJob", onExitCodes={"operator": "In", "values": [1]}), 2, False, None, True),
  (rule("FailJob", onExitCodes={"operator": "NotIn", "values": [1]}), 2, False, "exit code 2 matching", True),
  (rule("FailJob", onExitCodes={"containerName": "other", "operator": "In", "values": [1]}), 1, False, None, True),
  (rule("Ignore", onExitCodes={"operator": "In", "values": [1]}), 1, False, None, False),
  (rule("FailJob", onPodConditions=[DISRUPTED]), 137, True, "has condition DisruptionTarget", True),
  (rule("FailJob", onPodConditions=[DISRUPTED]), 137, False, None, True),
  ({"rules": [
    {"action": "Count", "onExitCodes": {"operator": "In", "values": [1]}},
    {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1]}},
  ]}, 1, False, None, True),  # the first that fits
])  # fmt: skip
def test_pod_failure_policy(policy, code, disrupted, message, counted):
  found = match_pod_failure_policy(policy, pod(code, disrupted), "fipo")
  assert found[1] == counted and (found[0] is None) == (message is None) and (message or "") in (found[0] or "")


def test_the_first_rule_that_any_failed_job_fits():
  late = Job("b", 0, [], ("BackoffLimitExceeded", "x"), 2.0)
  early = Job("a", 0, [], ("PodFailurePolicy", "exit code 75 matching"), 1.0)
  rules = [
    {"name": "other", "action": "FailJobSet", "targetReplicatedJobs": ["driver"]},
    {"name": "words", "action": "FailJobSet", "onJobFailureMessagePatterns": ["exit code (2|130) matching"]},
    {"name": "reason", "action": "RestartJobSet", "onJobFailureReasons": ["BackoffLimitExceeded"]},
    {"name": "all", "action": "FailJobSet"},
  ]
  assert first_rule(rules, [early, late], "slice") == (rules[2], late)
  assert first_rule(rules[:2], [late, early], "slice") == (None, early)
  assert first_rule(rules[3:], [late, early], "slice") == (rules[3], early)
