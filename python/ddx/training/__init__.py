"""Training: the loop, optimiser, averages, checkpoints, parallelism and tracking."""
