"""The reasoning form: what is written is read back, whatever is wrong with it is seen."""

import numpy as np
import pytest

from rlhf_jax.data.attributes import Attributes, attributes
from rlhf_jax.data.reasoning import read_reasoning, reasoning_tokens
from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.interfaces import Item

ITEMS = {
    n: Item(n, f"Title {n} (198{n})", 1980 + n, ("western",) if n % 2 else ("noir", "spy"), ("Mara Quill",))
    for n in range(1, 6)
}


@pytest.fixture(scope="module")
def vocab() -> Vocabulary:
    texts = ["western, 80s, mara quill", "noir, spy", "try this one"] * 3
    return Vocabulary.train(texts, tuple(ITEMS), 320)


@pytest.fixture(scope="module")
def known() -> Attributes:
    return attributes(ITEMS, tuple(ITEMS))


def test_attributes_are_said_as_seekers_say_them(known: Attributes) -> None:
    assert sorted(known.words) == ["80s", "mara quill", "noir", "spy", "western"]


def test_what_is_written_is_read_back(vocab: Vocabulary, known: Attributes) -> None:
    wanted = [known.words.index(word) for word in ("western", "mara quill", "80s")]
    words = vocab.encode_parts(["try ", 3, " or ", 5])
    response = reasoning_tokens(vocab, known, wanted, [3, 1], words, max_tokens=60)
    assert (response[0], response[-1]) == (vocab.pref, vocab.eos)
    assert vocab.decode(response, specials=True).startswith("<pref> western, mara quill, 80s <rec>")
    # Item 5 is not listed: the words end before it.
    assert vocab.decode(response[response.index(vocab.say) :]) == "try <movie> or"
    found = read_reasoning(vocab, known, [*response, vocab.pad])
    assert np.flatnonzero(found.attributes).tolist() == sorted(wanted)
    assert (found.items, found.unknown, found.opened, found.ended) == ((2, 0), 0, True, True)
    assert found.well_formed(2) and not found.well_formed(3)


def test_words_give_way_and_attributes_do_not(vocab: Vocabulary, known: Attributes) -> None:
    wanted, words = [known.words.index("western")], vocab.encode_text(" try this one") * 9
    whole = reasoning_tokens(vocab, known, wanted, [1], [], max_tokens=60)
    cut = reasoning_tokens(vocab, known, wanted, [1], words, max_tokens=len(whole) + 2)
    assert cut == [*whole[:-1], *words[:2], vocab.eos]
    with pytest.raises(ValueError, match=f"max_tokens is {len(whole) - 1}; .* take {len(whole)}"):
        reasoning_tokens(vocab, known, wanted, [1], words, max_tokens=len(whole) - 1)
    with pytest.raises(ValueError, match="got 0, 1"):
        reasoning_tokens(vocab, known, [], [1], words, max_tokens=60)


def test_words_name_an_item_once_where_the_grammar_asks_for_it(vocab: Vocabulary, known: Attributes) -> None:
    wanted, words = [known.words.index("western")], vocab.encode_parts(["try ", 3, " or ", 1, " or ", 3, " one"])
    said = []
    for once in (False, True):
        response = reasoning_tokens(vocab, known, wanted, [3, 1], words, max_tokens=60, once=once)
        said.append(vocab.decode(response[response.index(vocab.say) :]))
    assert said == ["try <movie> or <movie> or <movie> one", "try <movie> or <movie> or"]


@pytest.mark.parametrize(
    ("before", "unknown"),
    [
        (" western, western", 1),
        (" western, tasty", 1),
        (" western,", 1),
        (" westernmara quill", 1),
        (",,,", 4),
    ],
)
def test_pieces_that_are_no_attribute_break_the_form(
    vocab: Vocabulary, known: Attributes, before: str, unknown: int
) -> None:
    response = [vocab.pref, *vocab.encode_text(before), vocab.rec, vocab.item_token(1), vocab.say, vocab.eos]
    found = read_reasoning(vocab, known, response)
    assert found.unknown == unknown
    assert not found.well_formed(1)


def test_other_forms_and_cut_ones_are_read_as_far_as_they_go(vocab: Vocabulary, known: Attributes) -> None:
    western, item = vocab.encode_text(" western"), vocab.item_token(4)
    plain = read_reasoning(vocab, known, [vocab.rec, item, vocab.say, *western, item, vocab.eos])
    assert (plain.items, plain.opened, plain.attributes.any()) == ((3,), False, False)
    cut = read_reasoning(vocab, known, [vocab.pref, *western, vocab.rec, item])
    assert (cut.items, cut.opened, cut.ended) == ((3,), True, False)
    assert not cut.well_formed(1)
    rambling = read_reasoning(vocab, known, [vocab.pref, *western])
    assert rambling.items == () and rambling.attributes.sum() == 1
    assert not read_reasoning(vocab, known, [vocab.pad]).ended
