"""Compiled update steps over callables: supervised, reward model, PPO."""
