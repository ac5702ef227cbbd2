"""What may move moves, the rest keeps every bit and has no moments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.interfaces import Params, PolicyOutput, Rollout
from rlhf_jax.learners.optimizer import apply_or_skip, make_optimizer, steps_taken
from rlhf_jax.learners.trainable import Trainable, held, with_prior_rate, without_moments

TREE = {
    "trunk": {
        "wte": jnp.full((3, 2), 0.5),
        "wpe": jnp.full((3, 2), 0.5),
        "h_0": {"ln_1": {"scale": jnp.full(2, 0.5)}},
        "ln_f": {"scale": jnp.full(2, 0.5)},
    },
    "value": {"kernel": jnp.full(2, 0.5), "bias": jnp.array(0.5)},
}
ROLLOUT = Rollout(
    prompt_tokens=jnp.zeros((1, 1), jnp.int32),
    prompt_mask=jnp.ones((1, 1), bool),
    response_tokens=jnp.zeros((1, 1), jnp.int32),
    response_mask=jnp.ones((1, 1), bool),
    logprobs=jnp.zeros((1, 1)),
    finished=jnp.ones(1, bool),
)


def everything(params: Params, rollout: Rollout) -> PolicyOutput:
    """A policy that every parameter has a say in."""
    said = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)) * jnp.ones(rollout.response_tokens.shape)
    return PolicyOutput(logprobs=said, entropy=said, values=said)


@pytest.mark.parametrize(
    ("trainable", "still"), [("all", set()), ("heads", {"['trunk']['wpe']", "['trunk']['h_0']['ln_1']['scale']"})]
)
def test_only_what_is_trained_moves(trainable: Trainable, still: set[str]) -> None:
    plain = make_optimizer(learning_rate=0.1, total_steps=9, max_grad_norm=1e9)
    optimizer, policy = without_moments(plain, trainable), held(everything, trainable)
    gradient = jax.grad(lambda params: policy(params, ROLLOUT).logprobs.sum())(TREE)
    result = apply_or_skip(optimizer, TREE, optimizer.init(TREE), gradient, jnp.zeros(()))
    unmoved = {
        jax.tree_util.keystr(path)
        for path, same in jax.tree.leaves_with_path(jax.tree.map(np.array_equal, TREE, result.params))
        if same
    }
    assert unmoved == still
    n_moving = len(jax.tree.leaves(TREE)) - len(still)
    moments = optax.tree.get(result.opt_state, "mu")
    assert len(jax.tree.leaves(moments)) == n_moving
    # The global norm is that of the trained parameters, 1 for each of their numbers.
    n_numbers = sum(
        leaf.size for path, leaf in jax.tree.leaves_with_path(TREE) if jax.tree_util.keystr(path) not in still
    )
    np.testing.assert_allclose(result.gradient_norm, n_numbers**0.5, rtol=1e-6)
    assert int(steps_taken(result.opt_state)) == 1


def test_the_prior_moves_by_its_own_rate_and_the_rest_as_without_it() -> None:
    params = {"trunk": jnp.array([0.5, -1.0]), "prior": {"policy": jnp.float32(1.0), "scores": jnp.array([0.1, 0.2])}}
    gradient = jax.tree.map(lambda leaf: 0.3 * jnp.sign(leaf), params)
    plain = make_optimizer(learning_rate=1e-3, total_steps=9, max_grad_norm=1e9)
    faster = with_prior_rate(without_moments(plain, "all"), 50.0)
    assert with_prior_rate(plain, 1.0) is plain
    usual, moved = (apply_or_skip(one, params, one.init(params), gradient, jnp.zeros(())) for one in (plain, faster))
    np.testing.assert_array_equal(moved.params["trunk"], usual.params["trunk"])
    # Adam's first step is rate · g / (|g| + ε): here 1e-3 / (1 + 1e-5 / .3), 50 times as long.
    np.testing.assert_allclose(1.0 - moved.params["prior"]["policy"], 0.05 / (1 + 1e-5 / 0.3), rtol=1e-4)
    np.testing.assert_allclose(params["prior"]["scores"] - moved.params["prior"]["scores"], 0.05, rtol=1e-3)
    assert int(steps_taken(moved.opt_state)) == 1
