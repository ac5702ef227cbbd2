"""Runs: keys, checkpoints, stage loop, metrics, report."""
