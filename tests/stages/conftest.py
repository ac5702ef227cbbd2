"""What the tests of this folder start from."""

from tiny_policy import dialogues, tiny, vocab

__all__ = ["dialogues", "tiny", "vocab"]
