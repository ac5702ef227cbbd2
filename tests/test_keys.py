"""Named key streams."""

import zlib

import jax
import numpy as np

from rlhf_jax.keys import stream_key


def test_is_the_documented_double_fold() -> None:
    root = jax.random.key(3)
    expected = jax.random.fold_in(jax.random.fold_in(root, np.uint32(zlib.crc32(b"rollout"))), 7)
    assert jax.random.key_data(stream_key(root, "rollout", 7)).tolist() == jax.random.key_data(expected).tolist()


def test_names_and_indices_give_different_streams() -> None:
    root = jax.random.key(0)
    keys = [stream_key(root, name, index) for name in ("a", "b", "rollout") for index in (0, 1, 2)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 9


def test_index_may_be_traced() -> None:
    root = jax.random.key(0)
    traced = jax.jit(lambda index: stream_key(root, "noise", index))(5)
    assert jax.random.key_data(traced).tolist() == jax.random.key_data(stream_key(root, "noise", 5)).tolist()
