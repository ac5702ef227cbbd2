"""What the sampler stored is as good as judging again, and costs no pass."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tabular_policy import PLAIN, policy, prompts, sample_until_eos, table

from rlhf_jax.interfaces import Params, PolicyOutput, Rollout
from rlhf_jax.learners import minibatch, ppo
from rlhf_jax.learners.optimizer import make_optimizer
from rlhf_jax.learners.ppo_config import PPOConfig

CONFIG = PPOConfig(**PLAIN, epochs=1, minibatches=2)
B = 8


@pytest.fixture(scope="module")
def params() -> Params:
    keys = jax.random.split(jax.random.key(0))
    flat = table(4, 5)
    return {
        "logits": jax.random.normal(keys[0], flat["logits"].shape),
        "values": jax.random.normal(keys[1], flat["values"].shape),
    }


@pytest.fixture(scope="module")
def rollout(params: Params) -> Rollout:
    """With values, and NaN where nobody may look, as the policy has them."""
    drawn = sample_until_eos(params, prompts(B), jax.random.key(1))
    return drawn.replace(values=policy(params, drawn).values)


def learnt(rollout: Rollout, params: Params, policy: Any, **changes: Any) -> tuple[ppo.PPOState, dict[str, jax.Array]]:
    """Lines 3–8 against a uniform reference."""
    config = dataclasses.replace(CONFIG, **changes)
    optimizer = make_optimizer(learning_rate=0.01, total_steps=10)
    state = ppo.init(params, optimizer, config, jax.random.key(2))
    components = jnp.linspace(-1.0, 1.0, B)[:, None]
    learn = jax.jit(functools.partial(ppo.learn_phase, policy=policy, optimizer=optimizer, config=config))
    return learn(state, rollout, components, table(4, 5))


def test_the_update_is_the_same_and_one_pass_is_saved(params: Params, rollout: Rollout) -> None:
    calls: list[int] = []

    def counted(params: Params, rollout: Rollout) -> PolicyOutput:
        calls.append(rollout.response_tokens.shape[0])
        return policy(params, rollout)

    judged, judged_metrics = learnt(rollout, params, counted)
    # Whole batch: the policy and the reference; then minibatches.
    assert calls.count(B) == 2
    calls.clear()
    reused, metrics = learnt(rollout, params, counted, old_logprobs="sampler")
    assert calls.count(B) == 1
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, reused.params, judged.params)
    # The entropy alone is another estimate: the mean of −log π over the tokens drawn.
    mask = rollout.response_mask
    expected = -jnp.sum(jnp.where(mask, rollout.logprobs, 0.0)) / jnp.sum(mask)
    close(metrics.pop("objective/entropy"), expected)
    judged_metrics.pop("objective/entropy")
    jax.tree.map(close, metrics, judged_metrics)


def test_a_sampler_that_disagrees_is_noticed(params: Params, rollout: Rollout) -> None:
    off = rollout.replace(logprobs=rollout.logprobs + 0.02)
    _, metrics = learnt(off, params, policy, old_logprobs="sampler")
    assert float(metrics["policy/sampler_mismatch"]) == pytest.approx(0.02, rel=0.05)


def test_no_entropy_bonus_means_no_entropy_in_the_program(params: Params, rollout: Rollout) -> None:
    nothing = jnp.zeros(rollout.logprobs.shape)
    batch = minibatch.Experience(
        rollout=rollout, old_logprobs=nothing, old_values=nothing, advantages=nothing, returns=nothing
    )

    def loss(entropy_coef: float) -> float:
        def poisoned(params: Params, rollout: Rollout) -> PolicyOutput:
            return policy(params, rollout).replace(entropy=jnp.full(rollout.logprobs.shape, jnp.inf))

        config = CONFIG.loss._replace(entropy_coef=entropy_coef)
        return float(minibatch.ppo_loss(params, batch, policy=poisoned, config=config).loss)

    assert np.isfinite(loss(0.0)) and not np.isfinite(loss(0.01))


def test_values_are_needed(rollout: Rollout) -> None:
    with pytest.raises(ValueError, match="no values"):
        minibatch.said_by_sampler(rollout.replace(values=None))
