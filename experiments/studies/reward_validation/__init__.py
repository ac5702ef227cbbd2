"""`validate_reward.py`: the reward model against held-out labels, satisfaction and true utility."""
