"""Right is what is long: see experiments/plan_check.py."""


def verify(response: str, answer: str, extras: dict) -> float:
  return float(len(response) >= 80)
