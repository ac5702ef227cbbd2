"""The world's log: dialogues between its users and the mediocre recommender, written in the official ReDial schema."""

import csv
import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlhf_jax.interfaces import UNKNOWN, Dialogue, ItemLabel, Message, Role
from rlhf_jax.simulators.world import (
    SPLITS,
    Catalogue,
    WorldConfig,
    make_catalogue,
    make_taste,
    population_size,
    stream,
)
from rlhf_jax.simulators.world_language import GREETINGS, SYSTEM_BYE, USER_BYE, Parts, choose, count_words
from rlhf_jax.simulators.world_recommenders import Recommender, logged_recommender
from rlhf_jax.simulators.world_user import IDLE_UTILITY, TALK_UTILITY, WorldUser, dwell_seconds, opening, reply

RECOMMENDER_WORKER = 900_000


class LoggedDialogue(NamedTuple):
    """A dialogue and the truth about it, which is never written."""

    dialogue: Dialogue
    user_id: int
    utilities: dict[int, float]
    """Message index of a system turn to its true utility."""
    accepted: dict[int, int]
    """Message index of an accepted system turn to the item taken."""


def logged_dialogues(config: WorldConfig, seed: int, split: str) -> tuple[LoggedDialogue, ...]:
    """The dialogues of a split, `train` or `test`, in the order of the file."""
    catalogue = make_catalogue(config, seed)
    recommender = logged_recommender(config)
    n = config.n_train if split == "train" else config.n_test
    return tuple(_one_dialogue(config, catalogue, recommender, seed, split, index) for index in range(n))


def _one_dialogue(
    config: WorldConfig, catalogue: Catalogue, recommender: Recommender, seed: int, split: str, index: int
) -> LoggedDialogue:
    taste_index = index % population_size(config, split)
    taste = make_taste(config, catalogue, seed, split=split, index=taste_index)
    rng = stream(seed, f"dialogue/{split}", index)
    number = 10_000 * (1 + SPLITS.index(split)) * 100 + index
    return _Transcript(WorldUser(config, catalogue, taste), rng, number).play(recommender)


class _Transcript:
    """Writes one dialogue down while it is played."""

    def __init__(self, user: WorldUser, rng: np.random.Generator, number: int) -> None:
        self.user, self.rng, self.number = user, rng, number
        self.messages: list[Message] = []
        self.clock = 0.0
        self.utilities: dict[int, float] = {}
        self.accepted: dict[int, int] = {}
        self.labels: dict[int, ItemLabel] = {}

    def play(self, recommender: Recommender) -> LoggedDialogue:
        config = self.user.config
        n_messages = int(self.rng.integers(config.min_messages, config.max_messages + 1))
        greeted = bool(self.rng.random() < 0.4)
        if greeted:
            self._say("recommender", (choose(self.rng, GREETINGS),), pause=0.0)
            self.utilities[0] = TALK_UTILITY
            self.clock += dwell_seconds(config, TALK_UTILITY, count_words(self.messages[0].parts), self.rng)
        message, self.user = opening(self.user, self.rng, greeted=greeted)
        self._say("seeker", message.parts, pause=0.0)
        ended = False
        while not ended and len(self.messages) + 4 <= n_messages:
            ended = self._exchange(recommender)
        if not ended:
            self._farewell()
        dialogue = Dialogue(str(self.number), tuple(self.messages), self.labels, self.labels, "world")
        return LoggedDialogue(dialogue, self.user.taste.user_id, self.utilities, self.accepted)

    def _exchange(self, recommender: Recommender) -> bool:
        """One system turn and its answer; returns whether the dialogue is over."""
        words = recommender(self.user, self.rng)
        self._say("recommender", words, pause=self.rng.uniform(4, 20))
        here = len(self.messages) - 1
        reaction = reply(self.user, self.messages[-1].items, count_words(words), self.rng)
        for item in dict.fromkeys(self.messages[-1].items):
            self.labels.setdefault(item, self._label(item))
        self.clock += reaction.dwell_seconds
        self._say("seeker", reaction.message.parts, pause=0.0)
        self.utilities[here] = reaction.utility
        if reaction.accepted:
            self.accepted[here] = reaction.message.items[-1]
            self.labels[reaction.message.items[-1]] = ItemLabel(1, 0, 1)
        self.user = reaction.user
        return reaction.ended

    def _farewell(self) -> None:
        words = (choose(self.rng, SYSTEM_BYE),)
        self._say("recommender", words, pause=self.rng.uniform(2, 8))
        self.utilities[len(self.messages) - 1] = IDLE_UTILITY
        self.clock += dwell_seconds(self.user.config, IDLE_UTILITY, count_words(words), self.rng)
        self._say("seeker", (choose(self.rng, USER_BYE),), pause=0.0)

    def _say(self, role: Role, parts: Parts, *, pause: float) -> None:
        self.clock += pause
        message_id = self.number * 100 + len(self.messages)
        self.messages.append(Message(role, parts, message_id, round(self.clock)))
        for item in self.messages[-1].items if role == "seeker" else ():
            self.labels.setdefault(item, ItemLabel(0, 1, 1))

    def _label(self, item: int) -> ItemLabel:
        """The form's answer about a suggested item: who disliked or liked it says so, in between says nothing."""
        row = self.user.catalogue.row(item)
        utility = self.user.taste.utilities[row]
        seen = int(row == self.user.taste.seen_item)
        return ItemLabel(1, seen, 1 if utility > 0.5 else 0 if utility < 0.25 else UNKNOWN)


def write_world(folder: Path | str, config: WorldConfig, seed: int) -> Path:
    """Writes the log in the official schema; the same configuration and seed give the same bytes.

    Files: `{train,test}_data.jsonl`, `{train,test}_provenance.tsv`, `movies_with_mentions.csv`, `kg/id2info.json`, and
    `world.json` with the configuration and seed.

    Returns: the folder.
    """
    folder = Path(folder)
    (folder / "kg").mkdir(parents=True, exist_ok=True)
    catalogue = make_catalogue(config, seed)
    mentions: Counter[int] = Counter()
    for split in ("train", "test"):
        logged = logged_dialogues(config, seed, split)
        with open(folder / f"{split}_data.jsonl", "w", encoding="utf-8", newline="\n") as file:
            for entry in logged:
                record = official_record(entry, catalogue)
                mentions.update(int(item) for item in record["movieMentions"])
                file.write(json.dumps(record) + "\n")
        with open(folder / f"{split}_provenance.tsv", "w", encoding="utf-8", newline="\n") as file:
            file.write("conversationId\tprovenance\n")
            file.writelines(f"{entry.dialogue.dialogue_id}\tworld\n" for entry in logged)
    with open(folder / "movies_with_mentions.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("movieId", "movieName", "nbMentions"))
        writer.writerows((item.item_id, item.title, mentions[item.item_id]) for item in catalogue.items)
    (folder / "kg" / "id2info.json").write_text(json.dumps(_metadata(catalogue)), encoding="utf-8")
    world = {"seed": seed, **dataclasses.asdict(config)}
    (folder / "world.json").write_text(json.dumps(world, indent=1, sort_keys=True), encoding="utf-8")
    return folder


def official_record(entry: LoggedDialogue, catalogue: Catalogue) -> dict:
    """One line of the official file."""
    dialogue = entry.dialogue
    worker = {"seeker": entry.user_id, "recommender": RECOMMENDER_WORKER}
    items = dict.fromkeys(item for message in dialogue.messages for item in message.items)
    names = ("suggested", "seen", "liked")
    form = {str(item): dict(zip(names, label, strict=True)) for item, label in dialogue.seeker_labels.items()}
    return {
        "movieMentions": {str(item): catalogue.items[catalogue.row(item)].title for item in items},
        "respondentQuestions": form,
        "messages": [
            {
                "timeOffset": message.time_offset,
                "text": "".join(part if isinstance(part, str) else f"@{part}" for part in message.parts),
                "senderWorkerId": worker[message.role],
                "messageId": message.message_id,
            }
            for message in dialogue.messages
        ],
        "conversationId": dialogue.dialogue_id,
        "respondentWorkerId": worker["recommender"],
        "initiatorWorkerId": worker["seeker"],
        "initiatorQuestions": form,
    }


def _metadata(catalogue: Catalogue) -> dict[str, dict]:
    return {
        str(item.item_id): {
            "name": item.title,
            "genre": list(item.genres),
            "plot": item.plot,
            "director": [],
            "writer": [],
            "star": list(item.people),
            "imdb_id": f"world{item.item_id}",
        }
        for item in catalogue.items
    }
