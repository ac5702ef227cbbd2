"""Live users are fresh, nobody the evaluation meets, and what they said is a log like the log."""

from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.data.redial import read_dialogues
from rlhf_jax.data.turns import next_user_turn
from rlhf_jax.feedback.engagement import reply_gap
from rlhf_jax.interfaces import Message
from rlhf_jax.simulators.conversation import closed_loop_users, converse
from rlhf_jax.simulators.world import FIRST_ITEM_ID, WorldConfig
from rlhf_jax.simulators.world_dialogues import logged_dialogues
from rlhf_jax.simulators.world_live import LiveUsers, write_live

CONFIG = WorldConfig(n_train=60, n_test=20, n_users=40)
NUMBERS = range(40, 52)


def suggest(histories, numbers):
    """An item after the other, so that a conversation has no repetition."""
    return [
        Message("recommender", ("try ", FIRST_ITEM_ID + len(history) + number % 3), 0)
        for history, number in zip(histories, numbers, strict=True)
    ]


@pytest.fixture
def talked():
    crowd = LiveUsers(CONFIG, 3, NUMBERS)
    return crowd, converse(crowd, suggest, 3)


def test_nobody_is_behind_the_log_or_in_the_evaluation(talked) -> None:
    crowd, _ = talked
    live = {user.taste.user_id for user in crowd.users}
    assert len(live) == len(NUMBERS)
    for split in ("train", "test"):
        assert not live & {entry.user_id for entry in logged_dialogues(CONFIG, 3, split)}
    assert not live & {user.taste.user_id for user in closed_loop_users(CONFIG, 3, 400)}
    # Not their tastes under another name either.
    met = {user.taste.utilities.tobytes() for user in closed_loop_users(CONFIG, 3, 400)}
    assert not met & {user.taste.utilities.tobytes() for user in crowd.users}


def test_a_user_is_the_same_in_any_round(talked) -> None:
    crowd, result = talked
    alone = LiveUsers(CONFIG, 3, range(45, 46))
    np.testing.assert_array_equal(alone.users[0].taste.utilities, crowd.users[5].taste.utilities)
    assert converse(alone, lambda histories, numbers: suggest(histories, [5]), 3).dialogues[0] == result.dialogues[5]


def test_what_was_said_is_a_log(talked, tmp_path: Path) -> None:
    crowd, result = talked
    logged = crowd.logged(result.dialogues)
    path = write_live(tmp_path / "live.jsonl", logged, crowd.catalogue)
    assert path.name == "live.jsonl" and not list(tmp_path.glob("*.partial"))
    found = read_dialogues(path)
    ids = {entry.dialogue.dialogue_id for entry in logged_dialogues(CONFIG, 3, "train")}
    for dialogue, entry, history, seen in zip(found, logged, result.dialogues, crowd.seen, strict=True):
        assert dialogue.dialogue_id == entry.dialogue.dialogue_id not in ids
        assert [(one.role, one.parts) for one in dialogue.messages] == [(one.role, one.parts) for one in history]
        # No form: what was thought stands in the words and the times alone.
        assert not dialogue.seeker_labels and not dialogue.recommender_labels
        for turn, reaction in enumerate(seen):
            reply = next_user_turn(dialogue, 1 + 2 * turn)
            assert reply is not None
            assert reply_gap(dialogue, 1 + 2 * turn, reply) == pytest.approx(reaction.dwell_seconds, abs=1.01)
            assert entry.utilities[1 + 2 * turn] == reaction.utility
        assert len(entry.accepted) == sum(one.accepted for one in seen)
    assert any(entry.accepted for entry in logged)


def test_dialogues_of_others_are_refused(talked) -> None:
    crowd, result = talked
    with pytest.raises(ValueError, match="not those that the users were in"):
        crowd.logged(result.dialogues[:-1])


@pytest.mark.parametrize("numbers", [range(0), range(39, 45), range(899_990, 900_001)])
def test_users_of_the_log_and_beyond_the_last_are_refused(numbers: range) -> None:
    with pytest.raises(ValueError, match="from 40"):
        LiveUsers(CONFIG, 3, numbers)


def test_a_log_that_is_damaged_names_its_line(talked, tmp_path: Path) -> None:
    crowd, result = talked
    path = write_live(tmp_path / "live.jsonl", crowd.logged(result.dialogues), crowd.catalogue)
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace('"messageId"', '"message"')
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"live.jsonl, line 3: .*messageId"):
        read_dialogues(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="no dialogue"):
        read_dialogues(path)
