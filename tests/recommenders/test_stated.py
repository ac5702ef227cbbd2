"""What the seeker asked for, against a loop over words; and standings, the same for everybody."""

import numpy as np
import pytest
from toy_training import CATALOGUE, ITEM_IDS, ITEMS, random_dialogues, toy_training

from rlhf_jax.data.windows import ranking_rows
from rlhf_jax.interfaces import Corpus, Item, Message
from rlhf_jax.recommenders import mixture, standing, stated
from rlhf_jax.recommenders.contexts import contexts_of, row_contexts
from rlhf_jax.recommenders.scorer import fit_scorer

ASKED = (
    (Message("seeker", ("Any CRIME movie, from the 90s?",), 0), Message("recommender", ("drama with Bo Ray ", 3), 1)),
    (Message("seeker", ("crimes, or something with ann lee",), 0),),
    (Message("recommender", ("crime?",), 0), Message("seeker", ("no, ", 5), 1)),
)
"""The second says no genre (`crimes` is another word); what the recommender says does not count, nor do titles."""


def slow(kind: str, messages: tuple[Message, ...]) -> list[float]:
    """By splitting into words and looking for them in order."""
    said = []
    for message in messages:
        if message.role == "seeker":
            text = " ".join(part for part in message.parts if isinstance(part, str))
            said += "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()
    found = []
    for item_id in ITEM_IDS:
        item = ITEMS[item_id]
        has = {
            "genre": list(item.genres),
            "person": list(item.people),
            "decade": ["90s"] if item.title else [],
        }[kind]
        phrases = [phrase.lower().split() for phrase in has]
        found.append(
            float(sum(any(said[at : at + len(phrase)] == phrase for at in range(len(said))) for phrase in phrases))
        )
    return found


@pytest.mark.parametrize("kind", stated.KINDS)
def test_what_was_asked_for_by_a_loop(kind: stated.Kind) -> None:
    fitted = stated.fit(ITEMS, ITEM_IDS, kind)
    found = stated.scores(fitted, contexts_of(ASKED, CATALOGUE))
    years = {item_id: item.year for item_id, item in ITEMS.items()}
    if kind == "decade" and not any(years.values()):
        # The toy's items have no year, so that there is no decade to ask for.
        assert not found.any() and fitted.words == ()
        return
    np.testing.assert_array_equal(found, [slow(kind, messages) for messages in ASKED])
    assert found.any() and not found.all()


def test_decades_are_read_as_they_are_spoken() -> None:
    items = {n: Item(item_id=n, title=f"T {n}", year=1970 + 10 * (n // 2), genres=(), people=()) for n in range(6)}
    fitted = stated.fit(items, tuple(items), "decade")
    said = [(Message("seeker", ("from the 80s, not the 70's",), 0),)]
    found = stated.scores(fitted, contexts_of(said, CATALOGUE._replace(item_ids=tuple(items))))
    assert found.tolist() == [[0, 0, 1, 1, 0, 0]]


def test_contexts_keep_the_seekers_words_apart() -> None:
    dialogues, training = toy_training()
    rows = list(ranking_rows(dialogues))
    found = row_contexts(rows, CATALOGUE, numbers=training.numbers)
    for row, asked in zip(rows, found.asked, strict=True):
        own = [one for one in row.dialogue.messages[: row.message_index] if one.role == "seeker"]
        assert asked == " ".join(" ".join(part for part in one.parts if isinstance(part, str)) for one in own).replace(
            "  ", " "
        ).strip().replace("  ", " ")
    assert found.part(2, 5).asked == found.asked[2:5] and found.chosen([4, 1]).asked == (found.asked[4], found.asked[1])


def test_contexts_without_the_seekers_words_are_refused() -> None:
    contexts = contexts_of(ASKED, CATALOGUE)
    mute = type(contexts)(
        contexts.n_items, contexts.items, contexts.starts, contexts.words, contexts.texts, contexts.own
    )
    with pytest.raises(ValueError, match="3 contexts with the seeker's words of 0"):
        stated.scores(stated.fit(ITEMS, ITEM_IDS, "genre"), mute)


def test_a_scorer_brings_them_along_and_a_standing_before_the_last() -> None:
    dialogues = tuple(random_dialogues())
    corpus = Corpus(train=dialogues, validation=(), test=(), items=ITEMS, provenance={})
    scorer = fit_scorer(corpus, ITEM_IDS, ("popularity", "stated_genre"))
    values = np.linspace(-1, 2, len(ITEM_IDS))
    richer = scorer.with_standing(values)
    assert richer.names == ("popularity", "stated_genre", "standing", "named")
    found, plain = richer.of_histories(ASKED), scorer.of_histories(ASKED)
    np.testing.assert_array_equal(found[:, [0, 1, 3]], plain)
    z = (values - values.mean()) / values.std()
    np.testing.assert_allclose(found[:, 2], np.tile(np.arcsinh(z), (3, 1)), rtol=1e-5)
    # Another standing takes its place.
    again = richer.with_standing(-values)
    assert again.names == richer.names
    np.testing.assert_allclose(again.of_histories(ASKED)[:, 2], -found[:, 2], rtol=1e-5)
    expected = mixture.standardised(stated.scores(stated.fit(ITEMS, ITEM_IDS, "genre"), contexts_of(ASKED, CATALOGUE)))
    np.testing.assert_allclose(found[:, 1], np.arcsinh(expected), rtol=1e-5)
    with pytest.raises(ValueError, match="standing of 3 items for contexts over 10"):
        standing.scores(np.zeros(3), contexts_of(ASKED, CATALOGUE))


def test_attributes_that_are_said_alike_and_one_without_a_word() -> None:
    """Both people count; a name of signs alone is never said, not even by an empty text."""
    people = [("Bo-Ray", "bo ray"), ("Bo-Ray", "???"), ("bo ray", "???")]
    items = {n: Item(item_id=n, title=f"T {n}", genres=(), people=own) for n, own in enumerate(people)}
    fitted = stated.fit(items, tuple(items), "person")
    catalogue = CATALOGUE._replace(item_ids=tuple(items))
    said = [(Message("seeker", (words,), 0),) for words in ("bo ray!", "bo", "")]
    assert stated.scores(fitted, contexts_of(said, catalogue)).tolist() == [[2, 1, 1], [0, 0, 0], [0, 0, 0]]
