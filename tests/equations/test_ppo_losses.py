"""PPO's losses: the four regions of the clip, limits, pessimism, gradients, diagnostics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlhf_jax.equations.masked import masked_mean, zero_padding
from rlhf_jax.equations.ppo import (
    approx_kl,
    clipped_surrogate,
    clipped_value_loss,
    explained_variance,
    importance_ratio,
    surrogate_clip_fraction,
)

N = 6
vectors = hnp.arrays(np.float32, N, elements=st.floats(-2, 2, width=16))
value_loss, explained = jax.jit(clipped_value_loss), jax.jit(explained_variance)
eps_values = st.sampled_from([0.05, 0.2, 0.5])
NEW = jnp.array([-1.0, -1.0, -1.0, -1.0, -1.0, -1.0])
# Ratios e^0.5 and e^-0.5 lie outside [0.8, 1.2], e^0.1 inside.
OLD = NEW - jnp.array([0.5, 0.5, -0.5, -0.5, 0.1, 0.1])
ADVANTAGES = jnp.array([2.0, -2.0, 2.0, -2.0, 2.0, -2.0])


@jax.jit
def surrogate(new: jax.Array, old: jax.Array, advantages: jax.Array, eps: float) -> tuple[jax.Array, ...]:
    """Loss, its gradient, the clip flags, and the loss under a dual clip of 1.5."""
    loss = clipped_surrogate(new, old, advantages, clip_eps=eps)
    gradient = jax.grad(lambda x: clipped_surrogate(x, old, advantages, clip_eps=eps).sum())(new)
    flags = surrogate_clip_fraction(new, old, advantages, clip_eps=eps)
    return loss, gradient, flags, clipped_surrogate(new, old, advantages, clip_eps=eps, dual_clip=1.5)


@given(vectors, vectors, vectors, eps_values)
def test_pessimism_and_flags(new: np.ndarray, old: np.ndarray, advantages: np.ndarray, eps: float) -> None:
    arguments = [jnp.asarray(x) for x in (new, old, advantages)]
    loss, gradient, flags, dual = (np.asarray(x) for x in surrogate(*arguments, eps))
    ratio = np.exp(new - old)
    plain = -advantages * ratio
    assert np.all(loss >= plain - 1e-6)
    acting = ((ratio > 1 + eps) & (advantages > 0)) | ((ratio < 1 - eps) & (advantages < 0))
    clear = np.abs(np.abs(ratio - 1) - eps) > 1e-5  # not on the edge, where rounding decides
    np.testing.assert_array_equal(flags[clear], acting[clear])
    assert np.all(gradient[clear & acting] == 0)
    np.testing.assert_allclose(gradient[clear & ~acting], plain[clear & ~acting], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(loss[clear & ~acting], plain[clear & ~acting], rtol=1e-4, atol=1e-6)
    # The dual clip only ever lowers the loss of bad tokens, to |A| times its constant.
    np.testing.assert_array_equal(dual[advantages >= 0], loss[advantages >= 0])
    np.testing.assert_allclose(dual, np.where(advantages < 0, np.minimum(loss, -1.5 * advantages), loss), rtol=1e-6)


def test_four_regions() -> None:
    _, gradient, flags, _ = surrogate(NEW, OLD, ADVANTAGES, 0.2)
    expected = -ADVANTAGES * jnp.exp(NEW - OLD)
    # Exactly zero where the ratio has already gone far the way the advantage asks for, the full push everywhere else.
    np.testing.assert_array_equal(flags, [1, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(np.asarray(gradient)[[0, 3]], 0)
    np.testing.assert_allclose(np.asarray(gradient)[[1, 2, 4, 5]], np.asarray(expected)[[1, 2, 4, 5]], rtol=1e-6)


def test_no_clip_and_first_minibatch() -> None:
    unclipped = clipped_surrogate(NEW, OLD, ADVANTAGES, clip_eps=jnp.inf)
    np.testing.assert_array_equal(unclipped, -ADVANTAGES * importance_ratio(NEW, OLD))
    loss, gradient, flags, dual = surrogate(NEW, NEW, ADVANTAGES, 0.2)
    for x in (loss, gradient, dual):
        np.testing.assert_array_equal(x, -ADVANTAGES)
    np.testing.assert_array_equal(flags, 0)
    np.testing.assert_array_equal(approx_kl(NEW, NEW), 0)
    np.testing.assert_array_equal(surrogate(NEW, OLD, 0 * ADVANTAGES, 0.2)[2], 0)


def test_dual_clip_stops_the_push() -> None:
    def loss(new: jax.Array) -> jax.Array:
        return clipped_surrogate(new, OLD, ADVANTAGES, clip_eps=0.2, dual_clip=1.5).sum()

    gradient = np.asarray(jax.jit(jax.grad(loss))(NEW))  # e^0.5 = 1.65 > 1.5
    assert gradient[1] == 0 and gradient[5] != 0
    with pytest.raises(ValueError, match="dual_clip must exceed 1, got 1"):
        clipped_surrogate(NEW, OLD, ADVANTAGES, clip_eps=0.2, dual_clip=1.0)


@given(vectors, vectors, vectors, eps_values)
def test_value_loss(values: np.ndarray, old: np.ndarray, returns: np.ndarray, eps: float) -> None:
    arguments = [jnp.asarray(x) for x in (values, old, returns)]
    loss = np.asarray(value_loss(*arguments, value_clip_eps=eps))
    plain = (values - returns) ** 2 / 2
    assert np.all(loss >= plain - 1e-6)
    inside = np.abs(values - old) <= eps
    np.testing.assert_allclose(loss[inside], plain[inside], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(value_loss(*arguments, value_clip_eps=jnp.inf), plain, rtol=1e-6)
    frozen = np.maximum(plain, (old - returns) ** 2 / 2)
    np.testing.assert_allclose(value_loss(*arguments, value_clip_eps=0.0), frozen, rtol=1e-5, atol=1e-6)


def test_value_gradient() -> None:
    values, old, returns = (
        jnp.array([0.9, 0.9, 0.1, -0.9]),
        jnp.array([0.5, 0.5, 0.2, -0.5]),
        jnp.array([1.0, 0, 0, -1.0]),
    )
    gradient = jax.jit(jax.grad(lambda v: clipped_value_loss(v, old, returns, value_clip_eps=0.2).sum()))(values)
    # Towards the return, but already further than the range allows: no pull.
    np.testing.assert_allclose(gradient, [0, 0.9, 0.1, 0], rtol=1e-6)


def test_ratio_and_approx_kl() -> None:
    d = np.asarray(NEW - OLD, np.float64)
    np.testing.assert_allclose(importance_ratio(NEW, OLD), np.exp(d), rtol=1e-6)
    np.testing.assert_allclose(approx_kl(NEW, OLD), d * d / 2, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.grad(lambda x: importance_ratio(x, OLD).sum()))(NEW), np.exp(d), rtol=1e-6)


def test_explained_variance() -> None:
    mask = jnp.array([True, True, True, True, False, False])
    returns = jnp.array([1.0, 2.0, 3.0, 4.0, jnp.nan, jnp.inf])
    junk = returns.at[4].set(-jnp.inf)
    assert explained(returns, junk, mask) == 1
    assert explained(jnp.full(N, 7.0), returns, mask) == 0
    assert explained(returns + 5, returns, mask) == 1  # a constant error is not variance
    assert explained(-returns, returns, mask) == -3
    assert explained(2 * returns, returns, mask) == 0
    assert explained(returns, jnp.ones(N), mask) == 0
    assert explained(returns, returns, mask & False) == 0
    half = returns.at[:4].set(jnp.array([1.0, 2.0, 4.0, 3.0]))
    assert explained(half, returns, mask) == pytest.approx(1 - 0.5 / 1.25, rel=1e-6)


@pytest.mark.parametrize("level", [0.1, 0.3, -0.7, 1.3, 5.1, 1e6 / 3, 1e-30])
def test_returns_that_do_not_vary_explain_nothing(level: float) -> None:
    """Exactly 0, also where the mean of equal numbers is rounded to another number; padding does not vary them."""
    for n in (7, 10, 100, 1000):
        values = jnp.asarray(np.random.default_rng(n).normal(size=n), jnp.float32)
        mask = jnp.arange(n) < n - 2
        assert explained(values, jnp.where(mask, level, jnp.nan), mask) == 0
        assert explained(jnp.full(n, level), jnp.where(mask, level, jnp.inf), mask) == 0
    barely = jnp.full(8, 1.3).at[0].add(1e-3)
    assert explained(barely, barely, jnp.ones(8, bool)) == 1


@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
def test_a_ratio_beyond_float32(advantage: float) -> None:
    """Docstring's values: the clip's, and without a clip infinities that have a sign."""

    def both(eps: float, dual: float | None) -> tuple[float, float]:
        value, gradient = jax.value_and_grad(
            lambda x: clipped_surrogate(x, jnp.zeros(1), jnp.array([advantage]), clip_eps=eps, dual_clip=dual).sum()
        )(jnp.array([100.0]))
        return float(value), float(gradient[0])

    clipped, bad, free = both(0.2, None), both(0.2, 3.0), both(np.inf, None)
    if advantage == 0:
        assert clipped == bad == free == (0, 0)
    elif advantage > 0:
        assert clipped == bad == (pytest.approx(-1.2), 0) and free == (-np.inf, -np.inf)
    else:
        assert clipped == free == (np.inf, np.inf) and bad == (3, 0)


def test_cleared_padding_reaches_no_gradient(assert_padding_unread) -> None:
    mask = jnp.array([True, True, False, True, True, False])

    def loss(new: jax.Array, old: jax.Array, advantages: jax.Array, values: jax.Array, returns: jax.Array) -> jax.Array:
        new, old, advantages, values, returns = (zero_padding(x, mask) for x in (new, old, advantages, values, returns))
        policy = clipped_surrogate(new, old, advantages, clip_eps=0.2, dual_clip=3.0)
        value = clipped_value_loss(values, 0.5 * returns, returns, value_clip_eps=0.2)
        return masked_mean(policy, mask) + masked_mean(value, mask)

    assert_padding_unread(loss, mask, NEW, OLD, ADVANTAGES, NEW, OLD)


def test_gradients(assert_gradients) -> None:
    def outputs(new: jax.Array, old: jax.Array, advantages: jax.Array) -> list[jax.Array]:
        return [
            importance_ratio(new, old),
            approx_kl(new, old),
            clipped_surrogate(new, old, advantages, clip_eps=0.2),
            clipped_surrogate(new, old, advantages, clip_eps=0.2, dual_clip=1.5),
            clipped_value_loss(new, old, advantages, value_clip_eps=0.2),
        ]

    assert_gradients(outputs, np.asarray(NEW), np.asarray(OLD), np.asarray(ADVANTAGES))


def test_float32(assert_float32) -> None:
    assert_float32(lambda a, b, c: clipped_surrogate(a, b, c, clip_eps=0.2), NEW - 9, OLD - 9, ADVANTAGES)
    assert_float32(lambda a, b, c: surrogate_clip_fraction(a, b, c, clip_eps=0.2), NEW - 9, OLD - 9, ADVANTAGES)
    assert_float32(lambda a, b, c: clipped_value_loss(a, b, c, value_clip_eps=0.2), NEW - 9, OLD - 9, ADVANTAGES)
    assert_float32(lambda a, b: explained_variance(a, b, jnp.ones(N, bool)), NEW - 9, OLD - 9)
    assert_float32(importance_ratio, NEW - 9, OLD - 9)
    assert_float32(approx_kl, NEW - 9, OLD - 9)


def test_vmap_and_shapes(assert_vmap) -> None:
    new, old, advantages = (x.reshape(2, 3) for x in (NEW, OLD, ADVANTAGES))
    assert_vmap(lambda a, b, c: clipped_surrogate(a, b, c, clip_eps=0.2), new, old, advantages)
    assert_vmap(lambda a, b, c: clipped_value_loss(a, b, c, value_clip_eps=0.2), new, old, advantages)
    assert_vmap(explained_variance, advantages + new, old, jnp.ones((2, 3), bool))
    with pytest.raises((AssertionError, TypeError)):
        clipped_surrogate(NEW, OLD, ADVANTAGES[:1], clip_eps=0.2)
    with pytest.raises((AssertionError, TypeError)):
        clipped_value_loss(NEW, OLD, ADVANTAGES[:1], value_clip_eps=0.2)
