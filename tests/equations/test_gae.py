"""Advantages: limits in λ and γ, the λ-return, padding, user turns, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlhf_jax.equations.gae import generalized_advantage_estimation, multi_turn_generalized_advantage_estimation

T = 6
numbers = st.floats(-4, 4, width=16)
rewards_arrays = hnp.arrays(np.float32, T, elements=numbers)
values_arrays = hnp.arrays(np.float32, T + 1, elements=numbers)
shares = st.floats(0, 1, width=16)
gae = jax.jit(generalized_advantage_estimation)
multi_turn = jax.jit(multi_turn_generalized_advantage_estimation)
close = {"rtol": 1e-4, "atol": 1e-4}


@given(rewards_arrays, values_arrays, shares)
def test_limits(rewards: np.ndarray, values: np.ndarray, gamma: float) -> None:
    arguments = jnp.asarray(rewards), jnp.asarray(values)
    one_step = rewards + gamma * values[1:] - values[:-1]
    np.testing.assert_allclose(gae(*arguments, gamma=gamma, gae_lambda=0.0), one_step, **close)
    np.testing.assert_allclose(gae(*arguments, gamma=0.0, gae_lambda=gamma), rewards - values[:-1], **close)
    returns = [sum(gamma ** (k - t) * rewards[k] for k in range(t, T)) + gamma ** (T - t) * values[T] for t in range(T)]
    np.testing.assert_allclose(gae(*arguments, gamma=gamma, gae_lambda=1.0), returns - values[:-1], **close)


@given(rewards_arrays, values_arrays, shares, shares)
def test_advantage_plus_value_is_the_lambda_return(
    rewards: np.ndarray, values: np.ndarray, gamma: float, gae_lambda: float
) -> None:
    advantages = gae(jnp.asarray(rewards), jnp.asarray(values), gamma=gamma, gae_lambda=gae_lambda)
    later = values[T]
    for t in reversed(range(T)):
        later = rewards[t] + gamma * ((1 - gae_lambda) * values[t + 1] + gae_lambda * later)
        assert float(advantages[t] + values[t]) == pytest.approx(later, rel=1e-4, abs=1e-4)


@given(rewards_arrays, values_arrays, hnp.arrays(np.bool_, T), shares, shares)
def test_user_tokens_are_cut_out(
    rewards: np.ndarray, values: np.ndarray, mask: np.ndarray, gamma: float, gae_lambda: float
) -> None:
    options = {"gamma": gamma, "gae_lambda": gae_lambda}
    got = multi_turn(jnp.asarray(rewards), jnp.asarray(values), jnp.asarray(mask), **options)
    n = mask.sum()
    # Zeros behind the last own token change nothing once the bootstrap value stands right after it.
    own_rewards, own_values = np.zeros(T, np.float32), np.zeros(T + 1, np.float32)
    own_rewards[T - n :], own_values[T - n :] = rewards[mask], np.append(values[:-1][mask], values[-1])
    single = gae(jnp.asarray(own_rewards), jnp.asarray(own_values), **options)
    np.testing.assert_allclose(got[mask], single[T - n :], **close)
    np.testing.assert_array_equal(got[~mask], 0)


@given(rewards_arrays, values_arrays, shares, shares)
def test_padding_on_either_side(rewards: np.ndarray, values: np.ndarray, gamma: float, gae_lambda: float) -> None:
    options = {"gamma": gamma, "gae_lambda": gae_lambda}
    values[-1] = 0  # a finished response
    rewards[4:] = values[4:] = 0
    short = gae(jnp.asarray(rewards[:4]), jnp.asarray(values[:5]), **options)
    np.testing.assert_allclose(gae(jnp.asarray(rewards), jnp.asarray(values), **options)[:4], short, **close)
    everything = multi_turn(jnp.asarray(rewards), jnp.asarray(values), jnp.ones(T, bool), **options)
    np.testing.assert_allclose(everything[:4], short, **close)
    left = multi_turn(
        jnp.concatenate([jnp.full(2, 9.0), jnp.asarray(rewards[:4])]),
        jnp.concatenate([jnp.full(2, 9.0), jnp.asarray(values[:4]), jnp.zeros(1)]),
        jnp.arange(T) >= 2,
        **options,
    )
    np.testing.assert_allclose(left[2:], short, **close)


def test_bootstrap_of_a_cut_response() -> None:
    """A critic that is right leaves no advantage: cutting a response there must not look like an end."""
    values = jnp.full(4, 2.0)
    np.testing.assert_array_equal(gae(jnp.zeros(3), values, gamma=1.0, gae_lambda=0.95), 0)
    mask = jnp.array([True, False, False])
    np.testing.assert_array_equal(multi_turn(jnp.zeros(3), values, mask, gamma=1.0, gae_lambda=0.95), 0)
    np.testing.assert_array_equal(multi_turn(jnp.zeros(3), values, mask & False, gamma=1.0, gae_lambda=0.95), 0)
    # One discount over the user's turn, not three.
    got = multi_turn(jnp.zeros(3), values.at[0].set(0.0), mask, gamma=0.5, gae_lambda=1.0)
    np.testing.assert_allclose(got, [1, 0, 0])


def test_user_tokens_are_never_read(assert_padding_unread) -> None:
    mask = jnp.array([True, False, True, True, False, False])
    weights = jnp.arange(1.0, 7.0)

    def advantages(rewards: jax.Array, values: jax.Array) -> jax.Array:
        values = jnp.append(values, 0.7)
        return multi_turn(rewards, values, mask, gamma=0.9, gae_lambda=0.8) * weights

    assert_padding_unread(advantages, mask, jnp.arange(6.0), jnp.cos(jnp.arange(6.0)))


def test_gradients(assert_gradients) -> None:
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=3), rng.normal(size=4)
    mask, options = jnp.array([True, False, True]), {"gamma": 0.9, "gae_lambda": 0.8}

    def both(r: jax.Array, v: jax.Array) -> list[jax.Array]:
        return [generalized_advantage_estimation(r, v, **options), multi_turn(r, v, mask, **options)]

    assert_gradients(both, rewards, values)
    # ∂A_t/∂V_t = −1 and ∂A_t/∂V_k = γ(1 − λ)(γλ)^(k−t−1) for k > t: only λ < 1 lets later values in.
    jacobian = jax.jit(jax.jacrev(lambda v: gae(jnp.zeros(3), v, **options)))(jnp.asarray(values, jnp.float32))
    a, b = 0.9 * (1 - 0.8), 0.9 * 0.8
    expected = [[-1, a, a * b, 0.9 * b * b], [0, -1, a, 0.9 * b], [0, 0, -1, 0.9]]
    np.testing.assert_allclose(jacobian, expected, rtol=1e-5)


def test_float32_and_vmap(assert_float32, assert_vmap) -> None:
    rng = np.random.default_rng(1)
    rewards, values = (
        jnp.asarray(rng.normal(size=(3, 5)), jnp.float32),
        jnp.asarray(rng.normal(size=(3, 6)), jnp.float32),
    )
    options = {"gamma": 0.99, "gae_lambda": 0.95}
    mask = jnp.asarray(rng.random((3, 5)) < 0.5)
    assert_float32(lambda r, v: gae(r, v, **options), rewards[0], values[0])
    assert_float32(lambda r, v: multi_turn(r, v, mask[0], **options), rewards[0], values[0])
    assert_vmap(lambda r, v: generalized_advantage_estimation(r, v, **options), rewards, values)
    assert_vmap(lambda r, v, m: multi_turn_generalized_advantage_estimation(r, v, m, **options), rewards, values, mask)


def test_values_are_one_longer() -> None:
    with pytest.raises((AssertionError, TypeError)):
        generalized_advantage_estimation(jnp.zeros(3), jnp.zeros(3), gamma=1.0, gae_lambda=1.0)
    with pytest.raises((AssertionError, TypeError)):
        multi_turn(jnp.zeros(3), jnp.zeros(4), jnp.ones(2, bool), gamma=1.0, gae_lambda=1.0)
