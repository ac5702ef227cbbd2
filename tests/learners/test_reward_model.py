import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.interfaces import Params
from rlhf_jax.learners import reward_model
from rlhf_jax.learners.optimizer import make_optimizer
from rlhf_jax.learners.reward_model import RewardBatch


def linear(params: Params, inputs: jax.Array, key: jax.Array) -> jax.Array:
    del key
    return jnp.sum(inputs[:, :, None] * params["weight"][None], axis=1)


def labelled(n: int, seed: int) -> tuple[RewardBatch, np.ndarray]:
    """A linear truth, a third of the labels missing (NaN)."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(0).normal(size=(4, 3))
    inputs = rng.normal(size=(n, 4))
    mask = rng.random((n, 3)) > 1 / 3
    labels = np.where(mask, inputs @ truth, np.nan)
    as_float = functools.partial(jnp.asarray, dtype=jnp.float32)
    return RewardBatch(inputs=as_float(inputs), labels=as_float(labels), label_mask=jnp.asarray(mask)), truth


def test_recovers_the_truth_from_incomplete_labels() -> None:
    optimizer = make_optimizer(learning_rate=0.1, total_steps=300)
    step = jax.jit(
        functools.partial(reward_model.update, score_fn=linear, optimizer=optimizer, microbatches=2), donate_argnums=0
    )
    batch, truth = labelled(32, seed=1)
    state = reward_model.init({"weight": jnp.zeros((4, 3))}, optimizer)
    for n in range(300):
        state, metrics = step(state, batch, jax.random.key(n))
    np.testing.assert_allclose(state.params["weight"], truth, atol=0.01)
    by_component = [metrics[f"loss/{name}"] for name in ("engagement", "relevance", "sentiment")]
    assert max(by_component) < 1e-3
    assert int(state.skipped) == 0


def test_components_are_averaged_over_their_own_labels() -> None:
    mask = jnp.array([[True, True, False], [True, False, False]])
    sums = reward_model.regression_sums(jnp.zeros((2, 3)), jnp.array([[1.0, 2.0, jnp.nan], [3.0, 9.0, 9.0]]), mask)
    assert (float(sums.loss), float(sums.count)) == (14.0, 3.0)
    parts = {name: tuple(map(float, part)) for name, part in sums.parts.items()}
    assert parts == {"loss/engagement": (10.0, 2.0), "loss/relevance": (4.0, 1.0), "loss/sentiment": (0.0, 0.0)}


def test_losses_have_the_names_of_the_components() -> None:
    sums = reward_model.regression_sums(jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.ones((1, 2), bool), ("wit", "charm"))
    assert set(sums.parts) == {"loss/wit", "loss/charm"}
    with pytest.raises(ValueError, match="2 components have the names"):
        reward_model.regression_sums(jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.ones((1, 2), bool))


def test_heads_begin_with_the_least_squares_fit_of_the_labels_that_exist() -> None:
    draw = np.random.default_rng(0)
    numbers, labels, mask = draw.normal(size=(40, 3)), draw.normal(size=(40, 2)), draw.random((40, 2)) < 0.7
    labels[~mask] = np.nan
    labels += numbers @ np.array([[1.0, 0.0], [-2.0, 0.5], [0.0, 3.0]]) + [0.3, -4.0]
    mask = np.concatenate([mask, np.zeros((40, 1), bool)], axis=1)
    labels = np.concatenate([labels, np.full((40, 1), np.nan)], axis=1)
    start = {"trunk": {}, "reward": {"kernel": jnp.ones((5, 3)), "bias": jnp.ones(3), "read": jnp.zeros((3, 3))}}
    found = reward_model.reading(start, numbers, labels, mask)["reward"]
    np.testing.assert_array_equal(found["kernel"], start["reward"]["kernel"])
    for c in range(2):
        # Three rows more, whose target is 0, are the price of the weights; the intercept has none.
        known = np.concatenate([numbers[mask[:, c]], np.eye(3)])
        design = np.concatenate([known, [[1.0]] * mask[:, c].sum() + [[0.0]] * 3], axis=1)
        target = np.concatenate([labels[mask[:, c], c], np.zeros(3)])
        expected = np.linalg.lstsq(design, target, rcond=None)[0]
        np.testing.assert_allclose(found["read"][:, c], expected[:3], atol=1e-5)
        np.testing.assert_allclose(found["bias"][c], expected[3], atol=1e-5)
    # A component without a label says nothing.
    assert not np.any(found["read"][:, 2]) and found["bias"][2] == 0
