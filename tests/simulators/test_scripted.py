"""Each probe's best tokens earn its best score, and nothing earns more."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.interfaces import Rollout
from rlhf_jax.simulators.scripted import (
    constant_reward,
    delayed_reward,
    kl_only,
    token_bandit,
    two_token_credit,
)

PROBES = (constant_reward(), token_bandit(), delayed_reward(response_length=3), two_token_credit(), kl_only())


def rollout_of(tokens):
    tokens = jnp.asarray(tokens, jnp.int32)
    prompts = jnp.ones((len(tokens), 1), jnp.int32)
    return Rollout(
        prompt_tokens=prompts,
        prompt_mask=prompts > 0,
        response_tokens=tokens,
        response_mask=jnp.ones(tokens.shape, bool),
        logprobs=jnp.zeros(tokens.shape),
        finished=jnp.ones(len(tokens), bool),
    )


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_optimum_is_what_the_probe_says(probe):
    every = np.array(list(itertools.product(range(probe.vocab_size), repeat=probe.response_length)))
    scores = np.asarray(probe.score(None, rollout_of(every)))
    assert scores.shape == (len(every), 3) and scores.dtype == np.float32
    assert (scores == scores[:, :1]).all() and scores.max() == probe.best_score
    best = np.array([all(b is None or t == b for t, b in zip(row, probe.best_tokens, strict=True)) for row in every])
    assert np.array_equal(scores[:, 0] == probe.best_score, best)


def test_impossible_probes_are_refused():
    with pytest.raises(ValueError, match="best token must be unique"):
        token_bandit((0.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="token 4 must lie in 1 … 3"):
        delayed_reward(good=4)
