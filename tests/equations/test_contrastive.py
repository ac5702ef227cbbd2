"""InfoNCE: against NumPy, at closed forms, with masks, several positives and the correction for draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlhf_jax.equations.contrastive import corrected_scores, first_of_each, info_nce

SCORES = np.array([0.3, -1.0, 2.0, 0.9, -0.2])
WEIGHTS = np.array([0.0, 0.7, 0.0, 0.3, 0.0])
MASK = np.array([True, True, True, True, False])
loss = jax.jit(info_nce)
rows = hnp.arrays(np.float32, 5, elements=st.floats(-9, 9, width=16))
kinds = hnp.arrays(np.int8, 5, elements=st.integers(0, 2))
masks = hnp.arrays(np.bool_, 5)


def by_hand(scores: np.ndarray, weights: np.ndarray, mask: np.ndarray) -> float:
    """The definition, term by term in float64."""
    total = 0.0
    negatives = [float(s) for s, w, m in zip(scores, weights, mask, strict=True) if m and w == 0]
    for s, w, m in zip(scores, weights, mask, strict=True):
        if m and w > 0:
            total -= float(w) * np.log(np.exp(float(s)) / (np.exp(float(s)) + sum(map(np.exp, negatives))))
    return total


@given(rows, kinds, masks)
def test_equals_the_definition(scores: np.ndarray, kinds: np.ndarray, mask: np.ndarray) -> None:
    weights = (kinds / 4).astype(np.float32)
    np.testing.assert_allclose(loss(scores, weights, mask), by_hand(scores, weights, mask), rtol=1e-4, atol=1e-5)


def test_closed_forms() -> None:
    equal, one = jnp.zeros(8), jnp.zeros(8).at[3].set(1.0)
    assert loss(equal, one) == pytest.approx(np.log(8))
    assert loss(equal + 5.0, one) == pytest.approx(np.log(8)), "a constant changes nothing"
    # Two positives among eight: each against six negatives, never against the other.
    assert loss(equal, one.at[0].set(1.0)) == pytest.approx(2 * np.log(7))
    assert loss(equal.at[0].set(1e4), one.at[0].set(1.0)) == pytest.approx(np.log(7))
    # With one positive and no mask it is cross-entropy.
    np.testing.assert_allclose(
        loss(SCORES, jnp.eye(5)[2]), -jax.nn.log_softmax(jnp.asarray(SCORES, jnp.float32))[2], rtol=1e-5
    )
    assert loss(SCORES, jnp.zeros(5)) == 0 and loss(SCORES, jnp.ones(5)) == 0
    assert loss(SCORES, WEIGHTS, jnp.zeros(5, bool)) == 0
    assert loss(jnp.zeros(2), jnp.array([2.0, 0.0])) == pytest.approx(2 * np.log(2))


def test_gradients_pull_the_positive_and_push_the_negatives(assert_gradients) -> None:
    assert_gradients(lambda s: info_nce(s, jnp.asarray(WEIGHTS), jnp.asarray(MASK)), SCORES)
    slope = np.asarray(jax.jit(jax.grad(info_nce))(SCORES, WEIGHTS, MASK))
    assert (slope[[1, 3]] < 0).all() and (slope[[0, 2]] > 0).all() and slope[4] == 0
    assert slope.sum() == pytest.approx(0, abs=1e-6)
    one = np.asarray(jax.jit(jax.grad(info_nce))(SCORES, jnp.eye(5)[1]))
    softmax = np.exp(SCORES) / np.exp(SCORES).sum()
    np.testing.assert_allclose(one, softmax - np.eye(5)[1], atol=1e-6)


def test_what_is_masked_is_never_read(assert_padding_unread) -> None:
    mask = jnp.asarray(MASK)
    assert_padding_unread(lambda s: info_nce(s, jnp.asarray(WEIGHTS), mask), mask, jnp.asarray(SCORES))


def test_float32_and_vmap(assert_float32, assert_vmap) -> None:
    weights = jnp.asarray(WEIGHTS)
    assert_float32(lambda s: info_nce(s, weights), jnp.asarray(SCORES))
    assert_float32(lambda s: corrected_scores(s, s[::-1]), jnp.asarray(SCORES))
    batch = jnp.asarray(np.stack([SCORES, SCORES[::-1], SCORES**2]))
    assert_vmap(info_nce, batch, jnp.asarray(np.stack([WEIGHTS, WEIGHTS[::-1], 1 - np.eye(5)[0]])))


def test_corrected_draws_teach_the_softmax_over_everything() -> None:
    """The mean gradient over uneven draws points where that of the full softmax does; uncorrected it does not."""
    logits = jnp.array([1.0, 0.0, 0.5, -0.5, 0.2])
    often = np.array([0.4, 0.3, 0.1, 0.1, 0.1])
    draws = jnp.asarray(np.random.default_rng(0).choice(5, (200, 100), p=often))

    def sampled(scores: jax.Array, drawn: jax.Array, corrected: bool) -> jax.Array:
        # The target is item 4; draws of it are no negatives.
        found = jnp.concatenate([scores[4:], scores[drawn]])
        counted = jnp.concatenate([jnp.ones(1, bool), drawn != 4])
        if corrected:
            found = corrected_scores(found, jnp.log(100 * jnp.asarray(often))[jnp.append(4, drawn)].at[0].set(0.0))
        return info_nce(found, jnp.zeros(101).at[0].set(1.0), counted)

    full = np.asarray(jax.grad(lambda s: -jax.nn.log_softmax(s)[4])(logits))
    means = {
        corrected: np.asarray(
            jax.jit(
                lambda c=corrected: jax.vmap(jax.grad(lambda s, d: sampled(s, d, c)), (None, 0))(logits, draws).mean(0)
            )()
        )
        for corrected in (True, False)
    }
    np.testing.assert_allclose(means[True], full, atol=0.02)
    assert np.abs(means[False] - full).max() > 0.1


def test_a_candidate_that_is_drawn_twice_counts_once() -> None:
    drawn = np.array([7, 2, 7, 7, 2, 9])
    expected = [candidate not in drawn[:place] for place, candidate in enumerate(drawn)]
    assert jax.jit(first_of_each)(jnp.asarray(drawn)).tolist() == expected
    assert first_of_each(jnp.array([4])).tolist() == [True]
