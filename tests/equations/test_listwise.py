"""Losses of a list: loops over items, closed forms, invariances, and gradients, among them the one that is not there."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlhf_jax.equations.listwise import attention_rank_loss, listnet_loss, pointwise_loss, softmax_loss

N = 5
LOSSES = {
    "softmax": softmax_loss,
    "listnet": listnet_loss,
    "attention_rank": attention_rank_loss,
    "pointwise": pointwise_loss,
}
values = {name: jax.jit(jax.value_and_grad(loss)) for name, loss in LOSSES.items()}
score_lists = hnp.arrays(np.float32, N, elements=st.floats(-6, 6, width=16))
label_lists = hnp.arrays(np.float32, N, elements=st.sampled_from([0.0, 1.0]))
grades = hnp.arrays(np.float32, N, elements=st.sampled_from([0.0, 0.25, 1.0]))
SCORES, LABELS = np.array([0.5, -1.0, 2.0, 1.5, 0.75], np.float32), np.array([0.0, 1.0, 1.0, 0.0, 0.0], np.float32)


def exponentials(x: np.ndarray, *, positive_only: bool = False) -> list[float]:
    """Shares of a list, by loops."""
    weights = [math.exp(v) if v > 0 or not positive_only else 0.0 for v in x.tolist()]
    total = sum(weights)
    return [weight / total if total else 0.0 for weight in weights]


def slow(name: str, scores: np.ndarray, labels: np.ndarray) -> float:
    """The formula of the docstring in float64, item by item."""
    y, total = labels.tolist(), 0.0
    if name == "softmax":
        given = exponentials(scores)
        for label, share in zip(y, given, strict=True):
            total -= label / sum(y) * math.log(share) if sum(y) else 0.0
    elif name == "listnet":
        for wanted, share in zip(exponentials(labels), exponentials(scores), strict=True):
            total -= wanted * math.log(share)
    elif name == "attention_rank":
        if sum(y) == 0:
            return 0.0
        both = exponentials(labels, positive_only=True), exponentials(scores, positive_only=True)
        for wanted, share in zip(*both, strict=True):
            share = min(max(share, 1e-6), 1 - 1e-6)
            total -= wanted * math.log(share) + (1 - wanted) * math.log(1 - share)
    else:
        for label, score in zip(y, scores.tolist(), strict=True):
            total += label * math.log1p(math.exp(-score)) + (1 - label) * math.log1p(math.exp(score))
        total /= N
    return total


@pytest.mark.parametrize("name", LOSSES)
def test_against_loops(name: str) -> None:
    @given(score_lists, grades)
    def check(scores: np.ndarray, labels: np.ndarray) -> None:
        value, _ = values[name](jnp.asarray(scores, jnp.float64), jnp.asarray(labels, jnp.float64))
        assert float(value) == pytest.approx(slow(name, scores, labels), rel=1e-9, abs=1e-9)

    with jax.enable_x64(True):
        check()


@given(score_lists, label_lists, st.permutations(range(N)), st.floats(-20, 20, width=16))
def test_invariances(scores: np.ndarray, labels: np.ndarray, order: list[int], shift: float) -> None:
    """No loss asks where in the list an item stands; shares of exponentials do not see what is added to all scores."""
    places = np.array(order)
    for name, function in values.items():
        value, gradient = function(jnp.asarray(scores), jnp.asarray(labels))
        moved, moved_gradient = function(jnp.asarray(scores[places]), jnp.asarray(labels[places]))
        np.testing.assert_allclose(moved, value, rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(moved_gradient, np.asarray(gradient)[places], rtol=1e-4, atol=1e-6, err_msg=name)
        assert float(value) >= 0
    for name in ("softmax", "listnet"):
        value, gradient = values[name](jnp.asarray(scores), jnp.asarray(labels))
        shifted, _ = values[name](jnp.asarray(scores + np.float32(shift)), jnp.asarray(labels))
        assert float(shifted) == pytest.approx(float(value), rel=1e-3, abs=1e-3)
        assert float(gradient.sum()) == pytest.approx(0, abs=1e-5)


@given(score_lists, label_lists)
def test_closed_gradients(scores: np.ndarray, labels: np.ndarray) -> None:
    share = np.array(exponentials(scores))
    wanted = labels / labels.sum() if labels.sum() else labels
    _, gradient = values["softmax"](jnp.asarray(scores), jnp.asarray(labels))
    np.testing.assert_allclose(gradient, (share - wanted) * (labels.sum() > 0), atol=1e-5)
    _, gradient = values["listnet"](jnp.asarray(scores), jnp.asarray(labels))
    np.testing.assert_allclose(gradient, share - np.array(exponentials(labels)), atol=1e-5)
    _, gradient = values["pointwise"](jnp.asarray(scores), jnp.asarray(labels))
    np.testing.assert_allclose(gradient, (1 / (1 + np.exp(-scores)) - labels) / N, atol=1e-5)


def test_softmax_of_one_positive_is_its_surprise_and_bounds_ndcg() -> None:
    for place in range(N):
        labels = np.eye(N, dtype=np.float32)[place]
        value, _ = values["softmax"](jnp.asarray(SCORES), jnp.asarray(labels))
        assert float(value) == pytest.approx(math.log(sum(math.exp(s - SCORES[place]) for s in SCORES)), rel=1e-5)
        rank = 1 + int((SCORES > SCORES[place]).sum())
        assert float(value) >= -math.log(1 / math.log2(1 + rank)) - 1e-6
    twice, _ = values["softmax"](jnp.asarray(SCORES), jnp.asarray(2 * LABELS))
    assert float(twice) == pytest.approx(float(values["softmax"](jnp.asarray(SCORES), jnp.asarray(LABELS))[0]))


def test_listnet_is_least_where_scores_are_labels() -> None:
    labels = jnp.array([0.0, 1.0, 2.0, 0.5, 0.0])
    value, gradient = values["listnet"](labels + 3, labels)
    share = np.array(exponentials(np.asarray(labels)))
    assert float(value) == pytest.approx(float(-(share * np.log(share)).sum()), rel=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    # Without a positive label it asks for equal scores, where the others ask for nothing or for low ones.
    assert float(values["listnet"](jnp.zeros(N), jnp.zeros(N))[0]) == pytest.approx(math.log(N), rel=1e-5)
    assert np.abs(values["listnet"](jnp.asarray(SCORES), jnp.zeros(N))[1]).max() > 0.1


def test_a_list_without_positives_says_nothing() -> None:
    for name in ("softmax", "attention_rank"):
        value, gradient = values[name](jnp.asarray(SCORES), jnp.zeros(N))
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)


def test_attention_rank_gives_items_of_no_positive_score_no_gradient() -> None:
    """The trap of the reference code: a liked item that starts below 0 stays there."""
    function = values["attention_rank"]
    scores = jnp.array([0.5, -1.0, 2.0, 0.0, -1e-3])
    _, gradient = function(scores, jnp.array([0.0, 1.0, 0.0, 1.0, 1.0]))
    np.testing.assert_array_equal(np.asarray(gradient)[[1, 3, 4]], 0)
    assert np.abs(np.asarray(gradient)[[0, 2]]).min() > 0.01
    # With all scores at most 0 nothing is learnt at all.
    value, gradient = function(-jnp.abs(scores), jnp.asarray(LABELS))
    np.testing.assert_array_equal(gradient, 0)
    assert float(value) > 10
    # The same list under the default: what is liked is pulled up.
    _, gradient = values["softmax"](-jnp.abs(scores), jnp.asarray(LABELS))
    assert (np.asarray(gradient)[LABELS > 0] < -0.1).all() and (np.asarray(gradient)[LABELS == 0] > 0).all()


def test_attention_rank_closed_form() -> None:
    # Two items that take part with shares ¾ and ¼, one of them wanted.
    scores = jnp.array([1.0 + math.log(3), 1.0, -2.0])
    value, gradient = jax.jit(jax.value_and_grad(attention_rank_loss))(scores, jnp.array([1.0, 0.0, 0.0]))
    # The third item's share is 0, lifted to 1e-6.
    assert float(value) == pytest.approx(-2 * math.log(0.75), abs=1e-5)
    np.testing.assert_allclose(gradient, [-0.5, 0.5, 0], atol=1e-5)
    # Nobody takes part: the wanted item's share is 1e-6.
    value, _ = jax.jit(jax.value_and_grad(attention_rank_loss))(jnp.zeros(3), jnp.array([1.0, 0.0, 0.0]))
    assert float(value) == pytest.approx(-math.log(1e-6), abs=1e-4)
    # Labels take part by eʸ: 2 against 1 wants e/(e + 1).
    wanted = math.e / (math.e + 1)
    value, _ = jax.jit(jax.value_and_grad(attention_rank_loss))(jnp.array([1.0, 1.0]), jnp.array([2.0, 1.0]))
    assert float(value) == pytest.approx(-2 * (wanted + (1 - wanted)) * math.log(0.5), rel=1e-5)


def test_attention_rank_of_large_scores_is_that_of_their_differences() -> None:
    labels = jnp.array([0.0, 1.0, 1.0, 0.0, 0.0])
    small, gradient = values["attention_rank"](jnp.array([3.0, 2.0, 4.0, 1.0, -1.0]), labels)
    for add in (0.5, 200.0, 1e4):
        large, same = values["attention_rank"](jnp.array([3.0 + add, 2.0 + add, 4.0 + add, 1.0 + add, -1.0]), labels)
        assert float(large) == pytest.approx(float(small), rel=1e-4)
        np.testing.assert_allclose(same, gradient, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_finite_differences(name: str, assert_gradients) -> None:
    assert_gradients(lambda scores: LOSSES[name](scores, jnp.asarray(LABELS, scores.dtype)), SCORES)


@pytest.mark.parametrize("name", LOSSES)
def test_types_batches_and_shapes(name: str, assert_float32, assert_vmap) -> None:
    loss = LOSSES[name]
    # Thirds and large scores would be rounded in bfloat16.
    assert_float32(loss, jnp.asarray(SCORES + 100), jnp.array([1.0, 1.0, 0.0, 1.0, 0.0]))
    batch = jnp.stack([jnp.asarray(SCORES), jnp.asarray(-SCORES), jnp.zeros(N)])
    assert_vmap(loss, batch, jnp.stack([jnp.asarray(LABELS), jnp.asarray(1 - LABELS), jnp.zeros(N)]))
    with pytest.raises((AssertionError, TypeError)):
        loss(jnp.zeros(3), jnp.zeros(1))
