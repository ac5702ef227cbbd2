"""The parts of `plan_scale.py`: programs compiled and never run, what they compute, send and hold, and what that means for a fleet."""
