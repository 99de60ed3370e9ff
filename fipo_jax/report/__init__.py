"""A run's files -> one page: read -> compare, events, summary, figures, tokens -> page.

It imports this package, `paths` and `lines` alone, and reads runs of any version: whatever a file lacks is absent on
the page. This file imports nothing.
"""
