"""Reward-model losses and ranked lists: invariances, missing labels, sums over permutations, gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlhf_jax.equations.preference import bradley_terry_loss, plackett_luce_logprob, regression_loss

vectors = hnp.arrays(np.float32, 4, elements=st.floats(-6, 6, width=16))
CHOSEN, REJECTED = jnp.array([0.3, -1.0, 2.0, 0.9]), jnp.array([1.0, -1.0, 0.5, 3.0])
UTILITIES = jnp.array([0.3, -1.0, 2.0, 0.9])
bradley_terry, regression = jax.jit(bradley_terry_loss), jax.jit(regression_loss)
ranked = jax.jit(jax.value_and_grad(plackett_luce_logprob))


@given(vectors, vectors, st.floats(-20, 20, width=16))
def test_bradley_terry(chosen: np.ndarray, rejected: np.ndarray, shift: float) -> None:
    loss = np.asarray(bradley_terry(jnp.asarray(chosen), jnp.asarray(rejected)))
    np.testing.assert_allclose(loss, np.logaddexp(0, rejected - chosen), rtol=1e-5, atol=1e-6)
    both = jnp.asarray(chosen + np.float32(shift)), jnp.asarray(rejected + np.float32(shift))
    np.testing.assert_allclose(bradley_terry(*both), loss, rtol=1e-3, atol=1e-4)
    swapped = np.asarray(bradley_terry(jnp.asarray(rejected), jnp.asarray(chosen)))
    np.testing.assert_allclose(np.exp(-loss) + np.exp(-swapped), 1, rtol=1e-5)


def test_bradley_terry_extremes() -> None:
    chosen = jnp.array([0.0, 1e4, -1e4])
    value, gradient = jax.jit(jax.value_and_grad(lambda x: bradley_terry_loss(x, jnp.zeros(3)).sum()))(chosen)
    assert value == pytest.approx(1e4 + np.log(2))
    np.testing.assert_allclose(gradient, [-0.5, 0, -1])


def test_regression(assert_padding_unread) -> None:
    mask = jnp.array([True, False, True, True])
    np.testing.assert_allclose(regression(CHOSEN, REJECTED, mask), [0.49, 0, 2.25, 4.41], rtol=1e-5)
    weights = jnp.arange(1.0, 5.0)
    assert_padding_unread(lambda s, y: regression_loss(s, y, mask) * weights, mask, CHOSEN, REJECTED)
    gradient = jax.jit(jax.grad(lambda s: regression_loss(s, REJECTED, mask).sum()))(CHOSEN)
    np.testing.assert_allclose(gradient, 2 * (CHOSEN - REJECTED) * mask, rtol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 4])
def test_lists_are_a_distribution(length: int) -> None:
    rankings = jnp.array(list(itertools.permutations(range(4), length)))
    logprobs = jax.jit(jax.vmap(plackett_luce_logprob, in_axes=(None, 0)))(UTILITIES, rankings)
    assert np.all(np.asarray(logprobs) <= 0)
    assert float(jnp.exp(logprobs).sum()) == pytest.approx(1, rel=1e-5)
    if length == 1:
        np.testing.assert_allclose(logprobs, jax.nn.log_softmax(UTILITIES), rtol=1e-5)


@given(vectors, st.permutations(range(4)), st.floats(-20, 20, width=16))
def test_ranked_list_identities(utilities: np.ndarray, ranking: list[int], shift: float) -> None:
    places, u = jnp.array(ranking), jnp.asarray(utilities)
    total, gradient = ranked(u, places)
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-5)
    assert ranked(u + np.float32(shift), places)[0] == pytest.approx(float(total), abs=1e-3)
    # The last place of a full list is no choice.
    assert ranked(u, places[:3])[0] == pytest.approx(float(total), abs=1e-5)


def test_two_items_are_bradley_terry() -> None:
    for ranking in ([0, 1], [1, 0]):
        chosen, rejected = UTILITIES[ranking[0]], UTILITIES[ranking[1]]
        expected = -bradley_terry(chosen, rejected)
        assert ranked(UTILITIES[:2], jnp.array(ranking))[0] == pytest.approx(float(expected), rel=1e-6)


def test_short_lists() -> None:
    mask = jnp.array([True, True, False, False])
    expected = ranked(UTILITIES, jnp.array([2, 0]))
    for junk in (-1, 0, 3, 99):
        got = ranked(UTILITIES, jnp.array([2, 0, junk, junk]), mask)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), got, expected)
    value, gradient = ranked(UTILITIES, jnp.array([1, 1, 1, 1]), mask & False)
    assert value == 0 and not np.any(gradient)
    with pytest.raises(ValueError, match="a list of 5 cannot be drawn without replacement from 4 items"):
        plackett_luce_logprob(UTILITIES, jnp.arange(5))


def test_gradients(assert_gradients) -> None:
    def outputs(a: jax.Array, b: jax.Array) -> list[jax.Array]:
        mask = jnp.array([True, False, True, True])
        return [bradley_terry_loss(a, b), regression_loss(a, b, mask), plackett_luce_logprob(a, jnp.array([3, 0, 1]))]

    assert_gradients(outputs, np.asarray(CHOSEN), np.asarray(REJECTED))
    gradient = jax.jit(jax.grad(lambda x: bradley_terry_loss(x, REJECTED).sum()))(CHOSEN)
    np.testing.assert_allclose(gradient, -jax.nn.sigmoid(REJECTED - CHOSEN), rtol=1e-5)


def test_float32_and_vmap(assert_float32, assert_vmap) -> None:
    assert_float32(bradley_terry_loss, CHOSEN + 100, REJECTED + 100)
    assert_float32(lambda a, b: regression_loss(a, b, jnp.ones(4, bool)), CHOSEN, REJECTED)
    assert_float32(lambda u: plackett_luce_logprob(u, jnp.array([2, 1])), CHOSEN)
    assert_vmap(plackett_luce_logprob, jnp.stack([CHOSEN, REJECTED]), jnp.array([[0, 1], [3, 2]]))
    with pytest.raises((AssertionError, TypeError)):
        bradley_terry_loss(CHOSEN, REJECTED[:1])
