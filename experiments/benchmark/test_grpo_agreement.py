"""Our GRPO step and TRL's compute the same thing: needs torch and TRL, so it is not part of the default suite.

pytest experiments/benchmark      # in an environment with the extra `bench`

TRL knows no grammar. Here its networks are given the mask of ours, as a hook on their heads.
"""

# pyright: reportMissingImports=false
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from benchmark import networks
from benchmark.grpo_step import OurStep, even_share
from benchmark.trl_grpo import TrlStep
from benchmark.workload import Workload
from rlhf_jax.decoding.grammar import allowed_along
from rlhf_jax.learners import grpo, microbatch
from rlhf_jax.learners.minibatch import judge
from rlhf_jax.models.convert import PREFIX, tensor_name

WORKLOAD = Workload("test", n_layer=2, n_embd=32, n_head=2, vocab_size=2048, batch=16, prompt=6, response=5)


@pytest.fixture(scope="module")
def steps() -> tuple[OurStep, TrlStep]:
    """Networks with livelier logits than fresh ones have."""
    drawn = networks.draw_networks(WORKLOAD)
    livelier = {name: jax.tree.map(lambda leaf: 3 * leaf, getattr(drawn, name)) for name in ("policy", "critic")}
    drawn = dataclasses.replace(drawn, **livelier)
    return OurStep(WORKLOAD, drawn, learning_rate=1e-3), TrlStep(WORKLOAD, drawn, learning_rate=1e-3)


@contextlib.contextmanager
def masked(models: Sequence[Any], allowed: torch.Tensor) -> Iterator[None]:
    """Logits of response positions hold only what our grammar allows; TRL asks for one position more, and drops it."""

    def hook(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return torch.cat([logits[:, :-1].masked_fill(~allowed, -1e9), logits[:, -1:]], dim=1)

    with contextlib.ExitStack() as hooks:
        for model in models:
            hooks.callback(model.lm_head.register_forward_hook(hook).remove)
        yield


def test_loss_and_gradient_are_equal(steps: tuple[OurStep, TrlStep]) -> None:
    ours, trl = steps
    rules = networks.grammar(WORKLOAD)
    rollout = jax.jit(ours.sample)(ours.state.params, ours.prompts, jax.random.key(3))
    assert bool(rollout.response_mask.all())
    paid = even_share({}, rollout)[:, 0]
    rewards = grpo.spread_at_end(paid, rollout.response_mask)
    # Policies that moved since: ratios on both sides of the clip.
    moved = 0.3 * jax.random.normal(jax.random.key(4), rollout.logprobs.shape)
    old = rollout.logprobs + moved
    reference = judge(ours.policy, ours.reference, rollout).logprobs
    experience = grpo.compare(rollout, rewards, old, reference, ours.config)

    def loss_fn(params: Any, batch: grpo.GroupExperience, key: jax.Array) -> microbatch.LossSums:
        return grpo.grpo_loss(params, batch, policy=ours.policy, config=ours.config)

    @jax.jit
    def loss_and_gradient(params: Any) -> Any:
        return microbatch.loss_and_gradient(loss_fn, params, experience, jax.random.key(0))

    loss, gradient, metrics = loss_and_gradient(ours.state.params)
    assert 0.1 < float(metrics["policy/clip_fraction"]) < 0.9 and float(metrics["policy/kl_penalty"]) > 0.05

    def of(x: jax.Array) -> torch.Tensor:
        return torch.tensor(np.array(x))

    tokens = of(jnp.concatenate([rollout.prompt_tokens, rollout.response_tokens], axis=1)).long()
    allowed = of(allowed_along(rules, rollout.response_tokens))
    with masked((trl.trainer.model, trl.trainer.ref_model), allowed):
        their_reference = trl.reference_logprobs(tokens).numpy()
        their_loss, theirs = trl.loss_and_gradients(tokens, of(experience.advantages), of(old))
    np.testing.assert_allclose(their_reference, reference, atol=1e-4)
    np.testing.assert_allclose(their_loss, loss, rtol=1e-4)
    leaves = jax.tree_util.tree_leaves_with_path(gradient["trunk"])
    assert {PREFIX + tensor_name(path) for path, _ in leaves} == set(theirs)
    for path, leaf in leaves:
        their = theirs[PREFIX + tensor_name(path)].numpy()
        distance = np.linalg.norm(np.asarray(leaf) - their) / np.linalg.norm(their)
        assert distance < 1e-4, (tensor_name(path), distance)


def test_advantages_are_equal_but_for_the_definition_of_the_deviation(steps: tuple[OurStep, TrlStep]) -> None:
    ours, trl = steps
    trl.iterate()
    found = np.array(trl.trainer._logs["advantages"])
    paid = np.array(trl.rewards, np.float32)
    mask = jnp.ones((WORKLOAD.batch, WORKLOAD.response), bool)
    rollout = jax.jit(ours.sample)(ours.state.params, ours.prompts, jax.random.key(3))
    rollout = dataclasses.replace(rollout, response_mask=mask)
    rewards = grpo.spread_at_end(jnp.asarray(paid), mask)
    nothing = jnp.zeros(mask.shape)
    advantages = np.asarray(grpo.compare(rollout, rewards, nothing, nothing, ours.config).advantages)
    assert np.all(advantages == advantages[:, :1]) and np.abs(found).max() > 0.5
    # Theirs divides by n − 1 and adds 1e-4 to a deviation of about 0.2; ours by n, and 1e-6.
    size = ours.config.group_size
    np.testing.assert_allclose(found * np.sqrt(size / (size - 1)), advantages[:, 0], rtol=3e-3, atol=1e-6)
