"""Texts of sections: the serial form, the parallel form and rules in plain Python agree, and what is drawn is well-formed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from rlhf_jax.decoding import grammar as rules
from rlhf_jax.decoding.grammar import Grammar, Opening
from rlhf_jax.decoding.policy import make_decode, make_policy_apply
from rlhf_jax.decoding.sampler import Decoding
from rlhf_jax.decoding.sections import Section
from rlhf_jax.interfaces import PromptBatch
from rlhf_jax.models import gpt2

# Words 0 and 1 open sections; 2, 3 and 4 may be said in the first, 3 and 5 in the second; 6 nowhere.
SECTIONS = (Section(0, (2, 3, 4), 2), Section(1, (3, 5), 1))
PAD, EOS, REC, SAY, ITEMS, SIZE, LENGTH = 7, 8, 9, 10, {11, 12}, 64, 10
GRAMMAR = Grammar(
    n_words=7,
    pad=PAD,
    eos=EOS,
    rec=REC,
    say=SAY,
    first_item=11,
    n_items=2,
    max_items=2,
    vocab_size=SIZE,
    openings=(Opening(SAY, "words"), Opening(REC, "list")),
    sections=SECTIONS,
)
rows = st.lists(st.sampled_from([0, 0, 1, 1, 2, 3, 4, 5, 6, PAD, EOS, REC, SAY, SAY, 11, 12]), min_size=10, max_size=10)


@jax.jit
def serial(tokens: jax.Array) -> jax.Array:
    """Masks of one token after the other. [B, T, V]"""

    def step(state: rules.GrammarState, token: jax.Array) -> tuple[rules.GrammarState, jax.Array]:
        return rules.advance(GRAMMAR, state, token), rules.allowed(GRAMMAR, state)

    _, masks = lax.scan(step, rules.initial_state(GRAMMAR, tokens.shape[0], room=tokens.shape[1]), tokens.T)
    return masks.swapaxes(0, 1)


parallel = jax.jit(lambda tokens: rules.allowed_along(GRAMMAR, tokens))


def may_follow(turn: list[int]) -> set[int]:
    """The rules in plain Python, for a grammatical beginning of a turn."""
    if not turn:
        return {REC, SAY}
    if EOS in turn:
        return {PAD}
    if SAY not in turn:
        listed = set(turn[1:])
        return (ITEMS - listed) | ({SAY} if listed else set())
    said = turn[turn.index(SAY) + 1 :]
    if not said:
        return {0, 1}
    place = max(place for place, token in enumerate(said) if token in (0, 1))
    own, most = ({2, 3, 4}, 2) if said[place] == 0 else ({3, 5}, 1)
    words = set(said[place + 1 :])
    more = own - words if len(words) < most else set()
    return more | (({EOS} | ({1} if said[place] == 0 else set())) if words else set())


@given(st.lists(rows, min_size=5, max_size=5))
def test_serial_and_parallel_masks_are_equal_on_any_tokens(batch: list[list[int]]) -> None:
    tokens = jnp.asarray(batch, jnp.int32)
    masks = np.asarray(serial(tokens))
    np.testing.assert_array_equal(masks, parallel(tokens))
    assert masks.any(axis=-1).all()


@given(st.lists(st.lists(st.integers(0, 10**6), min_size=LENGTH, max_size=LENGTH), min_size=5, max_size=5))
def test_masks_follow_the_rules_on_any_grammatical_turn(choices: list[list[int]]) -> None:
    turns: list[list[int]] = [[] for _ in choices]
    expected = np.zeros((5, LENGTH, SIZE), bool)
    for row, (turn, numbers) in enumerate(zip(turns, choices, strict=True)):
        for column, number in enumerate(numbers):
            options = sorted(may_follow(turn))
            expected[row, column, options] = True
            turn.append(options[number % len(options)])
    np.testing.assert_array_equal(parallel(jnp.asarray(turns, jnp.int32)), expected)


def test_what_is_drawn_keeps_the_form_and_is_judged_by_the_same_mask() -> None:
    network = gpt2.GPT2Config(vocab_size=SIZE, n_positions=16, n_embd=16, n_layer=1, n_head=2, dropout=0.0)
    params = {"trunk": gpt2.init(network, jax.random.key(0))}
    prompts = PromptBatch(tokens=jnp.full((64, 2), 11, jnp.int32), mask=jnp.ones((64, 2), bool))
    decode = jax.jit(make_decode(network, GRAMMAR, Decoding(LENGTH)))
    rollout = decode(params, prompts, jax.random.key(1), None)
    for turn in np.asarray(rollout.response_tokens).tolist():
        assert all(token in may_follow(turn[:place]) for place, token in enumerate(turn))
    judged = jax.jit(make_policy_apply(network, GRAMMAR))(params, rollout).logprobs
    np.testing.assert_allclose(judged, rollout.logprobs, atol=1e-5)
    # A few positions at a time, as where memory is short: the same numbers.
    chunked = jax.jit(make_policy_apply(dataclasses.replace(network, head_chunk=4), GRAMMAR))(params, rollout).logprobs
    np.testing.assert_allclose(chunked, judged, atol=1e-6)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ((Section(0, (2,), 1), Section(0, (3,), 1)), "each opens with a word of its own"),
        ((Section(0, (), 1),), "section 0 has 0 words"),
        ((Section(0, (2,), 0),), "says 0"),
        ((Section(0, (7,), 1),), "token 7 is none of the 7 words"),
        ((Section(0, (2, 1), 1), Section(1, (3,), 1)), "1 opens a section and cannot be said in one"),
    ],
)
def test_impossible_sections_are_refused_with_the_numbers(sections: tuple[Section, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rules.check_grammar(GRAMMAR._replace(sections=sections))
