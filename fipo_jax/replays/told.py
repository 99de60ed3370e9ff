"""What a replay says, in lines."""

from __future__ import annotations

from typing import Any

from fipo_jax import workdir
from fipo_jax.replays import compare
from fipo_jax.replays.fields import Given
from fipo_jax.replays.past import Past

# Metrics of the table; all are in replay.json.
SHOWN = (
  "reward_trained", "loss", "grad_norm", "policy_kl", "entropy", "clip_fraction", "dual_clip_fraction",
  "rejected_sequence_fraction", "future_kl_abs_mean", "future_kl_abs_max", "participation_fraction", "weight_mean",
  "weight_std", "weight_min", "weight_max", "learning_rate", "skipped_updates",
)  # fmt: skip
TOKENS = 5  # of largest |F| that are shown


def beginning(past: Past, first: int, step: int, given: Given) -> list[str]:
  """Which step of which attempt, what it will cost, and what will be compared."""
  which = ""
  if past.rollbacks:
    which = f", attempt {past.attempt} of {past.of()}"
    if past.attempt < past.of():
      r = past.rollbacks[past.attempt - 1]
      which += f", which the alarm {r['alarm']} ended at step {r['step']} (back to step {r['to']})"
  start = f"from the checkpoint of step {first - 1}" if first > 1 else "from the beginning, for none before it is left"
  number = step - first + 1
  seconds = past.seconds(first, step) + (past.seconds(step, step) if given.changed() else 0)
  steps = f"step {step}" if number == 1 else f"steps {first} to {step}"
  lines = [
    f"replay of step {step} of {past.cfg.workdir}{which}: {start}, {steps} to be made again; about {seconds:.0f} s by "
    "the run's own metrics, beside loading and compiling. Nothing is written into the run."
  ]
  if resumed := past.resumed(first, step):
    after = ", ".join(map(str, resumed))
    lines.append(
      f"the run was started anew after step {after}: its state was the same, but log-probs that the sampler had taken "
      "of responses it had begun may differ in their last bits"
    )
  if given.update:
    lines.append(f"and the same responses once more under {_fields(given.update)}")
  if given.responses:
    lines.append(
      f"and the step once more under {_fields(given.changed())}: these fields choose responses, so what is compared is "
      "of different ones"
    )
  return lines


def _fields(values: dict[str, Any]) -> str:
  return ", ".join(f"{field}={value!r}" for field, value in values.items())


def reasons(past: Past, first: int, last: int, devices: str) -> list[str]:
  """Why numbers may differ: what is not as it was."""
  then, now = past.start(last), workdir.provenance()
  lines = []
  if then.get("jax", now["jax"]) != now["jax"]:
    lines.append(f"jax {then['jax']} then, {now['jax']} now: its compiler may round otherwise")
  if then.get("devices", devices) != devices:
    lines.append(
      f"{then['devices']} then, {devices} now: sums are taken in another order, and a draw that is decided by the last "
      "bits falls otherwise"
    )
  if "devices" not in then:
    lines.append("on which devices it was made, that version did not note")
  if then.get("commit", now["commit"]) != now["commit"]:
    lines.append(f"code {then['commit'] or 'not under git'} then, {now['commit'] or 'not under git'} now")
  if first and past.resumed(first, last):
    lines.append("it was started anew in between")
  return lines


def compared(found: list[compare.Compared], why: list[str]) -> list[str]:
  """Equal, or not and why that may be."""
  lines = compare.said(found)
  if any(c.different for c in found):
    lines += [f"why: {reason}" for reason in why] or ["why: not known; devices, jax and code are those of the run"]
    drawn = next((c.step for c in found if any(d.name == "tokens_generated" for d in c.different)), None)
    if drawn:
      lines.append(f"from step {drawn} on other responses were sampled: what follows is another course of the run")
  return lines


def result(record: dict[str, Any]) -> list[str]:
  """The step in figures: metrics side by side, gradients by layer, tokens of largest |F|."""
  columns = ["recorded", "replayed", *(["changed"] if record["changed"] else [])]
  lines = [f"{'':28}" + "".join(f"{name:>14}" for name in columns)]
  for name in SHOWN:
    row = record["metrics"].get(name, {})
    if row:
      cells = [row.get(column) for column in columns]
      lines.append(f"{name:28}" + "".join(f"{'-' if x is None else format(x, '.5g'):>14}" for x in cells))
  for title, key in (("gradient norm", "gradients"), ("the same, changed", "gradients_changed")):
    for g in record.get(key, ()):
      layers = ", ".join(f"{x:.3g}" for x in g["layers"]) if g["layers"] else "-"
      lines.append(f"{title}, mini-batch {g['minibatch']}: {g['norm']:.4g}; by layer {layers}")
  for t in record["top"][:TOKENS]:
    moved = t["moved"]
    lines.append(
      f"F {t['future_kl']:+.3f}, f {t['weight']:.3f}, A {t['advantage']:+.2f} at {t['token']!r}, token {t['position']} "
      f"of {t['length']}, after {t['before']!r} ({t['prompt']!r}, mini-batch {t['minibatch']}); the largest move is "
      f"{moved['nats']:+.3f} nats at {moved['token']!r}, token {moved['position']}"
    )
  return lines
