"""Masked statistics: identities, degenerate counts, padding, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlhf_jax.equations.masked import masked_mean, masked_var, masked_whiten, zero_padding

SHAPE = (2, 4)
mean, var = jax.jit(masked_mean), jax.jit(masked_var)
whiten = jax.jit(masked_whiten, static_argnames=("shift_mean", "epsilon"))
arrays = hnp.arrays(np.float32, SHAPE, elements=st.floats(-8, 8, width=16))
masks = hnp.arrays(np.bool_, SHAPE)


@given(arrays, masks)
def test_equal_numpy_on_the_real_entries(x: np.ndarray, mask: np.ndarray) -> None:
    real = x[mask] if mask.any() else np.zeros(1)
    np.testing.assert_allclose(mean(jnp.asarray(x), jnp.asarray(mask)), real.mean(), atol=1e-5)
    np.testing.assert_allclose(var(jnp.asarray(x), jnp.asarray(mask)), real.var(), rtol=1e-5, atol=1e-5)


@given(arrays, masks, st.floats(0.5, 4), st.floats(-4, 4))
def test_whitening_forgets_scale_and_shift(x: np.ndarray, mask: np.ndarray, scale: float, shift: float) -> None:
    x = x + np.arange(8, dtype=np.float32).reshape(SHAPE) * 20  # spread, so that ε is negligible
    whitened = whiten(jnp.asarray(x), jnp.asarray(mask))
    moved = whiten(jnp.asarray(np.float32(scale) * x + np.float32(shift)), jnp.asarray(mask))
    np.testing.assert_allclose(moved, whitened, atol=1e-4)
    np.testing.assert_array_equal(whitened[~mask], 0)
    if mask.sum() > 1:
        assert abs(float(whitened[mask].mean())) < 1e-5
        assert float(whitened[mask].var()) == pytest.approx(1, abs=1e-4)
        kept = whiten(jnp.asarray(x), jnp.asarray(mask), shift_mean=False)
        assert float(kept[mask].mean()) == pytest.approx(float(x[mask].mean()), rel=1e-5)


@pytest.mark.parametrize("n, expected", [(0, [0, 0, 0]), (1, [0, 0, 0]), (2, [-1, 1, 0])])
def test_whitening_of_few_tokens_is_finite(n: int, expected: list[float]) -> None:
    x, mask = jnp.array([3.0, 5.0, 7.0]), jnp.arange(3) < n
    value, gradient = jax.jit(jax.value_and_grad(lambda x: whiten(x, mask) @ jnp.array([1.0, 2.0, 3.0])))(x)
    np.testing.assert_allclose(whiten(x, mask), expected, atol=1e-6)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))
    kept = whiten(x, mask, shift_mean=False)
    np.testing.assert_allclose(kept, [[0, 0, 0], [3, 0, 0], [3, 5, 0]][n], atol=1e-6)
    assert mean(x, mask) == [0, 3, 4][n] and var(x, mask) == [0, 0, 1][n]


def test_epsilon_is_added_to_the_variance() -> None:
    whitened = whiten(jnp.array([-1.0, 1.0]), jnp.ones(2, bool), epsilon=3.0)
    np.testing.assert_allclose(whitened, [-0.5, 0.5])
    # The default damps what is smaller than 1e-4: a batch of equal advantages is not blown up to noise.
    small = whiten(jnp.array([-1e-4, 1e-4]), jnp.ones(2, bool))
    np.testing.assert_allclose(small, [-np.sqrt(0.5), np.sqrt(0.5)], rtol=1e-4)


def test_tokens_are_averaged_not_rows() -> None:
    x, mask = jnp.array([[1.0, 1.0, 1.0], [5.0, 9.0, 9.0]]), jnp.array([[True, True, True], [True, False, False]])
    assert mean(x, mask) == 2  # the mean of the rows' means is 3, the sum over the array's size 4/3


def everything(x: jax.Array, mask: jax.Array) -> jax.Array:
    """All functions of the module in one array, so that one compilation checks them all."""
    moments = [masked_mean(x, mask) * jnp.ones(8), masked_var(x, mask) * jnp.ones(8)]
    kept = masked_whiten(x, mask, shift_mean=False).ravel()
    return jnp.stack([zero_padding(x, mask).ravel(), masked_whiten(x, mask).ravel(), kept, *moments])


def test_padding_is_never_read(assert_padding_unread) -> None:
    mask = jnp.array([[True, True, False, True], [False, True, False, False]])
    x = jnp.arange(8.0).reshape(SHAPE) ** 2
    weights = jnp.arange(1.0, 41.0).reshape(5, 8)
    assert_padding_unread(lambda x: everything(x, mask) * weights, mask, x)


def test_gradients(assert_gradients) -> None:
    mask = jnp.array([[True, True, False, True], [False, True, False, False]])
    x = np.array([[0.3, -1.0, 2.0, 0.7], [1.0, 1.9, 0.0, 4.0]])
    assert_gradients(lambda x: everything(x, mask), x)
    single = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(jax.jit(jax.grad(masked_mean))(single, mask), mask / 4)
    expected = mask * 2 * (x - x[mask].mean()) / 4
    np.testing.assert_allclose(jax.jit(jax.grad(masked_var))(single, mask), expected, rtol=1e-5)


def test_float32_and_vmap(assert_float32, assert_vmap) -> None:
    x = jnp.array([[1.001, 2.7, -3.3, 0.1], [0.3, 300.0, 0.2, -5.0]])
    mask = jnp.array([[True, True, False, True], [False, True, True, True]])
    assert_float32(lambda x: everything(x, mask), x)
    batch = jnp.stack([x, -2 * x])
    assert_vmap(everything, batch, jnp.stack([mask, ~mask]))


def test_shapes_must_match() -> None:
    with pytest.raises((AssertionError, TypeError)):
        masked_mean(jnp.ones((2, 3)), jnp.ones((2, 1), bool))
