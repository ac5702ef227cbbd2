"""Level and shift of a user's sentiment around a system message."""

import math

import pytest

from rlhf_jax.feedback.sentiment import opinion_text, sentiment, vader_scorer
from rlhf_jax.interfaces import Dialogue, Message

SCORES = {"fine": 0.25, "bad it": -0.5, "hi": 0.0, "hi fine": 0.125, "bad it fine": -0.25}


def talk(*lines):
    return Dialogue("1", tuple(Message(role, parts, n) for n, (role, parts) in enumerate(lines)), {}, {})


def test_shift_is_level_after_minus_level_before():
    dialogue = talk(("seeker", ("fine",)), ("recommender", ("try ", 5)), ("seeker", ("bad ", 5)))
    assert sentiment(dialogue, 1, scorer=SCORES.__getitem__, form="level") == -0.5
    assert sentiment(dialogue, 1, scorer=SCORES.__getitem__, form="shift") == -0.75


def test_consecutive_messages_are_one_turn():
    dialogue = talk(
        ("seeker", ("hi",)),
        ("seeker", ("fine",)),
        ("recommender", ("ok",)),
        ("recommender", ("try ", 5)),
        ("seeker", ("bad ", 5)),
        ("seeker", ("fine",)),
    )
    assert sentiment(dialogue, 3, scorer=SCORES.__getitem__) == -0.375
    assert sentiment(dialogue, 2, scorer=SCORES.__getitem__) == -0.375


@pytest.mark.parametrize(
    ("said", "sign"), [("I don't like it", -1), ("It wasn't good", -1), ("I can't recommend that", -1), ("good", 1)]
)
def test_typography_does_not_turn_the_sign(said: str, sign: int):
    """VADER's negations are in ASCII; phones write another apostrophe, and end a word with one character for three dots."""
    scorer = vader_scorer()
    for apostrophe in ("'", "\u2019", "\u2018", "\u02bc", "\u00b4"):
        written = said.replace("'", apostrophe)
        assert sign * scorer(written) > 0 and scorer(written) == scorer(said)
    assert scorer(f"{said}\u2026") == scorer(f"{said}...") and sign * scorer(f"\u201c{said}\u201d") > 0


def test_undefined_where_nobody_speaks():
    dialogue = talk(("recommender", ("hello",)), ("seeker", ("fine",)), ("recommender", ("bye",)))
    assert sentiment(dialogue, 0, scorer=SCORES.__getitem__, form="level") == 0.25
    assert math.isnan(sentiment(dialogue, 0, scorer=SCORES.__getitem__, form="shift"))
    assert math.isnan(sentiment(dialogue, 2, scorer=SCORES.__getitem__, form="level"))


@pytest.mark.parametrize(
    ("text", "sign"), [("i love it, perfect", 1), ("terrible, i hate it", -1), ("a movie from the 90s", 0)]
)
def test_vader_has_the_sign_people_would_give(text, sign):
    score = vader_scorer()(text)
    assert -1 <= score <= 1 and (score > 0.5, score < -0.5, score == 0)[(sign < 0) + 2 * (sign == 0)]


def test_titles_are_not_opinions():
    assert opinion_text(("i saw ", 7, ", hm")) == "i saw it , hm"
