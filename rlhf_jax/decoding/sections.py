"""Texts of named sections as position masks: part of the response grammar where words are not free.

    section word word … section word … <eos>        each section once at most, in order, with 1 … `most` different words of its own

Like `decoding.grammar`, of which this is a part, there are two forms that agree on every sequence, grammatical or not: one
token at a time, and all positions at once. A mask of sections says only which words may come next, and whether a text may end.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int


class Section(NamedTuple):
    """What may be said of one thing."""

    token: int
    """The word that opens it; no section says it."""
    words: tuple[int, ...]
    """What it may say; another section may have the same words."""
    most: int
    """How many of them at most."""


class SectionState(NamedTuple):
    """What the rules need to know of a text so far."""

    section: Int[Array, " B"]
    """Number of the section opened last, counted from 1; 0 before the first."""
    n_said: Int[Array, " B"]
    """Words since it was opened."""
    used: Bool[Array, "B K W"]
    """Words that were said in each section, 0 included."""


class SectionsAlong(NamedTuple):
    """The same at every position of given responses, in arrays small enough to keep."""

    section: Int[Array, "B T"]
    n_said: Int[Array, "B T"]
    first_used: Int[Array, "B K W"]
    """Position at which a section first said a word; T or more where it never did."""


def check_sections(sections: tuple[Section, ...], n_words: int) -> None:
    """Raises ValueError where a section has no words, or a token is none of the words or opens a section and is said in one."""
    opens = [section.token for section in sections]
    if len(set(opens)) < len(opens):
        raise ValueError(f"sections: each opens with a word of its own, got {opens}")
    for number, section in enumerate(sections):
        if not section.words or section.most < 1:
            raise ValueError(
                f"section {number} has {len(section.words)} words and says {section.most}: needs 1 of each"
            )
        outside = [token for token in (section.token, *section.words) if not 0 <= token < n_words]
        if outside:
            raise ValueError(f"section {number}: token {outside[0]} is none of the {n_words} words")
        if both := set(opens) & set(section.words):
            raise ValueError(f"section {number}: {min(both)} opens a section and cannot be said in one")


def initial_state(sections: tuple[Section, ...], n_words: int, batch: int) -> SectionState:
    """Before the first word of `batch` texts."""
    zero = jnp.zeros(batch, jnp.int32)
    return SectionState(zero, zero, jnp.zeros((batch, len(sections) + 1, n_words), bool))


def opened(sections: tuple[Section, ...], token: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """Number of the section that a token opens, from 1; 0 where it opens none."""
    return jnp.sum(jnp.stack([(token == one.token) * (place + 1) for place, one in enumerate(sections)]), axis=0)


def advance(
    sections: tuple[Section, ...], state: SectionState, token: Int[Array, " B"], counts: Bool[Array, " B"]
) -> SectionState:
    """After one more token of each row; `counts` is True where it is a word of the text."""
    opens = jnp.where(counts, opened(sections, token), 0)
    says = counts & (opens == 0)
    rows = jnp.arange(token.shape[0])
    return SectionState(
        section=jnp.where(opens > 0, opens, state.section),
        n_said=jnp.where(opens > 0, 0, state.n_said + says),
        used=state.used.at[rows, state.section, token].max(says, mode="drop"),
    )


def used_now(state: SectionState) -> Bool[Array, "B W"]:
    """Words that the open section has said. [B, W]"""
    return state.used[jnp.arange(state.section.shape[0]), state.section]


def read_along(
    sections: tuple[Section, ...], n_words: int, tokens: Int[Array, "B T"], counts: Bool[Array, "B T"]
) -> SectionsAlong:
    """Reads texts once; `counts` as in `advance`."""
    batch, length = tokens.shape
    opens = jnp.where(counts, opened(sections, tokens), 0)
    says = counts & (opens == 0)
    place = jnp.broadcast_to(jnp.arange(length), (batch, length))
    # Position of the latest opening before t, −1 where there is none.
    latest = lax.cummax(jnp.where(opens > 0, place, -1), axis=1)
    latest = jnp.pad(latest[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    at = jnp.maximum(latest, 0)
    section = jnp.where(latest >= 0, jnp.take_along_axis(opens, at, axis=1), 0)
    before = jnp.cumsum(says, axis=1) - says
    n_said = before - jnp.where(latest >= 0, jnp.take_along_axis(before, at, axis=1), 0)
    never = jnp.full((batch, len(sections) + 1, n_words), length, jnp.int32)
    first_used = never.at[jnp.arange(batch)[:, None], section, tokens].min(jnp.where(says, place, length), mode="drop")
    return SectionsAlong(section, n_said, first_used)


def used_at(
    section: Int[Array, "B T"], first_used: Int[Array, "B K W"], position: Int[Array, "B T"]
) -> Bool[Array, "B T W"]:
    """Words that the section open at each position has said before it. [B, T, W]"""
    return jnp.take_along_axis(first_used, section[..., None], axis=1) < position[..., None]


def allowed_words(
    sections: tuple[Section, ...],
    section: Int[Array, "*n"],
    n_said: Int[Array, "*n"],
    used: Bool[Array, "*n W"],
) -> tuple[Bool[Array, "*n W"], Bool[Array, "*n"]]:
    """The rules themselves: which words may come next, and whether the text may end. [*n, W], [*n]

    After an ungrammatical beginning too something is allowed: a section that has nothing left to say may end.
    """
    n_words = used.shape[-1]
    own, later = np.zeros((len(sections) + 1, n_words), bool), np.zeros((len(sections) + 1, n_words), bool)
    for place, one in enumerate(sections):
        own[place + 1, list(one.words)] = True
        later[: place + 1, one.token] = True
    most = jnp.asarray([0, *(one.most for one in sections)])
    words = jnp.asarray(own)[section] & ~used & (n_said < most[section])[..., None]
    nothing_left = ~jnp.any(words, axis=-1)
    complete = (section > 0) & ((n_said > 0) | nothing_left)
    opens = jnp.asarray(later)[section] & (complete | (section == 0))[..., None]
    return words | opens, complete
