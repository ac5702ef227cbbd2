"""Closed loop: a policy talks with users it never met, and the world tells what it was truly worth.

The policy is a callable from message histories to the next system messages, one per running dialogue, so that a model
can answer all users in one batch. It is told which dialogues these are: they are numbered as their users are.
"""

import dataclasses
from collections.abc import Callable, Sequence

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


def closed_loop_users(config: WorldConfig, seed: int, n_users: int) -> tuple[WorldUser, ...]:
    """Users of the closed-loop population before their first word; none of them is behind the logged files."""
    catalogue = make_catalogue(config, seed)
    tastes = (make_taste(config, catalogue, seed, split="closed-loop", index=n) for n in range(n_users))
    return tuple(WorldUser(config, catalogue, taste) for taste in tastes)


def evaluate_closed_loop(
    respond: Respond, config: WorldConfig, seed: int, *, n_users: int = 200, n_turns: int = 5
) -> ClosedLoopResult:
    """Runs users against a policy until they accept, leave, or have heard `n_turns` system turns.

    Args:
      respond: policy; called once per turn with the histories and numbers of all running dialogues.
      config: world; must be the one the log was written from.
      seed: seed of that world. Users draw from their own streams, the same for every policy.
      n_users: users, each met once.
      n_turns: system turns at most, T.
    Returns: truth per user.
    Raises: ValueError if `respond` returns another number of messages or an item outside the catalogue.
    """
    starts = _openings(config, seed, n_users)
    return _run([history for history, _, _ in starts], [user for _, user, _ in starts], [rng for _, _, rng in starts],
                lambda histories, users, numbers: respond(histories, numbers), n_turns)  # fmt: skip


def evaluate_recommender(
    recommender: Recommender, config: WorldConfig, seed: int, *, n_users: int = 200, n_turns: int = 5
) -> ClosedLoopResult:
    """The same for one of the world's own recommenders: logged, random, popularity, oracle."""
    starts = _openings(config, seed, n_users)
    choices = [stream(seed, "closed-loop/recommender", n) for n in range(n_users)]

    def respond(histories: Sequence[History], users: Sequence[WorldUser], numbers: Sequence[int]) -> list[Message]:
        return [
            Message("recommender", recommender(user, choices[number]), 0)
            for user, number in zip(users, numbers, strict=True)
        ]

    return _run([history for history, _, _ in starts], [user for _, user, _ in starts], [rng for _, _, rng in starts],
                respond, n_turns)  # fmt: skip


def _openings(config: WorldConfig, seed: int, n_users: int) -> list[tuple[History, WorldUser, np.random.Generator]]:
    if n_users < 1:
        raise ValueError(f"n_users must be positive, got {n_users}")
    starts = []
    for number, user in enumerate(closed_loop_users(config, seed, n_users)):
        rng = stream(seed, "closed-loop/dialogue", number)
        message, user = opening(user, rng)
        starts.append(((message,), user, rng))
    return starts


def _run(
    histories: list[History],
    users: list[WorldUser],
    rngs: list[np.random.Generator],
    respond: Callable[[Sequence[History], Sequence[WorldUser], Sequence[int]], Sequence[Message]],
    n_turns: int,
) -> ClosedLoopResult:
    n = len(users)
    utility, words, dwell = (np.full((n, n_turns), np.nan) for _ in range(3))
    success = np.zeros((n, n_turns), bool)
    running = list(range(n))
    for turn in range(n_turns):
        messages = respond([histories[u] for u in running], [users[u] for u in running], running) if running else ()
        if len(messages) != len(running):
            raise ValueError(f"respond returned {len(messages)} messages for {len(running)} histories")
        still = []
        for number, message in zip(running, messages, strict=True):
            length = count_words(message.parts)
            reaction = reply(users[number], message.items, length, rngs[number])
            said = Message("recommender", message.parts, 0)
            histories[number] = (*histories[number], said, reaction.message)
            users[number] = reaction.user
            utility[number, turn], words[number, turn] = reaction.utility, length
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
