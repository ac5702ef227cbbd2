"""A vocabulary of four items, made in a moment."""

import pytest
from tiny_policy import Tiny, make_tiny

from rlhf_jax.data.vocabulary import Vocabulary
from rlhf_jax.interfaces import Dialogue, Message

ITEMS = (11, 12, 13, 14)


@pytest.fixture(scope="session")
def vocab() -> Vocabulary:
    return Vocabulary.train(["hello there", "try this one", "hello again"], ITEMS, 270, multiple=8)


@pytest.fixture(scope="session")
def dialogues() -> tuple[Dialogue, ...]:
    """Two dialogues with everything a window must cope with."""
    spoken: list[list[tuple[str, tuple[str | int, ...]]]] = [
        [
            ("recommender", ("hello there",)),
            ("seeker", ("hello",)),
            ("recommender", ("try ", 11, " or ", 12)),
            ("recommender", ("  ",)),
            ("recommender", ("this one",)),
            ("seeker", ("again ", 13)),
        ],
        [("seeker", ("",)), ("recommender", ("hello",)), ("recommender", (14,))],
    ]
    return tuple(
        Dialogue(
            dialogue_id=str(number),
            messages=tuple(
                Message(role=role, parts=parts, message_id=place)  # type: ignore[arg-type]
                for place, (role, parts) in enumerate(messages)
            ),
            seeker_labels={},
            recommender_labels={},
        )
        for number, messages in enumerate(spoken)
    )


@pytest.fixture(scope="session")
def tiny(vocab: Vocabulary, dialogues: tuple[Dialogue, ...]) -> Tiny:
    return make_tiny(vocab, dialogues)
