"""Runs: the run directory and its files, checkpoints, the stage loop, metrics, jobs. Knows nothing of what is trained."""
