"""The response grammar and the one-loop sampler."""
