"""Tokens of preference texts: a layout without gaps or overlaps, round trips, and errors."""

import dataclasses

import numpy as np
import pytest
from toy_ratings import toy_ratings

from rlhf_jax.data.preference_texts import (
    PICKERS,
    RATERS,
    SECTIONS,
    PreferenceText,
    attributes_of,
    drawn_text,
    full_text,
    taste,
    usual,
)
from rlhf_jax.data.preference_tokens import MULTIPLE, item_words, preference_vocabulary
from rlhf_jax.data.ratings import History

CORPUS = toy_ratings(30, 60, lengths=(6, 12, 25))
ATTRIBUTES = attributes_of(CORPUS.items)
VOCAB = preference_vocabulary(CORPUS, ATTRIBUTES)


def test_layout() -> None:
    assert set(VOCAB.words) == {*SECTIONS, *ATTRIBUTES.words, *RATERS, *PICKERS} and len(set(VOCAB.words)) == len(
        VOCAB.words
    )
    assert VOCAB.levels == (1.0, 2.0, 3.0, 4.0, 5.0)
    marks = [VOCAB.pad, VOCAB.eos, VOCAB.user, VOCAB.rec, VOCAB.say]
    assert marks == list(range(len(VOCAB.words), len(VOCAB.words) + 5))
    assert VOCAB.first_item == marks[-1] + 1 + 5
    assert VOCAB.size % MULTIPLE == 0 and 0 <= VOCAB.size - (VOCAB.first_item + 60) < MULTIPLE
    exact = dataclasses.replace(VOCAB, n_items=MULTIPLE * 3 - VOCAB.first_item)
    assert exact.size == MULTIPLE * 3
    assert dataclasses.replace(exact, n_items=exact.n_items + 1).size == MULTIPLE * 4


def test_prompts_name_items_and_what_they_got() -> None:
    history = History(np.array([7, 0, 59], np.int32), np.array([5, 1, 3], np.float32))
    level, item = VOCAB.say + 1, VOCAB.first_item
    assert VOCAB.prompt(history) == [item + 7, level + 4, item, level, item + 59, level + 2, VOCAB.user]
    assert VOCAB.prompt(History(np.zeros(0, np.int32), np.zeros(0, np.float32))) == [VOCAB.user]
    with pytest.raises(KeyError):
        VOCAB.prompt(History(np.array([7], np.int32), np.array([2.5], np.float32)))


def test_half_stars_and_one_level() -> None:
    halves = dataclasses.replace(
        CORPUS, histories=(History(np.array([3, 4], np.int32), np.array([4.5, 0.5], np.float32)),)
    )
    assert preference_vocabulary(halves, ATTRIBUTES).levels == (0.5, 4.5)
    bought = dataclasses.replace(CORPUS, histories=(History(np.array([3, 4], np.int32), np.ones(2, np.float32)),))
    vocab = preference_vocabulary(bought, ATTRIBUTES)
    assert vocab.levels == () and vocab.first_item == vocab.say + 1
    assert vocab.prompt(bought.histories[0]) == [vocab.first_item + 3, vocab.first_item + 4, vocab.user]


def test_round_trip_of_every_text() -> None:
    known = usual(CORPUS, ATTRIBUTES, range(30))
    draws = np.random.default_rng(0)
    n_titles = 0
    for history in CORPUS.histories:
        found = taste(history, CORPUS, ATTRIBUTES, known)
        for text in (
            full_text(found),
            full_text(found, titles=2),
            *(drawn_text(found, draws, titles=3) for _ in range(5)),
        ):
            tokens = VOCAB.response(text)
            assert VOCAB.text(tokens) == text and VOCAB.text(np.array([*tokens, VOCAB.pad, VOCAB.pad])) == text
            assert tokens[-1] == VOCAB.eos and tokens.count(VOCAB.say) == 1
            assert (tokens[0] == VOCAB.rec) == bool(text.titles) == (VOCAB.rec in tokens)
            assert all(0 <= token < VOCAB.first_item + 60 for token in tokens)
            n_titles += len(text.titles)
    assert n_titles > 50


def test_layout_of_a_response() -> None:
    place = {word: VOCAB.words.index(word) for word in ("likes", "war")}
    text = PreferenceText(("likes", "war"), (59, 3))
    first = VOCAB.first_item
    assert VOCAB.response(text) == [
        VOCAB.rec,
        first + 59,
        first + 3,
        VOCAB.say,
        place["likes"],
        place["war"],
        VOCAB.eos,
    ]
    # Unused rows and levels are neither words nor items.
    assert VOCAB.text([VOCAB.size - 1, VOCAB.say + 1, first + 59, place["war"], -1]) == PreferenceText(("war",), (59,))


def test_unknown_words_are_named() -> None:
    with pytest.raises(ValueError, match="preference text: 'opera' is no word of this vocabulary"):
        VOCAB.response(PreferenceText(("likes", "opera")))


def test_items_begin_as_the_mean_of_their_words() -> None:
    weights = item_words(VOCAB, ATTRIBUTES)
    assert weights.shape == (60, len(VOCAB.words)) and weights.dtype == np.float32
    for row, has in zip(weights, ATTRIBUTES.has, strict=True):
        words = [word for word, there in zip(ATTRIBUTES.words, has, strict=True) if there]
        assert {VOCAB.words[place] for place in np.flatnonzero(row)} == set(words)
        np.testing.assert_allclose(row[row > 0], 1 / len(words))
    nothing = dataclasses.replace(ATTRIBUTES, has=np.zeros_like(ATTRIBUTES.has))
    np.testing.assert_array_equal(item_words(VOCAB, nothing), 0)
