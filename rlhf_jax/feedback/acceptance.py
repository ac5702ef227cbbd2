"""Acceptance: how gladly the user takes a suggestion, read from the conversation alone.

    acceptance = S(u_{t+1})   where the system's message names an item that nobody has named before;   else undefined

S is the run's scorer of sentiment, in [-1, 1]. Other turns have no acceptance, so that a policy is not paid for suggesting
anything at all, as it is by `continuation`. The seeker's form is never read: it is what a signal is held against. On ReDial
(`docs/results/signals.md`) the level of sentiment after an item's first mention tells liked items from disliked ones with AUC
.67; that the user goes on or names the item says nothing (.48).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_jax.data.turns import AnsweredTurn
from rlhf_jax.feedback import sentiment
from rlhf_jax.feedback.labelling import Signal, Training


def fit(training: Training) -> Signal:
    """Sentiment of the answer to a fresh suggestion, by the scorer of the options; nothing is fitted."""
    scores = sentiment.level_signal(training)

    def signal(turns: Sequence[AnsweredTurn]) -> NDArray[np.float64]:
        suggests = np.array([bool(fresh_items(turn)) for turn in turns], bool)
        return np.where(suggests, scores(turns), np.nan)

    return signal


def fresh_items(turn: AnsweredTurn) -> tuple[int, ...]:
    """Items of the system's message that no message before it names, in order of mention."""
    named = {item for message in turn.context for item in message.items}
    return tuple(dict.fromkeys(item for item in turn.message.items if item not in named))
