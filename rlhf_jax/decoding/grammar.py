"""The grammar of a system turn as position masks: which tokens may come next, given those before.

    <rec> ITEM ITEM … <say> words with ITEM mentions <eos>                 a recommending turn
    <say> words <eos>                                                     any other turn
    <pref> words <rec> ITEM ITEM … <say> words with ITEM mentions <eos>    a turn that reasons first, where `openings` has it

Which forms there are is data (`Grammar.openings`). The mask is a function of the tokens alone; a turn's candidates may
narrow it (`decoding.policy`). Sampling, reference and learning renormalise by the same mask, otherwise
the importance ratio compares two different distributions. There are two forms: one token at a time, for decoding, and
all positions at once, for judging a given response; they agree on every sequence, grammatical or not.

Words name items of the list alone, each as often as they like or once (`Grammar.once`). They are free, or a text of sections (`decoding.sections`), which mentions no items.
"""

import functools
import operator
from collections.abc import Iterable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from rlhf_jax.decoding import sections as of_sections
from rlhf_jax.decoding.sections import Section, SectionState


class Opening(NamedTuple):
    """A form of a turn: the token it opens with, and what follows that token."""

    token: int
    follows: Literal["list", "words", "preferences"]
    """A list of items that `<say>` ends; or words at once; or words that `<rec>` and a list end."""


class Grammar(NamedTuple):
    """The token ids the rules speak of; hashable, so that it can be a static argument of `jax.jit`."""

    n_words: int
    """Tokens [0, n_words) are words."""
    pad: int
    eos: int
    rec: int
    say: int
    first_item: int
    """Tokens [first_item, first_item + n_items) are items."""
    n_items: int
    max_items: int
    """Longest list a turn may suggest."""
    vocab_size: int
    """Rows of the embedding table that a response may hold, mostly all; those that are none of the above are never allowed."""
    openings: tuple[Opening, ...] = ()
    """The forms a turn may open with; none means the two above: `<rec>` and a list, `<say>` and words."""
    sections: tuple[Section, ...] = ()
    """What words are said in, in this order; none means that words are free."""
    once: bool = False
    """Whether words name an item of the list at most once."""

    @property
    def forms(self) -> tuple[Opening, ...]:
        """The openings that hold."""
        return self.openings or (Opening(self.rec, "list"), Opening(self.say, "words"))

    @property
    def reasons(self) -> bool:
        """Whether there is a form in which words stand before the list."""
        return any(form.follows == "preferences" for form in self.forms)


class GrammarState(NamedTuple):
    """What the rules need to know of the tokens so far."""

    started: Bool[Array, " B"]
    """Any token has been seen."""
    said: Bool[Array, " B"]
    """`<say>` has been seen."""
    ended: Bool[Array, " B"]
    """`<eos>` has been seen."""
    listed: Int[Array, "B K"]
    """Item tokens of the list, −1 where there are fewer; where words name each once, without those they have named."""
    n_listed: Int[Array, " B"]
    """Length of the list, repeats (which the rules forbid) included."""
    inferring: Bool[Array, " B"]
    """In the words before a list."""
    inferred: Bool[Array, " B"]
    """Any such word has been said."""
    sections: SectionState | None
    """Of the words; None where they are free."""


def check_grammar(grammar: Grammar) -> None:
    """Raises ValueError where the token ranges overlap or leave the vocabulary, or lists are impossible."""
    specials = {name: getattr(grammar, name) for name in ("pad", "eos", "rec", "say")}
    items = range(grammar.first_item, grammar.first_item + grammar.n_items)
    if len(set(specials.values())) < len(specials):
        raise ValueError(f"grammar: special tokens must differ, got {specials}")
    if any(token in items or not 0 <= token < grammar.vocab_size for token in specials.values()):
        raise ValueError(f"grammar: {specials} must be tokens below {grammar.vocab_size} and outside items {items}")
    if not 1 <= grammar.n_words <= grammar.first_item or items.stop > grammar.vocab_size:
        raise ValueError(f"grammar: words [0, {grammar.n_words}), {items} and vocabulary {grammar.vocab_size} clash")
    for opening in grammar.forms:
        if opening.token in items or not 0 <= opening.token < grammar.vocab_size:
            raise ValueError(f"grammar: {opening} must open with a token below {grammar.vocab_size} that is no item")
        if opening.token in (grammar.pad, grammar.eos) or (opening.token, opening.follows) == (grammar.say, "list"):
            raise ValueError(f"grammar: {opening}: <eos> and padding open nothing, and what follows <say> is words")
        if opening.follows == "preferences" and opening.token in (grammar.say, grammar.rec):
            raise ValueError(f"grammar: {opening}: words before a list need an opening of their own")
    of_sections.check_sections(grammar.sections, grammar.n_words)
    if grammar.n_items < 1 or grammar.max_items < 1:
        raise ValueError(f"grammar: n_items {grammar.n_items} and max_items {grammar.max_items} must be at least 1")


def is_item(grammar: Grammar, token: Int[Array, "*n"]) -> Bool[Array, "*n"]:
    """True where a token is an item."""
    return (token >= grammar.first_item) & (token < grammar.first_item + grammar.n_items)


def is_word(grammar: Grammar, token: Int[Array, "*n"]) -> Bool[Array, "*n"]:
    """True where a token is a word (a special token inside the range of words is none)."""
    special = (grammar.pad, grammar.eos, grammar.rec, grammar.say, *(opening.token for opening in grammar.openings))
    return (token < grammar.n_words) & ~is_one_of(token, special)


def is_one_of(token: Int[Array, "*n"], tokens: Iterable[int]) -> Bool[Array, "*n"]:
    """True where a token is one of `tokens`, of which there is at least one."""
    return functools.reduce(operator.or_, [token == one for one in dict.fromkeys(tokens)])


def begins_words(grammar: Grammar, token: Int[Array, "*n"]) -> Bool[Array, "*n"]:
    """True where words follow a token: `<say>`, and openings that say so."""
    return is_one_of(token, (grammar.say, *(form.token for form in grammar.forms if form.follows == "words")))


def begins_preferences(grammar: Grammar, token: Int[Array, "*n"]) -> Bool[Array, "*n"]:
    """True where words before a list follow a token; only for grammars that have such a form."""
    return is_one_of(token, [form.token for form in grammar.forms if form.follows == "preferences"])


def allowed_given(
    grammar: Grammar,
    *,
    started: Bool[Array, "*n 1"],
    said: Bool[Array, "*n 1"],
    ended: Bool[Array, "*n 1"],
    listed: Bool[Array, "*n V"],
    n_listed: Int[Array, "*n 1"],
    in_preferences: tuple[Bool[Array, "*n 1"], Bool[Array, "*n 1"]],
    in_sections: tuple[Bool[Array, "*n W"], Bool[Array, "*n"]] | None,
) -> Bool[Array, "*n V"]:
    """The rules themselves, for any leading shape; at least one token is always allowed.

    Args:
      in_preferences: whether a row is in the words before a list, and whether any such word has been said.
      in_sections: words that sections allow, and whether the text may end; None where words are free.
    """
    token = jnp.arange(grammar.vocab_size).reshape((1,) * (listed.ndim - 1) + (-1,))
    item = is_item(grammar, token)
    full = (n_listed >= grammar.max_items) | (n_listed >= grammar.n_items)
    first = is_one_of(token, [opening.token for opening in grammar.forms])
    in_list = (item & ~listed & ~full) | ((token == grammar.say) & (n_listed >= 1))
    if grammar.reasons:
        inferring, inferred = in_preferences
        in_list = jnp.where(inferring, is_word(grammar, token) | ((token == grammar.rec) & inferred), in_list)
    if in_sections is None:
        in_words = is_word(grammar, token) | listed | (token == grammar.eos)
    else:
        words, may_end = in_sections
        rest = [(0, 0)] * (words.ndim - 1) + [(0, grammar.vocab_size - grammar.n_words)]
        in_words = jnp.pad(words, rest) | ((token == grammar.eos) & may_end[..., None])
    open_turn = jnp.where(said, in_words, jnp.where(started, in_list, first))
    return jnp.where(ended, token == grammar.pad, open_turn)


def initial_state(grammar: Grammar, batch: int, *, room: int | None = None) -> GrammarState:
    """Before the first token of `batch` responses.

    Args:
      room: K, items of a list that are remembered; None is the longest that the grammar allows.
    """
    room = min(grammar.max_items, grammar.n_items) if room is None else room
    no = jnp.zeros(batch, bool)
    return GrammarState(
        started=no,
        said=no,
        ended=no,
        listed=jnp.full((batch, room), -1, jnp.int32),
        n_listed=jnp.zeros(batch, jnp.int32),
        inferring=no,
        inferred=no,
        sections=of_sections.initial_state(grammar.sections, grammar.n_words, batch) if grammar.sections else None,
    )


def advance(grammar: Grammar, state: GrammarState, token: Int[Array, " B"]) -> GrammarState:
    """After one more token per row."""
    listing = is_item(grammar, token) & ~state.said & ~state.ended
    rows = jnp.arange(token.shape[0])
    inferring, inferred = state.inferring, state.inferred
    if grammar.reasons:
        inferred = inferred | inferring
        inferring = (inferring | (begins_preferences(grammar, token) & ~state.started)) & (token != grammar.rec)
    said_in = state.sections
    if said_in is not None:
        counts = is_word(grammar, token) & state.said & ~state.ended
        said_in = of_sections.advance(grammar.sections, said_in, token, counts)
    # The mask over the vocabulary is made of these few numbers at every step, not carried: an index past the end is dropped.
    room = state.listed.shape[1]
    listed = state.listed.at[rows, jnp.where(listing, state.n_listed, room)].set(token, mode="drop")
    if grammar.once:
        named = is_item(grammar, token) & ~listing
        listed = jnp.where(named[:, None] & (listed == token[:, None]), -1, listed)
    return GrammarState(
        started=jnp.ones_like(state.started),
        said=state.said | begins_words(grammar, token),
        ended=state.ended | (token == grammar.eos),
        listed=listed,
        n_listed=state.n_listed + listing,
        inferring=inferring,
        inferred=inferred,
        sections=said_in,
    )


def allowed(grammar: Grammar, state: GrammarState) -> Bool[Array, "B V"]:
    """Which tokens may come next in each row. [B, V]"""
    in_sections = None
    if state.sections is not None:
        used = of_sections.used_now(state.sections)
        in_sections = of_sections.allowed_words(grammar.sections, state.sections.section, state.sections.n_said, used)
    places = jnp.where(state.listed >= 0, state.listed, grammar.vocab_size)
    listed = jnp.zeros((len(places), grammar.vocab_size), bool)
    return allowed_given(
        grammar,
        started=state.started[:, None],
        said=state.said[:, None],
        ended=state.ended[:, None],
        listed=listed.at[jnp.arange(len(places))[:, None], places].set(True, mode="drop"),
        n_listed=state.n_listed[:, None],
        in_preferences=(state.inferring[:, None], state.inferred[:, None]),
        in_sections=in_sections,
    )


class Along(NamedTuple):
    """What the rules need to know at every position of given responses, in arrays small enough to keep."""

    started: Bool[Array, "B T"]
    said: Bool[Array, "B T"]
    ended: Bool[Array, "B T"]
    n_listed: Int[Array, "B T"]
    position: Int[Array, "B T"]
    inferring: Bool[Array, "B T"]
    inferred: Bool[Array, "B T"]
    first_listed: Int[Array, "B V"]
    """Position at which an item was first listed; T or more where it never was."""
    section: Int[Array, "B T"] | None = None
    """This and the next two as in `SectionsAlong`; None where words are free."""
    n_said: Int[Array, "B T"] | None = None
    first_used: Int[Array, "B K W"] | None = None
    first_named: Int[Array, "B V"] | None = None
    """Position at which words first named an item, as `first_listed`; None where they may name it again."""


WHOLE = ("first_listed", "first_used", "first_named")
"""Fields of `Along` that have no axis of positions."""


def read_along(grammar: Grammar, tokens: Int[Array, "B T"]) -> Along:
    """Reads responses once, for `allowed_at` any of their positions."""
    batch, length = tokens.shape
    before = jnp.broadcast_to(jnp.arange(length), (batch, length))
    said = exclusive_any(begins_words(grammar, tokens))
    ended = exclusive_any(tokens == grammar.eos)
    listing = is_item(grammar, tokens) & ~said & ~ended
    never = jnp.full((batch, grammar.vocab_size), length, jnp.int32)
    inferring = inferred = jnp.zeros_like(said)
    if grammar.reasons:
        begun = exclusive_any(begins_preferences(grammar, tokens) & (before == 0))
        inferring = begun & ~exclusive_any(tokens == grammar.rec)
        inferred = begun & (before >= 2)
    in_sections: dict[str, Array] = {}
    if grammar.sections:
        counts = is_word(grammar, tokens) & said & ~ended
        in_sections = of_sections.read_along(grammar.sections, grammar.n_words, tokens, counts)._asdict()

    def first_place(here: Bool[Array, "B T"]) -> Int[Array, "B V"]:
        return never.at[jnp.arange(batch)[:, None], tokens].min(jnp.where(here, before, length))

    return Along(
        started=before > 0,
        said=said,
        ended=ended,
        n_listed=jnp.cumsum(listing, axis=1) - listing,
        position=before,
        inferring=inferring,
        inferred=inferred,
        first_listed=first_place(listing),
        first_named=first_place(is_item(grammar, tokens) & said & ~ended) if grammar.once else None,
        **in_sections,
    )


def allowed_at(grammar: Grammar, along: Along) -> Bool[Array, "B T V"]:
    """Which tokens might have stood at the positions that `along` speaks of (all, or a slice of its [B, T] arrays).

    An item is listed at t where its first listing stands before t, so the large array is a comparison of a [B, V] and
    a [B, T] one, which XLA fuses into the softmax that uses it. [B, T, V]
    """
    in_sections = None
    if along.section is not None and along.n_said is not None and along.first_used is not None:
        used = of_sections.used_at(along.section, along.first_used, along.position)
        in_sections = of_sections.allowed_words(grammar.sections, along.section, along.n_said, used)
    listed = along.first_listed[:, None, :] < along.position[..., None]
    if along.first_named is not None:
        listed &= along.first_named[:, None, :] >= along.position[..., None]
    return allowed_given(
        grammar,
        started=along.started[..., None],
        said=along.said[..., None],
        ended=along.ended[..., None],
        listed=listed,
        n_listed=along.n_listed[..., None],
        in_preferences=(along.inferring[..., None], along.inferred[..., None]),
        in_sections=in_sections,
    )


def allowed_along(grammar: Grammar, tokens: Int[Array, "B T"]) -> Bool[Array, "B T V"]:
    """Which tokens might have stood at every position, given those before it: `allowed` of each prefix, at once."""
    return allowed_at(grammar, read_along(grammar, tokens))


def among(
    grammar: Grammar, allowed: Bool[Array, "*n V"], candidates: Bool[Array, "*#n I"] | None
) -> Bool[Array, "*n V"]:
    """The mask without the items that are no candidates of a row; as it was where there are none.

    A row that has no candidate at all may say nothing where a list begins: whoever makes candidates sees to it.
    """
    if candidates is None:
        return allowed
    items = slice(grammar.first_item, grammar.first_item + grammar.n_items)
    return allowed.at[..., items].set(allowed[..., items] & candidates)


def exclusive_any(hit: Bool[Array, "B T"]) -> Bool[Array, "B T"]:
    """True where an earlier position of the row is True. [B, T]"""
    return jnp.cumsum(hit, axis=1) - hit > 0
