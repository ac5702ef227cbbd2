"""A reward model of items: against least squares solved another way, and on reactions whose worth is known."""

import numpy as np
import pytest

from rlhf_jax.learners import item_reward
from rlhf_jax.learners.item_reward import ItemReward, Reactions

N, F, I = 60, 3, 5


def random_turns(seed: int = 0, n: int = N) -> Reactions:
    draw = np.random.default_rng(seed)
    listed = [draw.permutation(I)[: int(draw.integers(0, 4))] for _ in range(n)]
    known = draw.normal(size=(n, F, I))
    shares = item_reward.shares_of(listed, I)
    means = np.stack([row[:, own].mean(1) if len(own) else np.zeros(F) for row, own in zip(known, listed, strict=True)])
    extras = np.stack([[float(len(own) > 0), draw.random()] for own in listed])
    return Reactions(means, shares, extras, draw.normal(size=n))


def test_it_is_the_minimum_that_least_squares_finds() -> None:
    """Ridge is least squares with a row more for each number that is held: √λ·w ≈ 0."""
    turns, ridge, held = random_turns(), 2.0, 7.0
    found = item_reward.fit(turns, ridge=ridge, standing_ridge=held)
    design = np.concatenate([turns.known, turns.shares, turns.extras, np.ones((N, 1))], axis=1)
    costs = np.sqrt([*[ridge] * F, *[held] * I, *[1e-6] * 2, 0.0])
    stacked = np.concatenate([design, np.diag(costs)])
    expected, *_ = np.linalg.lstsq(stacked, np.concatenate([turns.labels, np.zeros(len(costs))]), rcond=None)
    np.testing.assert_allclose([*found.weights, *found.standing, *found.extras, found.intercept], expected, atol=1e-8)
    np.testing.assert_allclose(found.of_turns(turns), design @ expected, atol=1e-8)


def test_what_reactions_are_worth_is_found_again() -> None:
    truth = ItemReward(np.array([1.5, -2.0, 0.0]), np.array([0.5, -0.5, 0.0, 1.0, -1.0]), np.array([0.3, -0.2]), 0.7)
    turns = random_turns(1, 4000)
    turns = turns._replace(labels=truth.of_turns(turns) + 0.1 * np.random.default_rng(2).normal(size=4000))
    found = item_reward.fit(turns, ridge=1e-3, standing_ridge=1e-3)
    np.testing.assert_allclose(found.weights, truth.weights, atol=0.02)
    # Standings of all items and `suggests` say the same but for a constant.
    np.testing.assert_allclose(found.standing - found.standing.mean(), truth.standing, atol=0.03)
    assert found.extras[1] == pytest.approx(-0.2, abs=0.03)


def test_a_standing_is_halved_after_as_many_reactions_as_its_ridge() -> None:
    n = 40
    shares = item_reward.shares_of([np.array([row % 2]) for row in range(2 * n)], 2)
    labels = np.where(np.arange(2 * n) % 2 == 0, 1.0, -1.0)
    turns = Reactions(np.zeros((2 * n, 1)), shares, np.zeros((2 * n, 0)), labels)
    found = item_reward.fit(turns, ridge=1.0, standing_ridge=float(n))
    np.testing.assert_allclose(found.standing, [0.5, -0.5], atol=1e-9)


def test_items_and_turns_agree() -> None:
    """A turn that lists one item is worth that item's R and what else it has."""
    draw = np.random.default_rng(3)
    reward = ItemReward(draw.normal(size=F), draw.normal(size=I), np.array([0.4]), 0.1)
    known = draw.normal(size=(1, F, I))
    for item in range(I):
        turn = Reactions(known[:, :, item], item_reward.shares_of([np.array([item])], I), np.ones((1, 1)), np.zeros(1))
        expected = 0.1 + 0.4 + known[0, :, item] @ reward.weights + reward.standing[item]
        assert reward.of_turns(turn)[0] == pytest.approx(expected)
        assert reward.of_items(known)[0, item] == pytest.approx(expected - 0.5)


def test_more_turns_are_one_after_the_other() -> None:
    one, two = random_turns(4), random_turns(5)
    both = one.plus(two)
    assert both.n == 2 * N
    np.testing.assert_array_equal(both.shares[N:], two.shares)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"labels": np.full(N, np.nan)}, "not finite"),
        (
            {"known": np.zeros((0, F)), "shares": np.zeros((0, I)), "extras": np.zeros((0, 2)), "labels": np.zeros(0)},
            "no labelled",
        ),
    ],
)
def test_what_cannot_be_fitted_is_refused(change: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        item_reward.fit(random_turns()._replace(**change), ridge=1.0, standing_ridge=1.0)
    with pytest.raises(ValueError, match="ridge is 0.0"):
        item_reward.fit(random_turns(), ridge=0.0, standing_ridge=1.0)
