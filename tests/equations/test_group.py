"""Group advantages: sums, scale, flat groups, the leave-one-out baseline."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlhf_jax.equations.group import (
    advantages_by_place,
    group_advantages,
    is_flat_group,
    leave_one_out_advantages,
    settled_advantages,
    turn_advantages,
)

groups = hnp.arrays(np.float32, 4, elements=st.floats(-9, 9, width=16))
SCORES = jnp.array([0.3, -1.0, 2.0, 0.9])
grpo, rloo = jax.jit(group_advantages, static_argnames="epsilon"), jax.jit(leave_one_out_advantages)


@given(groups, st.floats(0.5, 4, width=16), st.floats(-4, 4, width=16))
def test_identities(scores: np.ndarray, scale: float, shift: float) -> None:
    advantages, others = np.asarray(grpo(jnp.asarray(scores))), np.asarray(rloo(jnp.asarray(scores)))
    assert advantages.sum() == pytest.approx(0, abs=1e-4) and others.sum() == pytest.approx(0, abs=1e-4)
    np.testing.assert_allclose(others, [s - np.delete(scores, i).mean() for i, s in enumerate(scores)], atol=1e-4)
    moved = jnp.asarray(np.float32(scale) * scores + np.float32(shift))
    np.testing.assert_allclose(rloo(moved), np.float32(scale) * others, atol=1e-3)
    if scores.std() > 0.1:
        assert (advantages**2).mean() == pytest.approx(1, abs=1e-3)
        np.testing.assert_allclose(grpo(moved), advantages, atol=1e-3)


@pytest.mark.parametrize("score", [0.0, 0.1, -7.3, 1e4])
def test_flat_groups_teach_nothing(score: float) -> None:
    flat = jnp.full(3, score, jnp.float32)  # three times 0.1 do not average to 0.1 in float32
    assert is_flat_group(flat)
    np.testing.assert_array_equal(grpo(flat), 0)
    assert np.all(np.isfinite(jax.jit(jax.grad(lambda s: (group_advantages(s) * s).sum()))(flat)))
    assert not is_flat_group(SCORES)
    assert is_flat_group(jnp.ones(1)) and grpo(jnp.ones(1)) == 0


def test_epsilon_bounds_nearly_equal_groups() -> None:
    np.testing.assert_allclose(grpo(jnp.array([0.0, 2.0]), epsilon=1.0), [-0.5, 0.5])
    np.testing.assert_allclose(grpo(jnp.array([0.0, 2e-6])), [-0.5, 0.5], rtol=1e-5)


def test_gradients(assert_gradients) -> None:
    assert_gradients(lambda s: [group_advantages(s), leave_one_out_advantages(s)], np.asarray(SCORES))
    # The baseline of a response must not depend on its own score.
    jacobian = jax.jit(jax.jacrev(leave_one_out_advantages))(SCORES)
    np.testing.assert_allclose(jacobian, np.eye(4) - (1 - np.eye(4)) / 3, atol=1e-6)


def test_float32_and_vmap(assert_float32, assert_vmap) -> None:
    for function in (group_advantages, leave_one_out_advantages):
        assert_float32(function, SCORES)
        assert_vmap(function, jnp.stack([SCORES, SCORES**2, jnp.ones(4)]))
    with pytest.raises(ValueError, match="at least 2 responses per prompt, got 1"):
        leave_one_out_advantages(jnp.ones(1))
    np.testing.assert_allclose(rloo(jnp.array([1.0, 3.0])), [-2, 2])


@pytest.mark.parametrize("scaled", [True, False])
def test_a_place_is_compared_with_those_that_still_run(scaled: bool) -> None:
    returns = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    lengths = [6, 3, 5, 4]
    mask = np.arange(6)[None] < np.array(lengths)[:, None]
    returns[:, 1] = 0.1  # flat; four times 0.1 do not average to 0.1
    returns[~mask] = np.nan
    expected = np.zeros((4, 6))
    for t in range(6):
        running = [i for i in range(4) if t < lengths[i]]
        mean = sum(float(returns[i, t]) for i in running) / len(running)
        std = (sum((float(returns[i, t]) - mean) ** 2 for i in running) / len(running)) ** 0.5
        for i in running:
            if t != 1 and len(running) > 1:
                expected[i, t] = (float(returns[i, t]) - mean) / (std + 1e-6 if scaled else 1)
    found = jax.jit(functools.partial(advantages_by_place, scaled=scaled))(jnp.asarray(returns), jnp.asarray(mask))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(found[:, 1], 0)


def test_places_that_all_reach_have_the_advantages_of_whole_responses() -> None:
    found = advantages_by_place(SCORES[:, None], jnp.ones((4, 1), bool))
    np.testing.assert_allclose(found[:, 0], grpo(SCORES), rtol=1e-6)


TURNS = [4, 2, 3, 4]
"""Of four conversations of at most five turns; the fifth turn nobody has."""
RUNNING = np.arange(5)[None] < np.array(TURNS)[:, None]
WEIGHTS = np.array([1.0, 0.5, 2.0])
credit = jax.jit(turn_advantages, static_argnames=("gamma", "decoupled"))


def turn_rewards() -> np.ndarray:
    """Three components of unlike size; the second is flat at the first turn, and after the end nothing is a number."""
    rewards = np.random.default_rng(1).normal(size=(4, 5, 3)) * [1.0, 10.0, 0.1]
    rewards[:, 0, 1] = 0.1
    rewards[~RUNNING] = np.nan
    return rewards.astype(np.float32)


def turn_by_turn(rewards: np.ndarray, gamma: float, decoupled: bool) -> np.ndarray:
    """The definition in loops, float64."""
    paid = np.zeros((4, 5))
    for k in range(5):
        there = [g for g in range(4) if k < TURNS[g]]
        for c in range(3):
            values = {g: float(rewards[g, k, c]) for g in there}
            mean = sum(values.values()) / max(len(there), 1)
            std = (sum((value - mean) ** 2 for value in values.values()) / max(len(there), 1)) ** 0.5
            for g, value in values.items():
                flat = len(set(values.values())) == 1
                paid[g, k] += WEIGHTS[c] * ((0 if flat else (value - mean) / (std + 1e-6)) if decoupled else value)
    to_go = [[sum(gamma ** (j - k) * paid[g, j] for j in range(k, TURNS[g])) for k in range(5)] for g in range(4)]
    out = np.zeros((4, 5))
    for k in range(5):
        there = [g for g in range(4) if k < TURNS[g]]
        for g in there:
            out[g, k] = to_go[g][k] - sum(to_go[i][k] for i in there) / len(there)
    return out


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("gamma", [1.0, 0.7, 0.0])
def test_turns_have_the_advantages_of_the_definition(gamma: float, decoupled: bool) -> None:
    rewards = turn_rewards()
    found = credit(rewards, RUNNING, WEIGHTS, gamma=gamma, decoupled=decoupled)
    np.testing.assert_allclose(found, turn_by_turn(rewards, gamma, decoupled), atol=2e-5)
    np.testing.assert_array_equal(np.asarray(found)[~RUNNING], 0)


def test_a_components_unit_does_not_count_unless_rewards_are_summed_as_they_are() -> None:
    rewards = turn_rewards()
    other = rewards * np.array([1000.0, 1.0, 1.0], np.float32)
    np.testing.assert_allclose(credit(rewards, RUNNING, WEIGHTS), credit(other, RUNNING, WEIGHTS), atol=1e-3)
    plain = [credit(one, RUNNING, WEIGHTS, decoupled=False) for one in (rewards, other)]
    assert np.abs(np.asarray(plain[0]) - np.asarray(plain[1])).max() > 100


def test_one_turn_is_a_response_and_flat_turns_teach_nothing() -> None:
    one = jnp.ones((4, 1), bool)
    np.testing.assert_allclose(credit(SCORES[:, None, None], one, jnp.ones(1))[:, 0], grpo(SCORES), atol=1e-6)
    flat = np.full((4, 5, 3), 0.1, np.float32)
    np.testing.assert_array_equal(credit(flat, RUNNING, WEIGHTS), 0)
    # What was paid before a turn is no merit of it.
    early = np.zeros((4, 5, 1), np.float32)
    early[:, 0, 0] = [1, 2, 3, 4]
    found = np.asarray(credit(early, RUNNING, np.ones(1), decoupled=False))
    np.testing.assert_allclose(found[:, 0], [-1.5, -0.5, 0.5, 1.5])
    np.testing.assert_array_equal(found[:, 1:], 0)
    # Nor does an ended conversation stand at 0 among those that go on.
    late = np.zeros((4, 5, 1), np.float32)
    late[:, 3, 0] = [5, 9, 9, 7]
    np.testing.assert_allclose(credit(late, RUNNING, np.ones(1), decoupled=False)[:, 3], [-1, 0, 0, 1])


def test_turns_in_float32_and_by_vmap(assert_float32, assert_vmap) -> None:
    rewards, running = jnp.asarray(np.nan_to_num(turn_rewards())), jnp.asarray(RUNNING)
    assert_float32(lambda r: turn_advantages(r, running, jnp.asarray(WEIGHTS, jnp.float32)), rewards)
    weights = jnp.asarray(WEIGHTS, jnp.float32)
    assert_vmap(lambda r: turn_advantages(r, running, weights), jnp.stack([rewards, rewards[::-1]]))


# What was settled before a place is no merit of the tokens from there on.

off = jax.jit(settled_advantages, static_argnames="decoupled")


@pytest.mark.parametrize("decoupled", [True, False])
def test_settled_parts_by_a_loop(decoupled: bool) -> None:
    random, (n, turns, parts, places) = np.random.default_rng(5), (4, 3, 2, 3)
    rewards, settled = random.normal(size=(n, turns, parts)), random.normal(size=(n, turns, parts, places))
    rewards[:, 1, 0] = 0.3
    had = np.array([3, 1, 3, 2])
    running, weights = np.arange(turns)[None] < had[:, None], np.array([0.5, 2.0])
    expected = np.zeros((n, turns, places))
    for k in range(turns):
        there = [g for g in range(n) if k < had[g]]
        for c in range(parts):
            deviation = np.std([rewards[g, k, c] for g in there])
            scale = 1.0 if not decoupled else 0.0 if deviation < 1e-12 else 1 / (deviation + 1e-6)
            for s in range(places):
                mean = np.mean([settled[g, k, c, s] for g in there])
                for g in there:
                    expected[g, k, s] += weights[c] * scale * (settled[g, k, c, s] - mean)
    rewards[~running], settled[~running] = np.nan, np.nan
    arrays = [jnp.asarray(array, jnp.float32) for array in (rewards, settled)]
    found = off(*arrays, jnp.asarray(running), jnp.asarray(weights, jnp.float32), decoupled=decoupled)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_credit_by_place_has_the_same_expected_gradient_and_varies_less() -> None:
    """All groups of 2 texts of 2 tokens, enumerated: the first token is paid at once, the second where it repeats it."""
    logits = jnp.array([[0.3, -0.2], [0.7, 0.1]])
    texts = list(itertools.product((0, 1), repeat=2))

    def logprob(logits: jax.Array, text: tuple[int, int]) -> jax.Array:
        """log π of each token; the second does not look at the first. [2]"""
        return jax.nn.log_softmax(logits, axis=1)[jnp.arange(2), jnp.array(text)]

    gradient = jax.jacobian(logprob)
    of_turn, of_place, chances = [], [], []
    for group in itertools.product(texts, repeat=2):
        first = np.array([float(text[0]) for text in group])
        second = np.array([float(text[0] == text[1]) for text in group])
        rewards = jnp.asarray(np.stack([first, second], axis=1)[:, None], jnp.float32)
        settled = jnp.zeros((2, 1, 2, 2)).at[:, 0, 0, 1].set(first)
        running, weights = jnp.ones((2, 1), bool), jnp.ones(2)
        whole = credit(rewards, running, weights, decoupled=False)[:, :1]
        rest = whole - off(rewards, settled, running, weights, decoupled=False)[:, 0]
        for found, advantages in ((of_turn, jnp.broadcast_to(whole, (2, 2))), (of_place, rest)):
            found.append(sum(jnp.einsum("t,tij->ij", advantages[g], gradient(logits, group[g])) for g in range(2)))
        chances.append(float(jnp.exp(sum(logprob(logits, text).sum() for text in group))))
    p, turn, place = (np.array(one, np.float64) for one in (chances, of_turn, of_place))
    means = [np.tensordot(p, one, 1) for one in (turn, place)]
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(means[0], means[1], atol=1e-6)
    assert np.abs(means[0]).max() > 0.05
    spread = [np.tensordot(p, np.square(one - mean), 1).sum() for one, mean in zip((turn, place), means, strict=True)]
    assert spread[1] < 0.8 * spread[0]


@pytest.mark.parametrize(("decoupled", "expected"), [(False, 0.0), (True, 1 / 32)])
def test_what_was_settled_is_free_of_the_token_but_for_the_deviation(decoupled: bool, expected: float) -> None:
    """E[∇log π · D] over all groups of 2 texts of 2 fair tokens, each paid 1; the logit's gradient is token − ½."""
    total = 0.0
    for tokens in itertools.product((0.0, 1.0), repeat=4):
        first, second = np.array(tokens).reshape(2, 2).T
        rewards = jnp.asarray((first + second)[:, None, None], jnp.float32)
        settled = jnp.asarray(np.stack([0 * first, first], axis=1)[:, None, None], jnp.float32)
        found = off(rewards, settled, jnp.ones((2, 1), bool), jnp.ones(1), decoupled=decoupled)[:, 0, 1]
        total += float(np.mean((second - 0.5) * np.asarray(found))) / 16
    # By hand, decoupled: D = ±½/(½|Δr|). It counts where both tokens differ in the same direction: ±½ at |Δr| = 2.
    np.testing.assert_allclose(total, expected, atol=1e-5)
