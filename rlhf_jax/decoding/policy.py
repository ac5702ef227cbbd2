"""GPT-2 as the callables that learners take: draws responses, judges them, scores them.

Parameters are trees with fixed names: `trunk` (GPT-2), `value` (value head) for a policy; `trunk`, `reward` (reward
heads) for a reward model, which may have a `policy` that it reads (`decoding.suggested`). A reference policy needs the
trunk alone. A policy may have a `critic`: a second GPT-2 that
the value head reads instead of the trunk; and a `prior` over the items of its lists (`decoding.prior`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.decoding import prior, suggested, wide
from rlhf_jax.decoding.grammar import WHOLE, Along, Grammar, GrammarState, allowed_at, among, read_along
from rlhf_jax.decoding.sampler import Decoding, Reweigh, sample_with_cache
from rlhf_jax.equations.logprobs import entropy, token_logprobs
from rlhf_jax.interfaces import (
    GroupPolicy,
    Params,
    PolicyApply,
    PolicyOutput,
    PromptBatch,
    ResponseGroups,
    Rollout,
    Sample,
    Score,
)
from rlhf_jax.models import gpt2, heads
from rlhf_jax.models.gpt2 import GPT2Config

Decode = Callable[[Params, PromptBatch, Key[Array, ""], Int[Array, " B"] | None], Rollout]
"""`Sample` with numbers for the rows, so that a row keeps its random stream in another batch."""


class Read(NamedTuple):
    """What logits are read with."""

    trunk: Params
    reweigh: Reweigh | None
    """What the prior makes of them."""
    candidates: Bool[Array, "B I"] | None
    """Items that the lists of each row may hold."""
    manners: Float[Array, " 3"] | None
    """The prior's, for places behind the list."""


Judge = Callable[[Read, Array, Array, Along], tuple[Array, Array]]
"""Log-probabilities and entropies of tokens at some positions, from the hidden states they were drawn from."""


def make_decode(
    config: GPT2Config,
    grammar: Grammar,
    decoding: Decoding,
    *,
    group_size: int = 1,
) -> Decode:
    """The sampler over a cached GPT-2.

    A group of responses to one prompt stands row by row; the prompt is read once, and what was read is repeated. With
    groups the rows of the rollout, and those that `row_ids` numbers, are `group_size` times as many as the prompts.

    Where the value head reads the trunk, its values come along: the hidden states are there anyway. Weights are cast to
    the network's `compute_dtype` once, before the loop over tokens, which holds that copy beside the parameters.
    """

    def decode(params: Params, prompts: PromptBatch, key: Array, row_ids: Array | None = None) -> Rollout:
        trunk = gpt2.with_cast_weights(config, params["trunk"])
        table = said_table(grammar, trunk).astype(config.compute_dtype)
        with_values = "value" in params and "critic" not in params
        prompt, max_tokens = prompts.tokens.shape[1], decoding.max_tokens
        once = prompts
        if group_size > 1:
            prompts = jax.tree.map(lambda leaf: jnp.repeat(leaf, group_size, axis=0), prompts)

        reweigh = of_prompts(grammar, params, prompts)

        def value_of(hidden: Array, values: Array, column: Array | int) -> Array:
            return values.at[:, column].set(heads.value(params["value"], hidden)) if with_values else values

        def head(hidden: Array, state: GrammarState, allowed: Array) -> Array:
            if wide.is_wide(grammar):
                logits = wide.next_logits(grammar, table, hidden, state, config.compute_dtype)
            else:
                logits = gpt2.lm_logits({"wte": table}, hidden, compute_dtype=config.compute_dtype)
            return logits if reweigh is None else reweigh(logits, allowed)

        def start(tokens: Array, mask: Array) -> tuple[Array, tuple[gpt2.Cache, Array]]:
            # The last token drawn is never read, so it needs no slot.
            rows = (tokens, mask) if group_size == 1 else (once.tokens, once.mask)
            hidden, cache = gpt2.prefill(config, trunk, *rows, cache_length=prompt + max_tokens - 1)
            if group_size > 1:
                hidden, cache = jnp.repeat(hidden, group_size, axis=0), gpt2.repeat_rows(cache, group_size)
            return hidden, (cache, value_of(hidden, jnp.zeros((tokens.shape[0], max_tokens), jnp.float32), 0))

        def step(state: tuple[gpt2.Cache, Array], token: Array) -> tuple[Array, tuple[gpt2.Cache, Array]]:
            cache, values = state
            hidden, stepped = gpt2.decode_step(config, trunk, cache, token)
            return hidden, (stepped, value_of(hidden, values, cache.index - prompt + 1))

        rollout, (_, values) = sample_with_cache(
            prompts,
            key,
            start=start,
            step=step,
            grammar=grammar,
            decoding=decoding,
            row_ids=row_ids,
            head=head,
        )
        # Whether this policy reads them or not: a reward model may.
        rollout = dataclasses.replace(rollout, item_scores=prompts.item_scores)
        if not with_values:
            return rollout
        return dataclasses.replace(rollout, values=jnp.where(rollout.response_mask, values, 0.0))

    return decode


def said_table(grammar: Grammar, trunk: Params) -> Float[Array, "V D"]:
    """The rows of the embedding table that a response may hold: the first `grammar.vocab_size`, mostly all of them."""
    table: Array = trunk["wte"]
    return table if len(table) == grammar.vocab_size else table[: grammar.vocab_size]


def of_prompts(grammar: Grammar, params: Params, prompts: PromptBatch | Rollout) -> Reweigh | None:
    """What the policy's prior makes of logits after these prompts; None where it has none."""
    if prior.NAME not in params:
        return None
    own = params[prior.NAME]
    items = functools.partial(prior.with_prior, grammar, own["policy"], prior.bonus(own, prompts.item_scores))
    if "manners" not in own:
        return items
    return lambda logits, allowed: prior.with_manners(grammar, own["manners"], items(logits, allowed), allowed)


def make_sample(
    config: GPT2Config, grammar: Grammar, *, max_tokens: int, temperature: float = 1.0, group_size: int = 1
) -> Sample:
    """Rollouts for learning: the whole tempered distribution, rows numbered from 0, values included."""
    decode = make_decode(config, grammar, Decoding(max_tokens, temperature), group_size=group_size)

    def draw(params: Params, prompts: PromptBatch, key: Array) -> Rollout:
        rollout = decode(params, prompts, key, None)
        return rollout if rollout.values is not None else with_critic_values(config, params, rollout)

    return draw


def response_hidden(config: GPT2Config, trunk: Params, rollout: Rollout) -> Float[Array, "B T D"]:
    """Hidden states each response token was drawn from: positions P−1 … S−2. [B, T, D]"""
    tokens = jnp.concatenate([rollout.prompt_tokens, rollout.response_tokens[:, :-1]], axis=1)
    mask = jnp.concatenate([rollout.prompt_mask, rollout.response_mask[:, :-1]], axis=1)
    return gpt2.hidden_states(config, trunk, tokens, mask, from_position=rollout.prompt_tokens.shape[1] - 1)


def with_critic_values(config: GPT2Config, params: Params, rollout: Rollout) -> Rollout:
    """The rollout with the values of the `critic` network, by one pass; as it was where the tree has none."""
    if "critic" not in params:
        return rollout
    values = heads.value(params["value"], response_hidden(config, params["critic"], rollout))
    return dataclasses.replace(rollout, values=jnp.where(rollout.response_mask, values, 0.0))


def make_policy_apply(
    config: GPT2Config, grammar: Grammar, *, temperature: float = 1.0, group_size: int = 1
) -> PolicyApply:
    """Judges responses under the mask and temperature they were drawn with; head and softmax on response rows only.

    Where the tree has no `value` head (a reference policy), values are 0. `config.head_chunk` bounds the logits in memory.

    Args:
      group_size: above 1, the rows must be whole groups of so many responses to one prompt, as `make_sample` draws them. A
        prompt is then read once for its group: P + N·T positions, not N·(P + T). Needs `config.attention` "masked".
    """
    judge = make_judge(config, grammar, temperature)

    def apply(params: Params, rollout: Rollout) -> PolicyOutput:
        mask = rollout.response_mask
        if group_size == 1:
            hidden = response_hidden(config, params["trunk"], rollout)
        else:
            hidden = group_hidden(config, params["trunk"], grouped(rollout, group_size))
        logprobs, entropies = judge(params, rollout, hidden, rollout.response_tokens)
        judged = response_hidden(config, params["critic"], rollout) if "critic" in params else hidden
        values = heads.value(params["value"], judged) if "value" in params else jnp.zeros_like(logprobs)
        return PolicyOutput(
            logprobs=jnp.where(mask, logprobs, 0.0),
            entropy=jnp.where(mask, entropies, 0.0),
            values=jnp.where(mask, values, 0.0),
        )

    return apply


def make_group_policy(config: GPT2Config, grammar: Grammar, *, temperature: float = 1.0) -> GroupPolicy:
    """What `make_policy_apply` says of N responses to a prompt, which is read once: P + N·T positions, not N·(P + T).

    Needs `config.attention` "masked"; each response then attends to the prompt and to itself.
    """
    judge = make_judge(config, grammar, temperature)

    def logprobs(params: Params, groups: ResponseGroups) -> Float[Array, "B N T"]:
        tokens = groups.response_tokens
        n_prompts, n_responses, length = tokens.shape
        prompts = jax.tree.map(lambda leaf: jnp.repeat(leaf, n_responses, axis=0), groups.prompts)
        hidden = group_hidden(config, params["trunk"], groups)
        said, _ = judge(params, prompts, hidden, tokens.reshape(-1, length))
        return jnp.where(groups.response_mask, said.reshape(n_prompts, n_responses, length), 0.0)

    return GroupPolicy(logprobs)


def grouped(rollout: Rollout, group_size: int) -> ResponseGroups:
    """The rollout's rows as groups of `group_size` responses, each with the prompt of its first row.

    Raises: ValueError if the rows are no whole groups.
    """
    rows, length = rollout.response_tokens.shape
    if rows % group_size:
        raise ValueError(f"{rows} responses are no whole groups of {group_size}")
    shape = (rows // group_size, group_size, length)
    return ResponseGroups(
        prompts=PromptBatch(tokens=rollout.prompt_tokens[::group_size], mask=rollout.prompt_mask[::group_size]),
        response_tokens=rollout.response_tokens.reshape(shape),
        response_mask=rollout.response_mask.reshape(shape),
    )


def group_hidden(config: GPT2Config, trunk: Params, groups: ResponseGroups) -> Float[Array, "rows T D"]:
    """Hidden states each response token was drawn from, response by response. [B·N, T, D]"""
    n_prompts, n_responses, length = groups.response_tokens.shape
    prompt = groups.prompts.tokens.shape[1]

    def one_row(prompts: Array, responses: Array) -> Array:
        # The last token drawn is never read.
        return jnp.concatenate([prompts, responses[..., :-1].reshape(n_prompts, -1)], axis=1)

    hidden = gpt2.hidden_states(
        config,
        trunk,
        one_row(groups.prompts.tokens, groups.response_tokens),
        one_row(groups.prompts.mask, groups.response_mask),
        from_position=prompt - 1,
        branch=(0,) * prompt + tuple(text + 1 for text in range(n_responses) for _ in range(length - 1)),
    )
    # The prompt's last position says the first token of all.
    first = jnp.broadcast_to(hidden[:, None, :1], (n_prompts, n_responses, 1, hidden.shape[-1]))
    later = hidden[:, 1:].reshape(n_prompts, n_responses, length - 1, -1)
    return jnp.concatenate([first, later], axis=2).reshape(n_prompts * n_responses, length, -1)


def make_judge(
    config: GPT2Config, grammar: Grammar, temperature: float
) -> Callable[[Params, PromptBatch | Rollout, Array, Array], tuple[Array, Array]]:
    """Log-probabilities and entropies of the tokens drawn from hidden states; the prompts say what a prior adds, and which
    items a list may hold."""

    def one(logits: Array, tokens: Array, allowed: Array) -> tuple[Array, Array]:
        logprobs = token_logprobs(logits, tokens, temperature=temperature, allowed=allowed)
        return logprobs, entropy(logits, temperature=temperature, allowed=allowed)

    def at_positions(read: Read, hidden: Array, tokens: Array, along: Along) -> tuple[Array, Array]:
        reweigh, candidates = read.reweigh, read.candidates
        head = {"wte": said_table(grammar, read.trunk)}
        logits, allowed = gpt2.lm_logits(head, hidden, compute_dtype=config.compute_dtype), allowed_at(grammar, along)
        if candidates is not None:
            allowed = among(grammar, allowed, candidates[:, None])
        if reweigh is not None:
            # A position at a time has the shapes of sampling.
            logits = jax.vmap(reweigh, (1, 1), 1)(logits, allowed)

        return jax.vmap(one)(logits, tokens, allowed)

    def after_list(listed: Array, read: Read, hidden: Array, tokens: Array, along: Along) -> tuple[Array, Array]:
        table = said_table(grammar, read.trunk)
        said = wide.after_the_list(grammar, table, hidden, tokens, along, listed, config.compute_dtype)
        logits = said.logits
        if read.manners is not None:
            logits = prior.with_manners(said.grammar, read.manners, logits, said.allowed)
        return jax.vmap(one)(logits, said.tokens, said.allowed)

    def judge(params: Params, prompts: PromptBatch | Rollout, hidden: Array, tokens: Array) -> tuple[Array, Array]:
        along = read_along(grammar, tokens)
        reweigh, manners = of_prompts(grammar, params, prompts), params.get(prior.NAME, {}).get("manners")
        read = Read(params["trunk"], reweigh, prompts.candidates, manners)
        length = tokens.shape[1]
        parts: list[tuple[Judge, slice]] = [(at_positions, slice(0, length))]
        if wide.is_wide(grammar):
            begin, listed = wide.list_columns(grammar, length), wide.listed_items(grammar, tokens, along)
            parts = [(at_positions, slice(0, begin)), (functools.partial(after_list, listed), slice(begin, length))]
        found = []
        for judge_part, part in parts:
            if part.start < part.stop:
                pieces = hidden[:, part], tokens[:, part], along_columns(along, part)
                chunk = config.head_chunk
                found.append(
                    judge_part(read, *pieces) if chunk is None else in_chunks(judge_part, chunk, read, *pieces)
                )
        logprobs, entropies = (jnp.concatenate(sides, axis=1) for sides in zip(*found, strict=True))
        return logprobs, entropies

    return judge


def along_columns(along: Along, part: slice) -> Along:
    """What the rules need to know at some of the positions."""
    fields = along._asdict().items()
    return Along(**{name: x if name in WHOLE or x is None else x[:, part] for name, x in fields})


def in_chunks(
    judge: Judge,
    chunk: int,
    read: Read,
    hidden: Float[Array, "B T D"],
    tokens: Int[Array, "B T"],
    along: Along,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """`judge` on `chunk` positions at a time, computed again in the backward pass; T need not be a multiple."""
    batch, length = tokens.shape
    n_chunks = -(-length // chunk)

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, n_chunks * chunk - length)) + ((0, 0),) * (x.ndim - 2))
        return padded.reshape(batch, n_chunks, chunk, *x.shape[2:]).swapaxes(0, 1)

    whole = {name: x for name, x in along._asdict().items() if name in WHOLE}
    along_first = {name: cut(x) for name, x in along._asdict().items() if name not in WHOLE and x is not None}

    @jax.checkpoint
    def one(piece: tuple[Array, Array, dict[str, Array]]) -> tuple[Array, Array]:
        return judge(read, piece[0], piece[1], Along(**whole, **piece[2]))

    judged = jax.lax.map(one, (cut(hidden), cut(tokens), along_first))
    logprobs, entropies = (x.swapaxes(0, 1).reshape(batch, -1)[:, :length] for x in judged)
    return logprobs, entropies


def make_score_items(config: GPT2Config, grammar: Grammar) -> suggested.ScoreItems:
    """Logits of every catalogue item right after `<rec>`, from the context alone; what the policy's prior makes of them."""

    def score_items(params: Params, prompts: PromptBatch) -> Float[Array, "B I"]:
        rec = jnp.full((prompts.tokens.shape[0], 1), grammar.rec, prompts.tokens.dtype)
        tokens = jnp.concatenate([prompts.tokens, rec], axis=1)
        mask = jnp.concatenate([prompts.mask, jnp.ones_like(rec, bool)], axis=1)
        last = tokens.shape[1] - 1
        hidden = gpt2.hidden_states(config, params["trunk"], tokens, mask, from_position=last)[:, 0]
        logits = heads.item_logits(
            params["trunk"],
            hidden,
            first_item=grammar.first_item,
            n_items=grammar.n_items,
            compute_dtype=config.compute_dtype,
        )
        if prior.NAME not in params:
            return logits
        own = params[prior.NAME]
        return prior.reweighted(
            own["policy"], prior.bonus(own, prompts.item_scores), logits, jnp.ones_like(logits, bool)
        )

    return score_items


def make_score_replies(config: GPT2Config, grammar: Grammar) -> Callable[[Params, ResponseGroups], Array]:
    """What `make_score` says of N replies to each prompt, which is read once where the attention is masked. [B, N, C]"""
    row_by_row, score_items = make_score(config, grammar), make_score_items(config, grammar)

    def score(params: Params, groups: ResponseGroups) -> Float[Array, "B N C"]:
        n_prompts, n_replies, length = groups.response_tokens.shape
        rows = n_prompts * n_replies
        prompts = jax.tree.map(lambda leaf: jnp.repeat(leaf, n_replies, axis=0), groups.prompts)
        tokens, mask = groups.response_tokens.reshape(rows, length), groups.response_mask.reshape(rows, length)
        if config.attention != "masked":
            said = Rollout(
                prompt_tokens=prompts.tokens,
                prompt_mask=prompts.mask,
                response_tokens=tokens,
                response_mask=mask,
                logprobs=jnp.zeros(tokens.shape, jnp.float32),
                finished=jnp.ones(rows, bool),
                item_scores=prompts.item_scores,
                candidates=prompts.candidates,
            )
            return row_by_row(params, said).reshape(n_prompts, n_replies, -1)
        # One column more, so that the last token is read too: column t is what is known after t tokens.
        wider = dataclasses.replace(
            groups,
            response_tokens=jnp.pad(groups.response_tokens, ((0, 0), (0, 0), (0, 1))),
            response_mask=jnp.pad(groups.response_mask, ((0, 0), (0, 0), (0, 1))),
        )
        hidden = group_hidden(config, params["trunk"], wider)
        last = jnp.take_along_axis(hidden, mask.sum(axis=1)[:, None, None], axis=1)[:, 0]
        read = None
        if suggested.NAME in params:
            logits = jnp.repeat(score_items(params[suggested.NAME], groups.prompts), n_replies, axis=0)
            read = suggested.of_lists(grammar, logits, prompts, tokens, mask)
        return heads.reward_components(params["reward"], last, read).reshape(n_prompts, n_replies, -1)

    return score


def make_score(config: GPT2Config, grammar: Grammar) -> Score:
    """Reward components at the last real token of each response.

    A tree with a `policy` reads what that says of the listed items (`decoding.suggested`), by a pass of its own over prompts.
    """
    read_policy = suggested.make_suggested(grammar, make_score_items(config, grammar))

    def score(params: Params, rollout: Rollout) -> Float[Array, "B C"]:
        tokens = jnp.concatenate([rollout.prompt_tokens, rollout.response_tokens], axis=1)
        mask = jnp.concatenate([rollout.prompt_mask, rollout.response_mask], axis=1)
        prompt = rollout.prompt_tokens.shape[1]
        hidden = gpt2.hidden_states(config, params["trunk"], tokens, mask, from_position=prompt)
        read = read_policy(params[suggested.NAME], rollout) if suggested.NAME in params else None
        return heads.reward_components(params["reward"], heads.last_token_hidden(hidden, rollout.response_mask), read)

    return score
