"""GPT-2 as the callables that learners take: draws responses, judges them, scores them.

Parameters are trees with fixed names: `trunk` (GPT-2), `value` (value head) for a policy; `trunk`, `reward` (reward
heads) for a reward model. A reference policy needs the trunk alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from rlhf_jax.decoding.grammar import Grammar, allowed_along
from rlhf_jax.decoding.sampler import sample
from rlhf_jax.equations.logprobs import entropy, token_logprobs
from rlhf_jax.interfaces import Params, PolicyApply, PolicyOutput, PromptBatch, Rollout, Sample, Score
from rlhf_jax.models import gpt2, heads
from rlhf_jax.models.gpt2 import GPT2Config

Decode = Callable[[Params, PromptBatch, Key[Array, ""], Int[Array, " B"] | None], Rollout]
"""`Sample` with numbers for the rows, so that a row keeps its random stream in another batch."""


def make_decode(
    config: GPT2Config,
    grammar: Grammar,
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    rollout_for_learning: bool = True,
) -> Decode:
    """The sampler over a cached GPT-2; options are those of `sampler.sample`."""

    def decode(params: Params, prompts: PromptBatch, key: Array, row_ids: Array | None = None) -> Rollout:
        trunk = params["trunk"]

        def logits_of(hidden: Array) -> Array:
            return gpt2.lm_logits(trunk, hidden, compute_dtype=config.compute_dtype)

        def start(tokens: Array, mask: Array) -> tuple[Array, gpt2.Cache]:
            # The last token drawn is never read, so it needs no slot.
            length = tokens.shape[1] + max_tokens - 1
            hidden, cache = gpt2.prefill(config, trunk, tokens, mask, cache_length=length)
            return logits_of(hidden), cache

        def step(cache: gpt2.Cache, token: Array) -> tuple[Array, gpt2.Cache]:
            hidden, cache = gpt2.decode_step(config, trunk, cache, token)
            return logits_of(hidden), cache

        return sample(
            prompts,
            key,
            start=start,
            step=step,
            grammar=grammar,
            max_tokens=max_tokens,
            temperature=temperature,
            row_ids=row_ids,
            top_k=top_k,
            top_p=top_p,
            rollout_for_learning=rollout_for_learning,
        )

    return decode


def make_sample(config: GPT2Config, grammar: Grammar, *, max_tokens: int, temperature: float = 1.0) -> Sample:
    """Rollouts for learning: the whole tempered distribution, rows numbered from 0."""
    decode = make_decode(config, grammar, max_tokens=max_tokens, temperature=temperature)

    def draw(params: Params, prompts: PromptBatch, key: Array) -> Rollout:
        return decode(params, prompts, key, None)

    return draw


def response_hidden(config: GPT2Config, trunk: Params, rollout: Rollout) -> Float[Array, "B T D"]:
    """Hidden states each response token was drawn from: positions P−1 … S−2. [B, T, D]"""
    tokens = jnp.concatenate([rollout.prompt_tokens, rollout.response_tokens[:, :-1]], axis=1)
    mask = jnp.concatenate([rollout.prompt_mask, rollout.response_mask[:, :-1]], axis=1)
    return gpt2.hidden_states(config, trunk, tokens, mask, from_position=rollout.prompt_tokens.shape[1] - 1)


def make_policy_apply(config: GPT2Config, grammar: Grammar, *, temperature: float = 1.0) -> PolicyApply:
    """Judges responses under the mask and temperature they were drawn with; head and softmax on response rows only.

    Where the tree has no `value` head (a reference policy), values are 0.
    """

    def apply(params: Params, rollout: Rollout) -> PolicyOutput:
        hidden = response_hidden(config, params["trunk"], rollout)
        logits = gpt2.lm_logits(params["trunk"], hidden, compute_dtype=config.compute_dtype)
        allowed = allowed_along(grammar, rollout.response_tokens)

        def judge(logits: Array, tokens: Array, allowed: Array) -> tuple[Array, Array]:
            logprobs = token_logprobs(logits, tokens, temperature=temperature, allowed=allowed)
            return logprobs, entropy(logits, temperature=temperature, allowed=allowed)

        logprobs, entropies = jax.vmap(judge)(logits, rollout.response_tokens, allowed)
        mask = rollout.response_mask
        values = heads.value(params["value"], hidden) if "value" in params else jnp.zeros_like(logprobs)
        return PolicyOutput(
            logprobs=jnp.where(mask, logprobs, 0.0),
            entropy=jnp.where(mask, entropies, 0.0),
            values=jnp.where(mask, values, 0.0),
        )

    return apply


def make_score(config: GPT2Config) -> Score:
    """Reward components at the last real token of each response."""

    def score(params: Params, rollout: Rollout) -> Float[Array, "B C"]:
        tokens = jnp.concatenate([rollout.prompt_tokens, rollout.response_tokens], axis=1)
        mask = jnp.concatenate([rollout.prompt_mask, rollout.response_mask], axis=1)
        prompt = rollout.prompt_tokens.shape[1]
        hidden = gpt2.hidden_states(config, params["trunk"], tokens, mask, from_position=prompt)
        return heads.reward_components(params["reward"], heads.last_token_hidden(hidden, rollout.response_mask))

    return score
