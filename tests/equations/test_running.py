"""Running moments: equal to NumPy over the whole stream, however it is cut; degenerate counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlhf_jax.equations.running import RunningMoments, initial_moments, normalise, update_moments

update, scaled = jax.jit(update_moments), jax.jit(normalise, static_argnames="clip")
streams = hnp.arrays(np.float32, (6, 2), elements=st.floats(-9, 9, width=16))


def over(*pieces: np.ndarray) -> RunningMoments:
    """Moments after the pieces, in order."""
    moments = initial_moments(pieces[0].shape[1:])
    for piece in pieces:
        moments = update(moments, jnp.asarray(piece))
    return moments


@given(streams)
def test_any_cut_and_order_equals_numpy(x: np.ndarray) -> None:
    for moments in (over(x), over(x[:2], x[2:]), over(x[2:], x[:2])):
        assert moments.count == 6
        np.testing.assert_allclose(moments.mean, x.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(moments.m2, 6 * x.astype(np.float64).var(axis=0), rtol=1e-4, atol=1e-3)
    spread = x.std(axis=0, ddof=1)
    expected = (x - x.mean(axis=0)) / np.where(spread > 0.1, spread, 1)
    clear = spread > 0.1
    np.testing.assert_allclose(scaled(over(x), jnp.asarray(x))[:, clear], expected[:, clear], atol=1e-3)


def test_a_far_offset_keeps_the_variance() -> None:
    """Σx² − n·mean² would lose every digit here."""
    x = np.float32(10_000) + np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    assert float(over(x[:1], x[1:]).m2) == pytest.approx(5, rel=1e-3)


def test_fewer_than_two_and_constants() -> None:
    x = jnp.array([3.0, 5.0])
    np.testing.assert_array_equal(scaled(initial_moments(), x), x)
    np.testing.assert_array_equal(scaled(over(np.array([3.0], np.float32)), x), [0, 2])
    np.testing.assert_array_equal(scaled(over(np.full(5, 3, np.float32)), x), [0, 2])
    # Batches of 0.1 average to something else than 0.1 in float32: a residue of 1e-9, which must not become a std.
    tenths = over(np.full(7, 0.1, np.float32), np.full(3, 0.1, np.float32))
    np.testing.assert_allclose(scaled(tenths, x), [2.9, 4.9], rtol=1e-5)
    fine = over(np.array([1.0, 1.001], np.float32))
    np.testing.assert_allclose(scaled(fine, fine.mean[None] + 1e-3), [np.sqrt(2)], rtol=1e-2)
    two = over(np.array([3.0, 5.0], np.float32))
    np.testing.assert_allclose(scaled(two, x), [-np.sqrt(0.5), np.sqrt(0.5)], rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda y: normalise(initial_moments(), y).sum()))(x)
    np.testing.assert_array_equal(gradient, 1)


def test_clip() -> None:
    moments = RunningMoments(jnp.float32(5), jnp.float32(1), jnp.float32(16))  # std 2
    x = jnp.array([-19.0, -1.0, 2.0, 21.0])
    np.testing.assert_allclose(scaled(moments, x), [-10, -1, 0.5, 10])
    np.testing.assert_allclose(scaled(moments, x, clip=5.0), [-5, -1, 0.5, 5])


def test_components_do_not_mix() -> None:
    moments = over(np.array([[1.0, 10.0], [3.0, 50.0]], np.float32))
    assert moments.mean.tolist() == [2, 30] and moments.m2.tolist() == [2, 800] and moments.count.shape == ()
    assert scaled(moments, jnp.array([[2.0, 30.0]])).tolist() == [[0, 0]]


def test_float32() -> None:
    x = jnp.array([0.1, 300.0, 7.0], jnp.bfloat16)
    narrow, wide = update(initial_moments(), x), update(initial_moments(), x.astype(jnp.float32))
    jax.tree.map(np.testing.assert_array_equal, narrow, wide)
    z = scaled(narrow, x)
    assert z.dtype == jnp.float32
    np.testing.assert_array_equal(z, scaled(wide, x.astype(jnp.float32)))
