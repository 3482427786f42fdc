"""The store between precompute and training: making it, opening it, reading random batches from it."""
