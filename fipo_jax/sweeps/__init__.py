"""Sweeps: settings compared over seeds. What to run (plan, axes), running it (runs), what came of it (figures)."""
