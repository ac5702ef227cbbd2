"""The implementations compute the same thing: needs torch and TRL, so it is not part of the default suite.

pytest experiments/benchmark      # in an environment with the extra `bench`
"""

# pyright: reportMissingImports=false
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from trl.experimental.ppo import ppo_trainer
from trl.experimental.utils import get_reward
from trl.trainer.utils import selective_log_softmax

from benchmark import networks, ours, torch_loop, trl_trainer
from benchmark.networks import Networks
from benchmark.workload import FORMS, Form, Workload
from rlhf_jax.decoding.grammar import allowed_along
from rlhf_jax.learners import microbatch, minibatch

WORKLOAD = Workload("test", n_layer=2, n_embd=32, n_head=2, vocab_size=2048, batch=4, prompt=6, response=5)


@pytest.fixture(scope="module")
def drawn() -> Networks:
    """Networks with livelier logits than fresh ones have."""
    found = networks.draw_networks(WORKLOAD)
    livelier = {
        name: jax.tree.map(lambda leaf: 3 * leaf, getattr(found, name)) for name in ("policy", "critic", "reward")
    }
    return dataclasses.replace(found, **livelier)


@pytest.mark.parametrize("form", FORMS)
def test_log_probabilities_loss_gradient_and_step_are_equal(drawn: Networks, form: Form) -> None:
    our, loop = ours.Ours(WORKLOAD, drawn, form), torch_loop.TorchLoop(WORKLOAD, drawn, form, compile_blocks=False)
    rules = networks.grammar(WORKLOAD)
    # Value heads start at 0, where nothing flows into the network below.
    order = np.random.default_rng(0)
    head = order.normal(size=WORKLOAD.n_embd).astype(np.float32)
    params = our.state.params | {"value": {"kernel": jnp.asarray(head), "bias": jnp.zeros(())}}
    our.state = dataclasses.replace(our.state, params=params)
    with torch.no_grad():
        dict((loop.critic or loop.policy).named_parameters())["scalar.weight"].copy_(torch.tensor(head)[None])
    rollout = our.rollout(our.state, our.prompts)
    assert bool(rollout.response_mask.all())
    sequences = torch.tensor(np.concatenate([rollout.prompt_tokens, rollout.response_tokens], axis=1)).long()
    allowed = torch.tensor(np.asarray(allowed_along(rules, rollout.response_tokens)))
    with torch.no_grad():
        logprobs, _ = loop.judge(loop.policy, sequences, allowed)
    np.testing.assert_allclose(logprobs, rollout.logprobs, atol=2e-5)

    shape = rollout.logprobs.shape
    old, advantages, returns = (order.normal(size=shape).astype(np.float32) for _ in range(3))
    old_logprobs = np.asarray(rollout.logprobs) + 0.3 * old
    experience = minibatch.Experience(
        rollout=rollout,
        old_logprobs=jnp.asarray(old_logprobs),
        old_values=jnp.zeros(shape),
        advantages=jnp.asarray(advantages),
        returns=jnp.asarray(returns),
    )
    rows = torch_loop.Scored(
        sequences, *(torch.tensor(x) for x in (old_logprobs, np.zeros(shape, np.float32), advantages, returns))
    )
    theirs = loop.loss(rows, allowed)
    theirs.backward()
    their_norm = torch.nn.utils.get_total_norm([p.grad for p in loop.nets.trained if p.grad is not None])

    config = ours.ppo_config(WORKLOAD)
    policy = ours.make_policy_apply(networks.network_config(WORKLOAD), rules)

    @jax.jit
    def loss_and_norm(params: dict) -> tuple[jax.Array, jax.Array]:
        loss, gradient, _ = microbatch.loss_and_gradient(
            lambda p, batch, key: minibatch.ppo_loss(p, batch, policy=policy, config=config.loss),
            params,
            experience,
            jax.random.key(0),
        )
        return loss, jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))

    loss, norm = loss_and_norm(our.state.params)
    np.testing.assert_allclose(theirs.item(), loss, rtol=1e-5)
    np.testing.assert_allclose(their_norm.item(), norm, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_the_loop_samples_what_it_says_and_learns(drawn: Networks, form: Form) -> None:
    loop = torch_loop.TorchLoop(WORKLOAD, drawn, form, compile_blocks=False)
    sampled = loop.sample()
    with torch.no_grad():
        judged, hidden = loop.judge(loop.policy, sampled.sequences.clone())
    np.testing.assert_allclose(sampled.logprobs, judged, atol=2e-5)
    before = [parameter.detach().clone() for parameter in loop.nets.trained]
    seconds = loop.iterate()
    assert seconds["whole"] == pytest.approx(seconds["rollout"] + seconds["scoring"] + seconds["update"])
    moved = {
        id(parameter)
        for parameter, old in zip(loop.nets.trained, before, strict=True)
        if not torch.equal(parameter, old)
    }
    policy, critic = ({id(parameter) for parameter in net.parameters()} for net in (loop.nets.policy, loop.nets.critic))
    assert len(moved & policy) > len(policy) // 2
    # The value head starts at 0: at first it alone moves, the network below it from the second step on.
    assert bool(moved & critic) == (form == "separate")
    del hidden


def test_trl_sees_the_same_networks_and_runs_its_own_iteration(drawn: Networks) -> None:
    trl = trl_trainer.TrlTrainer(WORKLOAD, drawn)
    loop = torch_loop.TorchLoop(WORKLOAD, drawn, "separate", compile_blocks=False)
    sequences = loop.sample().sequences.clone()
    pad, prompt = networks.grammar(WORKLOAD).pad, WORKLOAD.prompt
    # The pad token, should it have been drawn, means padding to TRL.
    sequences[sequences == pad] = 0
    wrapped = trl.trainer.accelerator.unwrap_model(trl.trainer.model)
    with torch.no_grad():
        output = ppo_trainer.forward(wrapped.policy, sequences, pad)
        logprobs = selective_log_softmax(output.logits[:, prompt - 1 : -1], sequences[:, prompt:])
        _, score, _ = get_reward(trl.trainer.reward_model, sequences, pad, prompt)
        ours_too, _ = loop.judge(loop.policy, sequences)
        reward = loop.nets.reward.values(loop.nets.reward(sequences)[:, -1])
    np.testing.assert_allclose(logprobs, ours_too, atol=2e-5)
    np.testing.assert_allclose(score, reward, atol=2e-5)
    steps = trl.trainer.optimizer.state_dict()["state"]
    assert not steps
    seconds = trl.iterate()
    assert set(seconds) == {"rollout", "scoring", "update", "whole"} and min(seconds.values()) > 0
    taken = {int(one["step"]) for one in trl.trainer.optimizer.state_dict()["state"].values()}
    assert taken == {WORKLOAD.epochs * WORKLOAD.minibatches}
