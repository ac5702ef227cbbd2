"""`reward_hacking.py`: proxy against truth along the KL path."""
