"""What the parts of a policy have to do with the programs they are given to."""

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax.stages.agent import policy_params


@pytest.mark.parametrize("bound", [True, False])
def test_new_and_learnt_policies_share_one_program(bound: bool) -> None:
    trunk = {"wte": jnp.ones((6, 4))}
    if bound:  # As checkpoints are restored, and as PPO leaves its state.
        trunk = jax.device_put(trunk, jax.devices()[0])
    program = jax.jit(lambda params: jax.tree.map(lambda leaf: leaf + 1, params))
    policy = policy_params(trunk, 4)
    first = program(policy)
    assert jax.tree.structure(first) == jax.tree.structure(program(first))
    assert program._cache_size() == 1
    assert all(leaf.committed == bound for leaf in jax.tree.leaves(policy))
