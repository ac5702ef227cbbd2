"""A user of the simulated world who can be talked to: opens, answers a system turn, and says what it was worth.

turn utility   u = mean over listed items of u(user, item), 0 for a repeated or already seen one,
                   × (1 − impatience·max(0, words − patient_words))
shown feeling  s = (1 − politeness)·u + politeness·min(1, words/16)
words          level = round(6·s + noise·N(0, 0.4²)), one of seven levels from hate to delight
acceptance     P = σ(12·(u − 0.62)/noise)
dwell          exp(log 5 + 2.2·u + noise·N(0, 0.2²)) + 0.15·hackability·words   seconds
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from rlhf_jax.interfaces import Message
from rlhf_jax.simulators.world import Catalogue, Taste, WorldConfig
from rlhf_jax.simulators.world_language import (
    ACCEPTANCE,
    FACTS,
    LOOKING,
    MAX_WORDS,
    QUIT,
    RATHER,
    REACTIONS,
    REPEATED,
    USER_HELLO,
    WAITING,
    Parts,
    choose,
    count_words,
    fill,
    join,
    request_parts,
)

TALK_UTILITY = 0.15
"""Utility of a turn without a suggestion while the user still has something new to say."""
IDLE_UTILITY = 0.05
"""Utility of a turn without a suggestion when the user has said everything, or was made to talk twice in a row."""
LEAVE_UTILITY = 0.4
"""Users whose turn was worth less may leave, but not before they heard PATIENT_TURNS turns."""
PATIENT_TURNS = 2


@dataclasses.dataclass(frozen=True)
class WorldUser:
    """A user in the middle of a dialogue; `reply` returns the next state, nothing is changed in place."""

    config: WorldConfig
    catalogue: Catalogue
    taste: Taste
    stated: tuple[str, ...] = ()
    """Facts said so far, in order."""
    shown: frozenset[int] = frozenset()
    """Ids of the items suggested so far."""
    heard: int = 0
    """System turns answered so far."""
    idle_turns: int = 0
    """System turns without a suggestion since the last suggestion."""

    @property
    def unsaid(self) -> tuple[str, ...]:
        """Facts the user could still say."""
        known = (*self.stated, *(() if self.config.dislikes else ("disliked_genre",)))
        return tuple(fact for fact in FACTS if fact not in known)


class UserReaction(NamedTuple):
    """What a system turn brought about."""

    message: Message
    """The user's words; `message_id` 0, no time."""
    utility: float
    """True utility of the system turn, in [0, 1]."""
    accepted: bool
    """The user takes a suggested item."""
    ended: bool
    """The user leaves without having accepted."""
    dwell_seconds: float
    """Time from the system turn to this message."""
    user: WorldUser
    """The user after this message."""


def opening(user: WorldUser, rng: np.random.Generator, *, greeted: bool = False) -> tuple[Message, WorldUser]:
    """First message: asks for the genre and says one or two more facts."""
    facts: tuple[str, ...] = ("genre",)
    for _ in range(1 if rng.random() < 0.3 else 2):
        facts = (*facts, _new_fact(rng, tuple(fact for fact in user.unsaid if fact not in facts)))
    lead = ("" if greeted else choose(rng, USER_HELLO), choose(rng, LOOKING))
    words = join(*((word,) for word in lead if word), request_parts(rng, user.catalogue, user.taste, facts))
    return _message(words), dataclasses.replace(user, stated=facts)


def turn_utility(user: WorldUser, items: tuple[int, ...], n_words: int) -> float:
    """True utility of a system turn that lists `items` and has `n_words` words, in [0, 1]."""
    if items:
        value = float(np.mean([_item_utility(user, item) for item in items]))
    else:
        value = TALK_UTILITY if user.idle_turns == 0 and user.unsaid else IDLE_UTILITY
    too_long = max(0, n_words - user.config.patient_words)
    return value * max(0.0, 1.0 - user.config.impatience * too_long)


def dwell_seconds(config: WorldConfig, utility: float, n_words: int, rng: np.random.Generator) -> float:
    """Interest, log-normal in utility, plus reading time; seconds."""
    interest = math.exp(math.log(5.0) + 2.2 * utility + 0.2 * config.noise * rng.standard_normal())
    return interest + 0.15 * config.hackability * n_words


def acceptance_probability(config: WorldConfig, utility: float) -> float:
    """Probability that a suggesting turn of this utility is accepted."""
    return 0.5 * (1.0 + math.tanh(6.0 * (utility - 0.62) / max(config.noise, 1e-3)))


def reply(user: WorldUser, items: tuple[int, ...], n_words: int, rng: np.random.Generator) -> UserReaction:
    """Answers a system turn.

    Args:
      user: the user before the turn.
      items: ids of the items the turn lists, in order; repeats count once.
      n_words: length of the turn in words, items not counted.
      rng: source of every draw.
    Returns: reaction, with the user after it.
    Raises: ValueError for an item outside the catalogue or a negative length.
    """
    if n_words < 0:
        raise ValueError(f"n_words must not be negative, got {n_words}")
    items = tuple(dict.fromkeys(items))
    utility = turn_utility(user, items, n_words)
    config = user.config
    feeling = (1 - config.politeness) * utility + config.politeness * min(1.0, n_words / MAX_WORDS)
    level = round(0.5 + 5.5 * feeling + 0.4 * config.noise * rng.standard_normal())
    dwell = dwell_seconds(config, utility, n_words, rng)
    accepted = bool(items) and rng.random() < acceptance_probability(config, utility)
    leaves = rng.random() < 0.3 * max(0.0, 1 - utility / LEAVE_UTILITY)
    ended = not accepted and leaves and user.heard >= PATIENT_TURNS
    after = dataclasses.replace(
        user,
        shown=user.shown | set(items),
        heard=user.heard + 1,
        idle_turns=0 if items else user.idle_turns + 1,
    )
    words = _feeling_words(user, items, min(6, max(0, level)), rng)
    if accepted:
        best = max(items, key=lambda item: _item_utility(user, item))
        words = join(words, ("and",), fill(choose(rng, ACCEPTANCE), best))
    if ended:
        words = join(words, (choose(rng, QUIT),))
    else:
        words, after = _ask_again(after, words, rng, new_fact=not accepted)
    return UserReaction(_message(words), utility, accepted, ended, dwell, after)


def _item_utility(user: WorldUser, item: int) -> float:
    row = user.catalogue.row(item)
    return 0.0 if item in user.shown or row == user.taste.seen_item else float(user.taste.utilities[row])


def _feeling_words(user: WorldUser, items: tuple[int, ...], level: int, rng: np.random.Generator) -> Parts:
    if items:
        repeated = level <= 1 and all(_item_utility(user, item) == 0 for item in items)
        return (choose(rng, REPEATED if repeated else REACTIONS[level]),)
    return () if user.idle_turns == 0 and user.unsaid else (choose(rng, WAITING),)


def _ask_again(user: WorldUser, words: Parts, rng: np.random.Generator, *, new_fact: bool) -> tuple[Parts, WorldUser]:
    """Repeats the request after the given words, as fully as MAX_WORDS allow, often with a new fact."""
    fact = _new_fact(rng, user.unsaid) if new_fact and (not words or rng.random() < 0.5) else ""
    old = tuple(name for name in user.stated if name != "seen_item" and rng.random() < 0.7)
    lead = choose(rng, RATHER)
    for facts in ((*old, fact), (fact,), ()):
        request = request_parts(rng, user.catalogue, user.taste, facts)
        full = join(*((words, (",",)) if words else ()), *(((lead,),) if lead else ()), request)
        if count_words(full) <= MAX_WORDS:
            said = dict.fromkeys((*user.stated, "genre", *facts))
            return full, dataclasses.replace(user, stated=tuple(name for name in said if name))
    return words, user


def _new_fact(rng: np.random.Generator, unsaid: tuple[str, ...]) -> str:
    """One of the facts not said yet, often the person first and the seen item last; empty when all are said."""
    if "person" in unsaid and rng.random() < 0.7:
        return "person"
    known = tuple(fact for fact in unsaid if fact not in ("genre", "seen_item"))
    return choose(rng, known or unsaid) if unsaid else ""


def _message(parts: Parts) -> Message:
    return Message(role="seeker", parts=parts, message_id=0)
