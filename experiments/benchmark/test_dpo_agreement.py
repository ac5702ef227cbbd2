"""Our DPO step and TRL's compute the same thing: needs torch and TRL, so it is not part of the default suite.

pytest experiments/benchmark      # in an environment with the extra `bench`
"""

# pyright: reportMissingImports=false
import dataclasses

import jax
import numpy as np
import pytest

from benchmark import networks
from benchmark.dpo_step import OurStep
from benchmark.trl_dpo import TrlStep
from benchmark.workload import Workload
from rlhf_jax.learners import dpo, microbatch
from rlhf_jax.models.convert import PREFIX, tensor_name

WORKLOAD = Workload("test", n_layer=2, n_embd=32, n_head=2, vocab_size=2048, batch=8, prompt=6, response=5)


@pytest.fixture(scope="module")
def steps() -> tuple[OurStep, TrlStep]:
    """Networks with livelier logits than fresh ones have, and a rate that moves them."""
    drawn = networks.draw_networks(WORKLOAD)
    livelier = {name: jax.tree.map(lambda leaf: 3 * leaf, getattr(drawn, name)) for name in ("policy", "critic")}
    drawn = dataclasses.replace(drawn, **livelier)
    return OurStep(WORKLOAD, drawn, learning_rate=1e-3), TrlStep(WORKLOAD, drawn, learning_rate=1e-3)


def test_loss_gradient_and_the_losses_after_steps_are_equal(steps: tuple[OurStep, TrlStep]) -> None:
    ours, trl = steps

    @jax.jit
    def loss_and_gradient(params: dict) -> tuple[jax.Array, dict]:
        loss, gradient, _ = microbatch.loss_and_gradient(
            lambda p, batch, key: dpo.preference_loss(p, batch, policy=ours.policy, config=ours.config),
            params,
            ours.batch,
            jax.random.key(0),
        )
        return loss, gradient

    loss, gradient = loss_and_gradient(ours.state.params)
    their_loss, theirs = trl.loss_and_gradients()
    assert abs(their_loss - np.log(2)) > 0.01
    np.testing.assert_allclose(their_loss, loss, rtol=1e-4)
    leaves = jax.tree_util.tree_leaves_with_path(gradient["trunk"])
    assert {PREFIX + tensor_name(path) for path, _ in leaves} == set(theirs)
    for path, leaf in leaves:
        their = theirs[PREFIX + tensor_name(path)].numpy()
        np.testing.assert_allclose(leaf, their, atol=1e-4 * np.abs(their).max(), err_msg=tensor_name(path))
    for one in (ours, trl):
        one.warm_up()  # Two steps.
        one.iterate()
    after, _ = loss_and_gradient(ours.state.params)
    their_after, _ = trl.loss_and_gradients()
    # Clip, AdamW's numbers and its decay are the same: three steps lead to the same place.
    assert float(after) < float(loss) - 0.05
    np.testing.assert_allclose(their_after, after, rtol=1e-4)
