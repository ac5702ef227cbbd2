"""Training, one stage a module, its configuration beside its `train`: data → imitation → reward model → alignment.

What a stage returns is a plain tree of parameters. Nothing here may know the satisfaction judge (`lint-imports`).
"""
