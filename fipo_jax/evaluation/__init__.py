"""Evaluation beside and apart from training: named sets, what is measured with its intervals, records, comparisons."""
