"""What a policy says of the items that a response lists: three numbers that a reward model may read beside its own trunk.

    f₁ = 1 where the response lists an item, else 0
    f₂ = mean over the listed items of  log π(i | prompt, items before it) + log I        nats above a draw at random
    f₃ = share of the listed items that the prompt has named already

f₂ and f₃ are 0 where nothing is listed. π is the policy as it speaks, with its temperature, grammar and prior. A reward
Σ_k v_k f_k with v₂ > 0 orders single items as π does, so that a model which reads them can know as much of items as the policy;
whether it does is what training finds (`stages/reward.py`).
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.decoding.grammar import Grammar, is_item, read_along
from rlhf_jax.interfaces import Params, PolicyApply, Rollout

N_NUMBERS = 3
NAME = "policy"
"""Of the policy in the tree of a reward model that reads it."""
LEAST = -10.0
"""Nats to which f₂'s terms are held: what the policy thinks impossible must not be the whole reward."""


def make_suggested(grammar: Grammar, judge: PolicyApply) -> Callable[[Params, Rollout], Float[Array, "B 3"]]:
    """f of every response of a rollout, from the parameters of the policy that is read.

    Args:
      judge: of a policy that speaks `grammar`.
    """

    def suggested(policy: Params, rollout: Rollout) -> Float[Array, "B 3"]:
        logprobs = judge(policy, rollout).logprobs
        named = named_before(rollout.prompt_tokens, rollout.prompt_mask, rollout.response_tokens)
        return summed(grammar, logprobs, rollout.response_tokens, rollout.response_mask, named)

    return suggested


def named_before(
    prompt_tokens: Int[Array, "B P"], prompt_mask: Bool[Array, "B P"], tokens: Int[Array, "B T"]
) -> Bool[Array, "B T"]:
    """Whether a token of the response stands in the prompt."""
    same = (tokens[:, :, None] == prompt_tokens[:, None, :]) & prompt_mask[:, None, :]
    return same.any(axis=2)


def summed(
    grammar: Grammar,
    logprobs: Float[Array, "B T"],
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    named: Bool[Array, "B T"],
) -> Float[Array, "B 3"]:
    """f of responses, from log-probabilities of their tokens and from whether the prompt holds these. [B, 3]"""
    along = read_along(grammar, tokens)
    listed = is_item(grammar, tokens) & ~along.said & ~along.ended & mask
    count = jnp.sum(listed, axis=1)

    def mean(values: Float[Array, "B T"]) -> Float[Array, " B"]:
        return jnp.sum(jnp.where(listed, values, 0.0), axis=1) / jnp.maximum(count, 1)

    above = jnp.maximum(logprobs + math.log(grammar.n_items), LEAST)
    return jnp.stack([(count > 0).astype(jnp.float32), mean(above), mean(named.astype(jnp.float32))], axis=1)
