"""What is known of the items that a response lists: three numbers that a reward model may read beside its own trunk.

    f₁ = 1 where the response lists an item, else 0
    f₂ = mean over the listed items of  max( log p(i | prompt) + log I,  −10 )        nats above a draw at random
    f₃ = share of the listed items that the prompt has named already

f₂ and f₃ are 0 where nothing is listed. p are a policy's chances of the items as the first of a list, among items alone, its
prior included: a list is not marked down for going on, nor for its order. Among items that the prompt has not named, a
reward Σ_k v_k f_k with v₂ > 0 orders single items as the policy does, so that a model which reads f can know as much of items
as that policy; whether it does is what training finds (`stages/reward.py`). v₃ can be learnt only from logs where somebody
suggests what was named.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.decoding.grammar import Grammar, is_item, read_along
from rlhf_jax.interfaces import Params, PromptBatch, Rollout

N_NUMBERS = 3
NAME = "policy"
"""Of the policy in the tree of a reward model that reads it."""
LEAST = -10.0
"""Nats to which f₂'s terms are held: what the policy thinks impossible must not be the whole reward."""
ScoreItems = Callable[[Params, PromptBatch], Float[Array, "B I"]]


def make_suggested(grammar: Grammar, score_items: ScoreItems) -> Callable[[Params, Rollout], Float[Array, "B 3"]]:
    """f of every response of a rollout, from the parameters of the policy that is read.

    Args:
      score_items: that policy's logits of every item as the first of a list.
    """

    def suggested(policy: Params, rollout: Rollout) -> Float[Array, "B 3"]:
        prompts = PromptBatch(tokens=rollout.prompt_tokens, mask=rollout.prompt_mask, item_scores=rollout.item_scores)
        logits = score_items(policy, prompts)
        return of_lists(grammar, logits, prompts, rollout.response_tokens, rollout.response_mask)

    return suggested


def of_lists(
    grammar: Grammar,
    logits: Float[Array, "B I"],
    prompts: PromptBatch,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Float[Array, "B 3"]:
    """f of responses, from logits of every item after their prompts. [B, 3]"""
    along = read_along(grammar, tokens)
    listed = is_item(grammar, tokens) & ~along.said & ~along.ended & mask
    count = jnp.sum(listed, axis=1)

    def mean(values: Float[Array, "B T"]) -> Float[Array, " B"]:
        return jnp.sum(jnp.where(listed, values, 0.0), axis=1) / jnp.maximum(count, 1)

    columns = jnp.clip(tokens - grammar.first_item, 0, grammar.n_items - 1)
    above = jnp.take_along_axis(jax.nn.log_softmax(logits), columns, axis=1) + math.log(grammar.n_items)
    named = ((tokens[:, :, None] == prompts.tokens[:, None, :]) & prompts.mask[:, None, :]).any(axis=2)
    suggests = (count > 0).astype(jnp.float32)
    return jnp.stack([suggests, mean(jnp.maximum(above, LEAST)), mean(named.astype(jnp.float32))], axis=1)
