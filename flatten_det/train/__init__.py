"""Training: stopping and resuming exactly, checkpoints, guards, precision."""
