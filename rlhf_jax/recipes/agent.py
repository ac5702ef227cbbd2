"""GPT-2 behind the learners' callables: policy, sampler, reward model and item scorer from one configuration.

Parameter trees: a policy is {`gpt2`, `value_head`} (one shared trunk), a reward model {`gpt2`, `reward_heads`}.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.decoding import sampler
from rlhf_jax.decoding.grammar import Grammar, allowed_along
from rlhf_jax.equations.logprobs import entropy, token_logprobs
from rlhf_jax.interfaces import COMPONENTS, Params, PolicyOutput, PromptBatch, Rollout
from rlhf_jax.models import gpt2, heads


@dataclasses.dataclass(frozen=True)
class Agent:
    """The network's size, the grammar it speaks and how it decodes; holds no parameters."""

    network: gpt2.GPT2Config
    grammar: Grammar
    response_tokens: int
    """Longest response, `<eos>` included."""
    temperature: float = 1.0
    """Divides the logits of policy and reference, in sampling and in learning."""

    def policy(self, params: Params, rollout: Rollout) -> PolicyOutput:
        """`interfaces.PolicyApply`: one pass over prompt and response, heads on the response's positions only."""
        prompt_length = rollout.prompt_tokens.shape[1]
        tokens = jnp.concatenate([rollout.prompt_tokens, rollout.response_tokens], axis=1)
        mask = jnp.concatenate([rollout.prompt_mask, rollout.response_mask], axis=1)
        # Position t is judged by the hidden state before it; the last token's own state judges nothing.
        hidden = gpt2.hidden_states(
            self.network, params["gpt2"], tokens[:, :-1], mask[:, :-1], from_position=prompt_length - 1
        )
        logits = gpt2.lm_logits(params["gpt2"], hidden, compute_dtype=self.network.compute_dtype)
        allowed = allowed_along(self.grammar, rollout.response_tokens)
        judge = functools.partial(token_logprobs, temperature=self.temperature)
        spread = functools.partial(entropy, temperature=self.temperature)
        return PolicyOutput(
            logprobs=jax.vmap(lambda lg, tok, ok: judge(lg, tok, allowed=ok))(logits, rollout.response_tokens, allowed),
            entropy=jax.vmap(lambda lg, ok: spread(lg, allowed=ok))(logits, allowed),
            values=heads.value(params["value_head"], hidden),
        )

    def decode(
        self, params: Params, prompts: PromptBatch, key: Key[Array, ""], *, greedy: bool = False
    ) -> Rollout:
        """One response per prompt in one compiled loop; `greedy` takes the likeliest token instead of drawing."""
        trunk, dtype = params["gpt2"], self.network.compute_dtype

        def start(tokens: Int[Array, "B P"], mask: Bool[Array, "B P"]) -> tuple[Array, gpt2.Cache]:
            cache_length = tokens.shape[1] + self.response_tokens
            hidden, cache = gpt2.prefill(self.network, trunk, tokens, mask, cache_length=cache_length)
            return gpt2.lm_logits(trunk, hidden, compute_dtype=dtype), cache

        def step(cache: gpt2.Cache, token: Int[Array, " B"]) -> tuple[Array, gpt2.Cache]:
            hidden, cache = gpt2.decode_step(self.network, trunk, cache, token)
            return gpt2.lm_logits(trunk, hidden, compute_dtype=dtype), cache

        return sampler.sample(
            prompts,
            key,
            start=start,
            step=step,
            grammar=self.grammar,
            max_tokens=self.response_tokens,
            temperature=0.0 if greedy else self.temperature,
            rollout_for_learning=not greedy,
        )

    def sample(self, params: Params, prompts: PromptBatch, key: Key[Array, ""]) -> Rollout:
        """`interfaces.Sample`: draws from the tempered policy, never truncated."""
        return self.decode(params, prompts, key)

    def components(
        self, params: Params, tokens: Int[Array, "B S"], mask: Bool[Array, "B S"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "B C"]:
        """Reward components read off the last real token; `key` draws dropout while training."""
        hidden = gpt2.hidden_states(self.network, params["gpt2"], tokens, mask, dropout_key=key)
        return heads.reward_components(params["reward_heads"], heads.last_token_hidden(hidden, mask))

    def score(self, params: Params, rollout: Rollout) -> Float[Array, "B C"]:
        """`interfaces.Score`: the reward model on prompt and response."""
        tokens = jnp.concatenate([rollout.prompt_tokens, rollout.response_tokens], axis=1)
        return self.components(params, tokens, jnp.concatenate([rollout.prompt_mask, rollout.response_mask], axis=1))

    def item_scores(self, params: Params, prompts: PromptBatch) -> Float[Array, "B I"]:
        """Logits of every catalogue item right after `<rec>`, from the context alone."""
        rec = jnp.full((prompts.tokens.shape[0], 1), self.grammar.rec, prompts.tokens.dtype)
        tokens = jnp.concatenate([prompts.tokens, rec], axis=1)
        mask = jnp.concatenate([prompts.mask, jnp.ones_like(rec, bool)], axis=1)
        hidden = gpt2.hidden_states(self.network, params["gpt2"], tokens, mask, from_position=tokens.shape[1] - 1)
        return heads.item_logits(
            params["gpt2"],
            hidden[:, 0],
            first_item=self.grammar.first_item,
            n_items=self.grammar.n_items,
            compute_dtype=self.network.compute_dtype,
        )


def make_agent(
    vocab: Vocabulary, network: gpt2.GPT2Config, *, max_items: int, response_tokens: int, temperature: float = 1.0
) -> Agent:
    """An agent that speaks `vocab`.

    Raises: ValueError if the network's table is not as large as the vocabulary.
    """
    if network.vocab_size != vocab.size:
        raise ValueError(f"the network has {network.vocab_size} embedding rows, the vocabulary {vocab.size} tokens")
    ids = vocab.grammar
    grammar = Grammar(
        n_words=ids.n_words,
        pad=ids.pad,
        eos=ids.eos,
        rec=ids.rec,
        say=ids.say,
        first_item=ids.first_item,
        n_items=ids.n_items,
        max_items=max_items,
        vocab_size=vocab.size,
    )
    return Agent(network, grammar, response_tokens, temperature)


def policy_params(trunk: Params, width: int) -> Params:
    """A policy on a trained trunk; its values start at 0."""
    return {"gpt2": trunk, "value_head": heads.init_value_head(width)}


def reward_params(trunk: Params, width: int, key: Key[Array, ""]) -> Params:
    """A reward model on a trained trunk, one head per component."""
    return {"gpt2": trunk, "reward_heads": heads.init_reward_heads(key, width, len(COMPONENTS))}
