"""Named streams of random keys: the key of anything is a function of (seed, name, index)."""

import zlib

import jax
import numpy as np
from jaxtyping import Array, Int, Key


def stream_key(root: Key[Array, ""], name: str, index: int | Int[Array, ""] = 0) -> Key[Array, ""]:
    """The key of one named stream at one index.

        key = fold_in(fold_in(root, crc32(name)), index)

    Streams do not disturb each other: a new one changes no number drawn elsewhere, and a run that continues at update
    n draws what it would have drawn without the interruption.

    Args:
      root: key of the whole run, `jax.random.key(seed)`.
      name: what the stream is for, e.g. `"rollout"`.
      index: position in the stream, usually the update; may be traced.
    Returns: a key to split or to draw from once.
    Examples:
      >>> root = jax.random.key(0)
      >>> bool(stream_key(root, "dropout", 1) == stream_key(root, "dropout", 2))
      False
    """
    return jax.random.fold_in(jax.random.fold_in(root, np.uint32(zlib.crc32(name.encode()))), index)
