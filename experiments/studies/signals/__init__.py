"""`validate_signals.py`: each raw signal against what people said about a turn."""
