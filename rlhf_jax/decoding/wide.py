"""Wide catalogues: the head over all items only where a list may go on; elsewhere words and the few items of the list.

    at a place of a list         h·E_v of every token v                        B·V logits
    anywhere else                h·E_w of every word and special token w,      B·(W + K) logits
                                 h·E_i of the K items of the row's own list

Nothing else is allowed there, so the softmax is the same: exact, up to the order in which a matmul adds. Where the catalogue is
small the whole head costs less than telling places apart, and numbers stay what they were to the bit.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.decoding.grammar import Along, Grammar, GrammarState, allowed_given, is_item
from rlhf_jax.decoding.sections import allowed_words, used_at
from rlhf_jax.models import gpt2

WIDE = 16_384
"""Items from which on a catalogue is wide."""


def is_wide(grammar: Grammar) -> bool:
    """Whether items are many, and stand behind all other tokens that a response may hold."""
    others = (grammar.pad, grammar.eos, grammar.rec, grammar.say, *(form.token for form in grammar.forms))
    return grammar.n_items >= WIDE and max(others) < grammar.first_item


def next_logits(
    grammar: Grammar, table: Float[Array, "V D"], hidden: Float[Array, "B D"], state: GrammarState, compute_dtype: str
) -> Float[Array, "B V"]:
    """Logits of the next token of every row; where no row's list may go on, 0 for items that are in no list of its own.

    Args:
      state: of the tokens so far; what it forbids may have any logit.
    """
    in_list = state.started & ~state.said & ~state.ended & ~state.inferring

    def whole() -> Array:
        return gpt2.lm_logits({"wte": table}, hidden, compute_dtype=compute_dtype)

    def narrow() -> Array:
        found = _narrow_logits(grammar, table, hidden[:, None], state.listed, compute_dtype)[:, 0]
        words, slots = found[:, : grammar.first_item], found[:, grammar.first_item :]
        wide = jnp.pad(words, ((0, 0), (0, grammar.vocab_size - grammar.first_item)))
        places = jnp.where(state.listed >= 0, state.listed, grammar.vocab_size)
        return wide.at[jnp.arange(len(wide))[:, None], places].set(slots, mode="drop")

    return jax.lax.cond(jnp.any(in_list), whole, narrow)


def list_columns(grammar: Grammar, length: int) -> int:
    """First positions of a response at which a list may go on: its opening, its items, the `<say>` after the last.

    All of them where words may stand before a list.
    """
    return length if grammar.reasons else min(length, min(grammar.max_items, grammar.n_items) + 2)


class Narrow(NamedTuple):
    """Places after the list, in a vocabulary of their own: words and special tokens as they are, then K places of the list."""

    grammar: Grammar
    """Of that vocabulary."""
    logits: Float[Array, "B t W"]
    tokens: Int[Array, "B t"]
    allowed: Bool[Array, "B t W"]


def listed_items(grammar: Grammar, tokens: Int[Array, "B T"], along: Along) -> Int[Array, "B K"]:
    """Items of every response's list, −1 where there are fewer. [B, K]"""
    end = list_columns(grammar, tokens.shape[1]) - 1
    listing = is_item(grammar, tokens) & ~along.said & ~along.ended
    return jnp.where(listing, tokens, -1)[:, 1 : max(end, 2)]


def after_the_list(
    grammar: Grammar,
    table: Float[Array, "V D"],
    hidden: Float[Array, "B t D"],
    tokens: Int[Array, "B t"],
    along: Along,
    listed: Int[Array, "B K"],
    compute_dtype: str,
) -> Narrow:
    """Positions of responses that obey the grammar, behind `list_columns`.

    Args:
      hidden, tokens, along: of these positions.
      listed: items of the list, by row.
    """
    words, slots = grammar.first_item, listed.shape[1]
    small = grammar._replace(n_items=slots, vocab_size=words + slots)
    logits = _narrow_logits(grammar, table, hidden, listed, compute_dtype)
    named = listed[:, None] == tokens[..., None]
    place = jnp.where(jnp.any(named, axis=-1), words + jnp.argmax(named, axis=-1), grammar.pad)
    held = jnp.broadcast_to((listed >= 0)[:, None], named.shape)
    if along.first_named is not None:
        first = jnp.take_along_axis(along.first_named, jnp.maximum(listed, 0), axis=1)
        held &= first[:, None] >= along.position[..., None]
    in_sections = None
    if along.section is not None and along.n_said is not None and along.first_used is not None:
        used = used_at(along.section, along.first_used, along.position)
        in_sections = allowed_words(grammar.sections, along.section, along.n_said, used)
    allowed = allowed_given(
        small,
        started=along.started[..., None],
        said=along.said[..., None],
        ended=along.ended[..., None],
        listed=jnp.pad(held, ((0, 0), (0, 0), (words, 0))),
        n_listed=along.n_listed[..., None],
        in_preferences=(along.inferring[..., None], along.inferred[..., None]),
        in_sections=in_sections,
    )
    return Narrow(small, logits, jnp.where(is_item(grammar, tokens), place, tokens), allowed)


def _narrow_logits(
    grammar: Grammar, table: Array, hidden: Float[Array, "B t D"], listed: Int[Array, "B K"], compute_dtype: str
) -> Float[Array, "B t W"]:
    """Logits of words and special tokens, then of the items of the row's list. [B, t, first_item + K]"""
    words = gpt2.lm_logits({"wte": table[: grammar.first_item]}, hidden, compute_dtype=compute_dtype)
    rows = table[jnp.maximum(listed, 0)].astype(compute_dtype)
    items = jnp.einsum("btd,bkd->btk", hidden.astype(compute_dtype), rows, preferred_element_type=jnp.float32)
    return jnp.concatenate([words, items], axis=-1)
