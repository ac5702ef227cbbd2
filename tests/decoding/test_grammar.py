"""The grammar: the serial form, the parallel form and a parser written apart agree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from rlhf_jax.decoding import grammar as rules
from rlhf_jax.decoding.grammar import Grammar, Opening

GRAMMAR = Grammar(n_words=4, pad=4, eos=5, rec=6, say=7, first_item=8, n_items=4, max_items=3, vocab_size=14)
WORDS, PAD, EOS, REC, SAY, ITEMS, PREF = {0, 1, 2, 3}, 4, 5, 6, 7, {8, 9, 10, 11}, 12
REASONING = GRAMMAR._replace(openings=(*GRAMMAR.forms, Opening(PREF, "preferences")))
LENGTH = 8
rows = st.lists(st.integers(0, 12), min_size=LENGTH, max_size=LENGTH)
ONCE = REASONING._replace(once=True)
both = pytest.mark.parametrize("grammar", [GRAMMAR, REASONING, ONCE], ids=["two forms", "reasoning", "once"])


@functools.partial(jax.jit, static_argnums=0)
def serial(grammar: Grammar, tokens: jax.Array) -> jax.Array:
    """Masks of one token after the other. [B, T, V]"""

    def step(state: rules.GrammarState, token: jax.Array) -> tuple[rules.GrammarState, jax.Array]:
        return rules.advance(grammar, state, token), rules.allowed(grammar, state)

    _, masks = lax.scan(step, rules.initial_state(grammar, tokens.shape[0], room=tokens.shape[1]), tokens.T)
    return masks.swapaxes(0, 1)


parallel = jax.jit(rules.allowed_along, static_argnums=0)


def may_follow(grammar: Grammar, turn: list[int]) -> set[int]:
    """The rules in plain Python, for a grammatical beginning of a turn."""
    if not turn:
        return {REC, SAY, PREF} if grammar.reasons else {REC, SAY}
    if EOS in turn:
        return {PAD}
    if turn[0] == PREF and REC not in turn:
        return WORDS | ({REC} if len(turn) > 1 else set())
    before = turn.index(REC) + 1 if REC in turn else 1
    listed = set(turn[before : turn.index(SAY)] if SAY in turn else turn[before:])
    if SAY in turn:
        named = set(turn[turn.index(SAY) :]) if grammar.once else set()
        return WORDS | (listed - named) | {EOS}
    more = ITEMS - listed if len(listed) < 3 else set()
    return more | ({SAY} if listed else set())


@both
@given(batch=st.lists(rows, min_size=5, max_size=5))
def test_serial_and_parallel_masks_are_equal_on_any_tokens(grammar: Grammar, batch: list[list[int]]) -> None:
    tokens = jnp.asarray(batch, jnp.int32)
    masks = np.asarray(serial(grammar, tokens))
    np.testing.assert_array_equal(masks, parallel(grammar, tokens))
    assert masks.any(axis=-1).all()
    assert not masks[..., 13].any()


@both
@given(choices=st.lists(st.lists(st.integers(0, 10**6), min_size=LENGTH, max_size=LENGTH), min_size=5, max_size=5))
def test_masks_follow_the_rules_on_any_grammatical_turn(grammar: Grammar, choices: list[list[int]]) -> None:
    turns: list[list[int]] = [[] for _ in choices]
    expected = np.zeros((5, LENGTH, 14), bool)
    for row, (turn, numbers) in enumerate(zip(turns, choices, strict=True)):
        for column, number in enumerate(numbers):
            options = sorted(may_follow(grammar, turn))
            expected[row, column, options] = True
            turn.append(options[number % len(options)])
    np.testing.assert_array_equal(parallel(grammar, jnp.asarray(turns, jnp.int32)), expected)


def test_a_list_of_the_whole_catalogue_goes_on_with_words() -> None:
    grammar = GRAMMAR._replace(n_items=2, max_items=5)
    tokens = jnp.array([[REC, 8, 9, SAY, 9, EOS]])
    masks = np.asarray(jax.jit(rules.allowed_along, static_argnums=0)(grammar, tokens))[0]
    assert list(np.flatnonzero(masks[2])) == [SAY, 9]
    assert list(np.flatnonzero(masks[3])) == [SAY]
    assert list(np.flatnonzero(masks[4])) == [0, 1, 2, 3, EOS, 8, 9]


@pytest.mark.parametrize(
    ("openings", "first", "second"),
    [
        ((Opening(SAY, "words"),), {SAY}, WORDS | {EOS}),
        ((Opening(REC, "list"),), {REC}, ITEMS),
        # A third form: token 3, a word elsewhere, opens a turn of words, in which it cannot be said again.
        ((Opening(REC, "list"), Opening(3, "words")), {REC, 3}, {0, 1, 2, EOS}),
    ],
)
def test_the_forms_of_a_turn_are_data(openings: tuple[Opening, ...], first: set[int], second: set[int]) -> None:
    grammar = GRAMMAR._replace(openings=openings)
    rules.check_grammar(grammar)
    tokens = jnp.array([[openings[-1].token, 0, 8]])
    masks = np.asarray(jax.jit(rules.allowed_along, static_argnums=0)(grammar, tokens))[0]
    assert (set(np.flatnonzero(masks[0])), set(np.flatnonzero(masks[1]))) == (first, second)
    state = rules.advance(grammar, rules.initial_state(grammar, 1), tokens[:, 0])
    assert set(np.flatnonzero(rules.allowed(grammar, state)[0])) == second


def test_special_tokens_among_the_words_are_not_words() -> None:
    grammar = GRAMMAR._replace(n_words=6)
    masks = np.asarray(jax.jit(rules.allowed_along, static_argnums=0)(grammar, jnp.array([[SAY, 1]])))[0]
    assert list(np.flatnonzero(masks[1])) == [0, 1, 2, 3, EOS]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pad": 5}, "special tokens must differ"),
        ({"say": 9}, "outside items"),
        ({"vocab_size": 11}, "clash"),
        ({"n_words": 9}, "clash"),
        ({"max_items": 0}, "max_items 0"),
        ({"openings": (Opening(9, "list"),)}, "must open with a token below 14 that is no item"),
        ({"openings": (Opening(EOS, "words"),)}, "<eos> and padding open nothing"),
        ({"openings": (Opening(SAY, "list"),)}, "what follows <say> is words"),
        ({"openings": (Opening(REC, "preferences"),)}, "words before a list need an opening of their own"),
    ],
)
def test_impossible_grammars_are_refused_with_the_numbers(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rules.check_grammar(GRAMMAR._replace(**change))


def test_candidates_take_items_from_a_list_and_nothing_else() -> None:
    candidates = jnp.array([[True, False, True, False], [False, True, True, True]])
    tokens = jnp.array([[PREF, 1, REC, 8, 10, SAY, 8], [PREF, 1, REC, 9, SAY, 0, EOS]])
    whole = parallel(REASONING, tokens)
    masks = np.asarray(rules.among(REASONING, whole, candidates[:, None]))
    assert [set(np.flatnonzero(masks[0, place])) for place in (3, 4, 5)] == [{8, 10}, {10, SAY}, {SAY}]
    assert set(np.flatnonzero(masks[1, 4])) == {SAY, 10, 11}
    others = np.setdiff1d(np.arange(14), sorted(ITEMS))
    np.testing.assert_array_equal(masks[..., others], np.asarray(whole)[..., others])
    assert rules.among(REASONING, whole, None) is whole
