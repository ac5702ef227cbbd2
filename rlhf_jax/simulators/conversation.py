"""Closed loop: a policy talks with users it never met, and the world tells what it was truly worth.

The policy is a callable from message histories to the next system messages, one per running dialogue, so that a model
can answer all users in one batch. It is told which dialogues these are: they are numbered as their users are.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from rlhf_jax.interfaces import Message
from rlhf_jax.simulators.world import Floats, WorldConfig, make_catalogue, make_taste, stream
from rlhf_jax.simulators.world_language import count_words
from rlhf_jax.simulators.world_recommenders import Recommender
from rlhf_jax.simulators.world_user import WorldUser, opening, reply

History = tuple[Message, ...]
Respond = Callable[[Sequence[History], Sequence[int]], Sequence[Message]]
"""Next system message for each history, whose dialogue's number is beside it. What a response suggests is every item in its parts, so a listed item must
stand there too. Role, id and time of the messages returned are ignored."""


@dataclasses.dataclass(frozen=True)
class ClosedLoopResult:
    """Truth about a policy, one row per user; N users, T turns at most."""

    mean_utility: Floats
    """Mean true utility of the system turns the user lived through, in [0, 1]. [N]"""
    first_utility: Floats
    """True utility of the first system turn. [N]"""
    success: np.ndarray
    """True where a suggestion was accepted within t + 1 turns. [N, T]"""
    turns: np.ndarray
    """System turns until acceptance; T + 1 for users who never accepted. [N]"""
    mean_length: Floats
    """Mean words of the system turns, items not counted. [N]"""
    dwell_seconds: Floats
    """Mean dwell per system turn. [N]"""
    dialogues: tuple[History, ...]
    """What was said. [N]"""


class Reaction(NamedTuple):
    """What a user does with one system turn."""

    message: Message
    accepted: bool
    """A suggestion was taken; the conversation ends well."""
    ended: bool
    """The user leaves."""
    utility: float = math.nan
    """True worth of the turn, in [0, 1]; NaN for users whose worth nobody knows."""
    dwell_seconds: float = math.nan
    """How long the user stayed with the turn; NaN where nobody measures it."""


@runtime_checkable
class Users(Protocol):
    """A crowd, each of whom is met once. Users are numbered from 0 in the order of `open`."""

    def open(self) -> Sequence[Message]:
        """The first words of every user."""
        ...

    def answer(
        self, numbers: Sequence[int], histories: Sequence[History], replies: Sequence[Message]
    ) -> Sequence[Reaction]:
        """What the users of these numbers do with a system turn each; `histories` end before it.

        Raises: ValueError for a reply that suggests what does not exist.
        """
        ...


class WorldUsers:
    """Users of the simulated world's closed-loop population; none of them is behind the logged files.

    Each draws from streams of its own, so that all policies meet the same users, who are in the same moods.
    """

    def __init__(self, config: WorldConfig, seed: int, n_users: int) -> None:
        if n_users < 1:
            raise ValueError(f"n_users must be positive, got {n_users}")
        self.users: list[WorldUser] = [*closed_loop_users(config, seed, n_users)]
        """As they are now: what they have said and how patient they still are."""
        self._streams = [stream(seed, "closed-loop/dialogue", number) for number in range(n_users)]

    def open(self) -> list[Message]:
        """The first words of every user."""
        messages = []
        for number, rng in enumerate(self._streams):
            message, self.users[number] = opening(self.users[number], rng)
            messages.append(message)
        return messages

    def answer(
        self, numbers: Sequence[int], histories: Sequence[History], replies: Sequence[Message]
    ) -> list[Reaction]:
        """See `Users`; they remember what was said, so that `histories` tell them nothing new."""
        del histories
        reactions = []
        for number, message in zip(numbers, replies, strict=True):
            user, length = self.users[number], count_words(message.parts)
            found = reply(user, message.items, length, self._streams[number])
            self.users[number] = found.user
            reactions.append(Reaction(found.message, found.accepted, found.ended, found.utility, found.dwell_seconds))
        return reactions


def closed_loop_users(config: WorldConfig, seed: int, n_users: int) -> tuple[WorldUser, ...]:
    """Users of the closed-loop population before their first word; none of them is behind the logged files."""
    catalogue = make_catalogue(config, seed)
    tastes = (make_taste(config, catalogue, seed, split="closed-loop", index=n) for n in range(n_users))
    return tuple(WorldUser(config, catalogue, taste) for taste in tastes)


def evaluate_closed_loop(
    respond: Respond, config: WorldConfig, seed: int, *, n_users: int = 200, n_turns: int = 5
) -> ClosedLoopResult:
    """`converse` with users of the simulated world.

    Args:
      respond: policy; called once per turn with the histories and numbers of all running dialogues.
      config: world; must be the one the log was written from.
      seed: seed of that world. Users draw from their own streams, the same for every policy.
      n_users: users, each met once.
      n_turns: system turns at most, T.
    Returns: truth per user.
    Raises: ValueError if `respond` returns another number of messages or an item outside the catalogue.
    """
    return converse(WorldUsers(config, seed, n_users), respond, n_turns)


def evaluate_recommender(
    recommender: Recommender, config: WorldConfig, seed: int, *, n_users: int = 200, n_turns: int = 5
) -> ClosedLoopResult:
    """The same for one of the world's own recommenders, who know the user: logged, random, popularity, oracle."""
    crowd = WorldUsers(config, seed, n_users)
    choices = [stream(seed, "closed-loop/recommender", n) for n in range(n_users)]

    def respond(histories: Sequence[History], numbers: Sequence[int]) -> list[Message]:
        del histories
        return [Message("recommender", recommender(crowd.users[number], choices[number]), 0) for number in numbers]

    return converse(crowd, respond, n_turns)


def converse(users: Users, respond: Respond, n_turns: int) -> ClosedLoopResult:
    """Runs a crowd against a policy until everyone has accepted, left, or heard `n_turns` system turns.

    Raises: ValueError if `respond` or the users return another number of messages than asked for.
    """
    histories: list[History] = [(message,) for message in users.open()]
    n = len(histories)
    utility, words, dwell = (np.full((n, n_turns), np.nan) for _ in range(3))
    success = np.zeros((n, n_turns), bool)
    running = list(range(n))
    for turn in range(n_turns):
        if not running:
            break
        told = [histories[number] for number in running]
        messages = respond(told, running)
        if len(messages) != len(running):
            raise ValueError(f"respond returned {len(messages)} messages for {len(running)} histories")
        reactions = users.answer(running, told, messages)
        if len(reactions) != len(running):
            raise ValueError(f"{type(users).__name__} answered {len(reactions)} of {len(running)} turns")
        still = []
        for number, message, reaction in zip(running, messages, reactions, strict=True):
            said = Message("recommender", message.parts, 0)
            histories[number] = (*histories[number], said, reaction.message)
            utility[number, turn], words[number, turn] = reaction.utility, count_words(message.parts)
            dwell[number, turn] = reaction.dwell_seconds
            success[number, turn:] |= reaction.accepted
            if not (reaction.accepted or reaction.ended):
                still.append(number)
        running = still
    turns = np.where(success.any(1), success.argmax(1) + 1, n_turns + 1)
    return ClosedLoopResult(
        mean_utility=np.nanmean(utility, 1),
        first_utility=utility[:, 0],
        success=success,
        turns=turns,
        mean_length=np.nanmean(words, 1),
        dwell_seconds=np.nanmean(dwell, 1),
        dialogues=tuple(histories),
    )
