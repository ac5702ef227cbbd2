"""A reasoning policy in conversation: with a scoring simulator that no training has met, and with the users of the world.

Whoever trains does not import this file.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from rlhf_jax.data.turns import spell
from rlhf_jax.data.windows import response_message
from rlhf_jax.evaluation.episodes import Measured
from rlhf_jax.feedback.recommendation import recommendation_reward
from rlhf_jax.interfaces import Message, Params
from rlhf_jax.keys import stream_key
from rlhf_jax.runtime.files import RunError, read_npz, write_npz
from rlhf_jax.runtime.progress import Progress
from rlhf_jax.runtime.run import RunDirectory
from rlhf_jax.stages.smtpo.episodes import Seekers, Turns, converse
from rlhf_jax.stages.smtpo.human_turns import ReasonedTurn
from rlhf_jax.stages.smtpo.multi_turn import speaker
from rlhf_jax.stages.smtpo.recommender import Recommender
from rlhf_jax.stages.smtpo.seeker import NOTHING_LEFT

FOLDER = "conversations"
BATCH = 64
"""Conversations at once: one program for any number of them."""


def measure(
    run: RunDirectory,
    name: str,
    recommender: Recommender,
    params: Params,
    seekers: Seekers,
    openings: Sequence[ReasonedTurn],
    *,
    n_turns: int,
) -> Measured:
    """Greedy conversations of a system with simulated seekers, stored in the run under `name`; asked once."""
    path = run.path / FOLDER / f"{name}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = talk(name, recommender, params, seekers, openings, n_turns=n_turns)
        write_npz(path, {key: np.asarray(value) for key, value in found._asdict().items() if value is not None})
    return stored(run.path, name)


def stored(directory: Path, name: str) -> Measured:
    """What `measure` has stored in a run directory under `name`; the run need not be open.

    Raises: RunError naming the file that is missing or damaged.
    """
    path = directory / FOLDER / f"{name}.npz"
    if not path.exists():
        raise RunError(f"{path} is not there: the run has not come so far, or an older version finished it")
    found = read_npz(path)
    return Measured(**{**found, "conversations": tuple(str(one) for one in found["conversations"])})


def first_list(recommender: Recommender, openings: Sequence[ReasonedTurn], *, n_turns: int) -> Measured:
    """The rival that is not trained here and listens to nobody: turn k lists the next K items of the retriever's first order.

    It says no attributes and has no form, which count 0.
    """
    vocab, n, length = recommender.setup.vocab, len(openings), recommender.list_length
    columns = {item: column for column, item in enumerate(vocab.item_ids)}
    gold, scores = np.zeros((n, len(columns)), bool), np.zeros((n, len(columns)), np.float32)
    for start in range(0, n, BATCH):
        own = openings[start : start + BATCH]
        _, scores[start : start + BATCH] = recommender.prompts(
            [opening.dialogue.messages[: opening.index] for opening in own],
            [opening.dialogue.dialogue_id for opening in own],
        )
        for row, opening in enumerate(own, start):
            gold[row, [columns[item] for item in opening.gold]] = True
    order = np.argsort(-scores, axis=1, kind="stable").astype(np.int32)
    shape = (n, n_turns)
    rewards, running = np.zeros((*shape, 3), np.float32), np.ones(shape, bool)
    gold_rank, recalled, repeated = np.zeros(shape, np.int32), np.zeros(shape, bool), np.zeros(shape, bool)
    for turn in range(n_turns):
        listed = order[:, turn * length : (turn + 1) * length]
        if turn:
            running[:, turn] = running[:, turn - 1] & (gold_rank[:, turn - 1] == 0)
        had = running[:, turn]
        if not listed.shape[1]:  # The catalogue has come to its end.
            continue
        hit = np.take_along_axis(gold, listed, axis=1)
        rewards[:, turn, 1] = np.where(had, np.asarray(jax.vmap(recommendation_reward)(listed, gold)), 0)
        gold_rank[:, turn] = np.where(had & hit.any(axis=1), hit.argmax(axis=1) + 1, 0)
        # Its candidates are those of the first turn, less what it has listed.
        recalled[:, turn] = had & (recommender.retrieval.candidates(scores) & gold).any(axis=1)
        repeated[:, turn] = had & np.isneginf(np.take_along_axis(scores, listed, axis=1)).any(axis=1)
    return Measured(
        conversations=tuple(opening.dialogue.dialogue_id for opening in openings),
        rewards=rewards,
        running=running,
        gold_rank=gold_rank,
        recalled=recalled,
        attributes=np.zeros(shape, np.int32),
        repeated=repeated,
    )


def talk(
    name: str,
    recommender: Recommender,
    params: Params,
    seekers: Seekers,
    openings: Sequence[ReasonedTurn],
    *,
    n_turns: int,
) -> Measured:
    """The conversations themselves, `BATCH` at a time."""
    speak = speaker(recommender, greedy=True)
    key = stream_key(jax.random.key(recommender.setup.seed), "conversations", 0)
    parts: list[Turns] = []
    with Progress(f"conversations: {name}", 0, len(openings)) as progress:
        for start in range(0, len(openings), BATCH):
            own = list(openings[start : start + BATCH])
            # The last batch is filled from the front of all: fewer rows would be another program, and nobody's neighbour is itself.
            filled = [openings[(start + row) % len(openings)] for row in range(BATCH)]
            found = converse(
                recommender, speak, params, seekers, filled, n_turns=n_turns, key=jax.random.fold_in(key, start)
            )
            parts.append(first_rows(found, len(own)))
            progress.show(start + len(own), {})
    return Measured(
        conversations=tuple(opening.dialogue.dialogue_id for opening in openings),
        rewards=np.concatenate([part.rewards for part in parts]),
        running=np.concatenate([part.running for part in parts]),
        gold_rank=np.concatenate([part.gold_rank for part in parts]),
        recalled=np.concatenate([part.gold_recalled for part in parts]),
        attributes=np.concatenate([part.attributes_said for part in parts]),
        repeated=np.concatenate([part.repeated for part in parts]),
        echoed=np.concatenate([part.echoed for part in parts]),
        leaked=np.concatenate([np.stack([part.answers, part.leaks, part.leaks_left], axis=1) for part in parts]),
    )


def talk_once(
    recommender: Recommender, params: Params, seekers: Seekers, openings: Sequence[ReasonedTurn], *, n_turns: int
) -> Turns:
    """A few conversations, as `talk` has them, with what was said."""
    filled = [openings[row % len(openings)] for row in range(BATCH)]
    key = jax.random.fold_in(stream_key(jax.random.key(recommender.setup.seed), "conversations", 0), 0)
    speak = speaker(recommender, greedy=True)
    return first_rows(converse(recommender, speak, params, seekers, filled, n_turns=n_turns, key=key), len(openings))


def spoken(messages: Sequence[Message], titles: Mapping[int, str]) -> list[list[str]]:
    """Role and words of messages; a reply's list stands before its words, without a space of its own."""
    spaced = [[f" {part} " if isinstance(part, str) else part for part in message.parts] for message in messages]
    return [[message.role, spell(parts, titles)] for message, parts in zip(messages, spaced, strict=True)]


def first_rows(turns: Turns, n: int) -> Turns:
    """The first n conversations. Replies and their places stay those of all."""
    return turns._replace(
        **{
            name: getattr(turns, name)[:n]
            for name in (
                "rewards",
                "running",
                "gold_rank",
                "gold_recalled",
                "attributes_said",
                "repeated",
                "echoed",
                "answers",
                "leaks",
                "leaks_left",
                "histories",
            )
        }
    )


class ReasoningResponder:
    """The greedy policy as one side of conversations with the users of the world; see `assessment.users.Responder`.

    With `deaf` it reads nothing that they answer, only their opening; `SilentSeekers` says what it reads instead.
    """

    def __init__(self, recommender: Recommender, params: Params, *, deaf: bool = False) -> None:
        self._recommender, self._params, self._deaf = recommender, params, deaf
        self._speak = speaker(recommender, greedy=True)
        self._key = jax.random.key(recommender.setup.seed)

    def __call__(self, histories: Sequence[Sequence[Message]], numbers: Sequence[int]) -> list[Message]:
        """The next message of every conversation."""
        del numbers
        vocab, found = self._recommender.setup.vocab, []
        if self._deaf:
            histories = [unanswered(history) for history in histories]
        for start in range(0, len(histories), BATCH):
            own = list(histories[start : start + BATCH])
            prompts, _ = self._recommender.prompts([own[row % len(own)] for row in range(BATCH)])
            rollout = self._speak(self._params, prompts, self._key)
            rows = zip(np.asarray(rollout.response_tokens), np.asarray(rollout.response_mask), strict=True)
            found += [response_message(vocab, row[kept].tolist()) for row, kept in list(rows)[: len(own)]]
        return found


def unanswered(history: Sequence[Message]) -> tuple[Message, ...]:
    """The same conversation in which the seeker says nothing once the recommender has spoken.

    Examples:
      >>> said = [("seeker", "a western?"), ("recommender", "this"), ("seeker", "a newer one"), ("recommender", "that")]
      >>> [message.parts for message in unanswered([Message(role, (words,), 0) for role, words in said])]
      [('a western?',), ('this',), ('...',), ('that',)]
    """
    heard: list[Message] = []
    for message in history:
        silent = message.role == "seeker" and any(one.role == "recommender" for one in heard)
        heard.append(dataclasses.replace(message, parts=NOTHING_LEFT) if silent else message)
    return tuple(heard)
