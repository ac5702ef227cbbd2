"""Turns: what is joined, and what counts as the reaction to a message."""

import pytest

from rlhf_jax.data.turns import next_user_turn, spell, turns
from rlhf_jax.interfaces import Dialogue, Message, Role


def conversation(*said: tuple[Role, tuple[str | int, ...]]) -> Dialogue:
    messages = tuple(
        Message(role=role, parts=parts, message_id=place, time_offset=10 * place)
        for place, (role, parts) in enumerate(said)
    )
    return Dialogue(dialogue_id="5", messages=messages, seeker_labels={}, recommender_labels={})


TALK = conversation(
    ("recommender", ("Hi",)),
    ("seeker", ("I loved ", 3)),
    ("recommender", ("Seen ", 4, "?")),
    ("recommender", (" ",)),
    ("recommender", (5, " too")),
    ("seeker", ()),
    ("seeker", ("no",)),
    ("recommender", ()),
    ("seeker", ("never ", 4)),
    ("recommender", ("ok",)),
)


def test_consecutive_messages_are_joined_and_empty_ones_ignored() -> None:
    found = turns(TALK)
    assert [turn.role for turn in found] == ["recommender", "seeker", "recommender", "seeker", "recommender"]
    assert [turn.message_indices for turn in found] == [(0,), (1,), (2, 4), (6, 8), (9,)]
    assert found[2].parts == ("Seen ", 4, "?", " ", 5, " too") and found[2].items == (4, 5)
    assert [turn.time_offset for turn in found] == [0, 10, 20, 60, 90]


@pytest.mark.parametrize(("index", "indices"), [(0, (1,)), (2, (6, 8)), (4, (6, 8)), (7, (8,)), (9, None)])
def test_the_next_turn_of_the_user(index: int, indices: tuple[int, ...] | None) -> None:
    turn = next_user_turn(TALK, index)
    assert (turn and turn.message_indices) == indices


def test_only_messages_of_the_recommender_have_a_reaction() -> None:
    with pytest.raises(ValueError, match="dialogue 5, message 1 is the seeker's"):
        next_user_turn(TALK, 1)
    with pytest.raises(ValueError, match="dialogue 5 has 10 messages, none at 10"):
        next_user_turn(TALK, 10)


def test_no_messages_no_turns() -> None:
    assert turns(conversation(("seeker", ()))) == ()


def test_spelling() -> None:
    assert spell(("Seen ", 4, "? or", 5, " "), {4: "Heat (1995)"}) == "Seen Heat (1995)? or <movie>"
    assert spell((4,), placeholder="@") == "@"
