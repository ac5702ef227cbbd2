"""What spells a title, and that nothing does after the cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data.spelled_titles import SpelledTitles
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.interfaces import Item

ITEMS = {
    1: Item(item_id=1, title="The Matrix (1999)", year=1999),
    2: Item(item_id=2, title="Schindler's List (1993)", year=1993),
    3: Item(item_id=3, title="It (2017)", year=2017),
    4: Item(item_id=4, title="What We Want", year=None),
    5: Item(item_id=5, title="Horror of Dracula (1958)", genres=("horror",)),
    6: Item(item_id=6, title=""),
}
TITLES = SpelledTitles.of(ITEMS)


@pytest.mark.parametrize(
    ("text", "hidden", "tells"),
    [
        ("that MATRIX one", 1, True),
        ("thematrix", 1, True),
        ("matrix\u2019s end", 1, True),
        ("mat\u200brix", 1, True),
        ("the matrices", 1, False),
        ("schindlers", 2, False),
        ("schindler", 2, True),
        ("is it it", 3, False),  # A title of stop words cannot be told from speech ...
        ("we want what", 4, False),
        ("what we want", 4, True),  # ... unless they stand there in order.
        ("some horror please", 5, False),  # Genres must remain sayable.
        ("dracula", 5, True),
        ("anything", 6, False),
        ("dracula", 1, False),
    ],
)
def test_what_tells_a_title(text: str, hidden: int, tells: bool) -> None:
    assert TITLES.tells((text,), [hidden]) is tells
    assert TITLES.tells(("well ", hidden), [hidden])
    kept = TITLES.without((text,), [hidden])
    assert kept == (text,) if not tells else not TITLES.tells(kept, [hidden])


def test_words_that_meet_after_a_cut_are_read_again() -> None:
    # With `matrix` and the item gone, `what we`, `want` stand side by side.
    assert TITLES.tells(("what we", 1, "want"), [4]) is False
    assert TITLES.without(("so what we", 1, " matrix want"), [1, 4]) == ("so",)


def test_words_of_many_titles_tell_nothing_alone() -> None:
    items = {number: Item(item_id=number, title=f"Night Creek {'abcdefghijkl'[number] * 3}") for number in range(12)}
    titles = SpelledTitles.of(items)
    assert not titles.tells(("the creek",), items) and titles.tells(("aaa",), [0]) and not titles.tells(("aaa",), [1])


@given(st.lists(st.sampled_from(["the", "matrix", "what", "we", "want", "list", "x", 1, 2, 4, 5]), max_size=9))
def test_nothing_tells_after_the_cut(parts: list[str | int]) -> None:
    assert not TITLES.tells(TITLES.without(parts, [1, 2, 4]), [1, 2, 4])


def test_first_tokens_begin_the_telling_words() -> None:
    vocab = Vocabulary.train(["the matrix", "schindler list", "matrix matrix of dracula"], [*ITEMS], 300)
    found = TITLES.first_tokens(vocab, ITEMS)
    assert found[1] == (vocab.encode_text(" matrix")[0],) == (vocab.encode_text(" MATRIX")[0],)
    assert found[3] == found[6] == ()
    assert not {vocab.encode_text(" horror")[0], vocab.encode_text(" want")[0]} & {
        t for one in found.values() for t in one
    }
    # A title written as one word begins like any speech, and so does a word whose first token is a stop word.
    items = {1: Item(item_id=1, title="The Matrix"), 2: Item(item_id=2, title="Beq")}
    vocab = Vocabulary.train(["the the be be be"] * 3, items, 270)
    assert vocab.decode(vocab.encode_text(" beq")[:1]) == "be" and len(vocab.encode_text(" the")) == 1
    assert SpelledTitles.of(items).first_tokens(vocab, items) == {1: (), 2: ()}
