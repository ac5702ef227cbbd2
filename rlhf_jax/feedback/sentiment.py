"""Sentiment: what the user's words say about the system's message before them.

    level = S(u_{t+1}),   shift = S(u_{t+1}) − S(u_t)

Source: arXiv:2508.05289 (shift, S from RoBERTa as p(pos) − p(neg)). Here S is VADER's compound score (Hutto & Gilbert
2014), in [-1, 1], or any scorer that is passed in (`encoders.roberta_scorer`). Titles are not opinions: items are read as
"it".
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from rlhf_jax.data.turns import AnsweredTurn, next_user_turn
from rlhf_jax.data.typography import plain
from rlhf_jax.feedback.encoders import RobertaScorer, default_cache, roberta_scorer
from rlhf_jax.feedback.labelling import Signal, Training
from rlhf_jax.interfaces import Dialogue

Scorer = Callable[[str], float]
"""Sentiment of a text in [-1, 1]; 0 is neutral."""


def fit(training: Training) -> Signal:
    """The form and scorer of the options; nothing is fitted."""
    return _signal(training, training.options.sentiment)


def level_signal(training: Training) -> Signal:
    """The level after the message, whatever form the options ask for; for signals that are made of it."""
    return _signal(training, "level")


def _signal(training: Training, form: Literal["shift", "level"]) -> Signal:
    options, scorer = training.options, training.scorer
    if scorer is None and options.roberta is not None and options.scorer == "roberta":
        scorer = roberta_scorer(options.roberta, cache=default_cache())
    scorer = scorer or vader_scorer()

    def signal(turns: Sequence[AnsweredTurn]) -> NDArray[np.float64]:
        if isinstance(scorer, RobertaScorer):
            around = (spoken_around(turn.dialogue, turn.message_index) for turn in turns)
            scorer.prepare(text for pair in around for text in pair if text is not None)
        felt = [sentiment(turn.dialogue, turn.message_index, scorer=scorer, form=form) for turn in turns]
        return np.array(felt, float)

    return signal


def vader_scorer() -> Scorer:
    """VADER's compound score, remembered per text; loading the lexicon takes some tens of milliseconds.

    Punctuation is read as plain, whoever made the text: the lexicon's negations are in ASCII.
    """
    analyzer = SentimentIntensityAnalyzer()
    return functools.lru_cache(maxsize=65_536)(lambda text: float(analyzer.polarity_scores(plain(text))["compound"]))


def opinion_text(parts: Sequence[str | int]) -> str:
    """The words of a message or turn with every item replaced by `it`."""
    return " ".join("".join(part if isinstance(part, str) else " it " for part in parts).split())


def sentiment(
    dialogue: Dialogue, message_index: int, *, scorer: Scorer, form: Literal["shift", "level"] = "shift"
) -> float:
    """Sentiment feedback on a system message; NaN where the user says nothing after (or, for `shift`, before) it."""
    before, after = spoken_around(dialogue, message_index)
    if after is None or (form == "shift" and before is None):
        return math.nan
    level = scorer(after)
    return level if form == "level" or before is None else level - scorer(before)


def spoken_around(dialogue: Dialogue, message_index: int) -> tuple[str | None, str | None]:
    """The seeker's words before and after a system message, as they are scored; None where nothing was said."""
    before, reply = _turn_before(dialogue, message_index), next_user_turn(dialogue, message_index)
    return (
        None if before is None else opinion_text(before),
        None if reply is None else opinion_text(reply.parts),
    )


def _turn_before(dialogue: Dialogue, message_index: int) -> tuple[str | int, ...] | None:
    """Parts of the seeker's last turn before a message, other messages of the recommender skipped."""
    parts: list[str | int] = []
    for message in reversed(dialogue.messages[:message_index]):
        if message.role == "seeker":
            parts = [*message.parts, " ", *parts]
        elif parts:
            break
    return tuple(parts) if parts else None
