"""Per-token rewards: the sum identity, where the score is paid, padding, kinds of numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlhf_jax.equations.rewards import missing_eos_score, token_rewards

T = 5
KL = jnp.array([0.5, -0.2, 0.1, 0.3, -0.7])
rewards_of = jax.jit(token_rewards)
judged = jax.jit(missing_eos_score, static_argnames="mode")


@given(
    st.floats(-5, 5, width=16),
    hnp.arrays(np.float32, T, elements=st.floats(-3, 3, width=16)),
    hnp.arrays(np.bool_, T),
    st.floats(0, 1, width=16),
)
def test_sum_and_place(score: float, kl: np.ndarray, mask: np.ndarray, kl_coef: float) -> None:
    rewards = np.asarray(rewards_of(jnp.float32(score), jnp.asarray(kl), jnp.asarray(mask), kl_coef=kl_coef))
    assert np.all(rewards[~mask] == 0)
    if not mask.any():
        return
    assert rewards.sum() == pytest.approx(score - kl_coef * kl[mask].sum(), abs=1e-4)
    last = np.flatnonzero(mask)[-1]
    others = mask & (np.arange(T) != last)
    np.testing.assert_allclose(rewards[others], -kl_coef * kl[others], rtol=1e-6)
    assert rewards[last] == pytest.approx(score - kl_coef * kl[last], abs=1e-5)


def test_padding_is_never_read(assert_padding_unread) -> None:
    mask = jnp.array([True, True, True, False, False])
    weights = jnp.arange(1.0, 6.0)
    assert_padding_unread(lambda kl: token_rewards(jnp.float32(2), kl, mask, kl_coef=0.1) * weights, mask, KL)


def test_scores_keep_their_fraction() -> None:
    mask = jnp.ones(T, bool)
    assert rewards_of(jnp.int32(2), KL, mask, kl_coef=0.1).tolist() == pytest.approx(
        [-0.05, 0.02, -0.01, -0.03, 2.07], abs=1e-6
    )
    narrow = rewards_of(jnp.float32(0.73), jnp.zeros(T, jnp.bfloat16), mask, kl_coef=0.1)
    assert narrow.dtype == jnp.float32 and float(narrow.sum()) == pytest.approx(0.73, abs=1e-6)


def test_missing_eos() -> None:
    score, finished = jnp.array([0.4, 0.4, -3.0]), jnp.array([True, False, False])
    np.testing.assert_allclose(judged(score, finished, penalty=1.5), [0.4, -1.1, -4.5], rtol=1e-6)
    replaced = judged(score, finished, penalty=1.5, mode="replace")
    np.testing.assert_allclose(replaced, [0.4, -1.5, -1.5], rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda s: missing_eos_score(s, finished, penalty=1.5).sum()))(score)
    np.testing.assert_array_equal(gradient, 1)
    gradient = jax.jit(jax.grad(lambda s: missing_eos_score(s, finished, penalty=1.5, mode="replace").sum()))(score)
    np.testing.assert_array_equal(gradient, [1, 0, 0])
    with pytest.raises((ValueError, TypeError)):
        missing_eos_score(score, finished, penalty=1.5, mode="ignore")


def test_gradients(assert_gradients) -> None:
    mask = jnp.array([True, True, False, True, False])
    assert_gradients(lambda s, kl: token_rewards(s, kl, mask, kl_coef=0.3), np.array(0.7), np.asarray(KL))


def test_float32_and_vmap(assert_float32, assert_vmap) -> None:
    mask = jnp.arange(T) < 3
    assert_float32(lambda s, kl: token_rewards(s, kl, mask, kl_coef=0.3), jnp.float32(0.77), KL)
    assert_float32(lambda s: missing_eos_score(s, mask, penalty=0.1), KL)
    masks = jnp.stack([mask, ~mask, mask & False])
    assert_vmap(lambda s, kl, m: token_rewards(s, kl, m, kl_coef=0.3), KL[:3], jnp.stack([KL, -KL, KL**2]), masks)
    with pytest.raises((AssertionError, TypeError)):
        token_rewards(jnp.float32(1), KL, mask[:3], kl_coef=0.1)
