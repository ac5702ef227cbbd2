"""Interactions become histories: order, ties, first users, and what a corpus must not hold."""

import numpy as np
import pytest

from rlhf_jax.data.ratings import History, Interaction, RatingCorpus, gather
from rlhf_jax.interfaces import Item

ITEMS = [Item(item_id=identity, title=str(identity)) for identity in (30, 10, 20)]


def gathered(*lines: tuple, max_users: int | None = None) -> RatingCorpus:
    interactions = (Interaction(*line) for line in lines)
    return gather(
        "toy", ITEMS, interactions, liked_above=3.0, scale=(1.0, 5.0), provenance={"a": 1}, max_users=max_users
    )


def test_order_of_time_then_of_the_file() -> None:
    corpus = gathered(("b", 10, 5.0, 9), ("a", 20, 1.0), ("b", 30, 2.0, 7), ("b", 20, 4.0, 7), ("a", 10, 3.5))
    assert corpus.users == ("b", "a")
    # Columns are places in the catalogue as it is given, not sorted.
    assert corpus.histories[0].items.tolist() == [0, 2, 1]
    assert corpus.histories[0].ratings.tolist() == [2, 4, 5]
    assert corpus.histories[1].items.tolist() == [2, 1] and corpus.histories[1].ratings.tolist() == [1, 3.5]
    assert [one.items.dtype for one in corpus.histories] == [np.int32] * 2
    assert [one.ratings.dtype for one in corpus.histories] == [np.float32] * 2
    assert corpus.provenance == {"a": 1, "counts": {"users": 2, "items": 3, "ratings": 5}}
    assert (corpus.name, corpus.liked_above, corpus.scale, corpus.items) == ("toy", 3.0, (1.0, 5.0), tuple(ITEMS))


def test_first_users_are_those_the_file_names_first_with_all_their_ratings() -> None:
    lines = [("b", 10, 5.0, 9), ("a", 20, 1.0), ("c", 30, 2.0), ("b", 30, 2.0, 7)]
    corpus = gathered(*lines, max_users=2)
    assert corpus.users == ("b", "a") and [len(one.items) for one in corpus.histories] == [2, 1]
    assert gathered(*lines, max_users=9).users == ("b", "a", "c")


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="toy: user b rates item 11, which the catalogue does not have"):
        gathered(("a", 10, 5.0), ("b", 11, 5.0), max_users=1)
    with pytest.raises(ValueError, match="toy: user a rates item 20 twice"):
        gathered(("a", 20, 5.0, 3), ("a", 10, 5.0, 2), ("a", 20, 4.0, 1))
    with pytest.raises(ValueError, match="toy: nobody rates anything"):
        gathered()


def test_part() -> None:
    history = History(np.array([4, 2, 9], np.int32), np.array([1, 5, 3], np.float32))
    part = history.part(slice(1, None))
    assert part.items.tolist() == [2, 9] and part.ratings.tolist() == [5, 3]
