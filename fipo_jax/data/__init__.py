"""Prompts: where they come from (SOURCES), how they become tokens (tokenizer), in what order (pipeline)."""

from fipo_jax.data import chain_sum, sources

# Each row: function(**options) -> sources.Records, random access to records.
SOURCES = {
  "reasoning_gym": sources.reasoning_gym,
  "jsonl": sources.jsonl,
  "parquet": sources.parquet,
  "tfds": sources.tfds,
  "chain_sum_solutions": chain_sum.chain_sum_solutions,
}
