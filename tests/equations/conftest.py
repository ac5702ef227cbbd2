"""Checks shared by the tests of the equations."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads


@pytest.fixture(scope="session")
def assert_padding_unread() -> Callable[..., None]:
    """Checks that what stands in padding changes neither the value nor the gradient, be it NaN, infinite or large."""

    def check(function: Callable[..., jax.Array], mask: jax.Array, *inputs: jax.Array) -> None:
        """`function(*inputs)` sums to a scalar; every input has the mask's shape."""
        value_and_grad = jax.jit(jax.value_and_grad(lambda arrays: function(*arrays).sum()))
        clean = value_and_grad([jnp.where(mask, x, 0) for x in inputs])
        for junk in (jnp.nan, jnp.inf, 1e30):
            dirty = value_and_grad([jnp.where(mask, x, junk) for x in inputs])
            jax.tree.map(np.testing.assert_array_equal, dirty, clean)
        for gradient in clean[1]:
            assert not np.any(np.asarray(gradient)[~np.asarray(mask)])
            assert np.all(np.isfinite(gradient))

    return check


@pytest.fixture(scope="session")
def assert_gradients() -> Callable[..., None]:
    """Compares reverse-mode gradients with central differences in float64."""

    def check(function: Callable[..., jax.Array], *inputs: np.ndarray) -> None:
        with jax.enable_x64(True):
            check_grads(jax.jit(function), tuple(jnp.asarray(x, jnp.float64) for x in inputs), order=1, modes=["rev"])

    return check


@pytest.fixture(scope="session")
def assert_float32() -> Callable[..., None]:
    """Checks that bfloat16 inputs are widened before, not after, the arithmetic."""

    def check(function: Callable[..., jax.Array], *inputs: jax.Array) -> None:
        narrow = [x.astype(jnp.bfloat16) for x in inputs]
        compiled = jax.jit(function)
        got = compiled(*narrow)
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(got, compiled(*[x.astype(jnp.float32) for x in narrow]))

    return check


@pytest.fixture(scope="session")
def assert_vmap() -> Callable[..., None]:
    """Checks that a batch gives what its rows give one by one."""

    def check(function: Callable[..., jax.Array], *batches: jax.Array) -> None:
        single = jax.jit(function)
        rows = [single(*row) for row in zip(*batches, strict=True)]
        np.testing.assert_allclose(jax.jit(jax.vmap(function))(*batches), np.stack(rows), rtol=1e-6, atol=1e-6)

    return check
