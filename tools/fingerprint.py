"""One short text for every bit of a state, to compare runs, resumed runs and processes."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def fingerprint(tree: Any) -> str:
    """SHA-256 over paths, types, shapes and bytes of all leaves; typed keys by their data.

    Examples:
      >>> fingerprint({"w": np.zeros(2)}) == fingerprint({"w": np.zeros(2)})
      True
      >>> fingerprint({"w": np.zeros(2)}) == fingerprint({"w": -np.zeros(2)})
      False
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype}{array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
