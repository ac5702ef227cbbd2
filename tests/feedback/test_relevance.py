"""Cosines of a fitted TF-IDF encoder and of encoders passed in."""

import numpy as np
import pytest

from rlhf_jax.data.turns import answered_turns
from rlhf_jax.feedback.labelling import LabelOptions
from rlhf_jax.feedback.relevance import context_text, cosine_relevance, fit_tfidf, item_texts, response_text
from rlhf_jax.feedback.weak_labels import fit_weak_labels
from rlhf_jax.interfaces import Dialogue, Item, Message

TEXTS = ["western saddle horse", "western horse canyon", "space rocket comet", "space comet orbit"] * 3


@pytest.mark.parametrize("n_components", [None, 2, 50])
def test_same_topic_is_closer_than_another(n_components):
    encoder = fit_tfidf(TEXTS, n_components=n_components)
    near, far, same = cosine_relevance(
        encoder,
        ["western horse", "western horse", "comet"],
        ["canyon western", "rocket orbit", "comet"],
    )
    assert near > 0.3 > far and same == pytest.approx(1)


def test_svd_relates_words_that_never_meet():
    plain, reduced = (fit_tfidf(TEXTS, n_components=n) for n in (None, 2))
    assert cosine_relevance(plain, ["saddle"], ["canyon"])[0] == 0
    assert cosine_relevance(reduced, ["saddle"], ["canyon"])[0] > 0.9


def test_unknown_or_empty_text_is_undefined():
    assert np.isnan(cosine_relevance(fit_tfidf(TEXTS), ["", "western", "zebra"], ["western", "", "western"])).all()


def test_own_encoder_takes_the_place():
    vectors = {"a": [1.0, 0.0], "b": [1.0, 1.0], "c": [-2.0, 0.0]}
    cosines = cosine_relevance(lambda texts: np.array([vectors[t] for t in texts]), ["a", "a"], ["b", "c"])
    np.testing.assert_allclose(cosines, [0.5**0.5, -1])
    assert cosine_relevance(lambda texts: np.zeros((0, 2)), [], []).shape == (0,)


def test_bad_input_is_refused_with_its_numbers():
    with pytest.raises(ValueError, match="2 contexts for 1 responses"):
        cosine_relevance(fit_tfidf(TEXTS), ["a", "b"], ["a"])
    with pytest.raises(ValueError, match="no word occurs in at least 2 of the 2 texts"):
        fit_tfidf(["alpha", "beta"])


def test_context_is_the_last_window_with_titles_spelled_out():
    items = {5: Item(5, "Saddle Creek (1984)", 1984, ("western",), ("Mara Quill",))}
    messages = [Message("seeker", (word,), 0) for word in ("one", "two")] + [Message("recommender", ("try ", 5), 0)]
    assert context_text(messages, item_texts(items, metadata=False), window=2) == "two try Saddle Creek (1984)"
    assert context_text(messages, {}, window=9) == "one two try" and context_text([], {}, window=3) == ""
    assert item_texts(items, metadata=True)[5] == "Saddle Creek (1984) western Mara Quill 80s"


ITEMS = {
    5: Item(5, "Saddle Creek (1984)", 1984, ("western",), ("Mara Quill",)),
    6: Item(6, "Dust Canyon (1986)", 1986, ("western",), ("Mara Quill",)),
    7: Item(7, "Comet Rocket (1999)", 1999, ("space",), ("Ode Finn",)),
}


def answered(n: int, *parts: str | int) -> Dialogue:
    """The seeker names 5, the system says `parts`, the seeker answers."""
    said = (("seeker", ("i liked ", 5)), ("recommender", parts), ("seeker", ("ok",)))
    return Dialogue(str(n), tuple(Message(role, words, place) for place, (role, words) in enumerate(said)), {}, {})


def test_a_title_that_was_named_before_can_be_left_out():
    (turn,) = answered_turns([answered(0, "try ", 6, " or ", 5)])
    texts = item_texts(ITEMS, metadata=False)
    assert response_text(turn, texts) == "try Dust Canyon (1986) or Saddle Creek (1984)"
    assert response_text(turn, texts, fresh=True) == "try Dust Canyon (1986) or"


@pytest.mark.parametrize(("form", "best"), [("all", 0), ("fresh", 1)])
def test_what_repeats_is_the_most_relevant_unless_fresh_items_alone_count(form, best):
    dialogues = [answered(0, "try ", 5), answered(1, "try ", 6), answered(2, "try ", 7)] * 3
    options = LabelOptions(relevant_items=form, signals=("relevance",), n_components=None)
    repeats, similar, other = fit_weak_labels(dialogues, ITEMS, options)(dialogues[:3]).raw[:, 0]
    assert np.nanargmax([repeats, similar, other]) == best
    assert similar > other
