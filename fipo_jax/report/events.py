"""What happened to a run between its steps: alarms, rollbacks, restarts, changed fields, updates that were skipped."""

from __future__ import annotations

import dataclasses

from fipo_jax.report.read import Row, Run

KINDS = ("alarm", "rollback", "restart", "changed", "skipped")


@dataclasses.dataclass(frozen=True)
class Event:
  """step: where it is drawn. kind: one of KINDS. said: a line."""

  step: int
  kind: str
  said: str


def events(run: Run) -> list[Event]:
  """All of them, by step; alarms of attempts that were rolled back, too."""
  found = [e for rows in (run.rows, *run.attempts) for row in rows for e in _of_row(row)]
  for record in run.rollbacks:
    step, to = record.get("step", 0), record.get("to", 0)
    found.append(Event(step, "rollback", f"taken back to step {to} by the alarm {record.get('alarm', '')}".rstrip()))
  for start in run.starts[1:]:
    found.append(Event(start.get("step", 0), "restart", _restarted(start)))
  return sorted(dict.fromkeys(found), key=lambda event: (event.step, KINDS.index(event.kind)))


def _of_row(row: Row) -> list[Event]:
  step = row["step"]
  found = [Event(step, "alarm", str(name)) for name in row.get("alarms") or ()]
  found += [Event(step, "changed", str(line)) for line in row.get("changed") or ()]
  if skipped := row.get("skipped_updates"):
    found.append(Event(step, "skipped", f"{skipped:.0%} of the step's updates: not finite, or nothing to learn from"))
  return found


def _restarted(start: Row) -> str:
  lost = start.get("lost_steps") or 0
  again = f", {lost} {'iterations' if lost > 1 else 'iteration'} made again" if lost else ""
  code = f", code {start['commit']}" if start.get("commit") else ""
  return f"started again from step {start.get('step', 0)}{again}, {str(start.get('time', ''))[:16]}{code}"
