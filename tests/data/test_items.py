"""Features, titles and descriptions of catalogue items."""

import numpy as np
import pytest

from rlhf_jax.data.items import (
    description_sequences,
    description_texts,
    features_of,
    item_features,
    item_title_tokens,
    spelled_titles,
)
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.data.windows import KIND_NONE, KIND_RECOMMENDER, KIND_SEEKER
from rlhf_jax.interfaces import Corpus, Item

ITEMS = {
    1: Item(
        item_id=1,
        title="Up (2009)",
        year=2009,
        genres=("Comedy", "drama"),
        people=("Ann", "Bob"),
        plot="A house flies.",
    ),
    2: Item(item_id=2, title="Heat (1995)", year=1995, genres=("drama",), people=("Bob", "Ann", "Cy")),
    3: Item(item_id=3, title="Old", genres=("comedy",), people=("Cy",)),
    4: Item(item_id=4, title=""),
}


def test_features_are_genres_decade_people() -> None:
    assert features_of(ITEMS[1]) == ("genre:comedy", "genre:drama", "decade:2000", "person:Ann", "person:Bob")
    assert features_of(ITEMS[4]) == ()


def test_shared_features_as_indices() -> None:
    names, array = item_features(ITEMS, (3, 1, 2, 4), min_count=2, max_features=4)
    assert set(names) == {"genre:comedy", "genre:drama", "person:Ann", "person:Bob", "person:Cy"}
    assert array.shape == (4, 4) and array.dtype == np.int32
    read = [[names[place] for place in row if place >= 0] for row in array]
    assert read == [
        ["genre:comedy", "person:Cy"],
        ["genre:comedy", "genre:drama", "person:Ann", "person:Bob"],
        ["genre:drama", "person:Bob", "person:Ann", "person:Cy"],
        [],
    ]
    assert (array[3] == -1).all()


def test_too_many_features_keep_the_general_ones_and_the_first_people() -> None:
    names, array = item_features(ITEMS, (1, 2), min_count=1, max_features=3)
    assert [names[place] for place in array[0]] == ["genre:comedy", "genre:drama", "decade:2000"]
    assert [names[place] for place in array[1]] == ["genre:drama", "decade:1990", "person:Bob"]


def test_wrong_sizes_and_items_are_named() -> None:
    with pytest.raises(ValueError, match="min_count is 0"):
        item_features(ITEMS, (1,), min_count=0, max_features=3)
    with pytest.raises(ValueError, match="1 items are not in the catalogue, the first is 9"):
        item_features(ITEMS, (1, 9), max_features=3)


def test_titles() -> None:
    assert spelled_titles(ITEMS) == {1: "Up (2009)", 2: "Heat (1995)", 3: "Old"}
    assert spelled_titles(ITEMS, with_year=False) == {1: "Up", 2: "Heat", 3: "Old"}


def test_title_tokens_leave_the_year_out() -> None:
    vocab = Vocabulary.train(["heat"], (2, 9, 4, 1), 256)
    tokens = item_title_tokens(vocab, ITEMS)
    assert [vocab.decode(row) for row in tokens] == ["heat", "", "", "up"]
    assert tokens[0] == vocab.encode_text(" Heat")


def test_descriptions_say_what_is_known() -> None:
    assert description_texts(ITEMS[1]) == (
        "Up (2009)", "comedy, drama from the 2000s", "with Ann, Bob", "A house flies.",
    )  # fmt: skip
    assert description_texts(ITEMS[4]) == ()


def test_description_sequences_go_both_ways_in_the_ordinary_grammar() -> None:
    vocab = Vocabulary.train(["a house flies"], (1,), 256)
    sequences = description_sequences(vocab, ITEMS, max_tokens=40)
    shown = [vocab.decode(sequence.tokens, {1: "UP"}, specials=True) for sequence in sequences]
    assert shown[:2] == [
        "<seeker> up (2009) <eos> <recommender> <rec> UP <say> <eos>",
        "<recommender> <rec> UP <say> up (2009) <eos>",
    ]
    assert len(shown) == 8
    tokens, kinds = sequences[0]
    place = tokens.tolist().index(vocab.item_token(1))
    assert kinds[0] == KIND_NONE and kinds[1] == KIND_SEEKER and kinds[place] == KIND_RECOMMENDER
    short = description_sequences(vocab, ITEMS, max_tokens=10)
    assert max(len(sequence.tokens) for sequence in short) == 10
    with pytest.raises(ValueError, match="max_tokens is 7"):
        description_sequences(vocab, ITEMS, max_tokens=7)


@pytest.mark.usefixtures("unchecked")
def test_real_catalogue(redial: Corpus) -> None:
    names, array = item_features(redial.items, tuple(redial.items), max_features=12)
    assert array.shape == (6636, 12) and array.max() == len(names) - 1 == 5527
    assert "genre:drama" in names and "decade:1990" in names
    assert ((array >= 0).sum(1) > 0).mean() > 0.98
