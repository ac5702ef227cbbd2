"""Composed answers say what is missing and what is too much, never the title, and are known as composed."""

import numpy as np
import pytest

from rlhf_jax.data.spelled_titles import SpelledTitles
from rlhf_jax.interfaces import Dialogue, Item, ItemLabel, Message
from rlhf_jax.simulators.composed_feedback import Composer

ITEMS = {
    1: Item(item_id=1, title="Alpha Tim (1990)", year=1990, genres=("horror",), people=("Tim Curry", "Uma Lindt")),
    2: Item(item_id=2, title="Beta (1991)", year=1991, genres=("comedy",), people=("Joe Tran",)),
    3: Item(item_id=3, title="Gamma (2005)", year=2005, genres=("horror", "comedy")),
    4: Item(item_id=4, title="Delta", year=None),
    5: Item(item_id=5, title="Epsilon", year=None),
}
COMPOSER = Composer(ITEMS, SpelledTitles.of(ITEMS))
CONTEXT = (Message("seeker", ("something horror",), 0), Message("recommender", ("try ", 2), 1))


def said(suggested: list[int], gold: list[int], seed: int) -> str:
    message = COMPOSER.feedback(CONTEXT, suggested, gold, np.random.default_rng(seed))
    assert message.role == "seeker" and len(message.parts) == 1
    return str(message.parts[0])


def test_it_speaks_of_the_difference_alone_and_never_of_the_title() -> None:
    texts = {said([2], [1], seed) for seed in range(60)}
    everything = " ".join(texts)
    assert "Uma Lindt" in everything and "horror" in everything
    assert "comedy" in everything and "Joe Tran" in everything
    # Both are of the nineties; `Tim Curry` is an attribute, but `tim` is a word of the title.
    assert not any(word in everything for word in ("90s", "Tim", "Alpha", "2000s"))
    assert len(texts) > 10


def test_what_was_not_said_yet_comes_first() -> None:
    firsts = [said([2], [1], seed) for seed in range(60)]
    assert sum("Uma Lindt" in text for text in firsts) > sum("horror" in text for text in firsts)


@pytest.mark.parametrize(("suggested", "gold", "expected"), [([4], [5], "else"), ([3], [4], "from the 2000s")])
def test_where_one_side_has_nothing(suggested: list[int], gold: list[int], expected: str) -> None:
    assert any(expected in said(suggested, gold, seed) for seed in range(30))


def test_it_is_a_function_of_the_seed() -> None:
    assert [said([2], [1], seed) for seed in range(9)] == [said([2], [1], seed) for seed in range(9)]


def test_gold_that_was_suggested_is_refused() -> None:
    for gold in ([], [2]):
        with pytest.raises(ValueError, match="nobody suggested"):
            COMPOSER.feedback(CONTEXT, [2], gold, np.random.default_rng(0))


def test_a_composed_dialogue_is_known_as_one_and_has_no_forms() -> None:
    label = ItemLabel(1, 0, 1)
    dialogue = Dialogue("d", (*CONTEXT, Message("seeker", ("no",), 2)), {2: label}, {2: label})
    exchange = COMPOSER.exchange(CONTEXT[:1], [2, 3], [1], np.random.default_rng(0))
    assert exchange[0].role == "recommender" and exchange[0].items == (2, 3)
    composed = COMPOSER.dialogue(dialogue, 1, exchange)
    assert composed.provenance == "composed" and composed.dialogue_id == "d/composed"
    assert composed.messages == (CONTEXT[0], *exchange) and not composed.seeker_labels
