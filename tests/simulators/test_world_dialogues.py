"""The log in the official schema: the same bytes for the same seed, read back as what was played."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from rlhf_jax.data.redial import read_redial
from rlhf_jax.simulators.world import WorldConfig, hackable, make_catalogue
from rlhf_jax.simulators.world_dialogues import logged_dialogues, write_world

CONFIG = WorldConfig(n_train=80, n_test=20, n_users=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"), CONFIG, 0)


@pytest.fixture(scope="module")
def logged():
    return logged_dialogues(CONFIG, 0, "train")


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_same_seed_same_bytes_other_seed_other_bytes(folder, tmp_path):
    assert files_of(write_world(tmp_path / "again", CONFIG, 0)) == files_of(folder)
    other = files_of(write_world(tmp_path / "other", CONFIG, 1))
    assert other["train_data.jsonl"] != files_of(folder)["train_data.jsonl"]


def test_reader_returns_what_was_played(folder, logged):
    corpus = read_redial(folder)
    assert (*corpus.train, *corpus.validation) == tuple(entry.dialogue for entry in logged)
    assert corpus.test == tuple(entry.dialogue for entry in logged_dialogues(CONFIG, 0, "test"))
    by_id = {item.item_id: item for item in make_catalogue(CONFIG, 0).items}
    assert all(by_id[item_id] == item for item_id, item in corpus.items.items())
    assert corpus.provenance["n_skipped"] == 0


def test_official_schema(folder):
    lines = [json.loads(line) for line in (folder / "train_data.jsonl").read_text().splitlines()]
    assert [int(line["conversationId"]) for line in lines] == sorted({int(line["conversationId"]) for line in lines})
    for line in lines:
        assert {message["senderWorkerId"] for message in line["messages"]} == {
            line["initiatorWorkerId"],
            line["respondentWorkerId"],
        }
        offsets = [message["timeOffset"] for message in line["messages"]]
        assert offsets == sorted(offsets) and offsets[0] == 0 and all(isinstance(offset, int) for offset in offsets)
        assert set(line["initiatorQuestions"]) == set(line["movieMentions"])
        for label in line["initiatorQuestions"].values():
            assert set(label) == {"suggested", "seen", "liked"} and set(label.values()) <= {0, 1, 2}
    csv = (folder / "movies_with_mentions.csv").read_bytes().split(b"\r\n")
    assert csv[0] == b"movieId,movieName,nbMentions" and len(csv) == CONFIG.n_items + 2


def test_train_and_test_share_no_user_and_no_dialogue(folder):
    users, ids = [], []
    for split in ("train", "test"):
        lines = [json.loads(line) for line in (folder / f"{split}_data.jsonl").read_text().splitlines()]
        users.append({line["initiatorWorkerId"] for line in lines})
        ids.append({line["conversationId"] for line in lines})
    assert not users[0] & users[1] and not ids[0] & ids[1] and len(users[0]) == CONFIG.n_users


def test_dialogues_have_planned_shape(logged):
    for entry in logged:
        messages = entry.dialogue.messages
        assert 5 <= len(messages) <= CONFIG.max_messages and messages[-1].role == "seeker"
        assert all(a.role != b.role for a, b in itertools.pairwise(messages))
        assert set(entry.utilities) == {n for n, message in enumerate(messages) if message.role == "recommender"}
        for index in entry.utilities:
            assert len(set(messages[index].items)) <= 3
    lengths = [len(entry.dialogue.messages) for entry in logged]
    assert 6 < np.mean(lengths) < 11


def test_truth_is_not_written(folder):
    record = json.loads((folder / "train_data.jsonl").read_text().splitlines()[0])
    assert set(record) == {
        "movieMentions", "respondentQuestions", "messages", "conversationId", "respondentWorkerId",
        "initiatorWorkerId", "initiatorQuestions",
    }  # fmt: skip


def test_gaps_are_the_dwell_and_follow_utility(logged):
    rows = [
        (entry.utilities[n], entry.dialogue.messages[n + 1].time_offset - entry.dialogue.messages[n].time_offset)
        for entry in logged
        for n in entry.utilities
    ]
    utility, gap = np.array(rows).T
    assert gap.min() >= 1 and np.corrcoef(utility, np.log(gap))[0, 1] > 0.75


def test_hackable_log_pays_length_and_hides_utility():
    logged = logged_dialogues(dataclasses.replace(hackable(CONFIG)), 0, "train")
    rows = [
        (
            len("".join(p for p in entry.dialogue.messages[n].parts if isinstance(p, str)).split()),
            entry.utilities[n],
            np.log(entry.dialogue.messages[n + 1].time_offset - entry.dialogue.messages[n].time_offset),
        )
        for entry in logged
        for n in entry.utilities
    ]
    words, utility, gap = np.array(rows, float).T
    assert np.corrcoef(words, gap)[0, 1] > 0.7 > np.corrcoef(utility, gap)[0, 1]


def test_system_turns_vary_in_length(logged):
    words = [
        len("".join(p for p in entry.dialogue.messages[n].parts if isinstance(p, str)).split())
        for entry in logged
        for n in entry.utilities
    ]
    assert np.std(words) > 3 and min(words) <= 2 and max(words) >= 14
