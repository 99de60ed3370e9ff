"""Training: packing (batching), optimizer, state, the jitted step, checkpoints."""
