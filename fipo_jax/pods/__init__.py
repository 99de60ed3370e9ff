"""Pods that are not there: chips and topologies, a run's programs compiled for them, what an iteration would cost."""
